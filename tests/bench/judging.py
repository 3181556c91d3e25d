"""What judging costs: counting, intervals, figures, and memory on a large raster.

    python tests/bench/judging.py [count] [resample] [figures] [report] [memory]

Everything runs on one core. `count`: labels and scores of 50 scenes of 650 x 650 pixels
with 3 classes that are in memory. `resample`: 20 runs on 50 scenes, 10,000 resamples.
`figures`: every figure for 8 runs on 50 scenes, and its size as a file; `report`: one
page about them, with the telling scenes and with all as maps. `memory`: the
largest resident set (ru_maxrss) of a process that counts one raster block by block.
Seconds are CPU seconds of the process, the lowest and the median of five turns.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

CLASSES = ("building", "background", "null")
SCENES, SIDE = 50, 650


def turns(work, n=5):
    "Lowest and median CPU seconds of n calls."
    took = []
    for _ in range(n):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return {"lowest": min(took), "median": statistics.median(took)}


def soft_scores(side, seed=0):
    "Class numbers (side, side) and float32 scores (3, side, side) that mostly agree."
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(side) / 17)
    logit = 4 * np.outer(wave, wave) + rng.normal(0, 1, (side, side))
    one = 1 / (1 + np.exp(-logit))
    null = np.full_like(one, 0.01)
    scores = np.stack([one * 0.99, (1 - one) * 0.99, null]).astype(np.float32)
    return (np.outer(wave, wave) < 0).astype(np.uint8), scores


def count():
    "One line for each kind of score."
    from rvtutorial.metrics.calibration import ScoreCounts, _count_score_arrays
    from rvtutorial.metrics.counting import Counts, _count_arrays

    truth, scores = soft_scores(SIDE)
    drawn = scores.argmax(axis=0).astype(np.uint8)
    kinds = {"float32": scores, "uint8": (255 * scores).round().astype(np.uint8)}
    for name, given in kinds.items():

        def work(given=given):
            ids = [str(i) for i in range(SCENES)]
            Counts.joined([_count_arrays(truth, drawn, CLASSES, i) for i in ids])
            ScoreCounts.joined(
                [_count_score_arrays(truth, given, CLASSES, i) for i in ids]
            )

        print(f"count {name}", turns(work), flush=True)


def resample():
    "Twenty runs, each with its interval and its difference from the best."
    from rvtutorial.metrics.intervals import _bootstrap
    from rvtutorial.metrics.leaderboard import leaderboard

    rng = np.random.default_rng(0)
    truth, false = rng.integers(1000, 9000, SCENES), rng.integers(100, 900, SCENES)
    runs = {}
    for i in range(20):
        hit = rng.binomial(truth, 0.8 + i / 200)
        cells = dict(tp=hit, fp=false, fn=truth - hit, tn=SIDE**2 - truth - false)
        cells["right"] = cells["tp"] + cells["tn"]
        runs[f"run{i}"] = pd.DataFrame(cells)
    draws = dict(n=10_000)

    def intervals():
        for rows in runs.values():
            _bootstrap(rows, **draws)

    print("intervals", turns(intervals))
    print("board", turns(lambda: leaderboard(runs, method="bootstrap", **draws)))


@contextlib.contextmanager
def eight_runs():
    "A sweep folder with eight runs that predicted fifty scenes."
    from rvtutorial.course.examples import make_example_runs
    from rvtutorial.scenes import find_splits, make_sample_scenes

    rates = (1e-1, 5e-2, 1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 1e-5)
    trials = [dict(lr=lr, batch_sz=4 * 2 ** (i % 2)) for i, lr in enumerate(rates)]
    with tempfile.TemporaryDirectory() as folder:
        data = make_sample_scenes(Path(folder, "data"), 1, SCENES, 0, SIDE)
        yield make_example_runs(Path(folder, "sweep"), find_splits(data)["val"], trials)


def report():
    "Seconds and bytes of a page, with the usual maps and with a map of every scene."
    from rvtutorial.figures.report import write_report
    from rvtutorial.runs import Run

    with eight_runs() as runs:
        every = Run(next(runs.glob("lr=*"))).scene_ids()
        for many, scenes in (("usual", None), ("all", every)):
            start = time.perf_counter()
            path = write_report(runs, runs / "report.html", scenes=scenes)
            took, size = time.perf_counter() - start, Path(path).stat().st_size / 1e6
            print(f"report, {many} maps: {took:.1f} s, {size:.2f} MB", flush=True)


def figures():
    "Seconds and bytes of each figure."
    from rvtutorial import viz

    drawn = {
        "training": lambda: viz.plot_metrics(runs),
        "leaderboard": lambda: viz.plot_leaderboard(runs),
        "scene scores": lambda: viz.plot_scene_scores(runs),
        "errors": lambda: viz.plot_errors(runs, 0),
        "worst": lambda: viz.plot_worst(runs),
        "agreement": lambda: viz.plot_agreement(runs),
        "score curves": lambda: viz.plot_score_curves(runs),
        "matrices": lambda: viz.display_conf_mat(runs),
        "maps": lambda: viz.plot_predictions(runs, 0),
        "reliability": lambda: viz.plot_reliability(runs),
        "parallel": lambda: viz.plot_parallel(runs),
        "importance": lambda: viz.plot_importance(runs),
        "cost": lambda: viz.plot_cost(runs),
        "parameter": lambda: viz.plot_parameter(runs, "lr"),
    }
    with eight_runs() as runs:
        begun, largest = time.perf_counter(), 0
        for name, draw in drawn.items():
            start = time.perf_counter()
            size = len(viz.figure_bytes(draw()))
            largest = max(largest, size)
            took = time.perf_counter() - start
            print(f"{name:14} {took:6.2f} s {size / 1e3:6.0f} KB", flush=True)
        took = time.perf_counter() - begun
    print(f"all {len(drawn)} figures: {took:.1f} s, largest {largest / 1e3:.0f} KB")


def write_large(folder, pixels, side=2000):
    "Labels and scores of about so many pixels, written block by block."
    import rasterio

    columns = min(20_000, int(pixels**0.5))
    rows = int(pixels) // columns
    truth, scores = soft_scores(side)
    shape = dict(driver="GTiff", height=rows, width=columns, dtype="uint8")
    shape |= dict(tiled=True, compress="deflate", zlevel=1, BIGTIFF="IF_SAFER")
    shape["transform"] = rasterio.transform.from_origin(6e5, 4e6, 0.3, 0.3)
    bands = {"truth": truth[None], "labels": scores.argmax(0, keepdims=True)}
    bands["scores"] = (255 * scores).round()
    for name, values in bands.items():
        path = Path(folder, f"{name}.tif")
        values = values.astype(np.uint8)
        with (
            rasterio.Env(GDAL_CACHEMAX=2**26),
            rasterio.open(path, "w", count=len(values), **shape) as file,
        ):
            for top in range(0, rows, side):
                for left in range(0, columns, side):
                    high, wide = min(side, rows - top), min(side, columns - left)
                    window = rasterio.windows.Window(left, top, wide, high)
                    file.write(values[:, :high, :wide], window=window)
    return rows * columns


PEAK = """
import sys
from rvtutorial.{module} import {function} as count
found = count(sys.argv[1] + "/truth.tif", sys.argv[1] + "/{name}.tif", {classes})
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(int(peak) // 1024)
"""


def memory(pixels):
    "The peak of a process that counts labels, and of one that counts scores."
    with tempfile.TemporaryDirectory() as folder:
        written = write_large(folder, pixels)
        for what in (("counting", "count_rasters", "labels"),
                     ("calibration", "count_scores", "scores")):  # fmt: skip
            given = dict(zip(("module", "function", "name"), what, strict=True))
            code = PEAK.format(**given, classes=CLASSES)
            start = time.perf_counter()
            out = subprocess.check_output([sys.executable, "-c", code, folder])
            took = time.perf_counter() - start
            found = dict(what=what[2], pixels=written, mib=int(out), seconds=took)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="as above")
    parser.add_argument("--pixels", type=float, default=1e9)
    asked = parser.parse_args()
    steps = {"count": count, "resample": resample, "figures": figures}
    steps["report"] = report
    steps["memory"] = lambda: memory(asked.pixels)
    for part in asked.parts or steps:
        steps[part]()

"""Plain Raster Vision and the engine side by side, on the same scenes and configuration.

    python tests/bench/bench.py [--section NAME] [--repeats 3] [--quick] [--against FOLDER]

Each measurement is a fresh process with the same number of threads; the two take turns.
What is printed are ratios: how many times less (of time) or more (of throughput) the
engine needs or gives. README.md beside this file says what each row means.
"""

import argparse
import copy
import datetime
import itertools
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve()
SECTIONS = ("pipeline", "data", "sweep", "predict", "gpu")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # of the sweep


# --- what runs in the processes that are measured

JOBS = {}


def job(function):
    "Let a function be run by `measure`; it returns a dictionary of numbers."
    JOBS[function.__name__] = function
    return function


def spent() -> tuple[float, float]:
    "Wall and CPU seconds so far; CPU with the processes that were waited for."
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    usage = [resource.getrusage(w) for w in who]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in usage)


def timed(call, name: str) -> dict:
    "Seconds of a call."
    before = spent()
    call()
    wall, cpu = (b - a for a, b in zip(before, spent(), strict=True))
    return {f"{name} wall s": wall, f"{name} CPU s": cpu}


def load(path, root):
    "A configuration that was prepared, for a folder of its own."
    from rastervision.pipeline.config import build_config

    config = build_config(json.loads(Path(path).read_text()) | {"root_uri": str(root)})
    # one object, as whoever writes a configuration has it: `update` completes it once
    config.backend.data.scene_dataset = config.dataset
    return config


@job
def prepare(folder, plan):
    "Make the scenes and the configuration of each section; nothing of this is measured."
    import torch

    from rvtutorial.config import get_config
    from rvtutorial.data.synthetic import make_sample_scenes

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if gpu is None:
        plan.pop("gpu", None)
    for name, part in plan.items():
        place = Path(folder) / name
        make_sample_scenes(place / "data", **part["scenes"])
        config = get_config("", place / "draft", data=place / "data", **part["config"])
        if part.get("workers"):
            config.backend.data.num_workers = part["workers"]
        if part.get("plain"):
            inflate(config, place)
        if part.get("copies"):
            many(config, part["copies"], place / "links")
        if part.get("large"):
            enlarge(config, part["large"], place)
        (place / "config.json").write_text(config.json())
        if part.get("train"):
            our_stages(place / "config.json", place / "run", ["train"])
    return {"gpu": gpu}


def many(config, number, folder):
    "As many training scenes as asked for, by links to the files of a few."
    found, made = config.dataset.train_scenes, []
    folder.mkdir()
    for i in range(number):
        scene = copy.deepcopy(found[i % len(found)])
        scene.id = f"copy{i}"
        parts = scene.raster_source, scene.label_source.raster_source
        for part in (parts[0], getattr(parts[1], "vector_source", parts[1])):
            uri = part.uris if isinstance(part.uris, str) else part.uris[0]
            link = folder / f"{scene.id}{Path(uri).suffix}"
            if link.suffix == ".geojson":
                turn(Path(uri), link, i // len(found))
            else:
                link.symlink_to(uri)
            part.uris = str(link)
        made.append(scene)
    sampling = config.backend.data.sampling
    own = {s.id: sampling[found[i % len(found)].id] for i, s in enumerate(made)}
    config.dataset.train_scenes = made
    config.backend.data.sampling = sampling | own
    config.backend.data.scene_dataset = config.dataset


def turn(path, copy, by):
    "Copy labels with their features in another order, so that no two scenes are equal."
    tree = json.loads(path.read_text())
    features = tree["features"]
    by %= max(len(features), 1)
    copy.write_text(json.dumps(tree | {"features": features[by:] + features[:by]}))


def inflate(config, folder):
    "Store the images of the training scenes without compression."
    import rasterio

    for scene in config.dataset.train_scenes:
        with rasterio.open(scene.raster_source.uris) as file:
            image, profile = file.read(), file.profile
        plain = {k: v for k, v in profile.items() if k not in ("compress", "predictor")}
        path = folder / f"plain-{scene.id}.tif"
        with rasterio.open(path, "w", **plain) as file:
            file.write(image)
        scene.raster_source.uris = str(path)


def enlarge(config, size, folder):
    "Repeat the image of the test scene until it is as large as asked for; no labels."
    import numpy as np
    import rasterio

    scene = config.dataset.test_scenes[0]
    uri = scene.raster_source.uris
    with rasterio.open(uri if isinstance(uri, str) else uri[0]) as file:
        image, profile = file.read(), file.profile
    times = [-(-size // side) for side in image.shape[1:]]
    image = np.tile(image, (1, *times))[:, :size, :size]
    tiles = dict(height=size, width=size, tiled=True, blockxsize=256, blockysize=256)
    path = folder / "large.tif"
    with rasterio.open(path, "w", **profile | tiles) as file:
        file.write(image)
    scene.raster_source.uris = str(path)


@job
def stock_stages(config, root, stages=None):
    "What `rastervision run inprocess` does."
    from rastervision.pipeline.cli import _run_command
    from rastervision.pipeline.config import build_config, save_pipeline_config
    from rastervision.pipeline.file_system import get_tmp_dir

    cfg, out = load(config, root), {}
    cfg.update()
    cfg.recursive_validate_config()
    build_config(cfg.dict())
    save_pipeline_config(cfg, cfg.get_config_uri())
    with get_tmp_dir() as tmp:
        every = cfg.build(tmp).commands
    for stage in stages or every:
        out |= timed(lambda s=stage: _run_command(cfg.get_config_uri(), s), stage)
    return out


@job
def our_stages(config, root, stages=None, **options):
    "The same by the engine."
    from rvtutorial import engine

    cfg, out = load(config, root), {}
    with_tmp = stages or ["train", "predict", "eval", "bundle"]
    for stage in with_tmp:
        out |= timed(lambda s=stage: engine.run(cfg, [s], **options), stage)
    return out


@job
def our_sweep(configs, roots):
    "Several configurations one after another in this process."
    from rvtutorial import engine

    for config, root in zip(configs, roots, strict=True):
        engine.run(load(config, root))
    return {}


def stock_loader(cfg, tmp):
    "The loader of training chips that plain Raster Vision builds."
    import torch
    from rastervision.pytorch_learner.semantic_segmentation_learner import (
        SemanticSegmentationLearner,
    )

    learner = cfg.backend.get_learner_config(cfg)
    nothing = torch.nn.Conv2d(3, len(cfg.dataset.class_config), 1)
    return SemanticSegmentationLearner(learner, model=nothing, tmp_dir=tmp).train_dl


def our_batches(cfg, tmp):
    "The same chips by the engine: a function that gives the batches of an epoch."
    import torch

    from rvtutorial.engine.learner import FastLearner

    learner = cfg.backend.get_learner_config(cfg)
    nothing = torch.nn.Conv2d(3, len(cfg.dataset.class_config), 1)
    loader = FastLearner(learner, model=nothing, tmp_dir=tmp).train_dl
    numbers = itertools.count()
    return lambda: loader.epoch(next(numbers))


def throughput(epoch, seconds):
    "Finished chips per second of an endless stream of epochs; the first two are warm-up."
    for _ in range(2):
        for _ in epoch():
            pass
    chips, (wall, cpu) = 0, spent()
    while time.perf_counter() - wall < seconds:
        chips += sum(len(x) for x, _ in epoch())
    passed, used = (b - a for a, b in zip((wall, cpu), spent(), strict=True))
    return {"chips/s": chips / passed, "chips/CPU s": chips / used}


def open_files() -> int:
    "Files that this process has open; None where the system does not tell."
    place = Path("/proc/self/fd")
    return len(list(place.iterdir())) if place.exists() else None


def serve_all(build, suffix) -> dict:
    "Build a data set and read the first window of each scene, image and labels."
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # stock needs thousands
    kept = []

    def work():
        kept.append(build())
        for part in kept[0].datasets:
            part.scene[part.sample_window()]

    found = timed(work, "build") | {"open files": open_files()}
    found["build peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name + suffix: value for name, value in found.items()}


@job
def stock_data(many, few, root, workers, seconds):
    "Many scenes of plain Raster Vision, then its finished chips."
    found = {}
    with tempfile.TemporaryDirectory() as tmp:
        for i, (suffix, config) in enumerate(many.items()):
            data = updated(config, f"{root}-{i}").backend.data
            build = lambda data=data: data.build_dataset("train", tmp)  # noqa: E731
            found |= serve_all(build, suffix)
        cfg = updated(few, root)
        for number in workers:
            cfg.backend.data.num_workers = number
            loader = stock_loader(cfg, tmp)
            made = throughput(lambda loader=loader: loader, seconds)
            found |= {f"{k}, {number} workers": v for k, v in made.items()}
    return found


@job
def our_data(many, few, root, workers, seconds):
    "Many scenes of the engine, then its finished chips: they have no such workers."
    from rvtutorial.engine import batches, reading

    found = {}
    with tempfile.TemporaryDirectory() as tmp:
        for i, (suffix, config) in enumerate(many.items()):
            given = updated(config, f"{root}-{i}").backend.data, "train"
            given += reading.SceneStore(), tmp, 0
            build = lambda given=given: batches.window_datasets(*given)  # noqa: E731
            found |= serve_all(build, suffix)
        made = throughput(our_batches(updated(few, root), tmp), seconds)
        for number in workers:
            found |= {f"{k}, {number} workers": v for k, v in made.items()}
    return found


def updated(config, root):
    "A complete configuration."
    cfg = load(config, root)
    cfg.update()
    return cfg


@job
def stock_map(config, root):
    "Predict with plain Raster Vision; returns what was predicted, too."
    return mapped(stock_stages(config, root, ["predict"]), config, root)


@job
def our_map(config, root):
    "Predict with the engine."
    shutil.rmtree(Path(root) / "predict", ignore_errors=True)
    return mapped(our_stages(config, root, ["predict"], progress=False), config, root)


def mapped(times, config, root):
    "Mpx/s of a prediction."
    import rasterio

    pixels = 0
    for path in Path(root).glob("predict/*/labels.tif"):
        with rasterio.open(path) as file:
            pixels += file.width * file.height
    rate = pixels / 1e6 / times["predict wall s"]
    return times | {"Mpx/s": rate, "Mpx/CPU s": pixels / 1e6 / times["predict CPU s"]}


@job
def stock_gpu(config, root):
    "Training chips per second of plain Raster Vision."
    stock_stages(config, root, ["train"])
    return chips_per_second(config, root)


@job
def our_gpu(config, root):
    "Training chips per second of the engine."
    our_stages(config, root, ["train"])
    return chips_per_second(config, root)


def chips_per_second(config, root):
    "Of the epochs after the first, from log.csv, which both write."
    import pandas as pd

    data = json.loads(Path(config).read_text())["backend"]["data"]
    scenes = data["scene_dataset"]["train_scenes"]
    chips = sum(data["sampling"][s["id"]]["max_windows"] for s in scenes)
    log = pd.read_csv(Path(root) / "train/log.csv")
    seconds = pd.to_timedelta(log.train_time[1:]).dt.total_seconds()
    return {"chips/s": chips / seconds.median()}


# --- how they are measured


class Bench:
    "Runs jobs in fresh processes and collects what they needed."

    def __init__(
        self, folder, threads, repeats, out=print, together=False, against=None
    ):
        self.folder, self.threads, self.repeats = Path(folder), threads, repeats
        self.out, self.together, self.numbers = out, together, itertools.count()
        self.against = against and Path(against).absolute()

    def measure(self, name, **given) -> dict:
        "Run a job; its numbers, and wall seconds, CPU seconds and peak memory of all."
        stem = self.folder / f"{next(self.numbers):03d}-{name}"
        given = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
        script, env = HERE, self.env()
        if self.against:  # the engine of another checkout stands where stock stood
            code = self.against if name.startswith("stock_") else HERE.parents[2]
            script = code / "tests/bench/bench.py"
            name, env["PYTHONPATH"] = name.replace("stock_", "our_"), str(code)
        cmd = [sys.executable, str(script), "--job", name, json.dumps(given)]
        cmd += [f"{stem}.json"]
        start = time.perf_counter()
        with open(f"{stem}.log", "w") as log:
            process = subprocess.Popen(cmd, stdout=log, stderr=log, env=env)
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = Path(f"{stem}.log").read_text()[-3000:]
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{last}")
        found = json.loads(Path(f"{stem}.json").read_text())
        self.out(
            f"  {name}: {wall:.1f} s" + f" ({script.parents[2]})" * bool(self.against)
        )
        whole = {"wall s": wall, "CPU s": usage.ru_utime + usage.ru_stime}
        return whole | {"peak MB": usage.ru_maxrss / 1024} | found

    def env(self):
        "One number of threads for every library."
        names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
        return os.environ | {name: str(self.threads) for name in names}

    def root(self):
        "A new folder for a run."
        return self.folder / f"run{next(self.numbers):03d}"

    def turns(self, *calls) -> list[tuple[dict, ...]]:
        "A B A B: the numbers of each repeat. At once if only the script is tried."
        if self.together:
            with ThreadPoolExecutor() as pool:
                return [tuple(pool.map(lambda call: call(), calls))]
        return [tuple(call() for call in calls) for _ in range(self.repeats)]


def rows(section, pairs, names, higher=()) -> list[dict]:
    "One row for each number: medians, and the ratio's median and spread."
    from statistics import median

    found = []
    for name in names:
        values = [(a[name], b[name]) for a, b in pairs if name in a and name in b]
        if not values:
            continue
        up = name in higher
        ratios = [(b / a if up else a / b) for a, b in values if a and b]
        row = {"section": section, "measure": name, "bar": bar_of(section, name)}
        row |= {"stock": median(a for a, _ in values)}
        row |= {"ours": median(b for _, b in values), "ratio": median(ratios)}
        found.append(row | {"min": min(ratios), "max": max(ratios), "n": len(ratios)})
    return found


BARS = {  # what the ratio should reach
    "pipeline": {"wall s": 3, "CPU s": 3},
    "data": {"build wall s": 8, "chips/s, 0 workers": 30},
    "sweep": {"wall s": 1 / 1.4},
    "predict": {"Mpx/s": 3},
    "gpu": {"chips/s": 5},
}


def bar_of(section, name):
    "The ratio that a measurement should reach; NaN where none was set."
    return BARS.get(section.split(",")[0], {}).get(name, float("nan"))


WHOLE = ["wall s", "CPU s", "peak MB"]


def pipeline(bench, place, state):
    "Train, predict, eval, bundle; a sweep that is asked for, too, takes its turn here."
    config = place / "pipeline/config.json"
    calls = [
        lambda: bench.measure("stock_stages", config=config, root=bench.root()),
        lambda: bench.measure("our_stages", config=config, root=bench.root()),
    ]
    if "sweep" in state["sections"]:
        calls.append(swept(bench, place, state))
    found = bench.turns(*calls)
    state["swept"] = [(turn[0], turn[-1]) for turn in found]
    stages = [
        f"{s} {u} s" for s in ("train", "predict", "eval", "bundle") for u in UNITS
    ]
    return rows("pipeline", [turn[:2] for turn in found], WHOLE + stages)


UNITS = ("wall", "CPU")


def data(bench, place, state):
    "Many scenes, and finished chips."
    many = {"": "plain", ", compressed": "packed"}
    many = {k: str(place / v / "config.json") for k, v in many.items()}
    workers, seconds = ([0], 1) if state["quick"] else ([0, 4], 20)
    given = dict(few=place / "pipeline/config.json", many=many)
    given |= dict(workers=workers, seconds=seconds)
    pairs = bench.turns(
        lambda: bench.measure("stock_data", root=bench.root(), **given),
        lambda: bench.measure("our_data", root=bench.root(), **given),
    )
    names = ["build wall s", "build CPU s", "build peak MB", "open files"]
    names += [f"{name}, compressed" for name in names[:2]]
    found = rows(f"data, {state['copies']} scenes", pairs, names)
    each = ("chips/s", "chips/CPU s")
    rates = [f"{rate}, {number} workers" for number in workers for rate in each]
    return found + rows("data", pairs, rates, rates)


def sweep(bench, place, state):
    "Four learning rates by the engine against one run of stock."
    found = state.get("swept")
    if found is None:
        config = place / "pipeline/config.json"
        stock = lambda: bench.measure("stock_stages", config=config, root=bench.root())  # noqa: E731
        found = bench.turns(stock, swept(bench, place, state))
    number = len(rates_of(state))
    return rows(f"sweep, {number} runs of ours", found, WHOLE)


def rates_of(state):
    return RATES[:2] if state["quick"] else RATES


def swept(bench, place, state):
    "A function that measures the engine with several learning rates."
    tree, files = json.loads((place / "pipeline/config.json").read_text()), []
    for rate in rates_of(state):
        tree["backend"]["solver"]["lr"] = rate
        files.append(str(place / f"lr{rate:g}.json"))
        Path(files[-1]).write_text(json.dumps(tree))

    def measure():
        roots = [str(bench.root()) for _ in files]
        return bench.measure("our_sweep", configs=files, roots=roots)

    return measure


def predict(bench, place, state):
    "A large raster with one bundle."
    config, root = place / "predict/config.json", place / "predict/run"

    def stock():
        other = bench.root()
        shutil.copytree(root / "train", other / "train")
        return bench.measure("stock_map", config=config, root=other)

    if bench.against:  # it maps with what it trained itself
        before = bench.root()
        bench.measure("stock_stages", config=config, root=before, stages=["train"])
        stock = lambda: bench.measure("stock_map", config=config, root=before)  # noqa: E731
    pairs = bench.turns(
        stock, lambda: bench.measure("our_map", config=config, root=root)
    )
    rates = ["Mpx/s", "Mpx/CPU s"]
    return rows("predict", pairs, [*rates, *WHOLE], rates)


def gpu(bench, place, state):
    "Training on an accelerator; its numbers are kept in a file with its name."
    name = state["gpu"]
    if name is None:
        bench.out("gpu: no accelerator on this machine: nothing is measured")
        return []
    config = place / "gpu/config.json"
    pairs = bench.turns(
        lambda: bench.measure("stock_gpu", config=config, root=bench.root()),
        lambda: bench.measure("our_gpu", config=config, root=bench.root()),
    )
    found = rows("gpu", pairs, ["chips/s", *WHOLE], ["chips/s"])
    file = re.sub(r"\W+", "-", name).strip("-").lower()
    folder = bench.folder if state["quick"] else HERE.parent / "results"
    keep(folder / f"{file}.json", name, found, pairs)
    return found


def keep(path, name, found, pairs):
    "Write what was measured on an accelerator."
    path.parent.mkdir(exist_ok=True)
    text = dict(hardware=name, **machine(), rows=found, pairs=pairs)
    path.write_text(json.dumps(text, indent=1) + "\n")


def machine() -> dict:
    "What the numbers depend on."
    from importlib.metadata import version

    flags, model = "", platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        model = re.search(r"model name\s*:\s*(.*)", text + "\nmodel name: ?")[1]
        wanted = r"\b(avx512f|avx512_bf16|amx_bf16)\b"
        flags = " ".join(sorted(set(re.findall(wanted, text))))
    names = "torch", "rastervision", "rvtutorial"
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "flags": flags,
        "versions": {n: version(n) for n in names},
    }


def plans(quick: bool) -> dict:
    "Scenes and configuration of each section; those of the bars, or tiny ones."
    deep = dict(preset="version2", model="deeplabv3", pretrained=False)
    large = dict(n_train=16, n_val=4, n_test=2)
    copies, size, gpu_chips = 1060, 2000, 120
    base = deep | dict(scores="none", epochs=2)
    on_gpu = dict(chip_sz=256, stride_length=256, batch_sz=16, max_windows=gpu_chips)
    if quick:
        on_gpu = dict(chip_sz=64, stride_length=64, batch_sz=4, max_windows=4)
        base = dict(
            preset="smoke", scores="none", epochs=1, chip_sz=64, stride_length=60
        )
        large = dict(n_train=2, n_val=1, n_test=1, size=150)
        copies, size = 20, 400
    one = large | dict(n_train=1, n_val=1, n_test=1)
    return {
        "pipeline": dict(scenes=large, config=base),
        "plain": dict(scenes=large, config=base, copies=copies, plain=True),
        "packed": dict(scenes=large, config=base, copies=copies),
        "predict": dict(
            scenes=one, config=base | dict(epochs=1), large=size, train=True
        ),
        "gpu": dict(scenes=large, config=deep | on_gpu | dict(epochs=4), workers=4),
    }


NEEDS = {
    "pipeline": ["pipeline"],
    "data": ["pipeline", "plain", "packed"],
    "sweep": ["pipeline"],
    "predict": ["predict"],
    "gpu": ["gpu"],
}


def run(sections, threads, repeats, quick, folder, out=print, against=None):
    "Run sections; a table of all ratios."
    import pandas as pd

    bench, found = Bench(folder, threads, repeats, out, quick, against), []
    every = plans(quick)
    plan = {n: every[n] for s in sections for n in NEEDS[s]}
    out(json.dumps(machine() | {"threads": threads, "repeats": repeats}))
    made = bench.measure("prepare", folder=bench.folder / "plans", plan=plan)
    state = {"quick": quick, "copies": every["plain"]["copies"], "gpu": made["gpu"]}
    state["sections"] = sections
    for name in sections:
        out(name)
        found += globals()[name](bench, bench.folder / "plans", state)
    return pd.DataFrame(found, columns=COLUMNS)


COLUMNS = ["section", "measure", "stock", "ours", "ratio", "min", "max", "n", "bar"]


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--section", choices=SECTIONS, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="tiny, all at once: tries the script"
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument(
        "--keep", help="a folder for logs and runs; else they are deleted"
    )
    parser.add_argument(
        "--against", help="another checkout, measured in the place of stock"
    )
    parser.add_argument("--csv", help="also write the table to this file")
    return parser.parse_args(argv)


def main(argv=None):
    asked = arguments(argv)
    repeats = 1 if asked.quick else asked.repeats
    sections = asked.section or list(SECTIONS)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(asked.keep or tmp)
        folder.mkdir(parents=True, exist_ok=True)
        given = asked.threads, repeats, asked.quick, folder
        table = run(sections, *given, against=asked.against)
    if asked.against:
        table = table.rename(columns={"stock": "before", "ours": "now"})
        table = table.drop(columns="bar")
    style = dict(index=False, float_format=lambda v: f"{v:.3g}", na_rep="")
    print(table.to_string(**style))
    print(
        "ratio: how many times better ours is; median, smallest and largest of n turns"
    )
    if asked.csv:
        table.to_csv(asked.csv, index=False)


def work(name, given, out):
    "One measured process."
    found = JOBS[name](**json.loads(given))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        work(*sys.argv[2:])
    else:
        main()

"""Kill a run at random moments and see that nothing is lost but the last batch.

    python tests/kills.py [KILLS] [FOLDER]

Prints JSON: where the kills fell, how many batches were lost at most, files that were
found damaged, and whether the finished weights and maps equal those of a run that was
never interrupted. Imports are paid once: each attempt is a fork of this process.
"""

import csv
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch

from rvtutorial.config import get_config
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.engine import pipeline, reading
from rvtutorial.engine.learner import Checkpoint, FastLearner

PHASES = ("start", "step", "checkpoint", "predict", "other")
AIMS = ("checkpoint", "predict", "any moment", "any moment")
SMALL = dict(chip_sz=64, stride_length=12, max_windows=12, batch_sz=3, epochs=3)
INTERVAL = 0.0  # minutes: a checkpoint after each batch


def configure(data, folder):
    return get_config("inprocess", folder, "smoke", data, **SMALL)


# --- the attempt tells the parent where it is, through memory that both see


class Place:
    "Phase and number of batches done, in shared memory."

    def __init__(self):
        self.memory = mmap.mmap(-1, 16)

    def set(self, phase, batches=None):
        now = self.get()[1] if batches is None else batches
        self.memory[:16] = struct.pack("qq", PHASES.index(phase), now)

    def at(self, phase):
        return self.get()[0] == phase

    def get(self):
        phase, batches = struct.unpack("qq", self.memory[:16])
        return PHASES[phase], batches


def watched(place):
    "Let the engine's parts say where they are."
    save, step, go_on = Checkpoint.save, FastLearner.step, FastLearner.go_on
    scores, evaluate = FastLearner.scores, pipeline.STAGES["eval"]

    def told_step(self, *args):
        place.set("step")
        step(self, *args)
        done = self.epoch * len(self.train_dl) + self.batch + 1
        place.set("step", done)

    def told_save(self, **state):
        place.set("checkpoint")
        save(self, **state)
        place.set("step")

    def told_go_on(self):
        go_on(self)
        place.set("step", self.epoch * len(self.train_dl) + self.batch)

    def told_scores(self, chips):
        place.set("predict")
        return scores(self, chips)

    def told_eval(work):
        place.set("other")
        evaluate(work)

    Checkpoint.save, FastLearner.step, FastLearner.go_on = (
        told_save, told_step, told_go_on,
    )  # fmt: skip
    FastLearner.scores = told_scores
    pipeline.STAGES["eval"] = told_eval


def attempt(data, folder, place=None):
    "Fork a run; returns its process id."
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if place:
            watched(place)
        torch.set_num_threads(1)
        store = reading.SceneStore(budget_mb=100)
        pipeline.run(
            configure(data, folder),
            progress=False,
            checkpoint_minutes=INTERVAL,
            store=store,
            threads=1,
        )
        status = 0
    finally:
        os._exit(status)


def ended(pid, seconds=0.0, early=lambda: False):
    "Exit status of an attempt that ends within some seconds or before `early`, else None."
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end or early():
            return None
        time.sleep(0.0005)


# --- what must hold after every kill


def damaged(folder):
    "Files under their final names that cannot be read as what they are."
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.startswith("."):
            continue
        try:
            read(path)
        except Exception as err:
            found.append(f"{path.relative_to(folder)}: {err}")
    return found


def read(path):
    "Read a file to its last byte."
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix in (".pt", ".pth"):
        torch.load(path, weights_only=True)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None
    elif path.suffix == ".tif":
        with rasterio.open(path) as file:
            file.read()
    elif path.suffix == ".npy":
        np.load(path)
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len({len(row) for row in rows}) == 1


def products(folder):
    "What must not depend on interruptions."
    weights = [folder / "train" / "last-model.pth", folder / "train" / "best-model.pth"]
    maps = sorted((folder / "predict").rglob("*.*"))
    log = (folder / "train" / "log.csv").read_text().splitlines()
    rows = [
        [v for name, v in row.items() if not name.endswith("_time")]
        for row in csv.DictReader(log)
    ]
    files = {str(p.relative_to(folder)): p.read_bytes() for p in [*weights, *maps]}
    return files | {"log": rows}


def main(kills=50, root=None):
    root = Path(root or tempfile.mkdtemp())
    data = make_sample_scenes(root / "data", n_train=4, n_val=2, n_test=2, size=400)
    begun = time.monotonic()
    assert ended(attempt(data, root / "whole"), 600) == 0
    whole, took = products(root / "whole"), time.monotonic() - begun
    random.seed(1)
    fell, lost, broken, finished, equal = [], [], [], 0, []
    place, run = Place(), 0
    while len(fell) < kills:
        folder, at = root / f"run{run}", 0
        while True:
            place.set("start", 0)
            pid = attempt(data, folder, place)
            while place.get()[0] == "start" and ended_never(pid):
                time.sleep(0.001)
            phase, resumed = place.get()
            if phase in ("step", "checkpoint") and resumed < at:
                lost.append(at - resumed)
            if len(fell) < kills:
                moment, aim = random.uniform(0, took / 5), random.choice(AIMS)
                status = ended(pid, moment, partial(place.at, aim))
            else:
                status = ended(pid, 600)
            if status is not None:
                assert status == 0, f"an attempt ended with {status}"
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            phase, at = place.get()
            fell.append(phase)
            broken += damaged(folder) if folder.exists() else []
        finished += 1
        equal.append(products(folder) == whole)
        left = [p.name for p in folder.rglob(".*") if "lock" not in p.name]
        broken += [f"left behind: {name}" for name in left]
        run += 1
    return {
        "kills": len(fell),
        "where": {p: fell.count(p) for p in PHASES},
        "batches": len(whole["log"]) and place.get()[1],
        "most_batches_lost": max(lost, default=0),
        "damaged": broken,
        "runs_finished": finished,
        "all_equal": all(equal),
        "seconds_of_a_whole_run": round(took, 1),
    }


def ended_never(pid):
    "Whether a process still runs; its end is left for `ended` to collect."
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is None


if __name__ == "__main__":
    given = sys.argv[1:]
    kills, folder = int(given[0]) if given else 50, given[1] if len(given) > 1 else None
    print(json.dumps(main(kills, folder), indent=1))

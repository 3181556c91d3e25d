"""Kill a run, or a sweep, at random moments: nothing is lost, and nothing is run twice.

    python tests/kills.py [KILLS] [FOLDER] [--light | --early | --train]

Without an option runs are killed, one after the other. It prints JSON: where the kills
fell, how many batches were lost at most, files that were found damaged, and whether the
finished weights and maps equal those of a run that was never interrupted. Imports are
paid once: each attempt is a fork of this process.

With an option whoever started a sweep, the local queue, the job and its kernel are killed
(SIGKILL), and the sweep is started again. `--light` is the two rounds of the first course,
seven learning rates, with a job that trains nothing but takes its time; with `--early`
that sweep has rungs. Three to five minutes for 20 kills. With `--train` three networks are
trained in earnest (preset smoke), and at the end their weights and scores must be those of
the same sweep that was left alone. About ten minutes for 20 kills on a quiet core. A sweep
that is done before the kills are used up is judged, and another one begun.
"""

import argparse
import collections
import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import rasterio
import torch
from light_job import light_job

from rvtutorial.config import get_config
from rvtutorial.data.synthetic import SAMPLES, make_sample_scenes
from rvtutorial.engine import pipeline, reading
from rvtutorial.engine.learner import Checkpoint, FastLearner
from rvtutorial.sweep import Sweep

# --- what must hold after every kill, and at the end


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


def damaged(folder):
    "Files under their final names that cannot be read as what they are."
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not path.name.startswith("."):
            try:
                read(path)
            except Exception as err:
                found.append(f"{path.relative_to(folder)}: {err}")
    return found


def products(folder):
    "What must not depend on interruptions: weights, maps, epochs but for times, scores."
    weights = [folder / "train" / "last-model.pth", folder / "train" / "best-model.pth"]
    maps = sorted((folder / "predict").rglob("*.*"))
    found = {str(p.relative_to(folder)): p.read_bytes() for p in [*weights, *maps]}
    for path in sorted(folder.glob("eval/*/eval.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())
    log = csv.DictReader((folder / "train" / "log.csv").read_text().splitlines())
    found["log"] = [
        [v for name, v in row.items() if not name.endswith("_time")] for row in log
    ]
    return found


# --- runs: an attempt tells this process where it is, through memory that both see

PHASES = ("start", "step", "checkpoint", "predict", "other")
AIMS = ("checkpoint", "predict", "any moment", "any moment")
SMALL = dict(chip_sz=64, stride_length=12, max_windows=12, batch_sz=3, epochs=3)


class Place:
    "Phase and number of batches done, in shared memory."

    def __init__(self):
        self.memory = multiprocessing.RawArray("q", 2)

    def set(self, phase, batches=None):
        if batches is not None:  # first, for who reads may come in between
            self.memory[1] = batches
        self.memory[0] = PHASES.index(phase)

    def get(self):
        return PHASES[self.memory[0]], self.memory[1]

    def at(self, phase):
        return self.get()[0] == phase


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

    Checkpoint.save, FastLearner.step = told_save, told_step
    FastLearner.go_on, FastLearner.scores = told_go_on, told_scores
    pipeline.STAGES["eval"] = told_eval


def attempt(data, folder, place=None):
    "Fork a run that keeps a checkpoint after each batch; returns its process id."
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if place:
            watched(place)
        torch.set_num_threads(1)
        pipeline.run(
            get_config("inprocess", folder, "smoke", data, **SMALL),
            progress=False,
            checkpoint_minutes=0.0,
            store=reading.SceneStore(budget_mb=100),
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


def runs(kills, root, rng):
    "Kill runs, and say what became of them."
    data = make_sample_scenes(root / "data", n_train=4, n_val=2, n_test=2, size=400)
    begun = time.monotonic()
    assert ended(attempt(data, root / "whole"), 600) == 0
    whole, took = products(root / "whole"), time.monotonic() - begun
    fell, lost, broken, equal = [], [], [], []
    place = Place()
    while len(fell) < kills:
        folder, at = root / f"run{len(equal)}", 0
        while True:
            place.set("start", 0)
            pid = attempt(data, folder, place)
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT  # its end is left for `ended`
            while place.at("start") and os.waitid(os.P_PID, pid, how) is None:
                time.sleep(0.001)
            phase, resumed = place.get()
            if phase in ("step", "checkpoint") and resumed < at:
                lost.append(at - resumed)
            if len(fell) < kills:
                moment, aim = rng.uniform(0, took / 5), rng.choice(AIMS)
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
        equal.append(products(folder) == whole)
        left = [p.name for p in folder.rglob(".*") if "lock" not in p.name]
        broken += [f"left behind: {name}" for name in left]
    return {
        "kills": len(fell),
        "where": {p: fell.count(p) for p in PHASES},
        "batches": len(whole["log"]) and place.get()[1],
        "most_batches_lost": max(lost, default=0),
        "damaged": broken,
        "runs_finished": len(equal),
        "all_equal": all(equal),
        "seconds_of_a_whole_run": round(took, 1),
    }


# --- sweeps

START = """import sys
from rvtutorial.sweep import Sweep, grid, run_sweep
sweep = run_sweep(sys.argv[1], sys.argv[2])
if sweep.plan.program.endswith("light.ipynb") and not sweep.plan.early:
    sweep = sweep.extend(grid(lr=[5e-3, 2e-3, 8e-2]))
sweep.wait(progress=False)
"""
LIGHT = """method: grid
program: light.ipynb
{early}parameters:
  epochs: {{value: 4}}
  lr: {{values: [{rates}]}}
"""
LADDER = "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n"
ROUNDS = ("1e-2, 1e-3, 1e-4, 1e-5", "1e-2, 1e-3, 1e-4, 1e-5, 5e-3, 2e-3, 8e-2")
TRAIN = """method: grid
parameters:
  preset: {{value: smoke}}
  data: {{value: {data}}}
  epochs: {{value: 20}}
  max_windows: {{value: 4}}
  lr: {{values: [1e-2, 5e-3, 2e-3]}}
"""


def at_work(folder):
    "Processes that serve a sweep: those whose current folder lies in it."
    found = psutil.process_iter(["cwd"])
    return [p for p in found if Path(p.info["cwd"] or "/").is_relative_to(folder)]


def kill_all(starter, folder):
    "Kill whoever started the sweep and all that works for it, until nobody is left."
    serving = at_work(folder)
    if starter.poll() is None:
        serving.append(psutil.Process(starter.pid))
    while serving:
        for one in serving:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*one.children(recursive=True), one]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        starter.wait()
        time.sleep(0.05)
        serving = at_work(folder)


def kill_sweep(root, folder, kills, rng, longest):
    "Kill one sweep until it is over or the kills are used up; how many fell on it."
    command = [sys.executable, "-c", START, str(folder), str(root / "sweep.yaml")]
    done, over = 0, False
    while done < kills and not over:
        with open(root / "starter.log", "ab") as file:
            starter = subprocess.Popen(command, stderr=file)
        seconds = rng.uniform(0.5, longest)
        time.sleep(seconds)
        over = starter.poll() is not None
        kill_all(starter, folder)
        done += not over
        note = "over before the kill" if over else f"kill {done} after {seconds:.1f} s"
        states = collections.Counter()
        if (folder / "trials.csv").exists():
            states.update(run.state for run in Sweep(folder).runs().values())
        print(f"{folder.name}: {note}; {dict(states)}", flush=True)
    subprocess.run(command, check=True)
    return done


def judge_light(folder):
    "What is on disk at the end; AssertionError for a trial lost or run twice."
    sweep = Sweep(folder)
    runs = sweep.runs().values()
    lines = [(run.path / "epochs.txt").read_text().split() for run in runs]
    ends = [run.path / "finished.txt" for run in runs]
    finished = [path.read_text().split() for path in ends if path.exists()]
    twice = sum(len(found) - len(set(found)) for found in lines)
    tries = [len(run.manifest["went"]["attempts"]) for run in runs]
    print(f"{len(runs)} trials, {len(finished)} finished, attempts {tries}, "
          f"epochs begun twice: {twice}")  # fmt: skip
    assert len(runs) == 7 and all(once == ["once"] for once in finished)
    reached = sorted(len(set(found)) for found in lines)
    assert reached == ([1, 1, 1, 2, 2, 4, 4] if sweep.plan.early else [4] * 7), reached
    assert {run.state for run in runs} <= {"succeeded", "paused"}
    assert not twice


def judge_train(folder, whole):
    "Compare a sweep that was killed with one that was left alone."
    killed, alone = (Sweep(path).runs() for path in (folder, whole))
    assert list(killed) == list(alone), (list(killed), list(alone))
    for name, run in killed.items():
        states = [one["state"] for one in run.manifest["went"]["attempts"]]
        print(f"{folder.name}, {name}: {len(states)} attempts", flush=True)
        assert run.state == "succeeded", (name, run.state)
        assert "succeeded" not in states[:-1], f"{name} began after it had succeeded"
        mine, other = products(run.path), products(alone[name].path)
        differ = [key for key in other if mine.get(key) != other[key]]
        assert not differ and mine.keys() == other.keys(), (name, differ)


def sweeps(kills, root, rng, way):
    "Kill sweeps; AssertionError for a trial that is lost, run twice, or comes out otherwise."
    if way == "train":
        data = make_sample_scenes(root / "data", **SAMPLES["smoke"])
        (root / "sweep.yaml").write_text(TRAIN.format(data=data))
        begun = time.monotonic()
        kill_sweep(root, root / "whole", 0, rng, 0)
        longest = 1.5 * (time.monotonic() - begun) / len(Sweep(root / "whole").trials)
    else:
        early, longest = way == "early", 8
        light_job(root / "light.ipynb", str(Path(__file__).parent.resolve()), 0.5)
        text = LIGHT.format(early=LADDER if early else "", rates=ROUNDS[early])
        (root / "sweep.yaml").write_text(text)
    done = number = 0
    while done < kills:
        number += 1
        folder = root / f"sweep{number}"
        done += kill_sweep(root, folder, kills - done, rng, longest)
        judge_train(folder, root / "whole") if way == "train" else judge_light(folder)
    return {"kills": done, "sweeps": number}


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="new; else a temporary one"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    ways = parser.add_mutually_exclusive_group()
    for way in ("light", "early", "train"):
        ways.add_argument(f"--{way}", dest="way", action="store_const", const=way)
    given = parser.parse_args()
    root = (given.folder or Path(tempfile.mkdtemp())).resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.environ["RVTUTORIAL_QUEUE"] = str(root / "queue")
    rng = random.Random(given.seed)
    if given.way:
        found = sweeps(given.kills, root, rng, given.way)
    else:
        found = runs(given.kills, root, rng)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

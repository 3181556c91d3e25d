"""A sweep that is killed again and again: is a trial lost, is one run twice?

    python tests/sweep_kills.py [KILLS] [FOLDER] [--early | --train]

Each time whoever started the sweep, the local queue, the job and its kernel are killed
(SIGKILL) at a random moment, and the sweep is started again. Without an option it is the
two rounds of the first course, seven learning rates, with a job that trains nothing but
takes its time; with `--early` that sweep has rungs. Three to five minutes for 20 kills.

With `--train` three networks are trained in earnest (preset smoke) on scenes of 260
pixels, and at the end the weights and scores must be those of the same sweep that was
left alone. A sweep that is done before the kills are used up is judged, and another one
begun. About ten minutes for 20 kills on a quiet core.
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from light_job import light_job

from rvtutorial.core.records import read_json
from rvtutorial.data.synthetic import SAMPLES, make_sample_scenes
from rvtutorial.hpc.job import _epochs
from rvtutorial.runs import Run
from rvtutorial.sweep import Sweep

START = """import sys
from rvtutorial.sweep import Sweep, grid, run_sweep
sweep = run_sweep(sys.argv[1], sys.argv[2])
if sweep.plan.program.endswith("light.ipynb") and not sweep.plan.early:
    sweep = sweep.extend(grid(lr=[5e-3, 2e-3, 8e-2]))
sweep.wait(progress=False)
"""
TEXT = """method: grid
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


# --- killing


def family(pids):
    "Processes and all that they have started, by their numbers."
    parents = collections.defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(fields[1])].append(int(path.parent.name))
    found, todo = [], list(pids)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents[pid]
    return found


def at_work(folder):
    "Processes that serve a sweep: those whose current folder lies in it."
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(path)).is_relative_to(folder):
                found.append(int(path.parent.name))
    return found


def kill_all(starter, folder):
    "Kill whoever started the sweep and all that works for it, until nobody is left."
    pids = family([starter.pid, *at_work(folder)])
    while pids:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        starter.wait()
        time.sleep(0.05)
        pids = at_work(folder)


def kill_at(command, folder, seconds, log):
    "Start a sweep and kill it after a while; whether it was over by itself."
    with open(log, "ab") as file:
        starter = subprocess.Popen(command, stderr=file)
    time.sleep(seconds)
    over = starter.poll() is not None
    kill_all(starter, folder)
    return over


def states_of(folder):
    "How many trials are in which state; empty where nothing is on record yet."
    if not (folder / "trials.csv").exists():
        return {}
    runs = Sweep(folder).runs().values()
    return dict(collections.Counter(run.state for run in runs))


def start_of(root, folder):
    "The command that starts a sweep and waits for it."
    return [sys.executable, "-c", START, str(folder), str(root / "sweep.yaml")]


# --- the job that trains nothing


def light(kills, root, early=False, pace=0.5, seed=0):
    "Kill sweeps of light jobs; AssertionError for a trial lost or run twice."
    light_job(root / "light.ipynb", str(Path(__file__).parent.resolve()), pace)
    text = TEXT.format(early=LADDER if early else "", rates=ROUNDS[early])
    (root / "sweep.yaml").write_text(text)
    rng, done, number = random.Random(seed), 0, 0
    while done < kills:
        number, over = number + 1, False
        folder = root / f"sweep{number}"
        command = start_of(root, folder)
        while done < kills and not over:
            seconds = rng.uniform(0.5, 8)
            over = kill_at(command, folder, seconds, root / "starter.log")
            done += not over
            note = "over before the kill" if over else f"kill {done}"
            print(f"sweep {number}: {note}; {states_of(folder)}", flush=True)
        subprocess.run(command, check=True)
        judge_light(folder)


def judge_light(folder):
    "What is on disk at the end; AssertionError for a trial lost or run twice."
    sweep = Sweep(folder)
    rungs = sweep.plan.ladder.rungs if sweep.plan.early else None
    lines = {
        n: (r.path / "epochs.txt").read_text().split() for n, r in sweep.runs().items()
    }
    ends = [r.path / "finished.txt" for r in sweep.runs().values()]
    finished = [path.read_text().split() for path in ends if path.exists()]
    twice = sum(len(found) - len(set(found)) for found in lines.values())
    tries = [len(r.manifest["went"]["attempts"]) for r in sweep.runs().values()]
    print(f"{len(sweep.trials)} trials, {len(finished)} finished, attempts {tries}, "
          f"epochs begun twice: {twice}")  # fmt: skip
    assert len(sweep.trials) == 7 and all(once == ["once"] for once in finished)
    reached = sorted(len(set(found)) for found in lines.values())
    assert reached == ([1, 1, 1, 2, 2, 4, 4] if rungs else [4] * 7), reached
    assert {Run(r.path).state for r in sweep.runs().values()} <= {"succeeded", "paused"}
    assert not twice


# --- real trainings


def train(kills, root, seed=0):
    "Kill sweeps of real trainings; AssertionError where one differs from one left alone."
    data = make_sample_scenes(root / "data", **SAMPLES["smoke"])
    (root / "sweep.yaml").write_text(TRAIN.format(data=data))
    begun, whole = time.monotonic(), root / "whole"
    subprocess.run(start_of(root, whole), check=True)
    span = (time.monotonic() - begun) / len(Sweep(whole).trials)
    print(
        f"left alone: {span:.0f} s a trial; kills after 0 to {1.5 * span:.0f} s",
        flush=True,
    )
    rng, done, number = random.Random(seed), 0, 0
    while done < kills:
        number += 1
        done += kill_and_go_on(root, whole, number, kills - done, rng, 1.5 * span)
    print(f"{done} kills of {number} sweeps: no trial lost, none begun after success, "
          f"weights, maps and scores as in the sweep left alone")  # fmt: skip


def kill_and_go_on(root, whole, number, kills, rng, longest):
    "Kill one sweep until it is done or the kills are used up; how many fell on it."
    folder, done = root / f"killed-{number}", 0
    command, over = start_of(root, folder), False
    while done < kills and not over:
        seconds = rng.uniform(0.5, longest)
        over = kill_at(command, folder, seconds, root / "starter.log")
        done += not over
        note = "over before the kill" if over else f"kill {done} after {seconds:.1f} s"
        print(f"sweep {number}: {note}{hit(folder)}; {states_of(folder)}", flush=True)
    subprocess.run(command, check=True)
    judge_train(folder, whole)
    return done


def hit(folder):
    "In the middle of which trial a sweep was killed, and how far that was."
    runs = Sweep(folder).runs() if (folder / "trials.csv").exists() else {}
    at = [f"{n} after epoch {_epochs(r.path)[0]}" for n, r in runs.items()
          if r.state == "running"]  # fmt: skip
    return ", ".join(["", *at])


def judge_train(folder, whole):
    "Compare a sweep that was killed with one that was left alone."
    killed, alone = (Sweep(path).runs() for path in (folder, whole))
    assert list(killed) == list(alone), (list(killed), list(alone))
    attempts = {name: after_success(run) for name, run in killed.items()}
    tries = {n: len(r.manifest["went"]["attempts"]) for n, r in killed.items()}
    print(
        f"{folder.name}: attempts {tries}, begun after success {attempts}", flush=True
    )
    assert not any(attempts.values()), attempts
    for name, run in killed.items():
        assert run.state == "succeeded", (name, run.state)
        found = difference(run, alone[name])
        assert not found, f"{folder.name}, {name}: {found}"


def after_success(run):
    "How many attempts of a run began after one of them had succeeded."
    states = [attempt["state"] for attempt in run.manifest["went"]["attempts"]]
    return len(states) - states.index("succeeded") - 1 if "succeeded" in states else 0


def difference(run, other):
    "The first thing in which two runs differ: weights, epochs, maps or scores; or None."
    a, b = (torch.load(r.path / "train" / "last-model.pth") for r in (run, other))
    if a.keys() != b.keys() or any(not torch.equal(a[key], b[key]) for key in a):
        return "the weights differ"
    if list(run.log()["epoch"]) != list(other.log()["epoch"]):
        return "the epochs differ"
    for path in sorted(other.path.glob("predict/*/*.tif")):
        pair = [path, run.path / path.relative_to(other.path)]
        if not np.array_equal(*(rasterio.open(p).read() for p in pair)):
            return f"{path.relative_to(other.path)} differs"
    for path in sorted(other.path.glob("eval/*/eval.json")):
        if read_json(path) != read_json(run.path / path.relative_to(other.path)):
            return f"{path.relative_to(other.path)} differs"
    return None


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="new; None: a temporary one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--early", action="store_true", help="light jobs, with rungs")
    ways.add_argument("--train", action="store_true", help="real trainings")
    given = parser.parse_args()
    root = (given.folder or Path(tempfile.mkdtemp())).resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.environ["RVTUTORIAL_QUEUE"] = str(root / "queue")
    if given.train:
        train(given.kills, root, given.seed)
    else:
        light(given.kills, root, given.early, seed=given.seed)


if __name__ == "__main__":
    main()

"""A sweep that is killed again and again: is a trial lost, is one run twice?

    python tests/sweep_kills.py [KILLS] [FOLDER] [early]

The two rounds of the first course, seven learning rates, with a job that trains nothing
but takes its time. Each time whoever started the sweep, the local queue, the job and its
kernel are killed (SIGKILL) at a random moment, and the sweep is started again. With
`early` the sweep has rungs. Three to five minutes for 20 kills.
"""

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

from light_job import light_job

from rvtutorial.runs import Run, read_json
from rvtutorial.sweep import Sweep

START = """import sys
from rvtutorial.sweep import Sweep, grid, start
sweep = start(sys.argv[1], sys.argv[2])
if not sweep.plan.early:
    sweep = sweep.extend(grid(lr=[5e-3, 2e-3, 8e-2]))
sweep.wait(progress=False)
"""
TEXT = """method: grid
program: light.ipynb
{early}parameters:
  epochs: {{value: 4}}
  lr: {{values: [{rates}]}}
"""
ROUNDS = ("1e-2, 1e-3, 1e-4, 1e-5", "1e-2, 1e-3, 1e-4, 1e-5, 5e-3, 2e-3, 8e-2")


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


def queues(folder):
    "Processes of the local queue that serve a sweep."
    pids = [read_json(path, {}).get("pid") for path in folder.glob("jobs/*/queue.json")]
    pids += [read_json(p, {}).get("id") for p in folder.glob("jobs/*/job.json")]
    alive = {int(pid) for pid in pids if pid}
    return [p for p in alive if b"rvtutorial.queues" in _command(p)]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_all(starter, folder):
    "Kill whoever started the sweep and all that works for it."
    for pid in family([starter.pid, *queues(folder)]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    starter.wait()


def main(kills=20, root=None, early=False, pace=0.15, seed=0):
    root = Path(root or tempfile.mkdtemp()).resolve()
    os.environ["RVTUTORIAL_QUEUE"] = str(root / "queue")
    here = str(Path(__file__).parent.resolve())
    root.mkdir(parents=True, exist_ok=True)
    light_job(root / "light.ipynb", here, pace)
    ladder = (
        "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n" if early else ""
    )
    text = TEXT.format(early=ladder, rates=ROUNDS[early])
    (root / "sweep.yaml").write_text(text)
    rng, folder, moments = random.Random(seed), root / "sweep", []
    command = [sys.executable, "-c", START, str(folder), str(root / "sweep.yaml")]
    for _ in range(kills):
        with open(root / "starter.log", "ab") as log:
            starter = subprocess.Popen(command, stderr=log)
        time.sleep(rng.uniform(0.5, 20 if early else 9))
        over = starter.poll() is not None
        kill_all(starter, folder)
        states = (
            [r.state for r in Sweep(folder).runs().values()] if folder.exists() else []
        )
        moments.append(collections.Counter(states))
        print(
            len(moments), dict(moments[-1]), "(it was over)" if over else "", flush=True
        )
    subprocess.run(command, check=True)
    return judge(folder)


def judge(folder):
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
    return twice


if __name__ == "__main__":
    given = sys.argv[1:]
    count = int(given[0]) if given else 20
    main(count, given[1] if len(given) > 1 else None, "early" in given)

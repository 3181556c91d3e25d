"""Sweeps as arrays of a real Slurm: the same as on the local queue."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from light_job import light_job

from rvtutorial.hpc.job import Job
from rvtutorial.hpc.scheduler import SLURM
from rvtutorial.runs import Run
from rvtutorial.slurm import Site
from rvtutorial.sweep import Sweep, run_sweep
from rvtutorial.sweeps.sweepfile import SweepFile

TESTS = Path(__file__).resolve().parent.parent
ROUNDS = ["1e-2, 1e-3, 1e-4, 1e-5", "8e-2, 2e-3"]
FILE = """program: {program}
method: grid
metric: {{name: f1, goal: maximize}}
parameters:
  epochs: {{value: 4}}
  lr: {{values: [{rates}]}}
"""
LADDER = "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n"


@pytest.fixture
def place(workplace, request, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path_factory.mktemp("queue")))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(workplace / "home"))
    SLURM.forget()
    folder = workplace / request.node.name
    folder.mkdir()
    light_job(folder / "light.ipynb", TESTS)
    return folder


@pytest.fixture
def site(slurm, partition):
    return Site(
        name="one", partition=partition, account=slurm.account, mem="300M", cpus=1,
        time=10, parallel=4, python=sys.executable,
    )  # fmt: skip


def texts(folder: Path) -> dict[str, str]:
    "What a sweep leaves that depends on its trials, by the name of the file."
    names = ["trials.csv", "*/params.json", "*/eval/*/eval.json"]
    found = [path for name in names for path in folder.glob(name)]
    return {
        str(p.relative_to(folder)): p.read_text().replace(str(folder), "SWEEP")
        for p in found
    }


def test_two_rounds_from_a_file_and_from_a_cell(place, site):
    "Part 8's two rounds: one from YAML on Slurm, one from a cell on the local queue."
    program = str(place / "light.ipynb")
    for i, rates in enumerate(ROUNDS):
        text = FILE.format(program=program, rates=rates)
        (place / f"round{i}.yaml").write_text(text)
    there = run_sweep(place / "there" / "s", place / "round0.yaml", site=site)
    there.wait(progress=False)
    there = there.extend(place / "round1.yaml", site=site).wait(progress=False)
    values = [[float(r) for r in rates.split(",")] for rates in ROUNDS]
    dicts = [
        dict(program=program, method="grid",
             metric=dict(name="f1", goal="maximize"),
             parameters=dict(epochs=dict(value=4), lr=dict(values=v)))
        for v in values
    ]  # fmt: skip
    here = run_sweep(place / "here" / "s", SweepFile.read(dicts[0])).wait(
        progress=False
    )
    here = here.extend(SweepFile.read(dicts[1])).wait(progress=False)
    assert len(texts(here.folder)) == 1 + 2 * 6
    assert texts(here.folder) == texts(there.folder)
    assert list(here.leaderboard().index) == list(there.leaderboard().index)
    for run in there.runs().values():
        assert (run.path / "finished.txt").read_text() == "once\n"
        assert run.manifest["went"]["attempts"][0]["slurm"]["array_job_id"].isdigit()
    behind = [p.parent for p in there.folder.glob("comparisons/*/run.json")]
    end = time.monotonic() + 120
    while not Job(behind).done:
        assert time.monotonic() < end
        time.sleep(0.5)
    ends = [Run(path).manifest["went"] for path in behind]
    assert {end["state"] for end in ends} == {"succeeded"}, ends


def test_a_ladder_of_rungs(place, site):
    "All rungs are queued at once; who was not promoted says so and stops."
    text = FILE.format(program=place / "light.ipynb", rates=ROUNDS[0] + ", 3e-3")
    (place / "ladder.yaml").write_text(text + LADDER)
    sweep = run_sweep(place / "s", place / "ladder.yaml", site=site, compare=False)
    sweep.wait(progress=False)
    states = list(Sweep(place / "s").status()["state"])
    assert states.count("succeeded") >= 1 and states.count("paused") >= 2
    epochs = {n: len(_epochs(run)) for n, run in sweep.runs().items()}
    assert max(epochs.values()) == 4 and min(epochs.values()) == 1
    assert all(
        len(set(_epochs(run))) == len(_epochs(run)) for run in sweep.runs().values()
    )


def _epochs(run: Run) -> list[str]:
    return (run.path / "epochs.txt").read_text().split()


def test_stopped_and_gone_on(place, site):
    light_job(place / "slow.ipynb", TESTS, pace=1.5)
    plan = FILE.format(program=place / "slow.ipynb", rates=ROUNDS[0])
    (place / "slow.yaml").write_text(plan)
    sweep = run_sweep(place / "s", place / "slow.yaml", site=site, compare=False)
    end = time.monotonic() + 90
    while not any(
        r.manifest["went"]["state"] == "running" for r in sweep.runs().values()
    ):
        assert time.monotonic() < end
        time.sleep(0.3)
    sweep.stop()
    while not sweep.job.done:
        time.sleep(0.5)
    sweep.resume().wait(progress=False)
    for run in sweep.runs().values():
        assert run.state == "succeeded"
        assert (run.path / "finished.txt").read_text() == "once\n"

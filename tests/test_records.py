"Records that are cut short, closed, foreign or of another form: one row says so, the others are shown."

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_runs import fake_run, three_scenes
from small_disk import hungry, small_disk

from rvtutorial.cli import _cli
from rvtutorial.core.records import (
    RUN,
    Unreadable,
    _misfit,
    read_json,
    reserve_disk,
    write_json,
)
from rvtutorial.course.lessons import _runs_table
from rvtutorial.metrics.leaderboard import leaderboard
from rvtutorial.runs import Run, find_runs
from rvtutorial.slurm import Job, submit
from rvtutorial.sweeps.sweepfile import SweepFile

BYTES = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"schema": 1, "went": {"state": "runn',
    "binary": bytes(range(256)),
    "utf-16": '{"schema": 1}'.encode("utf-16"),
    "a table": b"a,b\n1,2\n",
    "deep": b"[" * 100_000,
}
VALUES = {
    "a list": [],
    "a text": "running",
    "a number": 7,
    "null": None,
    "newer": {"schema": 2, "went": {"state": "running"}},
    "a schema in words": {"schema": "1"},
}
OF_A_RUN = {
    "went is a list": {"went": []},
    "went is null": {"went": None},
    "state is a number": {"went": {"state": 3}},
    "job is a text": {"went": {"state": "running", "job": "x"}},
    "submission is a number": {"went": {"state": "running", "job": {"submission": 5}}},
    "earlier is short": {"went": {"state": "queued", "job": {"earlier": [["x"]]}}},
    "params are a list": {"went": {"job": {"params": [1]}}},
    "epochs in words": {"asked": {"hyperparams": {"epochs": "eight"}}},
    "attempts is a dictionary": {"went": {"attempts": {}}},
    "an attempt is a number": {"went": {"attempts": [3]}},
    "a time in words": {"went": {"attempts": [{"started": "yesterday"}]}},
    "a time without zone": {"went": {"attempts": [{"started": "2026-01-01T00:00:00"}]}},
    "stages of texts": {"went": {"stages": ["train"]}},
    "seconds in words": {"went": {"stages": [{"name": "train", "seconds": "9"}]}},
    "asked is a text": {"asked": "lr=1"},
    "hyperparams is a list": {"asked": {"hyperparams": []}},
    "results is a list": {"results": []},
    "a split is a number": {"results": {"validation": 0.5}},
    "a score in words": {"results": {"validation": {"f1": "high"}}},
    "made_with is a text": {"made_with": "torch"},
}


def spoil(path: Path, name: str) -> None:
    "Put a broken record in the place of a good one."
    path.unlink(missing_ok=True)
    if name == "a folder":
        path.mkdir()
    elif name == "a pipe":
        os.mkfifo(path)
    elif name in BYTES:
        path.write_bytes(BYTES[name])
    else:
        path.write_text(json.dumps((VALUES | OF_A_RUN)[name]))


ALL = [*BYTES, *VALUES, "a folder", "a pipe"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "Two runs that are done, and nobody else's queue."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(tmp_path))
    scenes = three_scenes(tmp_path / "scenes")
    for name, shift in (("good", 1), ("other", 2)):
        path = fake_run(tmp_path / "runs" / name, scenes, shift)
        Run(path).update("went", state="succeeded", attempts=[], stages=[])
    return tmp_path / "runs"


def said(*words) -> str:
    "What a command prints; it must not fail."
    done = CliRunner().invoke(_cli, list(map(str, words)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [*ALL, *OF_A_RUN])
def test_one_bad_run_json_is_one_row(runs, name):
    spoil(runs / "other" / "run.json", name)
    rows = {
        row["run"]: row for row in json.loads(said("status", runs, "--json"))["runs"]
    }
    assert rows["good"]["state"] == "succeeded" and rows["good"]["F1"] > 0
    bad = rows["other"]
    assert bad["state"] == "unreadable" and str(runs / "other/run.json") in bad["why"]
    assert "unreadable" in said("status", runs)
    assert "unreadable: " in repr(Run(runs / "other"))
    assert [run.state for run in find_runs(runs)] == ["succeeded", "unreadable"]
    table = _runs_table(runs).set_index("run")["state"]
    assert table["good"] == "succeeded" and table["other"].startswith("unreadable: ")
    board = leaderboard({name: Run(runs / name) for name in ("other", "good")})
    assert list(board.index) == ["good", "other"] and board.pixel_f1["good"] > 0
    assert board.verdict["other"].startswith("unreadable: ") and not board.tied["other"]
    assert "unreadable: " in said("compare", runs)
    with pytest.raises(Unreadable) as error:
        Run(runs / "other").manifest  # noqa: B018
    assert error.value.path == runs / "other" / "run.json" and error.value.why
    before = os.lstat(runs / "other" / "run.json")
    with pytest.raises(Unreadable):  # nothing is written over it
        Run(runs / "other").update("went", state="queued")
    assert os.lstat(runs / "other" / "run.json").st_ino == before.st_ino


@pytest.mark.parametrize(
    "name", ["empty", "cut", "binary", "a list", "null", "a folder"]
)
@pytest.mark.parametrize(
    "file", ["pipeline-config.json", "eval/validation_scenes/eval.json"]
)
def test_a_bad_file_of_raster_vision_is_one_row(runs, file, name):
    spoil(runs / "other" / file, name)
    rows = {
        row["run"]: row for row in json.loads(said("status", runs, "--json"))["runs"]
    }
    assert rows["good"]["state"] == "succeeded"
    board = leaderboard({name: Run(runs / name) for name in ("good", "other")})
    assert board.pixel_f1["good"] > 0 and len(_runs_table(runs)) == 2
    if file.startswith("eval") and name != "a folder":
        assert board.verdict["other"].startswith("unreadable: ")
        assert "eval.json" in rows["other"]["why"]


@pytest.fixture
def queued(runs):
    "Two runs of two submissions, which nobody works at."
    for name in ("a", "b"):
        home = runs / "jobs" / name
        home.mkdir(parents=True)
        folder = runs / name
        write_json(
            home / "tasks.json", {"folders": [str(folder)], "notebook": "x.ipynb"}
        )
        write_json(
            home / "job.json", {"queue": "local", "host": os.uname()[1], "id": "0"}
        )
        members = [{"state": "FAILED", "reason": "the disk is full"}]
        write_json(
            home / "queue.json", dict(pid=0, host=os.uname()[1], members=members)
        )
        write_json(home / "cancelled.json", [])
        folder.mkdir()
        job = {"submission": str(home), "index": 0, "params": {}}
        Run(folder).update("went", state="running", job=job)
    return runs


OTHERS = {
    "queue.json": [{"members": []}, {"pid": 1, "host": "x", "members": [3]}],
    "job.json": [
        {"queue": "pbs"},
        {"queue": ["local"]},
        {"site": "atlas", "queue": "local"},
    ],
    "cancelled.json": [{"0": True}, ["0"], [None, "x"], [[0]]],
    "tasks.json": [{"folders": "a"}, {"folders": [1]}, {"notebook": "x"}],
}


@pytest.mark.parametrize(
    "file, content",
    [(file, name) for file in OTHERS for name in ALL]
    + [(file, content) for file, contents in OTHERS.items() for content in contents],
)
def test_one_bad_file_of_a_submission_is_one_row(queued, file, content):
    path = queued / "jobs" / "b" / file
    if isinstance(content, str) and (file, content) != ("cancelled.json", "a list"):
        spoil(path, content)
    elif isinstance(content, str):
        path.write_text("[7, 8, true]")
    else:
        path.write_text(json.dumps(content))
    job = Job([queued / "a", queued / "b"])
    rows = {detail["folder"].name: detail for detail in job.details()}
    assert rows["a"]["state"] == "failed" and rows["a"]["why"] == "the disk is full"
    assert rows["b"]["state"] == "unreadable" and str(path) in rows["b"]["why"]
    assert f"b  unreadable: {path}" in repr(job)
    listed = json.loads(said("status", queued, "--json"))["runs"]
    assert [row["state"] for row in listed if row["run"] == "b"] == ["unreadable"]
    assert len(listed) == 4
    with pytest.raises(ValueError, match=path.name):  # and it is not queued anew
        submit(queued / "b", {}, notebook="hello")


def test_a_bad_record_of_a_sweep_is_one_line(runs):
    for name in ("one", "two"):
        sweep = runs / name
        sweep.mkdir()
        (sweep / "sweep.yaml").write_text("parameters:\n  preset: {value: smoke}\n")
        (sweep / "trials.csv").write_text("trial,name,folder,seed\n1,seed=0,seed=0,0\n")
    for file, content in [
        ("trials.csv", b""), ("trials.csv", b"a,b\n1,2\n"), ("trials.csv", BYTES["binary"]),
        ("sweep.yaml", b"- 1\n"), ("sweep.yaml", b"parameters: 3\n"), ("sweep.yaml", b"a: ["),
    ]:  # fmt: skip
        good = (runs / "two" / file).read_bytes()
        (runs / "two" / file).write_bytes(content)
        with pytest.raises(Unreadable, match=f"two/{file}|{file}"):
            SweepFile.on_record(runs / "two")
        doc = json.loads(said("status", runs, "--json"))
        assert [s.get("states") for s in doc["sweeps"]] == [{"new": 1}, None]
        assert file in doc["sweeps"][1]["error"]
        listed = {"two/seed=0"} if file == "sweep.yaml" else set()  # trials.csv says so
        assert {r["run"] for r in doc["runs"]} == {
            "good",
            "other",
            "one/seed=0",
        } | listed
        (runs / "two" / file).write_bytes(good)


CLOSED = """
import json, os, sys
from rvtutorial.slurm import Job
os.setgid(65534); os.setuid(65534)
print(json.dumps([[d["state"], d["why"]] for d in Job(sys.argv[1:]).details()]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_is_closed_to_this_user_is_one_row(runs):
    (runs / "other" / "run.json").chmod(0o600)
    for path in (runs, *runs.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o755)
    command = [sys.executable, "-c", CLOSED, runs / "good", runs / "other"]
    env = os.environ | {"HOME": str(runs), "RVTUTORIAL_QUEUE": str(runs.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    (good, _), (bad, why) = json.loads(done.stdout or done.stderr)
    assert good == "succeeded" and bad == "unreadable" and "Permission denied" in why


@pytest.mark.parametrize("name", [*BYTES, "a folder", "a pipe"])
def test_the_error_knows_the_file(tmp_path, name):
    path = tmp_path / "x.json"
    spoil(path, name)
    with pytest.raises(Unreadable) as error:
        read_json(path, {})
    assert (
        error.value.path == path and str(path) in str(error.value) and error.value.why
    )
    assert read_json(tmp_path / "none.json", 7) == 7
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_good_records_of_all_kinds_are_good():
    turn = ["/jobs/1", 0, {"pause": 2}]
    job = dict(submission="/jobs/2", index=0, params={}, epochs=8, earlier=[turn])
    attempt = dict(started="2026-01-01T00:00:00+00:00", index=None, slurm={})
    went = dict(state="running", why=None, job=job, attempts=[attempt], stages=[])
    scores = dict(f1=None, iou=0.5, accuracy=1)
    good = dict(schema=1, went=went, results={"validation": scores}, more={"x": [1]})
    assert _misfit(good, RUN) is None and _misfit({}, RUN) is None
    assert "'iou' must be a number" in _misfit({"results": {"test": {"iou": "x"}}}, RUN)


def test_the_last_record_on_a_full_disk(tmp_path):
    "It takes blocks that were kept for it and are never free; others take all that are."
    with small_disk(tmp_path / "disk", "1m") as disk:
        record = {"state": "running", "more": "x" * 5000}
        write_json(disk / "a.json", record)
        with reserve_disk(disk), hungry(disk, tmp_path / "stop"):
            while shutil.disk_usage(disk).free:
                time.sleep(0.01)
            with pytest.raises(OSError, match="no space is left"):
                write_json(disk / "a.json", dict(record, state="failed"))
            write_json(disk / "a.json", dict(record, state="failed"), last=True)
        assert read_json(disk / "a.json") == dict(record, state="failed")
        assert os.listdir(disk) == ["a.json"]

"What may be deleted goes, and nothing else, whoever is at work meanwhile."

import io
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rvtutorial import housekeeping as keep
from rvtutorial.core import files as files_
from rvtutorial.core.files import held
from rvtutorial.core.records import write_json
from rvtutorial.housekeeping import RULES, look
from rvtutorial.hpc import job
from rvtutorial.runs import Run

HOUR = 3600


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    for name in ("QUEUE", "SCRATCH"):
        folder = tmp_path_factory.mktemp(name.lower())
        monkeypatch.setenv(f"RVTUTORIAL_{name}", str(folder))


def age(path, hours=2.0):
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))


def put(path: Path, size=1000, hours=0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    if hours:
        age(path, hours)
    return path


def bytes_below(folder: Path) -> int:
    "Of all files, each counted once whatever names it has."
    facts = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum({(f.st_dev, f.st_ino): f.st_size for f in facts}.values())


def bundle(path: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("model.pth", bytes(500))
    put(path).write_bytes(whole.getvalue())


STAYS = [
    "run.json", "pipeline-config.json", "params.json", "notebook.ipynb",
    "train/log.csv", "train/model-bundle.zip", "bundle/model-bundle.zip",
    "predict/9/labels.tif", "labels/a.geojson", "eval/validation_scenes/eval.json",
    "job.log", "notes.txt",
]  # fmt: skip
GOES = {
    "checkpoint.pt": "checkpoints", "train/checkpoints/model-ckpt-epoch-3.pth": "checkpoints",
    "train/last-model.pth": "weights", "train/best-model.pth": "weights",
    "train/last.pt": "weights", "train/best.pt": "weights",
    "train/tb-logs/events.out.1": "tensorboard", "train/tb-logs/x/events.out.2": "tensorboard",
    "notebook.attempt1.ipynb": "attempts",
    ".0123abcd.checkpoint.pt": "partials", "predict/9/.0123abcd.labels.tif": "partials",
    ".reserve": "partials",
}  # fmt: skip
ASKED = {"predict/9/scores.tif": "scores", "predict/9/pixel_hits.npy": "scores"}


def make_run(folder: Path, state="succeeded") -> Path:
    for name in [*STAYS, *GOES, *ASKED]:
        put(folder / name, hours=2)
    for stage in ("train", "bundle"):
        bundle(folder / stage / "model-bundle.zip")
    write_json(folder / "run.json", {"went": {"state": state}})
    write_json(folder / "pipeline-config.json", {})
    return folder


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------ the rules


def test_what_goes_and_what_stays(tmp_path):
    run = make_run(tmp_path / "runs" / "a b [x] é")
    before = bytes_below(run)
    plan = look([tmp_path / "runs"])
    found = {item.path.relative_to(run).as_posix(): item.rule for item in plan.found}
    assert found == GOES
    assert files(run) >= {*STAYS, *GOES, *ASKED}  # a look touches nothing
    gone = plan.clean()
    assert gone.size == plan.size == before - bytes_below(run)
    assert files(run) - {".run.lock"} == {*STAYS, *ASKED}
    assert not look([run]).found


def test_scores_go_when_asked_for(tmp_path):
    run = make_run(tmp_path / "a")
    look([run], ["scores"]).clean()
    assert not files(run) & {*ASKED} and files(run) >= {*STAYS, *GOES}
    with pytest.raises(ValueError, match="no rule 'score'; did you mean 'scores'"):
        look([run], ["score"])
    assert "scores" not in look([run]).rules and "scores" in look([run], (), True).rules


@pytest.mark.parametrize("state", ["failed", "interrupted", "paused", "unfinished"])
def test_a_run_that_may_go_on_keeps_what_it_needs(tmp_path, state):
    run = make_run(tmp_path / "a", state)
    if state == "unfinished":
        write_json(run / "run.json", {})
        (run / "bundle/model-bundle.zip").unlink()
    found = {item.rule for item in look([run]).found}
    assert found == {"partials"}


def test_weights_stay_where_a_bundle_does_not_open(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "bundle/model-bundle.zip").write_bytes(b"PK")
    assert "weights" not in {item.rule for item in look([run]).found}


def test_a_fresh_partial_may_be_in_the_making(tmp_path):
    run = make_run(tmp_path / "a", "failed")
    put(run / "train" / ".89abcdef.log.csv")
    names = [item.path.name for item in look([run]).found]
    assert ".89abcdef.log.csv" not in names and ".0123abcd.checkpoint.pt" in names


def test_one_file_with_two_names_is_counted_once(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "train/last-model.pth").unlink()
    os.link(run / "train/best-model.pth", run / "train/last-model.pth")
    before, plan = bytes_below(run), look([run], ["weights"])
    assert [item.size for item in plan.found] == [1000, 0, 1000, 1000]
    assert plan.clean().size == before - bytes_below(run) == 3000
    os.link(run / "checkpoint.pt", tmp_path / "elsewhere")
    assert [i.path.parent.name for i in look([run], ["checkpoints"]).found] == [
        "checkpoints"
    ]


def test_links_are_left_and_not_followed(tmp_path):
    run, other = make_run(tmp_path / "a"), put(tmp_path / "other/last-model.pth")
    put(tmp_path / "other/best-model.pth")
    for path in (run / "train").glob("*.pth"):
        path.unlink()
    (run / "checkpoint.pt").unlink()
    (run / "checkpoint.pt").symlink_to(other)
    (run / "train").rename(tmp_path / "moved")
    for path in ("best-model.pth", "last-model.pth"):
        put(tmp_path / "moved" / path)
    (run / "train").symlink_to(tmp_path / "moved")
    assert {item.rule for item in look([run]).found} == {"attempts", "partials"}


names = st.lists(
    st.sampled_from(
        [*STAYS, *GOES, *ASKED, "labels/.0123abcd.x", "bundle/x.pth", "eval/a/b.tif"]
    ),
    unique=True,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, st.sampled_from(["succeeded", "failed", "running", "queued"]))
def test_whatever_is_there_records_bundles_and_labels_stay(tmp_path, there, state):
    run = tmp_path / str(time.monotonic_ns())
    for name in there:
        put(run / name, hours=2)
    for stage in ("train", "bundle"):
        bundle(run / stage / "model-bundle.zip")
    write_json(run / "run.json", {"went": {"state": state}})
    before = files(run)
    look([run], list(RULES)).clean()
    gone = before - files(run)
    assert not gone & {*STAYS, "bundle/x.pth", "eval/a/b.tif"}
    assert not gone if state in ("running", "queued") else gone <= {*GOES, *ASKED}


# ------------------------------------------------------------------ who is at work


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_run_at_work_is_left_alone(tmp_path, state):
    run = make_run(tmp_path / "a", state)
    plan = look([tmp_path])
    assert not plan.found and plan.left == {run: state}
    assert f"a ({state})" in repr(plan)


def test_the_queue_is_believed_too(tmp_path):
    "A run that has succeeded, and whose folder a process holds all the same."
    run = make_run(tmp_path / "a")
    with held(run / "job.lock", keep=True):
        assert look([run]).left == {run: "running"}


def test_a_run_that_begins_between_look_and_deed_is_left(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    plan = look([tmp_path])
    Run(first).update("went", state="queued")
    gone = plan.clean()
    assert {item.run for item in gone.found} == {second}
    assert list(gone.left) == [first] and "was queued" in gone.left[first]
    assert files(first) >= {*GOES}


def test_a_held_lock_keeps_us_out(tmp_path):
    run = make_run(tmp_path / "a")
    plan = look([run])
    code = "import sys, time; from rvtutorial.core.files import held\n"
    code += (
        "with held(sys.argv[1] + '/job.lock'): print('in', flush=True); time.sleep(60)"
    )
    args = [sys.executable, "-c", code, str(run)]
    holder = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "in\n"
        gone = plan.clean()
    finally:
        holder.kill()
        holder.wait()
    assert not gone.found and "begun" in gone.left[run]
    assert plan.clean().size == plan.size  # left by a process that is gone


def test_what_changed_meanwhile_stays(tmp_path):
    run = make_run(tmp_path / "a")
    plan = look([run])
    Run(run).update("went", state="failed")
    gone = {item.rule for item in plan.clean().found}
    assert gone == {"partials"}


def test_interrupted_in_the_middle_and_called_again(tmp_path, monkeypatch):
    run, calls = make_run(tmp_path / "a"), []

    def stop(item, left, real=keep._delete):
        calls.append(item)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(item, left)

    with monkeypatch.context() as patch:
        patch.setattr(keep, "_delete", stop)
        with pytest.raises(KeyboardInterrupt):
            look([run]).clean()
    assert files(run) & {*GOES}
    look([run]).clean()
    assert not files(run) & {*GOES} and files(run) >= {*STAYS}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_cannot_be_deleted_is_named(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "train").chmod(0o500)
    gone = look([run], ["weights", "checkpoints"]).clean()
    (run / "train").chmod(0o700)
    assert run / "train/last-model.pth" in gone.left
    assert {item.rule for item in gone.found} == {"checkpoints"}


# ------------------------------------------------------------------ beside the runs


def submission(runs: Path, name: str, *members: str, hours=2.0) -> Path:
    home = runs / "jobs" / name
    put(home / "job.sh", 300), put(home / "local-0.out", 700)
    write_json(home / "tasks.json", {"folders": [str(runs / m) for m in members]})
    write_json(
        home / "job.json", {"queue": "local", "id": "0", "host": socket.gethostname()}
    )
    age(home / "tasks.json", hours), age(home, hours)
    return home


def refer(run: Path, home: Path, **more) -> None:
    Run(run).update("went", job={"submission": str(home), "index": 0, **more})


def test_a_submission_goes_when_no_run_refers_to_it(tmp_path):
    run = make_run(tmp_path / "a")
    old, new = (submission(tmp_path, name, "a") for name in ("old", "new"))
    deleted = submission(tmp_path, "deleted", "b")
    earlier = submission(tmp_path, "earlier", "a")
    refer(run, new, earlier=[[str(earlier), 0, {}]])
    submission(tmp_path, "young", "c", hours=0)
    plan = look([tmp_path], ["submissions"])
    assert {item.path for item in plan.found} == {old, deleted}
    assert plan.size == sum(
        f.stat().st_size for h in (old, deleted) for f in h.iterdir()
    )
    plan.clean()
    assert {p.name for p in (tmp_path / "jobs").iterdir()} == {
        "new",
        "earlier",
        "young",
    }


def test_submissions_of_runs_that_were_moved_stay(tmp_path):
    run = make_run(tmp_path / "runs/a")
    home = submission(tmp_path / "runs", "one", "a")
    refer(run, home)
    (tmp_path / "runs").rename(tmp_path / "archive")
    assert not look([tmp_path / "archive"], ["submissions"]).found


def test_a_submission_in_the_queue_stays(tmp_path):
    home = submission(tmp_path, "one", "a")
    members = [{"state": "PENDING"}]
    write_json(home / "queue.json", {"pid": 1, "host": "far", "members": members})
    age(home)
    assert not look([tmp_path], ["submissions"]).found
    members[0]["state"] = "COMPLETED"
    write_json(home / "queue.json", {"pid": 1, "host": "far", "members": members})
    age(home)
    assert look([tmp_path], ["submissions"]).found


def test_half_of_a_deleted_submission_goes_with_the_next_call(tmp_path):
    put(tmp_path / "jobs" / ".gone-1234" / "job.sh")
    look([tmp_path]).clean()
    assert not list((tmp_path / "jobs").iterdir())


def test_half_of_a_submission_with_its_notebook_goes_too(tmp_path, monkeypatch):
    "Whenever a call was killed: what names the notebook goes last."
    home = submission(tmp_path, "one", "deleted")
    doc = json.loads((home / "tasks.json").read_text())
    write_json(home / "tasks.json", doc | {"notebook": "zz.ipynb"})
    put(home / "zz.ipynb")
    age(home / "tasks.json"), age(home)
    count = len(list(home.iterdir()))
    real, left = Path.unlink, []

    def unlink(path, *more, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        real(path, *more, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    for _ in range(count - 1):  # each call deletes one file more
        left[:] = [None]
        with pytest.raises(KeyboardInterrupt):
            look([tmp_path], ["submissions"]).clean()
    left[:] = [None] * 10
    look([tmp_path], ["submissions"]).clean()
    assert not list((tmp_path / "jobs").iterdir())


@pytest.mark.parametrize("text", ["", "{", '{"went": {"job": {"submission": 5}}}'])
def test_a_run_that_cannot_be_read_keeps_its_submission_and_hides_nothing(
    tmp_path, text
):
    run, home = make_run(tmp_path / "a"), submission(tmp_path, "one", "b")
    gone = submission(tmp_path, "two", "deleted")
    put(tmp_path / "b" / "run.json")
    (tmp_path / "b" / "run.json").write_text(text)
    plan = look([tmp_path])
    assert home not in [item.path for item in plan.found]
    assert gone in [item.path for item in plan.found]
    assert run / "checkpoint.pt" in [item.path for item in plan.found]
    assert plan.left == {tmp_path / "b": "unreadable"}


@pytest.mark.parametrize("file", ["queue.json", "cancelled.json"])
def test_a_submission_of_which_nobody_can_tell_stays(tmp_path, file):
    home = submission(tmp_path, "one", "deleted")
    (home / file).write_text('{"members": 3}')
    age(home)
    assert not look([tmp_path], ["submissions"]).found


def test_a_submission_stays_while_slurm_is_silent(tmp_path, monkeypatch):
    home = submission(tmp_path, "one", "deleted")
    write_json(home / "job.json", {"queue": "slurm", "id": "7"})
    age(home)
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    job.SLURM.forget()
    assert not look([tmp_path], ["submissions"]).found
    job.SLURM.forget()


def everything(folder: Path) -> dict:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_links_do_not_lead_clean_out(tmp_path):
    "A linked jobs/, a linked submission, a linked half of one."
    outside, runs = tmp_path / "outside", tmp_path / "runs"
    for name in ("one", "two", ".gone-0123abcd"):
        submission(outside, name, "deleted")
    (runs / "x").mkdir(parents=True)
    (runs / "x" / "jobs").symlink_to(outside / "jobs")
    (runs / "jobs").mkdir()
    (runs / "jobs" / "two").symlink_to(outside / "jobs" / "two")
    (runs / "jobs" / ".gone-12").symlink_to(outside / "jobs" / "one")
    before = everything(outside)
    assert not look([runs], ["submissions"]).found
    look([runs]).clean()
    assert everything(outside) == before


def test_a_folder_that_is_named_may_be_a_link(tmp_path):
    home = submission(tmp_path / "disk", "one", "deleted")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert look([tmp_path / "runs"], ["submissions"]).clean().size
    assert not home.exists()


LOOKS_LIKE = {
    "no member": {"tasks.json": {"folders": []}},
    "no job.json": {"tasks.json": {"folders": ["a"]}},
    "not texts": {"tasks.json": {"folders": [1]}, "job.json": {"queue": "local"}},
    "a list": {"tasks.json": [1], "job.json": {"queue": "local"}},
    "another queue": {"tasks.json": {"folders": ["a"]}, "job.json": {"queue": "pbs"}},
    "broken": {"tasks.json": "{", "job.json": {"queue": "local"}},
    "more": {
        "tasks.json": {"folders": ["a"]}, "job.json": {"queue": "local"}, "x.csv": "",
    },
    "a folder": {
        "tasks.json": {"folders": ["a"]}, "job.json": {"queue": "local"}, "d/x.csv": "",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOKS_LIKE)
def test_what_only_looks_like_a_submission_stays(kind, tmp_path):
    home = tmp_path / "jobs" / "X"
    put(home / "job.sh")
    for name, content in LOOKS_LIKE[kind].items():
        put(home / name)
        text = content if isinstance(content, str) else json.dumps(content)
        (home / name).write_text(text)
    for path in (home / "tasks.json", home):
        age(path)
    before = everything(tmp_path)
    look([tmp_path]).clean()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["photo.jpg", "notes.ipynb", "deep/job.sh"])
def test_a_folder_with_the_name_of_a_half_stays(name, tmp_path):
    put(tmp_path / "jobs" / ".gone-ab12cd34" / name)
    put(tmp_path / "jobs" / ".gone-photos" / "job.sh")
    look([tmp_path]).clean()
    assert len(everything(tmp_path)) == 2


def test_what_was_put_into_a_submission_meanwhile_stays(tmp_path):
    home = submission(tmp_path, "one", "deleted")
    plan = look([tmp_path], ["submissions"])
    put(home / "results.csv")
    done = plan.clean()
    assert not done.found and done.left[home] and (home / "results.csv").exists()


def test_a_submission_of_our_own_goes_whole(tmp_path):
    "All files that a hand-over and its queue leave are known."
    from rvtutorial.slurm import submit

    submit(tmp_path / "a", notebook="hello").wait(progress=False)
    (home,) = [p for p in (tmp_path / "jobs").iterdir() if p.is_dir()]
    Run(tmp_path / "a").update("went", job={})
    for path in (home / "tasks.json", home):
        age(path)
    assert {i.path for i in look([tmp_path], ["submissions"]).found} == {home}
    look([tmp_path], ["submissions"]).clean()
    assert not home.exists()


def test_only_files_of_ours_that_nobody_opened_leave_scratch(tmp_path):
    scratch = files_.scratch_folder()
    mine = put(scratch / f"{'0123456789abcdef' * 2}.npy", 5000, hours=2)
    put(scratch / f"{'fedcba9876543210' * 2}.npy", 5000)
    put(scratch / "somebody.npy", 5000, hours=99)
    plan = look([tmp_path], ["cache"])
    assert [item.path for item in plan.found] == [mine] and plan.size == 5000
    assert plan.clean().size == 5000 and len(list(scratch.iterdir())) == 2


# ------------------------------------------------------------------ tables


def test_the_table_has_a_row_for_each_rule(tmp_path):
    make_run(tmp_path / "a")
    rows = {row["rule"]: row for row in look([tmp_path]).rows()}
    assert list(rows) == [name for name in RULES if name != "scores"]
    assert rows["weights"]["files"] == 4 and rows["weights"]["bytes"] == 4000
    assert json.dumps(list(rows.values()))


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        look([tmp_path / "nope"])
    assert look([tmp_path]).found == ()

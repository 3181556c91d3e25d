"""Run folders in CSV, TensorBoard and Weights & Biases, and nothing on the network."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from fake_runs import write_log

from rvtutorial.core.finding import named_runs
from rvtutorial.runs import Run
from rvtutorial.sweeps.folder import _history, _outcome, track


@pytest.fixture
def runs(tmp_path):
    "Two runs that have finished and one that has not begun."
    for lr, f1 in [(1e-2, 0.9), (1e-3, 0.7)]:
        run = Run(tmp_path / f"lr={lr:g}")
        write_log(run.path / "train" / "log.csv", 3, f1)
        run.update(
            "asked", hyperparams={"lr": lr, "img_sz": None, "class_weights": [1, 2]}
        )
        run.update("results", validation={"class": "building", "f1": f1, "iou": None})
        start = "2026-01-01T10:00:00+00:00"
        run.update("went", state="succeeded", attempts=[{"started": start}])
    (tmp_path / "new").mkdir()
    return [tmp_path / "lr=0.01", tmp_path / "lr=0.001", tmp_path / "new"]


def test_history_has_numbers_only(runs):
    table = _history(Run(runs[0]))
    assert table["train_time"].tolist() == [5.0] * 3
    assert not len(table.select_dtypes(object).columns)
    assert table["building_f1"].iloc[-1] == 0.9
    assert len(_history(Run(runs[2]))) == 0


def test_outcome_and_summary(runs, tmp_path):
    assert _outcome(Run(runs[0])) == {"validation/f1": 0.9}
    table = pd.read_csv(track(runs, tmp_path / "out")["csv"][1], index_col="run")
    assert table.loc["lr=0.01", "class_weights"] == "[1, 2]"
    assert "img_sz" not in table and table.loc["new", "state"] == "unfinished"


def test_what_counts_as_runs(runs, tmp_path):
    assert list(named_runs(runs[0])) == ["lr=0.01"]
    assert list(named_runs({"a": runs[0], "b": Run(runs[1])})) == ["a", "b"]
    sweep = type("Sweep", (), {"runs": lambda self: {"x": Run(runs[0])}})()
    assert list(named_runs(sweep)) == ["x"]
    assert list(named_runs([runs[0], runs[0]])) == ["lr=0.01"]
    assert set(named_runs(tmp_path)) == {"lr=0.01", "lr=0.001"}
    other = tmp_path / "other" / "lr=0.01"
    other.mkdir(parents=True)
    Run(other).update("went", state="failed")
    assert list(named_runs([runs[0], other])) == ["lr=0.01", "other/lr=0.01"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        named_runs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is no run and holds none"):
        named_runs(runs[2], strict=True)


def test_csv_holds_all_runs_and_can_be_written_again(runs, tmp_path):
    for _ in range(2):
        curves, table = map(pd.read_csv, track(runs, tmp_path / "out")["csv"])
    assert len(curves) == 6 and set(curves["run"]) == {"lr=0.01", "lr=0.001"}
    assert table["validation/f1"].tolist()[:2] == [0.9, 0.7]
    assert track(runs[2], tmp_path / "none")["csv"][0].exists()


def test_tensorboard_reads_back_what_the_log_says(runs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # written twice, there once
        found = track(runs[:2], tmp_path, csv=False, tensorboard=True)
    made = found["tensorboard"]
    events = EventAccumulator(str(made[0])).Reload()
    scalars = events.Scalars("validation/building_f1")
    log = Run(runs[0]).log()
    assert [e.step for e in scalars] == [0, 1, 2]
    assert [e.value for e in scalars] == pytest.approx(list(log["building_f1"]))
    assert [e.wall_time - scalars[0].wall_time for e in scalars] == [0, 6, 12]
    assert "validation/f1" in events.Tags()["scalars"]  # of the HPARAMS page
    assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir()) == [
        "lr=0.001",
        "lr=0.01",
    ]


NAMES = ["../../x", "../x", "/x", "a/b", "..", ".", "", "x" * 300, "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_never_leads_out_of_the_folder(name, runs, tmp_path):
    "Nothing outside is deleted, and the events are written all the same."
    kept = tmp_path / "home" / "kept"
    kept.mkdir(parents=True)
    (tmp_path / "home" / "x").mkdir()
    (tmp_path / "home" / "x" / "diary").write_text("dear diary")
    name = str(tmp_path / "home" / "x") if name == "/x" else name
    before = sorted(p for p in tmp_path.rglob("*"))
    place = kept / "out"
    made = track({name: runs[0]}, place, csv=False, tensorboard=True)["tensorboard"]
    for _ in range(2):
        again = track({name: runs[0]}, place, csv=False, tensorboard=True)
        assert again["tensorboard"] == made
    assert made[0].parent == place / "tensorboard" and list(made[0].glob("events*"))
    assert set(before) <= set(tmp_path.rglob("*"))
    new = set(tmp_path.rglob("*")) - set(before)
    assert all(p.is_relative_to(place) for p in new)


def test_a_run_named_by_its_parent_folder_stays(runs, tmp_path):
    out = tmp_path / "out" / "tensorboard"
    track([runs[0] / ".."], tmp_path / "out", csv=False, tensorboard=True)
    assert all(r.is_dir() for r in runs)
    assert {p.name for p in out.iterdir()} == {"lr=0.01", "lr=0.001"}  # runs in there


def test_only_event_files_are_replaced(runs, tmp_path):
    "TensorBoard's files into the folder of the runs themselves: the runs stay."
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tensorboard").symlink_to(tmp_path)
    before = {p: p.read_bytes() for p in runs[0].rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="only a folder of event files is replaced"):
        track(runs[:1], tmp_path / "out", csv=False, tensorboard=True)
    assert before == {p: p.read_bytes() for p in runs[0].rglob("*") if p.is_file()}
    (tmp_path / "more" / "tensorboard").mkdir(parents=True)
    (tmp_path / "more" / "tensorboard" / runs[0].name).symlink_to(runs[0])
    with pytest.raises(ValueError, match="link"):
        track(runs[:1], tmp_path / "more", csv=False, tensorboard=True)


def test_switches(runs, tmp_path):
    made = track(runs, tmp_path / "a")
    assert list(made) == ["csv"]
    assert (
        track(runs, tmp_path / "b", csv=False) == {} and not (tmp_path / "b").exists()
    )
    with pytest.raises(ValueError, match="online is for Weights & Biases"):
        track(runs, tmp_path / "b", online=True)


def test_without_wandb_the_error_says_what_to_do(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        track(runs, tmp_path, wandb=True)
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_importing_loads_neither_torch_nor_a_tracker():
    code = (
        "import sys, rvtutorial.sweeps.folder\n"
        "print(sorted({'torch', 'wandb', 'tensorboard'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_wandb_writes_offline_whatever_the_environment_says(
    runs, tmp_path, monkeypatch
):
    pytest.importorskip("wandb", reason="an extra that is not installed here")
    monkeypatch.setenv("WANDB_MODE", "online")
    made = track(runs[:1], tmp_path / "w", csv=False, wandb=True)["wandb"]
    assert made[0].name.startswith("offline-run-") and list(made[0].glob("*.wandb"))
    assert os.environ["WANDB_MODE"] == "online"

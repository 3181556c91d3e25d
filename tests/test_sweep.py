"""Sweeps: grids, names, strict sweep files, folders that go on, leaderboards."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_runs import evaluation, write_log
from hypothesis import given
from hypothesis import strategies as st
from light_job import light_job
from small_disk import fill, hungry, small_disk

from rvtutorial import sweep as sweeps
from rvtutorial.core.renamed import say_once
from rvtutorial.hpc.job import Job, JobNotebook
from rvtutorial.runs import Hyperparams, Run
from rvtutorial.sweep import (
    Sweep,
    grid,
    level_stretch,
    run_sweep,
)
from rvtutorial.sweeps import folder as at_work
from rvtutorial.sweeps.folder import (
    _gpus,
    _run_size,
    prepare_trial,
)
from rvtutorial.sweeps.space import Journal
from rvtutorial.sweeps.sweepfile import (
    SweepFile,
    Trial,
    short,
    trial_names,
)

RATES = [1e-2, 1e-3, 1e-4, 1e-5]
BASE = {"preset": "smoke", "data": "/data"}


# ------------------------------------------------------------- grids and names


def test_grid_order_is_fixed_and_the_last_changes_fastest():
    assert grid(lr=[1, 2], seed=[0, 1, 2]) == [
        {"lr": a, "seed": b} for a in (1, 2) for b in (0, 1, 2)
    ]
    assert grid(lr=range(2)) == [{"lr": 0}, {"lr": 1}]


@pytest.mark.parametrize("values", [{"lr": 1e-3}, {"model": "unet"}, {"lr": []}, {}])
def test_grid_wants_lists(values):
    with pytest.raises(ValueError, match="one value|no value"):
        grid(**values)


@pytest.mark.parametrize(
    "value, text",
    [
        (1e-3, "1e-3"), (0.08, "8e-2"), (5e-3, "5e-3"), (0.0125, "1.25e-2"),
        (0.5, "0.5"), (1.0, "1"), (2e5, "2e5"), (-1e-3, "-1e-3"), (8, "8"), (0.0, "0"),
        (True, "true"), (None, "none"), ("a b/c,d", "a-b-c-d"), ((1.0, 2.0), "1-2"),
    ],
)  # fmt: skip
def test_values_in_names(value, text):
    assert short(value) == text


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=20, unique=True))
def test_different_rates_have_different_names_that_give_them_back(rates):
    names = trial_names(grid(lr=rates))
    assert [float(name.removeprefix("lr=")) for name in names] == rates


def test_names_hold_what_differs():
    names = trial_names(grid(lr=[1e-3, 1e-4], epochs=[8], seed=[0, 1]))
    assert names[0] == "lr=1e-3+seed=0" and len(set(names)) == 4
    assert trial_names(grid(lr=[1e-3])) == ["lr=1e-3"]
    assert trial_names([{}]) == ["as-is"]
    assert trial_names([{"lr": 1e-3}, {"lr": 1e-3, "epochs": 9}])[1] == "epochs=9"
    with pytest.raises(ValueError, match="more than once: lr=1e-3"):
        trial_names([{"lr": 1e-3}, {"lr": 0.001}])


# ------------------------------------------------------------- sweep files


def read(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return SweepFile.read(path)


def test_a_sweep_file_of_weights_and_biases(tmp_path):
    plan = read(
        tmp_path,
        "program: train_rastervision.ipynb\nname: rates\nmethod: grid\n"
        "metric:\n  name: iou\n  goal: maximize\nrun_cap: 3\n"
        "parameters:\n  epochs: {value: 4}\n"
        "  lr:\n    values: [1e-3, 1.0E-4, .01, 1]\n  model: {value: unet}\n"
        "  pretrained: {value: false}\n",
    )
    assert plan.fixed == {"epochs": 4, "model": "unet", "pretrained": False}
    assert plan.trials() == [{"lr": 1e-3}, {"lr": 1e-4}, {"lr": 0.01}]
    assert (plan.metric, plan.others["name"]) == ("iou", "rates")


def test_a_dictionary_says_the_same_as_a_file(tmp_path):
    text = "method: grid\nparameters:\n  lr: {values: [1e-2, 1e-3, 1e-4, 1e-5]}\n"
    content = {"method": "grid", "parameters": {"lr": {"values": RATES}}}
    assert read(tmp_path, text) == SweepFile.read(content)
    assert SweepFile.read(content).trials() == grid(lr=RATES)


P = "method: grid\nparameters:\n  "


@pytest.mark.parametrize(
    "text, message",
    [
        ("methd: grid\n", "my.yaml, line 1: there is no key 'methd'; did you mean 'method'"),
        ("method: random\n" + P[13:] + "lr: {min: 0.1, max: 0.2}\n", "random has no end: say how many trials with run_cap"),
        ("method: rndom\n", "line 1: there is no method 'rndom'; did you mean 'random'"),
        ("method: random\nrun_cap: 3\n" + P[13:] + "lr: {min: 0.2, max: 0.1}\n", "line 4: lr: min must be below max, got 0.2 and 0.1"),
        ("method: random\nrun_cap: 3\n" + P[13:] + "lr: {min: 0.2, max: 3}\n", "line 4: lr must be .*got [23]"),
        ("method: bayes\nrun_cap: 3\n" + P[13:] + "lr: {min: 0.2, max: 3}\n", "line 4: lr must be .*got 3"),
        ("method: random\nrun_cap: 3\n" + P[13:] + "lr: {distribution: beta, min: 0, max: 1}\n", "line 4: lr: there is no distribution 'beta'"),
        ("method: random\nrun_cap: 9\n" + P[13:] + "seed: {min: 0, max: 2}\n", "line 2: there are only 3 different trials, not 9"),
        ("method: random\nrun_cap: 3\n" + P[13:] + "lr: {value: 1e-3}\n", "line 1: nothing to draw for random"),
        (P + "lr: {min: 1e-3}\n", "line 3: lr: write value, values, or min and max; found min"),
        (P + "pause: {value: 3}\n", "line 3: there is no parameter 'pause'"),
        (P + "a:\n    parameters:\n      lr: {value: 1}\n  b:\n    parameters:\n      lr: {value: 2}\n", "line 8: lr stands already in line 5"),
        (P + "a:\n    parameters:\n      epoch: {value: 1}\n", "line 5: there is no parameter 'epoch'; did you mean 'epochs'"),
        (P + "a: {parameters: {}}\n", "line 2: name at least one parameter"),
        ("program: train.py\n" + P + "lr: {value: 1}\n", "line 1: program must be a job notebook: .*'train.py'; known are"),
        ("program: hello\n" + P + "lr: {value: 1}\n", "line 4: there is no parameter 'lr'"),
        ("seed: -1\n" + P + "lr: {value: 1}\n", "line 1: seed must be a whole number from 0"),
        ("metric: {name: f1, target: 90}\n" + P + "lr: {value: 1}\n", "line 1: target must be a number above 0"),
        ("early_terminate: {type: hyperband, min_iter: 9}\n" + P + "lr: {value: 1}\n", "line 1: no rung lies before the end"),
        ("early_terminate:\n  type: hyperband\n  min_itr: 9\n" + P + "lr: {value: 1}\n", "line 1: .*did you mean 'min_iter'"),
        ("early_terminate: {min_iter: 1}\n" + P + "epochs: {values: [2, 4]}\n", "line 1: rungs are counted in epochs"),
        ("early_terminate: {min_iter: 1}\nmetric: accuracy\n" + P + "lr: {value: 1}\n", "line 1: there is no accuracy"),
        ("early_terminate: {min_iter: 1}\nmethod: bayes\nrun_cap: 3\n" + P[13:] + "lr: {min: 0.1, max: 0.2}\n", "line 1: bayes learns from whole trainings"),
        ("method: random\nrun_cap: 2\n" + P[13:] + "chip_sz: {value: 200}\n  stride_length: {min: 190, max: 230}\n", "line 5: stride_length 2.. is larger"),
        (P + "lr: {values: [1e-3]}\n  lr: {value: 1}\n", "line 4: parameters.lr stands already in line 3"),
        (P + "lr:\n    values: [1e-3]\n    values: [1e-4]\n", "line 5: parameters.lr.values stands already"),
        (P + "epochs: {value: 2}\n  epoch: {value: 8}\n", "line 4: there is no parameter 'epoch'; did you mean 'epochs'"),
        (P + "learning_rate: {value: 8}\n", "line 3: .*did you mean 'lr'"),
        (P + "lr: [1e-3]\n", "line 3: lr: write `value:"),
        (P + "lr: {values: 1e-3}\n", "line 3: lr: values must be a list"),
        (P + "lr: {values: []}\n", "line 3: lr: values must be a list"),
        (P + "lr: {min: 0.1, max: 1}\n", "line 3: lr: a grid has either value or values, found min, max"),
        (P + "epochs: {value: 3}\n  lr: {values: [1e-3, 7]}\n", "line 4: lr must be.*got 7"),
        (P + "lr: {values: [1e-3, yes]}\n", "line 3: lr must be .*got 'yes'"),
        (P + "lr: {values: [1e-3, 0.001]}\n", "asked for more than once: lr=1e-3"),
        (P + "data: {values: [a, b]}\n", "line 3: data: this is the same in all trials"),
        (P + "chip_sz: {value: 200}\n  stride_length: {values: [100, 215]}\n", "line 4: stride_length 215 is larger"),
        ("metric: {name: loss}\n" + P + "lr: {value: 1}\n", "line 1: there is no metric 'loss'"),
        ("metric: {name: f1, goal: minimize}\n" + P + "lr: {value: 1}\n", "line 1: goal 'minimize'"),
        ("run_cap: 0\n" + P + "lr: {value: 1}\n", "line 1: run_cap must be a whole number"),
        ("method: grid\n", "my.yaml, parameters: name at least one"),
        (P + "lr: {values: [1e-3\n", "my.yaml, line 4: "),
        ("", "my.yaml: expected keys"),
        ("- 1\n", "my.yaml: expected keys"),
        (P + "lr: !!python/object:os.system {}\n", "my.yaml, line 3: could not determine"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_file_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_yaml_as_it_looks(tmp_path):
    "What PyYAML would read otherwise: 1e-3 as text, 010 as 8, yes as true."
    path = tmp_path / "x.yaml"
    path.write_text("a: [1e-3, 1E5, 010, yes, true, 1_000, 1:30, null, ~, -3, 2.]\n")
    found = SweepFile.read.__globals__["_load"](path)[0]["a"]
    assert found == [
        1e-3,
        1e5,
        "010",
        "yes",
        True,
        "1_000",
        "1:30",
        None,
        None,
        -3,
        2.0,
    ]
    assert yaml.safe_load(path.read_text())["a"][0] == "1e-3"


# ------------------------------------------------------------- the folder


def test_the_record_comes_back_as_it_was(tmp_path):
    fixed = {
        "preset": "sample",
        "epochs": 3,
        "class_weights": [1.0, 2.0],
        "img_sz": None,
    }
    trials = [
        Trial("a", "a", {"lr": 1e-05, "augment": False, "scaling": "0,255"}),
        Trial("b", "../first", {"lr": 0.1, "seed": None}),
    ]
    SweepFile(fixed, {}).write(tmp_path, trials)
    plan, found = SweepFile.on_record(tmp_path)
    assert (plan.fixed, plan.method, found) == (fixed, "grid", trials)
    assert {p.name for p in tmp_path.iterdir()} == {"sweep.yaml", "trials.csv"}
    with pytest.raises(FileNotFoundError, match="no sweep folder"):
        SweepFile.on_record(tmp_path / "else")


@pytest.fixture
def queue(monkeypatch):
    "A queue that notes what it is handed, and runs nothing."
    handed = []

    def submit_many(runs, site, notebook, **order):
        handed.append({folder.name: params for folder, params in runs.items()})
        handed[-1:] = handed[-1:] if not order else [{**handed[-1], **order}]
        return "job"

    monkeypatch.setattr(at_work, "submit_many", submit_many)
    monkeypatch.setattr(JobNotebook, "check", lambda book, params: params)
    return handed


def finish(run, matrices, state="succeeded", digest="d1", epochs=2, **asked):
    "Make a run folder that looks finished."
    hyperparams = Hyperparams.of("smoke", **asked).asdict()
    data = {"path": "/data", "digest": digest}
    went = {"state": state, "stages": [{"name": "train", "seconds": 1.5}]}
    run.path.mkdir(parents=True, exist_ok=True)
    manifest = {"asked": {"hyperparams": hyperparams, "data": data}, "went": went}
    (run.path / "run.json").write_text(json.dumps(manifest))
    write_log(run.path / "train" / "log.csv", epochs)
    if matrices is not None:
        path = run.path / "eval" / "validation_scenes" / "eval.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(evaluation(matrices)))


def scenes(recall, n=8, seed=0):
    "Confusion matrices of scenes in which a share of the building pixels is found."
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(n):
        total = 2000 + 200 * i
        tp = int(total * np.clip(recall + rng.normal(0, 0.02), 0, 1))
        found[f"s{i}"] = [[tp, total - tp, 0], [200, 9000, 0], [0, 0, 0]]
    return found


def test_start_hands_over_every_trial_with_the_base(tmp_path, queue):
    sweep = run_sweep(tmp_path / "s", grid(lr=RATES), BASE)
    assert list(queue[0]) == ["lr=1e-2", "lr=1e-3", "lr=1e-4", "lr=1e-5"]
    assert queue[0]["lr=1e-4"] == {**BASE, "lr": 1e-4}
    assert list(sweep.runs()) == ["lr=1e-5", "lr=1e-4", "lr=1e-3", "lr=1e-2"]
    assert set(sweep.status()["state"]) == {"new"}
    assert SweepFile.read(tmp_path / "s" / "sweep.yaml").trials() == grid(lr=RATES)


def test_none_and_lists_reach_the_job_as_words(tmp_path, queue):
    base = {**BASE, "class_weights": (1, 2), "img_sz": None, "bands": None}
    run_sweep(tmp_path, grid(seed=[0, None]), base)
    assert list(queue[0]) == ["seed=0", "seed=none"]
    params = queue[0]["seed=none"]
    assert params["class_weights"] == "1.0,2.0" and params["bands"] is None
    assert params["img_sz"] == params["seed"] == "none"
    assert run_sweep(tmp_path, grid(seed=["none"]), base).trials[1].parameters == {
        "seed": None
    }


def test_from_one_file_and_from_one_cell_the_same_sweep(tmp_path, queue):
    path = tmp_path / "rates.yaml"
    path.write_text(
        "method: grid\nparameters:\n  preset: {value: smoke}\n  data: {value: /data}\n"
        "  lr: {values: [1e-2, 1e-3, 1e-4, 1e-5]}\n"
    )
    a = run_sweep(tmp_path / "a", path)
    b = run_sweep(tmp_path / "b", grid(lr=RATES), BASE)
    assert queue[0] == queue[1] and (a.trials, a.fixed) == (b.trials, b.fixed)
    for name in ("sweep.yaml", "trials.csv"):  # but for the sweep's name, byte by byte
        texts = [(tmp_path / s / name).read_text() for s in "ab"]
        assert texts[0] == texts[1].replace("name: b\n", "name: a\n")


def test_going_on_and_extending(tmp_path, queue):
    run_sweep(tmp_path, grid(lr=RATES), BASE)
    before = (tmp_path / "trials.csv").read_bytes()
    run_sweep(
        tmp_path, grid(lr=["1e-3"]), {**BASE, "epochs": "2"}
    )  # said in other words
    assert (tmp_path / "trials.csv").read_bytes() == before and len(queue[1]) == 4
    sweep = Sweep(tmp_path).extend(grid(lr=[5e-3, 1e-3]))
    assert list(queue[2]) == ["lr=1e-2", "lr=1e-3", "lr=1e-4", "lr=1e-5", "lr=5e-3"]
    assert run_sweep(tmp_path, grid(lr=RATES), BASE).trials == sweep.trials
    wider = sweep.extend([{"lr": 1e-3, "epochs": 4}])
    assert wider.trials[-1].name == "lr=1e-3+epochs=4"
    assert wider.trials[:5] == sweep.trials


@pytest.mark.parametrize(
    "trials, base, message",
    [
        (grid(lr=RATES), {**BASE, "epochs": 9}, "epochs: 2 -> 9"),
        (grid(lr=RATES), {**BASE, "data": "/else"}, "data: /data -> /else"),
        (grid(lr=RATES), {**BASE, "preset": "sample"}, "batch_sz: 4 -> 8"),
        (grid(lr=[0.3]), BASE, "use Sweep.extend"),
        (grid(lr=[7]), BASE, "lr must be"),
        (grid(lr=[1e-3, "0.001"]), BASE, "more than once"),
        (grid(data=["a"]), BASE, "data is part of the base"),
        (grid(epochs=[2]), {**BASE, "epochs": 2}, "epochs is part of the base"),
        (grid(epoch=[2]), BASE, "did you mean 'epochs'"),
    ],
)
def test_another_sweep_is_refused_and_nothing_changes(
    tmp_path, queue, trials, base, message
):
    run_sweep(tmp_path, grid(lr=RATES), BASE)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=message):
        run_sweep(tmp_path, trials, base)
    assert (
        len(queue) == 1
        and {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    )


def test_a_bad_sweep_leaves_no_folder(tmp_path, queue, monkeypatch):
    with pytest.raises(ValueError, match="epochs is part of the base"):
        run_sweep(tmp_path / "s", grid(epochs=[2, 3]), {**BASE, "epochs": 2})
    for trials in (grid(lr=[7]), grid(epoch=[1]), tmp_path / "none.yaml"):
        with pytest.raises((ValueError, FileNotFoundError)):
            run_sweep(tmp_path / "s", trials, BASE)

    def refuse(book, params):
        raise ValueError("'lr' is no parameter of hello")

    monkeypatch.setattr(JobNotebook, "check", refuse)
    with pytest.raises(ValueError, match="no parameter"):
        run_sweep(tmp_path / "s", grid(lr=RATES), BASE)
    assert not (tmp_path / "s").exists() and not queue


def test_file_and_base_must_agree(tmp_path, queue):
    plan = SweepFile.read(
        {"parameters": {"epochs": {"value": 3}, "lr": {"values": RATES}}}
    )
    with pytest.raises(ValueError, match="disagree on epochs"):
        run_sweep(tmp_path / "s", plan, {**BASE, "epochs": 4})
    assert run_sweep(tmp_path / "s", plan, BASE).fixed["epochs"] == 3


def test_a_finished_run_stands_in_for_a_trial(tmp_path, queue):
    sweep = run_sweep(tmp_path / "s", grid(lr=[1e-2]), BASE)
    finish(sweep.runs()["lr=1e-2"], scenes(0.9), lr=1e-2)
    runs = {name: Run(tmp_path / name) for name in ("same", "other", "failed", "data")}
    finish(runs["same"], scenes(0.9), lr=5e-3)
    finish(runs["other"], scenes(0.9), lr=5e-3, seed=1)
    finish(runs["failed"], None, state="failed", lr=2e-3)
    finish(runs["data"], scenes(0.9), digest="d2", lr=2e-3)
    lent = [tmp_path / name for name in ("missing", "other", "failed", "data", "same")]
    sweep = sweep.extend(grid(lr=[5e-3, 2e-3]), reuse=lent)
    assert list(queue[1]) == ["lr=1e-2", "lr=2e-3"]
    assert sweep.runs()["lr=5e-3"].path == tmp_path / "same"
    assert sweep.status().loc["lr=5e-3", ["state", "folder"]].tolist() == [
        "succeeded",
        "../same",
    ]


def test_status_of_a_half_done_sweep(tmp_path, queue):
    sweep = run_sweep(tmp_path, grid(lr=RATES), BASE)
    runs = sweep.runs()
    finish(runs["lr=1e-5"], scenes(0.5), lr=1e-5)
    finish(runs["lr=1e-4"], None, state="failed", epochs=1, lr=1e-4)
    runs["lr=1e-4"].update("went", why="RuntimeError: no memory")
    status = sweep.status()
    assert status["state"].tolist() == ["succeeded", "failed", "new", "new"]
    assert status["epochs"].tolist() == [2, 1, 0, 0]
    assert status.loc["lr=1e-4", "why"] == "RuntimeError: no memory"
    assert status.loc["lr=1e-5", "seconds"] == 1.5
    assert "1 succeeded, 1 failed, 2 new" in repr(sweep)
    assert list(sweep.runs(finished=True)) == ["lr=1e-5"]
    assert len(sweep.leaderboard()) == 1
    with pytest.raises(RuntimeError, match="no memory"):
        sweep.wait(progress=False)


def test_a_leaderboard_of_nothing_says_so(tmp_path, queue):
    with pytest.raises(ValueError, match="no runs"):
        run_sweep(tmp_path, grid(lr=RATES), BASE).leaderboard()


def test_leaderboard_and_its_words(tmp_path, queue):
    sweep = run_sweep(tmp_path, grid(lr=RATES), BASE)
    recalls = {"lr=1e-2": 0.90, "lr=1e-3": 0.902, "lr=1e-4": 0.6, "lr=1e-5": 0.0}
    for i, (name, run) in enumerate(sweep.runs().items()):
        finish(run, scenes(recalls[name], seed=i), lr=float(name[3:]))
    board = sweep.leaderboard()
    assert board["pixel_f1"].is_monotonic_decreasing and len(board) == 4
    assert board.index[-1] == "lr=1e-5" and board["behind"].iloc[0] == 0
    assert (
        (board["low"] <= board["pixel_f1"]) & (board["pixel_f1"] <= board["high"])
    ).all()
    assert list(board["tied"]) == [True, True, False, False]
    words = board.summary()
    assert f"{board.index[0]} has the highest pixel_f1" in words
    assert f"cannot be told apart from {board.index[1]}." in words
    assert "It is better than lr=1e-4 and lr=1e-5." in words
    assert "8 validation scenes" in words
    assert sweep.leaderboard("recall").columns[0] == "pixel_recall"


def test_words_for_one_and_for_a_clear_winner(tmp_path, queue):
    sweep = run_sweep(tmp_path, grid(lr=[1e-2, 1e-4]), BASE)
    finish(sweep.runs()["lr=1e-2"], scenes(0.9), lr=1e-2)
    alone = sweep.leaderboard().summary()
    assert "told apart" not in alone and "better" not in alone
    finish(sweep.runs()["lr=1e-4"], scenes(0.5), lr=1e-4)
    both = sweep.leaderboard().summary()
    assert "told apart" not in both and both.endswith("It is better than lr=1e-4.")


def test_old_names_work_and_say_so_once(tmp_path, queue, capfd):
    say_once.cache_clear()
    sweep = sweeps.start(tmp_path, grid(lr=[1e-2, 1e-4]), BASE)
    finish(sweep.runs()["lr=1e-2"], scenes(0.9), lr=1e-2)
    assert sweeps.start(tmp_path, grid(lr=[1e-2, 1e-4]), BASE).trials == sweep.trials
    assert sweep.go_on().trials == sweep.trials
    board = sweep.leaderboard()
    assert sweeps.in_words(board) == board.summary()
    assert capfd.readouterr().err.splitlines() == [
        "sweep.start is now sweep.run_sweep; the old name goes soon",
        "Sweep.go_on is now Sweep.resume; the old name goes soon",
        "sweep.in_words is now Board.summary; the old name goes soon",
    ]
    assert at_work.before is at_work.prepare_trial  # queued jobs name it


# ------------------------------------------------------------- drawn sweeps

RANDOM = {
    "method": "random",
    "run_cap": 3,
    "seed": 4,
    "parameters": {
        "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
        "batch_sz": {"values": [4, 8, 16]},
        "epochs": {"value": 4},
    },
}
TEXT = """
method: random
run_cap: 3
seed: 4
parameters:
  lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-1}
  batch_sz: {values: [4, 8, 16]}
  epochs: {value: 4}
"""


def test_random_from_a_file_from_a_dictionary_and_from_its_own_record(tmp_path, queue):
    plan = read(tmp_path, TEXT)
    assert plan == SweepFile.read(RANDOM) and len(plan.trials()) == 3
    sweep = run_sweep(tmp_path / "s", RANDOM, BASE)
    again = SweepFile.read(tmp_path / "s" / "sweep.yaml")
    assert again.trials() == plan.trials() == [t.parameters for t in sweep.trials]
    assert [t.name for t in sweep.trials] == trial_names(plan.trials())


def test_a_random_sweep_goes_on_and_is_extended_by_a_number(tmp_path, queue):
    first = run_sweep(tmp_path / "s", RANDOM, BASE).trials
    assert run_sweep(tmp_path / "s", RANDOM, BASE).trials == first
    with pytest.raises(ValueError, match="use Sweep.extend"):
        run_sweep(tmp_path / "s", RANDOM | {"run_cap": 5}, BASE)
    with pytest.raises(ValueError, match="parameters: its own distributions"):
        run_sweep(tmp_path / "s", RANDOM | {"seed": 5}, BASE)
    more = Sweep(tmp_path / "s").extend(2)
    assert more.trials[:3] == first and len(more.trials) == 5
    assert [t.parameters for t in more.trials] == SweepFile.read(
        RANDOM | {"run_cap": 5}
    ).trials()
    assert (
        run_sweep(tmp_path / "s", RANDOM | {"run_cap": 5}, BASE).trials == more.trials
    )
    with pytest.raises(ValueError, match="grid is extended by a list"):
        run_sweep(tmp_path / "g", grid(lr=RATES), BASE).extend(2)


def test_a_grid_takes_ranges_with_steps_and_groups():
    content = {
        "parameters": {
            "epochs": {"min": 2, "max": 4},
            "how": {"parameters": {"seed": {"values": [0]}, "lr": {"value": 1e-3}}},
        }
    }
    plan = SweepFile.read(content)
    assert plan.fixed == {"lr": 1e-3}
    assert plan.trials() == grid(epochs=[2, 3, 4], seed=[0])
    steps = {"lr": {"distribution": "q_uniform", "min": 0.1, "max": 0.3, "q": 0.1}}
    assert SweepFile.read({"parameters": steps}).trials() == grid(lr=[0.1, 0.2, 0.3])


def test_one_parameter_in_two_groups_of_a_dictionary():
    group = {"parameters": {"lr": {"values": [1e-3]}}}
    with pytest.raises(ValueError, match=r"lr stands already in parameters\.a\.param"):
        SweepFile.read({"parameters": {"a": group, "b": group}})


def test_progress_on_a_terminal_in_a_file_and_not_at_all(tmp_path, queue, capsys):
    sweep = run_sweep(tmp_path, grid(lr=RATES), BASE)
    now = at_work._Progress({"running": 1}, "", 60, 30, 2)
    after = at_work._Progress({"succeeded": 1}, "", 90, 0, 3)
    looks = iter([now, now, after])
    sweep.progress = lambda: next(looks)
    found = sweep.follow(every=0)
    lines = capsys.readouterr().err.splitlines()
    assert found is after and len(lines) == 2  # one for each change
    assert lines[0] == "1 running; 01:00 worked; about 00:30 left; 2 GPU-minutes"
    sweep.progress = lambda: after
    sweep.follow(quiet=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(TimeoutError, match="still at work after 0 s: 1 running"):
        sweep.progress = lambda: now
        sweep.follow(every=0, timeout=0, quiet=True)


def test_own_job_notebook_beside_the_sweep_file(tmp_path):
    light_job(tmp_path / "light.ipynb", "x")
    good = "program: light.ipynb\n" + P + "lr: {values: [1e-3]}\n"
    assert read(tmp_path, good).program == str(tmp_path / "light.ipynb")
    with pytest.raises(ValueError, match="no parameter 'batch_sz'"):
        read(tmp_path, good + "  batch_sz: {value: 3}\n")


# ------------------------------------------------------------- trials that ask

BAYES = RANDOM | {"method": "bayes", "run_cap": 4}


def test_bayes_asks_when_a_trial_starts_and_learns_from_the_finished(tmp_path, queue):
    sweep = run_sweep(tmp_path, BAYES, BASE)
    assert [t.name for t in sweep.trials] == [f"trial-{i}" for i in range(1, 5)]
    assert queue[0]["before"] == at_work.HOOK and "lr" not in queue[0]["trial-1"]
    runs = sweep.runs()
    for name, state in [("trial-1", "succeeded"), ("trial-2", "failed")]:
        runs[name].path.mkdir()
        given = prepare_trial(runs[name].path, queue[0][name])
        assert prepare_trial(runs[name].path, queue[0][name]) == given
        finish(runs[name], scenes(0.8) if state == "succeeded" else None, state)
        f1 = {"f1": 0.8} if state == "succeeded" else {}
        runs[name].update("results", validation=f1)
    runs["trial-3"].path.mkdir()
    prepare_trial(runs["trial-3"].path, queue[0]["trial-3"])
    states = [t.state.name for t in Journal(tmp_path).study.trials]
    assert states == ["COMPLETE", "FAIL", "RUNNING", "WAITING"]
    assert Journal(tmp_path).study.best_value == 0.8
    again = Sweep(tmp_path)  # the values are on record
    assert again.trials[1].parameters == {k: given[k] for k in ("lr", "batch_sz")}
    assert again.trials[3].parameters == {} and "lr" in again.trials[2].parameters
    run_sweep(tmp_path, BAYES, BASE)
    assert queue[1]["trial-3"]["lr"] == again.trials[2].parameters["lr"]
    assert len(again.extend(2).trials) == 6
    with pytest.raises(ValueError, match="extended by a number"):
        again.extend(grid(lr=[1e-3]))


LADDER = {"type": "hyperband", "min_iter": 1, "eta": 2}
EARLY = {
    "method": "grid",
    "early_terminate": LADDER,
    "parameters": {"epochs": {"value": 4}, "lr": {"values": RATES}},
}


def reach(run, epochs, f1, state="paused"):
    "A run that has trained for so many epochs, with the same score after each."
    write_log(run.path / "train" / "log.csv", epochs, 0)
    text = (run.path / "train" / "log.csv").read_text().replace(",0.0,", f",{f1},")
    (run.path / "train" / "log.csv").write_text(text.replace(",0.0,", f",{f1},"))
    run.update("went", state=state)


def test_rungs_are_handed_in_at_once_each_behind_the_one_before(tmp_path, queue):
    run_sweep(tmp_path, EARLY, BASE)
    pauses = [handed["lr=1e-3"].get("pause") for handed in queue]
    assert pauses == [1, 2, None] and all(h["lr=1e-3"]["epochs"] == 4 for h in queue)
    assert [h.get("after") for h in queue] == [None, "job", "job"]
    assert all(h["before"] == at_work.HOOK for h in queue)


def test_who_goes_on_is_decided_once_and_only_when_all_are_there(tmp_path, queue):
    sweep = run_sweep(tmp_path, EARLY, BASE)
    runs = sweep.runs()
    for name, f1 in [("lr=1e-2", 0.5), ("lr=1e-3", 0.7), ("lr=1e-4", 0.5)]:
        reach(runs[name], 1, f1)
    said = prepare_trial(runs["lr=1e-3"].path, queue[1]["lr=1e-3"])
    assert said == "waits for a decision: lr=1e-5 has not reached epoch 1 yet"
    assert not (tmp_path / "rungs.json").exists()
    runs["lr=1e-5"].path.mkdir()
    runs["lr=1e-5"].update("went", state="failed")  # counts as the worst
    assert prepare_trial(runs["lr=1e-3"].path, queue[1]["lr=1e-3"])["pause"] == 2
    assert (
        prepare_trial(runs["lr=1e-2"].path, queue[1]["lr=1e-2"])["pause"] == 2
    )  # a tie
    assert (
        prepare_trial(runs["lr=1e-4"].path, queue[1]["lr=1e-4"])
        == "not among the best after 1 epochs"
    )
    reach(runs["lr=1e-5"], 1, 0.9)  # too late
    assert isinstance(prepare_trial(runs["lr=1e-5"].path, queue[1]["lr=1e-5"]), str)
    last = prepare_trial(runs["lr=1e-3"].path, queue[2]["lr=1e-3"])
    assert last == "waits for a decision: lr=1e-2 has not reached epoch 2 yet"
    run_sweep(tmp_path, EARLY, BASE)  # goes on with what is left to do
    assert [sorted(k for k in h if k[:2] == "lr") for h in queue[3:]] == [
        ["lr=1e-2", "lr=1e-3"]
    ] * 2
    with pytest.raises(ValueError, match="has decided who goes on"):
        Sweep(tmp_path).extend(grid(lr=[0.5]))


def test_a_training_that_ended_by_itself_counts_with_its_last_epoch(tmp_path, queue):
    sweep = run_sweep(tmp_path, EARLY, BASE)
    runs = sweep.runs()
    for i, run in enumerate(runs.values()):
        reach(run, 2, 0.5 + 0.1 * i)
    reach(runs["lr=1e-2"], 1, 0.95, state="succeeded")
    found = sweep._rung_scores(sweep.trials, 2)
    assert found["lr=1e-2"] == 0.95 and found["lr=1e-3"] == 0.7


def test_turns_of_a_queue_that_is_gone(tmp_path, queue):
    "Who needs one is queued again; who was left behind is paused, and not lost."
    sweep = run_sweep(tmp_path, EARLY, BASE)
    runs = sweep.runs()
    gone = {"submission": str(tmp_path / "jobs" / "gone"), "index": 0, "params": {}}
    for name, run in runs.items():
        reach(run, 1, float(name[3:]), state="queued")
        run.update("went", paused=1, job=gone)
    assert set(sweep.status()["state"]) == {"lost"}
    sweep.who_goes_on(0)
    run_sweep(tmp_path, EARLY, BASE)
    again = {name for handed in queue[3:] for name in handed if name[:2] == "lr"}
    assert again == {"lr=1e-2", "lr=1e-3"}
    assert runs["lr=1e-4"].state == runs["lr=1e-5"].state == "paused"
    assert runs["lr=1e-5"].manifest["went"]["why"] == "after 1 epochs"


def test_a_full_disk_is_no_verdict_on_a_trial(tmp_path, queue):
    sweep = run_sweep(tmp_path / "ladder", EARLY, BASE)
    runs = sweep.runs()
    for name in ("lr=1e-2", "lr=1e-3", "lr=1e-4"):
        reach(runs[name], 1, 0.5)
    runs["lr=1e-5"].path.mkdir()
    why = "OSError: [Errno 28] no space is left; log.csv is as it was before."
    runs["lr=1e-5"].update("went", state="failed", why=why)
    said = prepare_trial(runs["lr=1e-3"].path, queue[1]["lr=1e-3"])
    assert said == "waits for a decision: lr=1e-5 has not reached epoch 1 yet"
    learns = run_sweep(tmp_path / "bayes", BAYES, BASE)
    run = learns.runs()["trial-1"]
    run.path.mkdir()
    given = prepare_trial(run.path, {})
    for why, state in [("the disk is full", "RUNNING"), ("the loss is nan", "FAIL")]:
        run.update("went", state="failed", why=why)
        assert prepare_trial(run.path, {}) == given
        assert Journal(learns.folder).study.trials[0].state.name == state


def test_a_target_that_is_reached_ends_the_sweep(tmp_path, queue):
    content = {
        "metric": {"name": "f1", "target": 0.8},
        "parameters": EARLY["parameters"],
    }
    sweep = run_sweep(tmp_path, content, BASE)
    run = sweep.runs()["lr=1e-2"]
    other = sweep.runs()["lr=1e-3"]
    other.path.mkdir(exist_ok=True)
    assert prepare_trial(other.path, queue[0]["lr=1e-3"]) == queue[0]["lr=1e-3"]
    finish(run, scenes(0.9), lr=1e-2)
    run.update("results", validation={"f1": 0.85})
    assert (
        prepare_trial(other.path, queue[0]["lr=1e-3"])
        == "lr=1e-2 reached f1 0.850 of 0.8"
    )
    gone = {"submission": str(tmp_path / "jobs" / "gone"), "index": 0, "params": {}}
    other.update("went", state="queued", job=gone)
    run_sweep(tmp_path, content, BASE)
    assert len(queue) == 1 and other.state == "skipped"


# ------------------------------------------------------------- running it


def test_retry_queues_the_failed_and_nothing_else(tmp_path, queue):
    sweep = run_sweep(tmp_path, grid(lr=RATES), BASE)
    finish(sweep.runs()["lr=1e-2"], scenes(0.9), lr=1e-2)
    finish(sweep.runs()["lr=1e-3"], None, state="failed", lr=1e-3)
    sweep.retry()
    assert list(queue[1]) == ["lr=1e-3"]
    sweep.resume()
    assert "lr=1e-4" in queue[2]


def test_a_sweep_that_does_not_fit_leaves_no_folder(tmp_path, queue, monkeypatch):
    usage = type("Usage", (), {"free": 3e9})
    monkeypatch.setattr(at_work.shutil, "disk_usage", lambda path: usage)
    base = {"preset": "version2", "data": "/data"}
    with pytest.raises(
        ValueError,
        match=r"4 runs of 635.9 MB need 3.2 GB, 3.0 GB are free",
    ):
        run_sweep(tmp_path / "s", grid(lr=RATES), base)
    assert not (tmp_path / "s").exists() and not queue
    run_sweep(tmp_path / "s", grid(lr=RATES), BASE)  # the small network fits


@pytest.mark.parametrize(
    "asked, pixels, measured",  # bytes of run folders, all files
    [
        (dict(preset="smoke"), 4 * 260**2, 8.75e6),
        (dict(preset="smoke", scores="float32", onnx=True), 4 * 260**2, 13.95e6),
        (dict(preset="smoke", engine="stock"), 4 * 260**2, 7.05e6),
        (dict(preset="sample"), 12 * 650**2, 17.4e6),  # a map with few doubts
        (dict(preset="sample"), 12 * 650**2, 23.6e6),  # and one that is all doubt
        (dict(preset="sample", engine="stock"), 12 * 650**2, 31.3e6),
        (dict(preset="version2", scores="none"), 6 * 650**2, 635.9e6),
    ],
)
def test_sizes_against_runs_that_were_measured(asked, pixels, measured):
    each, extra = _run_size(Hyperparams.of(**asked), pixels)
    assert each == pytest.approx(measured, rel=0.2)
    assert extra > each / 5


@pytest.mark.parametrize("encoder", [None, "efficientnet-lite0"])
def test_weights_are_as_large_as_their_file(tmp_path, encoder):
    "Of a network with an encoder too; one that is not known counts as the largest."
    import torch

    from rvtutorial.models import encoders, unet

    net = encoders.network(3, pretrained=False) if encoder else unet.unet(3)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    hp = Hyperparams(model="unet", encoder=encoder, pretrained=False)
    _, extra = _run_size(hp, 0)
    assert extra / 4 == pytest.approx(
        (tmp_path / "weights.pth").stat().st_size, rel=0.02
    )
    for other in (dict(encoder="resnet50"), dict(hubconf="a.py", encoder=None)):
        _, extra = _run_size(hp.replace(**other), 0)
        assert extra / 4 == max(at_work._WEIGHTS.values())


def test_room_says_yes():
    assert at_work._Room(2, 1e9, 1e9, 3e9).enough


@pytest.mark.parametrize(
    "gres, count",
    [
        (None, 0), ("gpu", 1), ("gpu:2", 2), ("gpu:a100:4", 4), ("gpu:a100_1g.10gb:1", 1),
        ("gpu:h200", 1), ("craynetwork:1,gpu:2", 2), ("gpu:tesla:2(S:0-1)", 2), ("shard:8", 0),
    ],
)  # fmt: skip
def test_gpus_of_a_request(gres, count):
    assert _gpus(gres) == count


def test_progress_counts_time_and_gpus(tmp_path, queue):
    sweep = run_sweep(tmp_path, grid(lr=[1e-2, 1e-3]), BASE)
    run = sweep.runs()["lr=1e-2"]
    finish(run, scenes(0.9), lr=1e-2)
    spans = [("2026-01-01T10:00:00+00:00", "2026-01-01T10:01:00+00:00")] * 2
    run.update("went", attempts=[dict(started=a, ended=b) for a, b in spans])
    run.update("results", validation={"f1": 0.9})
    run.update("made_with", device="cuda:0")
    now = sweep.progress()
    assert run.worked == 120 and now.gpu_minutes == 2
    assert now.states == {"succeeded": 1, "new": 1} and now.over
    assert now.best.startswith("lr=1e-2: pixel F1 0.9") and "95 % interval" in now.best


def test_next_round_of_a_sweep(tmp_path, queue):
    sweep = run_sweep(tmp_path, grid(lr=RATES), BASE)
    with pytest.raises(ValueError, match="no runs"):
        sweep.next_round()
    recalls = {"lr=1e-2": 0.86, "lr=1e-3": 0.902, "lr=1e-4": 0.6, "lr=1e-5": 0.0}
    for i, (name, run) in enumerate(sweep.runs().items()):
        finish(run, scenes(recalls[name], seed=i), lr=float(name[3:]))
    found = sweep.next_round()
    assert [t["lr"] for t in found] == [2e-4, 5e-4, 2e-3, 5e-3]
    assert found.reason.startswith(
        "lr=1e-3 is better than all others. lr: 0.001 lies inside"
    )
    assert len(sweep.extend(found).trials) == 8


LIGHT = """program: light.ipynb
method: grid
parameters:
  epochs: {value: 2}
  lr: {values: [1e-2, 0.9]}
"""
STARTER = """import sys
from rvtutorial.sweep import run_sweep
run_sweep(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_two_who_start_one_sweep_run_no_trial_twice(tmp_path, monkeypatch):
    "On the real local queue; one of the trials fails, and is tried again when asked."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path / "queue"))
    light_job(tmp_path / "light.ipynb", Path(__file__).parent)
    (tmp_path / "s.yaml").write_text(LIGHT)
    command = [sys.executable, "-c", STARTER, tmp_path / "s", tmp_path / "s.yaml"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [starter.wait() for starter in both] == [0, 0]
    sweep = Sweep(tmp_path / "s")
    with pytest.raises(RuntimeError, match="the loss is not a number"):
        sweep.wait(progress=False)
    assert (tmp_path / "s" / "lr=1e-2" / "epochs.txt").read_text().split() == ["0", "1"]
    tries = {n: len(r.manifest["went"]["attempts"]) for n, r in sweep.runs().items()}
    assert tries == {"lr=1e-2": 1, "lr=0.9": 1}
    assert len(list((tmp_path / "s" / "jobs").glob("*/tasks.json"))) == 1
    with pytest.raises(RuntimeError, match="not a number"):
        sweep.retry().wait(progress=False)
    tries = {n: len(r.manifest["went"]["attempts"]) for n, r in sweep.runs().items()}
    assert tries == {"lr=1e-2": 1, "lr=0.9": 2}


FILLED = """method: grid
program: light.ipynb
parameters:
  epochs: {value: 2}
  lr: {values: [1e-2, 1e-3, 1e-4]}
"""
WAITS = """import shutil
if rate == 1e-3 and not (folder.parent / "room").exists():
    (folder.parent / "here").touch()
    while shutil.disk_usage(folder).free:
        time.sleep(0.02)"""


@contextlib.contextmanager
def filled_once(disk, stop):
    "A file that takes all the room there is; what is freed later may be used."
    with open(disk / "filler", "wb", buffering=0) as file:
        fill(file)
    yield
    (disk / "filler").unlink()


def tries(sweep):
    "How often each trial was begun."
    went = {n: run.manifest.get("went", {}) for n, run in sweep.runs().items()}
    return {name: len(known.get("attempts") or []) for name, known in went.items()}


@pytest.mark.slow
@pytest.mark.parametrize("filled", [filled_once, hungry])
def test_a_disk_that_fills_in_the_middle_of_a_sweep(tmp_path, monkeypatch, filled):
    "By a file, or by somebody who takes all that becomes free; on the real queue."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path / "queue"))
    light_job(tmp_path / "light.ipynb", Path(__file__).parent, first=WAITS)
    (tmp_path / "s.yaml").write_text(FILLED)
    with small_disk(tmp_path / "disk", "40m") as disk:
        sweep = run_sweep(disk / "s", tmp_path / "s.yaml")
        record = {p: p.read_bytes() for p in (disk / "s").glob("[st]*.*")}
        while not (disk / "s" / "here").exists():
            time.sleep(0.05)
        with filled(disk, tmp_path / "stop"):
            sweep.follow(timeout=60, quiet=True)
            check_full(sweep, record)
        go_on_with_room(sweep, tmp_path)


def check_full(sweep, record):
    "One trial is done and whole, two say why not, and the record is as it was."
    status = sweep.status()
    assert status["state"].tolist() == ["failed", "failed", "succeeded"]
    assert status["why"].iloc[:2].str.contains(r"no space is left|disk is full").all()
    for run in sweep.runs().values():
        assert run.manifest["went"]["job"]["params"]  # readable, whatever happened
    done = sweep.runs()["lr=1e-2"]
    assert len(done.evaluation()["per_scene"]) == 5 and len(done.log()) == 2
    assert list(sweep.leaderboard().index) == ["lr=1e-2"]
    with pytest.raises(OSError, match="No space left|no space is left"):
        sweep.plan.write(sweep.folder, sweep.trials * 9999)
    with pytest.raises(ValueError, match="are free on the disk"):
        sweep.extend(grid(lr=[2e-2]))
    assert {path: path.read_bytes() for path in record} == record
    assert Sweep(sweep.folder).trials == sweep.trials


def go_on_with_room(sweep, tmp_path):
    "Started again with room on the disk, each of the others is run once."
    (sweep.folder / "room").touch()
    before = tries(sweep)
    sweep = run_sweep(sweep.folder, tmp_path / "s.yaml")
    sweep.wait(progress=False, timeout=60)
    after = tries(sweep)
    assert {n for n in after if after[n] > before[n]} == set(after) - {"lr=1e-2"}
    assert all(after[n] == before[n] + (n != "lr=1e-2") for n in after)
    for run in sweep.runs().values():
        assert (run.path / "finished.txt").read_text() == "once\n"
    end = time.monotonic() + 30
    while list(sweep.folder.rglob(".reserve")) and time.monotonic() < end:
        time.sleep(0.05)  # the queue ends a moment after its last member
    assert not list(sweep.folder.rglob(".reserve"))
    assert len(sweep.leaderboard()) == 3


@pytest.mark.slow
def test_trials_of_a_notebook_of_ones_own_are_compared_too(tmp_path, monkeypatch):
    "They have no Raster Vision config and no images; their values are their job's."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path / "queue"))
    program = light_job(tmp_path / "light.ipynb", Path(__file__).parent)
    tried = dict(epochs=dict(value=2), lr=dict(values=[1e-2, 1e-3]))
    plan = SweepFile.read(dict(program=str(program), method="grid", parameters=tried))
    made = run_sweep(tmp_path / "s", plan, compare=True).wait(progress=False)
    (behind,) = [p.parent for p in made.folder.glob("comparisons/*/run.json")]
    Job(behind).wait(progress=False, timeout=120)
    names = {path.name for path in behind.iterdir()}
    assert {"leaderboard.csv", "curves.png", "scenes.png", "lr.png"} <= names
    assert made.runs()["lr=1e-2"].hyperparams == {"epochs": 2, "lr": 1e-2}


def a_board(scores, tied):
    "A leaderboard of learning rates, the highest first."
    board = pd.DataFrame({"pixel_f1": scores, "tied": tied}).rename_axis("run")
    board["behind"] = board.pixel_f1.max() - board.pixel_f1
    return board.sort_values("pixel_f1", ascending=False)


def test_a_level_stretch_is_next_to_the_highest():
    names = ["1e-5", "1e-4", "1e-3", "2e-3", "5e-3", "1e-2", "8e-2"]
    scores = dict(
        zip(names, (0.395, 0.714, 0.919, 0.928, 0.926, 0.927, 0.877), strict=True)
    )
    tied = dict(zip(names, (0, 0, 0, 1, 1, 1, 1), strict=True))
    board = a_board(scores, {k: bool(v) for k, v in tied.items()})
    assert level_stretch(board, names) == ["2e-3", "5e-3", "1e-2"]
    assert level_stretch(board, names, margin=1) == names[3:]


def test_of_few_scenes_a_poor_run_is_not_level_although_it_is_tied():
    "The smoke preset: nothing can be told apart, the score 0 included."
    names = ["1e-5", "1e-4", "1e-3", "1e-2"]
    board = a_board(dict(zip(names, (0.0, 0.467, 0.533, 0.2), strict=True)), True)
    assert level_stretch(board, names) == ["1e-3"]
    ends = a_board(dict(zip(names, (0.5, 0.1, 0.495, 0.494), strict=True)), True)
    assert level_stretch(ends, names) == ["1e-5"], "a valley ends the stretch"

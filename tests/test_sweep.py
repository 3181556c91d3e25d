"""Sweeps: grids, names, strict sweep files, folders that go on, leaderboards."""

import json

import numpy as np
import pytest
import yaml
from fake_runs import evaluation, write_log
from hypothesis import given
from hypothesis import strategies as st

from rvtutorial import sweep as sweeps
from rvtutorial.runs import Hyperparams, Run
from rvtutorial.sweep import Sweep, grid, in_words, read_sweep, start
from rvtutorial.sweepfile import Trial, read_record, short, trial_names, write_record

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
    return read_sweep(path)


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
    assert read(tmp_path, text) == read_sweep(content)
    assert read_sweep(content).trials() == grid(lr=RATES)


P = "method: grid\nparameters:\n  "


@pytest.mark.parametrize(
    "text, message",
    [
        ("methd: grid\n", "my.yaml, line 1: there is no key 'methd'; did you mean 'method'"),
        ("method: random\n", "line 1: there is no method 'random'"),
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
        (P + "data: {values: [a, b]}\n", "line 3: data: runs on other data"),
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
    found = sweeps.read_sweep.__globals__["_load_yaml"](path)[0]["a"]
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
    write_record(tmp_path, fixed, trials)
    assert read_record(tmp_path) == (fixed, trials)
    assert {p.name for p in tmp_path.iterdir()} == {"sweep.yaml", "trials.csv"}
    with pytest.raises(FileNotFoundError, match="no sweep folder"):
        read_record(tmp_path / "else")


@pytest.fixture
def queue(monkeypatch):
    "A queue that notes what it is handed, and runs nothing."
    handed = []

    def submit_many(runs, site):
        handed.append({folder.name: params for folder, params in runs.items()})

    monkeypatch.setattr(sweeps, "submit_many", submit_many)
    monkeypatch.setattr(sweeps, "check_params", lambda notebook, params: params)
    monkeypatch.setattr(sweeps, "job_notebook", lambda name: name)
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
    sweep = start(tmp_path / "s", grid(lr=RATES), BASE)
    assert list(queue[0]) == ["lr=1e-2", "lr=1e-3", "lr=1e-4", "lr=1e-5"]
    assert queue[0]["lr=1e-4"] == {**BASE, "lr": 1e-4}
    assert list(sweep.runs()) == ["lr=1e-5", "lr=1e-4", "lr=1e-3", "lr=1e-2"]
    assert set(sweep.status()["state"]) == {"new"}
    assert read_sweep(tmp_path / "s" / "sweep.yaml").trials() == grid(lr=RATES)


def test_none_and_lists_reach_the_job_as_words(tmp_path, queue):
    base = {**BASE, "class_weights": (1, 2), "img_sz": None, "bands": None}
    start(tmp_path, grid(seed=[0, None]), base)
    assert list(queue[0]) == ["seed=0", "seed=none"]
    params = queue[0]["seed=none"]
    assert params["class_weights"] == "1.0,2.0" and params["bands"] is None
    assert params["img_sz"] == params["seed"] == "none"
    assert start(tmp_path, grid(seed=["none"]), base).trials[1].parameters == {
        "seed": None
    }


def test_from_one_file_and_from_one_cell_the_same_sweep(tmp_path, queue):
    path = tmp_path / "rates.yaml"
    path.write_text(
        "method: grid\nparameters:\n  preset: {value: smoke}\n  data: {value: /data}\n"
        "  lr: {values: [1e-2, 1e-3, 1e-4, 1e-5]}\n"
    )
    a = start(tmp_path / "a", path)
    b = start(tmp_path / "b", grid(lr=RATES), BASE)
    assert queue[0] == queue[1] and (a.trials, a.fixed) == (b.trials, b.fixed)


def test_going_on_and_extending(tmp_path, queue):
    start(tmp_path, grid(lr=RATES), BASE)
    before = (tmp_path / "trials.csv").read_bytes()
    start(tmp_path, grid(lr=["1e-3"]), {**BASE, "epochs": "2"})  # said in other words
    assert (tmp_path / "trials.csv").read_bytes() == before and len(queue[1]) == 4
    sweep = Sweep(tmp_path).extend(grid(lr=[5e-3, 1e-3]))
    assert list(queue[2]) == ["lr=1e-2", "lr=1e-3", "lr=1e-4", "lr=1e-5", "lr=5e-3"]
    assert start(tmp_path, grid(lr=RATES), BASE).trials == sweep.trials
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
        (grid(epochs=[2]), {**BASE, "epochs": 2}, "use Sweep.extend"),
        (grid(epoch=[2]), BASE, "did you mean 'epochs'"),
    ],
)
def test_another_sweep_is_refused_and_nothing_changes(
    tmp_path, queue, trials, base, message
):
    start(tmp_path, grid(lr=RATES), BASE)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        start(tmp_path, trials, base)
    assert len(queue) == 1 and {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_bad_sweep_leaves_no_folder(tmp_path, queue, monkeypatch):
    with pytest.raises(ValueError, match="epochs is part of the base"):
        start(tmp_path / "s", grid(epochs=[2, 3]), {**BASE, "epochs": 2})
    for trials in (grid(lr=[7]), grid(epoch=[1]), tmp_path / "none.yaml"):
        with pytest.raises((ValueError, FileNotFoundError)):
            start(tmp_path / "s", trials, BASE)

    def refuse(notebook, params):
        raise ValueError("'lr' is no parameter of hello")

    monkeypatch.setattr(sweeps, "check_params", refuse)
    with pytest.raises(ValueError, match="no parameter"):
        start(tmp_path / "s", grid(lr=RATES), BASE)
    assert not (tmp_path / "s").exists() and not queue


def test_file_and_base_must_agree(tmp_path, queue):
    plan = read_sweep({"parameters": {"epochs": {"value": 3}, "lr": {"values": RATES}}})
    with pytest.raises(ValueError, match="disagree on epochs"):
        start(tmp_path / "s", plan, {**BASE, "epochs": 4})
    assert start(tmp_path / "s", plan, BASE).fixed["epochs"] == 3


def test_a_finished_run_stands_in_for_a_trial(tmp_path, queue):
    sweep = start(tmp_path / "s", grid(lr=[1e-2]), BASE)
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
    sweep = start(tmp_path, grid(lr=RATES), BASE)
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
        start(tmp_path, grid(lr=RATES), BASE).leaderboard()


def test_leaderboard_and_its_words(tmp_path, queue):
    sweep = start(tmp_path, grid(lr=RATES), BASE)
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
    words = in_words(board)
    assert f"{board.index[0]} has the highest pixel_f1" in words
    assert f"cannot be told apart from {board.index[1]}." in words
    assert "It is better than lr=1e-4 and lr=1e-5." in words
    assert "8 validation scenes" in words
    assert sweep.leaderboard("recall").columns[0] == "pixel_recall"


def test_words_for_one_and_for_a_clear_winner(tmp_path, queue):
    sweep = start(tmp_path, grid(lr=[1e-2, 1e-4]), BASE)
    finish(sweep.runs()["lr=1e-2"], scenes(0.9), lr=1e-2)
    alone = in_words(sweep.leaderboard())
    assert "told apart" not in alone and "better" not in alone
    finish(sweep.runs()["lr=1e-4"], scenes(0.5), lr=1e-4)
    both = in_words(sweep.leaderboard())
    assert "told apart" not in both and both.endswith("It is better than lr=1e-4.")

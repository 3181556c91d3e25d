"""Lightning's loop learns what the engine's learns, is written down, and leaves a run like any other."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import torchmetrics.classification as tm
from stock_configs import pipeline, random_windows, solver

from rvtutorial import engine, viz
from rvtutorial.config import get_config
from rvtutorial.core.records import read_json
from rvtutorial.course import training
from rvtutorial.course.training import EpochScores, LoopSettings
from rvtutorial.engine.learner import Interrupted
from rvtutorial.metrics.calibration import LEVELS
from rvtutorial.runs import Run

NAMES = ["roof", "road", "ground", "null"]


def settings(data, folder, epochs=3, batch_sz=4, augment=(), **parts):
    "Twelve chips of two scenes an epoch, a network without normalisation."
    return pipeline(
        data,
        folder,
        windows=random_windows(padding=0),
        solver=solver(num_epochs=epochs, batch_sz=batch_sz, **parts),
        loader=dict(augmentors=list(augment), img_channels=3),
    )


def train(config, commands=("train",), **more):
    how = dict(precision="float32", progress=False, wandb="off") | more
    return Run(training.train(config, list(commands), **how))


def weights(run, name="last-model.pth"):
    return torch.load(run.path / "train" / name, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


def near(one, other, most=1e-3):
    return all(float((one[k] - other[k]).abs().max()) < most for k in one)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    "A run that Lightning trained, with all its stages."
    folder = tmp_path_factory.mktemp("lightning") / "run"
    config = settings(data, folder)
    every = ["train", "predict", "eval", "bundle"]
    return train(config, every, wandb="offline", train_scores=True)


# --- scores of an epoch


def logits_of(classes=4, seed=0, chips=6, size=24):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (chips, size, size), generator=random)
    logits = torch.randn(chips, classes, size, size, generator=random)
    seen = torch.nn.functional.one_hot(labels, classes).permute(0, 3, 1, 2)
    logits += 1.3 * seen
    logits[:, -1] = -1e4  # null never wins
    return logits, labels


def coded(scores):
    "Scores at the levels that the counts know."
    levels = torch.from_numpy(LEVELS["float"])
    place = torch.searchsorted((levels[1:] + levels[:-1]) / 2, scores.double())
    return levels[place]


@pytest.mark.parametrize("ignored", [3, None])
def test_scores_of_an_epoch_are_those_of_torchmetrics(ignored):
    batches = [logits_of(seed=i) for i in range(5)]
    mine = EpochScores(NAMES, ignored)
    for logits, labels in batches:
        mine.add(logits, labels, 0.5)
    found = mine.values()
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    scores, said = coded(logits.softmax(1)), logits.argmax(1)
    how = dict(num_classes=4, ignore_index=ignored)
    kinds = dict(accuracy=tm.MulticlassAccuracy, iou=tm.MulticlassJaccardIndex)
    kinds |= dict(f1=tm.MulticlassF1Score)
    kept = NAMES[:3] if ignored else NAMES
    for name, kind in kinds.items():
        each = kind(**how, average="none")(said, labels)
        for label, value in zip(kept, each, strict=False):
            assert found[f"{label}_{name}"] == pytest.approx(float(value), abs=1e-6)
        mean = each[: len(kept)].mean()
        assert found[f"macro_{name}"] == pytest.approx(float(mean), abs=1e-6)
    each = tm.MulticlassAUROC(**how, average="none")(scores.float(), labels)
    for label, value in zip(kept, each, strict=False):
        assert found[f"{label}_auc"] == pytest.approx(float(value), abs=1e-6)
    overall = tm.MulticlassAccuracy(**how, average="micro")(said, labels)
    assert found["accuracy"] == pytest.approx(float(overall), abs=1e-6)
    assert found["loss"] == 0.5


def test_the_memory_of_an_epoch_does_not_grow():
    import tracemalloc

    mine = EpochScores(NAMES, 3)
    mine.add(*logits_of())

    def held():
        tracemalloc.start()
        for _ in range(3):
            mine.add(*logits_of())
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size, mine.tally.counts.nbytes + mine.matrix.nbytes

    one = held()
    for _ in range(40):
        mine.add(*logits_of())
    other = held()
    assert one[1] == other[1] and abs(other[0] - one[0]) < 50_000


def test_a_class_without_pixels_has_no_score():
    mine = EpochScores(NAMES, 3)
    logits, labels = logits_of()
    logits[:, 1], labels[labels == 1] = -1e4, 0
    mine.add(logits, labels)
    found = mine.values()
    assert np.isnan(found["road_iou"]) and np.isnan(found["road_auc"])
    assert found["macro_iou"] == np.mean([found["roof_iou"], found["ground_iou"]])
    empty = EpochScores(NAMES, 3).values()
    assert all(np.isnan(value) for value in empty.values())


# --- the same training as the engine's


@pytest.mark.parametrize("one_cycle", [True, False])
def test_the_loss_is_that_of_the_engine(one_cycle, data, tmp_path):
    how = dict(one_cycle=one_cycle, augment=("HorizontalFlip", "RandomRotate90"))
    config = settings(data, tmp_path / "engine", **how)
    engine.run(config, ["train"], precision="float32", progress=False)
    engines = Run(tmp_path / "engine").log()
    mine = train(settings(data, tmp_path / "lightning", **how), checkpoint="last")
    mine = mine.log()
    assert len(mine) == 3
    for column in ("train_loss", "val_loss", "building_f1"):
        assert np.allclose(engines[column], mine[column], atol=1e-5), column
    assert near(weights(Run(tmp_path / "engine")), weights(Run(tmp_path / "lightning")))


def test_light_and_sharpness_vary_as_in_the_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("RVTUTORIAL_HOME", str(tmp_path))  # where scenes are made
    logs = {}
    for name in ("engine", "lightning"):
        how = dict(jitter=0.3, noise=0.1, blur=1.5, optimizer="sgd", lr=0.01)
        how |= dict(preset="smoke", precision="float32", checkpoint="last")
        config = get_config("inprocess", tmp_path / name, **how)
        if name == "engine":
            engine.run(config, ["train"], progress=False)
        else:
            train(config, checkpoint="last")
        logs[name] = Run(tmp_path / name).log()
    assert np.allclose(
        logs["engine"].train_loss, logs["lightning"].train_loss, atol=1e-5
    )


def test_gradients_of_several_batches_make_one_step(data, tmp_path):
    large = train(settings(data, tmp_path / "large", one_cycle=False))
    how = dict(batch_sz=2, one_cycle=False)
    small = train(settings(data, tmp_path / "small", **how), accumulate=2)
    assert near(weights(large), weights(small), 1e-5)
    alone = train(settings(data, tmp_path / "alone", **how))
    assert not near(weights(large), weights(alone), 1e-3)


def test_the_schedule_ends_with_the_training(data, tmp_path):
    "It has as many steps as the optimizer makes, not as there are batches."
    config = settings(data, tmp_path / "run", epochs=4, batch_sz=2)
    run = train(config, accumulate=3)
    rates = pd.concat(
        pd.read_csv(path) for path in run.path.glob("train/lightning/*/metrics.csv")
    )
    rates = rates.filter(like="lr-").stack()
    assert rates.max() == pytest.approx(1e-2, rel=0.2)
    assert rates.iloc[0] < 3e-3 and rates.iloc[-1] < 5e-3


@pytest.mark.parametrize(
    ("batches", "accumulate", "steps"), [(20, 8, 3), (12, 4, 3), (5, 1, 5)]
)
def test_the_schedule_plans_the_steps_that_are_made(
    batches, accumulate, steps, data, tmp_path
):
    config = settings(data, tmp_path / "run", epochs=4, batch_sz=2)
    config.backend.data.sampling.max_windows = batches  # of each of two scenes
    segmenter, made = training.parts(config, accumulate=accumulate)
    assert len(made.train) == batches
    cycle = segmenter.schedules[0]["scheduler"]
    assert cycle.total_size == 4 * steps
    rates = []
    for _ in range(4 * steps):
        rates.append(cycle.get_last_lr()[0])
        segmenter.optimizer.step()
        cycle.step()
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)  # it does not start again


@pytest.mark.parametrize("chips", range(2, 14))
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_all_processes_have_as_many_batches(chips, world, train, monkeypatch):
    monkeypatch.setattr(
        "rvtutorial.engine.batches._plan", lambda dataset, *key, **more: [*dataset]
    )
    seen = []
    for rank in range(world):
        loader = training._SharedLoader([*range(chips)], 2 * world, 0, train=train)
        loader.rank, loader.world = rank, world
        seen.append(loader.items(0))
        assert len(seen[-1]) == len(loader)
    assert len({len(some) for some in seen}) == 1
    assert all(batch for some in seen for batch in some)
    if not train and chips >= world:
        assert sorted(c for some in seen for batch in some for c in batch) == [
            *range(chips)
        ]


def test_too_few_chips_for_all_processes_are_refused(data, tmp_path):
    config = settings(data, tmp_path / "run")
    config.backend.data.sampling.max_windows = 1  # of each of two scenes
    with pytest.raises(ValueError, match="2 chips of split train are too few for 2"):
        training.parts(config, devices=2, accelerator="cpu")


def test_an_odd_number_of_chips_and_no_seed(data, tmp_path, finished):
    "Several processes draw the same, begin with the same weights, and all end."
    config = settings(data, tmp_path / "run", epochs=1, batch_sz=2, lr=1e-9)
    config.backend.data.sampling.max_windows = 5  # one scene of validation
    config.source_bundle_uri = str(finished.path / "train" / "model-bundle.zip")
    run = train(config, devices=2, accelerator="cpu", seed=None)
    assert isinstance(read_json(run.path / "train" / "fit.json")["seed"], int)
    assert near(weights(run), weights(finished, "best-model.pth"), 1e-6)
    assert not (run.path / "train" / "fit-weights.pth").exists()


def test_processes_that_do_not_end_are_killed(data, tmp_path, monkeypatch):
    deaf = tmp_path / "python"
    deaf.write_text(
        "#!/bin/sh\ntrap '' TERM\necho $$ > $0.pid\nsleep 100 & wait; sleep 100\n"
    )
    deaf.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(deaf))
    monkeypatch.setattr(training, "_PATIENCE", 0.5)
    note = tmp_path / "python.pid"

    def interrupt():
        while not note.exists() or not note.read_text().strip():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        train(settings(data, tmp_path / "run"), devices=2, accelerator="cpu")
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_process_ends_when_the_one_that_started_it_is_gone(tmp_path):
    child = "import os, time\nfrom rvtutorial.course import training\n"
    child += (
        "training._end_with_parent()\nprint(os.getpid(), flush=True)\ntime.sleep(300)"
    )
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    )
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        number = int(started.stdout.readline())
        started.kill()
        end = time.time() + 60
        while os.path.exists(f"/proc/{number}/fd/1") and time.time() < end:
            time.sleep(0.1)
    assert time.time() < end


def test_two_processes_equal_one_with_batches_twice_as_large(data, tmp_path):
    one = train(settings(data, tmp_path / "one", batch_sz=4), checkpoint="last")
    how = dict(devices=2, accelerator="cpu", checkpoint="last", monitor="macro_iou")
    two = train(settings(data, tmp_path / "two", batch_sz=2), **how)
    first, second = one.log(), two.log()
    assert np.allclose(first.train_loss, second.train_loss, atol=1e-3)
    assert np.allclose(first.val_loss, second.val_loss, atol=1e-3)
    assert np.allclose(first.building_iou, second.building_iou, atol=1e-3)
    assert np.allclose(first.building_auc, second.building_auc, atol=1e-3)
    assert near(weights(one), weights(two))


def test_a_lone_buffer_lies_in_memory_as_processes_exchange_it():
    network = torch.nn.Conv2d(3, 2, 1)
    network.register_buffer("shift", torch.zeros(1, 2, 1, 1))
    network.to(memory_format=torch.channels_last)
    assert network.shift.stride() != torch.zeros(1, 2, 1, 1).stride()
    training.Segmenter(network, ["a", "b"])
    assert network.shift.stride() == torch.zeros(1, 2, 1, 1).stride()


def test_processes_that_fail_say_why(data, tmp_path):
    config = settings(data, tmp_path / "two", epochs=2)
    config.backend.solver.lr = 1e30
    with pytest.raises(RuntimeError, match="(?s)2 processes.*training diverged"):
        train(config, devices=2, accelerator="cpu")


def test_raster_visions_own_data_sets(data, tmp_path):
    run = train(settings(data, tmp_path / "run", epochs=2), batches="raster_vision")
    assert len(run.log()) == 2 and run.log().train_loss.iloc[-1] < 2


def test_module_and_data_module_for_a_trainer_of_ones_own(data, tmp_path):
    segmenter, batches = training.parts(settings(data, tmp_path / "run"))
    before = {k: v.clone() for k, v in segmenter.network.state_dict().items()}
    trainer = training.L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(segmenter, batches)
    after = segmenter.network.state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before)
    assert 0 <= trainer.callback_metrics["macro_iou"] <= 1


# --- what is written down


def test_a_run_like_any_other(finished, data, tmp_path):
    assert finished.state == "succeeded"
    assert [s["name"] for s in finished.manifest["went"]["stages"]] == [
        "train", "predict", "eval", "bundle",
    ]  # fmt: skip
    assert finished.results["validation"]["f1"] is not None
    board = viz.leaderboard({"one": finished.path})
    assert list(board.index) == ["one"]
    image = data / "own" / "s1" / "rgb.tif"
    table = engine.predict(finished.path, image, tmp_path / "maps", trust=True)
    assert len(table) == 1
    with rasterio.open(next((tmp_path / "maps").rglob("labels.tif"))) as file:
        assert file.read().any()


def test_the_bundle_holds_the_best_weights(finished, tmp_path):
    log = finished.log().set_index("epoch")
    best = finished.manifest["went"]["training"]["best"]
    assert best["epoch"] == log.val_loss.idxmin()
    assert best["value"] == pytest.approx(log.val_loss.min(), abs=1e-6)
    kept = torch.load(finished.path / "train/best.pt", weights_only=True)
    network = {
        k.removeprefix("network."): v
        for k, v in kept["state_dict"].items()
        if k.startswith("network.")
    }
    bundle = finished.path / "train/model-bundle.zip"
    shutil.unpack_archive(bundle, tmp_path / "open")
    model = torch.load(tmp_path / "open/model.pth", weights_only=True)
    assert same(network, model)


def test_csv_and_weights_and_biases_without_a_network(finished):
    rows = pd.read_csv(next(finished.path.glob("train/lightning/*/metrics.csv")))
    for name in (
        "train_loss",
        "val_loss",
        "macro_iou",
        "building_auc",
        "train_macro_f1",
    ):
        assert rows[name].notna().sum() == 3, name
    assert rows.filter(like="lr-").notna().any().any()
    (offline,) = finished.path.glob("wandb/offline-run-*")
    assert next(offline.glob("run-*.wandb")).stat().st_size > 1000
    assert not (finished.path / "checkpoint.pt").exists()


def test_the_log_begins_with_raster_visions_columns(finished):
    columns = list(finished.log())
    assert columns[:4] == ["epoch", "train_loss", "train_time", "val_loss"]
    assert "building_f1" in columns and "train_building_iou" in columns


def test_online_without_a_key_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match="needs a key.*wandb sync"):
        train(settings(data, tmp_path / "run"), wandb="online")
    assert not (tmp_path / "run").exists()


# --- going on, and ending early


def test_a_training_that_paused_goes_on_and_ends_the_same(data, tmp_path, finished):
    config = settings(data, tmp_path / "run")
    assert train(config, pause=1).state == "paused"
    assert len(Run(tmp_path / "run").log()) == 1
    train(config)
    assert same(weights(Run(tmp_path / "run")), weights(finished))
    assert list(Run(tmp_path / "run").log().epoch) == [0, 1, 2]


def test_a_paused_training_that_was_moved_knows_its_best(data, tmp_path):
    config = settings(data, tmp_path / "run", one_cycle=False)
    assert train(config, pause=1).state == "paused"
    best = torch.load(tmp_path / "run/train/best.pt", weights_only=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = settings(data, tmp_path / "moved", one_cycle=False)
    moved.backend.solver.lr = 1e-2
    state = torch.load(tmp_path / "moved/checkpoint.pt", weights_only=False)
    keeper = training._Kept(tmp_path / "moved/train/best.pt", "val_loss")
    keeper.load_state_dict(state["callbacks"][keeper.state_key])
    assert float(keeper.best_model_score) == pytest.approx(
        Run(tmp_path / "moved").log().val_loss[0]
    )
    assert keeper.best_model_path == str(tmp_path / "moved/train/best.pt")
    assert [*keeper.best_k_models] == [keeper.best_model_path] and best["epoch"] == 0


def test_validation_without_labels_is_refused(tmp_path):
    def loader(label):
        batch = torch.randn(2, 3, 8, 8), torch.full((2, 8, 8), label)
        return torch.utils.data.DataLoader([batch], batch_size=None)

    segmenter = training.Segmenter(
        torch.nn.Conv2d(3, 3, 1), ["a", "b", "null"], ignored=2
    )
    trainer = training.L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="no pixel of the validation scenes has a label"
    ):
        trainer.fit(segmenter, training.Batches(loader(0), loader(2)))


def test_the_same_training_in_two_folders_is_two_runs_of_weights_and_biases(
    finished, data, tmp_path
):
    (first,) = finished.path.glob("wandb/offline-run-*/run-*.wandb")
    again = train(settings(data, tmp_path / "run"), wandb="offline", train_scores=True)
    (second,) = again.path.glob("wandb/offline-run-*/run-*.wandb")
    assert first.name == f"run-{finished.manifest['went']['wandb']}.wandb"
    assert first.name != second.name


def test_a_signal_ends_it_and_the_last_whole_epoch_is_kept(data, tmp_path):
    config = settings(data, tmp_path / "run", epochs=6)
    log = tmp_path / "run" / "train" / "log.csv"

    def interrupt():
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        train(config)
    assert Run(tmp_path / "run").state == "interrupted"
    train(config)
    assert list(Run(tmp_path / "run").log().epoch) == list(range(6))
    whole = train(settings(data, tmp_path / "whole", epochs=6))
    assert same(weights(Run(tmp_path / "run")), weights(whole))


def test_it_stops_early(data, tmp_path):
    config = settings(data, tmp_path / "run", epochs=30, lr=0.3, one_cycle=False)
    run = train(config, patience=2, checkpoint="last")
    went = run.manifest["went"]["training"]
    assert went["stopped_early"] and went["epochs"] == len(run.log()) < 30
    assert went["best"]["epoch"] == went["epochs"] - 3


def test_mixed_precision(data, tmp_path):
    run = train(settings(data, tmp_path / "run"), precision="bfloat16")
    assert run.manifest["went"]["training"]["precision"] == "bfloat16"
    assert np.isfinite(run.log().val_loss).all()


# --- what is refused


def test_a_checkpoint_of_another_network_names_both(finished):
    other = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="tiny of 3 bands.*this is a stranger"):
        training.load_weights(other, finished.path / "train/best.pt", "a stranger")
    with pytest.raises(ValueError, match="is no checkpoint"):
        training.load_weights(other, finished.path / "run.json", "a stranger")


def test_another_training_in_the_same_folder_is_refused(data, tmp_path, finished):
    config = settings(data, finished.path)
    with pytest.raises(ValueError, match='"accumulate": 1.*"accumulate": 2'):
        train(config, accumulate=2)
    train(config)  # the same: nothing is left to do
    engine.run(settings(data, tmp_path / "engine"), ["train"], progress=False)
    with pytest.raises(ValueError, match="the engine's own loop"):
        train(settings(data, tmp_path / "engine"))
    half = settings(data, tmp_path / "half")
    train(half, pause=1)
    with pytest.raises(ValueError, match="of another training"):
        engine.run(half, ["train"], progress=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(accumulate=0), "accumulate .*greater than or equal to 1, got 0"),
        (dict(wandb="maybe"), "wandb .*'offline', 'online' or 'off', got 'maybe'"),
        (dict(device=2), "no setting 'device'.*devices"),
        (dict(devices=2, batches="raster_vision"), "2 processes share"),
        (dict(workers=2), "workers=2 would do nothing.*batches=raster_vision"),
    ],
)
def test_settings_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        LoopSettings.of(**given)


def test_what_is_watched_must_be_logged(data, tmp_path):
    with pytest.raises(ValueError, match="'validation_loss' is not logged.*val_loss"):
        train(settings(data, tmp_path / "run"), monitor="validation_loss")


def test_a_training_that_diverges_says_so(data, tmp_path):
    config = settings(data, tmp_path / "run")
    config.backend.solver.lr = 1e30
    with pytest.raises(ValueError, match="training diverged"):
        train(config)


def test_without_the_extra_it_says_what_to_install():
    code = "import importlib.util\nimportlib.util.find_spec = lambda name: None\n"
    code += "import rvtutorial.course.training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and 'pip install "rvtutorial[course]"' in done.stderr

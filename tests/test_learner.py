"""A training ends the same however often it is interrupted, and says what went wrong when it cannot go on."""

import gc
import io
import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
import weakref
import zipfile

import numpy as np
import pandas as pd
import pytest
import stock_configs
import torch
from rastervision.pytorch_learner import SemanticSegmentationLearner
from stock_configs import pipeline, random_windows, solver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import nn
from tqdm.auto import tqdm

from rvtutorial.core.progress import ProgressLine
from rvtutorial.engine import learner
from rvtutorial.engine.batches import BatchLoader, _plan, seed_everything
from rvtutorial.engine.learner import (
    Checkpoint,
    FastLearner,
    Interrupted,
    Options,
    PixelAugmentation,
    _blurred,
    _jittered,
    _noisy,
    _precision_of,
    _prepared,
    _random_state,
    _set_random_state,
    _slow_layers_in_float32,
    _Stop,
    _tell_epoch,
    _tell_step,
    quiet,
)


@pytest.fixture(autouse=True)
def names_in_order(monkeypatch):
    "Files of TensorBoard are sorted by name: within one second 10 would come before 9."
    monkeypatch.setattr(
        event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100)
    )


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    "The scenes of configurations as strangers write them."
    folder = stock_configs.make_data(tmp_path_factory.mktemp("zoo"))
    with stock_configs.programs():
        yield folder


def network():
    "Small, and with all that a training has to remember."
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Dropout2d(0.3),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )


def settings(zoo, folder, epochs=2, augmentors=("HorizontalFlip",), lr=1e-2, **backend):
    "The configuration of a learner: three batches of four chips an epoch."
    config = pipeline(
        zoo,
        folder,
        windows=random_windows(padding=0),
        solver=solver(num_epochs=epochs, batch_sz=4, lr=lr),
        loader=dict(augmentors=list(augmentors), img_channels=3),
        backend=backend,
    )
    config.update()
    return config.backend.get_learner_config(config)


def build(cfg, kind=FastLearner, net=network, **options):
    "A learner; the same weights every time."
    torch.manual_seed(0)
    options = dict(precision="float32") | options
    more = dict(options=Options(**options)) if issubclass(kind, FastLearner) else {}
    with quiet():
        folder = cfg.output_uri + "-tmp"
        os.makedirs(folder, exist_ok=True)
        return kind(cfg, tmp_dir=folder, model=net(), **more)


def kept_in(cfg, digest="one"):
    return Checkpoint(cfg.output_uri + ".pt", digest)


def weights(one):
    return {k: v.clone() for k, v in one.model.state_dict().items()}


def same(first, second):
    "Whether two nests of tensors and numbers are equal bit for bit."
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same(first[k], second[k]) for k in first
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def log_of(cfg):
    return pd.read_csv(f"{cfg.output_uri}/log.csv")


def to_the_end(make, cut):
    "Train, and go on with a new learner whenever `cut` stopped the one before."
    pieces = 0
    while True:
        assert not [t for t in threading.enumerate() if t.name == "batches"]
        one = make()
        cut(one, pieces)
        try:
            one.train()
            return one, pieces
        except Interrupted:
            pieces += 1
            assert pieces < 30


def always(one, piece):
    "As if a signal had come during each batch."
    one.options.stop.name = "SIGTERM"


# --- precision


def test_precision_is_what_the_hardware_multiplies(monkeypatch):
    assert _precision_of("float32") == torch.float32
    assert _precision_of("bfloat16") == torch.bfloat16
    for flags, expected in (
        ({"avx512_bf16", "fpu"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx512f", "avx2"}, torch.float32),
        (set(), torch.float32),
    ):
        monkeypatch.setattr(
            learner.Path, "read_text", lambda _, flags=flags: " ".join(flags)
        )
        assert _precision_of("auto") == expected
        assert _precision_of("float32") == torch.float32
    for native in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda native=native, **kw: native
        )
        expected = torch.bfloat16 if native else torch.float32
        assert _precision_of("auto", "cuda") == expected
    with pytest.raises(ValueError, match="auto, float32 or bfloat16, got 'half'"):
        _precision_of("half")


def test_short_numbers_reach_the_convolutions_only(zoo, tmp_path):
    cfg = settings(zoo, tmp_path)
    seen = []
    for precision in ("bfloat16", "float32"):
        one = build(cfg, precision=precision)
        one.model[4].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        x, y = next(iter(one.train_dl))
        out = one.forward(x)
        assert out.dtype == torch.float32
        one.train_step((x, y), 0)["train_loss"].backward()
        assert all(
            p.dtype == p.grad.dtype == torch.float32 for p in one.model.parameters()
        )
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


@pytest.mark.parametrize(
    "size, stride, slow", [(3, 1, False), (5, 1, True), (3, 2, True)]
)
def test_depthwise_layers_whose_gradients_are_slow(size, stride, slow):
    "They are trained in float32, and predict as before."
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 16, size, stride, size // 2, groups=16)
    x = torch.rand(2, 16, 12, 12).bfloat16()
    exact = layer(x.float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        short = layer(x)
        _slow_layers_in_float32(torch.nn.Sequential(layer))
        out = layer(x)
        with torch.inference_mode():
            assert torch.equal(layer(x), short)
    assert not torch.equal(short, exact)
    assert torch.equal(out, exact if slow else short)
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_light_and_contrast_vary_within_bounds():
    torch.manual_seed(0)
    x = torch.rand(400, 4, 8, 8)
    out = _jittered(x, 0.2)
    gain = out.std((2, 3)) / x.std((2, 3))
    assert gain.min() > 0.7 and gain.max() < 1.3
    assert gain.min() < 0.78 and gain.max() > 1.22
    light = (out.mean((2, 3)) - gain * x.mean((2, 3))) / x.std()
    assert light.abs().max() < 0.6 and light.abs().max() > 0.45
    assert 0.05 < (gain - gain.mean(1, keepdim=True)).abs().max() < 0.2  # by band
    assert light.mean().abs() < 0.03 and (gain.mean() - 1).abs() < 0.02


def test_noise_comes_to_half_of_the_chips():
    torch.manual_seed(0)
    x = torch.rand(400, 2, 16, 16)
    more = _noisy(x, 0.3) - x
    hit = (more != 0).flatten(1).any(1)
    assert 160 < hit.sum() < 240 and (more[hit] != 0).all()
    assert more[hit].std().item() == pytest.approx(0.3 * x.std().item(), rel=0.02)
    assert more.mean().abs() < 1e-3


def test_blur_comes_to_half_of_the_chips_and_keeps_the_light():
    torch.manual_seed(0)
    x = torch.rand(200, 2, 24, 24)
    out = _blurred(x, 2.0)
    hit = (out != x).flatten(1).any(1)
    assert 75 < hit.sum() < 125
    left = out[hit].std((2, 3)) / x[hit].std((2, 3))
    assert left.max() <= 1.001 and left.min() < 0.3 and left.mean() < 0.7
    assert (out.mean((2, 3)) - x.mean((2, 3))).abs().max() < 0.03
    edge = torch.zeros(1, 1, 64, 64)
    edge[..., 32:] = 1
    torch.manual_seed(3)  # one chip, which is chosen
    while (soft := _blurred(edge, 3.0)).equal(edge):
        pass
    assert soft[0, 0, 5].diff().ge(-1e-6).all() and soft[0, 0, 5, 31] < 0.5


def test_the_smallest_chip_takes_the_widest_blur():
    torch.manual_seed(1)
    assert _blurred(torch.rand(8, 3, 16, 16), 5.0).isfinite().all()


@pytest.mark.parametrize(
    "augmentation",
    [PixelAugmentation(0.3), PixelAugmentation(noise=0.2), PixelAugmentation(blur=2)],
)
def test_a_training_that_varies_chips_sees_other_ones(zoo, tmp_path, augmentation):
    cfg = settings(zoo, tmp_path)
    losses = []
    for how in (PixelAugmentation(), augmentation, augmentation):
        one = build(cfg, augmentation=how)
        batch = next(iter(one.train_dl))
        one.model.eval()
        with torch.inference_mode():
            losses.append(one.validate_step(batch, 0)["val_loss"].item())
        torch.manual_seed(0)
        losses.append(one.train_step(batch, 0)["train_loss"].item())
    assert losses[0] == losses[2] == losses[4]
    assert losses[1] != losses[3] == losses[5]


# --- being asked to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_raises_a_flag(number):
    before = [signal.getsignal(s) for s in _Stop.signals]
    with _Stop().listening() as stop:
        assert not stop
        stop.check()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop and stop.name == number.name
        with pytest.raises(Interrupted, match=f"stopped by {number.name}"):
            stop.check()
        with pytest.raises(Interrupted):  # asked twice is asked once
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            stop.check()
    assert [signal.getsignal(s) for s in _Stop.signals] == before


def test_the_second_interrupt_does_not_wait():
    with _Stop().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
    with _Stop().listening() as stop:  # one of each is not two
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.name == "SIGINT"


def test_other_threads_cannot_listen_and_do_not_fail():
    found = []

    def work():
        with _Stop().listening() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def interrupted():
    raise Interrupted("SIGTERM")


def test_an_interrupted_process_ends_with_its_own_code():
    child = multiprocessing.get_context("fork").Process(target=interrupted)
    child.start()
    child.join()
    assert child.exitcode == 75 == Interrupted.code_to_requeue


# --- checkpoints


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def test_generators_are_put_back():
    seed_everything(1, 2)
    state = _random_state()
    first = draws()
    assert draws() != first
    _set_random_state(state)
    assert draws() == first
    assert seed_everything(1, 2) != seed_everything(2, 1)
    seed_everything(1, 2)
    assert draws() == first


def test_a_checkpoint_gives_back_what_it_got(tmp_path):
    kept = Checkpoint(tmp_path / "a.pt", "abc")
    assert kept.load() is None
    seed_everything(3)
    kept.save(place={"epoch": 2}, losses=[0.5], parts={"x": torch.arange(3)})
    expected = draws()
    found = kept.load()
    _set_random_state(found["random"])
    assert draws() == expected
    assert found["place"] == {"epoch": 2} and found["losses"] == [0.5]
    assert torch.equal(found["parts"]["x"], torch.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]  # nothing half-written
    kept.remove()
    kept.remove()
    assert kept.load() is None


def test_a_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    Checkpoint(tmp_path / "a.pt", "abc").save()
    with pytest.raises(ValueError, match="abc.*xyz") as err:
        Checkpoint(tmp_path / "a.pt", "xyz").load()
    assert str(tmp_path / "a.pt") in str(err.value)
    monkeypatch.setattr(Checkpoint, "version", 3)
    with pytest.raises(ValueError, match="version 2.*version 3"):
        Checkpoint(tmp_path / "a.pt", "abc").load()


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "pickle"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    path = tmp_path / "a.pt"
    Checkpoint(path, "abc").save(x=torch.rand(1000))
    whole = path.read_bytes()
    if damage == "pickle":
        torch.save([1, 2], path)
    else:
        path.write_bytes(
            {"cut": whole[:-300], "foreign": b"hello", "empty": b""}[damage]
        )
    with pytest.raises(ValueError, match="cannot be read as a checkpoint") as err:
        Checkpoint(path, "abc").load()
    assert str(path) in str(err.value) and "first epoch" in str(err.value)


class Program:
    "What a stranger puts into a pickle: a command that runs when it is read."

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def first_version(path, digest="abc", **more):
    "A checkpoint as version 1 wrote it."
    numpy_state = np.random.get_state()
    state = {"python": random.getstate(), "numpy": numpy_state, "cuda": []}
    state |= {"torch": torch.get_rng_state()}
    about = {"version": 1, "digest": digest, "random": state}
    torch.save(more | about, path)


def test_reading_a_checkpoint_runs_nothing(tmp_path):
    "Neither of our version, with our digest beside it, nor of the first, nor of none."
    path, mark = tmp_path / "a.pt", tmp_path / "mark"
    Checkpoint(path, "abc").save(epoch=1)
    about = zipfile.ZipFile(path).comment
    for comment in (about, b"", b'{"version": 1}', b"nonsense"):
        first_version(path, epoch=Program(mark))
        with zipfile.ZipFile(path, "a") as file:
            file.comment = comment
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            Checkpoint(path, "abc").load()
        assert not mark.exists()
    first_version(path, epoch=Program(mark))
    Checkpoint(path, "abc", trust=True).load()
    assert mark.exists()  # so the program works, where it is trusted


def test_a_damaged_list_of_files_is_said_as_other_damage(tmp_path):
    path = tmp_path / "a.pt"
    Checkpoint(path, "abc").save(epoch=1)
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\xff\xff"))
    assert zipfile.is_zipfile(path) and not Checkpoint(path, "abc").too_old
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        Checkpoint(path, "abc").load()


def test_the_digest_is_looked_at_before_anything_is_unpickled(tmp_path, monkeypatch):
    Checkpoint(tmp_path / "a.pt", "abc").save(epoch=1)
    monkeypatch.setattr(learner.torch, "load", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match="abc.*xyz"):
        Checkpoint(tmp_path / "a.pt", "xyz").load()


def test_a_checkpoint_of_the_first_version_needs_trust(tmp_path):
    path = tmp_path / "a.pt"
    first_version(path, epoch=3)
    assert Checkpoint(path, "abc").too_old and not Checkpoint(path, "abc", True).too_old
    with pytest.raises(ValueError, match="trust=True"):
        Checkpoint(path, "abc").load()
    state = Checkpoint(path, "abc", trust=True).load()
    assert state["epoch"] == 3
    _set_random_state(state["random"])
    with pytest.raises(ValueError, match="is of another training.*abc.*xyz"):
        Checkpoint(path, "xyz", trust=True).load()
    Checkpoint(path, "abc").save(epoch=4)
    assert not Checkpoint(path, "abc").too_old
    assert not Checkpoint(tmp_path / "none.pt", "abc").too_old


def test_a_checkpoint_takes_plain_values_only(tmp_path):
    kept = Checkpoint(tmp_path / "a.pt", "abc")
    given = {"a": np.float64(1.5), "b": np.arange(3), "c": (1, [None, "x", True])}
    kept.save(place=given, parts={"m": network().state_dict()})
    found = kept.load()
    assert found["place"] == {"a": 1.5, "b": [0, 1, 2], "c": (1, [None, "x", True])}
    versions = network().state_dict()._metadata
    assert found["parts"]["m"]._metadata == versions
    with pytest.raises(TypeError, match=r"state\.place\.x\[1\] is a Program"):
        kept.save(place={"x": [0, Program(tmp_path)]})
    assert kept.load()["place"] == found["place"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path / "a.pt", "abc")
    kept.save(epoch=1)

    def broken(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learner.torch, "save", broken)
    with pytest.raises(OSError, match="space"):
        kept.save(epoch=2)
    monkeypatch.undo()
    assert kept.load()["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1


# --- options


def test_options_are_checked():
    with pytest.raises(ValueError, match="last, best or mean, got 'first'"):
        Options(keep="first")
    with pytest.raises(ValueError, match="1 epoch or more, got 0"):
        Options(patience=0)
    with pytest.raises(ValueError, match="auto, float32 or bfloat16"):
        Options(precision="half")
    loss, score = Options(), Options(monitor="building_f1")
    assert loss.better(1, 2) and not loss.better(2, 1) and not loss.better(1, 1)
    assert score.better(2, 1) and not score.better(1, 2)
    assert loss.better(1, None) and not loss.better(float("nan"), 2)
    assert not loss.better(None, None) and not loss.better(float("inf"), None)


# --- the same steps as stock


class WithMomentum:
    "Another optimizer; Adam makes much of rounding."

    def build_optimizer(self):
        return torch.optim.SGD(self.model.parameters(), lr=1e-2, momentum=0.9)


class Momentum(WithMomentum, FastLearner):
    "Ours."


class StockMomentum(WithMomentum, SemanticSegmentationLearner):
    "Raster Vision's."


def test_an_epoch_is_stocks(zoo, tmp_path):
    cfg = settings(zoo, tmp_path / "a")
    ours = build(cfg, Momentum, net=lambda: without_chance(network()))
    stock = build(
        settings(zoo, tmp_path / "b"),
        StockMomentum,
        net=lambda: without_chance(network()),
    )
    batches = [(x.clone(), y.clone()) for x, y in ours.train_dl.epoch(0)]
    valid = [(x.clone(), y.clone()) for x, y in ours.valid_dl]
    stock.train_dl = batches
    with quiet():
        theirs = stock.train_epoch(stock.opt, None, stock.step_scheduler)
        theirs |= stock.validate_epoch(valid)
    found = ours.train_epoch(ours.opt, None, ours.step_scheduler)
    found |= ours.validate_epoch(ours.valid_dl)
    times = {"train_time", "valid_time"}
    assert found.keys() == theirs.keys()
    for name in found.keys() - times:
        within = 1e-5 if "loss" in name else 2e-3  # a pixel may fall to the other class
        assert found[name] == pytest.approx(theirs[name], abs=within), name
    for name, values in weights(ours).items():
        torch.testing.assert_close(values, weights(stock)[name], rtol=1e-4, atol=1e-6)
    assert ours.opt.param_groups[0]["lr"] == stock.opt.param_groups[0]["lr"]


def without_chance(net):
    for part in net:
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    return net


def test_prepared_chips_are_those_of_training(zoo, tmp_path):
    for changes in ({}, dict(augmentors=["Blur"])):
        cfg = settings(zoo, tmp_path, **changes)
        one = build(cfg)
        dataset = one.valid_ds
        items = _plan(dataset, False, 0, 2)[:3]
        sources = [p.scene.raster_source for p in dataset.datasets]
        chips = np.stack([sources[i.part].get_chip(i.window) for i in items])
        x = next(iter(BatchLoader(dataset, 3, 0, train=False)))[0]
        found = _prepared(cfg.data, chips)
        torch.testing.assert_close(
            found, x if len(x) == 3 else x[:3], rtol=0, atol=1e-6
        )
        cfg.data.img_sz = 32
        assert _prepared(cfg.data, chips).shape == (3, 3, 32, 32)
        scores = one.scores(chips)
        assert scores.shape == (3, 3, 64, 64) and scores.dtype == np.float32
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


# --- a training in pieces


KINDS = {
    "recipe": (FastLearner, {}),
    "albumentations": (FastLearner, dict(augmentors=["Blur", "VerticalFlip"])),
    "momentum": (Momentum, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_in_pieces_ends_the_same(kind, zoo, tmp_path):
    made, changes = KINDS[kind]
    one_cfg, two_cfg = (
        settings(
            zoo,
            tmp_path / name,
            log_tensorboard=True,
            save_all_checkpoints=True,
            **changes,
        )
        for name in ("through", "pieces")
    )
    through = build(one_cfg, made)
    through.train()

    def make():
        torch.rand(5), np.random.rand(5)  # whatever happened before does not matter
        return build(two_cfg, made, checkpoint=kept_in(two_cfg), checkpoint_minutes=9)

    pieces, n = to_the_end(make, always)
    assert n == 8  # six batches, two epochs
    assert same(weights(through), weights(pieces))
    assert same(through.opt.state_dict(), pieces.opt.state_dict())
    assert through.opt.state  # there was something to remember
    logs = [
        log_of(c).drop(columns=["train_time", "valid_time"]) for c in (one_cfg, two_cfg)
    ]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert logs[0]["epoch"].tolist() == [0, 1]
    folders = [p.output_dir_local for p in (through, pieces)]
    for name in ("last-model.pth", "checkpoints/model-ckpt-epoch-0.pth"):
        first, second = (torch.load(f"{f}/{name}") for f in folders)
        assert same(first, second), name
    assert scalars(folders[0]) == scalars(folders[1])


def scalars(folder):
    "Values of TensorBoard's events, without times."
    events = EventAccumulator(f"{folder}/tb-logs").Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        found[name] = [(e.step, e.value) for e in events.Scalars(name)]
    assert found
    return found


def test_a_checkpoint_after_minutes_is_as_good(zoo, tmp_path):
    through = build(settings(zoo, tmp_path / "a"))
    through.train()
    cfg = settings(zoo, tmp_path / "b")
    one = build(cfg, checkpoint=kept_in(cfg), checkpoint_minutes=0)
    steps, step = [], one.step

    def killed(*args):  # as by SIGKILL: nothing is saved any more
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(1)
        return step(*args)

    one.step = killed
    with pytest.raises(KeyboardInterrupt):
        one.train()
    two = build(cfg, checkpoint=kept_in(cfg))
    assert (two.epoch, two.batch) == (1, 1)
    two.train()
    assert same(weights(through), weights(two))


@pytest.mark.parametrize(
    "moment", ["write_log", "save_weights", "save", "remember_best"]
)
def test_a_kill_between_the_files_of_an_epoch_does_no_harm(moment, zoo, tmp_path):
    changes = dict(save_all_checkpoints=True, log_tensorboard=True, epochs=3)
    ones, twos = (settings(zoo, tmp_path / n, **changes) for n in "ab")
    through = build(ones, keep="best")
    through.train()
    killed = build(twos, keep="best", checkpoint=kept_in(twos))
    usual, calls = getattr(killed, moment), []

    def dies(*args):
        if killed.epoch == (2 if moment == "save" else 1):
            calls.append(1)
            if moment != "write_log":
                raise KeyboardInterrupt
            usual(*args)
            raise KeyboardInterrupt
        return usual(*args)

    setattr(killed, moment, dies)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = build(twos, keep="best", checkpoint=kept_in(twos))
    assert again.epoch == 1
    again.train()
    assert calls and same(weights(through), weights(again))
    assert log_of(twos)["epoch"].tolist() == [0, 1, 2]
    assert through.best == again.best
    folders = [p.output_dir_local for p in (through, again)]
    for epoch in (0, 1):
        first, second = (
            torch.load(f"{f}/checkpoints/model-ckpt-epoch-{epoch}.pth") for f in folders
        )
        assert same(first, second), epoch
    assert scalars(folders[0]) == scalars(folders[1])


def test_a_finished_training_is_not_trained_again(zoo, tmp_path):
    cfg = settings(zoo, tmp_path)
    one = build(cfg, checkpoint=kept_in(cfg))
    one.train()
    two = build(cfg, checkpoint=kept_in(cfg))
    assert two.epoch == 2
    two.step = None  # may not be called
    two.train()
    assert same(weights(one), weights(two))
    assert len(log_of(cfg)) == 2


def test_without_a_seed_chance_decides(zoo, tmp_path):
    cfg = settings(zoo, tmp_path, epochs=1)
    found = []
    for _ in range(2):
        one = build(cfg, seed=None)
        torch.seed()
        one.train()
        found.append(weights(one))
    assert not same(*found)


# --- what goes wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lost_loss_names_its_place(value, zoo, tmp_path):
    cfg = settings(zoo, tmp_path, lr=0.125)
    one = build(cfg, checkpoint=kept_in(cfg))
    plain = one.train_step
    one.train_step = lambda batch, i: {
        "train_loss": plain(batch, i)["train_loss"]
        * (value if (one.epoch, one.batch) == (1, 1) else 1)
    }
    with pytest.raises(ValueError) as err:
        one.train()
    text = str(err.value)
    for part in (str(value), "batch 2 of epoch 2", "lr 0.125", str(kept_in(cfg).path)):
        assert part in text
    state = kept_in(cfg).load()
    assert state["place"]["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in state["parts"]["model"].values())


def test_before_the_first_checkpoint_none_is_named(zoo, tmp_path):
    cfg = settings(zoo, tmp_path)
    one = build(cfg, checkpoint=kept_in(cfg))
    one.train_step = lambda batch, i: {"train_loss": torch.tensor(float("nan"))}
    with pytest.raises(ValueError, match="diverged") as err:
        one.train()
    assert "holds" not in str(err.value)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step:UserWarning")
def test_weights_that_are_lost_are_not_kept(zoo, tmp_path):
    cfg = settings(zoo, tmp_path)
    one = build(cfg, checkpoint=kept_in(cfg), checkpoint_minutes=0)
    plain = one.opt.step

    def step(*args, **kwargs):
        plain(*args, **kwargs)
        if (one.epoch, one.batch) == (1, 1):
            with torch.no_grad():
                next(one.model.parameters()).mul_(float("nan"))

    one.opt.step = step
    with pytest.raises(ValueError, match="diverged at lr 0.01"):
        one.train()
    state = kept_in(cfg).load()
    assert (state["place"]["epoch"], state["place"]["batch"]) == (1, 1)
    assert all(torch.isfinite(v).all() for v in state["parts"]["model"].values())


class Hungry(nn.Module):
    "Runs out of memory above some chips."

    def __init__(self, most, body):
        super().__init__()
        self.most, self.body, self.asked, self.alive = most, body, [], []

    def forward(self, x):
        held = x * 1.0  # what a network keeps for its gradients
        gc.collect()
        self.asked.append(len(x))
        assert not any(a() is not None for a in self.alive), "memory was not freed"
        self.alive.append(weakref.ref(held))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.body(x)


@pytest.mark.parametrize(
    ("most", "text"),
    [
        (3, r"batch_sz 4 needs more memory than cpu has; 2 fits .* 64 x 64"),
        (1, r"batch_sz 4 needs more memory than cpu has; 1 fits"),
        (0, r"not even one chip of 64 x 64 pixels fits into the memory of cpu"),
    ],
)
def test_out_of_memory_names_what_fits(most, text, zoo, tmp_path):
    cfg = settings(zoo, tmp_path)
    one = build(cfg, net=lambda: Hungry(most, nn.Conv2d(3, 3, 1)))
    before = weights(one)
    with pytest.raises(RuntimeError, match=text):
        one.train()
    assert one.model.asked == {3: [4, 2], 1: [4, 2, 1], 0: [4, 2, 1]}[most]
    assert same(before, weights(one))


def test_out_of_memory_where_one_chip_cannot_be_normalised(zoo, tmp_path):
    body = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Upsample(64)
    )
    one = build(settings(zoo, tmp_path), net=lambda: Hungry(1, body))
    with pytest.raises(RuntimeError, match="not even|fits"):
        one.train()


def test_chips_without_labels_teach_nothing(zoo, tmp_path):
    cfg = settings(zoo, tmp_path, epochs=1)
    cfg.solver.ignore_class_index = -1
    one = build(cfg)
    null = cfg.data.num_classes - 1
    x = torch.rand(4, 3, 64, 64)
    y = torch.full((4, 64, 64), null)
    before = weights(one)
    one.step((x, y), one.opt, None)
    assert same(before, weights(one)) and one.losses == []
    y[0, 0, 0] = 0
    one.step((x, y), one.opt, None)
    assert len(one.losses) == 1 and np.isfinite(one.losses[0])
    one.train_dl.epoch = lambda *args: iter([(x, torch.full_like(y, null))])
    one.losses = []
    with pytest.raises(ValueError, match="no chip with a labelled pixel"):
        one.train_epoch(one.opt)


# --- best and early


def programmed(one, values):
    "Validation that says what we want."
    plain = one.validate_epoch

    def validate(dl):
        return plain(dl) | {"val_loss": values[one.epoch]}

    one.validate_epoch = validate
    return one


VALUES = [0.9, 0.5, 0.7, 0.6, 0.5, 0.1, 0.0]


def test_patience_ends_a_training_and_survives_an_interruption(zoo, tmp_path):
    cfg = settings(zoo, tmp_path / "a", epochs=7)
    one = programmed(build(cfg, patience=3), VALUES)
    one.train()
    assert one.epoch == 5 and one.best == {
        "epoch": 1,
        "value": 0.5,
        "monitor": "val_loss",
    }
    assert log_of(cfg)["val_loss"].tolist() == VALUES[:5]
    cfg = settings(zoo, tmp_path / "b", epochs=7)

    def make():
        return programmed(build(cfg, patience=3, checkpoint=kept_in(cfg)), VALUES)

    two, pieces = to_the_end(make, always)
    assert pieces > 5 and two.epoch == 5 and same(weights(one), weights(two))
    again = make()
    again.step = None
    again.train()  # has been settled
    cfg = settings(zoo, tmp_path / "c", epochs=4)
    three = programmed(build(cfg), VALUES)
    three.train()
    assert three.epoch == 4  # no patience asked for


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_bundle_has_the_weights_asked_for(keep, zoo, tmp_path):
    cfg = settings(zoo, tmp_path, epochs=4)
    one = programmed(build(cfg, keep=keep), VALUES)
    after, plain = {}, one.on_epoch_end

    def remember(epoch, metrics):
        after[epoch] = weights(one)
        plain(epoch, metrics)

    one.on_epoch_end = remember
    with quiet():
        one.main()
    expected = after[1 if keep == "best" else 3]
    with zipfile.ZipFile(f"{one.output_dir_local}/model-bundle.zip") as bundle:
        names = bundle.namelist()
        found = torch.load(io.BytesIO(bundle.read("model.pth")))
    assert same(expected, found)
    assert same(expected, torch.load(one.last_model_weights_path))
    assert "learner-config.json" in names
    assert not same(after[1], after[3])
    metrics = json.load(open(f"{one.output_dir_local}/valid_metrics.json"))
    if keep == "last":  # what the last epoch has measured is not measured again
        assert metrics["val_loss"] == VALUES[3]


def test_a_monitor_that_does_not_exist_is_an_error(zoo, tmp_path):
    one = build(settings(zoo, tmp_path), monitor="val_iou")
    with pytest.raises(
        ValueError, match="monitor must be one of .*val_loss.*'val_iou'"
    ):
        one.train()


def test_a_score_can_be_monitored(zoo, tmp_path):
    cfg = settings(zoo, tmp_path, epochs=3)
    one = build(cfg, monitor="avg_f1", keep="best")
    plain = one.validate_epoch
    one.validate_epoch = lambda dl: plain(dl) | {"avg_f1": [0.2, 0.8, 0.4][one.epoch]}
    one.train()
    assert one.best == {"epoch": 1, "value": 0.8, "monitor": "avg_f1"}


# --- several GPUs


def test_each_epoch_goes_through_the_loader_it_was_given():
    from rvtutorial.engine.pipeline import _OrderedDDPLearner

    one = _OrderedDDPLearner.__new__(_OrderedDDPLearner)
    seen = []
    one.model, one.device = nn.Conv2d(1, 1, 1), torch.device("cpu")
    one.train_step = lambda batch, i: (
        seen.append(batch[0].item()) or {"train_loss": one.model(batch[0]).sum()}
    )
    one.ddp_rank, one.train_end = None, lambda outputs: {"train_loss": 0.0}
    own, given = ([(torch.full((1, 1, 1, 1), v), torch.zeros(1))] for v in (1.0, 2.0))
    one.train_dl = own
    optimizer = torch.optim.SGD(one.model.parameters(), lr=0.1)
    one.train_epoch(optimizer=optimizer, dataloader=given, step_scheduler=None)
    assert seen == [2.0] and one.train_dl is own
    one.train_epoch(optimizer=optimizer)
    assert seen == [2.0, 1.0]
    seen.clear()
    stock = SemanticSegmentationLearner.train_epoch
    stock(one, optimizer=optimizer, dataloader=given)
    assert seen == [1.0]  # the fault; when this fails, stock has been mended
    with pytest.raises(ZeroDivisionError):
        one.train_step = lambda *args: 1 / 0
        one.train_epoch(optimizer=optimizer, dataloader=given)
    assert one.train_dl is own


# --- what is said


def test_progress_is_one_line_an_epoch():
    lines = []
    line = ProgressLine(4, lines.append, every=30)
    _tell_step(line, 0, 0.5, 0.7)
    assert not lines
    line.start_t -= 20
    metrics = {"train_loss": 0.61, "val_loss": 0.55, "avg_f1": 0.1, "building_f1": 0.4}
    _tell_epoch(line, 0, metrics)
    assert lines == [
        "epoch 1/4  loss 0.610, validation 0.550  building F1 0.400  "
        "00:20 passed, 01:00 left"
    ]
    line.last_print_t -= 31
    _tell_step(line, 1, 0.5, 0.7)
    _tell_step(line, 1, 0.6, 0.7)
    assert len(lines) == 2 and lines[1].startswith("epoch 2/4 (50%)  loss 0.700")
    line.close()
    assert len(lines) == 2  # nothing is wiped


def test_quiet_keeps_bars_and_prints_and_nothing_else(capsys):
    log = logging.getLogger("rastervision")
    level = log.level
    with pytest.raises(KeyError), quiet():
        print("out")
        list(tqdm(range(3)))
        log.warning("not this")
        warnings.warn("nor this", stacklevel=1)
        raise KeyError
    assert capsys.readouterr() == ("", "")
    assert log.level == level
    list(tqdm(range(3)))
    print("out")
    found = capsys.readouterr()
    assert found.out == "out\n" and "3/3" in found.err


def test_packing(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.txt").write_text("1")
    (tmp_path / "a" / "b" / "y.txt").write_text("2")
    FastLearner.pack(tmp_path / "a", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as bundle:
        assert bundle.namelist() == ["b/y.txt", "x.txt"]
        assert bundle.read("b/y.txt") == b"2" and bundle.testzip() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.zip"]

"""The probe of the machine, the count of operations, the meter and its one sentence."""

import json
import threading
import time

import pytest
import torch
from pace import pace
from torch import nn

from rvtutorial.engine import speed

CPU = torch.float32


class Normalised(nn.Module):
    "A network with buffers and random numbers; real numbers only, if asked."

    def __init__(self, real=False, packed=False, fails=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head = nn.Conv2d(8, 2, 1)
        self.real, self.packed, self.fails = real, packed, fails

    def forward(self, x):
        if self.fails:
            raise RuntimeError("somebody else's network")
        x = self.drop(self.norm(self.conv(x)))
        if self.real and x.mean().item() > 1e9:  # meta tensors have no numbers
            return x
        out = self.head(x)
        return {"out": out, "aux": (out,)} if self.packed else out


FORWARD = 2 * 16 * 24 * (3 * 8 * 9 + 8 * 2)  # of one chip of 16 x 24 pixels
BACKWARD = 2 * 16 * 24 * (3 * 8 * 9 + 2 * 8 * 2)  # the image needs no gradient


# the machine


@pytest.fixture
def fresh():
    "Forget what was measured."
    kept = dict(speed._peaks)
    speed._peaks.clear()
    yield
    speed._peaks.clear()
    speed._peaks.update(kept)


def test_the_probe_measures_and_remembers(fresh):
    found = speed._peak("cpu", CPU, seconds=0.2)
    assert set(found) == {"matmul", "conv", "best"}
    assert found["best"] == max(found["matmul"], found["conv"]) > 0.1
    start = time.perf_counter()
    assert speed._peak("cpu", CPU, 0.5) == found
    assert time.perf_counter() - start < 0.01 * pace()
    found["best"] = 0
    assert (
        speed._peak("cpu", CPU, 0.5)["best"] > 0
    )  # what one caller does is not remembered
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_is_short(fresh, dtype):
    start = time.process_time()
    speed._peak("cpu", dtype, 0.5)
    # processor seconds, for the machine may be busy
    assert time.process_time() - start < 1.5 * pace() * torch.get_num_threads()


def test_the_probe_agrees_with_a_product_of_our_own(fresh):
    a = torch.rand(700, 700)
    a @ a

    def rate():
        start = time.perf_counter()
        a @ a
        return 2 * 700**3 / (time.perf_counter() - start) / 1e9

    ours = max(rate() for _ in range(20))
    assert ours / 4 < speed._peak("cpu", CPU, 0.5)["matmul"] < ours * 4


def test_the_probe_leaves_the_process_as_it_was(fresh):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        speed._peak("cpu", CPU, seconds=0.05)
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == threads
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_are_not_drawn(fresh):
    before = torch.get_rng_state()
    speed._peak("cpu", CPU, seconds=0.05)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_run_here_is_zero(fresh, monkeypatch):
    def broken(*args):
        raise RuntimeError("not implemented")

    monkeypatch.setattr(speed, "_conv", broken)
    found = speed._peak("cpu", CPU, seconds=0.05)
    assert found["conv"] == 0 and found["best"] == found["matmul"] > 0


# the network


def test_operations_of_a_prediction_and_a_step():
    assert speed._flops_of(Normalised(), (3, 16, 24), train=False) == FORWARD
    assert speed._flops_of(Normalised(), (3, 16, 24)) == FORWARD + BACKWARD


def test_frozen_layers_cost_less():
    network = Normalised()
    network.conv.weight.requires_grad_(False)
    spared = FORWARD + BACKWARD - speed._flops_of(network, (3, 16, 24))
    assert spared == 2 * 16 * 24 * 3 * 8 * 9  # the gradient of its weights
    assert not network.conv.weight.requires_grad


@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize("transposed", [False, True])
def test_channels_in_groups_cost_their_share(groups, transposed):
    "The depthwise convolution of many encoders, among others: counted by hand."
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    how = dict(kernel_size=2, stride=2, bias=False)
    conv = kind(32, 32, groups=groups, **how)
    network = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), conv)
    first = 2 * 16 * 24 * 3 * 32
    places = 16 * 24 if transposed else 8 * 12
    second = 2 * places * 2 * 2 * 32 * (32 // groups)
    assert speed._flops_of(network, (3, 16, 24), train=False) == first + second
    assert speed._flops_of(network, (3, 16, 24)) == 2 * first + 3 * second


@pytest.mark.parametrize("options", [{"real": True}, {"packed": True}])
def test_networks_of_other_kinds(options):
    network = Normalised(**options)
    assert speed._flops_of(network, (3, 16, 24)) == FORWARD + BACKWARD


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_counting_leaves_the_network_as_it_was(real, train):
    network = Normalised(real)
    network.norm.eval()  # frozen, as fine-tuning does it
    network(torch.rand(4, 3, 16, 24)).sum().backward()
    state = {n: t.clone() for n, t in network.state_dict().items()}
    slopes = [p.grad.clone() for p in network.parameters()]
    modes = [part.training for part in network.modules()]
    random = torch.get_rng_state()
    assert speed._flops_of(network, (3, 16, 24), train)
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    grads = [p.grad for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(grads, slopes, strict=True))
    assert [part.training for part in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_what_cannot_be_counted_is_none():
    assert speed._flops_of(Normalised(fails=True), (3, 16, 24)) is None
    assert speed._flops_of(Normalised(), (5, 16, 24)) is None  # bands that do not fit


def test_a_network_of_the_tutorial():
    from torchvision.models.segmentation import deeplabv3_resnet50

    network = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    ahead = speed._flops_of(network, (3, 128, 128), train=False)
    step = speed._flops_of(network, (3, 128, 128))
    assert 2.7 < step / ahead < 3
    # torchvision's own figure, at 520 pixels: 178.72 GMAC
    assert ahead / 128**2 == pytest.approx(2 * 178.72e9 / 520**2, rel=0.01)


# the seconds


@pytest.fixture
def clock(monkeypatch):
    "A clock that goes when it is told to."
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def pass_(seconds):
        now[0] += seconds

    return pass_


def metered(clock):
    meter = speed.Meter("train")

    def batches():
        for _ in range(4):
            clock(0.5)
            yield 8

    with meter:
        clock(1)  # in no part
        for n in meter.waiting(batches()):
            with meter.part("compute"):
                clock(1.5)
            meter.count(n, n * 50_000)
        with meter.part("checkpoint"):
            clock(1)
    return meter


def test_a_report(clock):
    report = metered(clock).report(peak={"best": 200.0}, flops=15e9)
    assert report.pop("in_words").startswith("Reading is the limit")
    assert report == {
        "name": "train",
        "seconds": 10.0,
        "chips": 32,
        "mpx": 1.6,
        "chips_per_s": 3.2,
        "mpx_per_s": 0.16,
        "waiting_share": 0.2,
        "gflops": 80.0,  # 32 chips x 15 in 6 seconds of computing
        "peak_gflops": 200.0,
        "peak_share": 0.4,
        "parts": {"wait": 2.0, "compute": 6.0, "checkpoint": 1.0},
    }
    assert json.loads(json.dumps(report)) == report


def test_what_is_unknown_is_none(clock):
    report = metered(clock).report()
    assert report["peak_share"] is report["gflops"] is report["peak_gflops"] is None
    assert metered(clock).report(peak=200.0)["peak_share"] is None
    assert metered(clock).report(flops=10)["peak_share"] is None
    assert metered(clock).report(peak=0.0, flops=10)["peak_share"] is None
    empty = speed.Meter().report(peak=1.0, flops=1)
    assert empty["chips_per_s"] is None and empty["chips"] == 0
    assert json.loads(json.dumps(empty)) == empty


def test_without_a_part_compute_the_rest_is_computing(clock):
    meter = speed.Meter()
    with meter:
        list(meter.waiting(clock(1) or i for i in range(2)))
        clock(8)
        meter.count(100, 0)
    report = meter.report(peak=50.0, flops=2e9)
    assert report["gflops"] == 25.0 and report["peak_share"] == 0.5


def test_a_meter_can_be_read_and_used_again(clock):
    meter = speed.Meter()
    with meter:
        clock(2)
        assert meter.report()["seconds"] == 2
    with meter:
        clock(3)
    assert meter.report()["seconds"] == 5


def test_a_part_that_fails_has_taken_its_time(clock):
    meter = speed.Meter()
    with pytest.raises(KeyError), meter, meter.part("read"):
        clock(2)
        raise KeyError
    assert meter.report()["parts"] == {"read": 2.0} and meter.report()["seconds"] == 2


def test_threads_may_add():
    meter = speed.Meter()

    def work():
        for _ in range(2000):
            meter.add("read", 1.0)
            meter.count(1, 2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.parts == {"read": 8000.0}
    assert (meter.chips, meter.pixels) == (8000, 16000)


def test_a_meter_costs_next_to_nothing():
    meter = speed.Meter()
    start = time.process_time()
    for _ in range(5000):
        with meter.part("compute"):
            pass
    assert (time.process_time() - start) / 5000 < 50e-6 * pace()


# one sentence


def report(seconds=10.0, peak_share=None, **parts):
    return {"seconds": seconds, "peak_share": peak_share, "parts": parts}


@pytest.mark.parametrize(
    "given, words",
    [
        (
            report(compute=9.6, wait=0.3, peak_share=0.41),
            "The network is the limit: 96% of the time computing, 3% waiting for data, "
            "at 41% of this machine's measured peak.",
        ),
        (
            report(compute=9.0),
            "The network is the limit: 90% of the time computing, 0% waiting for data.",
        ),
        (
            report(compute=9.0, peak_share=0.149),
            "The network is the limit: 90% of the time computing, 0% waiting for data, "
            "at 15% of this machine's measured peak; larger batches or mixed precision "
            "may use it better.",
        ),
        (
            report(compute=7.9, wait=2.0),
            "Reading is the limit: 20% of the time waiting for data; a larger cache "
            "budget or more reading ahead would help.",
        ),
        (report(compute=7.9, wait=1.99), "The network is the limit: 79%"),
        (
            report(compute=4, read=5),
            "Reading is the limit: 50% of the time; a larger",
        ),
        (report(compute=4, write=5), "Writing is the limit: 50% of the time"),
        (report(compute=3, checkpoint=5), "Saving checkpoints is the limit: 50%"),
        (report(compute=3, polygons=4), "The part 'polygons' is the limit: 40%"),
        (report(compute=5), "Unknown: 50% of the time went into no part"),
        (report(compute=5.01), "The network is the limit: 50%"),
        (report(compute=3, wait=2), "Reading is the limit: 20%"),
        (report(seconds=0.0), "Nothing was measured."),
        (report(), "Nothing was measured."),
    ],
)
def test_the_bottleneck(given, words):
    text = speed._bottleneck(given)
    assert text.startswith(words) and text.endswith(".")
    assert "\n" not in text


def test_the_thresholds_are_the_documented_ones():
    assert (speed.WAITING, speed.UNNAMED, speed.LOW) == (0.2, 0.5, 0.15)


def test_a_real_stage_is_named_right():
    meter = speed.Meter()
    with meter:
        for _ in meter.waiting(time.sleep(0.02) or i for i in range(5)):
            with meter.part("compute"):
                pass
    assert meter.report()["in_words"].startswith("Reading is the limit")

"""Speed report of a run: peak FLOP/s of the machine, FLOPs of a network, time by part, and the bottleneck in a sentence.

Written by hand: what `engine.run` writes about its speed into `run.json`. It stands apart
from the pipeline because the learner measures with it.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def _matmul(side, device, dtype, random):
    "A product of matrices, and its operations."
    a = torch.rand(side, side, generator=random, device=device).to(dtype)
    return lambda: a @ a, 2 * side**3


def _conv(batch, device, dtype, random, channels=256, side=32):
    "A 3x3 convolution of many channels, and its operations."
    x = torch.rand(batch, channels, side, side, generator=random, device=device)
    w = torch.rand(channels, channels, 3, 3, generator=random, device=device)
    x, w = (t.to(dtype, memory_format=torch.channels_last) for t in (x, w))
    work = 2 * batch * side**2 * channels**2 * 9
    return lambda: torch.conv2d(x, w, padding=1), work


def _seconds(call, device):
    "How long a call takes, until its result is there."
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _best(make, sizes, device, dtype, seconds):
    "The highest rate of a kind of work in the given time, in GFLOP/s."
    random = torch.Generator(device).manual_seed(0)
    end, best = time.perf_counter() + seconds, 0.0
    for size in sizes:
        try:
            call, work = make(size, device, dtype, random)
            call()  # the first call prepares
            took = _seconds(call, device)
        except RuntimeError:  # no memory, or no such numbers here
            break
        best = max(best, work / took)
        if took > seconds / 10 or time.perf_counter() > end:
            break
    while best and time.perf_counter() + took < end:
        best = max(best, work / _seconds(call, device))
    return best / 1e9


_peaks = {}


def _peak(device, dtype, seconds) -> dict:
    """The most that this process reaches here, in GFLOP/s: matmul, conv and best.

    Measured once per process; 0.0 for what does not run here. Random numbers, threads and
    autocast are left as they are.
    """
    device = torch.device(device)
    key = (device, dtype, torch.get_num_threads())
    if key not in _peaks:
        args = device, dtype, seconds / 2
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            rates = {
                "matmul": _best(_matmul, (256, 512, 1024, 2048, 4096, 8192), *args),
                "conv": _best(_conv, (1, 2, 4, 8, 16, 32, 64, 128, 256), *args),
            }
        if device.type == "cuda":
            torch.cuda.empty_cache()  # a training may need all of it
        rates = {name: round(rate, 1) for name, rate in rates.items()}
        _peaks[key] = {**rates, "best": max(rates.values())}
    return dict(_peaks[key])


def measure(
    model: torch.nn.Module,  # A network that takes a batch of chips
    shape: tuple[int, int, int],  # Bands, height, width of a chip
    device: str | torch.device,  # cpu or cuda
    dtype: torch.dtype,  # In which numbers
    seconds: float = 0.3,  # About how long it may take
) -> dict:  # flops of a chip in train and predict, peak of the machine in GFLOP/s
    "Count what a chip costs, and measure what the machine can do (1e9 operations a second)."
    flops = {w: _flops_of(model, shape, w == "train") for w in ("train", "predict")}
    return {"flops": flops, "peak": _peak(device, dtype, seconds)}


def chip_cost(
    model: torch.nn.Module,  # A network that takes a batch of chips
    shape: tuple[int, int, int],  # Bands, height, width of a chip
) -> dict | None:  # bytes and flops of a chip in training, bytes of the weights
    """What a chip costs a training; None where the network does not run without numbers.

    Bytes are of 32-bit numbers that a step keeps for its gradients, each storage once.
    Nothing is computed and no memory is taken: tensors have shapes and no values.
    """
    weights = {id(p.untyped_storage()): p.untyped_storage() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()  # held, so that no other gets its id
        kept[id(storage)] = storage
        return tensor

    flops = _flops_of(model, shape)
    modes = {part: part.training for part in model.modules()}
    try:
        model.train()
        state = {n: _copy_of(p, "meta") for n, p in model.named_parameters()}
        own = {id(p.untyped_storage()) for p in state.values()}
        state |= {n: _copy_of(b, "meta") for n, b in model.named_buffers()}
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks:
            out = functional_call(
                model, state, (torch.zeros(2, *shape, device="meta"),)
            )
            sum(t.float().sum() for t in _tensors(out))
    except Exception:  # whatever keeps somebody else's network from running
        return None
    finally:
        for part, mode in modes.items():
            part.training = mode
    chips = sum(s.nbytes() for key, s in kept.items() if key not in own)
    return {
        "bytes": chips / 2,
        "flops": flops or 0,
        "weights": sum(s.nbytes() for s in weights.values()),
    }


def _flops_of(model, shape, train=True) -> int | None:
    """Operations of one chip, None if they cannot be counted.

    A multiplication with an addition counts as two. The model, its buffers and random
    numbers stay as they are. Count before the network is compiled or wrapped.
    """
    modes = {part: part.training for part in model.modules()}
    try:
        model.train(train)
        for device in ("meta", None):  # None: where the model is, with real numbers
            try:
                return _counted(model, shape, train, device)
            except Exception:  # whatever keeps somebody else's network from running
                continue
        return None
    finally:
        for part, mode in modes.items():
            part.training = mode


def _counted(model, shape, train, device):
    "Operations per chip of two chips: one alone has no variance to normalise by."
    state = {n: _copy_of(p, device) for n, p in model.named_parameters()}
    state |= {n: _copy_of(b, device) for n, b in model.named_buffers()}
    place = next(iter(state.values()), torch.empty(0, device=device)).device
    chips = torch.zeros(2, *shape, device=place)
    backward = {torch.ops.aten.convolution_backward: _flops_back}
    counter = FlopCounterMode(display=False, custom_mapping=backward)
    forked = torch.random.fork_rng([place] if place.type == "cuda" else [])
    with forked, counter, torch.set_grad_enabled(train):
        out = functional_call(model, state, (chips,))
        if train:
            sum(t.float().sum() for t in _tensors(out)).backward()
    return counter.get_total_flops() // 2


def _flops_back(grad, x, weight, *how, **_) -> int:
    """Operations of a convolution's gradients, from the shapes that torch hands over.

    Torch's own count of the weights' gradient leaves out that channels may be in groups.
    """
    *_, transposed, _, _, wanted = how  # wanted: gradients of image, weights, bias
    places = math.prod((x if transposed else grad)[2:])
    return 2 * sum(wanted[:2]) * x[0] * places * math.prod(weight)


def _copy_of(tensor, device):
    "A tensor like another, for a pass that must not touch it."
    copied = torch.empty_like(tensor, device=device) if device else tensor.clone()
    return copied.detach().requires_grad_(tensor.requires_grad)


def _tensors(out):
    "The tensors of a network's answer, in whatever it packs them."
    if isinstance(out, torch.Tensor):
        return [out]
    parts = out.values() if isinstance(out, dict) else out
    return [tensor for part in parts for tensor in _tensors(part)]


class Meter:
    """Where the seconds of a stage go.

    `with meter:` frames the stage, `with meter.part("compute"):` a part of it, and
    `meter.waiting(batches)` hands out batches and times the waiting. Parts do not nest.
    """

    def __init__(self, name: str = ""):
        self.name, self.chips, self.pixels, self.seconds = name, 0, 0, 0.0
        self.parts: dict[str, float] = {}
        self._lock, self._begun = threading.Lock(), None

    def __enter__(self) -> "Meter":
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *error) -> None:
        self.seconds += time.perf_counter() - self._begun
        self._begun = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        "Time what happens inside, also when it fails."
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        "Add seconds that were measured otherwise; safe from any thread."
        with self._lock:
            self.parts[name] = self.parts.get(name, 0.0) + seconds

    def count(self, chips: int, pixels: int) -> None:
        "Add chips, and their pixels, that are done."
        with self._lock:
            self.chips += chips
            self.pixels += pixels

    def waiting(self, batches: Iterable) -> Iterator:
        "The same batches; the time until each of them comes is the part `wait`."
        batches, end = iter(batches), object()
        while True:
            with self.part("wait"):
                batch = next(batches, end)
            if batch is end:
                return
            yield batch

    def report(
        self,
        peak: dict | float | None = None,  # As `measure` found it, or GFLOP/s
        flops: int | None = None,  # Operations of a chip, as `measure` counts them
    ) -> dict:  # Plain numbers, for run.json; None where unknown
        """How fast the stage is, also in the middle of it.

        The share of the peak is that of the part `compute`. It is at most 1, though a
        count may say more: a convolution with wide gaps between its taps reaches beyond
        small images, and what falls outside is counted but not computed.
        """
        seconds, waited = self.seconds, self.parts.get("wait", 0.0)
        if self._begun is not None:
            seconds += time.perf_counter() - self._begun
        peak = peak["best"] if isinstance(peak, dict) else peak
        busy = self.parts.get("compute", seconds - waited)
        rate = self.chips * flops / 1e9 / busy if flops and busy > 0 else None
        found = {
            "name": self.name,
            "seconds": round(seconds, 3),
            "chips": self.chips,
            "mpx": round(self.pixels / 1e6, 3),
            "chips_per_s": _short(self.chips, seconds),
            "mpx_per_s": _short(self.pixels / 1e6, seconds),
            "waiting_share": _short(waited, seconds),
            "gflops": _short(rate),
            "peak_gflops": _short(peak),
            "peak_share": _short(min(rate / peak, 1.0)) if rate and peak else None,
            "parts": {name: round(part, 3) for name, part in self.parts.items()},
        }
        return found | {"in_words": _bottleneck(found)}


def _short(number, by=1.0):
    "A quotient with three digits that count; None where there is none."
    return float(f"{number / by:.3g}") if number is not None and by > 0 else None


WAITING = 0.2  # share of the time waiting, from which on reading is the limit
UNNAMED = 0.5  # share of the time outside all parts, from which on nobody knows
LOW = 0.15  # share of the peak, below which the hardware is busy but poorly used

LIMITS = {  # part: (what is the limit, what would help)
    "wait": ("Reading", "a larger cache budget or more reading ahead would help"),
    "read": ("Reading", "a larger cache budget or a faster disk would help"),
    "compute": ("The network", "larger batches or mixed precision may use it better"),
    "write": ("Writing", "leaving out the scores or a faster disk would help"),
    "checkpoint": ("Saving checkpoints", "saving more rarely would help"),
}


def _bottleneck(report) -> str:
    "What limits a stage, in a sentence, and what would help."
    total = report["seconds"]
    if not total or not report["parts"]:
        return "Nothing was measured."
    shares = {name: part / total for name, part in report["parts"].items()}
    unnamed = max(0.0, 1 - sum(shares.values()))
    name = max(shares, key=shares.get)
    if shares.get("wait", 0) >= WAITING:
        name = "wait"
    elif unnamed >= UNNAMED:
        return f"Unknown: {unnamed:.0%} of the time went into no part that is measured."
    what, advice = LIMITS.get(name, (f"The part {name!r}", "it deserves a closer look"))
    text = f"{what} is the limit: {shares[name]:.0%} of the time"
    if name != "compute":
        doing = " waiting for data" if name == "wait" else ""
        return f"{text}{doing}; {advice}."
    text += f" computing, {shares.get('wait', 0):.0%} waiting for data"
    reached = report.get("peak_share")
    if reached is not None:
        text += f", at {reached:.0%} of this machine's measured peak"
    low = reached is not None and reached < LOW
    return f"{text}; {advice}." if low else f"{text}."

"""Do the thresholds hold what they promise? One line for each bar.

    python tests/bench/thresholds.py [speed] [stream] [mixtures] [coverage]
    python tests/bench/thresholds.py search RUN   # a small run that kept its scores
    python tests/bench/thresholds.py regret RUN [RUN ...]

`speed`: 50 scenes of 650 x 650 pixels with 3 classes that are in memory: counting, then 10
metrics with 1,000 draws of scenes each, on one core (bar: 1.5 s). `stream`: counting of
2^28 pixels of one class, scaled to a nanosecond a pixel and class, and the peak of memory
(bars: 5 ns, 300 MB). `mixtures`: 3,000 random mixtures of Beta distributions, every
threshold against a bounded search (bar: never worse). `coverage`: 1,000 made-up data sets
of 50 scenes, how often the 95 % interval holds the score of the chosen threshold on very
many scenes (bar: 93 to 97 %). `search`: seconds of a search that predicts anew for every
try, against the counts (bar: 500 x). `regret`: tuned on validation scenes, scored on test
scenes against their own best. Without a word, the first four. CPU seconds of this process.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import sys
import time

import numpy as np
from scipy import stats

from rvtutorial.metrics.calibration import (
    LEVELS,
    ScoreCounts,
    ScoreTally,
    _count_score_arrays,
)
from rvtutorial.metrics.thresholds import Curves, Goal, _fit, _searched, tune

GOALS = ("iou", "f1", "f0.5", "f2", "accuracy", "balanced_accuracy", "mcc", "youden",
         "cost:1:5", "precision@recall>=0.8")  # fmt: skip
CLASSES = ("building", "road", "background")


def timed(work):
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def three_classes(seed, side=650):
    rng = np.random.default_rng(seed)
    wave = 3 * np.outer(np.sin(np.arange(side) / 17), np.sin(np.arange(side) / 23))
    logits = np.stack([wave, -wave - 1, np.full_like(wave, 0.5)])
    logits += rng.normal(0, 1, logits.shape) + 0.2 * rng.normal()
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=0).astype(np.uint8)
    scores = np.exp(logits)
    scores /= scores.sum(axis=0)
    return truth, scores.astype(np.float16).astype(np.float32)


def speed(scenes=50, turns=3):
    made = [three_classes(i) for i in range(4)]

    def count():
        parts = [
            _count_score_arrays(*made[i % 4], CLASSES, str(i)) for i in range(scenes)
        ]
        return ScoreCounts.joined(parts)

    def fit(counts):
        for name in CLASSES:
            curves = Curves(counts, name)
            for goal in GOALS:
                _fit(curves, Goal(goal), draws=1000)

    best = []
    for _ in range(turns):
        counts, first = timed(count)
        _, second = timed(lambda counts=counts: fit(counts))
        best.append((first + second, first, second))
    whole, first, second = min(best)
    print(
        f"speed: {whole:.2f} s (counting {first:.2f}, 3 classes x 10 metrics {second:.2f}); bar 1.5"
    )


def stream(pixels=2**28, block=2**20):
    rng = np.random.default_rng(0)
    score = rng.random((1, block)).astype(np.float16).astype(np.float32)
    truth = (rng.random(block) > score[0]).astype(np.uint8)
    tally, took = ScoreTally(("building", "background"), None, "ignore"), 0.0
    tally.kept = [0]
    for _ in range(pixels // block):
        _, seconds = timed(lambda: tally.add(truth, score))
        took += seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"stream: {1e9 * took / pixels:.2f} ns a pixel and class, {peak:.0f} MB; bars 5, 300"
    )


def mixture(rng, pixels=1e7, width=256):
    "Expected counts of a class: up to three Beta distributions each, 0.1 to 30 % of the pixels."
    found = np.zeros((1, 1, 2, width), np.uint32)
    edges = np.append(0, (np.arange(width) + 0.5) / (width - 1)).clip(0, 1)
    share = np.exp(rng.uniform(np.log(0.001), np.log(0.3)))
    for built, whole in ((1, share), (0, 1 - share)):
        for one in rng.dirichlet(np.ones(rng.integers(1, 4))):
            mean = rng.beta(2, 1.5) if built else rng.beta(0.6, 3)
            strength = np.exp(rng.uniform(1, 4))
            ends = mean * strength + 0.3, (1 - mean) * strength + 0.3
            cells = np.diff(stats.beta.cdf(edges, *ends))
            found[0, 0, built] += np.rint(pixels * whole * one * cells).astype(
                np.uint32
            )
    return Curves(ScoreCounts(found, ("made up",), ("building",)))


def mixtures(times=3000):
    rng, goal, lost, calls = np.random.default_rng(0), Goal("iou"), [], 0
    for _ in range(times):
        curves = mixture(rng)
        value = curves.values(goal)[0]
        x, tried = _searched(curves, goal, "micro")
        calls += len(tried)
        best = value[curves.best(goal)[0]]
        lost.append(best - value[curves.at(np.nextafter(x, 2))])
    lost = np.array(lost)
    shares = ", ".join(
        f"{100 * (lost > k).mean():.1f} % lose more than {k}"
        for k in (0.001, 0.01, 0.05)
    )
    print(
        f"mixtures: {shares}, worst {lost.max():.3f}, least {lost.min():.1g}, {calls / times:.1f} tries"
    )


def scenes_of(rng, n, pixels=2000, width=256):
    "Counts of scenes that are hard one by one, of different size and share."
    hard, share = rng.normal(0, 0.3, n), rng.lognormal(-1.6, 0.6, n).clip(0.02, 0.8)
    found, size = (
        np.zeros((n, 1, 2, width), np.uint32),
        rng.integers(pixels // 2, 2 * pixels, n),
    )
    for i in range(n):
        built = rng.random(size[i]) < share[i]
        logit = rng.normal(size=size[i]) + np.where(built, 1, -1) * (1 + hard[i])
        level = np.rint(255 / (1 + np.exp(-1.5 * logit))).astype(int)
        for kind in (0, 1):
            found[i, 0, kind] = np.bincount(level[built == kind], minlength=width)
    return ScoreCounts(found, tuple(map(str, range(n))), ("building",))


def coverage(sets=1000, scenes=50):
    rng = np.random.default_rng(1)
    big = Curves(scenes_of(rng, 20_000))
    goals = [
        Goal(name) for name in ("iou", "f1", "mcc", "cost:1:2", "precision@recall>=0.8")
    ]
    true, inside = {g.name: big.values(g)[0] for g in goals}, dict.fromkeys(goals, 0)
    for _ in range(sets):
        curves = Curves(scenes_of(rng, scenes))
        for goal in goals:
            one = _fit(curves, goal, draws=0)
            value = true[goal.name][big.at(one.threshold)]
            inside[goal] += one.value_low <= value <= one.value_high
    found = ", ".join(f"{g.name} {100 * n / sets:.1f} %" for g, n in inside.items())
    print(f"coverage of {sets} sets of {scenes} scenes: {found}; bar 93 to 97")


def search(run):
    "The search as it was: the network predicts the scenes anew for each try."
    import tempfile

    from rvtutorial import engine
    from rvtutorial.runs import Run

    run = Run(run)
    images = [str(run.image(scene)) for scene in run.scene_ids("validation")]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine.predict(run.path, images, folder, polygons=False, progress=False)
    once = time.perf_counter() - start
    counts = None
    from rvtutorial.metrics.leaderboard import scores_of

    counts, _ = timed(lambda: scores_of(run))
    start = time.perf_counter()
    made = tune(counts, draws=0)
    ours = time.perf_counter() - start
    tries = len(tune(counts, method="scipy", draws=0).thresholds["building"].history)
    print(f"search: {tries} tries x {once:.2f} s of prediction = {tries * once:.1f} s; every "
          f"threshold of the counts {ours:.4f} s: {tries * once / ours:.0f} x; {made!r}")  # fmt: skip


def regret(*runs):
    for run in runs:
        made = tune(run, "iou", draws=1000)
        found = made.on(run).iloc[0]
        print(f"regret of {run}: {found.regret:.4f} ({found.regret_low:.4f} to "
              f"{found.regret_high:.4f}); IoU {found.value:.3f}, best there {found.best:.3f}, "
              f"{found.scenes} test scenes")  # fmt: skip


if __name__ == "__main__":
    words = sys.argv[1:] or ["speed", "stream", "mixtures", "coverage"]
    assert len(LEVELS["uint8"]) == 256
    if words[0] in ("search", "regret"):
        globals()[words[0]](*words[1:])
    else:
        for word in words:
            {
                "speed": speed,
                "stream": stream,
                "mixtures": mixtures,
                "coverage": coverage,
            }[word]()

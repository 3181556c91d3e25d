"Thresholds from counts equal what trying every one of them gives, and what others compute."

import numpy as np
import pytest
from fake_runs import write_raster
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from rvtutorial.metrics.calibration import LEVELS, ScoreCounts, _count_score_arrays
from rvtutorial.metrics.leaderboard import LabelFolder, label_folder
from rvtutorial.metrics.thresholds import (
    Calibration,
    Curves,
    Decision,
    Goal,
    Tuned,
    tune,
)

NAMES = ("building", "background", "null")
GOALS = (
    "iou", "f1", "f2", "f0.5", "accuracy", "balanced_accuracy", "mcc", "youden",
    "cost:1:5", "cost:3:0.5", "precision@recall>=0.6", "recall@precision>=0.7",
    "specificity@recall>=0.5",
)  # fmt: skip
THEIRS = {
    "iou": sk.jaccard_score, "f1": sk.f1_score, "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score, "mcc": sk.matthews_corrcoef,
    "f2": lambda a, b: sk.fbeta_score(a, b, beta=2),
    "f0.5": lambda a, b: sk.fbeta_score(a, b, beta=0.5),
    "youden": lambda a, b: 2 * sk.balanced_accuracy_score(a, b) - 1,
    "cost:1:5": lambda a, b: ((~a & b).sum() + 5 * (a & ~b).sum()) / a.size,
    "cost:3:0.5": lambda a, b: (3 * (~a & b).sum() + 0.5 * (a & ~b).sum()) / a.size,
}  # fmt: skip
LIMITED = {"precision": sk.precision_score, "recall": sk.recall_score}
LIMITED["specificity"] = lambda a, b: (~a & ~b).sum() / max((~a).sum(), 1)


def scene(rng, pixels=60, levels=20, kind="uint8", absent=False):
    "Class numbers, some of them null, and scores with ties; some of floats are NaN."
    level = rng.integers(0, levels + 1, pixels) / levels
    truth = np.where(rng.random(pixels) < level, 0, 1)
    truth = np.where(rng.random(pixels) < 0.1, 2, truth)
    if absent:
        truth = np.where(truth == 0, 1, truth)
    scores = np.stack([level, 1 - level, np.zeros(pixels)])
    if kind == "uint8":
        return truth, np.rint(255 * scores).astype(np.uint8)
    scores = scores.astype(np.float16 if kind == "half" else np.float32)
    scores = scores.astype(np.float32)
    scores[:, rng.random(pixels) < 0.05] = np.nan
    return truth, scores


def on_grid(scores):
    "Scores as they are counted: of float32 the nearest of the stated levels."
    if scores.dtype == np.uint8:
        return scores / 255
    levels = LEVELS["float"]
    near = np.clip(np.searchsorted(levels, scores), 1, len(levels) - 1)
    below = scores - levels[near - 1] <= levels[near] - scores
    return np.where(np.isnan(scores), np.nan, levels[near - below])


def pixels_of(scenes, k=0):
    "Of each scene: which pixels are of class k, and their scores; what counts."
    found = []
    for truth, scores in scenes:
        seen = (truth != 2) & ~np.isnan(scores[k].astype(float))
        found.append((truth[seen] == k, on_grid(scores[k])[seen]))
    return found


def their_value(name, true, called):
    "A metric and how much it is allowed, by scikit-learn."
    with np.errstate(all="ignore"):
        if "@" not in name:
            return float(THEIRS[name](true, called)), 0.0
        first, _, rest = name.partition("@")
        other, _, least = rest.partition(">=")
        zero = {} if first == "specificity" else {"zero_division": 0}
        value = LIMITED[first](true, called, **zero)
        zero = {} if other == "specificity" else {"zero_division": 0}
        return float(value), LIMITED[other](true, called, **zero) - float(least)


def brute(name, scenes, over, k=0):
    "The best value over all distinct scores, and none called; None where nothing is allowed."
    parts = [(a, s) for a, s in pixels_of(scenes, k) if a.size]
    if over != "micro":
        needs_both = name in ("balanced_accuracy", "mcc", "youden") or "spec" in name
        plain = name == "accuracy" or name.startswith("cost")
        parts = [
            (a, s)
            for a, s in parts
            if plain or (a.any() and not (needs_both and a.all()))
        ]
    if not parts:
        return None  # no scene has what the score needs
    every = np.unique(np.concatenate([s for _, s in parts]))
    found = []
    for cut in [*every, np.inf]:
        if over == "micro":
            true = np.concatenate([a for a, _ in parts])
            called = np.concatenate([s >= cut for _, s in parts])
            value, spare = their_value(name, true, called)
        else:
            both = np.array([their_value(name, a, s >= cut) for a, s in parts])
            lower = name.startswith("cost")
            worst = both[:, 0].max() if lower else both[:, 0].min()
            value, spare = (
                both.mean(axis=0) if over == "mean" else (worst, both[:, 1].min())
            )
        if spare >= -1e-12:
            found.append(-value if name.startswith("cost") else value)
    if not found:
        return None
    return -max(found) if name.startswith("cost") else max(found)


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 2**31),
    st.sampled_from(GOALS),
    st.sampled_from(["micro", "mean", "worst"]),
    st.sampled_from(["uint8", "half", "float32"]),
)
@example(1633, "balanced_accuracy", "mean", "uint8")  # one pixel, a building
def test_the_optimum_equals_brute_force(seed, name, over, kind):
    rng = np.random.default_rng(seed)
    scenes = [
        scene(
            rng,
            int(rng.integers(1, 60)),
            int(rng.integers(1, 30)),
            kind,
            rng.random() < 0.2,
        )
        for _ in range(int(rng.integers(1, 5)))
    ]
    parts = pixels_of(scenes)
    assume(any(a.any() for a, _ in parts))
    counts = ScoreCounts.joined(
        [_count_score_arrays(t, s, NAMES, str(i)) for i, (t, s) in enumerate(scenes)]
    )
    found = tune(counts, name, over=over, draws=20, unscored="leave out").thresholds[
        "building"
    ]
    try:
        expected = brute(name, scenes, over)
    except ValueError:
        expected = None  # nowhere both kinds
    true = np.concatenate([a for a, _ in parts])
    both = name in ("balanced_accuracy", "mcc", "youden") or "spec" in name
    if expected is None or (both and true.all()):
        assert found.status == "undefined" and found.why and np.isnan(found.threshold)
        return
    assert found.value == pytest.approx(expected, abs=1e-12)
    # and with the threshold itself, more than and at least alike
    if over == "micro":
        given_scores = np.concatenate([s for _, s in parts])
        for called in (given_scores >= found.threshold, given_scores > found.threshold):
            if "@" not in name or their_value(name, true, called)[1] >= 0:
                assert their_value(name, true, called)[0] == pytest.approx(
                    expected, abs=1e-12
                )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from(GOALS),
    st.sampled_from(["micro", "mean", "worst"]),
)
def test_leaving_scenes_out_equals_doing_so(seed, name, over):
    "Of a jackknife: the optimum of the others, and its score on the scene that was left out."
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, 50, 12) for _ in range(6)]
    parts = [
        _count_score_arrays(t, s, NAMES, str(i)) for i, (t, s) in enumerate(scenes)
    ]
    counts = ScoreCounts.joined(parts)
    goal, curves = Goal(name), Curves(counts)
    assume(curves.best(goal, over) is not None)
    found = tune(counts, name, over=over, draws=0).thresholds["building"]
    few = curves.few(curves.at(found.threshold))
    from rvtutorial.metrics.thresholds import _redrawn

    drawn = _redrawn(few, goal, over, 1 - np.eye(6))
    for i in range(6):
        rest = counts.only([str(j) for j in range(6) if j != i])
        alone = Curves(rest)
        stretch = alone.best(goal, over)
        if stretch is None:
            assert drawn.best[i] == -1
            continue
        assert drawn.values[i] == pytest.approx(
            alone.values(goal, over)[0][stretch[0]], abs=1e-12
        )
        cut = few.cuts[drawn.best[i]]
        threshold = curves.threshold(cut, cut)[0]
        own = Curves(counts.only([str(i)]))
        if goal.counts(own.positives, own.negatives).all():
            value = own.values(goal, over)[0][own.at(threshold)]
            assert drawn.rest[i] == pytest.approx(value, abs=1e-12)


def test_many_levels_are_thinned_and_little_is_lost():
    parts = []
    for i in range(6):
        rng = np.random.default_rng(i)
        logit = rng.normal(-1, 2, 20_000)
        truth = np.where(rng.random(20_000) < 1 / (1 + np.exp(-logit)), 0, 1)
        one = 1 / (1 + np.exp(-2 * logit))
        parts.append(
            _count_score_arrays(truth, np.stack([one, 1 - one]), NAMES[:2], str(i))
        )
    counts = ScoreCounts.joined(parts)
    curves, goal = Curves(counts), Goal("iou")
    first, _ = curves.best(goal)
    few = curves.few(first)
    assert len(few.cuts) < 600 < len(curves.tp)
    assert np.array_equal(few.tp.sum(axis=0), curves.tp[few.cuts])
    assert np.array_equal(few.fp.sum(axis=0), curves.fp[few.cuts])
    found = tune(counts).thresholds["building"]
    assert found.threshold_low < found.threshold < found.threshold_high
    assert found.value_low < found.leave_one_out <= found.value < found.value_high
    assert abs(found.out_of_bag - found.value) < 0.005
    assert found.value_at_half < found.value and found.status == "ok"


@pytest.mark.parametrize(
    "name, words",
    [
        ("precision", "precision alone is highest where almost nothing"),
        ("recall", "recall alone is 1 where everything"),
        ("binary_cross_entropy", "does not depend on a threshold"),
        ("iuo", "did you mean 'iou'"),
        ("f0", "no metric 'f0'"),
        ("precision@precision>=0.5", "no metric"),
        ("precision@recall>=1.5", "no metric"),
        ("cost:1", "no metric"),
    ],
)
def test_other_metrics_are_refused_with_the_reason(name, words):
    with pytest.raises(ValueError, match=words):
        Goal(name)


def test_the_names_of_the_old_program_are_known():
    names = ("iou_score", "f1_score", "binary_accuracy_sm", "binary_accuracy_tfkeras")
    assert [Goal(n).name for n in names] == ["iou", "f1", "accuracy", "accuracy"]


def counts_of_levels(own, others, scenes=1):
    "ScoreCounts of one class from {level: pixels}, the same in every scene."
    found = np.zeros((scenes, 1, 2, 256), np.uint32)
    for kind, levels in ((1, own), (0, others)):
        for level, pixels in levels.items():
            found[:, 0, kind, level] = pixels
    return ScoreCounts(found, tuple(map(str, range(scenes))), ("building",))


def test_statuses():
    def status(*given, metric="iou"):
        return tune(counts_of_levels(*given), metric).thresholds["building"]

    assert status({200: 9, 120: 5}, {100: 9}).status == "ok"
    flat = status({255: 9}, {0: 9})
    assert (flat.status, flat.low, flat.high) == ("flat", 0.0, 1.0)
    assert flat.threshold == pytest.approx(0.5) and "as good" in flat.why
    everything = status({100: 9}, {100: 1})
    assert everything.status == "edge" and "every pixel" in everything.why
    nothing = status({100: 1}, {100: 9}, metric="accuracy")
    assert nothing.status == "edge" and "call none" in nothing.why
    assert nothing.threshold > 100 / 255
    sure = status({255: 1}, {255: 9}, metric="accuracy")
    assert sure.threshold == np.inf
    absent = status({}, {100: 9})
    assert absent.status == "undefined" and "none of 1 scenes has a pixel" in absent.why
    alone = status({100: 9}, {}, metric="mcc")
    assert alone.status == "undefined" and "all pixels are building" in alone.why
    unreached = status({100: 9}, {200: 99}, metric="recall@precision>=0.9")
    assert unreached.status == "undefined" and "no threshold reaches" in unreached.why
    made = tune(counts_of_levels({}, {100: 9}))
    assert made.undefined == ["building"] and np.isnan(made.value)
    assert not made.decision.thresholds


def test_one_scene_has_no_intervals_and_all_is_said():
    found = tune(counts_of_levels({200: 9, 120: 5}, {100: 9}))
    assert np.isnan(found.thresholds["building"].value_low)
    assert "building: 0.431" in repr(found) and "iou 1.000" in repr(found)
    assert found.table().loc["building", "pixels"] == 23


def test_a_search_by_trial_is_lost_where_there_are_two_hills():
    "Bright roofs, and few dark ones; car parks lie in between."
    own, others = {220: 300, 20: 700}, {150: 120, 5: 5000}
    counts = counts_of_levels(own, others)
    exact = tune(counts).thresholds["building"]
    tried = tune(counts, method="scipy").thresholds["building"]
    assert exact.value - tried.value > 0.1
    assert len(tried.history) >= 5 and min(v for _, v in tried.history) >= 0
    with pytest.raises(ValueError, match="method is one of exact, scipy"):
        tune(counts, method="golden")


def test_a_search_that_ends_where_nothing_is_allowed_says_so():
    counts = counts_of_levels({250: 1, 5: 9}, {250: 9, 3: 90})
    exact = tune(counts, "precision@recall>=0.9").thresholds["building"]
    assert exact.status == "ok" and exact.threshold < 0.1
    tried = tune(counts, "precision@recall>=0.9", method="scipy").thresholds["building"]
    assert tried.status == "undefined" and "lacks 0.9 of recall>=0.9" in tried.why
    assert np.isnan(tried.threshold) and len(tried.history) > 3


def test_scipy_finds_what_the_old_program_found():
    from scipy.optimize import minimize_scalar

    rng = np.random.default_rng(4)
    truth, scores = scene(rng, 5000, 200)
    counts = _count_score_arrays(truth, scores, NAMES)
    seen = truth != 2
    a, p = truth[seen] == 0, scores[0][seen] / 255

    def loss(t):
        return 1 - sk.jaccard_score(a, p > t, zero_division=0)

    theirs = minimize_scalar(
        loss, method="bounded", bounds=(0, 1), options=dict(maxiter=500, xatol=1e-2)
    )
    ours = tune(counts, method="scipy").thresholds["building"]
    assert ours.threshold == pytest.approx(theirs.x, abs=1e-12)
    assert len(ours.history) == theirs.nfev
    assert ours.value == pytest.approx(1 - theirs.fun, abs=1e-12)


def test_the_test_split_wants_a_word(tmp_path):
    counts = counts_of_levels({200: 9}, {100: 9})
    from dataclasses import replace

    counts = replace(counts, split="test")
    with pytest.raises(ValueError, match="on_test=True"):
        tune(counts)
    made = tune(counts, on_test=True)
    assert "tuned on the test split" in repr(made)
    with pytest.raises(ValueError, match="share must be above 0"):
        tune(counts, on_test=True, share=0)
    with pytest.raises(ValueError, match="rule is one of"):
        tune(counts, on_test=True, rule="argmax")
    with pytest.raises(ValueError, match="all scores of a pixel together"):
        tune(counts, on_test=True, rule="ratio")
    with pytest.raises(ValueError, match="no scores of 'road'"):
        tune(counts, on_test=True, classes=["road"])


def test_a_share_of_the_scenes_is_one_draw():
    counts = counts_of_levels({200: 9, 90: 1}, {100: 9}, scenes=20)
    a, b = (tune(counts, share=0.3, draws=0) for _ in range(2))
    assert a.scenes == b.scenes and len(a.scenes) == 6
    other = tune(counts, share=0.3, draws=0, seed=1)
    assert other.scenes != a.scenes
    assert list(a.scenes) == sorted(a.scenes, key=int)


# --- rasters ---------------------------------------------------------------------------

FOUR = ("field", "road", "building", "water")


def four_classes(seed, side=64):
    "Shares 70, 22, 6, 2 %, and scores that are not sure of the rare ones."
    rng = np.random.default_rng(seed)
    share = np.array([0.7, 0.22, 0.06, 0.02])
    truth = rng.choice(4, (side, side), p=share)
    logits = rng.normal(0, 1.2, (4, side, side)) + np.log(share)[:, None, None]
    logits += 2.0 * np.stack([truth == k for k in range(4)])
    scores = np.exp(logits - logits.max(axis=0))
    return truth.astype(np.uint8), (scores / scores.sum(axis=0)).astype(np.float32)


def folder_of(path, scenes, classes=FOUR, **how):
    "A LabelFolder with scores; {id: (truth, scores)}."
    for name, (truth, scores) in scenes.items():
        write_raster(path / "truth" / f"{name}.tif", truth)
        drawn = np.nan_to_num(scores).argmax(axis=0).astype(np.uint8)
        write_raster(path / "maps" / f"{name}.tif", drawn)
        write_raster(path / "maps" / f"{name}_scores.tif", scores)
    maps, truth = path / "maps" / "{id}.tif", path / "truth" / "{id}.tif"
    return label_folder(maps, truth, classes, split="validation", **how)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    scenes = {str(i): four_classes(i) for i in range(6)}
    return folder_of(tmp_path_factory.mktemp("four"), scenes, null=None), scenes


def mean_iou(scenes, decision):
    true = np.concatenate([t.ravel() for t, _ in scenes.values()])
    said = np.concatenate([decision.labels(s).ravel() for _, s in scenes.values()])
    return np.mean(sk.jaccard_score(true, said, average=None, labels=range(4)))


def test_weights_of_several_classes_beat_the_largest_score(four):
    folder, scenes = four
    made = tune(folder, rule="weights", classes=list(FOUR), draws=0, blocks=None)
    argmax = mean_iou(scenes, Decision("argmax", FOUR, {}, None))
    assert made.value_argmax == pytest.approx(argmax, abs=1e-12)
    assert made.value == pytest.approx(mean_iou(scenes, made.decision), abs=1e-12)
    assert made.value > argmax + 0.02
    # no single weight can be moved to something better
    rng = np.random.default_rng(0)
    for name, weight in made.decision.thresholds.items():
        for factor in np.exp(rng.normal(0, 0.2, 8)):
            moved = {**made.decision.thresholds, name: weight * factor}
            assert (
                mean_iou(scenes, Decision("weights", FOUR, moved, None))
                <= made.value + 2e-4
            )


def test_the_ratio_rule_is_tuned_as_it_is_applied(four):
    folder, scenes = four
    wanted = ["road", "building", "water"]
    made = tune(folder, rule="ratio", classes=wanted, draws=0, blocks=None)
    decision = made.decision
    true = np.concatenate([t.ravel() for t, _ in scenes.values()])
    scores = np.concatenate([s.reshape(4, -1) for _, s in scenes.values()], axis=1)
    t = np.array([np.inf, *(decision.thresholds[k] for k in wanted)])
    ratio = scores / t[:, None]
    said = np.where(ratio.max(axis=0) >= 1, ratio.argmax(axis=0), 0)
    assert (said != decision.labels(scores)).mean() < 1e-3  # ties of rounding
    for name in wanted:
        k = FOUR.index(name)
        own = sk.jaccard_score(true == k, decision.labels(scores) == k)
        assert made.thresholds[name].value == pytest.approx(own, abs=1e-12)
    alone = tune(folder, classes=wanted, draws=0, blocks=None)
    plain = Decision("ratio", FOUR, alone.decision.thresholds, None)
    at_start = np.mean([
        sk.jaccard_score(true == k, plain.labels(scores) == k) for k in (1, 2, 3)
    ])  # fmt: skip
    assert made.value >= at_start - 1e-12
    with pytest.raises(ValueError, match="may be in several of these classes"):
        alone.decision.check()


@pytest.mark.parametrize("rule", ["ratio", "weights"])
def test_limits_hold_for_several_classes_together_or_none_is_defined(four, rule):
    folder, scenes = four
    wanted = ["road", "building", "water"]
    how = dict(rule=rule, classes=wanted, draws=0, blocks=None)
    true = np.concatenate([t.ravel() for t, _ in scenes.values()])
    scores = np.concatenate([s.reshape(4, -1) for _, s in scenes.values()], axis=1)
    made = tune(folder, "precision@recall>=0.5", **how)
    said = made.decision.labels(scores)
    for name, one in made.thresholds.items():
        k = FOUR.index(name)
        assert one.status == "ok" and sk.recall_score(true == k, said == k) >= 0.5
        precision = sk.precision_score(true == k, said == k)
        assert one.value == pytest.approx(precision, abs=1e-12)
    lost = tune(folder, "precision@recall>=0.95", **how)
    assert lost.undefined == wanted and np.isnan(lost.value)
    assert not lost.decision.thresholds and not lost.table().threshold.notna().any()
    for one in lost.thresholds.values():
        assert (
            "do not reach recall>=0.95 together" in one.why and "lacks 0.1" in one.why
        )
        assert one.pixels == len(true)


def test_one_class_takes_what_reaches_it_and_the_others_compete(four):
    folder, scenes = four
    made = tune(folder, classes=["building"], draws=50, blocks=None)
    t = made.thresholds["building"].threshold
    truth, scores = scenes["3"]
    said = made.decision.check().labels(scores)
    assert np.array_equal(said == 2, scores[2].astype(float) >= t)
    rest = scores.copy()
    rest[2] = -1
    assert np.array_equal(said[said != 2], rest.argmax(axis=0)[said != 2])
    counts = folder.counts.table("building").sum()
    argmax = counts.tp / (counts.tp + counts.fp + counts.fn)
    assert made.thresholds["building"].value_argmax == pytest.approx(argmax, abs=1e-12)


@pytest.mark.parametrize("kind", ["uint8", "float16"])
def test_stored_scores_and_those_before_rounding_give_one_map(kind):
    "A threshold lies between two stored scores, so rounding moves no pixel over it."
    truth, scores = four_classes(11, 200)
    stored = (
        np.rint(255 * scores).astype(np.uint8)
        if kind == "uint8"
        else scores.astype(kind)
    )
    counts = _count_score_arrays(
        truth, np.asarray(stored, stored.dtype if kind == "uint8" else "float32"), FOUR
    )
    decision = tune(counts, classes=["building"], draws=0).decision
    decision = Decision("ratio", FOUR, decision.thresholds, None)
    live, kept = decision.labels(scores) == 2, decision.labels(stored) == 2
    assert (live != kept).sum() <= (0 if kind == "uint8" else 2)


def test_what_cannot_be_judged_is_refused(tmp_path):
    good = four_classes(0, 32)

    def refused(words, truth=None, scores=None, error=ValueError):
        where = tmp_path / words[:12].replace(" ", "_")
        odd = (
            good[0] if truth is None else truth,
            good[1] if scores is None else scores,
        )
        folder = folder_of(where, {"a": good, "b": odd}, (*FOUR[:3], "null"))
        with pytest.raises(error, match=words):
            tune(folder, draws=0, blocks=None)
        return folder

    gaps = good[1].copy()
    gaps[:, :3] = np.nan
    folder = refused("pixels of scene b have no score", scores=gaps)
    assert (
        "null"
        not in tune(folder, draws=0, blocks=None, unscored="leave out").thresholds
    )
    folder = refused(
        "b has no pixel with a label and a score", np.full((32, 32), 3, np.uint8)
    )
    assert tune(folder, draws=0, blocks=None, unscored="leave out").scenes == ("a",)
    refused("must cover the same pixels", np.zeros((40, 32), np.uint8))
    refused("do not add up to 1 over the 4 classes", scores=good[1] * 0.6)
    far = good[1] + np.array([1, -1, 0, 0], np.float32)[:, None, None]
    refused("0 to 1, found", scores=far)
    refused("values that are no class", np.full((32, 32), 9, np.uint8))
    lacking = folder_of(tmp_path / "l", {"a": good})
    (tmp_path / "l" / "maps" / "a_scores.tif").unlink()
    with pytest.raises(FileNotFoundError, match="has no scores"):
        tune(lacking)


def test_rules_that_make_no_map():
    with pytest.raises(ValueError, match="no rule 'ratoi'; did you mean 'ratio'"):
        Decision("ratoi", FOUR)
    with pytest.raises(ValueError, match="no class 'wood'"):
        Decision("ratio", FOUR, {"wood": 0.5})
    with pytest.raises(ValueError, match="numbers from 0"):
        Decision("ratio", FOUR, {"water": float("nan")})
    with pytest.raises(ValueError, match="no threshold to apply"):
        Decision("ratio", FOUR).check()
    with pytest.raises(ValueError, match="every class has a threshold"):
        Decision("ratio", FOUR, dict.fromkeys(FOUR, 0.5)).check()
    null = Decision("ratio", NAMES, dict.fromkeys(NAMES[:2], 0.9))
    low = np.array([[0.6], [0.4], [0.0]])
    assert null.check().labels(low).tolist() == [2]


# --- calibration -----------------------------------------------------------------------


def overconfident(scenes=6):
    parts = []
    for i in range(scenes):
        rng = np.random.default_rng(i)
        logit = rng.normal(-1, 1.5, 30_000)
        truth = np.where(rng.random(30_000) < 1 / (1 + np.exp(-logit)), 0, 1)
        one = 1 / (1 + np.exp(-2 * logit))
        scores = np.stack([one, 1 - one]).astype(np.float16).astype(np.float32)
        parts.append(_count_score_arrays(truth, scores, NAMES[:2], str(i)))
    return ScoreCounts.joined(parts)


def test_temperature_is_found_again_and_isotonic_equals_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    counts = overconfident()
    found = Calibration.fit(counts)
    assert found.temperature == pytest.approx(2, abs=0.05)
    assert found.ece_before > 0.05 > 0.01 > found.ece_after
    assert found.brier_after < found.brier_before
    rising = Calibration.fit(counts, method="isotonic")
    assert 0.01 > rising.ece_after > 0
    ranking = counts.ranking()
    pixels = ranking.positives + ranking.negatives
    theirs = IsotonicRegression(out_of_bounds="clip").fit(
        ranking.score, ranking.positives / pixels, pixels
    )
    some = np.random.default_rng(0).random(1000)
    assert rising.apply(some) == pytest.approx(theirs.predict(some), abs=1e-9)
    assert len(rising.scores) < len(ranking)
    for one in (found, rising):
        out = one.apply(np.array([0.1, 0.5, np.nan, 0.9], np.float32))
        assert np.isnan(out[2]) and (np.diff(out[[0, 1, 3]]) >= 0).all()
    with pytest.raises(ValueError, match="temperature, isotonic"):
        Calibration.fit(counts, method="platt")
    with pytest.raises(ValueError, match="pixels of the class and others"):
        Calibration.fit(counts_of_levels({}, {3: 5}))
    made = tune(counts, calibrate="temperature", draws=0)
    assert made.calibration["building"].temperature == pytest.approx(2, abs=0.05)


def test_import_is_light():
    import subprocess
    import sys

    code = "import sys, rvtutorial.metrics.thresholds; print([m for m in ('torch', 'rastervision', 'sklearn', 'scipy.optimize') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


assert LabelFolder and Tuned


def test_the_figure_has_a_panel_for_each_metric(four):
    from rvtutorial.figures.thresholds import plot_thresholds

    folder, _ = four
    names = ("iou", "cost:1:5", "precision@recall>=0.9", "f2")
    figure = plot_thresholds(folder, names, "building", blocks=None, draws=20)
    titles = [ax.get_title() for ax in figure.axes]
    made = tune(folder, classes=["building"], draws=20, blocks=None).thresholds[
        "building"
    ]
    assert titles[0] == f"iou: {made.value:.3f} at {made.threshold:.3f}"
    assert titles[2].startswith("precision@recall") and len(titles) == 4
    line = figure.axes[0].get_lines()[0]
    assert line.get_ydata().max() == pytest.approx(made.value, abs=2e-3)
    assert "building by threshold, micro, 6 whole validation scenes" in str(
        figure.get_suptitle()
    )


# --- other scenes ----------------------------------------------------------------------


def test_transfer_is_the_score_on_others_and_the_regret_what_is_lost(four, tmp_path):
    folder, scenes = four
    made = tune(folder, classes=["building", "water"], draws=50, blocks=None)
    others = {str(i): four_classes(100 + i) for i in range(5)}
    there = folder_of(tmp_path, others, null=None)
    found = made.on(there, blocks=None, draws=200)
    true = np.concatenate([t.ravel() for t, _ in others.values()])
    scores = np.concatenate([s.reshape(4, -1) for _, s in others.values()], axis=1)
    for name in ("building", "water"):
        k, row = FOUR.index(name), found.loc[name]
        called = scores[k].astype(float) >= made.thresholds[name].threshold
        value = sk.jaccard_score(true == k, called)
        assert row.value == pytest.approx(value, abs=1e-3)  # scores lie on levels
        assert row.low < row.value < row.high
        assert row.best >= row.value and row.regret == pytest.approx(
            row.best - row.value
        )
        assert 0 <= row.regret_low <= row.regret_high
        best = tune(there, classes=[name], draws=0, blocks=None).thresholds[name]
        assert row.best_threshold == best.threshold and row.best == best.value
    assert (made.on(folder, blocks=None, draws=0).regret == 0).all()
    joint = tune(folder, classes=list(FOUR), rule="weights", draws=0, blocks=None)
    moved = joint.on(there, blocks=None)
    assert moved.value.mean() == pytest.approx(
        mean_iou(others, joint.decision), abs=1e-12
    )


def test_regret_is_what_is_lost_and_limits_are_judged_where_thresholds_go():
    tuned_on = counts_of_levels({200: 9, 100: 1}, {150: 9, 50: 91}, scenes=6)
    there = counts_of_levels({200: 5, 120: 1, 100: 4}, {150: 1, 50: 99}, scenes=6)
    cheap = tune(tuned_on, "cost:1:5", draws=0)
    (row,) = cheap.on(there, "validation").itertuples()
    assert row.value > row.best and row.regret == pytest.approx(row.value - row.best)
    assert row.regret_low <= row.regret <= row.regret_high and row.allowed
    made = tune(tuned_on, "precision@recall>=0.9", draws=0)
    (row,) = made.on(there, "validation").itertuples()
    assert not row.allowed and row.value > row.best
    assert row.regret == pytest.approx(row.best - row.value) and row.regret < 0
    assert row.low <= row.value <= row.high
    none = counts_of_levels({10: 9}, {200: 99}, scenes=6)
    precise = tune(tuned_on, "recall@precision>=0.9", draws=0)
    (row,) = precise.on(none, "validation").itertuples()
    assert not row.allowed and np.isnan(row.best) and np.isnan(row.regret)
    assert row.value == 0


@pytest.mark.parametrize("rule", ["ratio", "weights"])
def test_limits_that_cannot_be_reached_elsewhere_leave_no_best(four, tmp_path, rule):
    folder, _ = four
    how = dict(classes=["road", "building"], draws=0, blocks=None)
    made = tune(folder, "recall@precision>=0.6", rule=rule, **how)
    assert not made.undefined
    rng = np.random.default_rng(0)
    odd = {k: (rng.permuted(t, axis=0), s) for k, (t, s) in four[1].items()}
    found = made.on(folder_of(tmp_path, odd, null=None), blocks=None)
    assert not found.allowed.any() and found.best.isna().all()
    assert found.value.notna().all() and found.regret.isna().all()

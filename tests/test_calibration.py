"What is read from scores equals what others compute from all pixels at once."

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_runs import PEAK, write_boxes, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from rvtutorial.metrics.calibration import (
    LEVELS,
    ScoreCounts,
    _count_score_arrays,
    _ranking_of,
    _reliability_of,
    _threshold_curve,
    count_scores,
    ranking_scores,
)

NAMES = ("building", "background", "null")


def made_up(seed=0, shape=(60, 70), classes=3, sure=1.0):
    "Class numbers and scores that know something about them."
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (classes, *shape))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=0)
    scores = np.exp(sure * logits)
    return truth.astype(np.uint8), scores / scores.sum(axis=0)


def as_kind(scores, kind):
    if kind == "uint8":
        return np.round(255 * scores).astype(np.uint8)
    return scores.astype("float16").astype(kind if kind != "half" else "float32")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 400), st.integers(1, 40))
def test_areas_and_brier_equal_scikit_learn(seed, pixels, levels):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels + 1, pixels) / levels
    truth = rng.random(pixels) < 0.2 + 0.6 * score
    truth[:2] = [True, False]
    found = _ranking_of(truth, score)
    assert ranking_scores(found)["roc_auc"] == pytest.approx(
        sk.roc_auc_score(truth, score), abs=1e-12
    )
    expected = sk.average_precision_score(truth, score)
    assert ranking_scores(found)["average_precision"] == pytest.approx(
        expected, abs=1e-12
    )
    assert ranking_scores(found)["brier"] == pytest.approx(
        sk.brier_score_loss(truth, score), abs=1e-12
    )


def test_true_single_precision_is_ranked_without_rounding():
    "In memory nothing is rounded: neighbours of float32 stay apart."
    score = np.float32(0.7) + np.arange(4, dtype=np.float32) * np.spacing(
        np.float32(0.7)
    )
    truth = np.array([0, 1, 0, 1])
    assert len(_ranking_of(truth, score)) == 4
    assert (
        ranking_scores(_ranking_of(truth, score))["roc_auc"]
        == sk.roc_auc_score(truth, score)
        == 0.75
    )


@pytest.mark.parametrize("kind", ["uint8", "half", "float16"])
@pytest.mark.parametrize("null_as", ["ignore", "class"])
def test_counted_scores_give_the_same_as_all_pixels(kind, null_as):
    truth, scores = made_up(1)
    scores = as_kind(scores, kind)
    found = _count_score_arrays(truth, scores, NAMES, null_as=null_as)
    assert found.exact
    kept = truth.ravel() != 2 if null_as == "ignore" else np.ones(truth.size, bool)
    classes = NAMES[:2] if null_as == "ignore" else NAMES
    assert found.classes == classes
    for k, name in enumerate(classes):
        score = scores[k].ravel()[kept].astype(float) / (255 if kind == "uint8" else 1)
        pixels, ours = truth.ravel()[kept] == k, found.ranking(name)
        assert ranking_scores(ours)["roc_auc"] == pytest.approx(
            sk.roc_auc_score(pixels, score), abs=1e-12
        )
        expected = sk.average_precision_score(pixels, score)
        assert ranking_scores(ours)["average_precision"] == pytest.approx(
            expected, abs=1e-12
        )
        expected = sk.brier_score_loss(pixels, score)
        assert ranking_scores(ours)["brier"] == pytest.approx(expected, abs=1e-12)
        whole = _ranking_of(pixels, score)
        assert ranking_scores(ours)["ece"] == pytest.approx(
            ranking_scores(whole)["ece"], abs=1e-12
        )


@pytest.mark.parametrize("sure, most", [(1.0, 1e-4), (2.0, 1e-4), (6.0, 5e-3)])
def test_single_precision_is_off_by_less_than_it_says(sure, most):
    """Over-confident scores crowd at 1, where half precision would be coarse.

    The last ones reach down to 1e-30, below all levels; the bound says that too.
    """
    truth, scores = made_up(2, (200, 200), sure=sure)
    scores = scores.astype(np.float32)
    found = _count_score_arrays(truth, scores, NAMES)
    assert not found.exact
    line = found.summary().loc["building"]
    seen = truth.ravel() != 2
    pixels, score = truth.ravel()[seen] == 0, scores[0].ravel()[seen].astype(float)
    off = abs(line.roc_auc - sk.roc_auc_score(pixels, score))
    assert off <= line.roc_auc_error <= 5e-3 and off < most
    off = abs(line.average_precision - sk.average_precision_score(pixels, score))
    assert off <= line.average_precision_error + 1e-12 and off < most
    assert line.brier == pytest.approx(sk.brier_score_loss(pixels, score), abs=2e-4)


def test_levels_hold_every_half_precision_number_and_both_ends():
    halves = np.arange(15361, dtype=np.uint16).view(np.float16).astype(float)
    assert np.isin(halves, LEVELS["float"]).all()
    assert (np.diff(LEVELS["float"]) > 0).all()
    ends = np.array([[0.0, 1.0, 0.5, 1e-30, np.nextafter(1, 0)]], np.float32)
    found = _count_score_arrays(
        np.zeros((1, 5), int), np.stack([ends, ends]), NAMES[:2]
    )
    assert (
        found.ranking().score.tolist() == [1.0, 0.5, 0.0] or len(found.ranking()) == 4
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_a_level_is_near_its_score(values):
    scores = np.array(values, np.float32)[None]
    truth = np.zeros(len(values), int)
    found = _count_score_arrays(truth, np.concatenate([scores] * 2), NAMES[:2])
    levels = np.repeat(found.ranking().score, found.ranking().positives)
    exact = np.sort(scores[0].astype(float))[::-1]
    reach = np.minimum(exact, 1 - exact) * 2.0**-11 + 2.0**-24
    assert (np.abs(levels - exact) <= reach).all()


@pytest.mark.slow  # the import of torch
def test_areas_and_ece_equal_torchmetrics():
    tm = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    truth, scores = made_up(3, classes=2)
    scores = np.minimum(as_kind(scores, "half"), 0.999)
    found = _count_score_arrays(truth, scores.astype("float16"), NAMES[:2]).ranking()
    pixels = torch.as_tensor((truth.ravel() == 0).astype("int64"))
    score = torch.as_tensor(scores[0].astype("float16").astype(float).ravel())
    for ours, theirs in (
        (ranking_scores(found)["roc_auc"], tm.binary_auroc(score, pixels)),
        (
            ranking_scores(found)["average_precision"],
            tm.binary_average_precision(score, pixels),
        ),
        (
            ranking_scores(found)["ece"],
            tm.binary_calibration_error(score, pixels, n_bins=15),
        ),
    ):
        # torchmetrics counts in single precision
        assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_reliability_equals_scikit_learn():
    truth, scores = made_up(4)
    score, pixels = scores[0].ravel(), truth.ravel() == 0
    found = _reliability_of(_ranking_of(pixels, score), bins=10)
    share, mean = calibration_curve(pixels, score, n_bins=10)
    filled = found[found.pixels > 0]
    assert filled.share.to_numpy() == pytest.approx(share, abs=1e-12)
    assert filled.score.to_numpy() == pytest.approx(mean, abs=1e-12)
    assert found.pixels.sum() == score.size
    gap = (found.pixels * (found.share - found.score).abs()).sum() / found.pixels.sum()
    assert ranking_scores(_ranking_of(pixels, score), bins=10)["ece"] == pytest.approx(
        gap, abs=1e-12
    )


def test_every_threshold_equals_counting_again():
    truth, scores = made_up(5, (12, 13))
    scores = as_kind(scores, "uint8")
    curve = _count_score_arrays(truth, scores, NAMES).curve()
    seen = truth != 2
    a, p = truth[seen] == 0, scores[0][seen] / 255
    for row in curve[1:].itertuples():
        said = p >= row.threshold
        assert (row.tp, row.fp) == ((a & said).sum(), (~a & said).sum())
        assert row.f1 == pytest.approx(sk.f1_score(a, said), abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(a, p, drop_intermediate=False)
    assert curve.false_positive_rate.to_numpy() == pytest.approx(fpr, abs=1e-12)
    assert curve.recall.to_numpy() == pytest.approx(tpr, abs=1e-12)
    assert curve.threshold[0] == np.inf and np.isnan(curve.precision[0])


def test_a_thin_curve_keeps_its_shape_and_ends():
    truth, scores = made_up(6, (300, 300))
    ranking = _ranking_of(truth == 0, scores[0])
    whole, thin = _threshold_curve(ranking), _threshold_curve(ranking, points=300)
    assert len(thin) <= 302 < len(whole)
    assert thin.iloc[[0, -1]].equals(whole.iloc[[0, -1]].set_axis(thin.index[[0, -1]]))
    area = np.trapezoid(thin.recall, thin.false_positive_rate)
    assert area == pytest.approx(ranking_scores(ranking)["roc_auc"], abs=1e-3)


def test_halves_add_up_to_the_whole():
    truth, scores = made_up(7, (64, 50))
    whole = _count_score_arrays(truth, scores, NAMES, "s")
    top = _count_score_arrays(truth[:20], scores[:, :20], NAMES, "s")
    both = top + _count_score_arrays(truth[20:], scores[:, 20:], NAMES, "s")
    assert both.scenes == ("s",) and np.array_equal(both.histograms, whole.histograms)
    two = whole + _count_score_arrays(truth, scores, NAMES, "t")
    assert two.scenes == ("s", "t") and len(two.only(["t"])) == 1
    assert two.ranking().positives.sum() == 2 * whole.ranking().positives.sum()
    bytes_ = _count_score_arrays(truth, as_kind(scores, "uint8"), NAMES, "s")
    with pytest.raises(ValueError, match="of different sorts"):
        whole + bytes_
    with pytest.raises(ValueError, match="nothing to add"):
        ScoreCounts.joined([])
    with pytest.raises(ValueError, match="no scores of 'null'; known are building"):
        whole.ranking("null")


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("layout", [{}, dict(tiled=True, blockxsize=64, blockysize=64)])
def test_files_give_what_memory_gives(tmp_path, kind, layout):
    truth, scores = made_up(8, (333, 217))
    scores = as_kind(scores, kind) if kind == "uint8" else scores.astype(kind)
    file = write_raster(tmp_path / "7" / "scores.tif", scores, **layout)
    label = write_raster(
        tmp_path / "t.tif", np.where(truth == 0, 255, truth).astype("uint8")
    )
    found = count_scores(label, file, NAMES, values={255: 0})
    memory = _count_score_arrays(truth, scores, NAMES)
    assert found.scenes == ("7",)
    assert np.array_equal(found.histograms, memory.histograms)


def test_shapes_are_a_truth_too(tmp_path):
    label = write_boxes(tmp_path / "a.geojson", [(2, 3, 8, 10)])
    file = write_raster(tmp_path / "s.tif", np.full((2, 40, 50), 128, np.uint8))
    assert count_scores(label, file, NAMES[:2]).ranking().positives.tolist() == [80]


def test_pixels_without_a_score_are_left_out_and_counted(tmp_path):
    truth, scores = made_up(9, (40, 50))
    scores = scores.astype(np.float32)
    scores[:, :3] = np.nan
    found = _count_score_arrays(truth, scores, NAMES)
    labelled = int((truth[:3] != 2).sum())
    assert found.unscored.tolist() == [labelled]
    assert found.histograms[0, 0].sum() == (truth[3:] != 2).sum()
    assert found.summary().unscored["building"] == labelled
    hits = np.ones((40, 50), np.uint8)
    hits[:3] = 0
    np.save(tmp_path / "hits.npy", hits)
    file = write_raster(tmp_path / "s.tif", as_kind(np.nan_to_num(scores), "uint8"))
    label = write_raster(tmp_path / "t.tif", truth)
    read = count_scores(label, file, NAMES, hits=tmp_path / "hits.npy")
    assert read.unscored.tolist() == [labelled]
    assert read.histograms[0, 0].sum() == found.histograms[0, 0].sum()


def test_scores_that_are_none_are_refused(tmp_path):
    truth, scores = made_up(10, (5, 6))
    with pytest.raises(ValueError, match="0 to 1, found .*: are these logits"):
        _count_score_arrays(truth, 5 * scores - 2, NAMES)
    with pytest.raises(
        ValueError, match=r"need scores of shape \(3, 5, 6\), got \(2, 5"
    ):
        _count_score_arrays(truth, scores[:2], NAMES)
    with pytest.raises(ValueError, match=r"no class: \[7.0\]|no class: \[7\]"):
        _count_score_arrays(np.full((5, 6), 7), scores, NAMES)
    with pytest.raises(ValueError, match='"ignore" or "class"'):
        _count_score_arrays(truth, scores, NAMES, null_as="drop")
    with pytest.raises(ValueError, match="3 labels and 2 scores do not pair"):
        _ranking_of(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="1 pixels have no score"):
        _ranking_of(np.ones(2), np.array([0.5, np.nan]))
    file = write_raster(tmp_path / "s.tif", scores.astype(np.float32))
    label = write_raster(tmp_path / "t.tif", truth)
    with pytest.raises(ValueError, match="has 3 bands for 2 classes"):
        count_scores(label, file, NAMES[:2])
    with pytest.raises(ValueError, match="must cover the same pixels"):
        count_scores(write_raster(tmp_path / "u.tif", truth[1:]), file, NAMES)


def test_sums_in_half_precision_may_pass_one_a_little():
    scores = np.array([[[1.004]], [[0.0]]], np.float32)
    found = _count_score_arrays(np.zeros((1, 1), int), scores, NAMES[:2])
    assert found.ranking().score.tolist() == [1.0]


def test_a_class_that_is_absent_has_no_area():
    truth, scores = made_up(11)
    found = _count_score_arrays(np.ones_like(truth), scores, NAMES)
    line = found.summary().loc["building"]
    assert np.isnan([line.roc_auc, line.average_precision]).all()
    assert line.prevalence == 0 and 0 < line.brier < 1
    empty = _count_score_arrays(np.full_like(truth, 2), scores, NAMES)
    assert np.isnan(
        empty.summary().loc["building", ["brier", "ece"]].astype(float)
    ).all()


def test_intervals_are_over_scenes():
    parts = [_count_score_arrays(*made_up(i), NAMES, str(i)) for i in range(12)]
    found = ScoreCounts.joined(parts)
    line, one = (x.summary().loc["building"] for x in (found, found.only(["3"])))
    for name in ("roc_auc", "average_precision", "brier", "ece"):
        assert line[f"{name}_low"] < line[name] < line[f"{name}_high"]
    assert one.roc_auc == pytest.approx(
        ranking_scores(parts[3].ranking())["roc_auc"], abs=1e-12
    )
    few = found.only(list("01234")).summary().loc["building"]
    assert few.roc_auc_high - few.roc_auc_low > line.roc_auc_high - line.roc_auc_low
    curve = found.reliability(bins=10)
    filled = curve[curve.pixels > 0]
    assert (filled.share_low < filled.share).all() and (
        filled.share < filled.share_high
    ).all()
    assert np.isnan(parts[0].summary().roc_auc_low["building"])


def test_other_numbers_do_not_change_the_ranking():
    "Halving all scores keeps both areas and spoils the other two."
    truth, scores = made_up(12)
    one, half = (_ranking_of(truth == 0, scores[0] * f) for f in (1, 0.5))
    assert ranking_scores(one)["roc_auc"] == pytest.approx(
        ranking_scores(half)["roc_auc"], abs=1e-12
    )
    assert (
        ranking_scores(half)["ece"] > 3 * ranking_scores(one)["ece"]
        and ranking_scores(half)["brier"] > ranking_scores(one)["brier"]
    )


@pytest.mark.slow
def test_a_large_raster_of_scores_is_counted_in_little_memory(tmp_path):
    "1e8 pixels of 3 classes; the memory does not grow with the raster."
    import rasterio

    layout = dict(driver="GTiff", width=10_000, height=10_000, tiled=True)
    layout |= dict(blockxsize=512, blockysize=512, sparse_ok=True, compress="deflate")
    for name, count, kind in (("t.tif", 1, "uint8"), ("s.tif", 3, "float32")):
        with rasterio.open(
            tmp_path / name, "w", count=count, dtype=kind, **layout
        ) as out:
            out.write(np.full((count, 90, 90), 1, kind), window=((0, 90), (0, 90)))
    code = (
        f"{PEAK}; import sys; from rvtutorial.metrics.calibration import count_scores;"
        "c = count_scores(sys.argv[1], sys.argv[2], ['a', 'b', 'null']);"
        "print(c.histograms[0, 0].sum(), peak())"
    )
    args = [sys.executable, "-c", code, tmp_path / "t.tif", tmp_path / "s.tif"]
    out = subprocess.run(
        args, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) == 10_000**2
    assert int(out[1]) < 300


def test_import_is_light():
    code = "import sys, rvtutorial.metrics.calibration; print([m for m in ('torch', 'rastervision', 'sklearn', 'rasterio', 'scipy.stats') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_a_summary_is_a_table(tmp_path):
    found = _count_score_arrays(*made_up(13), NAMES).summary()
    found.to_csv(tmp_path / "a.csv")
    assert list(pd.read_csv(tmp_path / "a.csv", index_col=0).index) == list(NAMES[:2])


def test_blocks_are_what_their_scenes_are_together():
    parts = [
        _count_score_arrays(*made_up(i, (20, 20)), NAMES, str(i)) for i in range(6)
    ]
    found, blocks = ScoreCounts.joined(parts), [1, 0, 1, 0, 2, 2]
    wholes = []
    for block in (0, 1, 2):
        own = [made_up(i, (20, 20)) for i in range(6) if blocks[i] == block]
        truth = np.concatenate([one for one, _ in own])
        scores = np.concatenate([one for _, one in own], axis=1)
        wholes.append(_count_score_arrays(truth, scores, NAMES, str(block)))
    whole = ScoreCounts.joined(wholes)
    for one, other in (
        (found.summary(blocks=blocks), whole.summary()),
        (found.reliability(blocks=blocks), whole.reliability()),
    ):
        pd.testing.assert_frame_equal(one, other)
    value, moved = found.left_out("ece", blocks=blocks)
    assert len(moved) == 3 and value == pytest.approx(
        ranking_scores(found.ranking())["ece"]
    )
    assert found.histograms.dtype == np.uint32  # what was given stays as it was
    with pytest.raises(ValueError, match="6 scenes need as many blocks, got 2"):
        found.summary(blocks=[0, 1])
    with pytest.raises(ValueError, match="no metric 'auc'"):
        found.left_out("auc")

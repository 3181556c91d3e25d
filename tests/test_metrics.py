"Counts, scores, intervals and comparisons keep their promises."

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from fake_runs import PEAK, evaluation, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from rvtutorial.metrics import (
    Counts,
    add,
    as_classes,
    bootstrap,
    compare,
    confusion,
    count_arrays,
    count_rasters,
    counts_from,
    counts_of,
    first_class,
    jackknife,
    leaderboard,
    overall,
    score,
    scores,
    table,
)
from rvtutorial.runs import headline

NAMES = ("building", "background", "null")


def labels(seed, shape=(60, 70), n=3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n, shape).astype(np.uint8)
    flip = rng.random(shape) < 0.3
    return truth, np.where(flip, rng.integers(0, n, shape), truth).astype(np.uint8)


def some_counts(seed=0, scenes=6, null=False):
    parts = []
    for i in range(scenes):
        truth, drawn = labels([seed, i], n=3 if null else 2)
        parts.append(count_arrays(truth, drawn, NAMES, scene=str(i)))
    return add(parts)


def test_scores_equal_scikit_learn():
    truth, drawn = labels(1, n=3)
    names = ("building", "road", "background")
    found = overall(count_arrays(truth, drawn, names))
    for number, name in enumerate(names):
        a, b = truth.ravel() == number, drawn.ravel() == number
        row = found.loc[name]
        for ours, theirs in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
        ):
            assert row[f"pixel_{ours}"] == pytest.approx(theirs(a, b), abs=1e-12)
        assert row.pixel_f1 == pytest.approx(sk.f1_score(a, b), abs=1e-12)
        assert row.pixel_iou == pytest.approx(sk.jaccard_score(a, b), abs=1e-12)
        assert row.pixel_specificity == pytest.approx(
            sk.recall_score(~a, ~b), abs=1e-12
        )
    accuracy = sk.accuracy_score(truth.ravel(), drawn.ravel())
    assert found.pixel_accuracy.to_numpy() == pytest.approx([accuracy] * 3, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(0, 2**31))
def test_confusion_equals_scikit_learn(n, seed):
    rng = np.random.default_rng(seed)
    truth, drawn = rng.integers(0, n, (2, 9, 11))
    expected = sk.confusion_matrix(truth.ravel(), drawn.ravel(), labels=np.arange(n))
    assert np.array_equal(confusion(truth, drawn, n), expected)


def test_undefined_scores_are_nan_and_say_nothing_else():
    nothing = count_arrays(np.ones((4, 4), int), np.ones((4, 4), int), NAMES)
    row = scores(nothing).iloc[0]
    undefined = ["pixel_precision", "pixel_recall", "pixel_f1", "pixel_iou"]
    assert row[undefined].isna().all()
    assert row.pixel_accuracy == row.pixel_specificity == 1
    missed = count_arrays(np.zeros((4, 4), int), np.ones((4, 4), int), NAMES)
    row = scores(missed).iloc[0]
    assert np.isnan(row.pixel_precision) and row.pixel_f1 == row.pixel_recall == 0


def test_null_truth_is_left_out_and_null_prediction_is_a_miss():
    truth = np.array([[0, 0, 1, 1, 2, 2]])
    drawn = np.array([[0, 2, 1, 0, 0, 2]])
    found = count_arrays(truth, drawn, NAMES)
    assert table(found).iloc[0].to_dict() == dict(tp=1, fp=1, fn=1, tn=1, right=2)
    as_class = table(found, null="class").iloc[0]
    assert as_class.to_dict() == dict(tp=1, fp=2, fn=1, tn=2, right=3)
    assert list(overall(found).index) == ["building", "background"]
    assert "null" in overall(found, null="class").index
    with pytest.raises(ValueError, match='"ignore" or "class"'):
        table(found, null="drop")


def test_null_as_class_gives_raster_visions_headline():
    found = some_counts(null=True)
    raster_vision = headline(
        evaluation(dict(zip(found.scenes, found.matrices, strict=True)))
    )
    ours = scores(table(found, null="class").sum().to_frame().T).iloc[0]
    for name in ("f1", "iou", "precision", "recall"):
        assert ours[f"pixel_{name}"] == pytest.approx(raster_vision[name], abs=1e-12)


def test_counts_of_blocks_add_up_to_counts_of_the_raster(tmp_path):
    truth, drawn = labels(3, (700, 650))
    tiled = dict(tiled=True, blockxsize=128, blockysize=128)
    files = [write_raster(tmp_path / "truth.tif", truth, **tiled)]
    files.append(write_raster(tmp_path / "7" / "labels.tif", drawn))
    found = count_rasters(*files, NAMES)
    assert found.scenes == ("7",)
    assert np.array_equal(found.total, confusion(truth, drawn, 3))


@pytest.mark.parametrize("layout", [{}, dict(tiled=True, blockxsize=64, blockysize=64)])
def test_blocks_cover_every_pixel_once(tmp_path, layout):
    import rasterio

    from rvtutorial.metrics import _blocks

    path = write_raster(tmp_path / "a.tif", np.zeros((333, 517), np.uint8), **layout)
    seen = np.zeros((333, 517), int)
    with rasterio.open(path) as source:
        windows = list(_blocks(source, side=128))
    for w in windows:
        seen[w.row_off : w.row_off + w.height, w.col_off : w.col_off + w.width] += 1
        assert w.height * w.width <= 128 * 128 * 1.1
    assert (seen == 1).all() and len(windows) > 5


def test_values_and_no_data_of_a_label_raster(tmp_path):
    truth = np.array([[255, 0, 9], [255, 0, 0]], np.uint8)
    drawn = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    files = [write_raster(tmp_path / "t.tif", truth, nodata=9)]
    files.append(write_raster(tmp_path / "p.tif", drawn))
    found = count_rasters(*files, NAMES, values={255: 0, 0: 1})
    assert found.total.tolist() == [[2, 0, 0], [1, 2, 0], [0, 1, 0]]
    with pytest.raises(
        ValueError, match=r"truth holds values that are no class: \[9, 255\]"
    ):
        count_rasters(*files, NAMES[:2])


def test_rasters_that_do_not_fit_are_refused(tmp_path):
    a = write_raster(tmp_path / "a.tif", np.zeros((4, 5), np.uint8))
    b = write_raster(tmp_path / "b.tif", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match=r"a.tif is \(4, 5\) and .*b.tif \(5, 5\)"):
        count_rasters(a, b, NAMES)
    with pytest.raises(ValueError, match="same pixels"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)


def test_as_classes_maps_before_it_marks_no_data():
    values = as_classes(np.array([0, 255, 7]), {255: 0, 0: 1}, nodata=7, null_id=2)
    assert values.tolist() == [1, 0, 2]


def test_adding_is_by_scene():
    found = some_counts(scenes=3)
    twice = found + found
    assert twice.scenes == found.scenes
    assert np.array_equal(twice.matrices, 2 * found.matrices)
    parts = found.only(["2"]) + found.only(["0", "1"])
    assert parts.scenes == ("2", "0", "1")
    assert np.array_equal(parts.total, found.total)
    other = Counts(found.matrices[:, :2, :2], found.scenes, NAMES[:2])
    with pytest.raises(ValueError, match="different classes"):
        found + other
    with pytest.raises(ValueError, match="nothing to add"):
        add([])


def test_counts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="2 scenes and 3 classes need"):
        Counts(np.zeros((1, 3, 3)), ("a", "b"), NAMES)
    with pytest.raises(ValueError, match="ids must differ"):
        Counts(np.zeros((2, 3, 3)), ("a", "a"), NAMES)
    with pytest.raises(ValueError, match="no class 'road'; the classes are building"):
        table(some_counts(), of="road")
    with pytest.raises(ValueError, match="no metric 'dice'; there are precision"):
        score(np.ones(5), "dice")


def test_first_class_is_not_background():
    names = ("background", "road", "null")
    found = count_arrays(np.zeros((2, 2), int), np.zeros((2, 2), int), names)
    assert first_class(found) == "road"


def test_eval_json_is_read_per_scene(tmp_path):
    found = some_counts(null=True)
    kept = evaluation(dict(zip(found.scenes, found.matrices, strict=True)))
    path = tmp_path / "run" / "eval" / "validation_scenes" / "eval.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(kept))
    read = counts_of(tmp_path / "run")
    assert read.scenes == found.scenes and read.classes == NAMES
    assert read.split == "validation"
    assert np.array_equal(read.matrices, found.matrices)
    assert counts_from({"overall": kept["overall"]}).scenes == ("all",)
    assert np.array_equal(counts_from(kept["overall"]).total, found.total)


def test_missing_evaluation_names_file_and_stage(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(
        FileNotFoundError, match="eval/test_scenes/eval.json.*eval stage"
    ):
        counts_of(tmp_path / "run", "test")
    with pytest.raises(ValueError, match="no confusion matrix"):
        counts_from({"per_scene": {"1": [{"class_id": 0, "class_name": "building"}]}})


def test_bootstrap_equals_a_loop_over_draws():
    rows = table(some_counts(scenes=7))
    rng = np.random.default_rng(5)
    weights = rng.multinomial(7, np.full(7, 1 / 7), size=300)
    numbers = rows[["tp", "fp", "fn"]].to_numpy()
    slow = []
    for draw in weights:
        tp, fp, fn = sum(n * row for n, row in zip(draw, numbers, strict=True))
        slow.append(2 * tp / (2 * tp + fp + fn))
    found = bootstrap(rows, "f1", n=300, seed=5)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(slow, [0.025, 0.975]))
    )
    assert found.low < found.value < found.high
    assert found.scenes == 7


def test_bootstrap_is_repeatable_and_narrows():
    rows = table(some_counts(scenes=40))
    assert bootstrap(rows) == bootstrap(rows)
    assert bootstrap(rows, seed=1) != bootstrap(rows, seed=2)
    for interval in (bootstrap, jackknife):
        few, many = interval(rows[:6]), interval(rows)
        assert many.high - many.low < few.high - few.low


def test_interval_of_one_scene_and_of_nothing():
    rows = table(some_counts(scenes=1))
    assert "no interval: 1 scene" in repr(bootstrap(rows))
    none = pd.DataFrame(np.zeros((3, 5)), columns=["tp", "fp", "fn", "tn", "right"])
    found = bootstrap(none)
    assert np.isnan([found.value, found.low, found.high]).all() and found.undefined == 1
    sparse = none.copy()
    sparse.loc[0, "tp"] = 5
    assert 0.1 < bootstrap(sparse).undefined < 0.5


def test_jackknife_equals_leaving_out_one_scene_at_a_time():
    rows = table(some_counts(scenes=7))
    left = [scores(rows.drop(i).sum().to_frame().T).pixel_f1[0] for i in rows.index]
    logits = np.log(np.divide(left, np.subtract(1, left)))
    error = np.sqrt(6 / 7 * ((logits - logits.mean()) ** 2).sum())
    found = jackknife(rows)
    middle = np.log(found.value / (1 - found.value))
    reach = 2.446911851 * error  # Student's t with 6 degrees of freedom
    ends = 1 / (1 + np.exp(-(middle + np.array([-reach, reach]))))
    assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-6)
    assert found.low < found.value < found.high


def test_jackknife_says_when_there_is_no_interval():
    rows = table(some_counts(scenes=3))
    assert "no interval: 1 scene" in repr(jackknife(rows[:1]))
    lonely = rows.assign(tp=[9, 0, 0], fp=0, fn=[1, 0, 0])
    assert np.isnan(jackknife(lonely).low) and jackknife(lonely).value > 0.9
    perfect = rows.assign(fp=0, fn=0)
    found = jackknife(perfect)
    assert found.value == 1 and found.low == pytest.approx(1) and found.high <= 1


@pytest.mark.parametrize("scenes", [5, 12])
def test_jackknife_keeps_its_word_for_few_scenes(scenes):
    "Of 600 intervals 95 % should hold the truth; 92 % is three standard errors below."
    rng = np.random.default_rng(scenes)

    def draw(n):
        found, built = rng.beta(12, 2, n), rng.integers(20_000, 120_000, n)
        tp, fp = built * found, built * rng.beta(2, 18, n)
        rows = np.stack([tp, fp, built - tp, 422_500 - built - fp, tp], axis=1)
        return pd.DataFrame(rows, columns=["tp", "fp", "fn", "tn", "right"])

    truth = score(draw(500_000).sum().to_numpy())
    found = [jackknife(draw(scenes)) for _ in range(600)]
    inside = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.92 < inside < 0.98


def test_compare_is_paired_and_names_a_winner():
    rng = np.random.default_rng(0)
    easy = rng.uniform(0.5, 0.95, 30)
    one = pd.DataFrame(dict(tp=1000 * easy, fn=1000 * (1 - easy), fp=50.0, tn=9000.0))
    one["right"] = one.tp + one.tn
    two = one.assign(tp=one.tp + 5, fn=one.fn - 5)
    found = compare(two, one, names=("two", "one"))
    assert found.winner == "two" and "two is better: difference 0.00" in found.verdict
    drawn = compare(two, one, method="bootstrap")
    assert drawn.winner == "first" and drawn.low == pytest.approx(found.low, abs=1e-3)
    with pytest.raises(ValueError, match="must be .jackknife. or .bootstrap."):
        compare(two, one, method="guess")
    back = compare(one, two, names=("one", "two"))
    assert back.winner == "two" and back.verdict == found.verdict
    wide = bootstrap(two)
    assert found.high - found.low < 0.1 * (wide.high - wide.low)


def test_compare_can_be_tied_and_says_how_sure():
    rng = np.random.default_rng(1)
    one = table(some_counts(scenes=8)).astype(float)
    shift = rng.permutation([-3, 3, -2, 2, -1, 1, -4, 4.0])
    two = one.assign(tp=one.tp + shift, fn=one.fn - shift)
    found = compare(one, two)
    assert found.winner is None
    assert found.verdict.startswith("tied: difference 0.000, 95 % interval -0.00")
    assert found.verdict.endswith(", 8 scenes")


def test_compare_takes_common_scenes_and_says_which_it_left():
    found = some_counts(scenes=4)
    pair = compare(found.only(["0", "1", "2"]), found.only(["1", "2", "3"]))
    assert pair.scenes == 2 and pair.left_out == ("0", "3")
    assert "only one has: 0, 3" in pair.verdict
    with pytest.raises(ValueError, match="no scene in common"):
        compare(found.only(["0"]), found.only(["1"]))
    assert "cannot tell" in compare(found.only(["0"]), found.only(["0"])).verdict


def test_leaderboard_orders_and_compares_with_the_first():
    rng = np.random.default_rng(2)
    tp = rng.uniform(500, 900, 20)
    base = pd.DataFrame(dict(tp=tp, fn=1000 - tp, fp=60.0, tn=9e3, right=tp + 9e3))
    noise = rng.normal(0, 20, 20)
    runs = {
        "low": base.assign(tp=base.tp - 100, fn=base.fn + 100),
        "near": base.assign(
            tp=base.tp + noise - noise.mean() - 1, fn=base.fn - noise + noise.mean() + 1
        ),
        "high": base,
    }
    board = leaderboard(runs)
    assert list(board.index) == ["high", "near", "low"]
    assert list(board.tied) == [True, True, False]
    assert board.verdict["high"] == "highest" and board.behind["high"] == 0
    assert board.columns[0] == "pixel_f1" and set(board.split) == {"validation"}
    with pytest.raises(ValueError, match="no runs"):
        leaderboard({})


def test_many_runs_are_scored_quickly():
    "Issue bar: 20 runs x 50 scenes x 10,000 resamples in under 2 s on one core."
    rng = np.random.default_rng(0)
    found = {str(i): table(some_counts(i, 50)) for i in range(3)}
    runs = {str(i): found[str(i % 3)] + rng.integers(0, 9) for i in range(20)}
    start = time.process_time()
    leaderboard(runs)
    for rows in runs.values():
        bootstrap(rows, n=10_000)
    assert time.process_time() - start < 4


def test_import_is_light():
    code = "import sys, rvtutorial.metrics; print([m for m in ('torch', 'rastervision', 'sklearn', 'rasterio') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_large_raster_is_counted_in_little_memory(tmp_path):
    "4e8 pixels; the memory does not grow with the raster."
    import rasterio

    layout = dict(driver="GTiff", count=1, dtype="uint8", width=20_000, height=20_000)
    layout |= dict(
        tiled=True, blockxsize=512, blockysize=512, sparse_ok=True, compress="deflate"
    )
    for name in ("truth.tif", "labels.tif"):
        with rasterio.open(tmp_path / name, "w", **layout) as out:
            out.write(np.ones((100, 100), np.uint8), 1, window=((0, 100), (0, 100)))
    code = (
        f"{PEAK}; import sys; from rvtutorial.metrics import count_rasters;"
        "c = count_rasters(sys.argv[1], sys.argv[2], ['a', 'b']);"
        "print(c.total.sum(), peak())"
    )
    args = [sys.executable, "-c", code, tmp_path / "truth.tif", tmp_path / "labels.tif"]
    out = subprocess.run(
        args, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) == 20_000**2
    assert int(out[1]) < 300

"Counts of pixels, and the scores that follow from them, keep their promises."

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from fake_runs import PEAK, evaluation, write_boxes, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from random_counts import NAMES, labels, some_counts
from sklearn import metrics as sk

from rvtutorial.metrics.counting import (
    Counts,
    _count_arrays,
    as_classes,
    confusion,
    count_rasters,
    score,
    scores,
    windows_of,
)
from rvtutorial.metrics.leaderboard import label_folder
from rvtutorial.runs import Run


def test_scores_equal_scikit_learn():
    truth, drawn = labels(1, n=3)
    names = ("building", "road", "background")
    found = _count_arrays(truth, drawn, names).overall()
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
    nothing = _count_arrays(np.ones((4, 4), int), np.ones((4, 4), int), NAMES)
    row = scores(nothing).iloc[0]
    undefined = ["pixel_precision", "pixel_recall", "pixel_f1", "pixel_iou"]
    assert row[undefined].isna().all()
    assert row.pixel_accuracy == row.pixel_specificity == 1
    missed = _count_arrays(np.zeros((4, 4), int), np.ones((4, 4), int), NAMES)
    row = scores(missed).iloc[0]
    assert np.isnan(row.pixel_precision) and row.pixel_f1 == row.pixel_recall == 0


def test_null_truth_is_left_out_and_null_prediction_is_a_miss():
    truth = np.array([[0, 0, 1, 1, 2, 2]])
    drawn = np.array([[0, 2, 1, 0, 0, 2]])
    found = _count_arrays(truth, drawn, NAMES)
    assert found.table().iloc[0].to_dict() == dict(tp=1, fp=1, fn=1, tn=1, right=2)
    as_class = found.table(null="class").iloc[0]
    assert as_class.to_dict() == dict(tp=1, fp=2, fn=1, tn=2, right=3)
    assert list(found.overall().index) == ["building", "background"]
    assert "null" in found.overall(null="class").index
    with pytest.raises(ValueError, match='"ignore" or "class"'):
        found.table(null="drop")


def test_null_as_class_gives_raster_visions_headline():
    found = some_counts(null=True)
    raster_vision = Run.headline(
        evaluation(dict(zip(found.scenes, found.matrices, strict=True)))
    )
    ours = scores(found.table(null="class").sum().to_frame().T).iloc[0]
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

    path = write_raster(tmp_path / "a.tif", np.zeros((333, 517), np.uint8), **layout)
    seen = np.zeros((333, 517), int)
    with rasterio.open(path) as source:
        windows = list(windows_of(source, side=128))
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


def test_complex_numbers_are_no_classes(tmp_path):
    truth = write_raster(tmp_path / "t.tif", np.ones((4, 5), np.complex64))
    drawn = write_raster(tmp_path / "p.tif", np.ones((4, 5), np.uint8))
    for more in ({}, dict(values={255: 0})):
        with pytest.raises(ValueError, match="t.tif and .*truth holds complex numbers"):
            count_rasters(truth, drawn, NAMES, **more)


def test_a_layer_of_several_has_to_be_named(tmp_path):
    import geopandas
    import shapely

    there = rasterio.transform.from_origin(6e5, 4e6, 1, 1)
    (tmp_path / "drawn").mkdir()
    how = dict(transform=there, crs="EPSG:32611")
    drawn = write_raster(tmp_path / "drawn/7.tif", np.ones((20, 20), np.uint8), **how)
    (tmp_path / "true").mkdir()
    truth = tmp_path / "true/7.gpkg"
    for layer, side in (("roads", 5), ("buildings", 10)):
        box = shapely.box(6e5, 4e6 - side, 6e5 + side, 4e6)
        frame = geopandas.GeoDataFrame(geometry=[box], crs="EPSG:32611")
        frame.to_file(truth, layer=layer)
    several = r"7.gpkg holds 2 layers: .*layer=\"roads\""
    with pytest.raises(ValueError, match=several):
        count_rasters(truth, drawn, NAMES)
    found = count_rasters(truth, drawn, NAMES, layer="buildings")
    assert found.total[0, 1] == 100
    folder = str(tmp_path / "drawn/{id}.tif"), str(tmp_path / "true/{id}.gpkg")
    with pytest.raises(ValueError, match=several):
        label_folder(*folder, NAMES).counts  # noqa: B018
    assert label_folder(*folder, NAMES, layer="roads").counts.total[0, 1] == 25


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
        Counts.joined([])


def test_counts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="2 scenes and 3 classes need"):
        Counts(np.zeros((1, 3, 3)), ("a", "b"), NAMES)
    with pytest.raises(ValueError, match="ids must differ"):
        Counts(np.zeros((2, 3, 3)), ("a", "a"), NAMES)
    with pytest.raises(ValueError, match="no class 'road'; known are building"):
        some_counts().table(class_name="road")
    with pytest.raises(ValueError, match="no metric 'dice'; there are precision"):
        score(np.ones(5), "dice")


def test_first_class_is_not_background():
    names = ("background", "road", "null")
    found = _count_arrays(np.zeros((2, 2), int), np.zeros((2, 2), int), names)
    assert found.first_class == "road"


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
        f"{PEAK}; import sys; from rvtutorial.metrics.counting import count_rasters;"
        "c = count_rasters(sys.argv[1], sys.argv[2], ['a', 'b']);"
        "print(c.total.sum(), peak())"
    )
    args = [sys.executable, "-c", code, tmp_path / "truth.tif", tmp_path / "labels.tif"]
    out = subprocess.run(
        args, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) == 20_000**2
    assert int(out[1]) < 300


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_averages_equal_scikit_learn_and_say_what_is_in_them(average):
    truth, drawn = labels(3)
    found = _count_arrays(truth, drawn, NAMES).averages()
    seen = truth.ravel() != 2
    a, b = truth.ravel()[seen], drawn.ravel()[seen]
    how = dict(labels=[0, 1], average=average)
    for ours, theirs in (
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("f1", sk.f1_score),
        ("iou", sk.jaccard_score),
    ):
        expected = pytest.approx(theirs(a, b, **how), abs=1e-12)
        assert found.loc[average, f"pixel_{ours}"] == expected
    assert found.classes[average] == "building, background"
    assert found.null[average] == "left out" and found.undefined[average] == ""
    both = _count_arrays(truth, drawn, NAMES).averages(null="class").loc[average]
    assert both.classes.endswith("null") and both.null == "counts as a class"
    every = sk.f1_score(truth.ravel(), drawn.ravel(), average=average)
    assert both.pixel_f1 == pytest.approx(every, abs=1e-12)


def test_averages_leave_out_what_has_no_value_and_name_it():
    truth = np.array([[0, 0, 1, 1]])
    found = _count_arrays(truth, np.ones((1, 4), int), NAMES).averages()
    assert "building: precision" in found.undefined["macro"]
    assert found.pixel_precision["macro"] == 0.5  # of background alone
    assert found.pixel_recall["macro"] == 0.5
    nothing = _count_arrays(np.full((1, 4), 2), truth, NAMES).averages()
    assert nothing.pixel_f1.isna().all()


@pytest.mark.slow  # the import of torch
def test_scores_equal_torchmetrics():
    tm = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    truth, drawn = labels(4)
    found = _count_arrays(truth, drawn, NAMES)
    a, b = (torch.as_tensor(x.ravel().astype("int64")) for x in (truth, drawn))
    seen = a != 2
    each = found.overall()
    # a class that is only ever predicted takes part as the third, without a truth
    how = dict(num_classes=3, average=None)
    for ours, theirs in (
        ("precision", tm.multiclass_precision),
        ("recall", tm.multiclass_recall),
        ("f1", tm.multiclass_f1_score),
        ("specificity", tm.multiclass_specificity),
        ("iou", tm.multiclass_jaccard_index),
    ):
        expected = theirs(b[seen], a[seen], **how).double().numpy()[:2]
        # torchmetrics divides in single precision
        assert each[f"pixel_{ours}"].to_numpy() == pytest.approx(expected, abs=1e-7)
    matrix = tm.multiclass_confusion_matrix(b, a, num_classes=3).numpy()
    assert np.array_equal(found.total, matrix)


@pytest.mark.parametrize("value", [0.5, 7.0, -1.0, np.nan])
def test_labels_that_are_no_class_are_named(tmp_path, value):
    bad = np.zeros((3, 4), np.float32)
    bad[1, 2] = value
    a = write_raster(tmp_path / "a.tif", bad)
    b = write_raster(tmp_path / "b.tif", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"a.tif and .*b.tif: truth holds values"):
        count_rasters(a, b, NAMES)


@pytest.mark.parametrize("layout", [{}, dict(tiled=True, blockxsize=16, blockysize=16)])
def test_shapes_are_drawn_as_raster_vision_draws_them(tmp_path, layout):
    "Whole pixels, first class, the rest background; in blocks as in one piece."
    boxes = [(2, 3, 20, 25), (40, 30, 5, 12)]
    truth = np.ones((90, 80), np.uint8)
    for r, c, h, w in boxes:
        truth[r : r + h, c : c + w] = 0
    label = write_boxes(tmp_path / "a.geojson", boxes)
    drawn = write_raster(tmp_path / "b.tif", np.roll(truth, 2, 1), **layout)
    found = count_rasters(label, drawn, NAMES)
    assert np.array_equal(found.total, confusion(truth, np.roll(truth, 2, 1), 3))
    empty = write_boxes(tmp_path / "c.geojson", [])
    assert count_rasters(empty, drawn, NAMES, rest=2).total[2].sum() == truth.size


def test_predictions_of_others_are_translated(tmp_path):
    truth, drawn = np.array([[0, 1]], np.uint8), np.array([[255, 0]], np.uint8)
    files = [write_raster(tmp_path / "t.tif", truth)]
    files.append(write_raster(tmp_path / "p.tif", drawn))
    found = count_rasters(*files, NAMES[:2], predicted={255: 0, 0: 1})
    assert found.total.tolist() == [[1, 0], [0, 1]]


def test_fractions_are_not_cut_to_a_class(tmp_path):
    "What `values` or the declared value do not explain has to be a whole number."
    from rvtutorial.metrics.counting import as_classes

    truth = np.zeros((4, 4), "uint8")
    write_raster(tmp_path / "t.tif", truth)
    for odd in (0.25, 0.75, np.inf, np.nan):
        drawn = np.zeros((4, 4), "float32")
        drawn[0] = odd
        path = write_raster(tmp_path / "d.tif", drawn, nodata=-9999)
        with pytest.raises(ValueError, match=f"no class: .{str(odd)[:3]}"):
            count_rasters(tmp_path / "t.tif", path, NAMES)
        with pytest.raises(ValueError, match="no class"):
            count_rasters(path, tmp_path / "t.tif", NAMES, values={255: 0})
    path = write_raster(tmp_path / "d.tif", drawn, nodata=np.nan)
    assert count_rasters(tmp_path / "t.tif", path, NAMES).total[0].tolist() == [
        12,
        0,
        4,
    ]
    whole = as_classes(np.array([255.0, 1.0]), {255: 0})
    assert whole.tolist() == [0, 1] and whole.dtype == np.int64

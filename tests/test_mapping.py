"""The mapping module: every pixel covered, the same maps as Raster Vision, no seams."""

import contextlib
import json
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from rvtutorial.engine import mapfiles, prediction
from rvtutorial.engine.prediction import _Band, _Plan, map_images

CLASSES = ["building", "background", "null"]
PLACE = Affine(0.3, 0, 6e5, 0, -0.3, 4e6)


# ---- windows


def rv_windows(height, width, chip_sz, stride, crop_sz):
    "Windows of Raster Vision's prediction; None where it refuses."
    from rastervision.core.box import Box
    from rastervision.core.utils import calculate_required_padding

    extent, more = Box(0, 0, height, width), {}
    if crop_sz is not None:
        sizes = extent.size, (chip_sz, chip_sz), (stride, stride)
        try:
            padding = calculate_required_padding(*sizes, "both", crop_sz)
        except ValueError:
            return None
        more = {"padding": padding, "pad_direction": "both"}
    return [tuple(w)[:2] for w in extent.get_windows(chip_sz, stride, **more)]


sides = st.integers(1, 90)
crops = st.none() | st.integers(0, 12)
case = {"height": sides, "width": sides, "chip": st.integers(1, 60), "crop": crops}


@settings(max_examples=10_000, deadline=None, database=None)
@given(**case, stride=st.integers(1, 80))
def test_every_pixel_is_covered(height, width, chip, stride, crop):
    if crop is not None and 2 * crop >= chip:
        with pytest.raises(ValueError, match="crop_sz must be from 0"):
            _Plan(height, width, chip, stride, crop)
        return
    plan = _Plan(height, width, chip, stride, crop)
    for side, starts in ((height, plan.rows), (width, plan.cols)):
        hits = np.zeros(side, int)
        for start in np.add(starts, plan.crop):
            part = hits[max(start, 0) : start + plan.kept]
            assert part.size  # a window without a pixel would be computed for nothing
            part += 1
        assert hits.min() > 0
        assert starts == sorted(set(starts))
    assert len(plan) == len(plan.rows) * len(plan.cols)


@settings(max_examples=400, deadline=None, database=None)
@given(**case, stride=st.integers(1, 80))
def test_windows_are_those_of_raster_vision_where_they_cover(
    height, width, chip, stride, crop
):
    if 2 * (crop or 0) >= chip:
        return
    theirs = rv_windows(height, width, chip, stride, crop)
    plan = _Plan(height, width, chip, stride, crop)
    hits = np.zeros((height, width), int)
    useful = []
    for y, x in theirs or []:
        top, left = max(y + plan.crop, 0), max(x + plan.crop, 0)
        part = hits[top : y + chip - plan.crop, left : x + chip - plan.crop]
        if y + chip - plan.crop > 0 and x + chip - plan.crop > 0 and part.size:
            part += 1
            useful.append((y, x))
    if hits.min() > 0:
        assert list(plan) == useful
        assert plan.differs == ""
    else:
        assert plan.differs


@settings(max_examples=1_000, deadline=None, database=None)
@given(**case | {"crop": st.none() | st.just(0)}, stride=st.integers(1, 80))
def test_windows_lie_inside_an_image_that_is_large_enough(
    height, width, chip, stride, crop
):
    plan = _Plan(height, width, chip, stride, crop, inside=True)
    usual = _Plan(height, width, chip, stride, crop)
    for side, starts, before in (
        (height, plan.rows, usual.rows),
        (width, plan.cols, usual.cols),
    ):
        hits = np.zeros(side, int)
        for start in starts:
            hits[max(start, 0) : start + chip] += 1
        assert hits.min() > 0 and len(starts) <= len(before)
        if side >= chip:
            assert min(starts) >= 0 and max(starts) + chip <= side
        else:
            assert starts == before
    if list(plan) != list(usual):
        assert plan.differs


# ---- the same as Raster Vision


def write_image(path, pixels, **more):
    "A GeoTIFF of (bands, height, width)."
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count}
    profile |= {"dtype": pixels.dtype, "crs": "EPSG:32611", "transform": PLACE}
    with rasterio.open(path, "w", **(profile | more)) as file:
        file.write(pixels)
    return path


def noise(height, width, bands=3, seed=0):
    "An image of soft noise, uint8, at least 1."
    rng = np.random.default_rng(seed)
    pixels = rng.random((bands, height, width))
    pixels = uniform_filter(pixels, (0, 9, 9), mode="nearest")
    low, high = pixels.min(), pixels.max()
    return (1 + 254 * (pixels - low) / (high - low)).astype(np.uint8)


def shaded(chips):
    "Softmax scores of three classes; dark at the edges of a chip."
    bright = chips.astype(np.float32) / 255
    bright = uniform_filter(bright, (0, 15, 15, 0), mode="constant")
    odds = np.exp(6 * bright.transpose(0, 3, 1, 2))
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def make_scene(image, folder, aois=None, bbox=None, **store):
    "A scene of Raster Vision with a label store."
    from rastervision.core.data import (
        ClassConfig,
        RasterioSource,
        Scene,
        SemanticSegmentationLabelStore,
    )

    source = RasterioSource(str(image), bbox=bbox)
    colors = ["red", "black", "white"]
    classes = ClassConfig(names=list(CLASSES), colors=colors, null_class="null")
    labels = SemanticSegmentationLabelStore(
        str(folder), source.crs_transformer, classes, **store
    )
    return Scene("one", source, label_store=labels, aoi_polygons=aois)


def predict_with_stock(scene, options, predict):
    "Raster Vision's own prediction of a scene, with our model as its learner."
    from types import SimpleNamespace

    from rastervision.pytorch_learner.utils.prediction import predict_scene_ss

    def predict_dataset(ds, raw_out, **_):
        for i in range(len(ds)):
            chip = (ds[i][0].numpy() * 255).round().astype(np.uint8)
            scores = predict(chip.transpose(1, 2, 0)[None])[0]
            yield scores if raw_out else scores.argmax(axis=0)

    data = SimpleNamespace(get_data_transforms=lambda: (None, None))
    learner = SimpleNamespace(
        cfg=SimpleNamespace(data=data), predict_dataset=predict_dataset
    )
    scene.label_store.save(predict_scene_ss(learner, scene, options))


def options_of(chip_sz, stride, crop_sz=None):
    "Prediction options of Raster Vision."
    from rastervision.core.rv_pipeline import SemanticSegmentationPredictOptions

    return SemanticSegmentationPredictOptions(
        chip_sz=chip_sz, stride=stride, crop_sz=crop_sz, batch_sz=4
    )


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def both(tmp_path, image, windows, **scene):
    "Folders of stock's and of our prediction of the same scene."
    options, folders = options_of(*windows), (tmp_path / "stock", tmp_path / "ours")
    predict_with_stock(make_scene(image, folders[0], **scene), options, shaded)
    target = prediction.scene_target(make_scene(image, folders[1], **scene), options)
    report = prediction.stream([target], shaded, batch_sz=5)
    assert report["chips"] == len(target.plan)
    return folders


WINDOWS = [(128, 128, None), (128, 64, None), (128, 96, 16), (128, 100, 0), (400, 300)]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_votes_are_those_of_raster_vision(tmp_path, windows):
    image = write_image(tmp_path / "image.tif", noise(300, 396))
    stock, ours = both(tmp_path, image, windows)
    assert (read(stock / "labels.tif") == read(ours / "labels.tif")).all()
    assert sorted(p.name for p in ours.iterdir()) == ["labels.tif"]
    with (
        rasterio.open(stock / "labels.tif") as a,
        rasterio.open(ours / "labels.tif") as b,
    ):
        for name in ("shape", "transform", "crs", "count", "dtypes", "nodata"):
            assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("kind", ["float32", "uint8"])
@pytest.mark.parametrize("windows", WINDOWS[1:3], ids=str)
def test_smooth_output_is_that_of_raster_vision(tmp_path, windows, kind):
    image = write_image(tmp_path / "image.tif", noise(300, 396))
    smooth = {"smooth_output": True, "smooth_as_uint8": kind == "uint8"}
    stock, ours = both(tmp_path, image, windows, **smooth)
    assert {p.name for p in ours.iterdir()} == {p.name for p in stock.iterdir()}
    scores = [read(folder / "scores.tif").astype(float) for folder in (stock, ours)]
    assert scores[0].dtype == scores[1].dtype
    unit = 255 if kind == "uint8" else 1
    assert np.abs(scores[0] - scores[1]).max() <= max(unit > 1, 2e-3)
    labels = [read(folder / "labels.tif")[0] for folder in (stock, ours)]
    best = np.sort(scores[1] / unit, axis=0)
    clear = best[-1] - best[-2] > 4e-3 + 2 / 255 * (unit > 1)
    assert clear.mean() > 0.5 and (labels[0] == labels[1])[clear].all()
    hits = [np.load(folder / "pixel_hits.npy") for folder in (stock, ours)]
    assert hits[0].dtype == hits[1].dtype and (hits[0] == hits[1]).all()


def test_raster_vision_reads_our_folder(tmp_path):
    image = write_image(tmp_path / "image.tif", noise(300, 396))
    smooth = {"smooth_output": True}
    _, ours = both(tmp_path, image, (128, 64), **smooth)
    store = make_scene(image, ours, **smooth).label_store
    labels = store.get_labels()
    found = labels.get_label_arr(labels.extent, 2)
    assert (found == read(ours / "labels.tif")[0]).mean() > 0.999  # float16 inside


def test_pixels_without_window_become_null_in_scenes_with_aois(tmp_path):
    from shapely.geometry import box

    image = write_image(tmp_path / "image.tif", noise(300, 396))
    aois = [box(20, 10, 340, 160), box(0, 200, 100, 220)]
    stock, ours = both(tmp_path, image, (64, 32), aois=aois)
    labels = read(ours / "labels.tif")
    assert (read(stock / "labels.tif") == labels).all()
    assert 0 < (labels != 2).mean() < 0.5
    none = {"aois": [box(0, 0, 10, 10)], "smooth_output": True}
    _, ours = both(tmp_path / "none", image, (64, 32), **none)
    assert (read(ours / "labels.tif") == 2).all()
    assert np.isnan(read(ours / "scores.tif")).all()
    assert not np.load(ours / "pixel_hits.npy").any()


@pytest.mark.parametrize("as_uint8", [False, True])
def test_scores_outside_of_aois_are_those_of_stock(tmp_path, as_uint8):
    "NaN, or 0 in bytes: no window came there."
    from shapely.geometry import box

    image = write_image(tmp_path / "image.tif", noise(300, 396))
    how = {"aois": [box(20, 10, 340, 160)], "smooth_output": True}
    how["smooth_as_uint8"] = as_uint8
    stock, ours = (
        read(f / "scores.tif") for f in both(tmp_path, image, (64, 32), **how)
    )
    assert stock.dtype == ours.dtype
    empty = np.isnan(stock) if not as_uint8 else stock == 0
    assert 0.2 < empty.all(axis=0).mean() < 0.9
    assert (np.isnan(ours) if not as_uint8 else ours == 0)[:, empty.all(axis=0)].all()
    assert np.isfinite(ours[:, ~empty.all(axis=0)]).all()


def test_a_part_of_an_image_keeps_its_place(tmp_path):
    from rastervision.core.box import Box

    image = write_image(tmp_path / "image.tif", noise(300, 396))
    stock, ours = both(tmp_path, image, (64, 32), bbox=Box(40, 30, 240, 230))
    assert (read(stock / "labels.tif") == read(ours / "labels.tif")).all()
    with (
        rasterio.open(stock / "labels.tif") as a,
        rasterio.open(ours / "labels.tif") as b,
    ):
        assert a.transform == b.transform != PLACE and a.shape == b.shape == (200, 200)


def test_labels_in_colours(tmp_path):
    image = write_image(tmp_path / "image.tif", noise(200, 180))
    stock, ours = both(tmp_path, image, (64, 32), save_as_rgb=True)
    labels = read(ours / "labels.tif")
    assert labels.shape[0] == 3 and (read(stock / "labels.tif") == labels).all()


def test_where_stock_leaves_a_strip_ours_does_not(tmp_path):
    image = write_image(tmp_path / "image.tif", noise(650, 650))
    stock, ours = both(tmp_path, image, (300, 175, 62))
    theirs, labels = read(stock / "labels.tif"), read(ours / "labels.tif")
    assert (theirs == 2).mean() > 0.1 and (theirs != labels).any()
    hit = np.zeros(theirs.shape, bool)
    hit[:, :613, :613] = True  # what stock reaches
    assert (theirs == labels)[hit].all()
    assert _Plan(650, 650, 300, 175, 62).differs


# ---- seams and exact sums


def tiled(image, plan, blend, predict):
    "Scores and labels of a whole image (height, width, bands), without files."
    scores, labels = [], []

    def keep(rows):
        scores.append(rows.scores)
        labels.append(rows.labels.copy())

    size = plan.chip_sz
    padded = np.pad(image, ((size, size), (size, size), (0, 0)))
    band = _Band(plan, predict(padded[None, :size, :size]).shape[1], blend, 255, keep)
    for y, x in plan:
        chip = padded[y + size : y + 2 * size, x + size : x + 2 * size]
        band.add(y, x, predict(chip[None])[0])
    band.finish()
    return np.concatenate(scores, axis=1), np.concatenate(labels)


def box_sum(chips, radius=4):
    "Whole numbers: sums over a square, black outside the chip; two classes."
    side = 2 * radius + 1
    bright = chips[..., 0].astype(np.int64)
    edge = np.pad(bright, ((0, 0), (radius,) * 2, (radius,) * 2))
    rows = sum(edge[:, i : i + bright.shape[1]] for i in range(side))
    total = sum(rows[..., i : i + bright.shape[2]] for i in range(side))
    return np.stack([total, 255 * side * side // 2 - total], axis=1).astype(np.float32)


@pytest.mark.parametrize("blend", ["mean", "votes", "cosine"])
@pytest.mark.parametrize("windows", [(64, 56, 4), (64, 20, 5), (50, 33, 4)], ids=str)
def test_tiled_is_untiled_once_crop_sz_covers_the_radius(windows, blend):
    image = np.random.default_rng(0).integers(0, 255, (211, 187, 1)).astype(np.uint8)
    whole = box_sum(image[None])[0]
    scores, labels = tiled(image, _Plan(211, 187, *windows), blend, box_sum)
    assert (labels == whole.argmax(axis=0)).all()
    if blend == "mean":
        assert (scores == whole).all()
    too_little = _Plan(211, 187, *windows[:2], windows[2] - 2)
    assert (tiled(image, too_little, "mean", box_sum)[0] != whole).any()


def jump(scores, plan):
    "Mean step of a score across the borders of chips, against that elsewhere."
    steps = np.abs(np.diff(scores, axis=1)).mean(axis=0)
    edges = {x + d for x in plan.cols for d in (0, plan.chip_sz)}
    border = np.isin(np.arange(1, scores.shape[1]), sorted(edges))
    return steps[border].mean() / steps[~border].mean()


@pytest.mark.parametrize("stride", [32, 24])
def test_cosine_leaves_no_seams(stride):
    image = np.random.default_rng(0).integers(0, 255, (300, 1600, 3)).astype(np.uint8)
    image = uniform_filter(image, (5, 5, 0))
    plan = _Plan(300, 1600, 64, stride)
    mean, cosine = (
        jump(tiled(image, plan, blend, shaded)[0][0], plan)
        for blend in ("mean", "cosine")
    )
    print(f"stride {stride}: mean {mean:.2f}, cosine {cosine:.3f}")
    assert cosine <= 1.05 < 1.5 < mean


def test_first_class_wins_a_tie():
    scores = np.random.default_rng(0).integers(0, 4, (5, 60, 60)).astype(np.float32)
    assert (prediction._winners(scores) == scores.argmax(axis=0)).all()


def test_an_unknown_blend_is_refused():
    with pytest.raises(ValueError, match="blend must be one of mean, votes, cosine"):
        _Band(_Plan(8, 8, 4, 4), 2, "median", 255, print)


# ---- small patches


def dots(chips):
    "The first band is the score of the first class: 255 is building."
    bright = chips[..., 0].astype(np.float32) / 255
    return np.stack([bright, 1 - bright], axis=1)


def spotted(height=300, width=200):
    "An image of roofs with holes, and dots around them; 20 pixels are 1.8 m2."
    pixels = np.ones((1, height, width), np.uint8)
    pixels[:, 20:60, 20:60] = 255
    pixels[:, 30:33, 30:34] = 1  # a hole of 12 pixels
    pixels[:, 40:46, 40:44] = 1  # and one of 24
    pixels[:, 100:104, 100:104] = 255  # a dot of 16 pixels
    pixels[:, 125:131, 120:124] = 255  # a shed of 24, over the border of a strip
    return pixels


SPOTTED = {"classes": ["building", "background"], "polygons": True}


@pytest.mark.parametrize("least", ["20px", 20 * 0.09, "1.8"])
def test_small_patches_go_from_labels_and_polygons(tmp_path, monkeypatch, least):
    import geopandas

    monkeypatch.setattr(mapfiles, "BLOCK", 128)
    pixels = spotted()
    more = SPOTTED | {"scores": "uint8"}
    whole, _ = map_one(tmp_path / "a", pixels, dots, **more)
    fewer, _ = map_one(tmp_path / "b", pixels, dots, **more, min_area=least)
    wanted = np.where(pixels[0] == 255, 0, 1)
    assert (read(whole / "labels.tif")[0] == wanted).all()
    wanted[30:33, 30:34], wanted[100:104, 100:104] = 0, 1
    assert (read(fewer / "labels.tif")[0] == wanted).all()
    assert (read(fewer / "scores.tif") == read(whole / "scores.tif")).all()
    assert len(geopandas.read_file(whole / "polygons.gpkg")) == 3
    table = geopandas.read_file(fewer / "polygons.gpkg")
    assert np.allclose(sorted(table.area / 0.09), [24, 40 * 40 - 24])
    with rasterio.open(fewer / "labels.tif") as file:
        said = file.tags()["min_area"]
        assert said.startswith(str(least)) and "pixels" in said
    with rasterio.open(whole / "labels.tif") as file:
        assert "min_area" not in file.tags()
    assert sorted(p.name for p in fewer.iterdir()) == sorted(
        p.name for p in whole.iterdir()
    )


def test_no_data_stays_as_it_is_when_small_patches_go(tmp_path):
    pixels = spotted()
    pixels[:, 200:202, 10:12] = 0  # a speck without data
    pixels[:, 220:, 150:] = 0
    pixels[:, 250:252, 170:172] = 255  # a dot with nothing around it
    folder, _ = map_one(
        tmp_path, pixels, dots, nodata=0, min_area="20px", chip_sz=32, **SPOTTED
    )
    labels = read(folder / "labels.tif")[0]
    assert ((labels == 255) == (pixels[0] == 0)).all()
    assert (labels[250:252, 170:172] == 0).all() and labels[101, 101] == 1


@pytest.mark.parametrize("given", [-1, "40 pixels", "nan", "inf px", ""])
def test_an_area_that_is_none_is_refused(tmp_path, given):
    with pytest.raises(ValueError, match="min_area is square metres, such as 20"):
        map_one(tmp_path, spotted(), dots, min_area=given, **SPOTTED)


def test_square_metres_need_a_place_on_earth(tmp_path):
    place = {"crs": None, "transform": Affine.identity()}
    with pytest.raises(ValueError, match="no georeference.*such as 20px"):
        map_one(tmp_path, spotted(), dots, min_area=20, **place, **SPOTTED)
    assert not (tmp_path / "out").exists()
    folder, _ = map_one(tmp_path, spotted(), dots, min_area="20px", **place, **SPOTTED)
    assert read(folder / "labels.tif")[0][101, 101] == 1


# ---- new images


def map_one(tmp_path, pixels, predict=shaded, name="image.tif", **more):
    "Map a new image; the folder of the map, and the report."
    place = {k: more.pop(k) for k in ("nodata", "crs", "transform") if k in more}
    tmp_path.mkdir(exist_ok=True)
    image = write_image(tmp_path / name, pixels, **place)
    options = {"classes": CLASSES, "chip_sz": 64} | more
    report = map_images(image, predict, tmp_path / "out", **options)
    return tmp_path / "out" / Path(name).stem, report


def test_a_new_image_becomes_a_tiled_map(tmp_path):
    folder, report = map_one(tmp_path, noise(1100, 700), scores="uint8", chip_sz=128)
    assert {p.name for p in folder.iterdir()} == {
        "labels.tif", "scores.tif", "polygons.gpkg"
    }  # fmt: skip
    with rasterio.open(folder / "labels.tif") as file:
        assert file.shape == (1100, 700) and file.transform == PLACE
        assert file.crs == "EPSG:32611" and file.dtypes == ("uint8",)
        assert file.block_shapes == [(512, 512)] and file.overviews(1) == [2, 4]
        assert file.nodata == 255 and file.compression.name == "deflate"
        labels = file.read(1)
    with rasterio.open(folder / "scores.tif") as file:
        assert file.descriptions == tuple(CLASSES) and file.dtypes == ("uint8",) * 3
        assert file.block_shapes == [(512, 512)] * 3 and file.compression
        scores = file.read()
    assert (np.abs(scores.sum(axis=0, dtype=int) - 255) <= 2).all()
    best = np.sort(scores, axis=0)
    clear = best[-1] > best[-2]
    assert clear.mean() > 0.9 and (scores.argmax(axis=0) == labels)[clear].all()
    assert report["pixels"] == 1100 * 700 and report["chips"] == 17 * 10
    assert report["maps"]["image"]["folder"] == str(folder)
    assert set(report["seconds"]) >= {"reading", "computing", "writing", "waiting"}


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_scores_of_both_kinds_agree(tmp_path, kind):
    folder, _ = map_one(tmp_path, noise(200, 100), scores=kind, polygons=False)
    scores = read(folder / "scores.tif") / (255 if kind == "uint8" else 1)
    plan = _Plan(200, 100, 64, 32, inside=True)
    image = read(tmp_path / "image.tif").transpose(1, 2, 0)
    whole, labels = tiled(image, plan, "cosine", shaded)
    assert np.abs(scores - whole).max() <= (0.5001 / 255 if kind == "uint8" else 0)
    assert (read(folder / "labels.tif")[0] == labels).all()


def test_float16_is_written_or_refused(tmp_path):
    if rasterio.dtypes.check_dtype("float16"):
        folder, _ = map_one(tmp_path, noise(100, 100), scores="float16")
        assert read(folder / "scores.tif").dtype == np.float16
    else:
        with pytest.raises(ValueError, match="float16 scores need GDAL 3.11"):
            map_one(tmp_path, noise(100, 100), scores="float16")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="scores must be None or one of"):
        map_one(tmp_path, noise(100, 100), scores="int8")


def test_mapping_again_replaces_and_removes_what_is_old(tmp_path):
    folder, _ = map_one(tmp_path, noise(200, 150), scores="uint8")
    first = read(folder / "labels.tif")
    folder, _ = map_one(tmp_path, noise(200, 150, seed=1), polygons=False)
    assert [p.name for p in folder.iterdir()] == ["labels.tif"]
    assert (read(folder / "labels.tif") != first).any()


@pytest.mark.parametrize("how", ["value", "alpha", "mask", "nan"])
def test_no_data_stays_no_data(tmp_path, how):
    pixels, hole = noise(700, 200), np.zeros((700, 200), bool)
    hole[500:530, 40:90] = True
    more, path = {}, tmp_path / "image.tif"
    if how == "value":
        pixels[:, hole], more = 0, {"nodata": 0}
        pixels[0, 10:20, 10:20] = 0  # one band alone is data
    elif how == "nan":
        pixels = pixels.astype(np.float32)
        pixels[:, hole], more = np.nan, {"nodata": np.nan}
    elif how == "alpha":
        alpha = np.where(hole, 0, 255).astype(np.uint8)
        more = {"photometric": "rgb", "alpha": "yes"}
        pixels = np.concatenate([pixels, alpha[None]])
    write_image(path, pixels, **more)
    if how == "mask":
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "r+") as file,
        ):
            file.write_mask(~hole)
    options = {"classes": CLASSES, "chip_sz": 64, "scores": "uint8"}
    map_images(path, shaded, tmp_path / "out", **options)
    labels = read(tmp_path / "out/image/labels.tif")[0]
    assert ((labels == 255) == hole).all()
    with rasterio.open(tmp_path / "out/image/labels.tif") as file:
        assert file.crs == "EPSG:32611"
    scores = read(tmp_path / "out/image/scores.tif")
    assert ((scores == 0).all(axis=0) == hole).all()


def test_no_data_is_null_in_a_scene(tmp_path):
    pixels = noise(300, 200)
    pixels[:, 100:150, 60:80] = 0
    image = write_image(tmp_path / "image.tif", pixels, nodata=0)
    smooth = {"smooth_output": True}
    _, ours = both(tmp_path, image, (64, 32), **smooth)
    labels = read(ours / "labels.tif")[0]
    assert (labels[100:150, 60:80] == 2).all()
    store = make_scene(image, ours, **smooth).label_store
    again = store.get_labels().get_label_arr(store.get_labels().extent, 2)
    assert (again[100:150, 60:80] == 2).all()  # also for those who read the scores


@pytest.mark.parametrize("null", ["unlabeled", None])
def test_the_class_of_no_data_is_not_drawn_whatever_its_name(tmp_path, null):
    import geopandas

    from rvtutorial.engine.fitting import _classes_of

    names = ["building", "unlabeled"]
    folder, _ = map_one(tmp_path, spotted(), dots, classes=names, null_class=null)
    drawn = set(geopandas.read_file(folder / "polygons.gpkg")["class"])
    assert drawn == {"building"} | ({"unlabeled"} if null is None else set())
    assert _classes_of(folder / "labels.tif") == (names, null)


def test_polygons_are_those_of_the_whole_map(tmp_path, monkeypatch):
    import geopandas
    from rasterio.features import shapes
    from shapely.geometry import shape

    monkeypatch.setattr(mapfiles, "BLOCK", 64)
    monkeypatch.setattr(mapfiles._Polygons, "many", 10)
    folder, _ = map_one(tmp_path, noise(500, 300))
    labels = read(folder / "labels.tif")[0]
    table = geopandas.read_file(folder / "polygons.gpkg")
    whole = shapes(labels, mask=labels == 0, connectivity=4, transform=PLACE)
    whole = sorted((shape(outline) for outline, _ in whole), key=lambda p: p.bounds)
    found = sorted(table.geometry, key=lambda p: p.bounds)
    assert len(found) == len(whole) > 20 and set(table["class"]) == {"building"}
    assert any(p.bounds[3] - p.bounds[1] > 64 * 0.3 for p in whole)
    for mine, theirs in zip(found, whole, strict=True):
        assert mine.symmetric_difference(theirs).area < 1e-6
        assert len(mine.exterior.coords) <= len(theirs.exterior.coords) + 1
    assert table.crs == "EPSG:32611"
    area = table.set_geometry(table.geometry).area
    assert np.allclose(table.area_m2, area, rtol=1e-3)  # of ground, not of the map
    assert np.isclose(area.sum(), (labels == 0).sum() * 0.09)


def test_area_in_square_metres_in_degrees_and_feet(tmp_path):
    import geopandas

    def half(chips):
        bright = 0.9 * (chips[..., 0] > 0) + 0.05
        others = np.full_like(bright, 0.5), np.zeros_like(bright)
        return np.stack([bright, *others], axis=1).astype(np.float32)

    pixels = np.zeros((1, 80, 80), np.uint8)
    pixels[:, 10:20, 10:30] = 9
    step = 1e-5  # degrees: 1.11 m to the north, half of it to the east at 60 degrees
    places = {
        "EPSG:4326": (Affine(step, 0, 25, 0, -step, 60), 200 * 1.1142 * 0.5583),
        "EPSG:2263": (Affine(1, 0, 9.8e5, 0, -1, 2e5), 200 * 0.3048006096**2),
    }
    for crs, (transform, area) in places.items():
        more = {"crs": crs, "transform": transform, "name": crs[5:] + ".tif"}
        folder, _ = map_one(tmp_path, pixels, half, **more)
        table = geopandas.read_file(folder / "polygons.gpkg")
        assert len(table) == 1 and table.area_m2[0] == pytest.approx(area, rel=5e-3)


def test_a_map_without_polygons_has_an_empty_table(tmp_path):
    import geopandas

    nothing = lambda c: np.stack([0 * c[..., 0], 0 * c[..., 0] + 1.0], 1)  # noqa: E731
    more = {"classes": ["building", "background"], "crs": None}
    folder, _ = map_one(tmp_path, noise(100, 90), nothing, **more)
    table = geopandas.read_file(folder / "polygons.gpkg")
    assert not len(table) and {"class", "area_m2"} <= set(table)


@pytest.mark.parametrize("pixels, more, text", [
    (noise(90, 90, bands=1), {"bands": [0, 1, 2]}, "has 1 bands, and the model needs"),
    (noise(90, 90), {"dtype": "uint16"}, "holds uint8, .* trained on .*-ot UInt16 IN"),
    (noise(90, 90), {"crop_sz": 32}, "crop_sz must be from 0 to 31"),
    (noise(90, 90), {"stride": -1}, "stride must be at least 1"),
])  # fmt: skip
def test_what_the_model_cannot_take_is_refused_before_any_work(
    tmp_path, pixels, more, text
):
    calls = []
    with pytest.raises(ValueError, match=text):
        map_one(tmp_path, pixels, calls.append, **more)
    assert not calls and not (tmp_path / "out").exists()


def test_bands_and_transformers_are_applied(tmp_path):
    seen, pixels = [], noise(70, 70, bands=5)

    def predict(chips):
        seen.append(chips)
        return shaded(chips)

    more = {"bands": [3, 0, 2], "prepare": lambda chip: chip // 2, "stride": 64}
    more["inside"] = False
    map_one(tmp_path, pixels, predict, **more)
    assert seen[0].shape == (4, 64, 64, 3) and seen[0].dtype == np.uint8
    assert (seen[0][0] == pixels[[3, 0, 2], :64, :64].transpose(1, 2, 0) // 2).all()
    assert (
        seen[0][3][:6, :6] == pixels[[3, 0, 2], 64:, 64:].transpose(1, 2, 0) // 2
    ).all()
    assert not seen[0][3][6:].any() and not seen[0][3][:, 6:].any()


# ---- which images


def names(*args):
    return {name: Path(uri).name for name, uri in prediction.find_images(*args).items()}


def test_images_are_found(tmp_path):
    for place in ("img10.tif", "img9.tif", "a/img9.tif", "b/img9.TIF", "notes.txt"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list(names(tmp_path)) == ["img9", "img10"]
    assert list(names(str(tmp_path / "*.tif"))) == ["img9", "img10"]
    assert names(tmp_path / "img9.tif") == {"img9": "img9.tif"}
    twice = [tmp_path / "img9.tif", tmp_path, tmp_path / "a" / ".." / "img9.tif"]
    assert list(names(twice)) == ["img9", "img10"]
    everywhere = prediction.find_images([str(tmp_path / "**" / "*.[tT]*[fF]")])
    assert len(everywhere) == len(set(everywhere.values())) == 4
    assert {"img10", "a_img9", "b_img9"} < set(everywhere)
    assert list(names(str(tmp_path / "**" / "*.tif"), tmp_path / "a")) == [
        "img9",
        "img10",
    ]


def test_names_that_no_folder_tells_apart_get_a_number(tmp_path):
    uris = [f"s3://{path}" for path in ("a/x.tif", "a/X.TIF", "b/x.tif", "d/e/f/x.tif")]
    assert sorted(prediction.find_images(uris)) == ["a_X-2", "a_x", "b_x", "f_x"]


def test_names_never_meet(tmp_path):
    uris = ["s3://b/x/y.tif", "https://h/x/y.tif?a=1", "s3://b/Y.tif", "s3://b/x_y.tif"]
    found = prediction.find_images([*uris, "s3://b/w.tif", "/vsizip//data/z.zip/w.tif"])
    assert sorted(found.values()) == sorted(
        [*uris, "s3://b/w.tif", "/vsizip//data/z.zip/w.tif"]
    )
    assert len({name.lower() for name in found}) == 6 and found["x_y"] == uris[3]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "0ab1").touch()
    (tmp_path / "img1.tif").symlink_to(tmp_path / "store" / "0ab1")
    assert list(names(tmp_path)) == ["img1"]  # the name that people gave it


@pytest.mark.parametrize(
    "uri", ["...tif", "a/...tif", "s3://b/...tif", "s3://b/..", "s3://b/" + "x" * 400]
)
def test_a_map_stays_in_its_folder_whatever_the_image_is_called(uri, tmp_path):
    "An image called ...tif would have had its map in the folder above."
    if "://" not in uri:
        (tmp_path / "a").mkdir()
        (tmp_path / uri).touch()
        uri = str(tmp_path / uri)
    (name,) = prediction.find_images([uri])
    (tmp_path / "out" / name).mkdir(parents=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def test_long_names_of_folder_and_image_fit_together(tmp_path):
    for name in ("a" * 200, "b" * 200):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("x" * 200 + ".tif")).touch()
    found = prediction.find_images([str(tmp_path / "*" / "*.tif")])
    assert len(found) == 2
    for name in found:
        (tmp_path / "out" / name).mkdir(parents=True)


@pytest.mark.parametrize("what, text", [
    ("nothing.tif", "there is no image"), ("*.tif", "there is no image"),
    ("", "holds no image"), ([], "no image in"),
])  # fmt: skip
def test_no_image_is_an_error(tmp_path, what, text):
    with pytest.raises(FileNotFoundError, match=text):
        prediction.find_images([] if what == [] else str(tmp_path / what))


def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path):
    write_image(tmp_path / "img1.tif", noise(70, 70))
    folder = tmp_path / "out" / "img1"
    folder.mkdir(parents=True)
    left = [".0123abcd.labels.tif", ".0123abcd.polygons.gpkg-journal"]
    others = [".notes", ".0123abcd.mine.txt", "labels.csv"]
    for name in left + others:
        (folder / name).touch()
    options = {"classes": CLASSES, "chip_sz": 64, "polygons": False}
    map_images(tmp_path / "img1.tif", shaded, tmp_path / "out", **options)
    assert {p.name for p in folder.iterdir()} == {"labels.tif", *others}


def test_a_map_of_another_image_is_not_overwritten(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "img1.tif", noise(70, 70))
    options = {"classes": CLASSES, "chip_sz": 64, "polygons": False}
    map_images(tmp_path / "a", shaded, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="img1 holds the map of .*a/img1.tif, not of"):
        map_images(tmp_path / "b", shaded, tmp_path / "out", **options)
    map_images([tmp_path / "a", tmp_path / "b"], shaded, tmp_path / "both", **options)
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"a_img1", "b_img1"}


def test_a_mosaic_and_striped_images_are_read_the_same(tmp_path):
    pixels = noise(300, 200)
    write_image(tmp_path / "one.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    write_image(tmp_path / "two.tif", pixels, compress="deflate", blockysize=1)
    vrt = """<VRTDataset rasterXSize="200" rasterYSize="300">""" + "".join(
        f"""<VRTRasterBand dataType="Byte" band="{i}"><SimpleSource><SourceFilename
        relativeToVRT="1">one.tif</SourceFilename><SourceBand>{i}</SourceBand>
        </SimpleSource></VRTRasterBand>"""
        for i in (1, 2, 3)
    )
    (tmp_path / "three.vrt").write_text(vrt + "</VRTDataset>")
    options = {"classes": CLASSES, "chip_sz": 64, "polygons": False}
    map_images(tmp_path, shaded, tmp_path / "out", **options)
    labels = [
        read(tmp_path / "out" / n / "labels.tif") for n in ("one", "two", "three")
    ]
    assert (labels[0] == labels[1]).all() and (labels[0] == labels[2]).all()


# ---- one stream


def within(seconds, work):
    "Call a function in a thread: what it returned or raised; fails if it hangs."
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as err:
            found.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the stream hangs"
    return found[0]


class Sink:
    "Takes rows; fails on demand."

    def __init__(self, log, name, fail=None):
        self.log, self.name, self.fail, self.rows = log, name, fail, 0
        if fail == "open":
            raise OSError("cannot open")

    def put(self, rows):
        assert rows.top == self.rows
        self.rows += len(rows.labels)
        if self.fail == "put":
            raise OSError("disk full")

    def finish(self):
        if self.fail == "finish":
            raise OSError("cannot finish")
        self.log.append((self.name, self.rows))

    def abort(self):
        self.log.append((self.name, "aborted"))


def a_target(log, name="first", fail=None, height=100, chip_sz=32, read=None):
    "A target without files."
    return prediction._Target(
        name=name,
        plan=_Plan(height, 70, chip_sz, 32),
        read=read or (lambda y, x, size: np.full((size, size, 3), 7, np.uint8)),
        open=lambda: Sink(log, name, fail),
        classes=3,
        close=lambda: log.append((name, "closed")),
    )


def test_batches_run_across_images(tmp_path):
    log, sizes, told = [], [], []

    def predict(chips):
        sizes.append(chips.shape[:2])
        return shaded(chips)

    targets = [a_target(log, str(i), height=33 * (i + 1)) for i in range(4)]
    targets += [a_target(log, "large", chip_sz=48), a_target(log, "last")]
    report = prediction.stream(targets, predict, 8, tell=lambda *a: told.append(a))
    assert sizes == [(8, 32)] * 5 + [(2, 32), (6, 48), (8, 32), (4, 32)]
    done = [item for item in log if item[1] not in ("closed", "aborted")]
    assert done == [("0", 33), ("1", 66), ("2", 99), ("3", 132), ("large", 100),
                    ("last", 100)]  # fmt: skip
    area = 70 * (330 + 200)
    assert told[-1] == (area, area) and told == sorted(told)
    assert (report["targets"], report["pixels"], report["chips"]) == (6, area, 60)
    assert report["seconds"]["total"] >= report["seconds"]["computing"] > 0


def test_a_generator_of_targets_is_asked_late(tmp_path):
    log = []

    def targets():
        for i in range(5):
            log.append(f"made {i}")
            yield a_target(log, str(i), height=400)

    prediction.stream(targets(), shaded, 4, tell=lambda done, of: log.append(of))
    assert log.index("made 4") > log.index(("0", 400)) and None in log


@pytest.mark.parametrize("fail", ["open", "put", "finish"])
@pytest.mark.parametrize("place", [0, 1])
def test_an_error_in_writing_stops_all_and_names_the_image(fail, place):
    log, count = [], threading.active_count()
    fails = [fail if i == place else None for i in range(9)]
    targets = [a_target(log, f"image{i}", f, height=300) for i, f in enumerate(fails)]
    found = within(20, lambda: prediction.stream(targets, shaded, 2))
    assert isinstance(found, RuntimeError) and isinstance(found.__cause__, OSError)
    assert str(found).startswith(f"image{place}: writing failed: ")
    assert ("image8", 300) not in log and threading.active_count() <= count + 1
    assert (f"image{place}", "aborted") in log or fail == "open"


def test_an_error_in_reading_stops_all_and_names_the_image():
    def broken(y, x, size):
        if y > 100:
            raise OSError("gone")
        return np.zeros((size, size, 3), np.uint8)

    log = []
    targets = [a_target(log), a_target(log, "second", height=400, read=broken)]
    targets.append(a_target(log, "third"))
    found = within(20, lambda: prediction.stream(targets, shaded, 2))
    assert isinstance(found, RuntimeError)
    assert str(found) == "second: reading failed: gone"
    assert ("second", "closed") in log and not any(n == "third" for n, _ in log)


@pytest.mark.parametrize("error", [MemoryError("no memory"), KeyboardInterrupt()])
def test_what_predict_raises_comes_through(error):
    log, calls = [], []

    def predict(chips):
        calls.append(1)
        if len(calls) > 3:
            raise error
        return shaded(chips)

    targets = [a_target(log, height=3000), a_target(log, "second")]
    found = within(20, lambda: prediction.stream(targets, predict, 2))
    assert found is error and ("first", "aborted") in log
    if isinstance(error, MemoryError):
        assert error.__notes__ == ["while predicting first"]


@pytest.mark.parametrize("predict, text", [
    (lambda chips: shaded(chips)[:, :2], "instead of"),
    (lambda chips: shaded(chips)[..., :-1], "instead of"),
    (lambda chips: shaded(chips) * np.nan, "not finite"),
])  # fmt: skip
def test_scores_that_cannot_be_are_refused(predict, text):
    found = within(20, lambda: prediction.stream([a_target([])], predict))
    assert isinstance(found, ValueError) and text in str(found)


def test_a_slow_reader_writer_and_network_overlap():
    def slow(y, x, size):
        time.sleep(0.01)
        return np.zeros((size, size, 3), np.uint8)

    def predict(chips):
        time.sleep(0.02 * len(chips) / 2)
        return shaded(chips)

    target = a_target([], height=1280, read=slow)
    report = prediction.stream([target], predict, 2)
    parts = report["seconds"]
    assert parts["total"] < 0.8 * (parts["reading"] + parts["computing"])


def test_nothing_half_written_is_left(tmp_path):
    folder, _ = map_one(tmp_path, noise(600, 90), scores="uint8")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    calls = []

    def predict(chips):
        calls.append(1)
        if len(calls) > 4:
            raise MemoryError
        return shaded(chips)

    with pytest.raises(MemoryError):
        map_one(tmp_path, noise(600, 90, seed=1), predict, scores="uint8")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "out" / "image").mkdir(parents=True)
    for name in (
        ".0123abcd.labels.tif",
        ".0123abcd.polygons.gpkg-journal",
        ".mine.tif",
    ):
        (tmp_path / "out" / "image" / name).touch()
    folder, _ = map_one(tmp_path, noise(90, 90), polygons=False)
    assert {p.name for p in folder.iterdir()} == {"labels.tif", ".mine.tif"}


def test_an_image_that_vanishes_or_shrinks_is_named(tmp_path):
    for name in ("first", "second"):
        write_image(tmp_path / f"{name}.tif", noise(300, 90))
    second = tmp_path / "second.tif"
    options = {"classes": CLASSES, "chip_sz": 64, "batch_sz": 1, "prefetch": 1}
    changes = {
        "No such file": second.unlink,
        "had 300 x 90 pixels when .* and has 200 x 90": lambda: write_image(
            second, noise(200, 90)
        ),
    }
    for text, change in changes.items():
        write_image(second, noise(300, 90))
        calls = []

        def predict(chips, calls=calls, change=change):
            calls.append(1)
            if len(calls) == 1:
                change()
            return shaded(chips)

        with pytest.raises(RuntimeError, match=f"second.tif: reading failed: .*{text}"):
            map_images(tmp_path, predict, tmp_path / text[:3], **options)


@contextlib.contextmanager
def no_file_above(size):
    "Stands in for a full disk."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.99, 0.999])
@pytest.mark.parametrize(
    "scores, last", [(None, "labels.tif"), ("uint8", "scores.tif")]
)
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, share, scores, last):
    def predict(chips):
        rng = np.random.default_rng(0)
        return rng.random((len(chips), 3, 64, 64)).astype(np.float32)

    more = {"scores": scores, "polygons": False}
    folder, _ = map_one(tmp_path, noise(400, 400), predict, **more)
    size = (folder / last).stat().st_size
    shutil.rmtree(folder)
    with no_file_above(int(share * size)):
        with pytest.raises(RuntimeError, match="image.tif: writing failed"):
            map_images(
                tmp_path / "image.tif", predict, tmp_path / "out", classes=CLASSES,
                chip_sz=64, **more,
            )  # fmt: skip
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height():
    import subprocess
    import sys

    script = Path(__file__).parent / "bench" / "memory.py"
    command = [sys.executable, str(script), "--rows", "5000", "20000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ratio"] < 1.1

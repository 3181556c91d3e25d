"""Configurations: what they say, what they refuse, what plain Raster Vision does with them."""

import json
import os
import subprocess
import sys
import urllib.error
import warnings
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from rvtutorial import config, scenes, viz
from rvtutorial.config import _predict_stride, get_config, make_classes, make_scene
from rvtutorial.data import checks
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.data.validity import Validity
from rvtutorial.engine import inputs
from rvtutorial.metrics.counting import polygons_of
from rvtutorial.runs import STOCK, Hyperparams, Run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "smoke"
    return make_sample_scenes(folder, n_train=4, n_val=2, n_test=2, size=260)


@pytest.fixture
def make(data, tmp_path):
    "A function that makes the smoke preset's config with some values changed."

    def build(folder="run", **changes):
        return get_config("inprocess", tmp_path / folder, "smoke", data, **changes)

    return build


def raster_labels(data, out, value=255):
    "The same scenes with label rasters in place of polygons."
    from rasterio.features import rasterize

    for image in sorted(data.glob("*/*.tif")):
        number = image.stem.split("img")[1]
        label = image.with_name(f"buildings_AOI_2_Vegas_img{number}.geojson")
        shapes = [f["geometry"] for f in json.loads(label.read_text())["features"]]
        target = out / image.parent.name
        target.mkdir(parents=True, exist_ok=True)
        with rasterio.open(image) as file:
            pixels, profile = file.read(), file.profile
        with rasterio.open(target / f"image_{number}.tif", "w", **profile) as file:
            file.write(pixels)
        mask = np.zeros(pixels.shape[1:], "uint8")
        if shapes:
            found = [(shape, value) for shape in shapes]
            mask = rasterize(found, mask.shape, transform=profile["transform"])
        profile.update(count=1, dtype="uint8", nodata=0)
        with rasterio.open(target / f"mask_{number}.tif", "w", **profile) as file:
            file.write(mask.astype("uint8"), 1)
    return out


# --- what a configuration says


def test_our_values_reach_the_places_where_raster_vision_reads_them(make):
    cfg = make(
        chip_sz=96, stride_length=90, max_windows=3, epochs=4, batch_sz=5, lr=2e-3
    )
    data, solver = cfg.backend.data, cfg.backend.solver
    train, val = cfg.dataset.train_scenes[0].id, cfg.dataset.validation_scenes[0].id
    assert (data.sampling[train].size, data.sampling[train].max_windows) == (96, 3)
    assert data.sampling[train].method.value == "random"
    assert tuple(data.sampling[train].padding) == (0, 0)
    assert data.sampling[val].method.value == "sliding"
    assert data.sampling[val].padding == 0 and max(data.sampling[val].stride) <= 90
    assert (data.img_sz, data.num_workers) == (96, 0)
    assert (solver.lr, solver.num_epochs, solver.batch_sz) == (2e-3, 4, 5)
    assert solver.ignore_class_index == 2
    predict = cfg.predict_options
    assert (predict.chip_sz, predict.stride, predict.batch_sz) == (96, 82, 5)
    store = cfg.dataset.validation_scenes[0].label_store
    assert store.smooth_output and store.smooth_as_uint8


def test_a_run_keeps_the_network_and_the_windows_with_which_it_began(
    make, tmp_path, monkeypatch
):
    "Else a training that an earlier version began could not go on."
    from hashlib import sha256

    from rvtutorial.engine import bundles

    hub, before = tmp_path / "run/hub/hubconf.py", "# the network of before"
    cfg = make(stride_length=100)
    now, stride = hub.read_text(), cfg.predict_options.stride
    assert stride < 100
    hub.write_text(before)
    assert make(stride_length=100).predict_options.stride == stride
    assert hub.read_text() == now  # not ours
    known = {*bundles.OUR_CODE, sha256(before.encode()).hexdigest()}
    monkeypatch.setattr(bundles, "OUR_CODE", known)
    hub.write_text(before)
    tree = json.loads(cfg.json())
    tree["predict_options"]["stride"] = 100
    (tmp_path / "run/pipeline-config.json").write_text(json.dumps(tree))
    assert make(stride_length=100).predict_options.stride == 100
    assert hub.read_text() == before


@settings(max_examples=200, deadline=None)
@given(
    sides=st.lists(st.integers(64, 900), min_size=1, max_size=4),
    stride=st.integers(1, 64),
)
def test_windows_hang_over_as_little_as_they_can(sides, stride):
    "No more windows than with the stride that was asked for, and never further out."
    hp = Hyperparams(chip_sz=64, stride_length=stride)
    found = _predict_stride(hp, [(side, side) for side in sides])

    def many(side, stride):
        return -(-(side - 64) // stride)

    assert 1 <= found <= stride
    assert all(many(side, found) == many(side, stride) for side in sides)
    shorter = any(
        many(side, found - 1) > many(side, stride) for side in sides if found > 1
    )
    assert shorter or found == 1 or set(sides) == {64}


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(32, 900), st.integers(32, 900)),
    chip_sz=st.integers(16, 400),
    share=st.floats(0.1, 1),
)
def test_the_validation_grid_stays_inside_and_misses_next_to_nothing(
    shape, chip_sz, share
):
    "Overhang would be scored: as background, or as whatever class has the value 0."
    from rastervision.core.box import Box

    chip_sz = min(chip_sz, *shape)
    hp = Hyperparams.of("sample").replace(
        chip_sz=chip_sz, stride_length=max(1, int(chip_sz * share))
    )
    splits = {"train": [], "val": [scenes.Scene("a", Path("a.tif"))], "test": []}
    grid = config.make_windows(hp, splits, {"a": (*shape, 3)})["a"]
    windows = Box(0, 0, *shape).get_windows(
        size=(grid.size,) * 2, stride=grid.stride, padding=(grid.padding,) * 2
    )
    for side, first, last in zip(shape, (0, 1), (2, 3), strict=True):
        starts = {tuple(w)[first] for w in windows}
        ends = {tuple(w)[last] for w in windows}
        assert min(starts) == 0 and max(ends) <= side
        # whole pixels only: at most one lost for each step
        assert side - max(ends) < max(len(starts), 2)
        assert max(np.diff(sorted(starts)), default=0) <= hp.stride_length


def test_every_hyperparameter_may_be_text(make):
    text = dict(
        chip_sz="96", stride_length="90", max_windows="3", epochs="4", batch_sz="5",
        lr="2e-3", img_sz="none", padding="none", seed="3", augment="false",
        one_cycle="no", class_weights="2,1", scaling="0,2000", null="class",
        scores="float32", onnx="true", val_windows="random", pretrained="false",
        model="unet", backbone="resnet101",
    )  # fmt: skip
    cfg = make(**text)
    assert cfg.backend.data.augmentors == []
    assert cfg.backend.solver.class_loss_weights == [2, 1, 1]
    assert cfg.backend.solver.ignore_class_index is None
    kinds = {s.method.value for s in cfg.backend.data.sampling.values()}
    assert kinds == {"random"}
    assert {s.padding for s in cfg.backend.data.sampling.values()} == {None}
    assert not cfg.dataset.test_scenes[0].label_store.smooth_as_uint8


def test_stock_values_give_what_plain_raster_vision_would_have(make):
    cfg = make(**{k: "none" if v is None else v for k, v in STOCK.items()})
    assert cfg.backend.data.img_sz == 256
    assert cfg.backend.data.base_transform is None
    assert not cfg.dataset.validation_scenes[0].label_store.smooth_output
    assert "null_id" not in cfg.backend.model.external_def.entrypoint_kwargs


def test_versions_are_sets_of_values(data, tmp_path):
    no = dict(pretrained=False, chip_sz=128, stride_length=128)
    one = get_config("inprocess", tmp_path / "1", "version1", data, **no)
    two = get_config("inprocess", tmp_path / "2", "version2", data, **no)
    assert (one.backend.solver.num_epochs, two.backend.solver.num_epochs) == (3, 8)
    assert (one.backend.solver.batch_sz, two.backend.solver.batch_sz) == (2, 24)
    assert one.backend.model.external_def is None
    assert one.backend.model.backbone.value == "resnet50"


def test_only_stock_classes(make):
    def kinds(node):
        if isinstance(node, dict):
            yield from [node["type_hint"]] if "type_hint" in node else []
            for item in node.values():
                yield from kinds(item)
        elif isinstance(node, list):
            for item in node:
                yield from kinds(item)

    from rastervision.pipeline import registry_

    for name in set(kinds(json.loads(make().json()))):
        assert registry_.get_config(name).__module__.startswith("rastervision.")


def test_scaling_comes_from_the_training_scenes_only(make, data):
    cfg = make()
    transform = cfg.backend.data.base_transform["transform"]
    train = scenes.find_splits(data)["train"]
    low, high = scenes.percentiles(train, *checks.PERCENTILES)
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    assert np.allclose(transform["mean"], middle)


def test_scaled_values_lie_about_minus_two_to_two(make):
    from rastervision.pipeline.file_system import get_tmp_dir

    cfg = make()
    cfg.update()
    with get_tmp_dir() as tmp:
        train, _, _ = cfg.backend.data.build(tmp)
        x, y = train[0]
    assert -2.6 < x.min() < 0 < x.max() < 8
    assert set(np.unique(y)) <= {0, 1, 2}


def test_make_scene_keeps_the_four_arguments_of_the_course(data):
    scene = scenes.find_splits(data)["val"][0]
    made = make_scene(scene.id, str(scene.image), str(scene.label), make_classes())
    assert made.id == scene.id
    assert made.label_source.raster_source.rasterizer_config.background_class_id == 1


def test_bands_are_counted_from_one(make):
    cfg = make(bands="3,1")
    assert cfg.dataset.train_scenes[0].raster_source.channel_order == [2, 0]
    assert cfg.backend.model.external_def.entrypoint_kwargs["in_channels"] == 2
    assert len(cfg.backend.data.base_transform["transform"]["mean"]) == 2


def test_a_chip_as_large_as_the_scene_can_be_drawn(make):
    from rastervision.pipeline.file_system import get_tmp_dir

    cfg = make(chip_sz=260, stride_length=260, max_windows=1)
    cfg.update()
    with get_tmp_dir() as tmp:
        train, _, _ = cfg.backend.data.build(tmp)
        assert train[0][0].shape == (3, 260, 260)


# --- labels


def test_raster_labels_are_the_same_as_polygons(make, data, tmp_path):
    from rastervision.pipeline.file_system import get_tmp_dir

    rasters = raster_labels(data, tmp_path / "rasters")
    patterns = dict(image_pattern="image_{id}.tif", label_pattern="mask_{id}.tif")
    values = dict(label_values="255:building,0:background")
    other = get_config(
        "inprocess", tmp_path / "r", "smoke", rasters, **patterns, **values
    )
    with get_tmp_dir() as tmp:
        for a, b in zip(
            make().dataset.all_scenes, other.dataset.all_scenes, strict=True
        ):
            a.label_store = b.label_store = None
            classes = make_classes()
            a = a.build(classes, tmp).label_source.get_label_arr()
            b = b.build(classes, tmp).label_source.get_label_arr()
            assert (a != b).mean() < 0.05  # polygons are cut to whole pixels
            assert ((a == 2) == (b == 2)).all()  # holes lie on whole pixels


def test_polygons_that_name_no_class_are_what_is_looked_for(make, data):
    "Also where the background comes first in the list."
    from rastervision.pipeline.file_system import get_tmp_dir

    classes = make_classes("background,building")
    scene = scenes.find_splits(data)["val"][0]
    plain = make_scene("1", scene.image, scene.label, classes)
    usual = make().dataset.validation_scenes[0]
    ours = make("other", classes="background,building").dataset.validation_scenes[0]
    plain.label_store = usual.label_store = ours.label_store = None
    label = ours.label_source.raster_source.vector_source.uris
    with get_tmp_dir() as tmp:
        usual = usual.build(make_classes(), tmp).label_source.get_label_arr()
        for found in (plain, ours):
            labels = found.build(classes, tmp).label_source.get_label_arr()
            assert set(np.unique(labels)) == {0, 1} == set(np.unique(usual))
            assert ((labels == 1) == (usual == 0)).all()
    with rasterio.open(scene.image) as file:  # figures and scores read the same
        assert set(polygons_of(label, file)[1]) == {1}


def test_values_without_a_class_are_named(data, tmp_path):
    rasters = raster_labels(data, tmp_path / "rasters")
    patterns = dict(image_pattern="image_{id}.tif", label_pattern="mask_{id}.tif")
    with pytest.raises(ValueError, match=r"255.*label_values="):
        get_config("inprocess", tmp_path / "r", "smoke", rasters, **patterns)
    values = dict(label_values="255:house,0:background")
    with pytest.raises(ValueError, match="house"):
        get_config("inprocess", tmp_path / "r2", "smoke", rasters, **patterns, **values)


def hollow(image):
    "Cut a hole into an image: a corner without data."
    with rasterio.open(image, "r+") as file:
        pixels = file.read()
        pixels[:, :100, :50] = 0
        file.write(pixels)


def test_pixels_without_data_are_null(tmp_path, capsys):
    from rastervision.pipeline.file_system import get_tmp_dir

    data = make_sample_scenes(tmp_path / "d", n_train=2, n_val=1, n_test=1, size=200)
    for split in ("train", "val"):
        hollow(scenes.find_splits(data)[split][0].image)
    for null in ("ignore", "class"):
        cfg = get_config("inprocess", tmp_path / null, "smoke", data, null=null)
        for found in (cfg.dataset.validation_scenes[0], cfg.dataset.train_scenes[0]):
            found.label_store = None
            with get_tmp_dir() as tmp:
                labels = found.build(make_classes(), tmp).label_source.get_label_arr()
            hole = np.zeros(labels.shape, bool)
            judged = found is cfg.dataset.validation_scenes[0]
            hole[:100, :50] = null == "ignore" and judged
            assert ((labels == 2) == hole).all()
        told = capsys.readouterr().err
        assert ("6% of the pixels of training scenes hold no" in told) == (
            null == "ignore"
        )
    how = dict(sampling="labels", null="ignore")
    get_config("inprocess", tmp_path / "labels", "smoke", data, **how)
    assert "of training scenes hold no" not in capsys.readouterr().err


def test_dark_specks_are_not_holes(tmp_path):
    profile = dict(driver="GTiff", width=50, height=50, count=3, dtype="uint8")
    pixels = np.full((3, 50, 50), 9, "uint8")
    pixels[:, 10:14, 10:14] = 0
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(pixels)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert Validity(file).valid().all()
    pixels[:, :20, :20] = 0
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(pixels)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (~Validity(file).valid()).sum() == 400


def with_a_fourth_band(data, out, band, only=("train", "val", "test")):
    "The same scenes as floats with one band more, in some splits."
    copytree(data, out)
    for image in sorted(out.glob("*/*.tif")):
        with rasterio.open(image) as file:
            pixels, profile = file.read().astype("float32"), file.profile
        if image.parent.name in only:
            more = np.where(pixels.any(0), band, 0).astype("float32")
            pixels = np.concatenate([pixels, more[None]])
        profile.update(dtype="float32", count=len(pixels), predictor=1)
        with rasterio.open(image, "w", **profile) as file:
            file.write(pixels)
    return out


HALF = np.where(np.arange(260) < 130, np.nan, 1)
FOURTH = {"nan": np.nan, "half nan": HALF, "infinite": np.inf, "some": np.nan}


@pytest.mark.parametrize("name", FOURTH)
def test_a_band_that_is_not_used_decides_nothing(data, tmp_path, name):
    "Not what holds data, not the range of values, not what is replaced in them."
    from rastervision.pipeline.file_system import get_tmp_dir

    only = ("train",) if name == "some" else ("train", "val", "test")
    four = with_a_fourth_band(data, tmp_path / "four", FOURTH[name], only)
    three = with_a_fourth_band(data, tmp_path / "three", 0, only=())
    said = dict(bands="1,2,3", null="ignore")
    one = get_config("inprocess", tmp_path / "a", "smoke", four, **said)
    other = get_config("inprocess", tmp_path / "b", "smoke", three, **said)
    assert one.backend.data.base_transform == other.backend.data.base_transform
    a, b = (made.dataset.validation_scenes[0] for made in (one, other))
    assert a.raster_source.transformers == b.raster_source.transformers
    a.label_store = b.label_store = None
    with get_tmp_dir() as tmp:
        a, b = (s.build(make_classes(), tmp).label_source for s in (a, b))
        assert (a.get_label_arr() == b.get_label_arr()).all()
    with pytest.raises(ValueError, match=r"img\d+\.tif: bands must be from 1 to 3"):
        get_config("inprocess", tmp_path / "c", "smoke", three, bands="1,4")


def test_a_hole_of_a_few_pixels_is_kept(tmp_path):
    "Less than a ten-thousandth of the image."
    from rastervision.pipeline.file_system import get_tmp_dir

    small = make_sample_scenes(tmp_path / "d", n_train=2, n_val=1, n_test=0, size=700)
    data = with_a_fourth_band(small, tmp_path / "floats", 0, only=())
    with rasterio.open(scenes.find_splits(data)["val"][0].image, "r+") as file:
        pixels = file.read()
        pixels[:, 5:9, 5:11] = np.nan
        file.write(pixels)
    made = get_config("inprocess", tmp_path / "run", "smoke", data, null="ignore")
    scene = made.dataset.validation_scenes[0]
    scene.label_store = None
    with get_tmp_dir() as tmp:
        labels = scene.build(make_classes(), tmp).label_source.get_label_arr()
    assert (labels == 2).sum() == 24 and (labels[5:9, 5:11] == 2).all()


def test_a_read_only_data_folder_works(make, data):
    before = sorted(p.name for p in data.rglob("*"))
    make()
    assert sorted(p.name for p in data.rglob("*")) == before


def test_two_ways_to_write_one_thing_are_one_run(make, data, tmp_path):
    one = make(classes="building,background", bands="1,2")
    make(classes="building, background ", bands="1, 2", zeros="empty")
    labels = Run(one.root_uri).manifest["asked"]["labels"]
    assert labels["classes"] == "building,background" and labels["zeros"] is None
    rasters = raster_labels(data, tmp_path / "rasters")
    how = dict(image_pattern="image_{id}.tif", label_pattern="mask_{id}.tif")
    for said in ("255:building,0:background", "255 : building, 0:background"):
        more = how | dict(label_values=said)
        get_config("inprocess", tmp_path / "r", "smoke", rasters, **more)
    with pytest.raises(ValueError, match="zeros"):
        make(zeros="data", classes="building,background", bands="1,2")


def test_a_view_follows_its_image(data, tmp_path):
    "A band that was asked for although it is tagged alpha stays one after a move."
    there = copytree(data, tmp_path / "old" / "d & e")
    for image in there.glob("*/*.tif"):
        with rasterio.open(image) as file:
            pixels, profile = file.read(), file.profile
        profile.update(count=4)
        with rasterio.open(image, "w", **profile) as file:
            file.write(np.concatenate([pixels, pixels[:1]]))
            kinds = ("red", "green", "blue", "alpha")
            file.colorinterp = [rasterio.enums.ColorInterp[kind] for kind in kinds]
    made = get_config("inprocess", tmp_path / "run", "smoke", there, bands="1,2,3,4")
    made.to_file(str(tmp_path / "run" / "pipeline-config.json"))
    run, scene = Run(tmp_path / "run"), made.dataset.validation_scenes[0].id
    before = rasterio.open(run.image(scene)).read()
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=f"image of scene {scene} was .*data="):
        run.image(scene)
    with rasterio.open(run.image(scene, tmp_path / "new")) as file:
        assert (file.read() == before).all()
        assert rasterio.enums.ColorInterp.alpha not in file.colorinterp
    assert run.image(scene) == run.image(scene, tmp_path / "new")


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(chip_sz=300), "chip_sz must be at most 260"),
        (dict(class_weights="1,2,3,4"), "class_weights must be 2 numbers"),
        (dict(classes="building"), "two or more different names"),
        (dict(classes="a,a"), "two or more different names"),
        (dict(bands="4"), "bands must be from 1 to 3"),
        (dict(bands="0,1"), "bands must be from 1 to 3"),
        (dict(bands="red"), "bands names red, and .* names none"),
        (dict(epochs=0), "epochs must be"),
        (dict(epoch=3), "did you mean 'epochs'"),
        (dict(stride_length=200), "stride_length 200 is larger than chip_sz"),
        (dict(output_uri="s3://bucket/run"), "a folder of this machine"),
    ],
)
def test_refused_before_anything_is_written(data, tmp_path, changes, words):
    given = dict(output_uri=tmp_path / "run", preset="smoke", data=data) | changes
    with pytest.raises(ValueError, match=words):
        get_config("inprocess", **given)
    assert not (tmp_path / "run").exists()


def spoiled(data, out, spoil):
    "A copy of the scenes in which something was done to the last of them."
    import shutil

    shutil.copytree(data, out)
    last = scenes.find_splits(out)["test"][-1]
    spoil(last)
    return out


def cut(scene):
    scene.label.write_text(scene.label.read_text()[:200])


def no_class(scene):
    found = json.loads(scene.label.read_text())
    for feature in found["features"]:
        feature["properties"]["building"] = "tent"
    scene.label.write_text(json.dumps(found))


def gone(scene):
    scene.label.unlink()


def half_an_image(scene):
    scene.image.write_bytes(scene.image.read_bytes()[:3000])


@pytest.mark.parametrize("spoil", [cut, gone, half_an_image, no_class])
def test_a_refused_call_leaves_the_folder_to_the_next(data, tmp_path, spoil):
    bad = spoiled(data, tmp_path / "bad", spoil)
    how = dict(class_field="building") if spoil is no_class else {}
    with pytest.raises((ValueError, FileNotFoundError)):
        get_config("inprocess", tmp_path / "run", "smoke", bad, **how)
    assert not (tmp_path / "run").exists()
    get_config("inprocess", tmp_path / "run", "smoke", data)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(class_field="kind"),
        dict(bands="1,9"),
        dict(label_values="255:house"),
        dict(layer="houses"),
        dict(class_weights="1,2,3,4"),
        dict(scaling="banana"),
        dict(classes="building"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_corrected_call_works_in_the_same_folder(data, tmp_path, wrong, there):
    run = tmp_path / "run"
    if there:  # a job's own files lie there before it begins
        run.mkdir()
        (run / "job.json").write_text("{}")
    with pytest.raises(ValueError):
        get_config("inprocess", run, "smoke", data, **wrong)
    names = [p.name for p in run.iterdir()] if run.exists() else []
    assert names == (["job.json"] if there else [])
    get_config("inprocess", run, "smoke", data)
    assert (run / "run.json").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_while_the_folder_is_filled_is_undone(
    data, tmp_path, monkeypatch, there
):
    "Such as a full disk: what was written goes, what lay there before stays."
    run = tmp_path / "run"
    if there:
        run.mkdir()
        (run / "job.json").write_text("{}")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(config, "make_model", full)
        with pytest.raises(OSError, match="No space"):
            get_config("inprocess", run, "smoke", data)
    names = [p.name for p in run.iterdir()] if run.exists() else []
    assert names == (["job.json"] if there else [])
    get_config("inprocess", run, "smoke", data, lr=2e-3)
    before = (run / "run.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(config, "make_model", full)
        with pytest.raises(OSError, match="No space"):
            get_config("inprocess", run, "smoke", data, lr=2e-3)
    assert (
        run / "run.json"
    ).read_text() == before  # a run that was there is not undone


def test_none_is_the_presets_value_and_none_in_words_is_stock(make):
    ours, stock = make("a", padding=None), make("b", padding="none")
    paddings = [
        {
            s.padding
            for s in cfg.backend.data.sampling.values()
            if s.max_windows != 10_000
        }
        for cfg in (ours, stock)
    ]
    assert paddings[0] <= {(0, 0), 0} and None in paddings[1]
    assert "none" in get_config.__doc__ and "preset" in get_config.__doc__


def test_an_empty_training_folder_is_refused(data, tmp_path):
    (tmp_path / "d" / "train").mkdir(parents=True)
    for name in ("val", "test"):
        (tmp_path / "d" / name).symlink_to(data / name)
    with pytest.raises((ValueError, FileNotFoundError), match="train"):
        get_config("inprocess", tmp_path / "run", "smoke", tmp_path / "d")


def test_a_folder_of_another_run_is_refused_and_unchanged(make, tmp_path):
    make(lr=1e-3)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match="0.001.*0.01"):
        make(lr=1e-2)
    with pytest.raises(ValueError, match="other settings"):
        make(lr=1e-3, classes="roof,background")
    assert (tmp_path / "run" / "run.json").read_text() == before
    make(lr=1e-3)


def test_missing_pretrained_weights_are_named(data, tmp_path, monkeypatch):
    import torch

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(FileNotFoundError) as err:
        get_config(
            "inprocess",
            tmp_path / "run",
            "version2",
            data,
            chip_sz=128,
            stride_length=120,
        )
    text = str(err.value)
    assert "resnet50-" in text and str(tmp_path / "hub" / "checkpoints") in text
    assert "curl" in text and "pretrained=false" in text
    assert not (tmp_path / "run").exists()
    name = text.split("needs ")[1].split(",")[0]
    (tmp_path / "hub" / "checkpoints" / name).write_bytes(b"x")
    assert inputs.check_pretrained(Hyperparams.of("version2")).name == name
    assert inputs.check_pretrained(Hyperparams.of("sample")) is None


def test_many_scenes_may_be_open_at_once(monkeypatch):
    import resource

    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits["now"])
    monkeypatch.setattr(
        resource, "setrlimit", lambda which, new: limits.update(now=new)
    )
    assert inputs.allow_open_files(10) == 1024
    assert inputs.allow_open_files(1060) == limits["now"][0] == 3436
    assert limits["now"][1] == 4096
    with pytest.raises(OSError, match="2000 scenes need up to 6256 open files.*4096"):
        inputs.allow_open_files(2000)


# --- plain Raster Vision


@pytest.mark.slow
@pytest.mark.parametrize("habits", ["ours", "stock"])
def test_plain_rastervision_runs_it_from_anywhere(data, tmp_path, habits):
    stock = {k: "none" if v is None else str(v).lower() for k, v in STOCK.items()}
    asked = {"output_uri": str(tmp_path / "run"), "preset": "smoke", "data": str(data)}
    asked |= {"epochs": "1", "lr": "1e-3"} | (stock if habits == "stock" else {})
    words = [w for pair in asked.items() for w in ("-a", *pair)]
    program = Path(sys.executable).with_name("rastervision")
    done = subprocess.run(
        [program, "run", "inprocess", "rvtutorial.config", *words],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run(tmp_path / "run")
    assert len(run.log()) == 1 and run.state == "succeeded"
    assert run.hyperparams["lr"] == 1e-3
    assert set(run.results) == {"validation", "test"}
    assert (run.path / "bundle" / "model-bundle.zip").exists()
    # what plain Raster Vision leaves is drawn and scored like a run of ours
    first = run.scene_ids("validation")[0]
    assert len(viz.plot_prediction(run.path, first).axes) == 2
    assert viz.plot_prediction(run.path, 0).axes
    assert viz.plot_metrics(run.path).axes and viz.display_conf_mat(run.path).axes
    board = viz.leaderboard({"plain": run.path})
    assert board.loc["plain", "pixel_f1"] == pytest.approx(
        run.results["validation"]["f1"], nan_ok=True
    )


def test_importing_keeps_warnings_on():
    code = (
        "import numpy, warnings; before = list(warnings.filters)\n"
        "import rvtutorial.config, rvtutorial.engine.pipeline\n"
        "new = [one for one in warnings.filters if one not in before]\n"
        "assert not [one for one in new if one[1] is None and one[2] is Warning], new\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_config_is_found_by_its_module_name():
    assert config.get_config is get_config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_classes("a, b")


def test_null_comes_last():
    assert make_classes("a,b,null").names == make_classes("a,b").names
    with pytest.raises(ValueError, match="the last class, got a,null,b: leave it out"):
        make_classes("a,null,b")


def test_weights_of_a_run_with_other_classes(tmp_path, capsys):
    from rvtutorial.core.records import write_json
    from rvtutorial.engine.inputs import check_beginning

    asked = {"labels": {"classes": "a,b", "bands": "1,2,3"}}
    write_json(tmp_path / "run.json", {"asked": asked})
    hp = Hyperparams(init_weights=tmp_path)
    check_beginning(hp, {"classes": "a,b", "bands": "1,2,3"})
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="classes a,b, this run b,a: .*same order"):
        check_beginning(hp, {"classes": "b,a", "bands": "1,2,3"})
    check_beginning(hp, {"classes": "a,c", "bands": None})
    said = capsys.readouterr().err
    assert "classes a,b, this run a,c" in said and "this run all" in said


def test_the_job_notebook_has_every_parameter():
    from inspect import signature

    from rvtutorial.hpc.job import JobNotebook

    asked = set(signature(get_config).parameters) - {"runner", "hyperparams"}
    found = set(JobNotebook("train_rastervision").parameters)
    assert found == asked | set(Hyperparams.model_fields) | {"pause"}


def test_a_class_may_name_its_colour():
    classes = make_classes("roof:#FF0000, road")
    assert classes.names == ["roof", "road", "null"]
    assert classes.colors[:2] == ["#FF0000", make_classes("a,b").colors[1]]
    with pytest.raises(ValueError, match="of class roof must be six .* got #F00"):
        make_classes("roof:#F00,road")
    with pytest.raises(ValueError, match="two or more different names"):
        make_classes("roof:#FF0000,roof")

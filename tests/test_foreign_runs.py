"""Runs that share a place, come from plain Raster Vision, are of another task, or of images without a place on Earth."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import stock_configs
from rastervision.core.box import Box
from rastervision.core.data import (
    ClassConfig,
    MultiRasterSourceConfig,
    SemanticSegmentationLabelStoreConfig,
)
from rastervision.core.rv_pipeline import (
    ChipClassificationConfig,
    ChipOptions,
    ObjectDetectionChipOptions,
    ObjectDetectionConfig,
    ObjectDetectionPredictOptions,
    ObjectDetectionWindowSamplingConfig,
    PredictOptions,
)
from rastervision.pytorch_backend import (
    PyTorchChipClassificationConfig,
    PyTorchObjectDetectionConfig,
)
from rastervision.pytorch_learner import (
    ClassificationGeoDataConfig,
    ClassificationModelConfig,
    ObjectDetectionGeoDataConfig,
    ObjectDetectionModelConfig,
)
from stock_configs import ZOO, grid, image, pipeline, scenes, solver, vector

from rvtutorial.core import files
from rvtutorial.engine import pipeline as engine
from rvtutorial.engine import reading
from rvtutorial.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def ours(config, commands=None, **options):
    return engine.run(config, commands, progress=False, precision="float32", **options)


def listing(folder):
    return sorted(p.relative_to(folder) for p in Path(folder).rglob("*"))


# --- two runs name the same place


def at(data, root, place, lr=2e-2, smooth=True, **more):
    "A run whose maps lie in `place`."
    store = SemanticSegmentationLabelStoreConfig(smooth_output=smooth)
    dataset = scenes(data, store=store)
    for scene in dataset.validation_scenes + dataset.test_scenes:
        scene.label_store.uri = str(place / scene.id)
    return pipeline(data, root, dataset, solver=solver(lr=lr), **more)


def alone(data, root, **how):
    "The maps of the same run, in a folder of its own."
    ours(at(data, root, root / "maps", **how))
    return {p.name: read(p / "scores.tif") for p in (root / "maps").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["fast", "stock"])
@pytest.mark.parametrize("second", ["fast", "stock"])
def test_a_map_of_another_run_is_replaced(data, tmp_path, first, second):
    "Not kept, and not averaged with."
    place = tmp_path / "shared"
    ours(at(data, tmp_path / "one", place), engine=first)
    before = {p.name: read(p / "scores.tif") for p in place.iterdir()}
    (place / "v1/notes.txt").write_text("mine")
    ours(at(data, tmp_path / "two", place, lr=1e-4), engine=second)
    after = {p.name: read(p / "scores.tif") for p in place.iterdir()}
    right = alone(data, tmp_path / "alone", lr=1e-4) if second == "fast" else None
    for scene, scores in after.items():
        assert np.abs(scores - before[scene]).max() > 0.05
        if right:
            assert np.abs(scores - right[scene]).max() < 1e-6
        assert np.abs(scores.sum(0) - 1).max() < 1e-2
    assert (place / "v1/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_first_run_notices_that_its_maps_are_gone(data, tmp_path, capsys):
    place = tmp_path / "shared"
    one = at(data, tmp_path / "one", place)
    ours(one)
    before = {p.name: read(p / "labels.tif") for p in place.iterdir()}
    engine.run(one, precision="float32")
    assert capsys.readouterr().out.count("done already") == 4
    ours(at(data, tmp_path / "two", place, lr=1e-4))
    engine.run(one, precision="float32")
    said = capsys.readouterr().out
    assert "train: done already" in said and "predict: done already" not in said
    for scene, labels in before.items():
        assert (read(place / scene / "labels.tif") == labels).all()


@pytest.mark.slow
def test_a_copy_of_a_run_keeps_its_maps(data, tmp_path, capsys):
    "A copy has other times; what its maps hold is what counts."
    ours(at(data, tmp_path / "one", tmp_path / "one/maps"))
    for path in (tmp_path / "one/maps").rglob("*.tif"):
        os.utime(path, (1, 1))
    engine.run(at(data, tmp_path / "one", tmp_path / "one/maps"), precision="float32")
    assert capsys.readouterr().out.count("done already") == 4


@pytest.mark.slow
def test_a_prediction_goes_on_after_a_kill(data, tmp_path):
    "Maps that are noted are kept, a map that is there but not noted is made again."
    place = tmp_path / "maps"
    config = at(data, tmp_path / "one", place)
    ours(config)
    run = Run(tmp_path / "one")
    before = {p.name: read(p / "scores.tif") for p in place.iterdir()}
    maps = run.manifest["went"]["maps"]
    del maps["scenes"]["s1"]
    run.update("went", maps=maps, stages=run.manifest["went"]["stages"][:1])
    times = {p.name: (p / "labels.tif").stat().st_mtime_ns for p in place.iterdir()}
    (place / "s1/labels.tif").write_bytes(b"half of a map")
    ours(config)
    now = {p.name: (p / "labels.tif").stat().st_mtime_ns for p in place.iterdir()}
    assert now["v1"] == times["v1"] and now["s1"] > times["s1"]
    assert all((read(place / n / "scores.tif") == a).all() for n, a in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("which", ["predict_uri", "train_uri", "eval_uri"])
def test_nobody_elses_files_are_deleted(data, tmp_path, which):
    "A folder outside the run's own that holds other files."
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    config = pipeline(data, tmp_path / "run", **{which: str(place)})
    if which == "predict_uri":
        ours(config)
        assert (place / "v1/labels.tif").exists()
    else:
        with pytest.raises(ValueError, match="holds files that it has not made"):
            ours(config)
    assert (place / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_the_run_itself_is_never_emptied(data, tmp_path):
    "Two stages in one folder: what belongs to the other one stays."
    run = tmp_path / "run"
    config = pipeline(data, run, predict_uri=str(run))
    ours(config)
    assert (run / "train/last-model.pth").exists() and (run / "v1/labels.tif").exists()
    with pytest.raises(ValueError, match="holds files that it has not made"):
        ours(pipeline(data, tmp_path / "two", train_uri=str(tmp_path / "two")))


# --- other tasks


def task(name, data, root):
    "A configuration of another task."
    dataset = scenes(data)
    chips = dict(scene_dataset=dataset, sampling=grid(), num_workers=0)
    if name == "object_detection":
        kind, backend, of_data = (
            ObjectDetectionConfig,
            PyTorchObjectDetectionConfig,
            ObjectDetectionGeoDataConfig,
        )
        model = ObjectDetectionModelConfig(pretrained=False)
        more = dict(predict_options=ObjectDetectionPredictOptions(chip_sz=64))
        windows = ObjectDetectionWindowSamplingConfig(size=64, stride=48)
        chips["sampling"] = windows
        more["chip_options"] = ObjectDetectionChipOptions(sampling=windows)
    else:
        kind, backend, of_data = (
            ChipClassificationConfig,
            PyTorchChipClassificationConfig,
            ClassificationGeoDataConfig,
        )
        model = ClassificationModelConfig(pretrained=False)
        more = dict(predict_options=PredictOptions(chip_sz=64))
        more["chip_options"] = ChipOptions(sampling=grid())
    for scene in dataset.all_scenes:
        scene.label_source = None
    return kind(
        root_uri=str(root),
        dataset=dataset,
        backend=backend(data=of_data(**chips), model=model, solver=solver()),
        **more,
    )


@pytest.mark.parametrize("how", ["fast", "stock"])
@pytest.mark.parametrize("name", ["object_detection", "chip_classification"])
def test_other_tasks_are_refused_before_anything_is_written(data, tmp_path, name, how):
    config = task(name, data, tmp_path / "run")
    for call in (ours, engine._prepare):
        options = {"engine": how} if call is ours else {}
        with pytest.raises(ValueError, match=f"another task .{name}"):
            call(config, **options)
    assert listing(tmp_path) == []


# --- images without a place on Earth


def pixels_only(data, kind):
    "Scenes as JPG, PNG or TIFF without georeference, with labels as raster or polygons."
    place = Path(data) / "pixels"

    def make(folder):
        target = place / folder.name
        target.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _copy(folder / "rgb.tif", target / f"image.{kind}")
            _copy(folder / "label.tif", target / "label.png")
        boxes = _boxes(folder / "label.tif")
        (target / "boxes.json").write_text(json.dumps(boxes))
        labels = vector(target / "boxes.json") if kind == "tif" else None
        labels = labels or stock_configs.raster(target / "label.png")
        return image(target / f"image.{kind}"), labels

    return make


def _copy(path, target):
    "The pixels of a raster, without its place."
    pixels = read(path)
    driver = {".jpg": "JPEG", ".png": "PNG", ".tif": "GTiff"}[target.suffix]
    count, height, width = pixels.shape
    size = dict(count=count, height=height, width=width, dtype="uint8")
    with rasterio.open(target, "w", driver=driver, **size) as file:
        file.write(pixels)


def _boxes(path):
    "Buildings as polygons in pixels."
    from rasterio.features import shapes

    labels = read(path)[0]
    found = shapes(labels, mask=labels == 0, transform=rasterio.Affine.identity())
    made = [{"type": "Feature", "properties": {}, "geometry": g} for g, _ in found]
    return {"type": "FeatureCollection", "features": made}


def learned(data, root, kind, **more):
    longer = solver(num_epochs=25, lr=2e-2, class_loss_weights=[4.0, 1.0, 0.1])
    dataset = scenes(data, pixels_only(data, kind), **more)
    return pipeline(data, root, dataset, solver=longer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_pixel_space_to_the_end(data, tmp_path, kind):
    "Trained, predicted, evaluated, bundled, and mapped anew: all in pixels."
    import geopandas
    import pyogrio

    run = Run(ours(learned(data, tmp_path / "run", kind)))
    assert run.state == "succeeded" and run.results["validation"]["f1"] > 0.8
    path = data / f"pixels/v1/image.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(run.path / "predict/v1/labels.tif") as file:
            assert file.crs is None and file.transform.is_identity
            assert file.shape == read(path).shape[1:]
        told = engine.predict(
            run.path,
            path,
            tmp_path / "maps",
            trust=True,
            progress=False,
            blend="votes",
            precision="float32",
        )
        folder = Path(told.folder.iloc[0])
        mine, again = (
            read(run.path / "predict/v1/labels.tif"),
            read(folder / "labels.tif"),
        )
    assert (mine == again).mean() > 0.999
    table = geopandas.read_file(folder / "polygons.gpkg")
    assert table.crs is None and table.area_m2.isna().all()
    assert (
        "y down"
        in pyogrio.read_info(folder / "polygons.gpkg")["layer_metadata"]["AXES"]
    )
    for shape in table.geometry[:5]:  # each lies on its pixels, counted from the top
        middle = shape.representative_point()
        assert again[0, int(middle.y), int(middle.x)] == 0


@pytest.mark.slow
def test_a_part_of_an_image_in_pixel_space(data, tmp_path):
    "A map of a part says where it begins."
    config = learned(data, tmp_path / "run", "png")
    for scene in config.dataset.all_scenes:
        scene.raster_source.bbox = (20, 30, 140, 170)
        scene.label_source.raster_source.bbox = (20, 30, 140, 170)
    run = Run(ours(config))
    with rasterio.open(run.path / "predict/v1/labels.tif") as file:
        assert file.shape == (120, 140)
        assert file.transform == rasterio.Affine.translation(30, 20)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_stock_is_refused_where_it_could_not_save(data, tmp_path, kind):
    config = learned(data, tmp_path / "run", kind)
    with pytest.raises(ValueError, match=r"no georeference.*engine='fast'"):
        ours(config, engine="stock")
    outlines = ZOO["vector_polygons"].make(data, "/x").dataset.validation_scenes[0]
    config = learned(data, tmp_path / "run", kind, store=outlines.label_store)
    with pytest.raises(ValueError, match="no georeference"):
        ours(config)
    assert not (tmp_path / "run").exists()


# --- plain Raster Vision's folder, and ways to say a place


@pytest.mark.slow
def test_a_folder_of_plain_raster_vision_goes_on(data, tmp_path):
    make = ZOO["smooth_float"].make
    run = stock_configs.run_stock(make(data, tmp_path / "run"), ["train", "predict"])
    weights = (run / "train/last-model.pth").read_bytes()
    before = read(run / "predict/v1/scores.tif")
    ours(make(data, run), ["predict", "eval"])
    assert (run / "train/last-model.pth").read_bytes() == weights
    assert Run(run).results["validation"]["f1"] is not None
    after = read(run / "predict/v1/scores.tif")
    assert np.abs(after - before).max() < 2e-3  # replaced, not averaged
    ours(make(data, run))  # all of it: the training counts
    assert (run / "train/last-model.pth").read_bytes() == weights
    assert (run / "bundle/model-bundle.zip").exists()
    other = make(data, run)
    other.backend.solver.lr = 0.5
    with pytest.raises(ValueError, match="another configuration"):
        ours(other, ["predict"])


@pytest.mark.slow
def test_other_folders_of_raster_vision_are_refused(data, tmp_path):
    make = ZOO["sliding"].make
    run = stock_configs.run_stock(make(data, tmp_path / "run"), ["train"])
    before = listing(run)
    other = make(data, run)
    other.backend.solver.lr = 0.5
    with pytest.raises(ValueError, match="made elsewhere"):
        ours(other, ["predict", "eval"])
    assert listing(run) == before
    (run / "train/model-bundle.zip").unlink()  # not finished: it cannot go on exactly
    with pytest.raises(ValueError, match="made elsewhere"):
        ours(make(data, run))
    assert (run / "train/last-model.pth").exists()


@pytest.mark.slow
def test_a_relative_root_is_the_same_place(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    ours(pipeline(data, "runs/a"))
    ways = (
        "./runs/a",
        "runs/../runs/a",
        "runs/a/",
        str(tmp_path / "runs/a"),
        "link/runs/a",
    )
    for root in ways:
        capsys.readouterr()
        engine.run(pipeline(data, root), precision="float32")
        assert capsys.readouterr().out.count("done already") == 4, root
    other = pipeline(data, "runs/a", predict=dict(stride=32))
    with pytest.raises(ValueError, match="another configuration"):
        ours(other)


@pytest.mark.parametrize("name", ["root_uri", "train_uri"])
def test_remote_folders_are_refused_in_words(data, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = pipeline(data, tmp_path / "run")
    setattr(config, name, "s3://bucket/run")
    with pytest.raises(ValueError, match=f"{name} must be a folder of this machine"):
        ours(config)
    assert listing(tmp_path) == []


ALIKE = {
    "red": (["building", "background"], ["red", "red"]),
    "said otherwise": (["building", "background"], ["red", (255, 0, 0)]),
    "null": (["building", "background", "null"], ["red", "black", (0, 0, 0)]),
}


@pytest.mark.parametrize("case", list(ALIKE))
@pytest.mark.parametrize("how", ["fast", "stock"])
def test_labels_in_colours_need_a_colour_for_each_class(data, tmp_path, case, how):
    config = ZOO["rgb_labels"].make(data, tmp_path / "run")
    names, colors = ALIKE[case]
    config.dataset.class_config = ClassConfig(names=names, colors=colors)
    with pytest.raises(ValueError, match=r"both have the colour \("):
        ours(config, engine=how)
    assert listing(tmp_path) == []


def test_a_black_class_does_not_make_another_configuration(data, tmp_path):
    "Raster Vision would draw the colour of null by lot."
    config = ZOO["rgb_labels"].make(data, tmp_path / "run")
    config.dataset.class_config = ClassConfig(names=["a", "b"], colors=["red", "black"])
    one, two = engine._prepare(config), engine._prepare(config)
    assert engine._fingerprint(one) == engine._fingerprint(two)
    engine._refuse_impossible(one)  # all three differ
    assert one.dataset.class_config.null_class == "null"


def test_a_raw_chip_has_all_bands(data):
    "As in stock, also when some are chosen, and where they are held in memory."
    path = data / "own/v1/five.tif"
    window = Box(10, 20, 60, 90)
    both = MultiRasterSourceConfig(
        raster_sources=[
            image(path, channel_order=[3, 1]),
            image(data / "own/v1/two.tif"),
        ],
        channel_order=[2, 0],
    )
    for config in (image(path, channel_order=[4, 2, 0]), image(path), both):
        stock, mine = config.build(None), reading._raster_source(config)
        held = reading._raster_source(config)
        if hasattr(held, "hold"):
            held.hold(held.read_all())
        for source in (mine, held):
            assert np.array_equal(
                source.get_raw_chip(window), stock.get_raw_chip(window)
            )
            assert np.array_equal(source.get_chip(window), stock.get_chip(window))


# --- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_takes_the_folders_of_a_process_along(tmp_path, monkeypatch, name):
    "Its default ends the process without what is registered for the end."
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    number = getattr(signal, name)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.signal(number, signal.SIG_DFL)
            files._own_folder("names-")
            with engine._ended_by_signals():
                os.kill(os.getpid(), number)
                time.sleep(60)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
    assert not list(tmp_path.iterdir())


def test_a_handler_that_is_not_pythons_stays(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *a: pytest.fail("changed"))
    with engine._ended_by_signals():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_stopped_prediction_leaves_nothing_behind(data, tmp_path, name):
    "No half map, no unpacked model: as Ctrl-C leaves it."
    run = ours(pipeline(data, tmp_path / "run"))
    large = tmp_path / "large.tif"
    with rasterio.open(data / "own/v1/rgb.tif") as file:
        profile = file.profile | {"height": 12_000, "width": 3_000, "compress": "lzw"}
    with rasterio.open(large, "w", **profile) as file:
        file.write(np.full((3, 12_000, 3_000), 90, "uint8"))
    places = {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "rvtutorial.cli", "predict", str(run), str(large)]
    command += ["-o", str(tmp_path / "maps"), "--trust", "--batch-sz", "4"]
    job = subprocess.Popen(
        command, env=os.environ | places, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL)
                            for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)],
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list((tmp_path / "maps").rglob(".*labels.tif")):
        assert job.poll() is None and time.monotonic() < end, job.stderr.read()
        time.sleep(0.1)
    job.send_signal(getattr(signal, name))
    job.wait(60)
    assert job.returncode != 0
    assert [p for p in (tmp_path / "maps").rglob("*") if p.is_file()] == []
    left = [p for p in (tmp_path / "tmp").rglob("*") if p.is_file()]
    assert [p for p in left if "model" in str(p) or "training" in str(p)] == []
    if name != "SIGINT":
        assert job.returncode == -getattr(signal, name)

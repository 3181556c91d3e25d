"""Trained models of any kind, opened by the engine and by plain Raster Vision: the same maps; and what a model says of itself."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import stock_configs
from rastervision.core.predictor import Predictor
from rastervision.pipeline.config import build_config
from stock_configs import ZOO, image, pipeline, scenes, vector

from rvtutorial.engine import bundles
from rvtutorial.engine import pipeline as engine
from rvtutorial.engine.learner import FastLearner
from rvtutorial.models import unet

pack = FastLearner.pack
pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("run", "bundle", "training", "moved", "old")
MODELS = ("sliding", "bands_chosen", "five_bands", "stats", "cast", "crop", "votes")
MODELS += ("smooth_float", "min_max", "chipped", "chipped_bands", "chipped_stats")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    "The folder of a run of the zoo, made by `stock` or `ours` on demand."
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(name, who="ours"):
        if (name, who) not in made:
            folder = made[name, who] = root / who / name
            config = ZOO[name].make(data, folder)
            learn_more(config)
            if who == "stock":
                stock_configs.run_stock(config, onnx=True)
            else:
                engine.run(config, progress=False, precision="float32")
        return made[name, who]

    return run


def learn_more(config):
    "So that maps have both classes: two epochs of the zoo are too few."
    solver = config.backend.solver
    solver.num_epochs, solver.lr = 25, 2e-2
    solver.class_loss_weights = [4.0, 1.0, 0.1]


def given(run, kind, folder):
    "A model as one may have it: a run, a bundle, that of its training, all of them moved, or old."
    whole, training = (run / f"{n}/model-bundle.zip" for n in ("bundle", "train"))
    if kind == "moved":
        for name in ("train/model-bundle.zip", "pipeline-config.json", "analyze"):
            found, there = run / name, folder / "moved" / name
            there.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                shutil.copytree(found, there)
            elif found.exists():
                shutil.copy(found, there)
        return folder / "moved"
    if kind == "old":
        return as_of_old(whole, folder)
    return {"run": run, "bundle": whole, "training": training}[kind]


def as_of_old(bundle, folder):
    "The bundle as version 0.21 of Raster Vision would have written it."
    place = folder / "old"
    with zipfile.ZipFile(bundle) as file:
        file.extractall(place)
    path = place / "pipeline-config.json"
    tree = json.loads(path.read_text())
    tree["plugin_versions"]["rastervision.core"] = 11
    options = tree.pop("predict_options")
    tree["predict_chip_sz"] = options.pop("chip_sz")
    tree["predict_batch_sz"] = options.pop("batch_sz")
    tree["predict_options"] = {k: v for k, v in options.items() if v is not None}
    source = tree["dataset"]["validation_scenes"][0]["raster_source"]
    for step in source["transformers"]:  # statistics were of all bands of the file
        if step["type_hint"] == "stats_transformer":
            del step["needs_channel_order"]
            _statistics_of_all_bands(place, source["channel_order"])
    path.write_text(json.dumps(tree))
    _old_training(place / "model-bundle.zip", folder)
    pack(place, folder / "old.zip")
    return folder / "old.zip"


def _statistics_of_all_bands(place, order):
    for path in place.glob("analyze/stats/*/stats.json"):
        stats = json.loads(path.read_text())
        for name in ("means", "stds"):
            whole = [0.0] * (max(order) + 1)
            for value, band in zip(stats[name], order, strict=True):
                whole[band] = value
            stats[name] = whole
        path.write_text(json.dumps(stats))


def _old_training(bundle, folder):
    "With the classes as lists, as they were before version 7 of the learner's plugin."
    inner = folder / "old-training"
    with zipfile.ZipFile(bundle) as file:
        file.extractall(inner)
    path = inner / "learner-config.json"
    tree = json.loads(path.read_text())
    tree["plugin_versions"]["rastervision.pytorch_learner"] = 6
    classes = tree["data"].pop("class_config")
    tree["data"]["class_names"] = classes["names"]
    tree["data"]["class_colors"] = classes["colors"]
    path.write_text(json.dumps(tree))
    (inner / bundles.INPUTS).unlink(missing_ok=True)
    pack(inner, bundle)


def stock_map(bundle, uri, folder):
    "What Raster Vision's Predictor makes of an image."
    with stock_configs.light():
        Predictor(str(bundle), str(folder / "tmp")).predict([uri], str(folder / "map"))
    return read(folder / "map/labels.tif")


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def our_map(model, uri, folder, **options):
    told = engine.predict(
        model, uri, folder, polygons=False, progress=False, trust=True,
        precision="float32", **options,
    )  # fmt: skip
    return read(Path(told.folder.iloc[0]) / "labels.tif")


def scene_of(name, data):
    return engine._prepare(ZOO[name].make(data, "/nowhere")).dataset.validation_scenes[
        0
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_labels_are_those_of_the_predictor(trained, data, tmp_path, name, kind):
    "With the blend of Raster Vision; chips, stride and crop are those of the run."
    run, scene = trained(name), scene_of(name, data)
    smooth = scene.label_store.smooth_output
    uri = scene.raster_source.uris
    model = given(run, kind, tmp_path)
    whole = model if kind == "old" else run / "bundle/model-bundle.zip"
    theirs = stock_map(whole, uri, tmp_path)
    mine = our_map(model, uri, tmp_path / "maps", blend="mean" if smooth else "votes")
    here = theirs != 2  # null: where Raster Vision leaves gaps
    assert here.mean() > 0.8 and (np.bincount(theirs[here]) > 300).sum() == 2
    agree = (mine == theirs)[here].mean()
    assert agree == 1 if ZOO[name].exact else agree >= 0.999, agree


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "bundle", "training", "moved"])
@pytest.mark.parametrize("name", ["multi_source", "chipped_multi"])
def test_bands_of_several_files_in_one_image(trained, data, tmp_path, name, kind):
    "An image with the bands of all files behind each other is mapped as the scene was."
    run = trained(name)
    path = data / "own/v1/five.tif"
    mine = our_map(given(run, kind, tmp_path), path, tmp_path / "maps", blend="votes")
    assert (mine == read(run / "predict/v1/labels.tif")).all()
    assert (np.bincount(mine.ravel()) > 300).sum() == 2


@pytest.mark.slow
def test_a_model_of_plain_raster_vision(trained, data, tmp_path):
    "Chips cut and trained by stock, whose bundles hold the network as ONNX too."
    run = trained("chipped_bands", "stock")
    with zipfile.ZipFile(run / "train/model-bundle.zip") as file:
        assert "model.onnx" in file.namelist()
    bundle = run / "bundle/model-bundle.zip"
    uri = str(data / "own/v1/five.tif")
    theirs = stock_map(bundle, uri, tmp_path)
    for i, model in enumerate((run, bundle)):
        mine = our_map(model, uri, tmp_path / f"{i}", blend="votes")
        assert (mine == theirs).all()
        assert (np.bincount(mine.ravel()) > 300).sum() == 2


# --- what the network was shown


def unit(data, name, scale, dtype):
    "Raster sources with the values of a scene times `scale`, as another type."

    def make(place):
        with rasterio.open(place / "rgb.tif") as file:
            pixels, profile = file.read().astype(float), file.profile
        path = place / f"{name}.tif"
        with rasterio.open(path, "w", **profile | {"dtype": dtype}) as file:
            file.write((pixels * scale).astype(dtype))
        return image(path), vector(place / "buildings.json")

    return make


@pytest.fixture(scope="module")
def gone(data, tmp_path_factory):
    "Bundles and runs whose training images are no more, trained on bytes or on 0..1."
    root, made = tmp_path_factory.mktemp("gone"), {}

    def model(kind):
        if kind not in made:
            how = {"bytes": (1, "uint8"), "unit": (1 / 255, "float32")}[kind]
            dataset = scenes(data, unit(data, kind, *how))
            run = root / kind
            engine.run(pipeline(data, run, dataset), progress=False)
            for path in data.glob(f"own/*/{kind}.tif"):
                path.unlink()
            made[kind] = run
        return made[kind]

    return model


def picture(folder, data, scale, dtype, bands=3):
    "An image of the values of a scene times `scale`."
    with rasterio.open(data / "own/s1/five.tif") as file:
        pixels, profile = file.read().astype(float)[:bands], file.profile
    path = folder / f"new_{scale}_{dtype}_{bands}.tif"
    with rasterio.open(path, "w", **profile | {"dtype": dtype, "count": bands}) as file:
        file.write((pixels * scale).astype(dtype))
    return path


def mapped(model, path, folder):
    "What is said on standard error: importing Raster Vision switches warnings off."
    with contextlib.redirect_stderr(io.StringIO()) as told:
        engine.predict(model, path, folder, trust=True, progress=False, polygons=False)
    return [t for t in told.getvalue().splitlines() if "network was trained on" in t]


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["run", "bundle/model-bundle.zip", "train/model-bundle.zip"]
)
def test_another_type_is_refused_when_the_images_are_gone(
    gone, data, tmp_path, form, capsys
):
    model = gone("bytes") / form.removeprefix("run")
    assert mapped(model, picture(tmp_path, data, 1, "uint8"), tmp_path / "a") == []
    for scale, dtype in ((20, "uint16"), (1 / 255, "float32"), (1, "int16")):
        path = picture(tmp_path, data, scale, dtype)
        with pytest.raises(ValueError, match=f"holds {dtype}.*uint8.*-ot Byte"):
            engine.predict(model, path, tmp_path / "b", trust=True, progress=False)
        assert "values are far" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="5 bands would be read.*trained on 3"):
        mapped(model, picture(tmp_path, data, 1, "uint8", 5), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["run", "bundle/model-bundle.zip", "train/model-bundle.zip"]
)
def test_another_range_is_warned_of(gone, data, tmp_path, form):
    model = gone("unit") / form.removeprefix("run")
    for scale, odd in ((1 / 255, 0), (0.7 / 255, 0), (1, 1), (20, 1), (1e-4, 1)):
        path = picture(tmp_path, data, scale, "float32")
        told = mapped(model, path, tmp_path / str(scale))
        assert len(told) == odd, (scale, told)
        assert not odd or (path.name in told[0] and "in training it had" in told[0])


@pytest.mark.slow
def test_what_is_not_known_is_said(gone, data, tmp_path):
    "A bundle of plain Raster Vision, or of an earlier version, whose images are gone."
    with zipfile.ZipFile(gone("bytes") / "bundle/model-bundle.zip") as file:
        file.extractall(tmp_path / "whole")
    inner = tmp_path / "whole/model-bundle.zip"
    with zipfile.ZipFile(inner) as file:
        file.extractall(tmp_path / "training")
    (tmp_path / "training" / bundles.INPUTS).unlink()
    pack(tmp_path / "training", inner)
    pack(tmp_path / "whole", tmp_path / "bundle.zip")
    path = picture(tmp_path, data, 1, "uint8")
    (told,) = mapped(tmp_path / "bundle.zip", path, tmp_path / "maps")
    assert "not known" in told and "not compared" in told


def test_ranges_of_values(tmp_path, data):
    about = bundles.Model.inputs_of(
        [image(data / "own/t1/rgb.tif"), image(data / "own/t2/rgb.tif")]
    )
    assert about["dtype"] == "uint8" and about["bands"] == 3
    for low, high in zip(about["low"], about["high"], strict=True):
        assert 0 < low[0] <= low[1] < high[0] <= high[1] <= 255
    assert bundles.Model.inputs_of([image("/nowhere/a.tif")]) is None


def test_ranges_count_where_training_scenes_differ_in_type(tmp_path, data):
    floats = picture(tmp_path, data, 1, "float32")
    both = [image(data / "own/t1/rgb.tif"), image(floats)]
    about = bundles.Model.inputs_of(both)
    assert about["dtype"] is None and about["bands"] == 3
    far = picture(tmp_path, data, 30, "float32")
    model = bundles.Model(tmp_path, {}, {}, None, about)
    (odd,) = model.odd_ranges([str(floats), str(far)], None)
    assert far.name in odd
    joined = SimpleNamespace(raster_sources=both)  # one scene of two files
    about = bundles.Model.inputs_of([joined])
    assert about["dtype"] is None and about["bands"] == 6


def test_a_model_is_taken_from_its_own_folder_only(tmp_path, monkeypatch):
    "Not from the current folder, and for a copied run not from the original's."
    place, copy = tmp_path / "original/train", tmp_path / "copy"
    place.mkdir(parents=True), copy.mkdir()
    for folder in (tmp_path, place):
        with zipfile.ZipFile(folder / "model-bundle.zip", "w") as file:
            file.writestr("learner-config.json", "{}")
    monkeypatch.chdir(tmp_path)
    there = {"root_uri": str(place.parent), "train_uri": str(place)}
    for config in ({}, there):
        (copy / "pipeline-config.json").write_text(json.dumps(config))
        with pytest.raises(FileNotFoundError, match="holds no trained model"):
            bundles.Model.open(copy, tmp_path / "unpacked")


# --- code


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "A run with this package's own network."
    from rvtutorial.config import get_config
    from rvtutorial.data.synthetic import make_sample_scenes

    root = tmp_path_factory.mktemp("own")
    found = make_sample_scenes(root / "data", n_train=2, n_val=1, n_test=1, size=150)
    values = dict(chip_sz=64, stride_length=60, max_windows=2, batch_sz=3, epochs=1)
    engine.run(
        get_config("inprocess", root / "run", "smoke", found, **values), progress=False
    )
    return root / "run", next((root / "data/test").glob("*.tif"))


def with_files(bundle, out, change):
    "A bundle of a run whose training's bundle was changed by somebody."
    folder = out.with_suffix("")
    with zipfile.ZipFile(bundle) as file:
        file.extractall(folder)
    with zipfile.ZipFile(folder / "model-bundle.zip") as file:
        file.extractall(folder / "inner")
    change(folder / "inner")
    pack(folder / "inner", folder / "model-bundle.zip")
    shutil.rmtree(folder / "inner")
    pack(folder, out)
    return out


def test_how_large_a_pixel_was_in_training():
    "Random windows come back to their own size in training, others stay at img_sz."

    def scale(*windows):
        how = dict(enumerate(windows)) if len(windows) > 1 else windows[0]
        trained = SimpleNamespace(train_scenes=[SimpleNamespace(id=i) for i in (0, 1)])
        data = SimpleNamespace(sampling=how, img_sz=48, scene_dataset=trained)
        return bundles.Model.scale(data)

    grid = stock_configs.grid()
    assert grid.size == 64 and scale(grid) == 0.75
    assert scale(stock_configs.random_windows()) == 1
    assert scale(stock_configs.random_windows(size_lims=(30, 90))) is None
    assert scale(grid, grid) == 0.75
    assert scale(grid, stock_configs.random_windows()) is None
    assert scale(grid, grid, stock_configs.random_windows()) == 0.75  # validation
    assert (
        bundles.Model.scale(SimpleNamespace(img_sz=48)) is None
    )  # chips that were cut


def test_every_version_of_our_networks_is_known():
    "After a change of a file its digest is added to the list; none is taken away."
    from hashlib import sha256

    from rvtutorial.models import course, encoders, losses

    for module in (unet, encoders, losses, course):
        digest = sha256(Path(module.__file__).read_bytes()).hexdigest()
        assert digest in bundles.OUR_CODE
    assert len(bundles.OUR_CODE) >= 2


@pytest.mark.slow
def test_our_own_network_runs_without_asking(own, tmp_path):
    run, path = own
    for i, form in enumerate(("", "bundle/model-bundle.zip", "train/model-bundle.zip")):
        assert (
            len(engine.predict(run / form, path, tmp_path / f"{i}", progress=False))
            == 1
        )


EVIL = "import pathlib\npathlib.Path({!r}).touch()\nfrom rvtutorial.models.unet import unet\n"


def hubconf(folder, mark):
    (folder / "modules/unet/hubconf.py").write_text(EVIL.format(str(mark)))


def beside(folder, mark):
    (folder / "modules/unet/itertools.py").write_text(EVIL.format(str(mark)))


def compiled(folder, mark):
    "What Python would run in place of the file beside it."
    import importlib.util
    import py_compile

    good = folder / "modules/unet/hubconf.py"
    bad = folder.parent / "bad.py"
    bad.write_text(EVIL.format(str(mark)))
    place = importlib.util.cache_from_source(str(good))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(bad), place, invalidation_mode=unchecked)
    bad.unlink()


def _changed(folder, change):
    path = folder / "learner-config.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def elsewhere(folder, mark):
    "The definition of the network lies in another folder of the machine."
    there = Path(mark).parent / "there"
    there.mkdir(exist_ok=True)
    (there / "hubconf.py").write_text(EVIL.format(str(mark)))
    _changed(folder, lambda t: t["model"]["external_def"].update(name=str(there)))


def transforms(folder, mark):
    "Transforms of albumentations whose code lies in a file."
    path = Path(mark).parent / "transforms.py"
    path.write_text(EVIL.format(str(mark)) + "lambda_transforms = {}\n")
    step = {"__version__": "1", "transform": {}, "lambda_transforms_path": str(path)}
    _changed(folder, lambda t: t["data"].update(base_transform=step))


@pytest.mark.slow
@pytest.mark.parametrize("change", [hubconf, beside, elsewhere, transforms])
def test_code_of_others_is_refused(own, tmp_path, change):
    run, path = own
    mark = tmp_path / "mark"
    bundle = with_files(
        run / "bundle/model-bundle.zip", tmp_path / "b.zip", lambda f: change(f, mark)
    )
    with pytest.raises(ValueError, match=r"carries code.*trust=True.*--trust"):
        engine.predict(bundle, path, tmp_path / "maps", progress=False)
    assert not mark.exists() and not (tmp_path / "maps").exists()
    if change is hubconf:
        engine.predict(bundle, path, tmp_path / "maps", progress=False, trust=True)
        assert mark.exists()


def _copy_of(run, folder, change=None):
    "The configuration of a copied run without maps, whose training's bundle was changed."
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "predict")
    if change:
        bundle = folder / "train/model-bundle.zip"
        with zipfile.ZipFile(bundle) as file:
            file.extractall(folder.with_name("unpacked"))
        change(folder.with_name("unpacked"))
        pack(folder.with_name("unpacked"), bundle)
        shutil.rmtree(folder.with_name("unpacked"))
    path = folder / "pipeline-config.json"
    path.write_text(path.read_text().replace(str(run), str(folder)))
    return build_config(json.loads(path.read_text()))


@pytest.mark.slow
def test_code_in_a_copied_run_is_refused(own, tmp_path):
    "By `engine.run` as by `engine.predict`, whoever's code predicts."
    run, mark = own[0], tmp_path / "mark"
    cfg = _copy_of(run, tmp_path / "copy", lambda folder: hubconf(folder, mark))
    for how in ("fast", "stock"):
        with pytest.raises(ValueError, match="carries code.*hubconf.py.*trust=True"):
            engine.run(cfg, ["predict"], engine=how, progress=False)
        assert not mark.exists() and not (tmp_path / "copy/predict").exists()
    engine.run(cfg, ["predict"], progress=False, trust=True)
    assert mark.exists() and (tmp_path / "copy/predict").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fast", "stock"])
def test_compiled_code_in_a_copied_run_is_not_run(own, tmp_path, how):
    mark = tmp_path / "mark"
    cfg = _copy_of(own[0], tmp_path / "copy", lambda folder: compiled(folder, mark))
    engine.run(cfg, ["predict"], engine=how, progress=False)
    assert not mark.exists() and (tmp_path / "copy/predict").exists()


@pytest.mark.slow
def test_a_run_predicts_with_the_network_that_it_has_trained(trained, tmp_path):
    "The code of its user too: the bundle is the one that its record names."
    run = trained("sliding")
    engine.run(_copy_of(run, tmp_path / "copy"), ["predict"], progress=False)
    assert list((tmp_path / "copy/predict").glob("*/labels.tif"))


@pytest.mark.slow
def test_compiled_code_is_never_run(own, tmp_path):
    run, path = own
    mark = tmp_path / "mark"
    bundle = with_files(
        run / "bundle/model-bundle.zip", tmp_path / "b.zip", lambda f: compiled(f, mark)
    )
    engine.predict(bundle, path, tmp_path / "maps", progress=False)
    assert not mark.exists() and (tmp_path / "maps").exists()


@pytest.mark.slow
def test_a_run_folder_with_code_of_others_and_the_command_line(
    own, data, trained, tmp_path
):
    run = trained("sliding")  # its network is defined by a hubconf.py of the user
    uri = str(data / "own/v1/rgb.tif")
    with pytest.raises(ValueError, match="modules/hub/hubconf.py"):
        engine.predict(run, uri, tmp_path / "a", progress=False)
    command = [sys.executable, "-m", "rvtutorial.cli", "predict", str(run), uri, "-o"]
    done = [
        subprocess.run(
            [*command, str(tmp_path / n), *more], capture_output=True, text=True
        )
        for n, more in (("b", []), ("c", ["--trust"]))
    ]
    assert done[0].returncode != 0 and "--trust" in done[0].stderr
    assert "Traceback" not in done[0].stderr and not (tmp_path / "b").exists()
    assert done[1].returncode == 0, done[1].stderr
    assert list(tmp_path.glob("c/*/labels.tif"))


# --- other tasks


@pytest.mark.slow
@pytest.mark.parametrize("task", ["object_detection", "chip_classification"])
def test_models_of_other_tasks_are_refused(own, tmp_path, task):
    run, path = own
    shutil.copytree(run, tmp_path / "other")
    file = tmp_path / "other/pipeline-config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"type_hint": task}))
    with pytest.raises(ValueError, match=f"another task .{task}"):
        engine.predict(tmp_path / "other", path, tmp_path / "maps", progress=False)

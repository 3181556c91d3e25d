"""Trained models of any kind, opened by the engine and by plain Raster Vision: the same maps; and what a model says of itself."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import stock_configs
import torch
from rastervision.core.predictor import Predictor
from stock_configs import ZOO

from rvtutorial import bundles, engine
from rvtutorial.learner import pack

KINDS = ("run", "bundle", "training", "moved", "old")
MODELS = ("sliding", "bands_chosen", "five_bands", "stats", "cast", "crop", "votes")
MODELS += ("smooth_float", "min_max", "chipped", "chipped_bands", "chipped_stats")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stock_configs.make_data(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
                stock_configs.run_stock(config)
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
    return engine.prepare(ZOO[name].make(data, "/nowhere")).dataset.validation_scenes[0]


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
    image = data / "own/v1/five.tif"
    mine = our_map(given(run, kind, tmp_path), image, tmp_path / "maps", blend="votes")
    assert (mine == read(run / "predict/v1/labels.tif")).all()
    assert (np.bincount(mine.ravel()) > 300).sum() == 2


@pytest.mark.slow
def test_a_model_of_plain_raster_vision(trained, data, tmp_path):
    "Chips cut and trained by stock, with ONNX's place in the bundle taken."
    run = trained("chipped_bands", "stock")
    bundle = run / "bundle/model-bundle.zip"
    uri = str(data / "own/v1/five.tif")
    theirs = stock_map(bundle, uri, tmp_path)
    for i, model in enumerate((run, bundle)):
        mine = our_map(model, uri, tmp_path / f"{i}", blend="votes")
        assert (mine == theirs).all()
        assert (np.bincount(mine.ravel()) > 300).sum() == 2

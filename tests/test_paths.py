"""Any stock configuration runs: what plain Raster Vision leaves, the engine leaves too.

Each configuration of the zoo in `stock_configs` is run by plain Raster Vision and by the
engine, into two folders that are then compared; and plain Raster Vision predicts and
evaluates once more with what the engine has trained.
"""

import inspect
import itertools
import json
import re
import shutil
import tempfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import rasterio
import stock_configs
import torch
from rastervision.core.predictor import Predictor
from rastervision.pipeline.config import build_config
from rastervision.pipeline.file_system import get_tmp_dir
from rastervision.pytorch_learner.dataset.dataset import AlbumentationsDataset
from stock_configs import ZOO

from rvtutorial.engine import pipeline
from rvtutorial.engine.learner import FastLearner, quiet
from rvtutorial.engine.reading import build_scene

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RUNS = [name for name, v in ZOO.items() if not v.stock_fails]
# what the engine adds, and what it leaves out: pictures and ONNX
EXTRA = r"run\.json|\.run\.lock|checkpoint\.pt|(x/)?train/best-model\.pth"
LEFT_OUT = r"train/dataloaders/.*|train/.*_preds\.png|train/train_metrics\.json"


@pytest.fixture(scope="module", autouse=True)
def programs():
    with stock_configs.programs():
        yield


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    "A folder of a run, made on demand: by `stock`, by `ours`, or by `check`."
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(name, who):
        if (name, who) not in made:
            made[name, who] = root / name / who
            config = ZOO[name].make(data, made[name, who])
            if who == "check":
                check(config, run(name, "ours"), made[name, who])
            else:
                {"stock": stock_configs.run_stock, "ours": ours}[who](config)
        return made[name, who]

    return run


def ours(config, commands=None, **options):
    "Run the engine, in float32 where it can be asked for."
    known = inspect.signature(pipeline.run).parameters
    wanted = dict(progress=False, precision="float32") | options
    return pipeline.run(
        config, commands, **{k: v for k, v in wanted.items() if k in known}
    )


def check(config, run, folder):
    "Predict with plain Raster Vision what the engine has trained; evaluate its labels."
    shutil.copytree(run, folder)
    for place in ("predict", "eval", "x/predict"):
        shutil.rmtree(folder / place, ignore_errors=True)
    stock_configs.run_stock(config, ["predict"])
    predict = config.predict_uri
    shutil.move(predict, folder / "again")
    shutil.copytree(predict.replace(str(folder), str(run)), predict)
    stock_configs.run_stock(config, ["eval"])


def files_of(root):
    "Relative names; what is drawn by chance in them is a star."
    found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    chance = r"(tfevents\.)\S+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return {re.sub(chance, r"*", name) for name in found}


def without(names, pattern):
    return {name for name in names if not re.fullmatch(pattern, name)}


def prepared(name, data, root):
    return pipeline._prepare(ZOO[name].make(data, root))


def predicted(cfg):
    return cfg.dataset.validation_scenes + cfg.dataset.test_scenes


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.crs, file.transform, file.dtypes[0]


@pytest.mark.parametrize("name", RUNS)
def test_same_files(runs, name):
    expected = without(files_of(runs(name, "stock")), LEFT_OUT)
    assert without(files_of(runs(name, "ours")), EXTRA) == expected


@pytest.mark.parametrize("name", RUNS)
def test_same_bundle(runs, data, name):
    "The two bundles hold the same files."

    def names(who):
        cfg = prepared(name, data, runs(name, who))
        inside = {}
        for uri in (f"{cfg.train_uri}/model-bundle.zip", cfg.get_model_bundle_uri()):
            with zipfile.ZipFile(uri) as file:
                found = set(file.namelist()) - {"inputs.json"}  # which the engine adds
                inside[uri.rsplit("/", 2)[-2]] = sorted(found)
        return inside

    assert names("ours") == names("stock")


@pytest.mark.parametrize("name", RUNS)
def test_log(runs, data, name):
    "The same columns, epochs and metrics."
    stock, mine = (
        pd.read_csv(f"{prepared(name, data, runs(name, who)).train_uri}/log.csv")
        for who in ("stock", "ours")
    )
    assert list(mine.columns) == list(stock.columns)
    assert list(mine.epoch) == list(stock.epoch)
    assert np.isfinite(mine.train_loss).all()


def compared(name, scene, stock, null):
    "Where labels should agree: where stock predicts, and the image has data."
    here = np.ones(stock.shape[-2:], bool)
    if ZOO[name].gaps:
        here &= stock[0] != null
    if ZOO[name].holes:
        here &= ~holes(scene)
    return here


def holes(scene):
    "Where the image of a scene has no data."
    with rasterio.open(scene.raster_source.uris) as file:
        return file.dataset_mask() == 0


@pytest.mark.parametrize("name", RUNS)
def test_same_prediction(runs, data, name):
    "One bundle, two ways to predict: the same labels in the same place."
    mine, again = (
        prepared(name, data, runs(name, "ours")),
        runs(name, "check") / "again",
    )
    null = mine.dataset.class_config.null_class_id
    for scene in predicted(mine):
        a, *about = read(again / scene.id / "labels.tif")
        b, *same = read(f"{mine.predict_uri}/{scene.id}/labels.tif")
        assert same == about
        assert b.shape == a.shape
        agree = (a == b)[:, compared(name, scene, a, null)].mean()
        assert agree == 1 if ZOO[name].exact else agree >= 0.999, agree


@pytest.mark.parametrize("name", [name for name in RUNS if ZOO[name].holes])
def test_no_data_stays_no_data(runs, data, name):
    "Where an image has no data the engine says null."
    mine = prepared(name, data, runs(name, "ours"))
    for scene in predicted(mine):
        labels, *_ = read(f"{mine.predict_uri}/{scene.id}/labels.tif")
        there = labels[0][holes(scene)]
        assert there.size
        assert (there == mine.dataset.class_config.null_class_id).all()


@pytest.mark.parametrize("name", [name for name in RUNS if ZOO[name].gaps])
def test_no_gaps(runs, data, name):
    "Where stock leaves pixels out, the engine predicts them."
    mine, again = (
        prepared(name, data, runs(name, "ours")),
        runs(name, "check") / "again",
    )
    null = mine.dataset.class_config.null_class_id
    for scene in predicted(mine):
        a, *_ = read(again / scene.id / "labels.tif")
        b, *_ = read(f"{mine.predict_uri}/{scene.id}/labels.tif")
        assert (b[a == null] != null).mean() > 0.9


@pytest.mark.parametrize("name", [n for n in RUNS if "smooth" in n or n == "crop_auto"])
def test_same_scores(runs, data, name):
    "Scores differ by no more than what the float16 sums of stock lose."
    mine, again = (
        prepared(name, data, runs(name, "ours")),
        runs(name, "check") / "again",
    )
    for scene in predicted(mine):
        a, *about = read(again / scene.id / "scores.tif")
        b, *same = read(f"{mine.predict_uri}/{scene.id}/scores.tif")
        assert same == about
        limit = 1 if a.dtype == np.uint8 else 2e-3
        if not ZOO[name].gaps:
            assert (np.isnan(a) == np.isnan(b)).all()
        assert np.nanmax(np.abs(a.astype(float) - b)) <= limit


@pytest.mark.parametrize("name", [n for n in RUNS if n.startswith("vector_")])
def test_same_outlines(runs, data, name):
    "Outlines of classes are those of stock; of buildings there are some."
    mine, again = runs(name, "ours"), runs(name, "check") / "again"
    files = sorted(mine.rglob("vector_output/*.json"))
    outlines = ZOO[name].make(data, mine).dataset.validation_scenes[0].label_store
    assert len(files) == 2 * len(outlines.vector_output if outlines else [])
    for path in files:
        found = json.loads(path.read_text())
        assert found == json.loads(
            (again / path.relative_to(mine / "predict")).read_text()
        )
        assert len(found["features"]) > 5 or name != "vector_buildings"
    assert not hasattr(np, "int0")


@pytest.mark.parametrize("name", RUNS)
def test_same_evaluation(runs, name):
    "For the same predictions the numbers of eval.json are the same; ours has more."
    mine, stock = (evaluations(runs(name, who)) for who in ("ours", "check"))
    assert mine.keys() == stock.keys() != set()
    for group in stock:
        contained(stock[group], mine[group], group)


def evaluations(root):
    return {
        p.parent.name: json.loads(p.read_text()) for p in root.glob("eval/*/*.json")
    }


def contained(expected, found, place):
    "Every value of `expected` is in `found`, numbers to 1e-12."
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{place}.{key}"
            contained(value, found[key], f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            contained(value, found[i], f"{place}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), (
            place
        )
    else:
        assert found == expected, place


@pytest.mark.parametrize("name", RUNS)
def test_stock_reads_labels(runs, data, name):
    "Plain Raster Vision reads what the engine has predicted."
    cfg = prepared(name, data, runs(name, "ours"))
    with get_tmp_dir() as tmp:
        for scene_config in predicted(cfg):
            scene = scene_config.build(cfg.dataset.class_config, tmp)
            labels = scene.label_store.get_labels()
            values = labels.get_label_arr(scene.extent)
            assert values.shape == scene.extent.size
            assert values.max() < len(cfg.dataset.class_config)


@pytest.mark.parametrize("name", RUNS)
def test_stock_predictor(runs, data, name, tmp_path):
    "The bundle opens in plain Raster Vision, which predicts what the engine predicts."
    cfg = prepared(name, data, runs(name, "ours"))
    scene = cfg.dataset.validation_scenes[0]
    if not hasattr(scene.raster_source, "uris"):
        pytest.skip("plain Raster Vision predicts from bundles of single sources only")
    uris = scene.raster_source.uris
    uris = [uris] if isinstance(uris, str) else uris
    predictor = Predictor(cfg.get_model_bundle_uri(), str(tmp_path))
    with stock_configs.light():
        predictor.predict(uris, str(tmp_path / "out"))
    a, *about = read(f"{cfg.predict_uri}/{scene.id}/labels.tif")
    b, *same = read(tmp_path / "out/labels.tif")
    assert same == about
    null = cfg.dataset.class_config.null_class_id
    here = compared(name, scene, b, null)
    if scene.aoi_uris:  # which the predictor takes away
        here &= a[0] != null
    assert not here.any() or (a == b)[:, here].mean() >= 0.999


@pytest.mark.parametrize("name", RUNS)
def test_config_is_stock(runs, data, name):
    "pipeline-config.json says the same, but for its place."
    texts = {}
    for who in ("stock", "ours"):
        root = runs(name, who)
        text = (root / "pipeline-config.json").read_text()
        build_config(json.loads(text))
        tree = json.loads(text.replace(str(root), "."))
        texts[who] = {k: v for k, v in tree.items() if k != "rv_config"}
        inside = texts[who]["backend"]["data"].get("scene_dataset") or {}
        for dataset in (texts[who]["dataset"], inside):
            dataset.pop("scene_groups", None)  # sets, in any order
    assert texts["ours"] == texts["stock"]


@pytest.mark.parametrize("name", [name for name, v in ZOO.items() if v.stock_fails])
def test_what_stock_cannot_do(data, tmp_path, name):
    "It still cannot; the engine does it, or says why not."
    make = ZOO[name].make
    with pytest.raises(Exception):  # noqa: B017
        stock_configs.run_stock(make(data, tmp_path / "stock"))
    try:
        ours(make(data, tmp_path / "ours"))
    except (ValueError, FileNotFoundError) as err:
        assert len(str(err)) > 20


@pytest.mark.parametrize("name", list(ZOO))
def test_paths(data, tmp_path, name):
    "Each part of a run takes the path that the zoo expects; a slow one has a reason."
    table = pipeline._paths(prepared(name, data, tmp_path))
    slow = table[table.path != "fast"]
    assert slow.path.to_dict() == ZOO[name].slow
    assert slow.why.map(len).gt(5).all()


def test_paths_on_several_gpus(data, tmp_path):
    table = pipeline._paths(prepared("sliding", data, tmp_path), ddp=True)
    assert table.path["training"] == "stock"


def test_what_is_left_to_stock_is_said_once(data, tmp_path, capsys):
    ours(ZOO["vector_polygons"].make(data, tmp_path / "run"), progress=True)
    said = capsys.readouterr().out
    assert said.count("Raster Vision's own code") == 1
    assert "prediction" in said and "vector output" in said


@pytest.mark.parametrize(
    "name", [name for name in RUNS if not name.startswith("chipped")]
)
def test_same_chips(data, tmp_path, name):
    "For the same windows, chips and labels are those of stock, value by value."
    cfg = ZOO[name].make(data, tmp_path)
    cfg.backend.data.augmentors, cfg.backend.data.aug_transform = [], None
    cfg = with_statistics(cfg)
    with get_tmp_dir() as tmp, quiet():
        mine = FastLearner(cfg.backend.get_learner_config(cfg), tmp_dir=tmp)
        for split, loader in (("train", mine.train_dl), ("valid", mine.valid_dl)):
            parts = stock_parts(cfg, split, tmp)
            made = zip(loader.items(0), loader.epoch(0), strict=True)
            for items, (x, y) in itertools.islice(made, 3):
                for item, chip, label in zip(items, x, y, strict=True):
                    part, window = parts[item.part], item.window
                    expected = AlbumentationsDataset.__getitem__(part, window)
                    assert torch.equal(label, expected[1])
                    assert torch.allclose(chip, expected[0], rtol=1e-5, atol=1e-6)


def stock_parts(cfg, split, tmp):
    """The data sets of scenes as stock builds them, each in a folder of its own.

    In one folder all mosaics are called index.vrt, and each reads what the last one is.
    """
    split = {"train": "train_scenes", "valid": "validation_scenes"}[split]
    base, _ = cfg.backend.data.get_data_transforms()
    found = []
    for config in getattr(cfg.dataset, split):
        scene = config.build(cfg.dataset.class_config, tempfile.mkdtemp(dir=tmp))
        found.append(cfg.backend.data.scene_to_dataset(scene, base))
    return found


def test_mosaics_of_several_scenes_are_kept_apart(data, tmp_path):
    "Stock reads the last one for all of them; the engine reads each scene's own."
    cfg = pipeline._prepare(ZOO["mosaic"].make(data, tmp_path))
    classes = cfg.dataset.class_config

    def right(build):
        scenes = [(c, build(c, classes, str(tmp_path))) for c in cfg.dataset.all_scenes]
        for config, scene in scenes:
            whole, *_ = read(data / "own" / config.id / "rgb.tif")
            chip = scene.raster_source.get_chip(scene.extent)
            yield np.array_equal(chip, whole.transpose(1, 2, 0))

    assert list(right(build_scene)) == [True] * 4
    assert list(right(lambda c, *more: c.build(*more))) == [False] * 3 + [True]


def with_statistics(cfg):
    "A complete configuration; what only the analyze command makes is there."
    cfg = pipeline._prepare(cfg)
    if cfg.analyzers:
        with get_tmp_dir() as tmp, quiet():
            cfg.build(tmp).analyze()
    return cfg


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "/etc", "a/../..", "a/../../b"]
)
def test_ids_that_lead_out_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="leads out of"):
        pipeline._refuse_outside(tmp_path, name)


def test_ids_below_a_folder_are_fine(tmp_path):
    for name in ("a", "a/b", "..a", "a..b", "a/../b"):
        pipeline._refuse_outside(tmp_path, name)

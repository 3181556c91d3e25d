"""Evaluation in blocks: stock's eval.json, number for number, and errors that name files."""

import json
import os
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import write_boxes, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rvtutorial.engine import scoring  # first: it keeps Python's warnings switched on

# isort: split
from rastervision.core.box import Box
from rastervision.core.data import (
    CastTransformerConfig,
    ClassConfig,
    ClassInferenceTransformerConfig,
    DatasetConfig,
    GeoJSONVectorSourceConfig,
    MinMaxTransformerConfig,
    PolygonVectorOutputConfig,
    RasterioSourceConfig,
    RasterizedSourceConfig,
    RasterizerConfig,
    ReclassTransformerConfig,
    SceneConfig,
    SemanticSegmentationLabelSourceConfig,
    SemanticSegmentationLabelStoreConfig,
)
from rastervision.core.data.label import SemanticSegmentationSmoothLabels
from rastervision.core.evaluation import SemanticSegmentationEvaluatorConfig
from rastervision.core.rv_pipeline import (
    SemanticSegmentationConfig,
    WindowSamplingConfig,
)
from rastervision.pytorch_backend import PyTorchSemanticSegmentationConfig
from rastervision.pytorch_learner import (
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationModelConfig,
    SolverConfig,
)
from sklearn.metrics import confusion_matrix

from rvtutorial.metrics.counting import confusion

SHAPE = (90, 70)
CLASSES = ("building", "background", "null")
EXTRA = {"iou", "accuracy"}
BOXES = [(3, 4, 20, 17), (40, 10, 9, 31), (61, 45, 25, 20)]


def polygons(path, seed=0, n=12):
    "Polygons with whole-pixel corners that reach over the edges of the scene."
    from fake_runs import VEGAS

    rng, features = np.random.default_rng(seed), []
    for _ in range(n):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        ring = rng.uniform(-5, 95, 2) + np.c_[np.cos(angles), np.sin(angles)] * 25
        ring = np.floor(ring) + 1e-3
        ring = [list(VEGAS * (x, y)) for x, y in [*ring, ring[0]]]
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {}, "geometry": shape})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


class Case:
    "A configuration with its files; stock and ours write into it in turn."

    def __init__(self, root, names=CLASSES):
        self.root, self.names = root, names
        self.rng = np.random.default_rng(7)
        self.scenes = {"train": [], "validation": [], "test": []}
        self.more = {}

    def raster_labels(self, name, values=2, shape=SHAPE, dtype=np.uint8, **more):
        labels = self.rng.integers(0, values, shape).astype(dtype)
        path = write_raster(self.root / f"{name}-labels.tif", labels)
        source = RasterioSourceConfig(uris=[str(path)], **more)
        return SemanticSegmentationLabelSourceConfig(raster_source=source)

    def vector_labels(self, name, path=None, all_touched=False):
        path = path or polygons(self.root / f"{name}.geojson")
        vectors = GeoJSONVectorSourceConfig(
            uris=[str(path)],
            transformers=[ClassInferenceTransformerConfig(default_class_id=0)],
        )
        drawn = RasterizerConfig(background_class_id=1, all_touched=all_touched)
        source = RasterizedSourceConfig(vector_source=vectors, rasterizer_config=drawn)
        return SemanticSegmentationLabelSourceConfig(raster_source=source)

    def add(self, name, labels, split="validation", bbox=None, aoi=None, **store):
        image = write_raster(
            self.root / f"{name}.tif", self.rng.integers(1, 9, (1, *SHAPE), np.uint8)
        )
        scene = SceneConfig(
            id=name,
            raster_source=RasterioSourceConfig(uris=[str(image)], bbox=bbox),
            label_source=labels,
            label_store=SemanticSegmentationLabelStoreConfig(**store),
            aoi_uris=[str(a) for a in aoi] if aoi else None,
        )
        self.scenes[split].append(scene)
        return scene

    def predicted(self, name):
        return self.root / "predict" / name

    def predict(self, name, values=2, shape=SHAPE, **more):
        labels = self.rng.integers(0, values, shape, dtype=np.uint8)
        return write_raster(self.predicted(name) / "labels.tif", labels, **more)

    def predict_scores(self, name, dtype=np.uint8, hits=5, shape=SHAPE):
        "Scores with many near ties, and pixels that nobody has predicted."
        bands = (len(self.names), *shape)
        if dtype == np.uint8:
            scores = self.rng.integers(80, 90, bands, dtype=np.uint8)
        else:
            scores = self.rng.normal(0.3, 1e-7, bands).astype(np.float32)
        write_raster(self.predicted(name) / "scores.tif", scores)
        if hits:
            seen = self.rng.integers(0, hits, shape, dtype=np.uint8)
            np.save(self.predicted(name) / "pixel_hits.npy", seen)

    def config(self, groups=None, evaluators=()):
        colors = ["red", "white", "black", "green"][: len(self.names)]
        data = DatasetConfig(
            class_config=ClassConfig(names=list(self.names), colors=colors),
            scene_groups=groups or {},
            **{f"{split}_scenes": scenes for split, scenes in self.scenes.items()},
        )
        chips = SemanticSegmentationGeoDataConfig(
            sampling=WindowSamplingConfig(size=20), img_channels=1
        )
        backend = PyTorchSemanticSegmentationConfig(
            model=SemanticSegmentationModelConfig(), solver=SolverConfig(), data=chips
        )
        cfg = SemanticSegmentationConfig(
            root_uri=str(self.root),
            dataset=data,
            backend=backend,
            evaluators=list(evaluators),
        )
        cfg.update()
        return cfg

    def both(self, cfg=None, rows=16, **options):
        "What stock writes and what we write: {file: content}."
        cfg, tmp = cfg or self.config(), str(self.root)
        with np.errstate(all="ignore"):
            cfg.build(tmp).eval()
        files = sorted(self.root.rglob("eval.json"))
        stock = {f: json.loads(f.read_text()) for f in files}
        for file in files:
            file.unlink()
        written = scoring.evaluate(cfg, tmp, rows=rows, **options)
        ours = {f: json.loads(f.read_text()) for f in self.root.rglob("eval.json")}
        assert sorted(ours) == files and len(written) == len(files)
        return stock, ours


def items(evaluation):
    "All items of an eval.json."
    scenes = evaluation["per_scene"].values()
    return [*evaluation["overall"], *(item for found in scenes for item in found)]


def without_extra(evaluation):
    for item in items(evaluation):
        assert list(item["metrics"])[-2:] == ["iou", "accuracy"]
        item["metrics"] = {k: v for k, v in item["metrics"].items() if k not in EXTRA}
    return evaluation


def order(tree):
    "Keys in order; scenes are a set in stock, so theirs does not count."
    if isinstance(tree, list):
        return [order(branch) for branch in tree]
    if isinstance(tree, dict):
        return [(key, order(branch)) for key, branch in tree.items()]
    return None


def same(case, cfg=None, **options):
    stock, ours = case.both(cfg, **options)
    assert stock
    for file, theirs in stock.items():
        mine = without_extra(ours[file])
        assert mine == theirs  # not just close: the counts are whole numbers
        assert order(mine["overall"]) == order(theirs["overall"])
        for scene in theirs["per_scene"]:
            assert order(mine["per_scene"][scene]) == order(theirs["per_scene"][scene])
    return stock, ours


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


# the same numbers as stock


@pytest.mark.parametrize("rows", [1, 16, 512])
def test_raster_labels(case, rows):
    case.add("a", case.raster_labels("a"))
    case.predict("a")
    same(case, rows=rows)


def test_what_is_no_class_counts_as_class_0(case):
    labels = case.raster_labels("a", values=6)
    case.add("a", labels)
    case.predict("a", values=256)
    stock, _ = same(case)
    [found] = stock.values()
    assert found["overall"][0]["gt_count"] > 0.6 * SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_wide_labels_are_cut_to_a_byte(case, dtype):
    case.add("a", case.raster_labels("a", values=600, dtype=dtype))
    case.predict("a")
    same(case)


def test_labels_are_mapped_and_have_no_data(case):
    maps = [ReclassTransformerConfig(mapping={0: 1, 3: 0, 5: 2})]
    maps.append(CastTransformerConfig(to_dtype="uint8"))
    labels = case.raster_labels("a", values=6, transformers=maps)
    values = case.rng.integers(0, 6, SHAPE, dtype=np.uint8)
    write_raster(case.root / "a-labels.tif", values, nodata=3)
    case.add("a", labels)
    case.predict("a", values=3, nodata=1)  # stock reads what is marked as 0
    same(case)


@pytest.mark.parametrize("all_touched", [False, True])
@pytest.mark.parametrize("rows", [1, 16])
def test_vector_labels(case, all_touched, rows):
    case.add("a", case.vector_labels("a", all_touched=all_touched))
    case.predict("a")
    same(case, rows=rows)


def test_no_labels_in_the_file(case):
    empty = write_boxes(case.root / "none.geojson", [])
    case.add("a", case.vector_labels("a", empty))
    case.predict("a")
    stock, ours = same(case)
    [text] = [json.dumps(found) for found in ours.values()]
    assert "null" in text and "NaN" not in text


def test_colours(case):
    case.add("a", case.raster_labels("a"), rgb=True)
    cfg = case.config()
    ids = case.rng.integers(0, 3, SHAPE)
    colors = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 0]], np.uint8)
    write_raster(case.predicted("a") / "labels.tif", colors[ids].transpose(2, 0, 1))
    stock, _ = same(case, cfg)
    [found] = stock.values()
    assert found["overall"][0]["pred_count"] == (ids == 0).sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("hits", [2, 9, 255])
def test_scores_count_and_not_labels(case, dtype, hits):
    smooth = dict(smooth_output=True, smooth_as_uint8=dtype == np.uint8)
    case.add("a", case.raster_labels("a"), **smooth)
    case.predict("a")
    case.predict_scores("a", dtype, hits)
    with np.errstate(all="ignore"):
        stock, _ = same(case)
    [found] = stock.values()
    assert found["overall"][2]["pred_count"] > SHAPE[0] * SHAPE[1] / hits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bytes_are_compared_as_stock_compares_them(dtype):
    low = np.arange(255, dtype=np.uint8)
    pairs = [(low, low + 1), (low + 1, low), (low, low), (low[::-1], low)]
    scores = np.array([np.stack(pair, -1) for pair in pairs], np.uint8)
    for n in range(256):
        hits = np.full(scores.shape[:2], n, dtype)
        whole = Box(0, 0, *hits.shape)
        labels = SemanticSegmentationSmoothLabels(whole, num_classes=2)
        stock = scores.transpose(2, 0, 1).astype(np.float16)
        stock /= 255
        labels.pixel_scores, labels.pixel_hits = stock * hits, hits
        with np.errstate(all="ignore"):
            expected = labels.get_label_arr(whole, 7)
        assert (scoring._from_scores(scores, hits, null=7) == expected).all()


def test_without_hits_each_pixel_was_seen_once(case):
    case.add("a", case.raster_labels("a"), smooth_output=True, smooth_as_uint8=True)
    case.predict("a")
    case.predict_scores("a")
    hits = case.predicted("a") / "pixel_hits.npy"
    np.save(hits, np.ones(SHAPE, np.uint8))
    stock, _ = case.both()
    hits.unlink()  # stock means to go on, but leaves the group out
    [file] = scoring.evaluate(case.config(), str(case.root))
    [theirs] = stock.values()
    assert without_extra(json.loads(open(file).read())) == theirs


@pytest.mark.parametrize("smooth", [False, True])
def test_areas_of_interest(case, smooth):
    near = write_boxes(case.root / "near.geojson", [(5, -9, 30, 40), (50, 20, 70, 9)])
    slanted = polygons(case.root / "slanted.geojson", seed=3, n=2)
    store = dict(smooth_output=True, smooth_as_uint8=True) if smooth else {}
    case.add("a", case.raster_labels("a"), aoi=[near, slanted], **store)
    case.predict("a")
    case.predict_scores("a")
    stock, _ = same(case)
    [found] = stock.values()
    null = found["overall"][-1]["conf_mat"][2][2]
    assert 0 < null < SHAPE[0] * SHAPE[1]


def test_an_aoi_beside_the_scene_counts_all_of_it(case):
    far = write_boxes(case.root / "far.geojson", [(500, 500, 30, 30)])
    case.add("a", case.raster_labels("a"), aoi=[far])
    case.predict("a")
    told = []
    stock, _ = same(case, tell=told.append)
    [found] = stock.values()
    assert found["overall"][2]["gt_count"] == 0
    assert "a lies in it" in " ".join(told)


def test_cropped_scenes_are_read_as_stock_reads_them(case):
    near = write_boxes(case.root / "near.geojson", [(5, 0, 40, 40)])
    box = (10, 20, 70, 65)
    case.add("a", case.raster_labels("a"), bbox=box)
    case.add("b", case.vector_labels("b"), bbox=box, aoi=[near])
    case.add("c", case.raster_labels("c"), bbox=box, smooth_output=True)
    for name in "abc":
        case.predict(name, shape=(60, 45))
        case.predict_scores(name, np.float32, shape=(60, 45))
    told = []
    same(case, tell=told.append)
    assert len(told) == 3 and all("shifted by the crop" in line for line in told)


@pytest.mark.parametrize("smooth", [False, True])
def test_an_aoi_that_only_the_crop_holds(case, smooth):
    low = write_boxes(case.root / "low.geojson", [(60, 50, 20, 15)])
    box, store = (40, 30, 90, 70), dict(smooth_output=smooth, smooth_as_uint8=smooth)
    case.add("a", case.raster_labels("a"), bbox=box, aoi=[low], **store)
    case.predict("a", shape=(50, 40))
    case.predict_scores("a", shape=(50, 40))
    stock, _ = same(case)
    [found] = stock.values()
    assert found["overall"][2]["gt_count"] == 50 * 40  # stock looks for it elsewhere
    [file] = scoring.evaluate(case.config(), str(case.root), as_stock=False)
    right = json.loads(open(file).read())
    assert right["overall"][2]["gt_count"] == 50 * 40 - 20 * 15


@pytest.mark.parametrize("smooth", [False, True])
def test_cropped_scenes_can_be_read_where_they_lie(case, smooth):
    case.add("a", case.raster_labels("a"), bbox=(10, 20, 70, 65), smooth_output=smooth)
    truth = case.rng.integers(0, 2, SHAPE, dtype=np.uint8)
    write_raster(case.root / "a-labels.tif", truth)
    right = truth[10:70, 20:65]
    write_raster(case.predicted("a") / "labels.tif", right)
    scores = np.stack([right == i for i in range(3)]).astype(np.float32)
    write_raster(case.predicted("a") / "scores.tif", scores)
    [file] = scoring.evaluate(case.config(), str(case.root), as_stock=False)
    found = json.loads(open(file).read())
    assert found["overall"][0]["metrics"]["f1"] == 1
    assert found["overall"][-1]["metrics"]["accuracy"] == 1


def test_groups_evaluators_and_vector_outputs(case):
    case.add("a", case.raster_labels("a"))
    outputs = [PolygonVectorOutputConfig(class_id=0, denoise=0)]
    case.add("b", case.vector_labels("b"), vector_output=outputs)
    case.add("c", case.raster_labels("c"), split="test")
    for name in "abc":
        case.predict(name)
    evaluators = [
        SemanticSegmentationEvaluatorConfig(),
        SemanticSegmentationEvaluatorConfig(output_uri=str(case.root / "elsewhere")),
    ]
    cfg = case.config(groups={"hard": {"c", "a"}}, evaluators=evaluators)
    stock, ours = same(case, cfg)
    assert len(stock) == 6
    folders = {f.relative_to(case.root).parent.as_posix() for f in stock}
    assert {"eval/hard", "elsewhere/hard", "elsewhere/test_scenes"} <= folders
    written = next(v for f, v in ours.items() if "validation" in str(f))
    assert list(written["per_scene"]) == ["a", "b"]


def test_four_classes(tmp_path):
    case = Case(tmp_path, names=("field", "road", "water", "null"))
    case.add("a", case.raster_labels("a", values=4))
    case.add("b", case.raster_labels("b", values=1))  # three classes are absent
    case.predict("a", values=4)
    case.predict("b", values=3)
    same(case)


# what is more than stock's


def test_iou_and_accuracy(case):
    case.add("a", case.raster_labels("a"))
    case.predict("a")
    _, ours = case.both()
    [found] = ours.values()
    for item in found["overall"][:3]:
        n = item["conf_mat_dict"]
        iou = n["TP"] / (n["TP"] + n["FP"] + n["FN"]) if n["TP"] else None
        assert item["metrics"]["iou"] == iou
        right = (n["TP"] + n["TN"]) / sum(n.values())
        assert item["metrics"]["accuracy"] == pytest.approx(right, abs=1e-15)
    average, table = found["overall"][3], np.array(found["overall"][3]["conf_mat"])
    right = np.trace(table) / table.sum()
    assert average["metrics"]["recall"] == pytest.approx(right, abs=1e-12)
    assert 0 < average["metrics"]["iou"] < average["metrics"]["f1"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blocks_add_up(data):
    side = data.draw(st.integers(1, 40))
    ids = arrays(np.uint8, (side, 5), elements=st.integers(0, 3))
    truth, drawn = data.draw(ids), data.draw(ids)
    rows = data.draw(st.integers(1, 50))
    cuts = scoring._blocks_of(truth.shape, rows)
    cuts = [slice(block.ymin, block.ymax) for block in cuts]
    total = sum(confusion(truth[c], drawn[c], 4) for c in cuts)
    expected = confusion_matrix(truth.ravel(), drawn.ravel(), labels=range(4))
    assert (total == expected).all()


def test_memory_does_not_grow_with_height(case):
    def peak(height):
        truth = write_raster(case.root / "t.tif", np.ones((height, 1000), np.uint8))
        image = write_raster(case.root / "i.tif", np.ones((1, height, 1000), np.uint8))
        store = SemanticSegmentationLabelStoreConfig(
            uri=str(case.root / "p"), smooth_output=True, smooth_as_uint8=True
        )
        scores = np.ones((3, height, 1000), np.uint8)
        write_raster(case.root / "p" / "scores.tif", scores)
        np.save(case.root / "p" / "pixel_hits.npy", np.ones((height, 1000), np.uint8))
        source = RasterioSourceConfig(uris=[str(truth)])
        scene = SceneConfig(
            id="t",
            raster_source=RasterioSourceConfig(uris=[str(image)]),
            label_source=SemanticSegmentationLabelSourceConfig(raster_source=source),
            label_store=store,
        )
        classes = ClassConfig(names=list(CLASSES))
        built = scene.build(classes)
        tracemalloc.start()
        try:
            scoring._count_scene(built, classes, rows=100)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < 1.1 * peak(500)


# what is left to stock


class OtherEvaluator(SemanticSegmentationEvaluatorConfig):
    "Somebody else's."


class OtherStore(SemanticSegmentationLabelStoreConfig):
    "Somebody else's."


def test_what_is_left_to_stock(case):
    scene = case.add("a", case.raster_labels("a"))
    case.predict("a")
    cfg = case.config()
    assert scoring.why_stock(cfg) is None
    ours = cfg.evaluators
    cfg.evaluators = [OtherEvaluator(output_uri=str(case.root))]
    assert "OtherEvaluator" in scoring.why_stock(cfg)
    with pytest.raises(ValueError, match="OtherEvaluator"):
        scoring.evaluate(cfg, str(case.root))
    assert not list(case.root.rglob("eval.json"))
    cfg.evaluators = ours
    scene = cfg.dataset.validation_scenes[0]
    scene.label_source.raster_source.transformers = [MinMaxTransformerConfig()]
    assert "MinMaxTransformerConfig of scene a" in scoring.why_stock(cfg)
    scene.label_source.raster_source.transformers = []
    scene.label_store = OtherStore(uri=str(case.root))
    assert "OtherStore" in scoring.why_stock(cfg)


# errors


def ready(case):
    scene = case.add("a", case.vector_labels("a"))
    case.add("b", case.raster_labels("b"))
    case.predict("a")
    case.predict("b")
    return scene, case.config()


def refused(case, cfg, error, *words):
    with pytest.raises(error) as caught:
        scoring.evaluate(cfg, str(case.root))
    for word in words:
        assert str(word) in str(caught.value)
    assert not list(case.root.rglob("eval.json"))


def test_missing_files_are_named(case):
    _, cfg = ready(case)
    (case.root / "a.geojson").unlink()
    (case.root / "b-labels.tif").unlink()
    (case.predicted("b") / "labels.tif").unlink()
    words = ["3 missing", case.root / "a.geojson", case.root / "b-labels.tif"]
    refused(case, cfg, FileNotFoundError, *words, case.predicted("b") / "labels.tif")


def test_missing_scores_are_named(case):
    case.add("a", case.raster_labels("a"), smooth_output=True)
    case.predict("a")
    refused(case, case.config(), FileNotFoundError, case.predicted("a") / "scores.tif")


def test_a_scene_without_labels(case):
    case.add("a", None)
    case.predict("a")
    refused(case, case.config(), FileNotFoundError, "the labels of scene a")


def test_a_prediction_that_vanishes_between_stages(case):
    _, cfg = ready(case)
    path = case.predicted("b") / "labels.tif"

    def build(scene, classes, tmp_dir):
        built = scene.build(classes, tmp_dir)
        path.unlink(missing_ok=True)
        return built

    with pytest.raises(FileNotFoundError, match="no prediction of scene b") as caught:
        scoring.evaluate(cfg, str(case.root), build_scene=build)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shape", [(60, 70), (90, 80), (120, 70)])
def test_a_prediction_of_another_size(case, shape):
    _, cfg = ready(case)
    case.predict("b", shape=shape)
    sizes = (f"{shape[0]} x {shape[1]}", "90 x 70", "labels.tif", "scene b")
    refused(case, cfg, ValueError, *sizes)


def test_hits_of_another_size(case):
    case.add("a", case.raster_labels("a"), smooth_output=True, smooth_as_uint8=True)
    case.predict("a")
    case.predict_scores("a")
    np.save(case.predicted("a") / "pixel_hits.npy", np.ones((9, 9), np.uint8))
    refused(case, case.config(), ValueError, "pixel_hits.npy", "9 x 9", "90 x 70")


def test_labels_on_another_grid(case):
    case.add("a", case.raster_labels("a"))
    case.predict("a")
    from fake_runs import VEGAS

    fine = np.ones((180, 140), np.uint8)
    write_raster(case.root / "a-labels.tif", fine, transform=VEGAS * VEGAS.scale(0.5))
    refused(case, case.config(), ValueError, "labels of scene a", "90 x 70")


def test_a_cut_file_is_no_result(case):
    _, cfg = ready(case)
    path = case.predicted("b") / "labels.tif"
    path.write_bytes(path.read_bytes()[:40])
    refused(case, cfg, OSError, "labels.tif", "scene b cannot be read")


def test_groups_of_scenes_that_are_never_predicted(case):
    case.add("t", case.raster_labels("t"), split="train")
    case.add("a", case.raster_labels("a"))
    case.predict("a")
    cfg = case.config(groups={"mixed": {"t", "a"}})
    told = []
    stock, ours = same(case, cfg, tell=told.append)
    assert [f.parent.name for f in ours] == ["validation_scenes"]
    assert told == ["mixed is not evaluated: scene t is not predicted"]


def test_an_evaluation_replaces_the_old_one_when_it_is_whole(case):
    _, cfg = ready(case)
    [file] = scoring.evaluate(cfg, str(case.root))
    before = open(file).read()
    (case.predicted("b") / "labels.tif").unlink()
    with pytest.raises(FileNotFoundError):
        scoring.evaluate(cfg, str(case.root))
    assert open(file).read() == before
    assert os.listdir(os.path.dirname(file)) == ["eval.json"]


def test_scenes_come_from_the_callers_builder(case):
    _, cfg = ready(case)
    asked = SimpleNamespace(ids=[])

    def build(scene, classes, tmp_dir):
        asked.ids.append(scene.id)
        return scene.build(classes, tmp_dir)

    scoring.evaluate(cfg, str(case.root), build_scene=build)
    assert asked.ids == ["a", "b"]

"""A zoo of Raster Vision configurations as strangers write them, one for each feature.

Nothing here goes through `rvtutorial.config`. `ZOO` maps a name to a `Variant`; `make_data`
writes all scenes into a folder; `Variant.make(data, root)` gives the configuration, and
`run_stock` runs it with plain Raster Vision.
"""

import contextlib
import functools
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import albumentations as A
import numpy as np
import rasterio
from affine import Affine
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from rastervision.core.data import (
    BufferTransformerConfig,
    BuildingVectorOutputConfig,
    CastTransformerConfig,
    ClassConfig,
    ClassInferenceTransformerConfig,
    DatasetConfig,
    GeoJSONVectorSourceConfig,
    MinMaxTransformerConfig,
    MultiRasterSourceConfig,
    NanTransformerConfig,
    PolygonVectorOutputConfig,
    RasterioSourceConfig,
    RasterizedSourceConfig,
    RasterizerConfig,
    ReclassTransformerConfig,
    RGBClassTransformerConfig,
    SceneConfig,
    SemanticSegmentationLabelSourceConfig,
    SemanticSegmentationLabelStoreConfig,
    ShiftTransformerConfig,
    StatsTransformerConfig,
)
from rastervision.core.data.utils import rasterio as rv_rasterio
from rastervision.core.rv_pipeline import (
    SemanticSegmentationChipOptions,
    SemanticSegmentationConfig,
    SemanticSegmentationPredictOptions,
    WindowSamplingConfig,
    WindowSamplingMethod,
    rv_pipeline,
)
from rastervision.pipeline.config import build_config, save_pipeline_config
from rastervision.pipeline.file_system import get_tmp_dir
from rastervision.pytorch_backend import PyTorchSemanticSegmentationConfig
from rastervision.pytorch_learner import (
    Backbone,
    ExternalModuleConfig,
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationImageDataConfig,
    SemanticSegmentationModelConfig,
    SolverConfig,
    learner,
)
from rastervision.pytorch_learner.learner import Learner

from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.engine.pipeline import _numpy_int0

CHIP = 64
SPLITS = {"train": ("t1", "t2"), "val": ("v1",), "test": ("s1",)}


# --- the scenes

HUBCONF = '''"""Networks and losses of a user, found by torch.hub."""

dependencies = ["torch"]

import torch
from torch import nn


def tiny(num_classes=3, in_channels=3):
    "Two layers: a local filter that sees 3 x 3 pixels."
    layers = nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(8, num_classes, 1))


class Out(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return {"out": self.body(x)}


def tiny_dict(num_classes=3, in_channels=3):
    "Answers with a dictionary, as torchvision's networks do."
    return Out(tiny(num_classes, in_channels))


class OverTime(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x.mean(dim=1))


def tiny_temporal(num_classes=3, in_channels=3):
    "Takes batch x time x bands x rows x columns."
    return OverTime(tiny(num_classes, in_channels))


def norm(num_classes=3, in_channels=3):
    "With batch norm, and half as fine as its input."
    first = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
    layers = first, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes, 1)
    return nn.Sequential(*layers, nn.Upsample(scale_factor=2, mode="bilinear"))


class Focal(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def forward(self, out, y):
        each = nn.functional.cross_entropy(out, y, reduction="none")
        return ((1 - torch.exp(-each)) ** self.gamma * each).mean()


def focal(gamma=2.0):
    return Focal(gamma)
'''

TRANSFORMS = '''"""A transform of a user, found by its path."""

import albumentations as A


def half(image, **params):
    return (image / 2).astype(image.dtype)


lambda_transforms = {"half": A.Lambda(name="half", image=half, p=1.0)}
'''


def make_data(folder: Path) -> Path:
    "Write every scene that a variant needs; about one second."
    folder = Path(folder)
    make_sample_scenes(folder / "sample", n_train=2, n_val=1, n_test=1, size=160)
    for number, scene_id in enumerate(i for ids in SPLITS.values() for i in ids):
        _write_scene(folder / "own", scene_id, np.random.default_rng(number))
    hub = folder / "hub"
    hub.mkdir()
    (hub / "hubconf.py").write_text(HUBCONF)
    (folder / "transforms.py").write_text(TRANSFORMS)
    return folder


def _write_scene(folder, scene_id, rng, height=150, width=182):
    "Bright blocks, a road and a pond on dim noise; every form of image and label."
    transform = Affine(0.5, 0, 664_000, 0, -0.5, 4_002_000)
    shapes = _things(rng, height, width)
    classes = rasterize(shapes, (height, width), fill=3, dtype="uint8")
    level = np.array([190, 90, 40, 120], "float32")[classes]
    gain = np.linspace(0.7, 1.3, 5, dtype="float32")[:, None, None]
    noise = rng.normal(0, 12, (5, height, width)).astype("float32")
    image = np.clip(level * gain + noise, 1, 255)
    put = functools.partial(_write, folder / scene_id, transform)
    _write_images(put, image)
    put("class.tif", classes[None])
    put("label.tif", np.where(classes == 0, 0, 1).astype("uint8")[None])
    put("mask.tif", np.where(classes == 0, 255, 0).astype("uint8")[None])
    put("colour.tif", np.array(COLOURS, "uint8")[classes].transpose(2, 0, 1))
    _write_vectors(folder / scene_id, shapes, transform, height, width)


def _things(rng, height, width):
    "Pixel shapes with their class: 0 building, 1 road, 2 pond."
    y = int(rng.integers(60, 80))
    shapes = [(_box(0, y, width, y + 9), 1), (_box(120, 90, 150, 120), 2)]
    for x in range(8, width - 24, 34):
        for top in (10, y + 22):
            w, h = (int(v) for v in rng.integers(14, 24, 2))
            shapes.append((_box(x, top, x + w, top + h), 0))
    return shapes


def _box(x0, y0, x1, y1):
    ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return {"type": "Polygon", "coordinates": [ring]}


def _write(folder, transform, name, image, **profile):
    "Write (bands, rows, columns) as a GeoTIFF."
    folder.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    known = dict(crs="EPSG:32611", transform=transform, dtype=image.dtype, count=count)
    known |= dict(driver="GTiff", height=height, width=width)
    with rasterio.open(folder / name, "w", **known | profile) as file:
        file.write(image)


def _write_images(put, image):
    "The same scene as uint8, uint16 and float32, with holes, tiled, and in two halves."
    byte = image.astype("uint8")
    put("rgb.tif", byte[:3])
    put("five.tif", byte)
    put("two.tif", byte[3:])
    put("uint16.tif", (image[:3] * 20).astype("uint16"))
    put("unit.tif", (image[:3] / 255).astype("float32"))
    holes = (image[:3] / 255).astype("float32")
    holes[:, 20:40, 30:70] = np.nan
    put("nan.tif", holes)
    empty = byte[:3].copy()
    empty[:, :, :25] = 7
    put("nodata.tif", empty, nodata=7)
    alpha = np.full((1, *byte.shape[1:]), 255, "uint8")
    alpha[:, 100:, :40] = 0
    put("alpha.tif", np.concatenate([byte[:3], alpha]), photometric="RGB", alpha="YES")
    tiles = dict(tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    put("tiled.tif", byte[:3], **tiles)
    shift = put.args[1] @ Affine.translation(90, 0)
    put("left.tif", byte[:3, :, :90])
    _write(put.args[0], shift, "right.tif", byte[:3, :, 90:])
    coarse = put.args[1] @ Affine.scale(2)
    _write(put.args[0], coarse, "coarse.tif", byte[3:, ::2, ::2])


def _write_vectors(folder, shapes, transform, height, width):
    "GeoJSON in degrees: buildings alone, all with ids, all with names, lines, and an AOI."

    def lonlat(shape):
        ring = [transform @ xy for xy in shape["coordinates"][0]]
        return _degrees({"type": "Polygon", "coordinates": [ring]})

    def save(name, features):
        made = [
            {"type": "Feature", "properties": p, "geometry": g} for p, g in features
        ]
        collection = {"type": "FeatureCollection", "features": made}
        (folder / name).write_text(json.dumps(collection))

    placed = [(lonlat(shape), number) for shape, number in shapes]
    names = ["house", "road", "pond"]
    save("buildings.json", [({}, g) for g, n in placed if n == 0])
    save("ids.json", [({"class_id": n}, g) for g, n in placed])
    save("names.json", [({"class_name": names[n]}, g) for g, n in placed])
    y = 75.0
    line = [transform @ (0, y), transform @ (width, y)]
    road = _degrees({"type": "LineString", "coordinates": line})
    dots = [_middle(g) for g, n in placed if n == 0]
    save("lines.json", [({"class_id": 1}, road), *[({"class_id": 0}, d) for d in dots]])
    save("aoi.json", [({}, lonlat(_box(4, 6, width - 5, height - 12)))])


def _degrees(shape):
    return transform_geom("EPSG:32611", "EPSG:4326", shape)


def _middle(polygon):
    "A point inside a rectangle."
    ring = np.array(polygon["coordinates"][0][:4])
    return {"type": "Point", "coordinates": ring.mean(0).tolist()}


# --- the pieces of a configuration

COLOURS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)]
TWO = ["building", "background"]
FOUR = ["building", "road", "pond", "ground"]


def names_of(names):
    return ClassConfig(names=list(names), colors=COLOURS[: len(names)])


def image(path, **options):
    return RasterioSourceConfig(uris=str(path), **options)


def vector(path, background=1, transformers=None, **rasterizer):
    "Labels from GeoJSON polygons."
    if transformers is None:
        transformers = [ClassInferenceTransformerConfig(default_class_id=0)]
    source = GeoJSONVectorSourceConfig(uris=str(path), transformers=transformers)
    burn = RasterizerConfig(background_class_id=background, **rasterizer)
    raster = RasterizedSourceConfig(vector_source=source, rasterizer_config=burn)
    return SemanticSegmentationLabelSourceConfig(raster_source=raster)


def raster(path, **options):
    "Labels from a raster."
    source = image(path, **options)
    return SemanticSegmentationLabelSourceConfig(raster_source=source)


def _sources(place):
    "The scene that most variants use: three bands of bytes, buildings as polygons."
    return image(place / "rgb.tif"), vector(place / "buildings.json")


def scenes(data, make=_sources, store=None, aoi=(), names=TWO, splits=SPLITS):
    "All scenes; `make(folder of the scene)` gives image and labels, `aoi` names splits."

    def scene(scene_id, split):
        place = Path(data) / "own" / scene_id
        source, labels = make(place)
        given = dict(label_store=store.copy()) if store else {}
        if split in aoi:
            given["aoi_uris"] = [str(place / "aoi.json")]
        return SceneConfig(
            id=scene_id, raster_source=source, label_source=labels, **given
        )

    made = {s: [scene(i, s) for i in splits.get(s, ())] for s in SPLITS}
    return DatasetConfig(
        class_config=names_of(names),
        train_scenes=made["train"],
        validation_scenes=made["val"],
        test_scenes=made["test"],
    )


def random_windows(**changes):
    options = dict(size=CHIP, max_windows=6) | changes
    return WindowSamplingConfig(method=WindowSamplingMethod.random, **options)


def grid(**changes):
    options = dict(size=CHIP, stride=48) | changes
    return WindowSamplingConfig(method=WindowSamplingMethod.sliding, **options)


def hub(data, entrypoint, **kwargs):
    return ExternalModuleConfig(
        uri=str(Path(data) / "hub"),
        name="hub",
        entrypoint=entrypoint,
        entrypoint_kwargs=kwargs,
    )


def network(data, classes=3, bands=3, entrypoint="tiny", **options):
    external = hub(data, entrypoint, num_classes=classes, in_channels=bands)
    return SemanticSegmentationModelConfig(external_def=external, **options)


def solver(**changes):
    return SolverConfig(**dict(lr=1e-2, num_epochs=2, batch_sz=4) | changes)


def pipeline(data, root, dataset=None, windows=None, model=None, **parts):
    "A configuration with two epochs of a tiny network; `parts` replace what is usual."
    dataset = dataset or scenes(data)
    bands = parts.pop("bands", 3)
    model = model or network(data, len(dataset.class_config) + 1, bands)
    options = dict(img_sz=CHIP, num_workers=0) | parts.pop("loader", {})
    chips = SemanticSegmentationGeoDataConfig(
        scene_dataset=dataset, sampling=windows or grid(), **options
    )
    backend = PyTorchSemanticSegmentationConfig(
        data=parts.pop("chips", chips),
        model=model,
        solver=parts.pop("solver", solver()),
        **parts.pop("backend", {}),
    )
    asked = dict(chip_sz=CHIP, batch_sz=4) | parts.pop("predict", {})
    return SemanticSegmentationConfig(
        root_uri=str(root),
        dataset=dataset,
        backend=backend,
        predict_options=SemanticSegmentationPredictOptions(**asked),
        **parts,
    )


# --- the zoo


@dataclass(frozen=True)
class Variant:
    "One configuration and the paths that the engine should take for it."

    name: str
    about: str
    make: Callable  # (data, root) -> SemanticSegmentationConfig
    slow: dict = field(default_factory=dict)  # part of `pipeline._paths` -> not "fast"
    exact: bool = True  # does nothing resize or blend what is predicted?
    gaps: bool = False  # does plain Raster Vision leave pixels without a prediction?
    holes: bool = False  # has the image pixels without data? the engine keeps them so
    stock_fails: str = ""  # what plain Raster Vision cannot do here


ZOO: dict[str, Variant] = {}


def variant(about, **expected):
    "Put a function into the zoo, with fields of its `Variant`."

    def add(make):
        ZOO[make.__name__] = Variant(make.__name__, about, make, **expected)
        return make

    return add


@variant(
    "random windows that overflow the scene, chips resized to 256: all defaults",
    slow=dict(chips="plain"),
    exact=False,
)
def random_defaults(data, root):
    few = dict(max_windows=3)
    return pipeline(data, root, windows=random_windows(**few), loader=dict(img_sz=256))


@variant("random windows inside the scene")
def random_inside(data, root):
    return pipeline(data, root, windows=random_windows(padding=0))


@variant("sliding windows, padded at the end")
def sliding(data, root):
    return pipeline(data, root)


@variant("sliding windows padded on all sides, by a fixed number of pixels")
def sliding_both(data, root):
    return pipeline(data, root, windows=grid(padding=20, pad_direction="both"))


@variant("random square windows of several sizes", slow=dict(chips="plain"))
def size_lims(data, root):
    return pipeline(data, root, windows=random_windows(size_lims=(40, 90)))


@variant("random windows of several heights and widths", slow=dict(chips="plain"))
def h_w_lims(data, root):
    windows = random_windows(h_lims=(40, 90), w_lims=(50, 80))
    return pipeline(data, root, windows=windows)


@variant("windows by scene id: some on a grid, some random")
def sampling_by_scene(data, root):
    windows = {i: random_windows() for i in SPLITS["train"]}
    windows |= {i: grid() for i in (*SPLITS["val"], *SPLITS["test"])}
    return pipeline(data, root, windows=windows)


@variant("img_sz below the size of chips", slow=dict(chips="plain"), exact=False)
def img_sz_smaller(data, root):
    return pipeline(data, root, loader=dict(img_sz=48))


@variant("class weights in the loss")
def class_weights(data, root):
    return pipeline(data, root, solver=solver(class_loss_weights=[2.0, 1.0, 0.0]))


@variant("the null class does not count in the loss")
def ignore_class(data, root):
    windows = random_windows()
    return pipeline(data, root, windows=windows, solver=solver(ignore_class_index=-1))


@variant("a loss from outside")
def external_loss(data, root):
    loss = hub(data, "focal", gamma=1.5)
    return pipeline(data, root, solver=solver(external_loss_def=loss))


@variant("a network that answers with a dictionary")
def model_dict(data, root):
    return pipeline(data, root, model=network(data, entrypoint="tiny_dict"))


@variant("a network with batch norm that works at half the resolution")
def model_norm(data, root):
    return pipeline(data, root, model=network(data, entrypoint="norm"))


@variant("Raster Vision's own DeepLabV3 with ResNet-50, from scratch")
def deeplab(data, root):
    model = SemanticSegmentationModelConfig(
        backbone=Backbone.resnet50, pretrained=False
    )
    windows = random_windows(max_windows=2, padding=0)
    changes = dict(solver=solver(num_epochs=1), predict=dict(chip_sz=128))
    return pipeline(data, root, model=model, windows=windows, **changes)


@variant("five bands, three of them chosen in another order")
def bands_chosen(data, root):
    def make(place):
        _, labels = _sources(place)
        return image(place / "five.tif", channel_order=[4, 2, 0]), labels

    return pipeline(data, root, scenes(data, make))


@variant("all of five bands")
def five_bands(data, root):
    def make(place):
        _, labels = _sources(place)
        return image(place / "five.tif", channel_order=[0, 1, 2, 3, 4]), labels

    return pipeline(data, root, scenes(data, make), bands=5)


@variant("one band")
def one_band(data, root):
    def make(place):
        _, labels = _sources(place)
        return image(place / "five.tif", channel_order=[1]), labels

    return pipeline(data, root, scenes(data, make), bands=1)


@variant("bands of two files together")
def multi_source(data, root):
    def make(place):
        files = [image(place / "rgb.tif", channel_order=[0, 1, 2])]
        files += [image(place / "two.tif", channel_order=[0, 1])]
        order = [4, 0, 1, 2, 3]
        both = MultiRasterSourceConfig(raster_sources=files, channel_order=order)
        return both, _sources(place)[1]

    return pipeline(data, root, scenes(data, make), bands=5)


@variant("bands of two files, one of them half as fine")
def multi_resolution(data, root):
    def make(place):
        files = [image(place / "rgb.tif"), image(place / "coarse.tif")]
        order = [0, 1, 2, 3, 4]
        both = MultiRasterSourceConfig(raster_sources=files, channel_order=order)
        return both, _sources(place)[1]

    return pipeline(data, root, scenes(data, make), bands=5)


@variant("a mosaic of two files")
def mosaic(data, root):
    def make(place):
        uris = [str(place / "left.tif"), str(place / "right.tif")]
        return RasterioSourceConfig(uris=uris), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("a tiled, compressed file")
def tiled(data, root):
    def make(place):
        return image(place / "tiled.tif"), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("a file with a no-data value", holes=True)
def nodata(data, root):
    def make(place):
        return image(place / "nodata.tif"), _sources(place)[1]

    return pipeline(data, root, scenes(data, make), windows=random_windows())


@variant("a file with an alpha band", holes=True)
def alpha(data, root):
    def make(place):
        return image(place / "alpha.tif", channel_order=[0, 1, 2]), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("uint16 without statistics")
def uint16(data, root):
    def make(place):
        return image(place / "uint16.tif"), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("float32 from 0 to 1, as it is")
def float32(data, root):
    def make(place):
        return image(place / "unit.tif"), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("float32 with NaN, replaced")
def nan(data, root):
    def make(place):
        change = [NanTransformerConfig(to_value=0.25)]
        return image(place / "nan.tif", transformers=change), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("MinMaxTransformer: each chip stretched by itself")
def min_max(data, root):
    def make(place):
        change = [MinMaxTransformerConfig()]
        return image(place / "uint16.tif", transformers=change), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("StatsTransformer: needs the analyze command", slow=dict(analysis="stock"))
def stats(data, root):
    def make(place):
        options = dict(channel_order=[0, 1, 2], transformers=[StatsTransformerConfig()])
        return image(place / "uint16.tif", **options), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("CastTransformer to float32")
def cast(data, root):
    def make(place):
        change = [CastTransformerConfig(to_dtype="float32")]
        return image(place / "rgb.tif", transformers=change), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("ReclassTransformer on an image")
def image_reclass(data, root):
    def make(place):
        change = [ReclassTransformerConfig(mapping={190: 255, 40: 0})]
        return image(place / "rgb.tif", transformers=change), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("part of each image, by pixel coordinates")
def cropped(data, root):
    def make(place):
        part = (11, 17, 141, 170)  # ymin, xmin, ymax, xmax
        return image(place / "rgb.tif", bbox=part), _sources(place)[1]

    return pipeline(data, root, scenes(data, make))


@variant("areas of interest in all splits, random windows inside them")
def aoi_random(data, root):
    dataset = scenes(data, aoi=("train", "val", "test"))
    return pipeline(data, root, dataset, windows=random_windows())


@variant("areas of interest in all splits, windows on a grid")
def aoi_sliding(data, root):
    dataset = scenes(data, aoi=("train", "val", "test"))
    return pipeline(data, root, dataset)


@variant("areas of interest, scores as float32", exact=False)
def aoi_smooth(data, root):
    store = SemanticSegmentationLabelStoreConfig(smooth_output=True)
    dataset = scenes(data, store=store, aoi=("train", "val", "test"))
    return pipeline(data, root, dataset, predict=dict(stride=32))


@variant("windows that only touch the area of interest")
def aoi_touched(data, root):
    dataset = scenes(data, aoi=("train", "val", "test"))
    windows = random_windows(within_aoi=False, efficient_aoi_sampling=False)
    return pipeline(data, root, dataset, windows=windows)


@variant("label rasters that hold class ids")
def raster_labels(data, root):
    def make(place):
        return image(place / "rgb.tif"), raster(place / "label.tif")

    return pipeline(data, root, scenes(data, make))


@variant("label rasters of 0 and 255")
def raster_reclass(data, root):
    def make(place):
        change = [ReclassTransformerConfig(mapping={255: 0, 0: 1})]
        return image(place / "rgb.tif"), raster(place / "mask.tif", transformers=change)

    return pipeline(data, root, scenes(data, make))


@variant("label rasters in colours")
def raster_colours(data, root):
    def make(place):
        change = [RGBClassTransformerConfig(class_config=names_of(FOUR))]
        labels = raster(place / "colour.tif", transformers=change)
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make, names=FOUR))


@variant("polygons of several classes with class_id")
def vector_ids(data, root):
    def make(place):
        none = ClassInferenceTransformerConfig(default_class_id=None)
        labels = vector(place / "ids.json", background=3, transformers=[none])
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make, names=FOUR))


@variant("polygons of several classes with names, some of them renamed")
def vector_names(data, root):
    def make(place):
        named = ClassInferenceTransformerConfig(
            class_name_mapping={"house": "building"}
        )
        labels = vector(place / "names.json", background=3, transformers=[named])
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make, names=FOUR))


@variant("polygons chosen by a filter on their attributes")
def vector_filter(data, root):
    def make(place):
        chosen = {0: ["==", "class_name", "house"], 1: ["==", "class_name", "road"]}
        named = ClassInferenceTransformerConfig(class_id_to_filter=chosen)
        labels = vector(place / "names.json", background=3, transformers=[named])
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make, names=FOUR))


@variant("lines and points, buffered")
def vector_lines(data, root):
    def make(place):
        wide = BufferTransformerConfig(geom_type="LineString", class_bufs={1: 4.0})
        round_ = BufferTransformerConfig(geom_type="Point", default_buf=7.0)
        labels = vector(place / "lines.json", background=3, transformers=[wide, round_])
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make, names=FOUR))


@variant("polygons moved by some metres")
def vector_shift(data, root):
    def make(place):
        move = ShiftTransformerConfig(x_shift=3.0, y_shift=-2.0)
        classify = ClassInferenceTransformerConfig(default_class_id=0)
        labels = vector(place / "buildings.json", transformers=[classify, move])
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make))


@variant("every pixel that a polygon touches")
def all_touched(data, root):
    def make(place):
        labels = vector(place / "buildings.json", all_touched=True)
        return image(place / "rgb.tif"), labels

    return pipeline(data, root, scenes(data, make))


@variant("sample scenes in degrees, uint16")
def sample_scenes(data, root):
    def find(split, number):
        folder = Path(data) / "sample" / split
        images = sorted(folder.glob("*.tif"))
        labels = sorted(folder.glob("*.geojson"))
        return images[number], labels[number]

    def scene(scene_id, split, number):
        picture, labels = find(split, number)
        return SceneConfig(
            id=scene_id, raster_source=image(picture), label_source=vector(labels)
        )

    dataset = DatasetConfig(
        class_config=names_of(TWO),
        train_scenes=[scene("a", "train", 0), scene("b", "train", 1)],
        validation_scenes=[scene("c", "val", 0)],
        test_scenes=[scene("d", "test", 0)],
    )
    return pipeline(data, root, dataset)


@variant("no augmentation")
def no_augmentors(data, root):
    return pipeline(data, root, loader=dict(augmentors=[]))


@variant("one flip only")
def one_augmentor(data, root):
    return pipeline(data, root, loader=dict(augmentors=["HorizontalFlip"]))


@variant("an augmentation beyond the eight symmetries", slow=dict(chips="plain"))
def more_augmentors(data, root):
    names = ["RandomRotate90", "RGBShift"]
    return pipeline(data, root, loader=dict(augmentors=names))


@variant("own augmentation, as albumentations stores it", slow=dict(chips="plain"))
def aug_transform(data, root):
    steps = [A.Transpose(p=0.5), A.RandomBrightnessContrast(p=0.5)]
    return pipeline(data, root, loader=dict(aug_transform=A.to_dict(A.Compose(steps))))


@variant("own scaling of values, as albumentations stores it")
def base_transform(data, root):
    scale = A.Normalize(mean=[110, 120, 130], std=[40, 45, 50], max_pixel_value=1.0)
    return pipeline(data, root, loader=dict(base_transform=A.to_dict(scale)))


@variant(
    "a base transform that blurs and resizes", slow=dict(chips="plain"), exact=False
)
def base_blur(data, root):
    steps = A.Compose([A.Blur(blur_limit=(3, 3), p=1.0), A.Resize(56, 56)])
    return pipeline(data, root, loader=dict(base_transform=A.to_dict(steps)))


@variant("a transform whose code lies in a file of the user", slow=dict(chips="plain"))
def transform_file(data, root):
    path = Path(data) / "transforms.py"
    from rastervision.pytorch_learner.utils import serialize_albumentation_transform

    half = _lambda_of(path)
    made = serialize_albumentation_transform(half, lambda_transforms_path=str(path))
    return pipeline(data, root, loader=dict(base_transform=made))


def _lambda_of(path):
    "The transform that a file of a user defines."
    names = {}
    exec(Path(path).read_text(), names)
    return names["lambda_transforms"]["half"]


@variant("part of the training chips")
def train_sz(data, root):
    return pipeline(data, root, loader=dict(train_sz=9))


@variant("a share of the training chips")
def train_sz_rel(data, root):
    return pipeline(data, root, loader=dict(train_sz_rel=0.5))


@variant("two processes that load")
def two_workers(data, root):
    return pipeline(data, root, loader=dict(num_workers=2), solver=solver(num_epochs=1))


@variant("scores as float32, windows that overlap", exact=False)
def smooth_float(data, root):
    store = SemanticSegmentationLabelStoreConfig(smooth_output=True)
    return pipeline(data, root, scenes(data, store=store), predict=dict(stride=32))


@variant("scores as bytes, windows that overlap", exact=False)
def smooth_uint8(data, root):
    store = SemanticSegmentationLabelStoreConfig(
        smooth_output=True, smooth_as_uint8=True, rasterio_block_size=64
    )
    return pipeline(data, root, scenes(data, store=store), predict=dict(stride=40))


@variant("labels by vote of windows that overlap")
def votes(data, root):
    return pipeline(data, root, predict=dict(stride=24))


@variant("edges of predicted chips cut off", gaps=True)
def crop(data, root):
    return pipeline(data, root, predict=dict(stride=48, crop_sz=8))


@variant("edges of chips cut off by half the overlap, scores", exact=False, gaps=True)
def crop_auto(data, root):
    store = SemanticSegmentationLabelStoreConfig(smooth_output=True)
    changes = dict(predict=dict(stride=40, crop_sz="auto"))
    return pipeline(data, root, scenes(data, store=store), **changes)


@variant("chips larger than the scene")
def chip_larger(data, root):
    return pipeline(data, root, predict=dict(chip_sz=256))


@variant("a stride larger than the chip leaves gaps", gaps=True, exact=False)
def stride_larger(data, root):
    return pipeline(data, root, predict=dict(stride=80))


@variant("predicted labels as colours")
def rgb_labels(data, root):
    store = SemanticSegmentationLabelStoreConfig(rgb=True)
    return pipeline(data, root, scenes(data, store=store))


@variant("predicted polygons", slow=dict(prediction="stock"))
def vector_polygons(data, root):
    outputs = [PolygonVectorOutputConfig(class_id=0, denoise=3)]
    store = SemanticSegmentationLabelStoreConfig(vector_output=outputs)
    return pipeline(data, root, scenes(data, store=store))


@variant(
    "predicted buildings, by a threshold on their scores", slow=dict(prediction="stock")
)
def vector_buildings(data, root):
    outputs = [BuildingVectorOutputConfig(class_id=0, denoise=3, threshold=0.4)]
    store = SemanticSegmentationLabelStoreConfig(
        vector_output=outputs, smooth_output=True
    )
    longer = solver(num_epochs=25, lr=2e-2, class_loss_weights=[4.0, 1.0, 0.1])
    return pipeline(data, root, scenes(data, store=store), solver=longer)


@variant(
    "chips cut beforehand by the chip command",
    slow=dict(chips="stock", chipping="stock"),
)
def chipped(data, root):
    chips = SemanticSegmentationImageDataConfig(img_sz=CHIP, num_workers=0)
    options = SemanticSegmentationChipOptions(sampling=grid())
    return pipeline(data, root, chips=chips, chip_options=options)


def _cut_beforehand(data, root, dataset, bands=3):
    chips = SemanticSegmentationImageDataConfig(
        img_sz=CHIP, num_workers=0, img_channels=bands
    )
    options = SemanticSegmentationChipOptions(sampling=grid())
    return pipeline(data, root, dataset, bands=bands, chips=chips, chip_options=options)


@variant(
    "chips cut beforehand, of bands in another order",
    slow=dict(chips="stock", chipping="stock"),
)
def chipped_bands(data, root):
    def make(place):
        source = image(place / "five.tif", channel_order=[4, 2, 0])
        return source, _sources(place)[1]

    return _cut_beforehand(data, root, scenes(data, make))


@variant(
    "chips cut beforehand, through statistics",
    slow=dict(chips="stock", chipping="stock", analysis="stock"),
)
def chipped_stats(data, root):
    def make(place):
        options = dict(channel_order=[2, 0, 1], transformers=[StatsTransformerConfig()])
        return image(place / "uint16.tif", **options), _sources(place)[1]

    return _cut_beforehand(data, root, scenes(data, make))


@variant(
    "chips cut beforehand, of two files together",
    slow=dict(chips="stock", chipping="stock"),
)
def chipped_multi(data, root):
    def make(place):
        files = [image(place / "rgb.tif"), image(place / "two.tif")]
        both = MultiRasterSourceConfig(
            raster_sources=files, channel_order=[4, 0, 1, 2, 3]
        )
        return both, _sources(place)[1]

    return _cut_beforehand(data, root, scenes(data, make), bands=5)


@variant(
    "a series of images of one place",
    slow=dict(scenes="stock", chips="plain", prediction="stock"),
)
def temporal(data, root):
    def make(place):
        files = [image(place / name, channel_order=[0, 1, 2]) for name in TIMES]
        series = MultiRasterSourceConfig(raster_sources=files, temporal=True)
        return series, _sources(place)[1]

    model = network(data, entrypoint="tiny_temporal")
    return pipeline(data, root, scenes(data, make), model=model)


TIMES = ("rgb.tif", "tiled.tif", "nodata.tif")


@variant("weights of a run before, from its bundle")
def fine_tuned(data, root):
    config = deeplab(data, root)
    config.source_bundle_uri = _before(data, "resnet", deeplab)["bundle"]
    return config


@variant(
    "weights of a run before, from its bundle, of a network from outside",
    stock_fails="the new bundle lacks the definition of the network",
)
def fine_tuned_external(data, root):
    bundle = _before(data, "tiny", one_epoch)["bundle"]
    return pipeline(data, root, source_bundle_uri=bundle)


@variant("weights of a run before, from a file")
def init_weights(data, root):
    weights = _before(data, "tiny", one_epoch)["weights"]
    return pipeline(data, root, model=network(data, init_weights=weights))


def _before(data, name, make):
    "A run that was there before; made once."
    root = Path(data) / "before" / name
    if not (root / "train/model-bundle.zip").exists():
        run_stock(make(data, root), ["train"])
    return {
        "bundle": str(root / "train/model-bundle.zip"),
        "weights": str(root / "train/last-model.pth"),
    }


@variant("a learning rate that falls by stages")
def multi_stage(data, root):
    stages = solver(num_epochs=3, one_cycle=False, multi_stage=[1, 2])
    return pipeline(data, root, solver=stages)


@variant("one learning rate all through")
def constant_lr(data, root):
    return pipeline(data, root, solver=solver(one_cycle=False))


@variant("a single epoch")
def one_epoch(data, root):
    return pipeline(data, root, solver=solver(num_epochs=1))


@variant("a batch of one left over")
def batch_left_over(data, root):
    return pipeline(data, root, loader=dict(train_sz=9), solver=solver(batch_sz=4))


@variant("no TensorBoard")
def no_tensorboard(data, root):
    return pipeline(data, root, backend=dict(log_tensorboard=False))


@variant("the weights of all epochs")
def all_checkpoints(data, root):
    changes = dict(solver=solver(num_epochs=3))
    return pipeline(data, root, backend=dict(save_all_checkpoints=True), **changes)


@variant("no test scenes")
def no_test(data, root):
    some = {k: SPLITS[k] for k in ("train", "val")}
    return pipeline(data, root, scenes(data, splits=some))


@variant("no validation scenes", stock_fails="it measures after each epoch")
def no_validation(data, root):
    some = {k: SPLITS[k] for k in ("train", "test")}
    return pipeline(data, root, scenes(data, splits=some))


@variant("a test scene without labels", stock_fails="it compares all of them")
def no_test_labels(data, root):
    dataset = scenes(data)
    dataset.test_scenes[0].label_source = None
    return pipeline(data, root, dataset)


@variant("a group of scenes of one's own, evaluated by itself")
def scene_groups(data, root):
    dataset = scenes(data)
    dataset.scene_groups = {"town": {"v1", "s1"}}
    return pipeline(data, root, dataset)


@variant("folders of the stages elsewhere")
def own_folders(data, root):
    places = {f"{k}_uri": str(Path(root) / "x" / k) for k in ("train", "predict")}
    return pipeline(data, root, **places)


# --- plain Raster Vision


@contextlib.contextmanager
def light(onnx=False, previews=False):
    """Plain Raster Vision without its ONNX export, pictures and compression: seconds.

    With the one name of numpy 1 that its outlines of buildings need.
    """
    save = Learner.save_model_bundle

    def lean(self, export_onnx=True):
        save(self, export_onnx=export_onnx and onnx)

    left_out = [] if previews else ["plot_dataloaders", "plot_predictions"]
    with contextlib.ExitStack() as stack:
        change = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        change(Learner, "save_model_bundle", lean)
        for name in left_out:
            change(Learner, name, _nothing)
        change(learner, "log_system_details", _nothing)
        for module in (learner, rv_pipeline):
            change(module, "zipdir", _store)
        stack.enter_context(programs())
        stack.enter_context(_numpy_int0())
        yield


@contextlib.contextmanager
def programs():
    "With a stand-in for gdalbuildvrt, which Raster Vision needs for mosaics."
    if shutil.which("gdalbuildvrt"):
        yield
    else:
        with mock.patch.object(rv_rasterio, "build_vrt", build_vrt):
            yield


def _nothing(*args, **kwargs):
    "In place of a picture."


def _store(folder, path):
    "Zip a folder without compression."
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for found in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            file.write(found, found.relative_to(folder))


def build_vrt(vrt_path, image_uris):
    "What Raster Vision asks the program gdalbuildvrt for, where there is none."
    files = [rasterio.open(uri) for uri in image_uris]
    left, top = min(f.bounds.left for f in files), max(f.bounds.top for f in files)
    right, low = max(f.bounds.right for f in files), min(f.bounds.bottom for f in files)
    a, e = files[0].transform.a, files[0].transform.e
    width, height = round((right - left) / a), round((low - top) / e)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}">'
        + "".join(_source(f, b, left, top) for f in files)
        + "</VRTRasterBand>"
        for b in files[0].indexes
    )
    Path(vrt_path).write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">'
        f"<SRS>{files[0].crs.to_string()}</SRS>"
        f"<GeoTransform>{left}, {a}, 0, {top}, 0, {e}</GeoTransform>"
        f"{bands}</VRTDataset>"
    )


def _source(file, band, left, top):
    "One file in a band of a mosaic."
    x = round((file.bounds.left - left) / file.transform.a)
    y = round((file.bounds.top - top) / file.transform.e)
    size = f'xSize="{file.width}" ySize="{file.height}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0">{file.name}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
        f'<DstRect xOff="{x}" yOff="{y}" {size}/></SimpleSource>'
    )


def run_stock(config, commands=None, onnx=False, previews=False):
    "What `rastervision run inprocess` does, in this process; returns the folder."
    with light(onnx, previews), open(os.devnull, "w") as null:
        with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            config.update()
            config.recursive_validate_config()
            build_config(config.dict())
            save_pipeline_config(config, config.get_config_uri())
            for command in commands or _commands(config):
                with get_tmp_dir() as tmp:
                    read = build_config(_json(config.get_config_uri()))
                    getattr(read.build(tmp), command)()
    return Path(config.root_uri)


def _commands(config):
    with get_tmp_dir() as tmp:
        return config.build(tmp).commands


def _json(path):
    return json.loads(Path(path).read_text())

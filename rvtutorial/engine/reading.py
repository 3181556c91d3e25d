"""Fast reading of image and label windows, bit for bit as Raster Vision reads them, with few files open.

Written by hand: the sources behind training, prediction and evaluation. Raster Vision
reads every window through a masked VRT of its own and draws polygons anew for each; here
a window is read directly, or cut from pixels that are held in memory.
"""

import contextlib
import copy
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
import torch
from pyogrio.errors import DataSourceError
from rasterio.features import rasterize

from rvtutorial.core.files import (
    available_memory,
    is_private,
    open_plain,
    scratch_folder,
)
from rvtutorial.core.files import gdal_name
from rvtutorial.core.renamed import say_once
from rvtutorial.data.validity import declared_nodata
from rvtutorial.core.files import atomic_path

with warnings.catch_warnings():  # importing Raster Vision switches all of them off
    warnings.simplefilter("ignore")
    import rastervision.pytorch_backend  # noqa: F401  registers every config class

from rastervision.core.box import Box
from rastervision.core.data import (
    BufferTransformerConfig,
    ClassInferenceTransformerConfig,
    GeoJSONVectorSourceConfig,
    MultiRasterSource,
    MultiRasterSourceConfig,
    RasterioCRSTransformer,
    RasterioSource,
    RasterioSourceConfig,
    RasterizedSourceConfig,
    RasterSource,
    Scene,
    SceneConfig,
    SemanticSegmentationLabelSource,
    SemanticSegmentationLabelSourceConfig,
)
from rastervision.core.data.utils import get_polygons_from_uris, listify_uris
from rastervision.core.data.utils.rasterio import (
    get_aws_session,
    get_channel_order_from_dataset,
    is_masked,
)
from rastervision.pipeline.file_system import (
    NotReadableError,
    download_if_needed,
    get_tmp_dir,
)

__all__ = ["SceneStore", "attach", "build_scene", "crs_transformer_of"]
__all__ += ["hidden_classes", "raster_source", "slow_reason"]

# --- open files


class _OpenRasters(threading.local):
    "The rasters that this thread used last; the others are closed."

    def __init__(self, most: int = 16):
        self.most, self.held = most, OrderedDict()

    def get(
        self,
        path: str,  # Anything that rasterio opens
        session=None,  # A session of rasterio, for s3://
    ):  # The dataset, open
        "A raster, opened now unless it was used a moment ago and has not changed since."
        key = path, _state_of(path)
        if key not in self.held:
            with _env(session):
                self.held[key] = rasterio.open(path)
            if len(self.held) > self.most:
                self.held.popitem(last=False)[1].close()
        self.held.move_to_end(key)
        return self.held[key]

    def close(self) -> None:
        "Close all rasters of this thread."
        while self.held:
            self.held.popitem()[1].close()

    def leave(self) -> None:
        "In a forked process: open anew, for a place in a file is shared with the parent."
        self.parents, self.held = self.held, OrderedDict()


def _env(session):
    "Who reads from a bucket; entering an environment for nothing costs as much as a read."
    return (
        contextlib.nullcontext() if session is None else rasterio.Env(session=session)
    )


def _state_of(path):
    "What changes when a file is written; nothing for what is not a file."
    with contextlib.suppress(OSError):
        now = os.stat(path)
        return now.st_ino, now.st_size, now.st_mtime_ns


RASTERS = _OpenRasters()
os.register_at_fork(after_in_child=RASTERS.leave)


# --- windows of a raster


def _read_inside(
    dataset,  # An open raster
    bands,  # Bands, counted from 1
    window: Box,  # In pixels of the raster, wholly inside it
) -> np.ndarray:  # (height, width, bands), in the type of the file
    "The pixels of a window, with zeros where the raster has no data."
    where = window.rasterio_format()
    bands = [int(b) for b in bands]
    if is_masked(dataset):
        pixels = dataset.read(bands, window=where, masked=True).filled(0)
    else:
        pixels = dataset.read(bands, window=where)
    for i, band in enumerate(bands):
        empty = dataset.nodatavals[band - 1]
        if empty is not None and empty != 0:
            pixels[i, pixels[i] == empty] = 0
    return pixels.transpose(1, 2, 0)


def _cut(
    pixels: np.ndarray,  # (height, width, ...): a whole scene
    window: Box,  # In pixels of the scene; may hang over
) -> np.ndarray:  # (height, width, ...) of the window: a view where nothing hangs over
    "A window of an array, with zeros outside it."
    top, left, bottom, right = window.ymin, window.xmin, window.ymax, window.xmax
    if min(top, left) >= 0 and bottom <= pixels.shape[0] and right <= pixels.shape[1]:
        return pixels[top:bottom, left:right]
    inside = window.intersection(Box(0, 0, *pixels.shape[:2]))
    found = pixels[inside.ymin : inside.ymax, inside.xmin : inside.xmax]
    out = np.zeros((window.height, window.width, *pixels.shape[2:]), pixels.dtype)
    if found.size:
        top, left = inside.ymin - top, inside.xmin - left
        out[top : top + found.shape[0], left : left + found.shape[1]] = found
    return out


@functools.lru_cache(maxsize=64)
def _projections(crs: str) -> RasterioCRSTransformer:
    "What turns map coordinates into those of an image; the same for scenes of one CRS."
    return RasterioCRSTransformer(rasterio.Affine.identity(), crs)


def crs_transformer_of(
    dataset,  # An open raster
):  # As RasterioCRSTransformer.from_dataset returns it
    "Stock's transformer of coordinates, with its projections made once for each CRS."
    if dataset.crs is None:
        return RasterioCRSTransformer.from_dataset(dataset)
    mine = copy.copy(_projections(dataset.crs.wkt))
    mine.transform = dataset.transform
    return mine


class _Held:
    "Pixels of a whole extent that are held in memory, or in a file of a store."

    pixels = None  # (height, width, ...), held; nobody may write into it
    store = None  # A SceneStore that shall be asked for them
    uses = 0  # Windows served before the store was asked

    def hold(self, pixels: np.ndarray) -> None:
        "Serve windows inside the extent from what `read_all` returned."
        self.pixels = pixels.view()
        self.pixels.flags.writeable = False

    def keep_in(self, store: "SceneStore") -> None:
        "Hold the pixels in a store, from the second window on; not those of huge scenes."
        pixel = len(self.channel_order) * self.dtype_raw.itemsize
        if self.bbox.height * self.bbox.width * pixel <= store.largest:
            self.store, self.uses = store, 0

    def ask_store(self, after: int) -> None:
        "Hold the pixels now if so many windows were served; it is tried once."
        store, self.uses = self.store, self.uses + 1
        if store is not None and self.uses > after:
            with contextlib.suppress(_CannotHold):
                self.hold(store.array(self, self.read_all))
            self.store = None


class _FastSource(_Held, RasterioSource):
    "Raster Vision's source of a raster file, read without detours and closed after use."

    def __init__(
        self,
        uris,
        transformers=(),
        streaming=False,
        order=None,
        bbox=None,
        tmp_dir=None,
    ):
        self.uris, self.allow_streaming = listify_uris(uris), streaming
        if tmp_dir is None:
            self.temporary = get_tmp_dir()  # lives as long as this source
            tmp_dir = self.temporary.name
        if len(self.uris) > 1:  # each mosaic needs a folder: stock names all alike
            tmp_dir = tempfile.mkdtemp(dir=tmp_dir)
        self.tmp_dir, self.session = tmp_dir, None
        self.imagery_path = self.download_data(tmp_dir, stream=streaming)
        if "s3://" in self.imagery_path.lower():
            self.session = get_aws_session()
        dataset = self.image_dataset
        self.place = crs_transformer_of(dataset)
        order = get_channel_order_from_dataset(dataset) if order is None else order
        self.bands_to_read = np.array(order, dtype=int) + 1
        self.is_masked = is_masked(dataset)
        RasterSource.__init__(  # RasterioSource's own would keep the file open
            self,
            channel_order=order,
            num_channels_raw=dataset.count,
            dtype_raw=np.dtype(dataset.dtypes[0]),
            bbox=bbox or Box(0, 0, dataset.height, dataset.width),
            raster_transformers=list(transformers),
        )

    @property
    def crs_transformer(self):
        return self.place

    @property
    def image_dataset(self):
        "The raster, opened when it is needed."
        return RASTERS.get(self.imagery_path, self.session)

    def read_all(self) -> np.ndarray:
        "The pixels of the whole extent before transformers, (height, width, bands)."
        pixels = self._inside(self.extent, self.bands_to_read)
        return np.ascontiguousarray(pixels)  # bands side by side, as chips have them

    def _inside(self, window, bands):
        "Read a window of the extent; what of it lies outside the file is zero."
        dataset = self.image_dataset
        there = window.to_global_coords(self.bbox)
        inside = there.intersection(Box(0, 0, dataset.height, dataset.width))
        with _env(self.session):
            found = _read_inside(dataset, bands, inside)
        return _cut(found, there.to_local_coords(inside))

    def _get_chip(self, window, bands=None, out_shape=None):
        """As stock does it: without `bands`, all those of the file.

        Windows that are resized on the way are left to stock.
        """
        self.ask_store(after=1)
        if out_shape is not None and tuple(out_shape) != tuple(window.size):
            return super()._get_chip(window, bands, out_shape)
        every = self.bands_to_read
        bands = range(1, self.num_channels_raw + 1) if bands is None else bands
        if self.pixels is not None and (bands is every or list(bands) == list(every)):
            found = _cut(self.pixels, window)  # stock's transformers write into chips
            return found.copy() if self.raster_transformers else found
        inside = window.intersection(self.extent)
        if inside.height < 1 or inside.width < 1:
            empty = np.zeros((0, 0, len(bands)), self.dtype_raw)
            return _cut(empty, window)
        return _cut(self._inside(inside, bands), window.to_local_coords(inside))


# --- polygons of labels (drawn here: Raster Vision loops over features in Python)


def _label_polygons(
    config: RasterizedSourceConfig,  # Vector labels
    classes,  # ClassConfig
    crs_transformer,  # Of the image
) -> tuple[np.ndarray, np.ndarray]:  # Polygons in pixels of the raster, their class ids
    """The polygons that Raster Vision would draw, in its order.

    Raises what Raster Vision raises for points, lines, or features without a class.
    """
    quick = _quickly(config.vector_source, classes, crs_transformer)
    if quick is not None:
        return quick
    source = config.vector_source.build(classes, crs_transformer)
    frame = source.get_dataframe()
    types = set(frame.geom_type) - {"Polygon", "MultiPolygon"}
    if types & {"Point", "LineString"} or (len(frame) and "class_id" not in frame):
        config.build(classes, crs_transformer)  # stock's own error
    ids = frame["class_id"].to_numpy(int) if len(frame) else np.zeros(0, int)
    return np.asarray(frame.geometry, dtype=object), ids


def _quickly(config, classes, crs_transformer):
    "The same without a loop over features, None where only stock knows how."
    rules = [s for s in config.transformers if not _leaves_polygons(s)]
    plain = type(config) is GeoJSONVectorSourceConfig and len(rules) == 1
    if not plain or not hasattr(crs_transformer, "map2image"):
        return None
    if type(rules[0]) is not ClassInferenceTransformerConfig:
        return None
    read = [_read_vectors(uri) for uri in listify_uris(config.uris)]
    if any(r is None for r in read):
        return None
    ids = [_class_ids(fields, len(found), rules[0], classes) for found, fields in read]
    if any(i is None for i in ids):
        return None
    shapes = np.concatenate([found for found, _ in read])
    return _to_pixels(shapes, np.concatenate(ids), crs_transformer)


def _leaves_polygons(step):
    "Whether a transformer of vectors does nothing to polygons."
    return type(step) is BufferTransformerConfig and step.geom_type != "Polygon"


def _read_vectors(uri):
    "Geometries in longitude and latitude and the fields that name classes, or None."
    path = download_if_needed(uri)
    found = _parse_geojson(path) if path.endswith(("json", "JSON")) else None
    if found is None:
        found = _read_features(path)
    if found is None:
        return None
    shapes, fields = found
    kinds = set(shapely.get_type_id(shapes).tolist()) - {3, 6}  # polygon, multipolygon
    if kinds or shapely.is_empty(shapes).any():
        return None
    return shapes, fields


_CLASS_FIELDS = ["class_id", "class_name", "label"]
_LONGITUDE_LATITUDE = ("EPSG:4326", "OGC:CRS84", "URN:OGC:DEF:CRS:OGC:1.3:CRS84")


def _read_features(path):
    "By GDAL: any format."
    meta, _, geometries, fields = pyogrio.raw.read(
        gdal_name(path), columns=_CLASS_FIELDS, force_2d=True
    )
    crs = (meta["crs"] or "EPSG:4326").upper()
    if crs not in _LONGITUDE_LATITUDE or geometries is None:
        return None
    there = np.array([g is not None for g in geometries], dtype=bool)
    names = meta["fields"].tolist()
    fields = {n: v[there] for n, v in zip(names, fields, strict=True)}
    return shapely.from_wkb(geometries[there]), fields


def _parse_geojson(path):
    "By GEOS, four times faster: plain GeoJSON whose features have no class; else None."
    try:
        text = Path(path).read_bytes()
        tree = json.loads(text)
        named = tree.get("crs", {}).get("properties", {}).get("name", "EPSG:4326")
        features = tree["features"]
        odd = any(
            f["geometry"] is None
            or not f["properties"].keys().isdisjoint(_CLASS_FIELDS)
            for f in features
        )
        if odd or named.upper() not in _LONGITUDE_LATITUDE:
            return None
        shapes = shapely.get_parts(shapely.from_geojson(text))
    except (AttributeError, KeyError, TypeError, ValueError, shapely.GEOSException):
        return None
    whole = len(shapes) == len(features)
    return (shapely.force_2d(shapes), {}) if whole else None


def _class_ids(fields, n, rule, classes):
    "The class id of every feature by Raster Vision's rules, None where stock must look."
    if rule.class_id_to_filter:
        return None
    given = fields.get("class_id")
    if given is not None:
        return given.astype(int) if given.dtype.kind in "iu" else None
    named = fields.get("class_name", fields.get("label"))
    if named is not None and {"class_name", "label"} <= set(fields):
        return None
    ids = [rule.default_class_id] * n
    if named is not None:
        if any(not isinstance(name, str) for name in named):
            return None
        named = [(rule.class_name_mapping or {}).get(name, name) for name in named]
        known = {name: i for i, name in reversed(list(enumerate(classes.names)))}
        ids = [known.get(name, rule.default_class_id) for name in named]
    return None if None in ids else np.array(ids, dtype=int)


def _to_pixels(shapes, ids, crs_transformer):
    "Floor to pixels, split, repair, split again; the ids follow."

    def floored(points):
        x, y = crs_transformer.map_to_pixel((points[:, 0], points[:, 1]))
        return np.column_stack([x, y]).astype(float)

    shapes, ids = _parts(shapely.transform(shapes, floored), ids)
    shapes = shapely.buffer(shapes, 0)
    full = ~shapely.is_empty(shapes)
    return _parts(shapes[full], ids[full])


def _parts(shapes, ids):
    "One polygon a row."
    parts, of = shapely.get_parts(shapes, return_index=True)
    return parts, ids[of]


def _as_geojson(
    shapes: np.ndarray,  # Polygons
) -> list:  # The same for rasterio, as dictionaries where possible
    "Polygons as GeoJSON, all at once: asking each of them takes longer than drawing it."
    if set(shapely.get_type_id(shapes).tolist()) != {3}:
        return list(shapes)
    _, points, (rings, polygons) = shapely.to_ragged_array(shapes, include_z=False)
    points = points.tolist()
    lines = [points[a:b] for a, b in pairwise(rings.tolist())]
    return [
        {"type": "Polygon", "coordinates": lines[a:b]}
        for a, b in pairwise(polygons.tolist())
    ]


class _LabelRaster(_Held, RasterSource):
    """Polygons of a scene as a raster of class ids.

    They are drawn once for the whole extent, but for what sticks out of it; a larger scene
    is drawn window by window.
    """

    most = 64_000_000  # pixels of a scene that is drawn as a whole

    def __init__(self, shapes, ids, background, crs_transformer, bbox, touched=False):
        self.shapes, self.ids, self.background = shapes, ids, background
        self.place, self.all_touched = crs_transformer, touched
        points, of = shapely.get_coordinates(shapes, return_index=True)
        self.odd = np.unique(of[(points % 1 != 0).any(axis=1)])
        RasterSource.__init__(
            self, channel_order=[0], num_channels_raw=1, dtype_raw=np.uint8, bbox=bbox
        )
        self.set_bbox(bbox)

    @property
    def crs_transformer(self):
        return self.place

    def set_bbox(self, bbox):
        "Another part of the same map; nothing is drawn before it is asked for."
        super().set_bbox(bbox)
        self.pixels = None
        small = bbox.height * bbox.width <= self.most
        self.whole = small and not self.all_touched
        left, top, right, bottom = shapely.bounds(self.shapes).reshape(-1, 4).T
        inside = (left >= bbox.xmin) & (right <= bbox.xmax)
        inside &= (top >= bbox.ymin) & (bottom <= bbox.ymax)
        self.near = np.flatnonzero(~inside)

    def keep_in(self, store: "SceneStore") -> None:
        "Hold what is drawn in a store, if it is drawn as a whole."
        if self.whole:
            super().keep_in(store)

    def draw(self, window: Box, which: np.ndarray) -> np.ndarray:
        "Rasterise some of the polygons; the window is in pixels of the raster."
        size = (window.height, window.width)
        if not len(which):
            return np.full(size, self.background, np.uint8)
        moved, corner = self.shapes[which], (window.xmin, window.ymin)
        if any(corner):
            moved = shapely.transform(moved, lambda points: points - corner)
        return rasterize(
            list(zip(_as_geojson(moved), self.ids[which].tolist(), strict=True)),
            out_shape=size,
            fill=self.background,
            dtype=np.uint8,
            all_touched=self.all_touched,
        )

    def read_all(self) -> np.ndarray:
        "Class ids of the whole extent, (height, width) uint8."
        return self.draw(self.bbox, np.arange(len(self.ids)))

    def _get_chip(self, window, out_shape=None):
        if out_shape is not None:
            return self.resize(self._get_chip(window)[..., 0], out_shape)[..., None]
        self.ask_store(after=0)
        if self.whole and self.pixels is None:
            self.hold(self.read_all())
        if self.whole and not len(self.odd) and window in self.extent:
            return _cut(self.pixels, window)[..., None]
        return self._drawn(window)[..., None]

    def _drawn(self, window):
        "Draw what must be drawn for this window; the rest is there already."
        there = window.to_global_coords(self.bbox)
        frame = shapely.box(there.xmin, there.ymin, there.xmax, there.ymax)

        def draw(which):
            reach = shapely.intersects(self.shapes[which], frame)
            return self.draw(there, which[reach])

        if not self.whole or shapely.intersects(self.shapes[self.odd], frame).any():
            return draw(np.arange(len(self.ids)))
        inside = window.intersection(self.extent)
        if inside.size == window.size:
            return _cut(self.pixels, window)
        out, found = draw(self.near), _cut(self.pixels, inside)
        if found.size:
            top, left = inside.ymin - window.ymin, inside.xmin - window.xmin
            out[top : top + found.shape[0], left : left + found.shape[1]] = found
        return out


# --- scenes


def slow_reason(
    config: SceneConfig,  # Of any pipeline
) -> str | None:  # None: all of it reads fast
    "Why a scene, or a part of it, is read by stock code."
    if type(config) is not SceneConfig:
        return f"{type(config).__name__} is not Raster Vision's own scene"
    sources = [config.raster_source]
    if type(sources[0]) is MultiRasterSourceConfig:
        if sources[0].temporal:
            return "a time series"
        sources = sources[0].raster_sources
    if config.label_source is not None:
        sources = [*sources, getattr(config.label_source, "raster_source", None)]
    known = (RasterioSourceConfig, RasterizedSourceConfig)
    odd = [type(s).__name__ for s in sources if type(s) not in known]
    return f"{odd[0]} is read by stock" if odd else None


def raster_source(
    config,  # Of an image, or of labels
    tmp_dir: str | None = None,  # For mosaics
) -> RasterSource:  # A FastSource where the configuration allows it
    "Build the source of a raster."
    steps = [t.build(channel_order=config.channel_order) for t in config.transformers]
    bbox = None if config.bbox is None else Box(*config.bbox)
    if type(config) is RasterioSourceConfig:
        streaming, order = config.allow_streaming, config.channel_order
        return _FastSource(config.uris, steps, streaming, order, bbox, tmp_dir)
    if type(config) is MultiRasterSourceConfig and not config.temporal:
        return MultiRasterSource(
            [raster_source(c, tmp_dir) for c in config.raster_sources],
            primary_source_idx=config.primary_source_idx,
            channel_order=config.channel_order,
            raster_transformers=steps,
            bbox=bbox,
        )
    return config.build(tmp_dir)


def _label_source(
    config,  # Of labels
    classes,  # ClassConfig
    image: RasterSource,  # Of the same scene
    tmp_dir: str | None = None,  # For mosaics
):  # Serves class ids
    "Build the source of a scene's labels."
    if type(config) is not SemanticSegmentationLabelSourceConfig:
        return config.build(classes, image.crs_transformer, image.bbox, tmp_dir)
    labels = config.raster_source
    if type(labels) is RasterizedSourceConfig:
        shapes, ids = _label_polygons(labels, classes, image.crs_transformer)
        how = labels.rasterizer_config
        rest = how.background_class_id
        more = (rest, image.crs_transformer, image.bbox, how.all_touched)
        return SemanticSegmentationLabelSource(
            _LabelRaster(shapes, ids, *more), classes
        )
    return SemanticSegmentationLabelSource(raster_source(labels, tmp_dir), classes)


_UNREADABLE = (NotReadableError, DataSourceError)


def build_scene(
    config: SceneConfig,  # Of any pipeline
    classes,  # ClassConfig
    tmp_dir: str | None = None,  # For mosaics
    labels: bool = True,  # Is anybody going to look at the labels?
    predictions: bool = True,  # And at predictions made before?
) -> Scene:  # With fast sources where the configuration allows them
    """What `config.build` builds, served faster and with files closed.

    Raises FileNotFoundError that names the scene when a file is missing.
    """
    if type(config) is not SceneConfig:
        return config.build(classes, tmp_dir)
    try:
        image = raster_source(config.raster_source, tmp_dir)
        place = dict(crs_transformer=image.crs_transformer, bbox=image.bbox)
        known, store = None, None
        if labels and config.label_source is not None:
            known = _label_source(config.label_source, classes, image, tmp_dir)
        if predictions and config.label_store is not None:
            store = config.label_store.build(classes, **place, tmp_dir=tmp_dir)
        areas = []
        if config.aoi_uris:
            areas = get_polygons_from_uris(config.aoi_uris, image.crs_transformer)
    except (FileNotFoundError, rasterio.RasterioIOError, *_UNREADABLE) as err:
        raise FileNotFoundError(f"scene {config.id}: {err}") from err
    if known is None or not isinstance(known.raster_source, _LabelRaster):
        return Scene(config.id, image, known, store, areas)
    scene = Scene(config.id, image, None, store, areas)
    scene.label_source = known  # drawn on the image's own grid: nothing to match
    return scene


def hidden_classes(
    dataset,  # DatasetConfig, of any pipeline
) -> list[str]:  # One sentence, or none
    """What Raster Vision does to label rasters whose declared no-data value is a class.

    It reads such pixels as 0, and then takes them for the class that 0 means.
    """
    hidden, names = [], dataset.class_config.names
    for scene in dataset.all_scenes:
        source = getattr(scene.label_source, "raster_source", None)
        if type(source) is not RasterioSourceConfig:
            continue
        steps = [getattr(t, "mapping", None) or {} for t in source.transformers]
        for uri in listify_uris(source.uris):
            value = declared_nodata(uri)
            meant = _class_of(value, steps, names)
            read = _class_of(0, steps, names)
            if value and meant is not None and meant != read:
                hidden.append((uri, value, meant, read or "0"))
    if not hidden:
        return []
    uri, value, meant, read = hidden[0]
    return [
        f"{len(hidden)} label rasters, such as {uri}, declare {value:g} as no data, which "
        f"is the class {meant}: Raster Vision reads such pixels as {read}. Take the tag "
        "away (gdal_edit.py -unsetnodata) if they are meant"
    ]


def _class_of(value, steps, names):
    "The name of the class that a number becomes, None if it becomes none."
    for mapping in steps:
        value = mapping.get(value, value)
    whole = value is not None and math.isfinite(value) and int(value) == value
    return names[int(value)] if whole and 0 <= value < len(names) else None


# --- pixels that are held


def _fingerprint_of(
    source,  # A FastSource that is not part of a mosaic, or a LabelRaster
) -> tuple[str, str] | None:  # A name, and a digest of its state; None: unknown
    "What pixels were made from: the same name and another digest means changed data."
    if isinstance(source, _FastSource):
        if len(source.uris) != 1 or not Path(source.imagery_path).is_file():
            return None
        path = Path(source.imagery_path).resolve()
        now = path.stat()
        what = [str(path), source.bands_to_read.tolist(), list(source.bbox)]
        return _digest(what), _digest([now.st_size, now.st_mtime_ns])
    geometry = shapely.to_wkb(shapely.geometrycollections(source.shapes))
    how = [source.background, source.all_touched, list(source.bbox)]
    whole = _digest([geometry, source.ids.tobytes(), how])
    return whole, whole


def _digest(what) -> str:
    "32 hex digits."
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _mapped(file):
    "The array of an open .npy file, mapped; numpy's own maps keep their files open."
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    size, name = os.fstat(file.fileno()).st_size, f"/proc/self/fd/{file.fileno()}"
    whole = torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
    pixels = np.frombuffer(whole.numpy(), dtype, np.prod(shape), file.tell())
    return pixels.reshape(shape)


class _CannotHold(OSError):
    "There is neither memory nor scratch for the pixels of a scene."


class SceneStore:
    """Pixels of scenes, in memory up to a budget and in memory-mapped files above it.

    Each file carries a digest of what it was made from.
    """

    largest = 2**30  # bytes; a larger scene is read window by window from its own file
    keep_days = 14  # a file that nobody opened for so long is deleted

    def __init__(
        self,
        budget_mb: float
        | None = None,  # None: RVTUTORIAL_CACHE_MB or a quarter of memory
        scratch: str | Path | None = None,  # None: `scratch_folder()`
        say=say_once,  # Told once when something is slower than it could be
    ):
        named = os.environ.get("RVTUTORIAL_CACHE_MB")
        if budget_mb is None and named:
            budget_mb = float(named)
        self.budget = available_memory() / 4 if budget_mb is None else budget_mb * 2**20
        self.folder = Path(scratch or scratch_folder())
        self.named = bool(scratch or os.environ.get("RVTUTORIAL_SCRATCH"))
        self.say, self.held, self.used, self.told = say, {}, 0, set()
        self.lock = threading.Lock()

    def array(
        self,
        source,  # A FastSource or a LabelRaster
        make,  # Called without arguments for the pixels, when they are not here
    ) -> np.ndarray:  # Must not be changed
        "The pixels of a source's whole extent. Raises CannotHold."
        known = _fingerprint_of(source)
        with self.lock:
            if known in self.held:
                return self.held[known]
            pixels = None if known is None else self._from_file(*known)
            if pixels is None:
                pixels = self._keep(known, make())
            if known is not None:
                self.held[known] = pixels
        return pixels

    def _keep(self, known, pixels):
        "In memory while the budget lasts, then in a file, then not at all."
        if self.used + pixels.nbytes <= self.budget:
            self.used += pixels.nbytes
            return pixels
        if known is None:
            raise _CannotHold("a mosaic has no file of its own")
        try:
            return self._to_file(*known, pixels)
        except OSError as err:
            text = f"{self.folder} cannot hold scenes ({err}): they are read again"
            more = "for every chip; set RVTUTORIAL_SCRATCH to another folder"
            self._once("full", f"{text} {more}")
            raise _CannotHold from err

    def _once(self, what, text):
        "Say something, but not for every scene."
        if what not in self.told:
            self.told.add(what)
            self.say(text)

    def _path(self, name):
        return self.folder / f"{name}.npy"

    def _safe(self):
        "Whether nobody else can have put files there; who names a folder answers for it."
        return self.named or is_private(self.folder)

    def _to_file(self, name, digest, pixels):
        "Write pixels and the digest behind them, to a temporary name first."
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._safe():
            raise OSError("it is no private folder of yours any more")
        free = shutil.disk_usage(self.folder).free
        if free < pixels.nbytes + 2**28:
            raise OSError(f"{free / 2**30:.1f} GB are free")
        if self._path(name).is_symlink():
            self._path(name).unlink()  # else what it leads to would be replaced
        with atomic_path(self._path(name)) as partial:
            with open(partial, "wb") as file:
                np.save(file, np.ascontiguousarray(pixels))
                file.write(digest.encode())
        return self._from_file(name, digest)

    def _from_file(self, name, digest):
        "Pixels of a file, None where there is none of this digest."
        path = self._path(name)
        if not self._safe():
            return None
        try:
            with open_plain(path) as file:
                file.seek(-len(digest), os.SEEK_END)
                if file.read() == digest.encode():
                    os.utime(file.fileno())
                    return _mapped(file)
        except (OSError, ValueError):
            return None
        text = f"scenes in {self.folder} have changed since: they are read anew"
        self._once("changed", text)
        return None

    def prune(self) -> int:  # Files deleted
        "Delete the files that nobody has opened for a while."
        limit = time.time() - self.keep_days * 86_400
        ours = self.folder.glob("[0-9a-f]" * 32 + ".npy")  # others may write here too
        old = [path for path in ours if path.stat().st_mtime < limit]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


def attach(
    scene: Scene,  # From `build_scene`
    store: SceneStore,  # Holds its pixels
) -> Scene:  # The same
    "Let the sources of a scene hold their pixels in a store."
    image, labels = scene.raster_source, scene.label_source
    sources = [*getattr(image, "raster_sources", [image])]
    sources += [getattr(labels, "raster_source", None)]
    for source in sources:
        if isinstance(source, _Held):
            source.keep_in(store)
    return scene

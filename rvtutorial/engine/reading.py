"""Fast reading of image and label windows, bit for bit as Raster Vision reads them, with few files open.

Written by hand: the sources behind training, prediction and evaluation. Raster Vision
reads every window through a masked VRT of its own and draws polygons anew for each; here
a window is read directly, or cut from pixels that are held in memory.
"""

import contextlib
import copy
import functools
import math
import os
import tempfile
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import rasterio
from pyogrio.errors import DataSourceError

with warnings.catch_warnings():  # importing Raster Vision switches all of them off
    warnings.simplefilter("ignore")
    import rastervision.pytorch_backend  # noqa: F401  registers every config class

from rastervision.core.box import Box
from rastervision.core.data import (
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
from rastervision.pipeline.file_system import NotReadableError, get_tmp_dir

from rvtutorial.data.validity import declared_nodata
from rvtutorial.engine.polygons import LabelRaster
from rvtutorial.engine.store import Held, SceneStore

__all__ = ["SceneStore", "build_scene", "hidden_classes", "slow_reason"]


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
        key = path, None
        with contextlib.suppress(OSError):  # what is no file cannot be seen to change
            now = os.stat(path)
            key = path, (now.st_ino, now.st_size, now.st_mtime_ns)
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


@functools.lru_cache(maxsize=64)
def _projections(crs: str) -> RasterioCRSTransformer:
    "What turns map coordinates into those of an image; the same for scenes of one CRS."
    return RasterioCRSTransformer(rasterio.Affine.identity(), crs)


class _FastSource(Held, RasterioSource):
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
        if dataset.crs is None:
            self.place = RasterioCRSTransformer.from_dataset(dataset)
        else:
            self.place = copy.copy(_projections(dataset.crs.wkt))
            self.place.transform = dataset.transform
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

    def fingerprint(self) -> tuple[str, str] | None:
        "Path, bands and extent, and the state of the file; None for a mosaic."
        if len(self.uris) != 1 or not Path(self.imagery_path).is_file():
            return None
        path = Path(self.imagery_path).resolve()
        what = str(path), self.bands_to_read.tolist(), list(self.bbox)
        now = path.stat()
        return self.digest(*what), self.digest(now.st_size, now.st_mtime_ns)

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
        return self.cut(found, there.to_local_coords(inside))

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
            found = self.cut(self.pixels, window)
            # stock's transformers write into chips
            return found.copy() if self.raster_transformers else found
        inside = window.intersection(self.extent)
        if inside.height < 1 or inside.width < 1:
            empty = np.zeros((0, 0, len(bands)), self.dtype_raw)
            return self.cut(empty, window)
        return self.cut(self._inside(inside, bands), window.to_local_coords(inside))


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


def _raster_source(
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
            [_raster_source(c, tmp_dir) for c in config.raster_sources],
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
        raster = LabelRaster(labels, classes, image)
    else:
        raster = _raster_source(labels, tmp_dir)
    return SemanticSegmentationLabelSource(raster, classes)


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
        image = _raster_source(config.raster_source, tmp_dir)
        place = dict(crs_transformer=image.crs_transformer, bbox=image.bbox)
        known, store = None, None
        if labels and config.label_source is not None:
            known = _label_source(config.label_source, classes, image, tmp_dir)
        if predictions and config.label_store is not None:
            store = config.label_store.build(classes, **place, tmp_dir=tmp_dir)
        areas = []
        if config.aoi_uris:
            areas = get_polygons_from_uris(config.aoi_uris, image.crs_transformer)
    except _UNREADABLE as err:
        raise FileNotFoundError(f"scene {config.id}: {err}") from err
    drawn = isinstance(getattr(known, "raster_source", None), LabelRaster)
    scene = Scene(config.id, image, None if drawn else known, store, areas)
    if drawn:  # on the image's own grid: nothing to match
        scene.label_source = known
    return scene


_UNREADABLE = (
    FileNotFoundError,
    rasterio.RasterioIOError,
    NotReadableError,
    DataSourceError,
)


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

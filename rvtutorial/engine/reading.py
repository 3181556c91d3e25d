"""Fast reading of image and label windows, bit for bit as Raster Vision reads them, with few files open.

Written by hand: the sources behind training, prediction and evaluation. Raster Vision
reads every window through a masked VRT of its own and draws polygons anew for each; here
a window is read directly, or cut from pixels that are held in memory.
"""

import contextlib
import copy
import functools
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
from rastervision.core import data as rv
from rastervision.core.data.utils import get_polygons_from_uris, listify_uris
from rastervision.core.data.utils.rasterio import (
    get_aws_session,
    get_channel_order_from_dataset,
    is_masked,
)
from rastervision.pipeline.file_system import NotReadableError, get_tmp_dir

from rvtutorial.engine.polygons import LabelRaster
from rvtutorial.engine.store import Held, SceneStore


# --- open files


class _OpenRasters(threading.local):
    "The rasters that this thread used last; the others are closed."

    def __init__(self, most: int = 16):
        self.most, self.held = most, OrderedDict()

    def get(self, path, session=None):
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
    return rasterio.Env(session=session) if session else contextlib.nullcontext()


RASTERS = _OpenRasters()
os.register_at_fork(after_in_child=RASTERS.leave)


# --- windows of a raster


@functools.lru_cache(maxsize=64)
def _projections(crs: str) -> rv.RasterioCRSTransformer:
    "What turns map coordinates into those of an image; the same for scenes of one CRS."
    return rv.RasterioCRSTransformer(rasterio.Affine.identity(), crs)


class _FastSource(Held, rv.RasterioSource):
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
            self.place = rv.RasterioCRSTransformer.from_dataset(dataset)
        else:
            self.place = copy.copy(_projections(dataset.crs.wkt))
            self.place.transform = dataset.transform
        order = get_channel_order_from_dataset(dataset) if order is None else order
        self.bands_to_read = np.array(order, dtype=int) + 1
        self.is_masked = is_masked(dataset)
        rv.RasterSource.__init__(  # rv.RasterioSource's own would keep the file open
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
        "A window of the extent; what lies outside the file, or has no data there, is zero."
        dataset, bands = self.image_dataset, [int(b) for b in bands]
        there = window.to_global_coords(self.bbox)
        inside = there.intersection(Box(0, 0, dataset.height, dataset.width))
        where = inside.rasterio_format()
        with _env(self.session):
            if is_masked(dataset):
                pixels = dataset.read(bands, window=where, masked=True).filled(0)
            else:
                pixels = dataset.read(bands, window=where)
        for i, band in enumerate(bands):
            empty = dataset.nodatavals[band - 1]
            if empty is not None and empty != 0:
                pixels[i, pixels[i] == empty] = 0
        return self.cut(pixels.transpose(1, 2, 0), there.to_local_coords(inside))

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
    config: rv.SceneConfig,  # Of any pipeline
) -> str | None:  # None: all of it reads fast
    "Why a scene, or a part of it, is read by stock code."
    if type(config) is not rv.SceneConfig:
        return f"{type(config).__name__} is not Raster Vision's own scene"
    sources = [config.raster_source]
    if type(sources[0]) is rv.MultiRasterSourceConfig:
        if sources[0].temporal:
            return "a time series"
        sources = sources[0].raster_sources
    if config.label_source is not None:
        sources = [*sources, getattr(config.label_source, "raster_source", None)]
    known = (rv.RasterioSourceConfig, rv.RasterizedSourceConfig)
    odd = [type(s).__name__ for s in sources if type(s) not in known]
    return f"{odd[0]} is read by stock" if odd else None


def _raster_source(config, tmp_dir=None) -> rv.RasterSource:
    "Build the source of an image, or of labels: a fast one where the configuration allows it."
    steps = [t.build(channel_order=config.channel_order) for t in config.transformers]
    bbox = None if config.bbox is None else Box(*config.bbox)
    if type(config) is rv.RasterioSourceConfig:
        streaming, order = config.allow_streaming, config.channel_order
        return _FastSource(config.uris, steps, streaming, order, bbox, tmp_dir)
    if type(config) is rv.MultiRasterSourceConfig and not config.temporal:
        return rv.MultiRasterSource(
            [_raster_source(c, tmp_dir) for c in config.raster_sources],
            primary_source_idx=config.primary_source_idx,
            channel_order=config.channel_order,
            raster_transformers=steps,
            bbox=bbox,
        )
    return config.build(tmp_dir)


def _label_source(config, classes, image, tmp_dir):
    "Build the source of a scene's labels."
    if type(config) is not rv.SemanticSegmentationLabelSourceConfig:
        return config.build(classes, image.crs_transformer, image.bbox, tmp_dir)
    labels = config.raster_source
    if type(labels) is rv.RasterizedSourceConfig:
        raster = LabelRaster(labels, classes, image)
    else:
        raster = _raster_source(labels, tmp_dir)
    return rv.SemanticSegmentationLabelSource(raster, classes)


def build_scene(
    config: rv.SceneConfig,  # Of any pipeline
    classes,  # ClassConfig
    tmp_dir: str | None = None,  # For mosaics
    labels: bool = True,  # Is anybody going to look at the labels?
    predictions: bool = True,  # And at predictions made before?
) -> rv.Scene:  # With fast sources where the configuration allows them
    """What `config.build` builds, served faster and with files closed.

    Raises FileNotFoundError that names the scene when a file is missing.
    """
    if type(config) is not rv.SceneConfig:
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
    scene = rv.Scene(config.id, image, None if drawn else known, store, areas)
    if drawn:  # on the image's own grid: nothing to match
        scene.label_source = known
    return scene


_UNREADABLE = (
    FileNotFoundError,
    rasterio.RasterioIOError,
    NotReadableError,
    DataSourceError,
)

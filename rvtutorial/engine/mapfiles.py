"""Files of a map: images that are found, checked and read; labels, scores and polygons that are written in strips.

Written by hand: the reading and writing of `engine.prediction`. Files are written under
temporary names, and are there whole or not at all; memory does not grow with the height
of an image.
"""

import glob
import itertools
import json
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.features import shapes, sieve
from rasterio.windows import Window

from rvtutorial.core.files import atomic_path, gdal_name, safe_name
from rvtutorial.data.labels import check_raster
from rvtutorial.data.places import square_metres, unplaced_allowed
from rvtutorial.data.validity import Validity, colour_bands, no_numbers
from rvtutorial.core.names import natural_key


BLOCK = 512  # Rows and columns of a block in a file
CACHE = 16 * 2**20  # Bytes that GDAL may keep of all files; rasterio counts bytes
SCORES = ("float32", "float16", "uint8")


def _tiled(profile, dtype, count=1, **options):
    "Options of a compressed GeoTIFF in blocks; ValueError for a type that this GDAL cannot write."
    if dtype == "float16" and not rasterio.dtypes.check_dtype(dtype):
        raise ValueError(
            f"float16 scores need GDAL 3.11 and a rasterio that knows them, here are GDAL "
            f"{rasterio.__gdal_version__} and rasterio {rasterio.__version__}: choose "
            "uint8 (same size or smaller, steps of 1/255) or float32"
        )
    how = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    how |= {"compress": "deflate", "interleave": "band", "bigtiff": "if_safer"}
    return {**profile, **how, "dtype": dtype, "count": count, **options}


@cache
def _fast_compression() -> dict:
    "For scores, which are many and do not shrink much: ZSTD where GDAL has it."
    tiny = {"height": 16, "width": 16, "count": 1, "dtype": "uint8", "driver": "GTiff"}
    tiny["transform"] = Affine.scale(2)
    options = {"compress": "zstd", "zstd_level": 1}
    try:
        with rasterio.MemoryFile() as memory:
            memory.open(**tiny, **options).close()
    except RasterioError:
        return {"compress": "deflate", "zlevel": 1}
    return options


# --- writing


def _check_whole(path):
    "OSError unless all blocks of a tiled GeoTIFF and of its overviews lie within it."
    try:
        with rasterio.open(path) as file:
            levels = [{"overview_level": i} for i in range(len(file.overviews(1)))]
        whole = all(_blocks_inside(path, level) for level in [{}, *levels])
    except RasterioError:
        whole = False
    if not whole:
        raise OSError(
            f"{path} was cut short when it was closed: is the disk full, or a quota?"
        )


def _blocks_inside(path, level):
    "Whether the blocks of one level of a GeoTIFF lie within the file."
    size = os.path.getsize(path)
    with rasterio.open(path, **level) as file:
        for band, (height, width) in zip(file.indexes, file.block_shapes, strict=True):
            across, down = -(-file.width // width), -(-file.height // height)
            for x, y in itertools.product(range(across), range(down)):
                names = f"BLOCK_OFFSET_{x}_{y}", f"BLOCK_SIZE_{x}_{y}"
                found = [file.get_tag_item(n, "TIFF", bidx=band) for n in names]
                if None in found or sum(map(int, found)) > size:
                    return False
    return True


class _Tiff:
    "A GeoTIFF that is written from top to bottom: rows of class ids, or of (bands, n, width)."

    def __init__(
        self, path, profile, names=(), tags=None, overviews=False, colors=None
    ):
        self.path, self.overviews, self.colors = path, overviews, colors
        self.file = rasterio.open(path, "w", **profile)
        self.close = self.file.close
        self.file.update_tags(**(tags or {}))
        for i, name in enumerate(names, start=1):
            self.file.set_band_description(i, name)

    def put(self, top, rows):
        if self.colors is not None:
            rows = self.colors[rows].transpose(2, 0, 1)
        bands = rows if rows.ndim == 3 else rows[None]
        n, width = bands.shape[1:]
        self.file.write(bands, window=Window(0, top, width, n))

    def finish(self):
        "Close the file, then give it overviews down to one block."
        side = max(self.file.height, self.file.width)
        self.close()
        steps = [2**i for i in range(1, 20) if side > BLOCK * 2 ** (i - 1)]
        if self.overviews and steps:
            with rasterio.open(self.path, "r+") as file:
                file.build_overviews(steps, Resampling.nearest)
        _check_whole(self.path)


class _Hits:
    "An array on disk, as `np.save` writes it."

    def __init__(self, path, shape):
        self.file = open(path, "wb")
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, head)
        self.close = self.finish = self.file.close

    def put(self, top, rows):
        rows.tofile(self.file)


# --- polygons


def _joined(parts):
    "Polygons of the same class that share an edge become one."
    found = []
    for value in sorted({value for _, value in parts}):
        outlines = [polygon for polygon, v in parts if v == value]
        union = shapely.simplify(shapely.union_all(outlines), 0)  # no points on edges
        found += [(polygon, value) for polygon in shapely.get_parts(union)]
    return found


PIXELS = "pixels of the image: x from its left side, y down from its upper side"


class _Polygons:
    """Outlines of classes, strip by strip, in a GeoPackage.

    Without a CRS areas are NaN. Without any place on Earth points are in pixels of the
    image, and the file's metadata say so (AXES).
    """

    many = 1_000  # Written at a time

    def __init__(self, path: Path, names: dict[int, str], transform: Affine, crs):
        self.path, self.names, self.transform, self.crs = path, names, transform, crs
        self.done, self.waiting = [], []  # (polygon in pixels, class id)
        self.saved = None  # Polygons in the file, None without a file

    def put(self, top: int, labels: np.ndarray) -> None:
        "The next rows of labels."
        bottom, wanted = top + len(labels), np.isin(labels, list(self.names))
        down = Affine.translation(0, top)
        found = shapes(labels, mask=wanted, connectivity=4, transform=down)
        found = [(shapely.geometry.shape(line), int(value)) for line, value in found]
        cut = [item for item in found if item[0].bounds[1] == top]
        whole = [item for item in found if item[0].bounds[1] > top]
        self.waiting, items = [], whole + _joined(self.waiting + cut)
        for item in items:
            waits = item[0].bounds[3] == bottom
            (self.waiting if waits else self.done).append(item)
        if len(self.done) >= self.many:
            self._save()

    def finish(self) -> None:
        "Write what is left; a file without a polygon is a file all the same."
        self.done, self.waiting = self.done + self.waiting, []
        if self.done or self.saved is None:
            self._save()
        found = pyogrio.read_info(gdal_name(self.path))["features"]
        if found != self.saved:
            raise OSError(
                f"{self.path} holds {found} of {self.saved} polygons: disk full?"
            )

    def close(self) -> None:
        "Nothing is open between strips."

    def _save(self):
        "Append to the file."
        a, b, c, d, e, f = self.transform[:6]
        outlines = shapely.transform(
            np.array([polygon for polygon, _ in self.done], dtype=object),
            lambda at: at @ np.array([[a, d], [b, e]]) + [c, f],
        )
        table = geopandas.GeoDataFrame(
            {"class": [self.names[value] for _, value in self.done]},
            geometry=geopandas.GeoSeries(list(outlines)),
            crs=self.crs,
        )
        how = {"driver": "GPKG", "layer": "polygons", "geometry_type": "Polygon"}
        table["area_m2"] = square_metres(table.geometry)
        if self.crs is None and a == e == 1 and b == d == 0:  # no place on Earth
            how["layer_metadata"] = {"AXES": PIXELS}
        place, mode = gdal_name(self.path), "w" if self.saved is None else "a"
        table.to_file(place, mode=mode, **how)
        self.saved, self.done = (self.saved or 0) + len(table), []


# --- small patches


def _pixels_of(min_area, profile, uri) -> int:
    "The least size of a patch in pixels; ValueError where it cannot be known."
    given, pixels = str(min_area).strip(), str(min_area).strip().endswith("px")
    try:
        least = float(given.removesuffix("px"))
        if not 0 <= least < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"min_area is square metres, such as 20, or pixels, such as 40px: {given}"
        ) from None
    if not pixels:
        corner = Affine.translation(profile["width"] / 2, profile["height"] / 2)
        at = profile["transform"] * corner
        square = shapely.Polygon([at * xy for xy in ((0, 0), (1, 0), (1, 1), (0, 1))])
        crs = None if profile["transform"].is_identity else profile["crs"]
        area = square_metres(geopandas.GeoSeries([square], crs=crs))[0]
        if not area > 0:
            raise ValueError(
                f"{uri} has no georeference, so nobody knows how many square metres a "
                f"pixel has: say min_area in pixels, such as {given}px"
            )
        least /= area
    return math.ceil(least - 1e-9)


class _Whole:
    """The labels of a whole map, in files without a name, until small patches can go.

    `strips` are those of the labels without patches of fewer pixels than `least`.
    """

    def __init__(self, folder, shape):
        self.shape, self.files = shape, ExitStack()
        self.arrays = []
        for _ in range(2):
            file = self.files.enter_context(tempfile.TemporaryFile(dir=folder))
            # a full disk is an error here, and would end the process in a map of memory
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            self.arrays.append(np.memmap(file, np.uint8, "r+", shape=shape))
        self.close = self.files.close

    def put(self, top, labels):
        self.arrays[0][top : top + len(labels)] = labels

    def strips(self, least, void):
        before, after = self.arrays
        sieve(before, least, out=after, connectivity=4)
        for top in range(0, self.shape[0], BLOCK):
            old, new = before[top : top + BLOCK], after[top : top + BLOCK]
            # where there is no data, and nowhere else, there is none after it
            yield top, np.where((old == void) | (new == void), old, new)


# --- reading


class Raster:
    "Windows of an image file, and where it holds data; it is opened when it is first needed."

    def __init__(
        self,
        uri: str | Path,  # A path or URI
        bands: list[int] | None = None,  # Counted from 0; None: all colours
        box: tuple | None = None,  # The part that counts: top, left, bottom, right
        prepare: Callable | None = None,  # Raster transformers: chip -> chip
        zeros: str = "empty",  # Patches that are 0 in all bands: "empty", or "data"
    ):
        self.uri, self.shape, self.box = str(uri), None, box
        self.bands = None if bands is None else list(bands)
        self.prepare, self.file = prepare, None
        self.zeros, self.lock = zeros, threading.RLock()  # two threads may ask
        self.strips, self.looked = [], 0  # (top, bottom, packed mask) of rows looked at

    def _opened(self):
        "The open file."
        if self.file is None:
            self.file = rasterio.open(self.uri)
            if self.bands is None:
                self.bands = colour_bands(self.file)
            self.validity = Validity(self.file, self.bands, self.zeros)
            flags = [self.file.mask_flag_enums[i] for i in self.bands]
            alpha = any(MaskFlags.alpha in flag for flag in flags)  # GDAL masks by it
            self.masked = bool(self.validity.declared or self.validity.masks)
            self.masked |= alpha and bool(self.validity.alphas)
            now = self.file.height, self.file.width
            if self.shape not in (None, now):
                raise ValueError(
                    f"{self.uri} had {self.shape[0]} x {self.shape[1]} pixels when the "
                    f"work began, and has {now[0]} x {now[1]} now"
                )
            self.box = self.box or (0, 0, *now)
        return self.file

    def _inside(self, y, x, height, width):
        "The part of a window that lies in the image: in the file, and in the window."
        top, left, bottom, right = self.box
        y0, x0 = max(y + top, top, 0), max(x + left, left, 0)
        y1 = min(y + top + height, bottom, self.file.height)
        x1 = min(x + left + width, right, self.file.width)
        window = Window(x0, y0, max(x1 - x0, 0), max(y1 - y0, 0))
        place = np.s_[..., y0 - y - top : y1 - y - top, x0 - x - left : x1 - x - left]
        return window, place

    def look(
        self,
        dtype: str | None = None,  # That the model was trained on; None: any
        chip_sz: int = 256,  # Pixels along one side of a chip
        channels: int | None = None,  # Bands that the model sees; None: any number
    ) -> tuple[dict, int]:  # height, width, crs, transform; bytes of cache it needs
        """What has to be known of an image; ValueError when the model cannot take it.

        Reading it later is a ValueError if its size has changed since.
        """
        uri = self.uri
        try:
            with unplaced_allowed(), rasterio.open(uri) as file:
                check_raster(file, uri)
                count, wanted = file.count, self.bands or colour_bands(file)
                dtypes = {file.dtypes[i] for i in wanted if i < count}
                found = {"height": file.height, "width": file.width}
                found |= {"transform": file.transform, "crs": None}
                if file.crs:  # as text: threads must not share the object
                    found["crs"] = file.crs.to_wkt(version="WKT2_2019")
                # so much that a row of windows decodes every block once
                rows = chip_sz + 2 * max(height for height, _ in file.block_shapes)
                row = sum(np.dtype(kind).itemsize for kind in file.dtypes) * file.width
                cache = min(CACHE + min(rows, file.height) * row, 2**31)
        except RasterioError as err:
            raise ValueError(f"{uri} cannot be read as an image: {err}") from err
        if max(wanted) >= count:
            numbers = ", ".join(str(b + 1) for b in wanted)
            raise ValueError(
                f"{uri} has {count} bands, and the model needs the bands {numbers} "
                "(counted from 1): name the bands of this image that it should see"
            )
        if channels is not None and len(wanted) != channels:
            raise ValueError(
                f"{uri}: {len(wanted)} bands would be read, and the model was trained on "
                f"{channels}: name the bands of this image that it should see (bands)"
            )
        if dtype is not None and dtypes != {dtype}:
            scale = f"-ot {dtype.capitalize().replace('Ui', 'UI')}"
            scale = "-ot Byte -scale LOW HIGH 0 255" if dtype == "uint8" else scale
            raise ValueError(
                f"{uri} holds {', '.join(sorted(dtypes))}, and the model was trained on "
                f"{dtype}: write it as the training images were written, such as "
                f"gdal_translate {scale} IN.tif OUT.tif"
            )
        self.shape = found["height"], found["width"]
        return found, cache

    def close(self) -> None:
        "Close the file; what is known of its rows is kept."
        with self.lock:
            if self.file is not None:
                self.file.close()
                self.file = None

    def read(self, y: int, x: int, size: int) -> np.ndarray:  # (size, size, bands)
        "A square chip; zero outside the image and where there is no data."
        with self.lock:
            file = self._opened()
            window, place = self._inside(y, x, size, size)
            chip = np.zeros((len(self.bands), size, size), file.dtypes[self.bands[0]])
            if window.width and window.height:
                numbers = [i + 1 for i in self.bands]
                found = file.read(numbers, window=window, masked=self.masked)
                chip[place] = np.ma.filled(found, 0)
                pixels = np.ma.getdata(found)
                data = self.validity.partly(pixels) if self.validity.declared else None
                if data is not None:  # such as a roof that saturates one band at 255
                    chip[place][data] = pixels[data]
        chip = np.ascontiguousarray(chip.transpose(1, 2, 0))
        chip = self.prepare(chip) if self.prepare else chip
        if chip.dtype.kind in "fc":  # what the transformers of the model have left
            chip[no_numbers(chip)] = 0
        return chip

    def valid(self, top: int, bottom: int) -> np.ndarray | None:
        """Which pixels of whole rows hold data (`Validity.valid`); None: all of them.

        Rows are asked for from top to bottom; those above are forgotten.
        """
        with self.lock:
            found = self._rows(top, bottom)
            self.strips = [strip for strip in self.strips if strip[1] > bottom]
        return found

    def empty(self, y: int, x: int, size: int) -> bool:
        "Whether no pixel of a square holds data, so that nothing need be predicted there."
        with self.lock:
            self._opened()
            high, wide = self.box[2] - self.box[0], self.box[3] - self.box[1]
            sides = max(x, 0), min(x + size, wide)
            found = self._rows(max(y, 0), min(y + size, high), *sides)
            return found is not None and not found.any()

    def _rows(self, top, bottom, left=0, right=None):
        "What is known of rows, after looking at those that nobody has looked at."
        if top < (self.strips[0][0] if self.strips else self.looked):
            self.strips, self.looked = [], top  # forgotten, so look again
        while self.looked < bottom:
            self._look(self.looked, min(self.looked + BLOCK, bottom))
        parts = [strip for strip in self.strips if strip[1] > top and strip[0] < bottom]
        if all(packed is None for *_, packed in parts):
            return None
        right = self.box[3] - self.box[1] if right is None else right
        found = np.ones((bottom - top, right - left), bool)
        for first, last, packed in parts:
            if packed is not None:
                rows = slice(max(first, top) - top, min(last, bottom) - top)
                bits = packed[max(top - first, 0) : bottom - first]
                bits = bits[:, left // 8 : -(-right // 8)]
                mask = np.unpackbits(bits, axis=1).view(bool)
                found[rows] = mask[:, left % 8 : left % 8 + right - left]
        return found

    def _look(self, top, bottom):
        "Look at rows, some columns at a time."
        self._opened()
        width, mask = self.box[3] - self.box[1], None
        wide = max(2**22 // (bottom - top), 1)
        for left in range(0, 0 if self.validity.always else width, wide):
            size = bottom - top, min(wide, width - left)
            window, place = self._inside(top, left, *size)
            if window.width and window.height:
                seen = self.validity.valid(window)
                if not seen.all():
                    if mask is None:
                        mask = np.ones((bottom - top, width), bool)
                    mask[:, left : left + wide][place] = seen
        packed = None if mask is None else np.packbits(mask, axis=1)
        self.strips.append((top, bottom, packed))
        self.looked = bottom

    def masks(self, top: int, bottom: int) -> np.ndarray | None:
        """Which pixels of whole rows hold data in any band by the masks of the file.

        None: all of them. Raster Vision predicts there, and its scores count it; `valid`
        asks for more.
        """
        file = self._opened()
        flags = [file.mask_flag_enums[i] for i in self.bands]
        if all(MaskFlags.all_valid in flag for flag in flags):
            return None
        width = self.box[3] - self.box[1]
        window, place = self._inside(top, 0, bottom - top, width)
        valid = np.zeros((bottom - top, width), bool)
        one = all(MaskFlags.per_dataset in flag for flag in flags)
        numbers = [i + 1 for i in self.bands][: 1 if one else None]
        if window.width and window.height:
            valid[place] = file.read_masks(numbers, window=window).any(axis=0)
        return valid


# --- the files of one map


@dataclass
class Outputs:
    "What is written about one image, and where."

    folder: Path  # Where the files go
    profile: dict  # height, width, crs, transform of the map
    classes: list[str]  # Names, in order of their ids
    null: int  # Label where no window came
    nodata: int | None = None  # Value that the label file declares as no data
    labels: bool = True  # labels.tif?
    scores: str | None = None  # scores.tif of float32, float16 or uint8?
    hits: bool = False  # pixel_hits.npy?
    polygons: list[str] = field(default_factory=list)  # Classes in polygons.gpkg
    colors: np.ndarray | None = None  # uint8 (classes, 3): labels.tif in colours
    tags: dict = field(default_factory=dict)  # Of labels.tif
    min_area: float | str | None = None  # Smaller patches go: m2 of ground, or "40px"
    min_pixels: int = 0  # The same in pixels

    def __post_init__(self):
        if self.scores is not None and self.scores not in SCORES:
            known = ", ".join(SCORES)
            raise ValueError(
                f"scores must be None or one of {known}, got {self.scores!r}"
            )
        if self.scores:
            _tiled(self.profile, self.scores)
        if self.min_area is not None:
            uri = self.tags.get("image", self.folder)
            self.min_pixels = _pixels_of(self.min_area, self.profile, uri)
            said = f"{self.min_area} ({self.min_pixels} pixels)"
            self.tags = {**self.tags, "min_area": said}

    @property
    def names(self) -> list[str]:
        "Names of the files."
        wanted = {"labels.tif": self.labels, "scores.tif": self.scores}
        wanted |= {"pixel_hits.npy": self.hits and self.scores}
        wanted |= {"polygons.gpkg": self.polygons}
        return [name for name, yes in wanted.items() if yes]

    def refuse_other_map(
        self,
        uri: str,  # Of the image
    ) -> None:
        "ValueError if the folder holds the map of another image, or by other thresholds."
        path = Path(self.folder) / "labels.tif"
        with suppress(RasterioError):
            with rasterio.open(path) as file:
                tags = file.tags()
            other = "choose another folder for the maps, or delete that one"
            if tags.get("image") != uri:
                what = tags.get("image") or "something else"
                raise ValueError(
                    f"{self.folder} holds the map of {what}, not of {uri}: {other}"
                )
            was, now = (one.get("thresholds", "none") for one in (tags, self.tags))
            if was != now:
                raise ValueError(
                    f"{self.folder} holds a map by other thresholds ({was}, now {now}): "
                    f"{other}"
                )

    def open(
        self,
        image=None,  # A Raster or the like: says where there is no data
        done: Callable | None = None,  # Called when all files are complete
    ) -> "_MapFiles":  # Takes rows: put, finish, abort
        "Begin to write the files."
        return _MapFiles(self, image, done)

    def new_file(
        self,
        name: str,  # One of `names`
        path: Path,  # Where it is written
    ):  # Takes rows: put, finish, close
        "One of the files, open for writing."
        profile = self.profile
        if name == "labels.tif":
            count = 1 if self.colors is None else 3
            how = _tiled(profile, "uint8", count, nodata=self.nodata)
            tags = {"classes": json.dumps(self.classes), **self.tags}
            return _Tiff(path, how, colors=self.colors, overviews=True, tags=tags)
        if name == "scores.tif":
            how = _tiled(profile, self.scores, len(self.classes)) | _fast_compression()
            how["predictor"] = 3 if self.scores.startswith("float") else 2
            return _Tiff(path, how, names=self.classes)
        if name == "pixel_hits.npy":
            return _Hits(path, (profile["height"], profile["width"]))
        names = {self.classes.index(name): name for name in self.polygons}
        return _Polygons(path, names, profile["transform"], profile.get("crs"))


_FILES = "labels.tif scores.tif pixel_hits.npy polygons.gpkg".split()


class _MapFiles:
    """The files of one map; takes `_Rows` from top to bottom.

    Rows are gathered until a row of blocks is complete.
    """

    def __init__(self, outputs, image, done):
        self.outputs = outputs
        self.height, self.width = (outputs.profile[k] for k in ("height", "width"))
        n, self.top, self.filled = min(BLOCK, self.height), 0, 0
        self.labels = np.zeros((n, self.width), np.uint8)
        self.hits = np.zeros((n, self.width), np.uint8)
        n = n if outputs.scores else 0
        shape = (len(outputs.classes), n, self.width)
        self.scores = np.zeros(shape, outputs.scores or "uint8")
        self.image, self.done, self.stack, self.files = image, done, ExitStack(), {}
        self.whole = None  # A _Whole where small patches are to go
        for name in _FILES:  # what a process that was killed has left
            for path in Path(outputs.folder).glob(f".{'[0-9a-f]' * 8}.{name}*"):
                path.unlink(missing_ok=True)
        try:
            self.paths = {
                name: self.stack.enter_context(atomic_path(Path(outputs.folder) / name))
                for name in outputs.names
            }
            for name, path in self.paths.items():
                self.files[name] = outputs.new_file(name, path)
            if outputs.min_pixels > 1:
                self.whole = _Whole(outputs.folder, (self.height, self.width))
        except BaseException:
            self.abort()
            raise

    def put(self, rows) -> None:
        "Take `_Rows` and write the blocks that are complete."
        out, at, n = self.outputs, 0, len(rows.labels)
        if out.scores == "uint8":
            scores = np.rint(np.clip(rows.scores, 0, 1) * 255).astype(np.uint8)
        elif out.scores:
            scores = rows.scores.astype(out.scores, copy=False)
            scores[:, rows.hits == 0] = np.nan
        while at < n:
            k = min(n - at, len(self.labels) - self.filled)
            into = slice(self.filled, self.filled + k)
            self.labels[into] = rows.labels[at : at + k]
            self.hits[into] = np.minimum(rows.hits[at : at + k], 255)
            if out.scores:
                self.scores[:, into] = scores[:, at : at + k]
            at, self.filled = at + k, self.filled + k
            if self.filled == len(self.labels) or self.top + self.filled == self.height:
                n_rows, self.filled = self.filled, 0
                self._write(n_rows)
                self.top += n_rows

    def _write(self, n):
        "Write the first n of the rows that have been gathered."
        labels, hits, scores = self.labels[:n], self.hits[:n], self.scores[:, :n]
        valid = self.image.valid(self.top, self.top + n) if self.image else None
        if valid is not None:
            out = self.outputs
            labels[~valid] = out.null if out.nodata is None else out.nodata
            if out.scores:  # in a run NaN stays where no window came, as in stock
                scores[:, ~valid if out.nodata is not None else ~valid & (hits > 0)] = 0
            hits[~valid] = 0
        if self.whole is None:
            self._put_labels(self.top, labels)
        else:
            self.whole.put(self.top, labels)
        for name, part in (("scores.tif", scores), ("pixel_hits.npy", hits)):
            if name in self.files:
                self.files[name].put(self.top, part)

    def _put_labels(self, top, labels):
        "Labels, and their polygons."
        for name in ("labels.tif", "polygons.gpkg"):
            if name in self.files:
                self.files[name].put(top, labels)

    def finish(self) -> None:
        "Complete all files and give them their names; older files of a map go."
        if self.whole is not None:
            out = self.outputs
            void = out.null if out.nodata is None else out.nodata
            for top, labels in self.whole.strips(out.min_pixels, void):
                self._put_labels(top, labels)
        for file in self.files.values():
            file.finish()
        self._close()
        self.stack.close()
        for name in set(_FILES) - self.paths.keys():
            (Path(self.outputs.folder) / name).unlink(missing_ok=True)
        if self.done:
            self.done()

    def abort(self) -> None:
        "Leave nothing behind but what was there before."
        self._close()
        with suppress(_Aborted), self.stack:  # an error keeps files from their names
            raise _Aborted

    def _close(self):
        "Close what is open."
        for file in [*self.files.values(), self.image, self.whole]:
            if file is not None:
                file.close()


class _Aborted(Exception):
    "The files of a map are not to be kept."


# --- new images


IMAGES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg")


def find_images(
    images,  # A file, a folder, a glob, a URI such as s3://..., or a list of these
    out: str | Path | None = None,  # What lies below this folder does not count
) -> dict[str, str]:  # Name -> path or URI, in natural order within each item
    """All images that are meant, each once, under names that differ.

    The name is that of the file without its suffix; images that share one get the folders
    in front that tell them apart, and no others. FileNotFoundError when an item names
    nothing.
    """
    items = images if isinstance(images, list | tuple) else [images]
    found: dict[str, str] = {}
    for uri in (uri for item in items for uri in _named(str(item))):
        if out is None or Path(_real(out)) not in Path(_real(uri)).parents:
            found.setdefault(_real(uri), uri)
    names, apart = {}, _distinct_names(list(found.values()))
    stems = {_stem(uri).lower() for uri in found.values()}
    for uri in found.values():
        base, taken = apart[uri], {n.lower() for n in names}
        if base != _stem(uri):
            taken |= stems
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        every = itertools.chain([base], numbered)
        names[next(name for name in every if name.lower() not in taken)] = uri
    if not names:
        raise FileNotFoundError(f"no image in {images}")
    return names


def _distinct_names(uris):
    "{uri: name}: file names, with the shortest parts of paths that tell equal ones apart."
    groups, names = {}, {}
    for uri in uris:
        groups.setdefault(_stem(uri).lower(), []).append(uri)
    for group in groups.values():
        stems = [_stem(uri) for uri in group]
        folders = [_parts(uri)[:-1][::-1] for uri in group]  # the nearest comes first
        layers = list(itertools.zip_longest(*folders, fillvalue=""))
        layers = [layer for layer in layers if len(set(layer)) > 1]
        ends = [_parts(uri)[-1].replace(".", "_") for uri in group]
        depths = range(len(layers) + 1)
        ways = [(layers[:depth], last) for last in (stems, ends) for depth in depths]
        rows = [zip(*used[::-1], last, strict=True) for used, last in ways]
        found = [["_".join(filter(None, row)) for row in way] for way in rows]
        # the first of those that tell most apart; what is still equal gets a number
        best = max(found, key=lambda way: len({name.lower() for name in way}))
        names |= zip(group, (safe_name(n, 240) for n in best), strict=True)
    return names


def _parts(uri):
    "Folders and file of a path or URI, each safe as the name of a folder."
    uri = re.split(r"[?#]", uri)[0] if "://" in uri else uri
    return [_safe(part) for part in uri.split("/") if part]


def _safe(name):
    name = re.sub(r"[^\w.() -]", "_", name)
    return name and safe_name(name, 240)


def _named(item):
    "Paths or URIs that one item stands for."
    if "://" in item or item.startswith("/vsi"):
        return [item]
    path = Path(os.path.abspath(Path(item).expanduser()))
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in IMAGES]
        what = f"folder {path} holds no image ({', '.join(IMAGES)})"
    elif path.exists():
        return [str(path)]
    else:
        there = next(p for p in path.parents if p.is_dir())  # its letters are no glob
        pattern = os.path.join(glob.escape(str(there)), path.relative_to(there))
        found = [Path(p) for p in glob.glob(pattern, recursive=True)]
        what = f"there is no image {path}"
    if not found:
        raise FileNotFoundError(what)
    return [str(p) for p in sorted(found, key=natural_key) if p.is_file()]


def _real(uri):
    "One name for a file, however it is reached."
    uri = os.path.expanduser(uri)
    return uri if "://" in uri or uri.startswith("/vsi") else os.path.realpath(uri)


def _stem(uri):
    "Name of a file without folders, query and suffix."
    name = re.split(r"[?#]", uri)[0] if "://" in uri else uri
    return _safe(Path(name.rstrip("/")).stem)

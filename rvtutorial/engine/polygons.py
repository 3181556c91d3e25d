"""Polygons of labels become pixels: GeoJSON and other vectors are read, and drawn as a raster of class ids.

Written by hand: the same polygons and pixels as Raster Vision's, which loops over
features in Python and draws all of them anew for each window.
"""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from rasterio.features import rasterize

from rvtutorial.core.files import gdal_name
from rvtutorial.engine.store import Held, SceneStore

with warnings.catch_warnings():  # importing Raster Vision switches all of them off
    warnings.simplefilter("ignore")
    from rastervision.core.box import Box
    from rastervision.core import data as rv
    from rastervision.core.data.utils import listify_uris
    from rastervision.pipeline.file_system import download_if_needed


# --- reading


def _label_polygons(config, classes, crs_transformer) -> tuple[np.ndarray, np.ndarray]:
    """The polygons that Raster Vision would draw, in its order and in pixels, and their ids.

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
    plain = type(config) is rv.GeoJSONVectorSourceConfig
    rules = [  # buffers of lines and points do nothing to polygons
        step
        for step in config.transformers
        if type(step) is not rv.BufferTransformerConfig or step.geom_type == "Polygon"
    ]
    plain &= [type(rule) for rule in rules] == [rv.ClassInferenceTransformerConfig]
    if not plain or not hasattr(crs_transformer, "map2image"):
        return None
    read = [_read_vectors(uri) for uri in listify_uris(config.uris)]
    if any(r is None for r in read):
        return None
    ids = [_class_ids(fields, len(found), rules[0], classes) for found, fields in read]
    if any(i is None for i in ids):
        return None
    shapes = np.concatenate([found for found, _ in read])
    return _to_pixels(shapes, np.concatenate(ids), crs_transformer)


def _read_vectors(uri):
    "Geometries in longitude and latitude and the fields that name classes, or None."
    path = download_if_needed(uri)
    found = _parse_geojson(path) if path.endswith(("json", "JSON")) else None
    found = _read_features(path) if found is None else found
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


# --- drawing


def _as_geojson(shapes) -> list:
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


class LabelRaster(Held, rv.RasterSource):
    """Polygons of a scene as a raster of class ids.

    They are drawn once for the whole extent, but for what sticks out of it; a larger scene
    is drawn window by window.
    """

    most = 64_000_000  # pixels of a scene that is drawn as a whole

    def __init__(
        self,
        config: rv.RasterizedSourceConfig,  # Vector labels
        classes,  # ClassConfig
        image: rv.RasterSource,  # Of the same scene
    ):
        self.place, how = image.crs_transformer, config.rasterizer_config
        self.shapes, self.ids = _label_polygons(config, classes, self.place)
        self.background, self.all_touched = how.background_class_id, how.all_touched
        points, of = shapely.get_coordinates(self.shapes, return_index=True)
        self.odd = np.unique(of[(points % 1 != 0).any(axis=1)])
        kind = dict(channel_order=[0], num_channels_raw=1, dtype_raw=np.uint8)
        rv.RasterSource.__init__(self, **kind, bbox=image.bbox)
        self.set_bbox(image.bbox)

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

    def fingerprint(self) -> tuple[str, str]:
        "A digest of polygons and extent, as `Held` says."
        geometry = shapely.to_wkb(shapely.geometrycollections(self.shapes))
        how = [self.background, self.all_touched, list(self.bbox)]
        whole = self.digest(geometry, self.ids.tobytes(), how)
        return whole, whole

    def keep_in(self, store: SceneStore) -> None:
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
            return self.cut(self.pixels, window)[..., None]
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
            return self.cut(self.pixels, window)
        out, found = draw(self.near), self.cut(self.pixels, inside)
        if found.size:
            top, left = inside.ymin - window.ymin, inside.xmin - window.xmin
            out[top : top + found.shape[0], left : left + found.shape[1]] = found
        return out

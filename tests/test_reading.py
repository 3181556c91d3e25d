"""Fast scenes serve what Raster Vision serves, bit for bit, with few files open."""

import gc
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rastervision.core.box import Box
from rastervision.core.data import (
    BufferTransformerConfig,
    CastTransformerConfig,
    ClassConfig,
    ClassInferenceTransformerConfig,
    GeoJSONVectorSourceConfig,
    MinMaxTransformerConfig,
    MultiRasterSourceConfig,
    NanTransformerConfig,
    RasterioSourceConfig,
    RasterizedSourceConfig,
    ReclassTransformerConfig,
    SceneConfig,
    SemanticSegmentationLabelSourceConfig,
    StatsTransformerConfig,
)
from rastervision.core.data.utils import rasterio as utils_rasterio

from rvtutorial.engine import polygons, reading
from rvtutorial.engine.polygons import LabelRaster
from rvtutorial.engine.reading import (
    _FastSource,
    _OpenRasters,
    _raster_source,
    build_scene,
)
from rvtutorial.engine.store import SceneStore

HEIGHT, WIDTH = 100, 120
NORTH_UP = rasterio.Affine(2e-5, 0, 13.0, 0, -2e-5, 52.0)
TURNED = NORTH_UP * rasterio.Affine.rotation(20)
METRES = rasterio.Affine(1.5, 0, 400_000, 0, -1.5, 5_760_000)


def numbers(bands=3, dtype="uint8", height=HEIGHT, width=WIDTH, seed=0):
    "Random pixels, (bands, height, width), with a patch of zeros and one of the most."
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 256, (bands, height, width)).astype(dtype)
    found[:, 10:30, 10:30] = 0
    found[:, 20:50, 60:90] = 255
    return found


def write(path, pixels, mask=None, alpha=False, **profile):
    "A GeoTIFF."
    place = dict(crs="EPSG:4326", transform=NORTH_UP)
    kind = dict(driver="GTiff", count=len(pixels), dtype=pixels.dtype)
    size = dict(height=pixels.shape[1], width=pixels.shape[2])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(path, "w", **kind, **size, **place | profile) as out:
            out.write(pixels)
            if mask is not None:
                out.write_mask(mask)
            if alpha:
                colours = list(out.colorinterp)
                colours[-1] = ColorInterp.alpha
                out.colorinterp = colours
    return str(path)


def holed(pixels, value):
    pixels = pixels.copy()
    pixels[0, 40:70, :50] = value
    return pixels


def half(bands=3):
    return np.where(np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) % 37 < 9, 0, 255)


# what a file can be: pixels, and how they are written
FILES = {
    "uint16 in strips": (
        numbers(3, "uint16") * 200,
        dict(compress="deflate", blockysize=8),
    ),
    "uint8 in tiles": (
        numbers(),
        dict(tiled=True, blockxsize=64, blockysize=64, compress="lzw"),
    ),
    "one band": (numbers(1), {}),
    "five bands": (numbers(5, "int16") - 90, dict(interleave="band")),
    "NaN for no data": (
        holed(numbers(3, "float32"), np.nan),
        dict(nodata=np.nan, predictor=3, compress="deflate"),
    ),
    "NaN without a tag": (holed(numbers(3, "float32"), np.nan), {}),
    "float no data": (holed(numbers(2, "float32"), -999.0), dict(nodata=-999.0)),
    "zero for no data": (numbers(), dict(nodata=0)),
    "255 for no data": (numbers(), dict(nodata=255)),
    "mask": (numbers(), dict(mask=half().astype(np.uint8))),
    "alpha": (
        np.concatenate([numbers(), half()[None].astype(np.uint8)]),
        dict(alpha=True),
    ),
    "no CRS": (numbers(), dict(crs=None, transform=None)),
    "no CRS but a transform": (numbers(), dict(crs=None)),
    "in metres": (numbers(), dict(crs="EPSG:32633", transform=METRES)),
}
# and how a configuration may ask for it
ASKED = {
    "as it is": {},
    "a part": dict(bbox=(7, 13, 83, 101)),
    "more than there is": dict(bbox=(0, 0, 130, 140)),
    "bands in another order": dict(channel_order=[2, 0]),
    "a band twice, of a part": dict(channel_order=[1, 1, 0], bbox=(7, 13, 83, 101)),
    "cast": dict(transformers=[CastTransformerConfig(to_dtype="float32")]),
    "min max": dict(transformers=[MinMaxTransformerConfig()]),
    "other values": dict(
        transformers=[ReclassTransformerConfig(mapping={0: 255, 255: 0, 7: 9})]
    ),
    "no NaN": dict(
        transformers=[
            CastTransformerConfig(to_dtype="float32"),
            NanTransformerConfig(to_value=3),
        ]
    ),
}


def windows(height=HEIGHT, width=WIDTH, n=12, seed=0):
    "Inside, over each edge and corner, and larger than the scene."
    rng = np.random.default_rng(seed)
    for _ in range(n):
        h, w = rng.integers(1, 60, 2)
        top = rng.integers(1 - h, height)
        left = rng.integers(1 - w, width)
        yield Box(*map(int, (top, left, top + h, left + w)))
    for top in (-20, 30, height - 20):
        for left in (-20, 30, width - 20):
            yield Box(top, left, top + 40, left + 40)
    yield Box(0, 0, height, width)
    yield Box(-15, -25, height + 5, width + 35)
    yield Box(40, 40, 41, 41)


def outside(height=HEIGHT, width=WIDTH):
    "Nothing of the scene."
    yield Box(-50, 10, -10, 50)
    yield Box(height, 0, height + 20, 20)
    yield Box(10, width + 30, 40, width + 60)
    yield Box(10, -90, 20, -50)


def same(theirs, ours):
    "Same values, shape and type; NaN equals NaN."
    assert theirs.dtype == ours.dtype
    np.testing.assert_array_equal(theirs, ours)


def agree(config, tmp_path, where=None):
    "Stock, read, and held, twice each, for what is done to a chip must not stay."
    stock = config.build(str(tmp_path))
    fast = _raster_source(config, str(tmp_path))
    held = _raster_source(config, str(tmp_path))
    held.hold(held.read_all())
    assert isinstance(fast, _FastSource)
    for name in ("shape", "dtype", "bbox", "extent", "num_channels", "channel_order"):
        assert getattr(stock, name) == getattr(fast, name), name
    height, width = stock.extent.size
    for window in [*(where or windows(height, width))] * 2:
        with np.errstate(all="ignore"):
            theirs = stock.get_chip(window)
            same(theirs, fast.get_chip(window))
            same(theirs, held.get_chip(window))


# --- images


@pytest.mark.parametrize("kind", FILES)
def test_windows_equal_stock(kind, tmp_path):
    pixels, how = FILES[kind]
    path = write(tmp_path / "a.tif", pixels, **how)
    agree(RasterioSourceConfig(uris=path), tmp_path)
    agree(RasterioSourceConfig(uris=path), tmp_path, outside())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    "kind", ["uint8 in tiles", "255 for no data", "NaN for no data"]
)
def test_options_equal_stock(kind, asked, tmp_path):
    pixels, how = FILES[kind]
    path = write(tmp_path / "a.tif", pixels, **how)
    if asked == "min max" and "NaN" in kind:
        pytest.skip("stock scales by NaN")
    agree(RasterioSourceConfig(uris=path, **ASKED[asked]), tmp_path)


def test_stats_equal_stock(tmp_path):
    path = write(tmp_path / "a.tif", *FILES["uint16 in strips"][:1])
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"means": [9e3, 8e3, 7e3], "stds": [4e3, 5e3, 6e3]}))
    steps = [StatsTransformerConfig(stats_uri=str(stats))]
    agree(RasterioSourceConfig(uris=path, transformers=steps), tmp_path)
    steps = [StatsTransformerConfig(stats_uri=str(stats), needs_channel_order=True)]
    agree(
        RasterioSourceConfig(uris=path, transformers=steps, channel_order=[2, 1]),
        tmp_path,
    )


def test_a_turned_raster_is_read_as_it_is(tmp_path):
    # stock's virtual raster forgets that it is turned, and takes pixels from elsewhere
    pixels = numbers()
    config = RasterioSourceConfig(
        uris=write(tmp_path / "a.tif", pixels, transform=TURNED)
    )
    fast, stock = _raster_source(config), config.build(None)
    same(stock.get_chip(stock.extent), fast.get_chip(fast.extent))
    inside = Box(10, 15, 50, 55)
    same(pixels[:, 10:50, 15:55].transpose(1, 2, 0), fast.get_chip(inside))
    assert not np.array_equal(stock.get_chip(inside), fast.get_chip(inside))


def mosaic_without_gdal(path, uris):
    "A virtual raster of images side by side, for machines without gdalbuildvrt."
    bands, wide = "", len(set(uris)) * WIDTH
    for band in (1, 2, 3):
        parts = "".join(
            f"<SimpleSource><SourceFilename>{uri}</SourceFilename>"
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{WIDTH}" ySize="{HEIGHT}"/>'
            f'<DstRect xOff="{x}" yOff="0" xSize="{WIDTH}" ySize="{HEIGHT}"/>'
            "</SimpleSource>"
            for x, uri in zip(range(0, wide, WIDTH), sorted(set(uris)), strict=True)
        )
        bands += f'<VRTRasterBand dataType="Byte" band="{band}">{parts}</VRTRasterBand>'
    place = ", ".join(map(str, NORTH_UP.to_gdal()))
    Path(path).write_text(
        f'<VRTDataset rasterXSize="{wide}" rasterYSize="{HEIGHT}"><SRS>EPSG:4326</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>"
    )


@pytest.fixture
def mosaics(monkeypatch):
    if shutil.which("gdalbuildvrt") is None:
        monkeypatch.setattr(utils_rasterio, "build_vrt", mosaic_without_gdal)


@pytest.mark.usefixtures("mosaics")
def test_a_mosaic_equals_stock(tmp_path):
    step = rasterio.Affine.translation(WIDTH, 0)
    paths = [
        write(tmp_path / "a.tif", numbers()),
        write(tmp_path / "b.tif", numbers(seed=1), transform=NORTH_UP * step),
    ]
    config = RasterioSourceConfig(uris=paths)
    agree(config, tmp_path)
    # two mosaics in one folder stay two
    first = _raster_source(config, str(tmp_path))
    second = _raster_source(RasterioSourceConfig(uris=paths[::-1]), str(tmp_path))
    other = _raster_source(RasterioSourceConfig(uris=[paths[1]] * 2), str(tmp_path))
    whole = first.get_chip(first.extent)
    assert whole.shape == (HEIGHT, 2 * WIDTH, 3)
    same(whole, second.get_chip(second.extent))
    assert other.get_chip(other.extent).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("primary", [0, 1])
def test_two_resolutions_equal_stock(primary, tmp_path):
    fine = write(tmp_path / "a.tif", numbers())
    coarse = write(
        tmp_path / "b.tif",
        numbers(2, height=HEIGHT // 2, width=WIDTH // 2, seed=3),
        transform=NORTH_UP * rasterio.Affine.scale(2),
    )
    config = MultiRasterSourceConfig(
        raster_sources=[
            RasterioSourceConfig(uris=fine, channel_order=[2, 0]),
            RasterioSourceConfig(uris=coarse),
        ],
        primary_source_idx=primary,
        channel_order=[3, 0, 1],
        transformers=[ReclassTransformerConfig(mapping={0: 1})],
    )
    stock, fast = config.build(str(tmp_path)), _raster_source(config, str(tmp_path))
    held = _raster_source(config, str(tmp_path))
    for part in held.raster_sources:
        part.hold(part.read_all())
    height, width = stock.extent.size
    assert (stock.shape, stock.dtype) == (fast.shape, fast.dtype)
    where = [w for w in windows(height, width) if min(w.size) > 4]
    for window in where:
        theirs = stock.get_chip(window)
        same(theirs, fast.get_chip(window))
        same(theirs, held.get_chip(window))
    with_bbox = config.model_copy(update={"bbox": (4, 6, 44, 50)})
    stock, fast = with_bbox.build(str(tmp_path)), _raster_source(with_bbox, "")
    for window in [w for w in windows(40, 44) if min(w.size) > 4]:
        same(stock.get_chip(window), fast.get_chip(window))


@pytest.mark.parametrize("kind", ["uint8 in tiles", "255 for no data", "mask"])
def test_resized_chips_equal_stock(kind, tmp_path):
    pixels, how = FILES[kind]
    config = RasterioSourceConfig(uris=write(tmp_path / "a.tif", pixels, **how))
    stock, held = config.build(str(tmp_path)), _raster_source(config, str(tmp_path))
    held.hold(held.read_all())
    for window in (Box(10, 20, 50, 60), Box(-10, 90, 30, 130), Box(0, 0, 100, 120)):
        for shape in ((20, 20), (40, 40), (64, 50)):
            same(
                stock.get_chip(window, out_shape=shape),
                held.get_chip(window, out_shape=shape),
            )
    same(stock.get_chip(window, bands=[1]), held.get_chip(window, bands=[1]))
    same(stock[10:40, 5:25, :], held[10:40, 5:25, :])
    same(stock[::2, ::2], held[::2, ::2])


@pytest.fixture(scope="module")
def three_sources(tmp_path_factory):
    "Stock, read and held."
    path = tmp_path_factory.mktemp("any") / "a.tif"
    uri = write(path, numbers(), nodata=255)
    held = _FastSource(uri)
    held.hold(held.read_all())
    return RasterioSourceConfig(uris=uri).build(None), _FastSource(uri), held


@settings(max_examples=40, deadline=None)
@given(
    top=st.integers(-150, 150), left=st.integers(-150, 150), size=st.integers(1, 200)
)
def test_any_window_equals_stock(top, left, size, three_sources):
    stock, read, held = three_sources
    window = Box(top, left, top + size, left + size // 2 + 1)
    theirs = stock.get_chip(window)
    same(theirs, read.get_chip(window))
    same(theirs, held.get_chip(window))


def test_beyond_a_bbox_there_is_nothing(tmp_path):
    # stock lets pixels of the file through when a window lies wholly beyond a bbox
    path = write(tmp_path / "a.tif", numbers() | 1)
    config = RasterioSourceConfig(uris=path, bbox=(0, 0, 50, 50))
    beyond = Box(0, 60, 30, 90)
    assert not _raster_source(config).get_chip(beyond).any()


def test_what_a_caller_does_to_a_chip_does_not_stay(tmp_path):
    source = _FastSource(write(tmp_path / "a.tif", numbers()))
    source.hold(source.read_all())
    expected = source.get_chip(source.extent).copy()
    chip = source.get_chip(Box(0, 0, 30, 30))
    try:
        chip[...] = 7
    except ValueError:  # a read-only view is as good as a copy
        return
    same(expected, source.get_chip(source.extent))


# --- labels from polygons


CLASSES = ["building", "road", "water", "background"]
BACKGROUND = 3


def scene_config(
    image, vectors, steps=(), labels=None, touched=False, bbox=None, **more
):
    "A scene with labels from a vector file."
    if labels is None:
        labels = RasterizedSourceConfig(
            vector_source=GeoJSONVectorSourceConfig(
                uris=vectors, transformers=[*steps]
            ),
            rasterizer_config=dict(background_class_id=BACKGROUND, all_touched=touched),
        )
    return SceneConfig(
        id="one",
        raster_source=RasterioSourceConfig(uris=image, bbox=bbox),
        label_source=SemanticSegmentationLabelSourceConfig(raster_source=labels),
        **more,
    )


def classes():
    found = ClassConfig(names=list(CLASSES))
    found.ensure_null_class()
    return found


def default(class_id=0, **more):
    return [ClassInferenceTransformerConfig(default_class_id=class_id, **more)]


def on_map(shapes, transform=NORTH_UP):
    "Shapes in pixels as shapes on the map."
    move = [
        transform.a,
        transform.b,
        transform.d,
        transform.e,
        transform.c,
        transform.f,
    ]
    return [shapely.affinity.affine_transform(s, move) for s in shapes]


def blobs(n=25, seed=0, reach=20):
    "Polygons of all kinds, in pixels: some stick out, some are tiny, some cross themselves."
    rng = np.random.default_rng(seed)

    def around(y, x, r, corners):
        turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
        far = rng.uniform(0.3, 1, corners) * r
        return np.column_stack([x + far * np.cos(turns), y + far * np.sin(turns)])

    found = []
    for i in range(n):
        y = rng.uniform(-reach, HEIGHT + reach)
        x = rng.uniform(-reach, WIDTH + reach)
        r = rng.choice([0.4, 3, 12, 40])
        ring = around(y, x, r, rng.integers(3, 9))
        if i % 5 == 1:  # a hole
            hole = np.array([x, y]) + (ring - [x, y]) * 0.4
            found.append(shapely.Polygon(ring, [hole[::-1]]))
        elif i % 5 == 2:  # several parts
            more = [around(y + d, x + d, r, 4) for d in (15, 30)]
            found.append(
                shapely.MultiPolygon([shapely.Polygon(p) for p in (ring, *more)])
            )
        elif i % 5 == 3:  # crosses itself
            cross = np.array([[0, 0], [1, 1], [1, 0], [0, 1]]) * r + [x, y]
            found.append(shapely.Polygon(cross))
        else:
            found.append(shapely.Polygon(ring))
    return found


def geojson(path, shapes, crs="EPSG:4326", **fields):
    "A vector file; a shape may be None."
    frame = gpd.GeoDataFrame(fields, geometry=list(shapes), crs="EPSG:4326")
    frame.to_crs(crs).to_file(path, driver="GeoJSON" if crs == "EPSG:4326" else None)
    return str(path)


def raw_geojson(path, features, **more):
    "A vector file, written as it stands."
    text = {"type": "FeatureCollection", "features": features, **more}
    Path(path).write_text(json.dumps(text))
    return str(path)


def feature(shape, **properties):
    geometry = None if shape is None else shapely.geometry.mapping(shape)
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def labels_agree(config, where=None, quick=None):
    "Stock and ours give the same class ids in many windows, each asked twice."
    polygons._quickly, kept = spy(polygons._quickly), polygons._quickly
    try:
        theirs = config.build(classes(), None).label_source
        ours = build_scene(config, classes()).label_source
        took = polygons._quickly.results
    finally:
        polygons._quickly = kept
    if quick is not None:
        assert [r is not None for r in took] == [quick]
    assert isinstance(ours.raster_source, LabelRaster)
    assert theirs.bbox == ours.bbox
    height, width = theirs.extent.size
    found = set()
    for window in [*(where or windows(height, width)), *outside(height, width)]:
        expected = theirs.get_label_arr(window)
        for _ in range(2):
            same(expected, ours.get_label_arr(window))
        found |= set(np.unique(expected).tolist())
    return found


def spy(function):
    def called(*args):
        called.results.append(function(*args))
        return called.results[-1]

    called.results = []
    return called


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write(tmp_path_factory.mktemp("image") / "a.tif", numbers(1))


@pytest.mark.parametrize("seed", range(6))
def test_labels_equal_stock(seed, image, tmp_path):
    shapes = on_map(blobs(seed=seed))
    ids = np.random.default_rng(seed).integers(0, 3, len(shapes))
    path = geojson(tmp_path / "a.geojson", shapes, class_id=ids)
    found = labels_agree(scene_config(image, path, default()), quick=True)
    assert {0, BACKGROUND} < found


@pytest.mark.parametrize("seed", range(3))
def test_labels_with_all_touched_equal_stock(seed, image, tmp_path):
    shapes = on_map(blobs(seed=seed, n=40))
    ids = np.random.default_rng(seed).integers(0, 3, len(shapes))
    path = geojson(tmp_path / "a.geojson", shapes, class_id=ids)
    where = [*windows(n=60, seed=seed)]
    labels_agree(scene_config(image, path, default(), touched=True), where)


corner = st.tuples(st.integers(-40, 300), st.integers(-40, 300))
ring = st.lists(corner, min_size=3, max_size=7)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rings=st.lists(ring, min_size=1, max_size=5), touched=st.booleans())
@example(rings=[[(0, 50), (212, 0), (0, 0), (212, -1)]], touched=False)
def test_any_polygons_equal_stock(rings, touched, image, tmp_path):
    # half pixels; rings may cross themselves, lie on a line or be a point
    shapes = on_map([shapely.Polygon(np.array(r) / 2) for r in rings])
    features = [feature(s, class_id=i % 3) for i, s in enumerate(shapes)]
    path = raw_geojson(tmp_path / "any.geojson", features)
    where = [Box(0, 0, HEIGHT, WIDTH), Box(17, 23, 81, 87), Box(-30, 60, 70, 160)]
    labels_agree(scene_config(image, path, default(), touched=touched), where)


@pytest.mark.parametrize(
    "place",
    [
        dict(transform=TURNED),
        dict(crs="EPSG:32633", transform=METRES),
        dict(crs=None),
        dict(crs=None, transform=None),
    ],
    ids=["turned", "in metres", "no CRS", "no place at all"],
)
def test_labels_of_any_place_equal_stock(place, tmp_path):
    image = write(tmp_path / "a.tif", numbers(1), **place)
    transform = place.get("transform", NORTH_UP)
    shapes = blobs() if transform is None else on_map(blobs(), transform)
    if place.get("crs", "").__class__ is str and "crs" in place:
        shapes = gpd.GeoSeries(shapes, crs=place["crs"]).to_crs("EPSG:4326").tolist()
    path = raw_geojson(tmp_path / "a.geojson", [feature(s) for s in shapes])
    assert labels_agree(scene_config(image, path, default(1))) == {1, BACKGROUND}


def test_labels_of_a_part_equal_stock(image, tmp_path):
    path = geojson(tmp_path / "a.geojson", on_map(blobs()))
    for bbox in ((7, 13, 83, 101), (-10, -10, 60, 60), (50, 50, 130, 140)):
        labels_agree(scene_config(image, path, default(), bbox=bbox))


def two(**fields):
    "Two rectangles and their fields."
    shapes = on_map([shapely.box(10, 10, 60, 50), shapely.box(40, 30, 100, 90)])
    keys = list(fields)
    rows = zip(*fields.values(), strict=True)
    values = [dict(zip(keys, row, strict=True)) for row in rows] or [{}, {}]
    drop = [{k: v for k, v in row.items() if v is not ...} for row in values]
    return [feature(s, **row) for s, row in zip(shapes, drop, strict=True)]


FIELDS = {
    "ids": dict(class_id=[2, 1]),
    "an id is missing": dict(class_id=[2, ...]),
    "an id is null": dict(class_id=[2, None]),
    "ids with a point": dict(class_id=[2.0, 1.0]),
    "names": dict(class_name=["water", "road"]),
    "labels": dict(label=["water", "road"]),
    "an unknown name": dict(class_name=["water", "lake"]),
    "a name is null": dict(class_name=["water", None]),
    "a label that is a number": dict(label=[1, 2]),
    "name and label": dict(class_name=["water", None], label=["road", "road"]),
    "id and name": dict(class_id=[1, 0], class_name=["water", "water"]),
    "other fields": dict(kind=["big", "small"], height=[3.5, None]),
    "none": {},
}


@pytest.mark.parametrize("default_id", [0, None])
@pytest.mark.parametrize("fields", FIELDS)
def test_classes_equal_stock(fields, default_id, image, tmp_path):
    path = raw_geojson(tmp_path / "a.geojson", two(**FIELDS[fields]))
    config = scene_config(image, path, default(default_id))
    where = [Box(0, 0, HEIGHT, WIDTH), Box(-20, 20, 60, 70)]
    try:
        config.build(classes(), None).label_source.get_label_arr(where[0])
    except Exception:  # where stock has no answer, ours must not have one either
        with pytest.raises(Exception):  # noqa: B017
            build_scene(config, classes()).label_source.get_label_arr(where[0])
        return
    labels_agree(config, where)


def test_rules_of_classes_equal_stock(image, tmp_path):
    path = raw_geojson(
        tmp_path / "a.geojson", two(class_name=["lake", "roof"], kind=["a", "b"])
    )
    for rule in (
        dict(class_name_mapping={"lake": "water", "roof": "building"}),
        dict(class_name_mapping={"lake": "sea"}),
        dict(class_id_to_filter={2: ["==", "kind", "a"], 1: ["has", "kind"]}),
    ):
        for default_id in (None, 0):
            labels_agree(scene_config(image, path, default(default_id, **rule)))
    labels_agree(scene_config(image, path))  # no rule: stock adds one that drops all


VECTORS = {
    "nothing": [],
    "null geometry": [feature(None, class_id=0), *two(class_id=[0, 1])],
    "only null": [feature(None, class_id=0)],
    "empty polygon": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": []},
            "properties": {},
        },
        *two(),
    ],
    "gone after flooring": [
        feature(s)
        for s in on_map(
            [shapely.box(10.1, 10.1, 10.8, 40), shapely.box(5, 5, 5.5, 5.5)]
        )
    ],
    "collection": [
        feature(
            shapely.GeometryCollection(
                on_map([shapely.box(5, 5, 30, 30), shapely.Point(60, 60)])
            )
        )
    ],
    "points and lines": [
        feature(s, class_id=i % 3)
        for i, s in enumerate(
            on_map(
                [
                    shapely.Point(20, 20),
                    shapely.LineString([(5, 60), (90, 70), (130, 20)]),
                    shapely.MultiPoint([(40, 40), (80, 10)]),
                    shapely.box(50, 50, 70, 60),
                ]
            )
        )
    ],
}


@pytest.mark.parametrize("kind", VECTORS)
def test_odd_vectors_equal_stock(kind, image, tmp_path):
    path = raw_geojson(tmp_path / "a.geojson", VECTORS[kind])
    labels_agree(scene_config(image, path, default()))


def test_buffers_equal_stock(image, tmp_path):
    path = raw_geojson(tmp_path / "a.geojson", VECTORS["points and lines"])
    buffers = [
        BufferTransformerConfig(geom_type="Point", default_buf=6),
        BufferTransformerConfig(geom_type="LineString", class_bufs={1: 4.5}),
        BufferTransformerConfig(geom_type="Polygon", default_buf=3),
    ]
    for steps in (buffers, buffers[:2], buffers[2:]):
        config = scene_config(image, path, [*default(), *steps])
        if steps == buffers[2:]:  # points and lines stay what they are
            with pytest.raises(ValueError, match="Points are not supported"):
                config.build(classes(), None)
            with pytest.raises(ValueError, match="Points are not supported"):
                build_scene(config, classes())
        else:
            labels_agree(config)


def test_heights_and_other_files_equal_stock(image, tmp_path):
    flat = on_map(blobs())
    tall = [shapely.force_3d(s, 12.5) for s in flat]
    high = raw_geojson(tmp_path / "3d.geojson", [feature(s) for s in tall])
    labels_agree(scene_config(image, high, default()))
    metres = geojson(tmp_path / "a.gpkg", flat, crs="EPSG:32633", class_id=[1] * 25)
    labels_agree(scene_config(image, metres, default()), quick=False)
    named = raw_geojson(
        tmp_path / "named.geojson",
        [feature(s) for s in gpd.GeoSeries(flat, crs=4326).to_crs(3857)],
        crs={"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
    )
    labels_agree(scene_config(image, named, default()), quick=False)
    labels_agree(scene_config(image, [high, metres], default()))
    halves = [
        raw_geojson(tmp_path / f"{i}.geojson", [feature(s, class_id=i) for s in part])
        for i, part in enumerate((flat[:12], flat[12:]))
    ]
    labels_agree(scene_config(image, halves, default()), quick=True)


def test_raster_labels_equal_stock(image, tmp_path):
    ids = numbers(1) % 4
    path = write(tmp_path / "ids.tif", ids)
    swap = [ReclassTransformerConfig(mapping={0: 1, 1: 0, 3: 2})]
    labels = RasterioSourceConfig(uris=path, transformers=swap)
    config = scene_config(image, None, labels=labels, bbox=(7, 13, 83, 101))
    theirs = config.build(classes(), None).label_source
    scene = SceneStore(100, tmp_path / "s").attach(build_scene(config, classes()))
    for window in [*windows(76, 88)] * 2:
        expected = theirs.get_label_arr(window)
        same(expected, scene.label_source.get_label_arr(window))


def test_label_rasters_of_another_extent_equal_stock(image, tmp_path):
    for name, moved, scale in (("moved", (-10, 15), 1), ("coarse", (5, 5), 2)):
        place = NORTH_UP * rasterio.Affine.translation(*moved)
        place *= rasterio.Affine.scale(scale)
        path = write(tmp_path / f"{name}.tif", numbers(1) % 3, transform=place)
        config = scene_config(image, None, labels=RasterioSourceConfig(uris=path))
        theirs, ours = config.build(classes(), None), build_scene(config, classes())
        assert theirs.label_source.bbox == ours.label_source.bbox
        SceneStore(100, tmp_path / "s").attach(ours)
        height, width = theirs.label_source.extent.size
        for window in [*windows(height, width)] * 2:
            expected = theirs.label_source.get_label_arr(window)
            same(expected, ours.label_source.get_label_arr(window))


def test_a_large_scene_is_drawn_window_by_window(image, tmp_path, monkeypatch):
    monkeypatch.setattr(LabelRaster, "most", 100)
    path = geojson(tmp_path / "a.geojson", on_map(blobs()))
    labels_agree(scene_config(image, path, default()))


def test_areas_equal_stock(image, tmp_path):
    area = raw_geojson(tmp_path / "aoi.geojson", [feature(s) for s in on_map(blobs(6))])
    path = geojson(tmp_path / "a.geojson", on_map(blobs()))
    config = scene_config(
        image, path, default(), aoi_uris=[area], bbox=(7, 13, 83, 101)
    )
    theirs, ours = config.build(classes(), None), build_scene(config, classes())
    assert len(theirs.aoi_polygons) == len(ours.aoi_polygons) > 0
    for name in ("aoi_polygons", "aoi_polygons_bbox_coords"):
        pairs = zip(getattr(theirs, name), getattr(ours, name), strict=True)
        assert all(a.equals_exact(b, 0) for a, b in pairs)


def test_a_missing_file_is_named_with_its_scene(image, tmp_path):
    gone = str(tmp_path / "gone")
    for config in (
        scene_config(gone + ".tif", gone + ".geojson", default()),
        scene_config(image, gone + ".geojson", default()),
    ):
        with pytest.raises(FileNotFoundError, match="scene one: .*gone"):
            build_scene(config, classes())


# --- few open files


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "200 scenes."
    folder = tmp_path_factory.mktemp("many")
    vectors = geojson(folder / "a.geojson", on_map(blobs(3)))
    pixels = numbers(1, height=20, width=20)
    paths = [write(folder / f"{i}.tif", pixels) for i in range(200)]
    return [scene_config(p, vectors, default()) for p in paths]


def read_all(scenes):
    for _ in range(2):
        for scene in scenes:
            scene[Box(0, 0, 16, 16)]


@pytest.mark.parametrize("budget", [0, 100])
def test_at_most_64_files_are_open(many, budget, tmp_path):
    gc.collect()
    before = open_files()
    store = SceneStore(budget, tmp_path / "scratch")
    scenes = [store.attach(build_scene(c, classes())) for c in many]
    assert open_files() - before <= 17  # sixteen, and the one that is about to close
    read_all(scenes)
    assert open_files() - before <= 17
    held = [s.raster_source.pixels is not None for s in scenes]
    assert all(held)
    threads = [threading.Thread(target=read_all, args=(scenes,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_files() - before <= 64


def test_each_thread_has_its_own_few_rasters(many):
    paths = [c.raster_source.uris for c in many]
    rasters = _OpenRasters(most=3)
    most, found = [], []

    def work():
        for path in paths[:20]:
            found.append(rasters.get(path))
            most.append(len(rasters.held))
            assert not found[-1].closed
        rasters.close()
        assert not rasters.held

    before = open_files()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(f) for f in found}) == 60  # never another thread's
    assert max(most) == 3
    assert all(f.closed for f in found)
    assert open_files() <= before


def test_the_raster_used_last_stays_open(many):
    paths = [c.raster_source.uris for c in many]
    rasters = _OpenRasters(most=2)
    first, second = rasters.get(paths[0]), rasters.get(paths[1])
    assert rasters.get(paths[0]) is first
    rasters.get(paths[2])
    assert second.closed and not first.closed
    rasters.close()


def test_a_changed_raster_is_opened_anew(tmp_path):
    path = write(tmp_path / "a.tif", numbers())
    window = Box(0, 0, 50, 50)
    before = _FastSource(path).get_chip(window)
    later = numbers(seed=1)
    other = write(tmp_path / "b.tif", later)
    os.replace(other, path)  # as a program that writes files carefully does it
    after = _FastSource(path).get_chip(window)
    assert not np.array_equal(before, after)
    same(later[:, :50, :50].transpose(1, 2, 0), after)


# --- the store


@pytest.fixture
def sources(tmp_path):
    "Eight rasters of 36,000 bytes each."
    return [
        _FastSource(write(tmp_path / f"{i}.tif", numbers(seed=i))) for i in range(8)
    ]


SIZE = HEIGHT * WIDTH * 3


def never():
    raise AssertionError("the source was read again")


def test_the_budget_holds_then_files_do(sources, tmp_path):
    store = SceneStore(3.5 * SIZE / 2**20, tmp_path / "scratch")
    kept = [store.array(s, s.read_all) for s in sources]
    assert store.used == 3 * SIZE
    assert len(list(store.folder.glob("*.npy"))) == 5
    for source, pixels in zip(sources, kept, strict=True):
        same(source.read_all(), pixels)
        assert store.array(source, never) is pixels
    assert not list(store.folder.glob("*tmp*")) and not list(
        store.folder.glob("*part*")
    )


def in_child(function):
    "What a function gives in a process of its own."
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: found.put(function()))
    child.start()
    result = found.get(timeout=60)
    child.join()
    return result


def own_memory():
    "kB of this process that no file stands behind."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(r.split()[1] for r in lines if r.startswith("RssAnon")))


def test_mapped_pixels_take_no_memory_of_ours(tmp_path):
    path = write(tmp_path / "a.tif", numbers(3, height=3000, width=3000))
    source = _FastSource(path)
    SceneStore(0, tmp_path / "scratch").array(source, source.read_all)
    gc.collect()

    def look():
        pixels = SceneStore(0, tmp_path / "scratch").array(source, never)
        before = own_memory()
        total = sum(int(row.sum()) for row in pixels)
        return total, own_memory() - before

    total, more = in_child(look)
    assert total == source.read_all().sum()
    assert more < 5_000  # kB, of 27,000


@pytest.mark.parametrize("budget", [0, 100])
def test_another_process_uses_the_same_file(budget, sources, tmp_path):
    source = sources[0]
    store = SceneStore(0, tmp_path / "scratch")
    store.array(source, source.read_all)

    def look():
        again = _FastSource(source.imagery_path)
        return int(SceneStore(budget, store.folder).array(again, never).sum())

    assert in_child(look) == source.read_all().sum()


def prepared(folder, source):
    "What somebody who knows our names would put there: zeros, with the right digest."
    name, digest = source.fingerprint()
    with open(folder / f"{name}.npy", "wb") as file:
        np.save(file, np.zeros_like(source.read_all()))
        file.write(digest.encode())


def test_pixels_that_others_have_prepared_are_not_served(
    sources, tmp_path, monkeypatch
):
    monkeypatch.delenv("RVTUTORIAL_SCRATCH", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place, source = tmp_path / f"rvtutorial-{os.getuid()}", sources[0]
    place.mkdir()
    place.chmod(0o777)
    prepared(place, source)
    store = SceneStore(0)
    same(source.read_all(), store.array(source, source.read_all))
    assert store.folder.is_relative_to(tmp_path / "cache")
    for path in store.folder.iterdir():
        path.unlink()
    prepared(store.folder, source)
    assert not SceneStore(0).array(source, never).any()  # so it would have worked
    store.folder.chmod(0o777)  # replaced by another one while a training runs
    with pytest.raises(OSError):
        store.held.clear()
        store.say = lambda text: None
        store.array(source, source.read_all)


def test_a_link_in_scratch_is_not_followed(sources, tmp_path):
    source, other = sources[0], tmp_path / "other"
    other.mkdir()
    prepared(other, source)
    store = SceneStore(0, tmp_path / "scratch")
    store.folder.mkdir()
    (made,) = other.iterdir()
    (store.folder / made.name).symlink_to(made)
    same(source.read_all(), store.array(source, source.read_all))
    assert not np.load(io.BytesIO(made.read_bytes()[:-32])).any()  # nor written through


def test_a_forked_process_opens_its_files_anew(tmp_path):
    # a place in an open file belongs to parent and child together
    paths = [write(tmp_path / f"{i}.tif", numbers(seed=i)) for i in range(2)]
    sources = [_FastSource(p) for p in paths]
    assert reading.RASTERS.held
    assert in_child(lambda: len(reading.RASTERS.held)) == 0
    same(sources[0].read_all(), in_child(sources[0].read_all))


def test_changed_files_are_read_anew_and_it_is_said_once(tmp_path):
    paths = [write(tmp_path / f"{i}.tif", numbers(seed=i)) for i in range(2)]
    scratch, said = tmp_path / "scratch", []
    for path in paths:
        source = _FastSource(path)
        SceneStore(0, scratch).array(source, source.read_all)
    reading.RASTERS.close()
    for i, path in enumerate(paths):
        write(path, numbers(seed=7 + i))
        os.utime(path, ns=(1, 1))
    store = SceneStore(0, scratch, say=said.append)
    for i, path in enumerate(paths):
        source = _FastSource(path)
        found = store.array(source, source.read_all)
        same(numbers(seed=7 + i).transpose(1, 2, 0), np.asarray(found))
    assert len(said) == 1 and str(scratch) in said[0] and "changed" in said[0]
    assert len(list(scratch.glob("*.npy"))) == 2  # replaced, not added
    source = _FastSource(paths[0])
    SceneStore(0, scratch, say=said.append).array(source, never)
    assert len(said) == 1


@pytest.mark.parametrize("damage", ["cut", "foreign", "short", "empty", "pickle"])
def test_damaged_files_are_made_again(damage, sources, tmp_path):
    source, scratch = sources[0], tmp_path / "scratch"
    SceneStore(0, scratch).array(source, source.read_all)
    (path,) = scratch.glob("*.npy")
    whole = path.read_bytes()
    if damage == "pickle":  # ends as it should, but must not be unpickled
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        path.write_bytes(path.read_bytes() + whole[-32:])
    else:
        damaged = {"cut": whole[:-500], "foreign": b"x" * 999, "short": b"x"}
        path.write_bytes(damaged.get(damage, b""))
    again = SceneStore(0, scratch, say=lambda text: None)
    same(source.read_all(), np.asarray(again.array(source, source.read_all)))
    same(source.read_all(), np.asarray(SceneStore(0, scratch).array(source, never)))


def use(source, store):
    "What a training does: chips through an attached source."
    source.keep_in(store)
    return [source.get_chip(Box(5, 5, 45, 45)) for _ in range(3)]


@pytest.mark.parametrize("fault", ["below a file", "full", "full while writing"])
def test_scratch_that_cannot_hold_is_said_once(fault, sources, tmp_path, monkeypatch):
    said, scratch = [], tmp_path / "scratch"
    if fault == "below a file":
        scratch.write_text("")
        scratch = scratch / "deeper"
    elif fault == "full":
        usage = type("Usage", (), {"free": 2**20})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "save", full)
    expected = [s.get_chip(Box(5, 5, 45, 45)) for s in sources]
    store = SceneStore(1.5 * SIZE / 2**20, scratch, say=said.append)
    for source, chip in zip(sources, expected, strict=True):
        for found in use(source, store):
            same(chip, found)
    assert len(said) == 1
    assert str(scratch) in said[0] and "RVTUTORIAL_SCRATCH" in said[0]
    assert store.used == SIZE  # the first fitted the memory
    if scratch.is_dir():
        assert not list(scratch.iterdir())


def test_labels_without_scratch_are_still_right(image, tmp_path):
    path = geojson(tmp_path / "a.geojson", on_map(blobs()))
    config = scene_config(image, path, default())
    (tmp_path / "file").write_text("")
    store = SceneStore(0, tmp_path / "file" / "x", say=lambda text: None)
    scene = store.attach(build_scene(config, classes()))
    theirs = config.build(classes(), None)
    for window in [*windows()] * 2:
        same(theirs[window][0], scene[window][0])
        same(theirs[window][1], scene[window][1])


def test_old_files_are_pruned(sources, tmp_path):
    store = SceneStore(0, tmp_path / "scratch")
    for source in sources[:3]:
        store.array(source, source.read_all)
    (store.folder / "mine.txt").write_text("")
    for path in store.folder.iterdir():
        os.utime(path, (0, 0))
    source = sources[0]
    SceneStore(0, store.folder).array(source, never)  # used again: young again
    assert store.prune() == 2
    assert store.prune() == 0
    assert len(list(store.folder.glob("*.npy"))) == 1
    assert (store.folder / "mine.txt").exists()


def test_what_is_too_large_is_not_held(sources, tmp_path, monkeypatch):
    store = SceneStore(100, tmp_path / "scratch")
    monkeypatch.setattr(store, "largest", SIZE - 1)
    use(sources[0], store)
    assert sources[0].pixels is None and not store.held
    monkeypatch.setattr(store, "largest", SIZE)
    use(sources[1], store)
    assert sources[1].pixels is not None


@pytest.mark.usefixtures("mosaics")
def test_a_mosaic_stays_within_the_budget(tmp_path):
    step = rasterio.Affine.translation(WIDTH, 0)
    paths = [
        write(tmp_path / "a.tif", numbers()),
        write(tmp_path / "b.tif", numbers(seed=1), transform=NORTH_UP * step),
    ]
    source = _FastSource(paths, tmp_dir=str(tmp_path))
    expected = source.get_chip(Box(5, 5, 45, 45))
    store = SceneStore(0, tmp_path / "scratch")
    for chip in use(source, store):
        same(expected, chip)
    assert source.pixels is None
    store = SceneStore(1, tmp_path / "scratch")
    source = _FastSource(paths, tmp_dir=str(tmp_path))
    use(source, store)
    assert store.used == source.pixels.nbytes == 2 * SIZE


def test_held_pixels_survive_transformers_that_write_in_place(tmp_path):
    path = write(tmp_path / "a.tif", holed(numbers(3, "float32"), np.nan))
    config = RasterioSourceConfig(
        uris=path, transformers=[NanTransformerConfig(to_value=3)]
    )
    stock = config.build(None)
    for budget in (0, 100):
        store, source = SceneStore(budget, tmp_path / "s"), _raster_source(config)
        source.keep_in(store)
        for window in [*windows()] * 2:
            same(stock.get_chip(window), source.get_chip(window))
        assert np.isnan(np.asarray(source.pixels)).any()


def test_threads_share_a_store(sources, tmp_path):
    expected = [s.get_chip(Box(5, 5, 45, 45)) for s in sources]
    store = SceneStore(2.5 * SIZE / 2**20, tmp_path / "scratch")
    for source in sources:
        source.keep_in(store)
    faults, begin = [], threading.Barrier(4)

    def work():
        try:
            begin.wait()
            for _ in range(5):
                for source, chip in zip(sources, expected, strict=True):
                    same(chip, source.get_chip(Box(5, 5, 45, 45)))
        except BaseException as err:
            faults.append(err)

    threads = [threading.Thread(target=work) for _ in range(4)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert not faults, faults
    assert store.used <= store.budget
    assert all(s.pixels is not None for s in sources)


def test_a_scene_is_held_from_its_second_use_on(image, tmp_path):
    path = geojson(tmp_path / "a.geojson", on_map(blobs()))
    scene = build_scene(scene_config(image, path, default()), classes())
    SceneStore(10, tmp_path / "scratch").attach(scene)
    held = []
    for _ in range(3):
        scene[Box(0, 0, 50, 50)]
        held.append(scene.raster_source.pixels is not None)
    assert held == [False, True, True]


def test_budget_and_scratch_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RVTUTORIAL_CACHE_MB", "7")
    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path))
    store = SceneStore()
    assert (store.budget, store.folder) == (7 * 2**20, tmp_path)
    assert SceneStore(0).budget == 0
    monkeypatch.delenv("RVTUTORIAL_CACHE_MB")
    assert (
        0
        < SceneStore().budget
        < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )


def test_what_stock_must_read_is_named(image):
    config = scene_config(image, None, labels=RasterioSourceConfig(uris=image))
    assert reading.slow_reason(config) is None
    series = MultiRasterSourceConfig(
        raster_sources=[RasterioSourceConfig(uris=image)] * 2, temporal=True
    )
    odd = SceneConfig(id="a", raster_source=series)
    assert reading.slow_reason(odd) == "a time series"
    scene = build_scene(odd, classes())
    assert scene.raster_source.get_chip(Box(0, 0, 9, 9)).shape == (2, 9, 9, 1)

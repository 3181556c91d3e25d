"""Where rasters lie: one comparison of grids, and sizes on the ground."""

import json

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from fake_runs import write_raster
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform as warped
from rasterio.windows import Window

from rvtutorial import scenes
from rvtutorial.data import labels, pairing
from rvtutorial.data.pairing import DataError, Scene
from rvtutorial.data.places import Fit, Grid, square_metres
from rvtutorial.figures import maps
from rvtutorial.metrics.counting import count_rasters

UTM = "EPSG:32611"
HERE = from_origin(600_000, 4_000_000, 0.5, 0.5)
NAMES = ("building", "background", "null")
EARTH = pyproj.Geod(ellps="WGS84")


def grid(shape=(60, 80), transform=HERE, crs=UTM):
    "A raster without pixels."
    crs = CRS.from_user_input(crs) if crs else None
    return Grid(crs, transform, shape)


def scene_labels(seed=0):
    "Blocks of 4 x 4 pixels, so that a coarser raster holds the same."
    small = np.random.default_rng(seed).integers(0, 2, (15, 20)).astype("uint8")
    return small.repeat(4, 0).repeat(4, 1)


def in_lonlat(transform, shape):
    "About the same grid in degrees."
    (x, y), (u, v) = transform @ (0, 0), transform @ shape[::-1]
    lon, lat = warped(UTM, "EPSG:4326", [x, u], [y, v])
    return from_origin(
        lon[0], lat[0], (lon[1] - lon[0]) / shape[1], (lat[0] - lat[1]) / shape[0]
    )


# what lies on the same ground is read as it is meant, whoever reads it


def alike(truth):
    "Name -> pixels, transform, crs of rasters that say the same."
    south_up = HERE @ Affine.translation(0, 60) @ Affine.scale(1, -1)
    mirrored = HERE @ Affine.translation(80, 0) @ Affine.scale(-1, 1)
    both = south_up @ Affine.translation(80, 0) @ Affine.scale(-1, 1)
    named = CRS.from_epsg(32611).to_wkt().replace("WGS 84 / UTM zone 11N", "mine")
    return {
        "same": (truth, HERE, UTM),
        "a hundredth of a pixel": (truth, HERE @ Affine.translation(0.01, -0.01), UTM),
        "its reference system under another name": (truth, HERE, named),
        "twice the pixel size": (truth[::2, ::2], HERE @ Affine.scale(2), UTM),
        "four times": (truth[::4, ::4], HERE @ Affine.scale(4), UTM),
        "twice as wide": (truth[:, ::2], HERE @ Affine.scale(2, 1), UTM),
        "south first": (truth[::-1], south_up, UTM),
        "east first": (truth[:, ::-1], mirrored, UTM),
        "turned round": (truth[::-1, ::-1], both, UTM),
        "coarse and south first": (truth[::-2, ::2], south_up @ Affine.scale(2), UTM),
    }


@pytest.fixture(params=alike(scene_labels()))
def same_ground(request, tmp_path):
    "A label raster that lies otherwise on the same ground, and what it says."
    truth = scene_labels()
    pixels, transform, crs = alike(truth)[request.param]
    return write_raster(tmp_path / "truth.tif", pixels, transform, crs), truth


def test_counts_are_of_the_same_ground(same_ground, tmp_path):
    path, truth = same_ground
    drawn = write_raster(tmp_path / "drawn.tif", truth, HERE, UTM)
    found = count_rasters(path, drawn, NAMES[:2]).total
    assert found[0, 1] == found[1, 0] == 0 and found.sum() == truth.size


def test_windows_are_those_of_the_image(same_ground):
    path, truth = same_ground
    rng = np.random.default_rng(1)
    with rasterio.open(path) as file:
        lies = Fit.of(file, grid())
        for _ in range(30):
            y, x = int(rng.integers(0, 59)), int(rng.integers(0, 79))
            h, w = int(rng.integers(1, 61 - y)), int(rng.integers(1, 81 - x))
            assert (
                lies.read(file, Window(x, y, w, h)) == truth[y : y + h, x : x + w]
            ).all()


def test_drawings_are_of_the_same_ground(same_ground, tmp_path):
    path, truth = same_ground
    pixels = np.random.default_rng(0).integers(1, 200, (3, 60, 80)).astype("uint8")
    image = write_raster(tmp_path / "image.tif", pixels, HERE, UTM)
    frame = maps.Frame.of(image)
    assert (frame.read_truth(path) == truth).all()
    lines = maps._outlines(path, frame)
    whole = write_raster(tmp_path / "whole.tif", truth, HERE, UTM)
    assert sum(map(len, lines)) == sum(map(len, maps._outlines(whole, frame)))


def test_runs_get_labels_on_the_grid_of_the_image(same_ground, tmp_path):
    pytest.importorskip("rastervision.core")
    from rvtutorial.config import make_classes
    from rvtutorial.data import checks

    path, truth = same_ground
    pixels = np.random.default_rng(0).integers(1, 200, (3, 60, 80)).astype("uint8")
    image = write_raster(tmp_path / "image.tif", pixels, HERE, UTM)
    scene, classes = Scene("1", image, path), make_classes()
    said = "1:building,0:background"
    assert (scenes.scene_mask(scene, label_values=said) == truth).all()
    where = dict(label_values=said)
    made, coding = checks._own_labels(scene, tmp_path, classes, where, None, False)
    with rasterio.open(made) as file:
        ids = np.vectorize(coding.get)(file.read(1))
    assert ((ids == 0) == (truth == 1)).all() and set(np.unique(ids)) == {0, 1}


# what lies elsewhere is refused by name

ELSEWHERE = {
    "5 km away": (HERE @ Affine.translation(10_000, 0), UTM, r"shifted by 10000.0, 0.0.*5\.0 km"),
    "half a pixel": (HERE @ Affine.translation(0.5, 0), UTM, r"shifted by 0\.5, 0\.0 pixels"),
    "turned by 10 degrees": (HERE @ Affine.rotation(10), UTM, r"turned by 10\.0 degrees"),
    "turned by 90 degrees": (HERE @ Affine.rotation(90), UTM, r"turned by 90\.0 degrees"),
    "south first, elsewhere": (Affine(0.5, 0, 6e5, 0, 0.5, 4e6), UTM, "shifted by"),
    "twice the size, same shape": (HERE @ Affine.scale(2), UTM, "pixels of 2 x 2 pixels"),
    "one per cent larger": (HERE @ Affine.scale(1.01), UTM, "pixels of 1.01 x 1.01 pixels"),
    "another zone": (HERE, "EPSG:32612", r"is in EPSG:32612, .* in EPSG:32611"),
    "degrees": (in_lonlat(HERE, (60, 80)), "EPSG:4326", "is in EPSG:4326"),
}  # fmt: skip


@pytest.fixture(params=ELSEWHERE)
def elsewhere(request, tmp_path):
    "A label raster of the right shape at another place, and what has to be said."
    transform, crs, words = ELSEWHERE[request.param]
    return write_raster(tmp_path / "truth.tif", scene_labels(), transform, crs), words


def test_what_lies_elsewhere_is_refused_wherever_it_is_read(elsewhere, tmp_path):
    path, words = elsewhere
    drawn = write_raster(tmp_path / "drawn.tif", scene_labels(), HERE, UTM)
    with pytest.raises(ValueError, match=words):
        count_rasters(path, drawn, NAMES)
    pixels = np.random.default_rng(0).integers(1, 200, (3, 60, 80)).astype("uint8")
    image = write_raster(tmp_path / "image.tif", pixels, HERE, UTM)
    with pytest.raises(DataError, match=words):
        scenes.check_scenes([Scene("1", image, path)])
    frame = maps.Frame.of(image)
    with pytest.raises(ValueError, match=words):
        frame.read_truth(path)
    with pytest.raises(ValueError, match=words):
        maps._read_layers(image, path)


def test_a_finer_raster_is_refused_and_a_rest_as_well(tmp_path):
    for shape in ((120, 160), (59, 80), (20, 21)):
        with pytest.raises(ValueError, match="cut or resample it to the image's grid"):
            Fit.of(grid(shape), grid(), "a.tif", "b.tif")


def test_a_part_of_the_image_is_called_so():
    with pytest.raises(
        ValueError, match="is 80 x 30 pixels, the image 80 x 60; cut it"
    ):
        Fit.of(grid((30, 80)), grid())


def test_systems_without_a_way_between_them_are_named():
    local = 'ENGCRS["site",EDATUM["here"],CS[Cartesian,2],AXIS["(E)",east],'
    local += 'AXIS["(N)",north],LENGTHUNIT["metre",1]]'
    with pytest.raises(
        ValueError, match="in EPSG:32611, the image in site, and nothing"
    ):
        Fit.of(grid(), grid(crs=local))
    assert Fit.of(grid(crs=local), grid(crs=local)).same


def test_longitudes_are_the_same_after_a_turn():
    def at(lon):
        return grid(transform=from_origin(lon, 40, 1e-5, 1e-5), crs="EPSG:4326")

    assert Fit.of(at(250), at(-110)).same and Fit.of(at(-110), at(250)).same
    with pytest.raises(ValueError, match="shifted by"):
        Fit.of(at(250), at(-109))


def test_what_has_no_place_is_pixel_on_pixel_and_says_which():
    nowhere = grid(transform=Affine.identity(), crs=None)
    assert "no georeference" in Fit.of(nowhere, nowhere).note
    assert Fit.of(nowhere, grid()).note.startswith(
        "the raster has no georeference, the image"
    )
    assert Fit.of(grid(), nowhere).note.startswith(
        "the image has no georeference, the raster"
    )
    with pytest.raises(ValueError, match="has no georeference"):
        Fit.of(grid((30, 40), Affine.identity(), None), grid())


def test_a_transform_without_a_reference_system_is_compared():
    assert Fit.of(grid(crs=None), grid()).same
    assert "only one" in Fit.of(grid(crs=None), grid()).note
    with pytest.raises(ValueError, match="shifted by"):
        Fit.of(grid(crs=None, transform=HERE @ Affine.translation(3, 0)), grid())
    assert Fit.of(grid(crs=None), grid(crs=None)) == Fit()


def test_one_map_without_a_place_is_warned_of(tmp_path):
    truth = write_raster(tmp_path / "t.tif", scene_labels(), crs=None)
    drawn = write_raster(tmp_path / "d.tif", scene_labels(), HERE, UTM)
    with pytest.warns(UserWarning, match="t.tif has no georeference, .*d.tif has"):
        count_rasters(truth, drawn, NAMES)


# on the ground


def web_mercator(lat, side=100.0, lon=10.0):
    "A square of so many metres of map, and what it is on the ground."
    (x,), (y,) = warped("EPSG:4326", "EPSG:3857", [lon], [lat])
    box = shapely.box(x, y, x + side, y + side)
    lon, lat = warped("EPSG:3857", "EPSG:4326", *box.exterior.xy)
    return box, abs(EARTH.polygon_area_perimeter(lon, lat)[0])


@pytest.mark.parametrize("lat", [0, 33, 60, -60, 80])
def test_areas_of_web_mercator_are_those_of_the_ground(lat):
    box, area = web_mercator(lat)
    series = geopandas.GeoSeries([box], crs="EPSG:3857")
    assert square_metres(series)[0] == pytest.approx(area, rel=1e-6)
    expected = 1e4 * np.cos(np.radians(lat)) ** 2
    assert square_metres(series)[0] == pytest.approx(expected, rel=0.01)


def test_areas_of_all_kinds_of_shapes():
    box, area = web_mercator(60)
    hole = shapely.affinity.scale(box, 0.5, 0.5)
    ring, (quarter,) = (
        box.difference(hole),
        square_metres(geopandas.GeoSeries([hole], crs="EPSG:3857")),
    )
    several = shapely.MultiPolygon([hole, shapely.affinity.translate(hole, 1000)])
    shapes = [ring, several, shapely.Point(0, 0), None]
    found = square_metres(geopandas.GeoSeries(shapes, crs="EPSG:3857"))
    assert found == pytest.approx([area - quarter, 2 * quarter, 0, 0], rel=1e-6)
    assert np.isnan(square_metres(geopandas.GeoSeries([box]))).all()
    local = 'LOCAL_CS["mine",UNIT["metre",1]]'
    assert np.isnan(square_metres(geopandas.GeoSeries([box], crs=local))).all()
    assert len(square_metres(geopandas.GeoSeries([], crs="EPSG:3857"))) == 0


def test_areas_across_180_degrees():
    for left in (179.9, -180.1):
        box = shapely.box(left, 10, left + 0.2, 10.2)
        middle = shapely.box(0, 10, 0.2, 10.2)
        found = square_metres(geopandas.GeoSeries([box, middle], crs="EPSG:4326"))
        assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize(("crs", "lat", "step"), [
    ("EPSG:3857", 60, 1.0), ("EPSG:3857", -70, 0.3), ("EPSG:4326", 60, 1e-5),
    ("EPSG:32632", 60, 0.5), ("EPSG:3035", 60, 0.5), ("EPSG:6933", 60, 2.0),
])  # fmt: skip
def test_pixels_are_measured_on_the_ground(tmp_path, crs, lat, step):
    (x,), (y,) = warped("EPSG:4326", crs, [10], [lat])
    transform = from_origin(x, y, step, step)
    width, height = grid((20, 30), transform, crs).pixel_size()
    at = [transform @ p for p in ((15, 10), (16, 10), (15, 11))]
    lon, lat = warped(crs, "EPSG:4326", *zip(*at, strict=True))
    expected = EARTH.inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])[2]
    assert (width, height) == pytest.approx(tuple(expected), rel=1e-4)
    path = write_raster(
        tmp_path / "a.tif", np.ones((3, 20, 30), np.uint8), transform, crs
    )
    assert maps.Frame.of(path).step == pytest.approx((width, height))
    assert labels.image_info(path).pixel_size() == pytest.approx((width, height))
    box = shapely.box(*(at[0]), *(transform @ (25, 18)))
    geopandas.GeoSeries([box], crs=crs).to_file(tmp_path / "a.gpkg")
    areas = labels.building_sizes([Scene("1", path, tmp_path / "a.gpkg")])
    assert areas[0] == pytest.approx(80 * width * height, rel=1e-3)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32701", "EPSG:32660", "EPSG:3832"])
def test_scenes_across_180_degrees(tmp_path, crs):
    "Their pixels are no 19,000 km wide, and they share no ground with the Atlantic."
    pixels = np.ones((1, 40, 400), np.uint8)
    if crs == "EPSG:4326":
        x, y, step = 179.9, 10.0, 0.0005
    else:
        (x,), (y,) = warped(
            "EPSG:4326", crs, [179.9], [-10 if crs == "EPSG:32701" else 10]
        )
        step = 55.0
    there = write_raster(
        tmp_path / "there.tif", pixels, from_origin(x, y, step, step), crs
    )
    wide, _ = labels.image_info(there).pixel_size()
    assert 40 < wide < 60
    lat = -10 if crs == "EPSG:32701" else 10
    atlantic = from_origin(-30, lat, 0.0005, 0.0005)
    far = write_raster(tmp_path / "far.tif", pixels, atlantic, "EPSG:4326")
    near = write_raster(
        tmp_path / "near.tif",
        pixels,
        from_origin(-180, lat, 0.0005, 0.0005),
        "EPSG:4326",
    )
    splits = {"train": [Scene("1", there)], "val": [Scene("2", far), Scene("3", near)]}
    frame = pairing.outlines(splits)
    assert frame.total_bounds[0] >= -180 and frame.total_bounds[2] <= 180
    shared = pairing.leaks(frame)
    assert [(a, b) for _, a, _, b, _ in shared] == [("1", "3")]
    assert 0.3 < shared[0][-1] < 0.7
    scenes.plot_map(frame)


def test_outlines_round_a_pole(tmp_path):
    def leak(crs, *lefts):
        made = []
        for i, left in enumerate(lefts):
            there = from_origin(left, 1e5, 4000, 4000)
            pixels = np.ones((1, 50, 50), np.uint8)
            made.append(write_raster(tmp_path / f"{i}.tif", pixels, there, crs))
        splits = {"train": [Scene("1", made[0])], "val": [Scene("2", made[1])]}
        frame = pairing.outlines(splits)
        assert frame.geometry.is_valid.all()
        return pairing.leaks(frame)

    for crs, pole in (("EPSG:3413", 90), ("EPSG:3031", -90)):
        assert leak(crs, -1e5, 2e5) == []
        assert leak(crs, -1e5, -1e5)[0][-1] == 1
        assert 0.1 < leak(crs, -1e5, 5e4)[0][-1] < 0.9
        whole = grid((50, 50), from_origin(-1e5, 1e5, 4000, 4000), crs).on_earth()
        assert whole.covers(shapely.Point(77, pole)) and whole.area < 400


@pytest.mark.parametrize("left", [179.9999, 180 - 32e-5, 180 - 1e-5, -180.0001, 250])
def test_polygons_of_an_image_at_180_degrees(tmp_path, left):
    "Tools write longitudes from -180 to 180, wherever those of the image go on."
    there = from_origin(left, 10, 1e-5, 1e-5)
    truth, shapes = np.zeros((64, 64), bool), []
    for x, y, u, v in ((5, 5, 15, 15), (28, 25, 38, 33), (40, 8, 60, 20)):
        truth[y:v, x:u] = True
        corners = [(x, y), (u, y), (u, v), (x, v), (x, y)]
        ring = [there @ (c + 0.01, r + 0.01) for c, r in corners]
        shapes.append([[((lon + 180) % 360 - 180, lat) for lon, lat in ring]])
    features = [
        {"type": "Feature", "properties": {}, "geometry": g}
        for g in ({"type": "Polygon", "coordinates": s} for s in shapes)
    ]
    label = tmp_path / "l.geojson"
    label.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    pixels = np.ones((3, 64, 64), np.uint8)
    image = write_raster(tmp_path / "i.tif", pixels, there, "EPSG:4326")
    scene = Scene("1", image, label)
    table = scenes.check_scenes([scene])
    assert table["share"][0] == pytest.approx(truth.mean(), abs=1e-4)
    assert "counted on beyond 180 degrees" in table["notes"][0]
    assert ((scenes.scene_mask(scene) > 0) == truth).all()
    made = json.loads(scenes.clean_labels(scene, tmp_path / "o.geojson").read_text())
    drawn = rasterio.features.rasterize(
        [f["geometry"] for f in made["features"]], (64, 64), transform=there
    )
    assert ((drawn > 0) == truth).all()


def test_polygons_that_raster_vision_cannot_place_at_180_degrees_are_refused(tmp_path):
    "In the Aleutians the way to NAD83 leads back to -180; elsewhere it does nothing."
    for lat, found in ((52, False), (10, True)):
        there = from_origin(179.9999, lat, 1e-5, 1e-5)
        path = tmp_path / f"{lat}.tif"
        image = write_raster(path, np.ones((3, 64, 64), np.uint8), there, "EPSG:4269")
        box = shapely.box(-179.9998, lat - 3e-4, -179.9996, lat - 1e-4)
        label = tmp_path / f"{lat}.geojson"
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:4326").to_file(label)
        scene = Scene("1", image, label)
        if found:
            made = scenes.clean_labels(scene, tmp_path / "o.geojson")
            assert geopandas.read_file(made).total_bounds[0] == pytest.approx(180.0002)
            continue
        with pytest.raises(
            DataError, match=r"across 180 degrees in EPSG:4269.*raster labels"
        ):
            scenes.check_scenes([scene])


@pytest.mark.parametrize(("crs", "there"), [
    ("EPSG:4326", Affine.identity()), ("EPSG:32611", Affine.identity()),
    ("EPSG:4326", from_origin(0, 95, 1, 1)), ("IAU_2015:30100", from_origin(1, 1, 1, 1)),
])  # fmt: skip
def test_a_figure_without_a_place_on_earth_is_in_pixels(tmp_path, crs, there):
    path = write_raster(tmp_path / "a.tif", np.ones((3, 9, 8), np.uint8), there, crs)
    frame = maps.Frame.of(path)
    assert (frame.unit, frame.extent) == ("pixels", (0, 8, 9, 0))


def test_a_figure_on_another_body_is_in_its_metres(tmp_path):
    there = from_origin(1e4, 1e4, 2, 3)
    path = write_raster(
        tmp_path / "a.tif", np.ones((3, 9, 8), np.uint8), there, MOON[1]
    )
    frame = maps.Frame.of(path)
    assert (frame.unit, frame.step) == ("m", (2, 3))


MOON = ["IAU_2015:30100", "IAU_2015:30110"]  # longitude and latitude, a projection


@pytest.mark.parametrize("crs", MOON)
def test_a_place_on_another_body_is_none_on_earth(tmp_path, crs):
    crs = CRS.from_string(crs)
    there = from_origin(10, 10, 1e-4, 1e-4)
    path = write_raster(tmp_path / "a.tif", np.ones((3, 64, 64), np.uint8), there, crs)
    assert np.isnan(Grid(crs, there, (64, 64)).pixel_size()).all()
    assert Grid(crs, there, (64, 64)).on_earth().is_empty
    frame = geopandas.GeoDataFrame(
        geometry=[shapely.box(10.001, 9.995, 10.003, 9.998)], crs=crs.to_wkt()
    )
    assert np.isnan(square_metres(frame.geometry)).all()
    frame.to_file(tmp_path / "a.gpkg")
    scene = Scene("1", path, tmp_path / "a.gpkg")
    table = scenes.check_scenes([scene])
    assert table["share"][0] == pytest.approx(600 / 4096, abs=0.02)
    assert scenes.plot_scene(scene) and len(pairing.outlines({"": [scene]})) == 0
    with pytest.raises(ValueError, match="no longitude and latitude on earth"):
        scenes.clean_labels(scene, tmp_path / "o.geojson")


def test_an_outline_without_a_place_is_left_out(tmp_path):
    beyond = grid(transform=from_origin(1e9, 1e9, 1, 1))
    assert beyond.on_earth().is_empty
    path = write_raster(
        tmp_path / "a.tif", np.ones((1, 9, 9), np.uint8), beyond.transform, UTM
    )
    assert len(pairing.outlines({"train": [Scene("1", path)]})) == 0

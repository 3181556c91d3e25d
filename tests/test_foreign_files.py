"""Files of others: what is chosen is asked for, what is skipped is named, and one bad file hides no other."""

import json
import shutil
import warnings
import zipfile

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from rvtutorial import scenes
from rvtutorial.data import checks, labels
from rvtutorial.engine import prediction
from rvtutorial.scenes import DataError, Scene, check_scenes, find_scenes, find_splits

SIZE = 96
ORIGIN = (-115.31, 36.24)
STEP = 2.7e-6
PLACE = dict(crs="EPSG:4326", transform=from_origin(*ORIGIN, STEP, STEP))


def write_image(path, bands=3, pixels=None, **changes):
    "An image without holes."
    rng = np.random.default_rng(0)
    if pixels is None:
        pixels = rng.integers(1, 255, (bands, SIZE, SIZE)).astype(np.uint8)
    profile = dict(driver="GTiff", count=len(pixels), dtype="uint8") | PLACE
    profile |= dict(width=SIZE, height=SIZE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", **profile | changes) as file:
            file.write(pixels)
    return path


def png(path):
    "A PNG of noise, its bytes."
    pixels = np.random.default_rng(0).integers(1, 255, (3, SIZE, SIZE)).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = dict(driver="PNG", count=3, dtype="uint8", width=SIZE, height=SIZE)
        with rasterio.open(path, "w", **how) as file:
            file.write(pixels)
    return path.read_bytes()


def test_a_png_is_whole_whatever_lies_behind_its_end(tmp_path):
    path = tmp_path / "a.png"
    whole = png(path)
    path.write_bytes(whole + b"x" * 70_000)
    assert check_scenes([Scene("1", path)])["no_data"][0] == 0
    path.write_bytes(whole[: len(whole) // 2] + b"IEND")
    with pytest.raises(DataError, match="cut off"):
        check_scenes([Scene("1", path)])


def test_a_file_of_empty_geometries_only_is_a_scene_without_buildings(tmp_path):
    image = write_image(tmp_path / "i.tif")
    for geometries in ([None, None], [None, {"type": "Polygon", "coordinates": []}]):
        label = geojson(tmp_path / "l.geojson", *geometries)
        table = check_scenes([Scene("1", image, label)])
        assert table["polygons"][0] == 0 and table["share"][0] == 0
        assert "2 without geometry left out" in table["notes"][0]
        made = scenes.clean_labels(Scene("1", image, label), tmp_path / "o.geojson")
        assert json.loads(made.read_text())["features"] == []
    label = geojson(label, None, {"type": "Point", "coordinates": ORIGIN})
    with pytest.raises(DataError, match="no feature is a polygon"):
        check_scenes([Scene("1", image, label)])


def square(column, row, side=20):
    "A square in degrees."
    x, y = ORIGIN[0] + column * STEP, ORIGIN[1] - row * STEP
    return shapely.box(x, y - side * STEP, x + side * STEP, y)


def frame(*shapes, **columns):
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs="EPSG:4326")


def geojson(path, *geometries):
    "A GeoJSON file of geometries as they stand here, right or wrong."
    features = [
        {"type": "Feature", "properties": {}, "geometry": g} for g in geometries
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    path.write_text(text)
    return path


def ring(shape):
    return [list(p) for p in shape.exterior.coords]


GOOD = {"type": "Polygon", "coordinates": [ring(square(10, 10))]}


@pytest.fixture
def pair(tmp_path):
    "A function that checks a label file together with a good scene."
    good = Scene(
        "good", write_image(tmp_path / "g.tif"), geojson(tmp_path / "g.geojson", GOOD)
    )
    image = write_image(tmp_path / "i.tif")

    def check(label, image=image, **how):
        return check_scenes([Scene("bad", image, label, "train"), good], **how)

    return check


def problem(check, *args, **how):
    "The one problem of the bad scene; the other scene was checked as well."
    with pytest.raises(DataError) as err:
        check(*args, **how)
    (told,) = err.value.problems
    assert told.startswith("train bad: ")
    return told


# ---- layers, and other choices ---------------------------------------------------------


@pytest.fixture
def layers(tmp_path):
    "A GeoPackage of two layers with an area, and one of styles."
    path = tmp_path / "two.gpkg"
    frame(square(60, 60), square(10, 60)).to_file(path, layer="parcels")
    frame(square(10, 10)).to_file(path, layer="buildings")
    import pyogrio

    table = geopandas.pd.DataFrame({"style": ["x"]})
    pyogrio.write_dataframe(table, path, layer="layer_styles")
    return path


def test_a_layer_is_asked_for(pair, layers):
    told = problem(pair, layers)
    assert str(layers) in told and "2 layers: parcels, buildings" in told
    assert 'layer="parcels"' in told
    with pytest.raises(DataError, match="two.gpkg has no layer 'houses'.*buildings"):
        pair(layers, layer="houses")


def test_the_layer_is_the_one_that_was_asked_for(layers, tmp_path):
    scene = Scene("a", write_image(tmp_path / "a.tif"), layers)
    for layer, n in (("buildings", 1), ("parcels", 2)):
        table = check_scenes([scene], layer=layer)
        assert table["polygons"][0] == n
        assert table["share"][0] == pytest.approx(n * 400 / SIZE**2, abs=0.01)
        out = scenes.clean_labels(scene, tmp_path / f"{layer}.geojson", layer=layer)
        assert len(json.loads(out.read_text())["features"]) == n
        assert len(scenes.building_sizes([scene], layer=layer)) == n
        title = scenes.plot_scene(scene, layer=layer).axes[0].get_title()
        assert title == f"scene a: {n} buildings"


def test_a_table_of_styles_is_no_layer_of_labels(tmp_path):
    path = tmp_path / "one.gpkg"
    import pyogrio

    pyogrio.write_dataframe(
        geopandas.pd.DataFrame({"style": ["x"]}), path, layer="layer_styles"
    )
    frame(square(10, 10)).to_file(path, layer="buildings")
    scene = Scene("a", write_image(tmp_path / "a.tif"), path)
    assert check_scenes([scene])["polygons"][0] == 1


def test_get_config_takes_the_layer(layers, tmp_path):
    pytest.importorskip("rastervision.pytorch_backend")
    from rvtutorial.config import get_config

    for split, i in (("train", 1), ("train", 2), ("val", 3)):
        write_image(tmp_path / "d" / split / f"i_{i}.tif")
        shutil.copy(layers, tmp_path / "d" / split / f"l_{i}.gpkg")
    asked = dict(image_pattern="i_{id}.tif", label_pattern="l_{id}.gpkg", chip_sz=64)
    asked |= dict(stride_length=64)

    def call(**more):
        return get_config(
            "inprocess", tmp_path / "run", "smoke", tmp_path / "d", **asked | more
        )

    with pytest.raises(ValueError, match="2 layers: parcels, buildings"):
        call()
    assert not (tmp_path / "run").exists()
    call(layer="buildings")
    made = json.loads((tmp_path / "run" / "labels" / "3.geojson").read_text())
    assert len(made["features"]) == 1


def test_links_that_lead_nowhere_are_named(tmp_path):
    write_image(tmp_path / "1.tif")
    (tmp_path / "2.tif").symlink_to(tmp_path / "gone" / "2.tif")
    with pytest.raises(FileNotFoundError, match=r"2.tif is a link to .*gone/2.tif"):
        find_scenes(tmp_path, "{id}.tif", None)


def test_folders_and_hidden_files_are_named(tmp_path):
    write_image(tmp_path / "1.tif")
    (tmp_path / "._1.tif").write_text("x")
    with pytest.warns(UserWarning, match="hidden files are left out: ._1.tif"):
        assert len(find_scenes(tmp_path, "{id}.tif", None)) == 1
    (tmp_path / "3.tif").mkdir()
    with pytest.raises(ValueError, match="3.tif is no file"):
        find_scenes(tmp_path, "{id}.tif", None)


def test_labels_may_lie_in_a_folder_beside_that_of_the_images(tmp_path):
    image = write_image(tmp_path / "images" / "1.tif")
    (tmp_path / "labels").mkdir()
    label = write_image(tmp_path / "labels" / "1.tif", bands=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = find_scenes(tmp_path / "images", "./{id}.tif", "../labels/{id}.tif")
    assert found.image == image and found.label.resolve() == label
    (tmp_path / "labels" / "._1.tif").write_text("x")
    with pytest.warns(
        UserWarning, match="hidden files are left out: ../labels/._1.tif"
    ):
        find_scenes(tmp_path / "images", "{id}.tif", "../labels/{id}.tif")


def points():
    "Three corners."
    x, y = ORIGIN
    corners = ((0, 0), (0, SIZE), (SIZE, 0))
    return [GroundControlPoint(r, c, x + c * STEP, y - r * STEP) for r, c in corners]


def camera():
    "A camera model."
    one = [1.0] + [0.0] * 19
    return RPC(
        height_off=0, height_scale=1, lat_off=36, lat_scale=1, line_den_coeff=one,
        line_num_coeff=one, line_off=0, line_scale=1, long_off=-115, long_scale=1,
        samp_den_coeff=one, samp_num_coeff=one, samp_off=0, samp_scale=1,
    )  # fmt: skip


def unplaced(path, how):
    "An image that is placed by points, or by a camera model, only."
    changes = dict(crs=None, transform=rasterio.Affine.identity())
    if how == "points":
        return write_image(path, **changes | dict(gcps=points(), crs="EPSG:4326"))
    write_image(path, **changes)
    with rasterio.open(path, "r+") as file:
        file.rpcs = camera()
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [("points", "3 ground control points only"), ("camera", "RPCs only")],
)
def test_images_placed_by_points_are_refused_by_name(pair, tmp_path, how, words):
    image = unplaced(tmp_path / "points.tif", how)
    told = problem(pair, geojson(tmp_path / "l.geojson", GOOD), image)
    assert str(image) in told and words in told and "gdalwarp" in told
    assert ("-rpc" in told) == (how == "camera")
    with pytest.raises(ValueError, match=words):
        prediction.Raster(image).look()


def test_a_file_of_several_rasters_is_refused_by_name(pair, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pages = [image.fromarray(np.full((SIZE, SIZE), i, np.uint8)) for i in (10, 20)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    told = problem(pair, geojson(tmp_path / "l.geojson", GOOD), path)
    assert "holds 2 rasters" in told and "GTIFF_DIR:1" in told
    with pytest.raises(ValueError, match="holds 2 rasters"):
        prediction.Raster(path).look()


# ---- words of other libraries --------------------------------------------------------


def test_a_local_reference_system(pair, tmp_path):
    place = dict(crs='LOCAL_CS["site",UNIT["metre",1]]')
    image = write_image(tmp_path / "local.tif", **place)
    told = problem(pair, geojson(tmp_path / "l.geojson", GOOD), image)
    assert str(image) in told or "l.geojson" in told
    assert "coordinate" in told.lower() or "transform" in told.lower()
    label = frame(square(10, 10)).set_crs(place["crs"], allow_override=True)
    label.to_file(tmp_path / "local.gpkg")
    told = problem(pair, tmp_path / "local.gpkg")
    assert "local.gpkg" in told and "cannot be brought" in told


def shapefile(folder, *without):
    "A shapefile of which some parts are missing."
    folder.mkdir()
    frame(square(10, 10), kind=["x"]).to_file(folder / "l.shp")
    for suffix in without:
        (folder / f"l{suffix}").unlink()
    return folder / "l.shp"


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ((".shx",), "lies without its .shx"),
        ((".shx", ".dbf"), "lies without its .dbf and .shx"),
        ((".prj",), "its .prj is missing"),
    ],
)
def test_parts_of_a_shapefile(pair, tmp_path, without, words):
    label = shapefile(tmp_path / "s", *without)
    told = problem(pair, label)
    assert str(label) in told and words in told


def open_ring():
    return {"type": "Polygon", "coordinates": [ring(square(10, 10))[:-1]]}


def test_open_rings_are_closed_with_a_note(pair, tmp_path):
    label = geojson(tmp_path / "l.geojson", open_ring(), GOOD)
    row = pair(label).iloc[0]
    assert row["polygons"] == 2 and "1 rings closed (feature 1)" in row["notes"]
    assert pair(geojson(label, open_ring())).iloc[0]["polygons"] == 1
    out = scenes.clean_labels(
        Scene("a", tmp_path / "i.tif", label), tmp_path / "o.geojson"
    )
    assert shapely.is_valid(shapely.from_geojson(out.read_text()))


def test_collections_within_collections(pair, tmp_path):
    point = {"type": "Point", "coordinates": list(ORIGIN)}
    inner = {"type": "GeometryCollection", "geometries": [GOOD, point]}
    outer = {"type": "GeometryCollection", "geometries": [inner, point]}
    row = pair(geojson(tmp_path / "l.geojson", outer)).iloc[0]
    assert row["polygons"] == 1
    assert row["share"] == pytest.approx(400 / SIZE**2, abs=0.01)


def far(x):
    good = ring(square(10, 10))
    return {"type": "Polygon", "coordinates": [[good[0], [x, good[1][1]], *good[2:]]]}


@pytest.mark.parametrize("x", [1e30, -1e12, float("inf"), float("nan")])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32611"])
def test_vertices_that_are_no_place(pair, tmp_path, x, crs):
    label = geojson(tmp_path / "l.geojson", GOOD, far(x))
    image = tmp_path / "i.tif"
    if crs != "EPSG:4326":
        image = write_image(
            tmp_path / "u.tif", crs=crs, transform=from_origin(651900, 4012000, 1, 1)
        )
    told = problem(pair, label, image)
    assert str(label) in told and "feature 2" in told
    assert labels._is_clean(label, labels.image_info(tmp_path / "i.tif")) is False


def test_a_feature_that_cannot_be_reprojected(pair, tmp_path):
    place = dict(crs="EPSG:32611", transform=from_origin(651900, 4012000, 1, 1))
    image = write_image(tmp_path / "u.tif", **place)
    with rasterio.open(image) as file:
        box = shapely.box(*file.bounds)
    here = geopandas.GeoSeries([box], crs=place["crs"]).to_crs(4326)[0]
    lost = {"type": "Polygon", "coordinates": [[[0, 95], [1, 95], [1, 96], [0, 95]]]}
    label = geojson(tmp_path / "l.geojson", shapely.geometry.mapping(here), lost)
    told = problem(pair, label, image)
    assert "feature 2 cannot be brought" in told


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("l.geojson", b'{"type": "FeatureCollection", "features": 7}', "l.geojson"),
        ("l.geojson", b'{"type": "FeatureCollection"}', "l.geojson"),
        ("l.geojson", b"\xff\xfe{\x00}\x00", "UTF-8"),
        ("l.geojson", b"[" * 100_000, "broken JSON"),
        ("l.geojson", b"\x1f\x8b\x08\x00abc", "UTF-8"),
        ("l.gpkg", b"SQLite format 3\x00" + b"\x00" * 2000, "l.gpkg"),
        ("l.shp", b"\x00\x00\x27\x0a" + b"\x00" * 200, "without its"),
        ("l.tif", b"II*\x00\x08\x00\x00\x00" + b"\x00" * 50, "l.tif"),
    ],
)
def test_broken_label_files_are_named(pair, tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    told = problem(pair, tmp_path / name, label_values="1:building,0:background")
    assert name in told and words in told


@pytest.mark.parametrize("driver", ["PNG", "JPEG", "GTiff"])
@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_rasters_that_are_cut_off(pair, tmp_path, driver, what, share):
    "GDAL reads the first part of a PNG and makes up the rest."
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[:, ::3] = 255
    place = {} if driver == "GTiff" else dict(crs=None, transform=None)
    image = write_image(tmp_path / f"c.{driver}", driver=driver, **place)
    label = write_image(tmp_path / "m.tif", pixels=mask, compress="deflate")
    if what == "label":
        label = write_image(
            tmp_path / f"m.{driver}.png", pixels=mask, driver=driver, **place
        )
        image = tmp_path / "i.tif"
    cut = label if what == "label" else image
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * share)])
    said = "255:building,0:background"
    told = problem(pair, label, image, label_values=said)
    assert str(cut) in told and "cut off" in told


def test_a_transform_that_is_no_grid(pair, tmp_path):
    "From a text of the user, or of a broken tool."
    image = write_image(
        tmp_path / "n.tif", transform=rasterio.Affine(np.nan, 0, 0, 0, -1, 0)
    )
    told = problem(pair, geojson(tmp_path / "l.geojson", GOOD), image)
    assert str(image) in told and "no grid" in told


def test_complex_numbers_are_no_image(pair, tmp_path):
    pixels = np.ones((1, SIZE, SIZE), "complex64")
    image = write_image(tmp_path / "c.tif", pixels=pixels, dtype="complex64")
    told = problem(pair, geojson(tmp_path / "l.geojson", GOOD), image)
    assert str(image) in told and "complex" in told


def test_a_mosaic_without_its_parts_names_them(pair, tmp_path):
    import rasterio.shutil

    part = write_image(tmp_path / "part.tif")
    rasterio.shutil.copy(part, tmp_path / "m.vrt", driver="VRT")
    part.unlink()
    told = problem(pair, geojson(tmp_path / "l.geojson", GOOD), tmp_path / "m.vrt")
    assert "m.vrt" in told and "part.tif" in told


def painted(path, colours):
    "An image of numbers with a palette."
    pixels = np.random.default_rng(0).integers(0, 3, (1, SIZE, SIZE)).astype("uint8")
    write_image(path, pixels=pixels)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (c, c, c, 255) for i, c in enumerate(colours)})
    return path


def test_palettes_of_images_are_mentioned_and_must_be_one(tmp_path):
    one, two = (painted(tmp_path / f"{i}.tif", (5, 90, 200)) for i in (1, 2))
    table = check_scenes([Scene("1", one), Scene("2", two)])
    assert table.notes.str.contains("has a palette: .*-expand rgb").all()
    other = painted(tmp_path / "3.tif", (5, 200, 90))
    with pytest.raises(DataError, match="3: its palette differs from that of scene 1"):
        check_scenes([Scene("1", one), Scene("2", two), Scene("3", other)])


def test_a_zip_without_labels_is_named(pair, tmp_path):
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as file:
        file.writestr("readme.txt", "x")
    assert "l.zip" in problem(pair, tmp_path / "l.zip")


def test_a_file_with_a_byte_order_mark_is_read(pair, tmp_path):
    label = geojson(tmp_path / "l.geojson", GOOD)
    label.write_bytes(b"\xef\xbb\xbf" + label.read_bytes())
    assert pair(label).iloc[0]["polygons"] == 1


def test_an_empty_layer_is_legal(pair, tmp_path):
    frame(square(1, 1)).iloc[:0].to_file(tmp_path / "e.gpkg", layer="buildings")
    row = pair(tmp_path / "e.gpkg").iloc[0]
    assert row["polygons"] == 0 and "no buildings" in row["notes"]


def test_an_unforeseen_error_is_named_too(pair, tmp_path, monkeypatch):
    "Whatever GEOS or PROJ raise: the file is named, the other scene is checked."
    real = shapely.make_valid

    def fails(shapes, *args, **how):
        raise shapely.errors.GEOSException("TopologyException: side location conflict")

    bow = ring(square(10, 10))
    bow[1], bow[2] = bow[2], bow[1]
    label = geojson(tmp_path / "l.geojson", {"type": "Polygon", "coordinates": [bow]})
    monkeypatch.setattr(shapely, "make_valid", fails)
    told = problem(pair, label)
    assert str(label) in told and "side location conflict" in told
    monkeypatch.setattr(shapely, "make_valid", real)
    assert pair(label).iloc[0]["polygons"] == 1


# ---- patterns and names --------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("*{id}.tif", ["img1", "img22"]),
        ("{id}*.tif", ["img1", "img22"]),
        ("img*{id}.tif", ["1", "22"]),
        ("**/{id}.tif", ["a1", "img1", "img22"]),
        ("*/{id}.tif", ["a1"]),
        ("s?b/{id}.tif", ["a1"]),
    ],
)
def test_stars_beside_the_id(tmp_path, pattern, ids):
    for name in ("img1.tif", "img22.tif", "sub/a1.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [s.id for s in find_scenes(tmp_path, pattern, None)] == ids


def test_names_keep_their_place(tmp_path):
    places = [f"Tile {t}/images/image_part_00{k}.tif" for t in (1, 4) for k in (1, 2)]
    for place in [*places, "other/single.tif"]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = prediction.find_images(str(tmp_path / "**" / "*.tif"))
    assert set(found) == {
        "Tile 1_image_part_001", "Tile 1_image_part_002", "Tile 4_image_part_001",
        "Tile 4_image_part_002", "single",
    }  # fmt: skip
    for name, uri in found.items():
        assert "Tile" not in name or name.split("_")[0] in uri


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["a/x/1.tif", "a/y/1.tif", "b/x/1.tif"], {"a_x_1", "a_y_1", "b_x_1"}),
        (["a.v1/1.tif", "a.v2/1.tif"], {"a.v1_1", "a.v2_1"}),
        (["a/1.tif", "a/1.png"], {"1_tif", "1_png"}),
        (["a/b/1.tif", "a/1.tif"], {"b_1", "a_1"}),
        (["x/a/1.tif", "y/b/1.tif", "y/b/1.png"], {"a_1_tif", "b_1_tif", "b_1_png"}),
        (["2024/x/1.tif", "2025/x/1.tif", "2025/x/2.tif"], {"2024_1", "2025_1", "2"}),
    ],
)
def test_the_shortest_path_that_tells_images_apart(tmp_path, places, names):
    root = tmp_path / "r"
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    found = prediction.find_images([root / place for place in places])
    told = {name.removeprefix("r_") for name in found}
    assert told == names and len(found) == len(places)


# ---- a band that is tagged alpha -----------------------------------------------------


def near_infrared(folder):
    "Four bands of bytes, of which GDAL takes the fourth for alpha; in places it is 0."
    found = {}
    for split, i in (("train", 1), ("train", 2), ("val", 3)):
        rng = np.random.default_rng(i)
        pixels = rng.integers(1, 255, (4, SIZE, SIZE)).astype(np.uint8)
        pixels[3, :30, :30] = 0
        path = write_image(
            folder / split / f"i_{i}.tif", pixels=pixels, photometric="RGB", ALPHA="YES"
        )
        geojson(folder / split / f"l_{i}.geojson", GOOD)
        found[str(i)] = path, pixels
    return found


def test_a_band_that_was_asked_for_is_a_band(tmp_path):
    pytest.importorskip("rastervision.pytorch_backend")
    from rastervision.pipeline.file_system import get_tmp_dir

    from rvtutorial.config import get_config
    from rvtutorial.engine.reading import build_scene

    written = near_infrared(tmp_path / "d")
    names = dict(image_pattern="i_{id}.tif", label_pattern="l_{id}.geojson")
    table = check_scenes(find_splits(tmp_path / "d", *names.values()))
    assert "band 4 is taken as alpha" in table["notes"][0]
    assert 'bands="1,2,3,4"' in table["notes"][0]

    def call(folder, **more):
        asked = names | dict(chip_sz=64, stride_length=64) | more
        return get_config(
            "inprocess", tmp_path / folder, "smoke", tmp_path / "d", **asked
        )

    three = call("three")
    assert three.dataset.train_scenes[0].raster_source.channel_order == [0, 1, 2]
    cfg = call("four", bands="1,2,3,4")
    assert len(cfg.backend.data.base_transform["transform"]["mean"]) == 4
    with get_tmp_dir() as tmp:
        for scene in cfg.dataset.all_scenes:
            pixels = np.moveaxis(written[scene.id][1], 0, -1)
            stock = scene.raster_source.build(tmp)
            assert np.array_equal(stock.get_chip(stock.extent), pixels)
            scene.label_store = None
            ours = build_scene(scene, cfg.dataset.class_config, tmp).raster_source
            assert np.array_equal(ours.get_chip(ours.extent), pixels)
    val = cfg.dataset.validation_scenes[0].label_source.raster_source
    made = json.loads(open(val.vector_source.uris).read())["features"]
    null = [f for f in made if f["properties"].get("class_id") == 2]
    assert not null  # where the fourth band is 0, the others hold data


def test_bands_that_are_not_there(tmp_path):
    near_infrared(tmp_path / "d")
    splits = find_splits(tmp_path / "d", "i_{id}.tif", "l_{id}.geojson")

    def order(bands):
        every = [scene for found in splits.values() for scene in found]
        headers = {scene.id: labels.image_info(scene.image) for scene in every}
        return checks._band_order(bands, headers)

    with pytest.raises(ValueError, match="from 1 to 4"):
        order("5")
    assert order(None) == [0, 1, 2]
    path = splits["train"][0].image
    with rasterio.open(path, "r+") as file:
        ci = rasterio.enums.ColorInterp
        file.colorinterp = [ci.red, ci.green, ci.blue, ci.undefined]
    with pytest.raises(ValueError, match="different bands as alpha.*scene 1: 1,2,3,4"):
        order(None)
    assert order("4,1") == [3, 0]


def test_alpha_need_not_be_the_last_band(tmp_path):
    path = write_image(tmp_path / "a.tif", bands=4)
    ci = rasterio.enums.ColorInterp
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ci.alpha, ci.red, ci.green, ci.blue]
    assert checks._band_order(None, {"a": labels.image_info(path)}) == [1, 2, 3]

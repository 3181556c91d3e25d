"""Data as people have it: colours, one label file, folders of tiles, areas of one image, bands."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from rvtutorial import scenes
from rvtutorial.core.record import read_json
from rvtutorial.data.pairing import DataError, check_scenes, find_scenes, find_splits

SIDE, HERE = 64, (700000.0, 5000000.0)  # pixels; metres in UTM zone 32
SMALL = dict(chip_sz=32, stride_length=32, max_windows=2, epochs=1, scores="none")
BUILDING, ROAD, LAND = (60, 16, 152), (110, 193, 228), (132, 41, 246)
NAMES = dict(building=BUILDING, road=ROAD, background=LAND)


@pytest.fixture(autouse=True)
def quiet_threads(one_thread):
    pass


def write(path, pixels, where=None, driver="GTiff", **more):
    "A raster; `where` is its upper left corner in metres, None: no place."
    pixels = np.asarray(pixels, np.uint8 if pixels.dtype == bool else None)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    how = dict(driver=driver, count=len(pixels), dtype=pixels.dtype)
    if where is not None:
        how |= dict(crs="EPSG:32632", transform=from_origin(*where, 1, 1))
    high, wide = pixels.shape[1:]
    with rasterio.open(path, "w", width=wide, height=high, **how) as file:
        file.write(pixels)
        for name, value in more.items():
            setattr(file, name, value)
    return path


def things(seed, side=SIDE):
    "Where buildings and roads are: (building, road), bool."
    rng = np.random.default_rng(seed)
    building, road = np.zeros((2, side, side), bool)
    for _ in range(max(3, side // 16)):
        y, x = rng.integers(2, side - 14, 2)
        building[y : y + 10, x : x + 12] = True
    road[:, side // 2 : side // 2 + 4] = True
    return building, road & ~building


def image_of(seed, bands=3, dtype="uint8", side=SIDE):
    building, road = things(seed, side)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(20, 60, (bands, side, side))
    return (pixels + 150 * building + 80 * road).astype(dtype)


def mask_of(seed, names=NAMES, side=SIDE):
    "A mask of colours."
    building, road = things(seed, side)
    out = np.empty((3, side, side), np.uint8)
    out[:] = np.reshape(names["background"], (3, 1, 1))
    for name, there in (("road", road), ("building", building)):
        out[:, there] = np.reshape(names[name], (3, 1))
    return out


def polygons(path, boxes, crs="EPSG:32632"):
    "Boxes (left, top, right, bottom in metres) as GeoJSON in longitude and latitude."
    features = []
    for left, top, right, bottom in boxes:
        ring = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        shape = {"type": "Polygon", "coordinates": [ring]}
        shape = transform_geom(crs, "EPSG:4326", shape)
        features.append({"type": "Feature", "properties": {}, "geometry": shape})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def get_config(tmp_path, data, **asked):
    pytest.importorskip("rastervision.pytorch_backend")
    from rvtutorial.config import get_config

    return get_config("inprocess", tmp_path / "run", "smoke", data, **SMALL | asked)


def finished(config):
    "Train, predict and evaluate; the classes' F1 and the folder."
    from rvtutorial import engine

    folder = engine.run(config, progress=False, onnx=False)
    with open(folder / "eval/validation_scenes/eval.json") as file:
        assert json.load(file)["overall"]
    return folder


def labels_of(config):
    "{scene id: class ids} as Raster Vision itself reads them."
    from rastervision.pipeline.file_system import get_tmp_dir

    found = {}
    with get_tmp_dir() as tmp:
        for scene in config.dataset.all_scenes:
            alone = scene.copy()
            alone.label_store = None
            built = alone.build(config.dataset.class_config, tmp)
            found[scene.id] = built.label_source.get_label_arr()
    return found


def folders(root, images="images/i_{}.jpg", masks="masks/m_{}.png", numbers=(1, 2, 3)):
    "Photographs and masks of colours that know no place."
    for i in numbers:
        write(root / images.format(i), image_of(i), driver="JPEG")
        write(root / masks.format(i), mask_of(i), driver="PNG")
    return root


def split(root, image, label, **how):
    "The user's lines: find, split, keep as a table."
    found = scenes.split_scenes(scenes.find_scenes(root, image, label), n_val=1, **how)
    return scenes.write_table(found, root / "scenes.csv")


@pytest.mark.slow
def test_colours_without_a_place(tmp_path):
    table = split(folders(tmp_path / "d"), "images/i_{id}.jpg", "masks/m_{id}.png")
    values = {"building": "#3C1098", "road": (110, 193, 228), "background": LAND}
    config = get_config(
        tmp_path, table, classes="building,road,background", label_values=values
    )
    found = labels_of(config)
    for i in ("1", "2", "3"):
        building, road = things(int(i))
        assert (found[i] == np.where(building, 0, np.where(road, 1, 2))).all()
    finished(config)
    again = dict(classes="building,road,background")
    again["label_values"] = "#3C1098:building, #6ec1e4:road, #8429F6:background"
    get_config(tmp_path, table, **again)  # another way to write it is the same run


@pytest.mark.parametrize(
    "said",
    [
        "building:#3C1098,road:#6EC1E4,background:#8429F6",
        {"building": "#3c1098ff", "road": "#6EC1E4", "background": [132, 41, 246, 255]},
        {BUILDING: "building", ROAD: "road", LAND: "background"},
        {"building": [BUILDING], "road": [ROAD], "background": {LAND}},
    ],
)
def test_colours_can_be_said_in_many_ways(tmp_path, said):
    root = folders(tmp_path)
    names = dict(classes=["building", "road", "background"], label_values=said)
    table = check_scenes(
        find_scenes(root, "images/i_{id}.jpg", "masks/m_{id}.png"), **names
    )
    assert "#3C1098 building" in table.notes[0] and (table.share > 0.05).all()


def test_an_unnamed_colour_is_refused_with_the_line_to_add(tmp_path):
    root = folders(tmp_path)
    said = {"building": BUILDING, "background": LAND}
    found = find_scenes(root, "images/i_{id}.jpg", "masks/m_{id}.png")
    with pytest.raises(DataError) as caught:
        check_scenes(found, label_values=said)
    pixels = int(things(1)[1].sum())
    text = str(caught.value)
    assert "m_1.png holds colours that mean no class" in text
    assert f"#6EC1E4 ({pixels} pixels" in text and "#6EC1E4:null" in text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"building": (60, 16, 152, 0), "background": LAND}, "not opaque"),
        (
            {"building": (60, 16, 300), "background": LAND},
            "numbers or colours, not both",
        ),
        ({"building": BUILDING, "road": BUILDING}, "names the class 'road'"),
        ({"building": BUILDING, "background": BUILDING}, "#3C1098 is building and"),
    ],
)
def test_colours_that_cannot_be(tmp_path, said, words):
    root = folders(tmp_path, numbers=(1,))
    found = find_scenes(root, "images/i_{id}.jpg", "masks/m_{id}.png")
    with pytest.raises(ValueError, match=words):
        check_scenes(found, label_values=said)


def mosaic(root, label="labels.geojson"):
    "Four images side by side, and one file with a box of 12 m in three of them."
    left, top = HERE
    for i, name in enumerate(("train/1", "train/2", "train/3", "val/4")):
        corner = left + i * SIDE, top
        write(root / f"{name}.tif", image_of(i), corner)
    left, top = left + 0.3, top - 0.3  # Raster Vision floors vertices
    boxes = [(left + x, top - 20, left + x + 12, top - 32) for x in (10, 74, 230)]
    return polygons(root / label, boxes)


@pytest.mark.slow
def test_one_label_file_for_all_images(tmp_path):
    mosaic(tmp_path / "d")
    config = get_config(
        tmp_path,
        tmp_path / "d",
        image_pattern="{id}.tif",
        label_pattern="labels.geojson",
    )
    found = labels_of(config)
    assert {i: int((a == 0).sum()) for i, a in found.items()} == {
        "1": 144, "2": 144, "3": 0, "4": 144
    }  # fmt: skip
    folder = finished(config)
    assert len(read_json(folder / "labels/1.geojson")["features"]) == 1  # its own


def test_one_label_file_says_what_each_image_takes(tmp_path):
    mosaic(tmp_path)
    table = check_scenes(find_splits(tmp_path, "{id}.tif", "labels.geojson"))
    assert table.polygons.tolist() == [1, 1, 0, 1]
    assert table.notes[2] == "no buildings"
    assert len(scenes.building_sizes(find_scenes(tmp_path / "train", "{id}.tif", "../labels.geojson"))) == 2  # fmt: skip
    splits = find_splits(tmp_path, "{id}.tif", "labels.geojson")
    named = find_splits(scenes.write_table(splits, tmp_path / "t.csv"))
    assert [s.shared for s in named["train"]] == [True] * 3


def test_one_label_file_of_another_place_is_refused(tmp_path):
    mosaic(tmp_path)
    polygons(tmp_path / "labels.geojson", [(0, 0, 9, -9)])
    with pytest.raises(DataError, match="nothing of .*labels.geojson lies on any of 4"):
        check_scenes(find_splits(tmp_path, "{id}.tif", "labels.geojson"))
    shutil.copy(tmp_path / "labels.geojson", tmp_path / "train")
    with pytest.raises(ValueError, match="both .* may be meant"):
        find_splits(tmp_path, "{id}.tif", "labels.geojson")
    with pytest.raises(
        FileNotFoundError, match="no label file .*names one file for all"
    ):
        find_splits(tmp_path, "{id}.tif", "label.geojson")
    write(tmp_path / "mask.png", things(1)[0], driver="PNG")
    with pytest.raises(ValueError, match="one label raster for 3 images"):
        find_splits(tmp_path, "{id}.tif", "mask.png")


def test_a_table_names_one_label_raster_for_images_of_one_place_only(tmp_path):
    write(tmp_path / "mask.tif", things(1)[0], HERE)
    for place, name in ((None, "png"), (HERE, "tif")):
        for i in (1, 2, 3):
            driver = "PNG" if name == "png" else "GTiff"
            write(tmp_path / f"{i}.{name}", image_of(i), place, driver)
        rows = [f"{s},{i},{i}.{name},mask.tif" for i, s in ((1, "train"), (2, "train"), (3, "val"))]  # fmt: skip
        text = "\n".join(["split,id,image,label", *rows])
        (tmp_path / f"{name}.csv").write_text(text)
    with pytest.raises(ValueError, match="mask.tif is one label raster for 3 images"):
        find_splits(tmp_path / "png.csv")
    several_dates = find_splits(tmp_path / "tif.csv")
    assert len(check_scenes(several_dates, label_values=PLAIN["label_values"])) == 3


TILES = dict(
    images="Tile {0}/images/part_{0}1.jpg", masks="Tile {0}/masks/part_{0}1.png"
)
TWO = "Tile {tile}/images/part_{part}.jpg", "Tile {tile}/masks/part_{part}.png"


@pytest.mark.slow
def test_folders_of_tiles(tmp_path):
    table = split(folders(tmp_path / "d", **TILES), *TWO)
    values = {"building": BUILDING, "road": ROAD, "background": LAND}
    classes = "building,road,background"
    finished(get_config(tmp_path, table, classes=classes, label_values=values))


def test_names_of_several_parts(tmp_path):
    root = folders(tmp_path, **TILES)
    found = find_scenes(root, *TWO)
    assert [s.id for s in found] == ["1_11", "2_21", "3_31"]
    assert found[0].parts == {"tile": "1", "part": "11"}
    turned = find_scenes(root, TWO[0], "T* {tile}/masks/p*_{part}.png")
    assert [s.label for s in turned] == [s.label for s in found]
    more = folders(tmp_path / "e", "Tile 1/{}.jpg", "Tile 1/{}.png", numbers=(1, 2))
    folders(more, "Tile 2/{}.jpg", "Tile 2/{}.png", numbers=(1, 2))
    parts = find_scenes(more, "Tile {tile}/{part}.jpg", "Tile {tile}/{part}.png")
    splits = scenes.split_scenes(parts, n_val=1, by="tile")
    assert {s.parts["tile"] for s in splits["train"]} != {
        s.parts["tile"] for s in splits["val"]
    }
    assert [len(some) for some in splits.values()] == [2, 2, 0]
    with pytest.raises(ValueError, match="2 groups of one tile cannot give 2"):
        scenes.split_scenes(parts, n_val=2, by="tile")
    with pytest.raises(ValueError, match="by='town' must be .* has tile, part"):
        scenes.split_scenes(parts, n_val=1, by="town")
    with pytest.raises(ValueError, match="the same names in braces"):
        find_scenes(root, TWO[0], "Tile {tile}/masks/part_{piece}.png")
    with pytest.raises(ValueError, match="exactly once, or other names"):
        find_scenes(root, "Tile {tile}/images/part_{tile}1.jpg", None)
    (root / "Tile 2/masks/part_21.png").unlink()
    with pytest.raises(FileNotFoundError, match="images without labels: 2_21"):
        find_scenes(root, *TWO)


def test_names_in_capitals_are_found(tmp_path):
    for i, end in enumerate(("tif", "TIF", "Tif")):
        write(tmp_path / f"{i}.{end}", image_of(i))
        write(tmp_path / f"{i}_{('mask', 'Mask')[i // 2]}.{end}", things(i)[0])
    found = find_scenes(tmp_path, "{id}.tif", "{id}_mask.tif")
    assert [(s.id, s.label.name) for s in found] == [
        ("0", "0_mask.tif"), ("1", "1_mask.TIF"), ("2", "2_Mask.Tif")
    ]  # fmt: skip
    assert found[1].parts == {"id": "1"}
    write(tmp_path / "1.tif", image_of(1))
    with pytest.raises(ValueError, match="several images for one id: 1"):
        find_scenes(tmp_path, "{id}.tif", "{id}_mask.tif")
    write(tmp_path / "e/a.TIF", image_of(1))  # the ends tell images and labels apart
    write(tmp_path / "e/a.tif", things(1)[0])
    alone = find_scenes(tmp_path / "e", "{id}.TIF", "{id}.tif")
    assert [(s.image.name, s.label.name) for s in alone] == [("a.TIF", "a.tif")]


def big_tile(root, raster=False):
    "One image of 128 pixels, with labels."
    image = write(root / "tile.tif", image_of(7, side=128), HERE)
    if raster:
        mask = np.where(things(7, 128)[0], 255, 0).astype(np.uint8)
        return image, write(root / "mask.tif", mask, HERE)
    left, top = HERE[0] + 0.3, HERE[1] - 0.3  # Raster Vision floors vertices
    boxes = [(left + x, top - y, left + x + 12, top - y - 12)
             for x in (10, 40, 80, 108) for y in (10, 40, 80, 108)]  # fmt: skip
    return image, polygons(root / "labels.geojson", boxes)


def area(path, points):
    "A polygon of pixels of the big tile, as GeoJSON."
    left, top = HERE
    ring = [(left + x, top - y) for x, y in [*points, points[0]]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    shape = transform_geom("EPSG:32632", "EPSG:4326", shape)
    feature = {"type": "Feature", "properties": {}, "geometry": shape}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


@pytest.mark.slow
@pytest.mark.parametrize("raster", [False, True])
def test_quarters_of_one_tile(tmp_path, raster):
    image, label = big_tile(tmp_path, raster)
    splits = scenes.split_by_area(image, label, "quarters", tmp_path / "areas")
    table = scenes.write_table(splits, tmp_path / "scenes.csv")
    said = dict(label_values={"building": 255, "background": 0}) if raster else {}
    config = get_config(tmp_path, table, **said)
    found = labels_of(config)
    names = ["tile-train-1", "tile-train-2", "tile-val", "tile-test"]
    assert list(found) == names and {a.shape for a in found.values()} == {(64, 64)}
    if raster:
        whole = np.where(things(7, 128)[0], 0, 1)
        assert (found["tile-test"] == whole[64:, 64:]).all()
        assert (found["tile-val"] == whole[:64, 64:]).all()
    else:
        assert {int((a == 0).sum()) for a in found.values()} == {4 * 144}
    finished(config)


@pytest.mark.slow
def test_areas_that_are_no_rectangles(tmp_path):
    image, label = big_tile(tmp_path)
    areas = {
        "train": area(
            tmp_path / "train.geojson", [(0, 0), (60, 0), (60, 120), (20, 128)]
        ),
        "val": area(tmp_path / "val.geojson", [(64, 0), (128, 0), (128, 128)]),
    }
    splits = scenes.split_by_area(image, label, areas, tmp_path / "areas")
    table = scenes.write_table(splits, tmp_path / "scenes.csv")
    config = get_config(tmp_path, table)
    assert scenes.leaks(scenes.outlines(splits)) == []
    train, val = config.dataset.all_scenes
    assert train.aoi_uris and not val.aoi_uris
    found = labels_of(config)
    seen = found["tile-val"] != 2
    assert found["tile-val"].shape == (128, 64) and seen.mean() == pytest.approx(
        0.5, abs=0.01
    )
    assert seen[2, -3] and not seen[-3, 2]
    assert (found["tile-train"] != 2).all()  # chips lie within
    folder = finished(config)
    with pytest.raises(ValueError, match="needs null=ignore"):
        get_config(tmp_path / "other", table, null="class")
    narrow = {
        **areas,
        "train": area(tmp_path / "n.geojson", [(0, 0), (40, 0), (0, 60)]),
    }
    splits = scenes.split_by_area(image, label, narrow, tmp_path / "narrow")
    table = scenes.write_table(splits, tmp_path / "narrow.csv")
    with pytest.raises(
        ValueError, match="no chip of 32 x 32 pixels fits into its area"
    ):
        get_config(tmp_path / "other", table)
    assert folder.is_dir() and not (tmp_path / "other").exists()
    from rvtutorial.config import get_config as get_any

    fitted = get_any("inprocess", tmp_path / "own", "own", table, label_values=None)
    assert fitted.backend.data.img_sz == 24  # the widest square of that triangle


def test_areas_that_overlap_are_refused(tmp_path):
    image, label = big_tile(tmp_path)
    areas = {
        "train": area(tmp_path / "a.geojson", box(0, 0, 64, 128)),
        "val": area(tmp_path / "b.geojson", box(48, 0, 112, 128)),
    }
    with pytest.raises(
        ValueError, match="train and val overlap: 25.0% .* 2,048 pixels"
    ):
        scenes.split_by_area(image, label, areas, tmp_path / "areas")
    assert not (tmp_path / "areas").exists()
    areas["val"] = area(tmp_path / "b.geojson", box(64, 0, 140, 128))
    splits = scenes.split_by_area(image, label, areas, tmp_path / "areas")
    assert [s.aoi for some in splits.values() for s in some] == [None, None]
    shapes = [
        scenes.image_info(s.image).shape for some in splits.values() for s in some
    ]
    assert shapes == [(128, 64), (128, 64)]
    with pytest.raises(ValueError, match="areas must be"):
        scenes.split_by_area(image, label, "halves", tmp_path / "areas")


def test_a_part_of_a_virtual_raster_shows_its_pixels_or_is_refused(tmp_path):
    import rasterio.shutil
    from rasterio.vrt import WarpedVRT

    pixels = np.arange(128 * 128).reshape(128, 128) % 251 + 1
    image = write(tmp_path / "big.tif", pixels.astype(np.uint8), HERE)
    rasterio.shutil.copy(image, tmp_path / "plain.vrt", driver="VRT")
    splits = scenes.split_by_area(
        tmp_path / "plain.vrt", None, "quarters", tmp_path / "a"
    )
    with rasterio.open(splits["test"][0].image) as file:
        assert (file.read(1) == pixels[64:, 64:]).all()
    with rasterio.open(image) as file, WarpedVRT(file, crs="EPSG:32632") as warped:
        rasterio.shutil.copy(warped, tmp_path / "warped.vrt", driver="VRT")
    with pytest.raises(
        ValueError, match="VRTWarpedDataset, .*gdal_translate 'warped.vrt'"
    ):
        scenes.split_by_area(tmp_path / "warped.vrt", None, "quarters", tmp_path / "b")
    plain = (tmp_path / "plain.vrt").read_text()
    start, end = plain.index("<DstRect"), plain.index("</SimpleSource>")
    (tmp_path / "whole.vrt").write_text(plain[:start] + plain[end:])
    with pytest.raises(ValueError, match="whose sources have no place"):
        scenes.split_by_area(tmp_path / "whole.vrt", None, "quarters", tmp_path / "c")
    assert not [*tmp_path.glob("[bc]/*")]


def test_parts_of_another_image_are_not_overwritten(tmp_path):
    images = [big_tile(tmp_path / name)[0] for name in "ab"]
    folder = tmp_path / "areas"
    splits = scenes.split_by_area(images[0], None, "quarters", folder)
    assert splits == scenes.split_by_area(images[0], None, "quarters", folder)
    words = (
        "tile-train-1.vrt is there already and shows 64 x 64 .*/a/tile.tif; .*/b/tile"
    )
    with pytest.raises(ValueError, match=words):
        scenes.split_by_area(images[1], None, "quarters", folder)
    areas = {
        "train": area(tmp_path / "t.geojson", [(1.5, 1.5), (59.5, 1.5), (1.5, 99.5)]),
        "val": area(tmp_path / "v.geojson", box(70, 0, 100, 60)),
    }
    with pytest.raises(ValueError, match="column 64, row 0 of .* column 70, row 0"):
        scenes.split_by_area(images[0], None, areas, folder)
    scenes.split_by_area(images[1], None, areas, tmp_path / "b")
    scenes.split_by_area(images[1], None, areas, tmp_path / "b")
    area(tmp_path / "t.geojson", [(1.5, 1.5), (59.5, 99.5), (1.5, 99.5)])
    with pytest.raises(ValueError, match="tile-train.geojson holds another area"):
        scenes.split_by_area(images[1], None, areas, tmp_path / "b")


TILE = "t/OAM-{x}-{y}-{z}.png"


def map_tiles(root):
    "Four tiles of a web map around one corner, and one file with a box in each."
    x, y, z = 1_250_000, 1_040_000, 21
    for n, (dx, dy) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        name = TILE.format(x=x + dx, y=y + dy, z=z)
        write(root / name, image_of(n), driver="PNG")
    one = 40075016.685578488 / 2**z
    left, top = x * one - 20037508.342789244, 20037508.342789244 - y * one
    boxes = [
        (left + i * one + 0.2 * one, top - j * one - 0.2 * one,
         left + i * one + 0.4 * one, top - j * one - 0.4 * one)
        for i in (0, 1) for j in (0, 1)
    ]  # fmt: skip
    return polygons(root / "labels.geojson", boxes, "EPSG:3857")


@pytest.mark.slow
def test_tiles_of_a_web_map(tmp_path):
    map_tiles(tmp_path)
    found = scenes.find_scenes(tmp_path, TILE, "labels.geojson")
    placed = scenes.place_tiles(found, tmp_path / "placed")
    table = scenes.write_table(scenes.split_scenes(placed, 1), tmp_path / "scenes.csv")
    config = get_config(tmp_path, table)
    for pixels in labels_of(config).values():
        rows, columns = np.nonzero(pixels == 0)
        assert {rows.min(), columns.min()} == {12} and {rows.max(), columns.max()} <= {
            24,
            25,
        }
    finished(config)


def test_names_that_are_no_tiles(tmp_path):
    write(tmp_path / "a/1-9-2.png", image_of(1), driver="PNG")
    for pattern, words in (
        ("a/{x}-{y}-{z}.png", "no tile x=1, y=9 at zoom z=2, .* from 0 to 3"),
        ("a/{x}-{y}-2.png", r"whole numbers for \{x\}, \{y\} and \{z\}"),
    ):
        with pytest.raises(ValueError, match=words):
            scenes.place_tiles(scenes.find_scenes(tmp_path, pattern, None), tmp_path)


def bands_set(root, names=("blue", "green", "red", "nir"), count=4, dtype="uint16"):
    "Images whose bands have names and ranges of their own, and masks of numbers."
    for n, folder in enumerate(("train", "train", "val"), 1):
        pixels = image_of(n, count, dtype)
        pixels = (pixels * np.arange(1, count + 1).reshape(-1, 1, 1)).astype(dtype)
        more = {"descriptions": names} if names else {}
        write(root / folder / f"{n}.tif", pixels, HERE, **more)
        write(root / folder / f"{n}_mask.tif", things(n)[0], HERE)
    return root


PLAIN = dict(image_pattern="{id}.tif", label_pattern="{id}_mask.tif")
PLAIN["label_values"] = {"building": 1, "background": 0}


@pytest.mark.slow
def test_bands_by_name_and_ranges_by_band(tmp_path):
    data = bands_set(tmp_path / "d")
    asked = PLAIN | dict(bands="nir,Red,green", scaling="40:800,30:600,20:400")
    config = get_config(tmp_path, data, **asked)
    scene = config.dataset.train_scenes[0]
    assert scene.raster_source.channel_order == [3, 2, 1]
    scaled = config.backend.data.base_transform["transform"]
    assert list(scaled["mean"]) == [420, 315, 210] and list(scaled["std"]) == [
        190,
        142.5,
        95,
    ]
    finished(config)
    get_config(tmp_path, data, **asked | {"scaling": [(40, 800), (30, 600), (20, 400)]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "dtype"), [(1, "uint8"), (4, "uint16"), (3, "float32")]
)
def test_any_number_of_bands(tmp_path, count, dtype):
    data = bands_set(tmp_path / "d", None, count, dtype)
    finished(get_config(tmp_path, data, **PLAIN))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"bands": "red,swir"},
            "bands names swir, and .*1.tif names its bands 1: blue, 2",
        ),
        ({"bands": "red,5"}, "bands must be from 1 to 4"),
        ({"scaling": "0:1,0:2,0:3"}, "each of the 4 bands that are used, .* got 3"),
        ({"scaling": "0:1,3:2"}, "scaling must be percentiles, none, a range LO,HI"),
        ({"scaling": "0:1,3"}, "scaling must be"),
    ],
)
def test_bands_that_cannot_be(tmp_path, asked, words):
    with pytest.raises(ValueError, match=words):
        get_config(tmp_path, bands_set(tmp_path / "d"), **PLAIN | asked)
    assert not (tmp_path / "run").exists()


def test_bands_in_another_order_are_refused(tmp_path):
    data = bands_set(tmp_path / "d")
    with rasterio.open(data / "val/3.tif", "r+") as file:
        file.descriptions = ("red", "green", "blue", "nir")
    with pytest.raises(
        ValueError, match="same bands in all .* 3,2 in .* 1,2 in .*3.tif"
    ):
        get_config(tmp_path, data, **PLAIN, bands="red,green")


@pytest.mark.slow
def test_new_images_are_read_by_the_names_of_their_bands(tmp_path, capsys):
    from rvtutorial import engine

    config = get_config(
        tmp_path, bands_set(tmp_path / "d"), **PLAIN, bands="red,green,blue"
    )
    run = engine.run(config, ["train"], progress=False)
    capsys.readouterr()
    order, names = [3, 1, 0, 2], np.array(["blue", "green", "red", "nir"])
    pixels = image_of(9, 4, "uint16") * np.arange(1, 5, dtype="uint16").reshape(
        -1, 1, 1
    )
    same = write(tmp_path / "same.tif", pixels, HERE)
    other = write(
        tmp_path / "other.tif", pixels[order], HERE, descriptions=names[order].tolist()
    )
    with rasterio.open(other, "r+") as file:
        file.transform = from_origin(*HERE, 10, 10)
    how = dict(progress=False, scores="float32", polygons=False)
    maps = engine.predict(run, [same, other], tmp_path / "maps", **how)
    told = capsys.readouterr().err
    one, two = (rasterio.open(f"{f}/scores.tif").read() for f in maps.folder)
    assert (one == two).all() and one.std() > 0
    assert (
        "other.tif: its bands 4, 2, 3 are read, which it calls red, green, blue" in told
    )
    assert "other.tif: 10 m, in training 1 m" in told and "same.tif" not in told
    asked = engine.predict(run, other, tmp_path / "asked", bands=[2, 1, 0], **how)
    three = rasterio.open(f"{asked.folder.iloc[0]}/scores.tif").read()
    assert not (three == one).all()  # what is asked for counts


CLASSES = dict(classes="building,road,background", class_field="kind")


ONE_FILE = dict(image_pattern="{id}.tif", label_pattern="labels.geojson")


def kinds(root, *values):
    "A mosaic whose polygons say what they are."
    path = mosaic(root)
    made = json.loads(path.read_text())
    for feature, kind in zip(made["features"], values, strict=True):
        feature["properties"]["kind"] = kind
    path.write_text(json.dumps(made))
    return root


@pytest.mark.slow
def test_classes_from_an_attribute_of_one_file(tmp_path):
    data = kinds(tmp_path / "d", "road", "building", "road")
    config = get_config(tmp_path, data, **ONE_FILE, **CLASSES)
    found = {i: sorted(np.unique(a).tolist()) for i, a in labels_of(config).items()}
    assert found == {"1": [1, 2], "2": [0, 2], "3": [2], "4": [1, 2]}
    finished(config)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            dict(classes="building,Background"),
            "'Background' is not 'background', so write classes=building,background$",
        ),
        (
            dict(classes="building,other"),
            "outside polygons: classes=building,background; all polygons would be building",
        ),
        (
            dict(classes="building,road,background"),
            "none road: say which attribute holds the class, class_field=NAME",
        ),
        (
            dict(classes="building,road", class_field="kind"),
            "classes=building,road,background, or .* classes=building,road,null$",
        ),
        (dict(classes="building,null"), "outside polygons: classes=building,back"),
    ],
)
def test_classes_that_polygons_cannot_fill(tmp_path, asked, words):
    data = kinds(tmp_path / "d", "road", "building", "road")
    with pytest.raises(ValueError, match=words):
        get_config(tmp_path, data, **ONE_FILE, **asked)
    assert not (tmp_path / "run").exists()


def test_settings_of_other_labels_are_refused(tmp_path):
    data = kinds(tmp_path / "d", "road", "building", "road")
    numbers = dict(label_values="1:building,0:background")
    with pytest.raises(
        ValueError, match="^label_values=.* is for labels that are rasters"
    ):
        get_config(tmp_path, data, **ONE_FILE, **numbers)
    rasters = dict(image_pattern="{id}.tif", label_pattern="{id}_mask.png")
    for i, image in enumerate(sorted(data.rglob("*.tif"))):
        write(image.with_name(f"{image.stem}_mask.png"), mask_of(i))
    for name in ("class_field", "layer"):
        with pytest.raises(
            ValueError, match=f"^{name}=kind is for labels that are poly"
        ):
            get_config(tmp_path, data, **rasters, **{name: "kind"})
    assert not (tmp_path / "run").exists()


def test_colours_of_classes_that_are_polygons(tmp_path):
    data = kinds(tmp_path / "d", "road", "building", "road")
    asked = "building:#FF0000,road:#00FF00,background:#000000"
    config = get_config(tmp_path, data, **ONE_FILE, classes=asked, class_field="kind")
    assert config.dataset.class_config.colors[:2] == ["#FF0000", "#00FF00"]


def test_outside_polygons_may_be_left_out_when_that_is_asked_for(tmp_path):
    data = kinds(tmp_path / "d", "road", "building", "road")
    asked = dict(classes="building,road,null", class_field="kind")
    found = labels_of(get_config(tmp_path, data, **ONE_FILE, **asked))
    assert sorted(np.unique(found["1"]).tolist()) == [1, 2]


def tiles_of_one_place(root, numbers, step):
    "Images that begin `step` metres after another, and masks."
    for i in numbers:
        place = HERE[0] + i * step, HERE[1]
        write(root / f"{i}.tif", image_of(i), place)
        write(root / f"{i}_mask.tif", things(i)[0], place)


def test_scenes_that_share_ground_stay_on_one_side(tmp_path, capsys):
    from rvtutorial.config import get_config as get_any

    own = dict(encoder="none", pretrained=False, epochs=1, budget="none", **PLAIN)
    own |= dict(model="unet", chip_sz=32, max_windows=2)
    root = tmp_path / "d"
    for first in (0, 40, 80):  # three places, each seen from four, and one apart
        tiles_of_one_place(root, range(first, first + 4), 16)
    tiles_of_one_place(root, [200], 16)
    config = get_any("inprocess", tmp_path / "run", "own", root, **own)
    val = {int(scene.id) // 40 for scene in config.dataset.validation_scenes}
    train = {int(scene.id) // 40 for scene in config.dataset.train_scenes}
    assert not val & train and len(val | train) == 4
    assert "share ground" not in capsys.readouterr().err
    chain = tmp_path / "chain"
    tiles_of_one_place(chain, range(6), 16)
    for folder in ("run2", "run3"):
        get_any("inprocess", tmp_path / folder, "own", chain, **own)
    told = capsys.readouterr().err
    assert told.count("of different splits share ground") == 1 and "75% of" in told


def test_what_was_left_out_of_labels_or_repaired_is_said(tmp_path, capsys):
    data = kinds(tmp_path / "d", "road", "building", "road")
    path = data / "labels.geojson"
    made = json.loads(path.read_text())
    ring = made["features"][0]["geometry"]["coordinates"][0]
    made["features"][0]["geometry"]["coordinates"] = [[*ring[:1], ring[2], *ring[1:2], *ring[3:]]]  # fmt: skip
    line = {"type": "LineString", "coordinates": ring[:2]}
    properties = {"kind": "building"}
    made["features"].append(
        {**made["features"][1], "geometry": line, "properties": properties}
    )
    path.write_text(json.dumps(made))
    get_config(tmp_path, data, **ONE_FILE, **CLASSES)
    told = capsys.readouterr().err
    assert told.count("labels are not used as they are (1 files): labels.geojson") == 1
    assert "1 invalid repaired (feature 1)" in told
    assert "1 without an area left out (feature 4)" in told
    for feature in made["features"][:3]:
        feature["properties"]["kind"] = "road"
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match="all features of kind building are lines or"):
        get_config(tmp_path / "b", data, **ONE_FILE, **CLASSES)


def test_values_that_are_no_class_are_refused_with_the_way_to_leave_them_out(tmp_path):
    data = kinds(tmp_path / "d", "road", None, "river")
    words = r"kind holds None .*ogr2ogr -where \"kind IN \('building', 'road'\)\" OUT"
    with pytest.raises(DataError, match=words):
        get_config(tmp_path, data, **ONE_FILE, **CLASSES)
    if shutil.which("ogr2ogr"):
        path, left = data / "labels.geojson", data / "left.geojson"
        where = "kind IN ('building', 'road')"
        subprocess.run(["ogr2ogr", "-where", where, str(left), str(path)], check=True)
        assert len(json.loads(left.read_text())["features"]) == 1


def test_rasters_of_an_unknown_kind_are_called_rasters(tmp_path):
    write(tmp_path / "1.tif", image_of(1), HERE)
    write(tmp_path / "1.bmp", things(1)[0], driver="BMP")
    words = r"1.bmp is a raster, .* end in .*\.png, .*gdal_translate '1.bmp' '1.png'"
    with pytest.raises(DataError, match=words):
        check_scenes(find_scenes(tmp_path, "{id}.tif", "{id}.bmp"))


def all_train(root, n_test=1):
    "A table of three scenes of which none is for validation."
    found = scenes.find_scenes(folders(root), "images/i_{id}.jpg", "masks/m_{id}.png")
    splits = {"train": found[n_test:], "val": [], "test": found[:n_test]}
    return scenes.write_table(splits, root / "scenes.csv")


@pytest.mark.parametrize("given, name", [({"patience": 2}, "patience"), ({"checkpoint": "best"}, "checkpoint='best'")])  # fmt: skip
def test_without_validation_scenes_nothing_is_chosen_by_them(tmp_path, given, name):
    kinds = dict(classes="building,road,background", label_values=NAMES)
    with pytest.raises(
        ValueError, match=f"no validation scenes, which {name} looks at"
    ):
        get_config(tmp_path, all_train(tmp_path / "d"), **kinds, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_table_without_validation_scenes_trains_on_all(tmp_path, capsys):
    from rvtutorial import engine, viz

    kinds = dict(classes="building,road,background", label_values=NAMES)
    config = get_config(tmp_path, all_train(tmp_path / "d"), epochs=2, **kinds)
    said = "no validation scenes: all 2 scenes train, and nothing tells how good"
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="own training needs validation scenes"):
        engine.run(config, progress=False, ddp=True)
    folder = engine.run(config, progress=False)
    assert not (folder / "eval/validation_scenes").exists()
    board = viz.leaderboard(folder, split="test")
    assert board.pixel_f1.notna().all() and list(board.scenes) == [1]
    with pytest.raises((ValueError, FileNotFoundError), match="validation"):
        viz.leaderboard(folder)
    assert len(viz.plot_metrics(folder, ["train_loss"]).axes) == 1
    stages = read_json(folder / "run.json")["went"]["stages"]
    assert {"train", "predict", "eval"} <= {stage["name"] for stage in stages}

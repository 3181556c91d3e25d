"""The course's tiles: stacks, subtiles, splits without leaks, pieces put together exactly."""

import json
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import rasterio

from rvtutorial import chips, scenes
from rvtutorial.course import tiles
from rvtutorial.data.settlements import CLASSES, TRUTH, make_settlements

FEW = dict(viirs=2, sentinel1=1, sentinel2=1)
NAMES = list(CLASSES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiles") / "all"
    return make_settlements(made, n=9, size=80, scale=10, dates=FEW)


@pytest.fixture(scope="module")
def parents(folder):
    return tiles.find_parents(folder, folder.parent / "stacks", sensors=FEW)


@pytest.fixture(scope="module")
def subtiles(parents, tmp_path_factory):
    return tiles.cut_subtiles(parents, tmp_path_factory.mktemp("subtiles"), size=2)


def pixels(path):
    with rasterio.open(path) as file:
        return file.read()


# --- the data set


def test_a_tile_of_the_contest_has_99_bands(tmp_path):
    folder = make_settlements(tmp_path / "a", n=1, size=20, scale=10)
    (parent,) = tiles.find_parents(folder, tmp_path / "stacks")
    with rasterio.open(parent.image) as file:
        assert (file.count, file.dtypes[0]) == (99, "float32")
        names = list(file.descriptions)
    kinds = [name.split("-")[0] for name in names]
    assert {k: kinds.count(k) for k in kinds} == dict(
        viirs=10, sentinel1=8, sentinel2=48, landsat8=33
    )
    assert len(set(names)) == 99


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again = make_settlements(tmp_path / "b", n=2, size=80, scale=10, dates=FEW)
    for path in (again / "Tile2").iterdir():
        assert path.read_bytes() == (folder / "Tile2" / path.name).read_bytes()
    other = make_settlements(tmp_path / "c", 1, 80, 10, FEW, seed=1)
    assert (other / "Tile1" / TRUTH).read_bytes() != (
        folder / "Tile1" / TRUTH
    ).read_bytes()


def test_labels_are_coarser_than_the_image_and_hold_four_classes(folder):
    with rasterio.open(folder / "Tile1" / TRUTH) as file:
        assert file.shape == (8, 8) and file.res == (100, 100)
        labels = file.read(1)
    assert set(np.unique(labels)) <= {1, 2, 3, 4}
    every = {int(v) for p in folder.glob(f"*/{TRUTH}") for v in np.unique(pixels(p))}
    assert every == {1, 2, 3, 4}


def test_each_date_has_its_own_files(tmp_path):
    many = dict(viirs=150, sentinel1=6, sentinel2=5, landsat8=12)
    folder = make_settlements(tmp_path / "a", n=1, size=4, scale=2, dates=many)
    names = [*tiles.bands_of(folder / "Tile1", many)]
    for sensor, dates in many.items():
        days = {name.split("-B")[0] for name in names if name.startswith(sensor)}
        days = {
            re.search(r"2020\d{4}|20(20|21)\d{3}|202\d-\d\d-\d\d", d)[0] for d in days
        }
        assert len(days) == dates
        form = dict(viirs="%Y%j", landsat8="%Y-%m-%d").get(sensor, "%Y%m%d")
        assert all(datetime.strptime(day, form) for day in days)


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(size=75), "75 pixels are no whole labels of 10"),
        (dict(n=0), "whole numbers from 1 up"),
        (dict(dates=dict(modis=1)), "modis.*known are viirs"),
    ],
)
def test_what_cannot_be_made(tmp_path, values, says):
    with pytest.raises(ValueError, match=says):
        make_settlements(tmp_path / "a", **{**dict(n=1, size=80, scale=10), **values})
    assert not (tmp_path / "a").exists()


def test_a_folder_of_other_tiles_is_left_alone(folder):
    with pytest.raises(FileExistsError, match="n: 9 there, 3 asked"):
        make_settlements(folder, n=3, size=80, scale=10, dates=FEW)


# --- stacks


def test_a_stack_holds_each_file_as_a_band_of_its_name(parents, folder):
    files = tiles.bands_of(folder / "Tile3", FEW)
    stack = pixels(parents[2].image)
    with rasterio.open(parents[2].image) as file:
        names = list(file.descriptions)
    assert [n for n in names if n != tiles.NIGHT_MAX] == list(files)
    for name, path in files.items():
        assert np.array_equal(stack[names.index(name)], pixels(path)[0].astype("f4"))
    nights = [stack[names.index(n)] for n in files if n.startswith("viirs")]
    assert np.array_equal(stack[names.index(tiles.NIGHT_MAX)], np.max(nights, axis=0))


def test_raster_visions_own_sources_read_the_same(parents, folder):
    from rastervision.core.data import RasterioSourceConfig

    files = tiles.bands_of(folder / "Tile1", ["sentinel1", "sentinel2"])
    joined = tiles.stack_source(files).build()[:, :]
    out = folder.parent / "two.vrt"
    one = RasterioSourceConfig(
        uris=str(tiles.write_stack(files, out)), channel_order=[*range(len(files))]
    )
    assert joined.shape == (80, 80, 14)
    assert np.array_equal(joined, one.build(str(folder.parent))[:, :])


def test_a_time_series_is_the_stack_of_its_dates(tmp_path):
    folder = make_settlements(tmp_path / "a", 1, 40, 10, dict(sentinel2=3))
    files = tiles.bands_of(folder / "Tile1", ["sentinel2"])
    series = tiles.stack_source(files, temporal=True).build()[:, :, :]
    joined = tiles.stack_source(files).build()[:, :]
    assert series.shape == (3, 40, 40, 12)
    assert np.array_equal(np.concatenate(list(series), axis=-1), joined)
    del files["sentinel2-20200804-8A"]
    with pytest.raises(ValueError, match="same bands at every date"):
        tiles.stack_source(files, temporal=True)


def test_bands_are_in_natural_order_of_date_and_band(tmp_path):
    for name in ("L2A_20200811_B02", "L2A_20200804_B11", "L2A_20200804_B8A", "other"):
        (tmp_path / f"{name}.tif").touch()
    assert list(tiles.bands_of(tmp_path, ["sentinel2"])) == [
        "sentinel2-20200804-8A", "sentinel2-20200804-11", "sentinel2-20200811-02",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sensors, says",
    [
        (["modis"], "no sensor 'modis'; known are viirs"),
        (["landsat8"], "no file of landsat8"),
    ],
)
def test_sensors_that_are_not_there(folder, sensors, says):
    with pytest.raises(ValueError, match=says):
        tiles.bands_of(folder / "Tile1", sensors)


def test_files_beside_the_grid_are_named(folder, tmp_path):
    files = tiles.bands_of(folder / "Tile1", ["sentinel1"])
    files["labels"] = folder / "Tile1" / TRUTH
    with pytest.raises(
        ValueError, match=r"groundTruth.tif \(8 x 8 pixels\) does not lie"
    ):
        tiles.write_stack(files, tmp_path / "a.vrt")
    assert not list(tmp_path.iterdir())


def test_tiles_that_differ_in_their_bands_are_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "Tile1", tmp_path / "all/Tile1")
    shutil.copytree(folder / "Tile2", tmp_path / "all/Tile2")
    (tmp_path / "all/Tile2/L2A_20200804_B08.tif").unlink()
    with pytest.raises(
        ValueError, match=r"Tile2 and .*Tile1 differ .*sentinel2-20200804-08"
    ):
        tiles.find_parents(tmp_path / "all", tmp_path / "stacks", FEW)
    assert not (tmp_path / "stacks").exists()
    with pytest.raises(
        FileNotFoundError, match="no folders with a file groundTruth.tif"
    ):
        tiles.find_parents(tmp_path, tmp_path / "stacks", FEW)


# --- labels


def test_labels_count_from_zero_once_and_a_strange_one_is_refused(parents):
    mask = scenes.scene_mask(parents[0], classes=NAMES, label_values=tiles.LABEL_VALUES)
    own = pixels(parents[0].label)[0]
    assert np.array_equal(mask, own.repeat(10, 0).repeat(10, 1))  # class id + 1
    known = ",".join(tiles.LABEL_VALUES.split(",")[:3])
    with pytest.raises(scenes.DataError, match="values that mean no class: 4"):
        scenes.check_scenes(parents, classes=NAMES[:3], label_values=known)


# --- subtiles


def test_a_subtile_is_a_square_of_whole_labels(parents, subtiles):
    assert len(subtiles) == 9 * 16
    one = next(s for s in subtiles if s.id == "Tile2_1_3")
    assert one.parts == {"tile": "Tile2", "row": "1", "column": "3"}
    whole, labels = pixels(parents[1].image), pixels(parents[1].label)
    assert np.array_equal(pixels(one.image), whole[:, 20:40, 60:80])
    assert np.array_equal(pixels(one.label), labels[:, 2:4, 6:8])
    about = json.loads(one.image.with_suffix(".json").read_text())
    assert about["window"] == [20, 60, 20, 20] and about["grid"] == [4, 4]
    assert len(
        scenes.check_scenes([one], classes=NAMES, label_values=tiles.LABEL_VALUES)
    )


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_a_size_that_does_not_divide_a_tile(parents, tmp_path, size):
    with pytest.raises(
        ValueError, match="do not divide the 8 x 8 labels of Tile1; 1, 2, 4, 8"
    ):
        tiles.cut_subtiles(parents, tmp_path / "a", size)
    assert not (tmp_path / "a").exists()


def test_subtiles_of_another_size_are_not_overwritten(parents, subtiles):
    folder = subtiles[0].image.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match="4 x 4 subtiles of Tile1 of 20 x 20 .* are 2 x 2 of 40 x 40"
    ):
        tiles.cut_subtiles(parents, folder, size=4)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    again = tiles.cut_subtiles(parents, folder, size=2)  # the same is no harm
    assert [scene.id for scene in again] == [scene.id for scene in subtiles]


def test_a_tile_without_a_label_raster_is_not_cut(parents, tmp_path):
    for label in (None, tmp_path / "roofs.geojson"):
        with pytest.raises(ValueError, match="Tile1 has no label raster"):
            tiles.cut_subtiles([replace(parents[0], label=label)], tmp_path / "a")


def test_a_tile_that_lacks_subtiles_is_named(subtiles):
    some = [s for s in subtiles if s.id not in ("Tile4_0_2", "Tile4_3_3")]
    with pytest.raises(
        ValueError, match="Tile4 lacks 2 of its 4 x 4 subtiles: 0_2, 3_3"
    ):
        tiles.places_of(some)


def test_subtiles_in_any_order_make_their_tiles_again(parents, subtiles):
    some = [subtiles[i] for i in np.random.default_rng(0).permutation(len(subtiles))]
    places = tiles.places_of(some)
    assert set(places) == {p.id for p in parents}
    for parent in parents:
        found, windows, shape = places[parent.id]
        pieces = [pixels(scene.image) for scene in found]
        assert np.array_equal(
            tiles.restitch(pieces, windows, shape), pixels(parent.image)
        )


# --- pieces


GRIDS = [
    (650, 300, 300),
    (650, 220, 215),
    (650, 200, 150),
    (800, 200, 200),
    (333, 100, 70),
]


@pytest.mark.parametrize("size, chip, stride", GRIDS)
def test_a_perfect_model_is_put_together_exactly(size, chip, stride):
    rng = np.random.default_rng(size + chip)
    scores = rng.random((2, size, size), np.float32)
    labels = rng.integers(0, 5, (size, size), np.uint8)
    windows = chips.grid_windows((size, size), chip, stride)
    windows = windows[rng.permutation(len(windows))]
    for truth in (scores, labels):
        padded = np.pad(truth, [(0, 0)] * (truth.ndim - 2) + [(0, chip)] * 2)
        pieces = [padded[..., y : y + h, x : x + w] for y, x, h, w in windows]
        whole = tiles.restitch(pieces, windows, (size, size))
        assert whole.dtype == truth.dtype and np.array_equal(whole, truth)


def test_scores_that_overlap_are_averaged_and_labels_must_agree():
    windows = np.array([(0, 0, 2, 2), (0, 1, 2, 2)])
    whole = tiles.restitch([np.zeros((2, 2)), np.ones((2, 2))], windows, (2, 3))
    assert whole.tolist() == [[0, 0.5, 1]] * 2
    pieces = [np.zeros((2, 2), int), np.ones((2, 2), int)]
    with pytest.raises(ValueError, match="2 pixels of the piece at row 0, column 1"):
        tiles.restitch(pieces, windows, (2, 3))


@pytest.mark.parametrize(
    "windows, says",
    [
        ([(0, 0, 2, 2)], "2 of 6 pixels lie in no piece, the first in row 0, column 2"),
        ([(0, 0, 3, 2)], r"has \(2, 2\) pixels, its window \(3, 2\)"),
        ([(5, 5, 2, 2)], "6 of 6 pixels lie in no piece"),
    ],
)
def test_pieces_that_do_not_fit(windows, says):
    with pytest.raises(ValueError, match=says):
        tiles.restitch([np.zeros((2, 2))], np.array(windows), (2, 3))


# --- splits


def test_a_split_by_tile_is_saved_and_serves_a_run(subtiles, tmp_path):
    splits = scenes.split_scenes(subtiles, n_val=2, n_test=1, by="tile")
    path = tiles.write_split(splits, tmp_path / "split.csv")
    found = scenes.find_splits(path)
    assert {s: [x.id for x in some] for s, some in found.items()} == {
        s: [x.id for x in some] for s, some in splits.items()
    }
    assert len(tiles.overlap(found)) == 0  # the tile of a scene is read from its place
    assert set(tiles.places_of(found["val"])) == {
        x.parts["tile"] for x in splits["val"]
    }


def test_a_split_by_chance_is_refused_with_what_is_shared(subtiles, tmp_path):
    splits = scenes.split_scenes(subtiles, n_val=30)
    with pytest.raises(
        ValueError, match=r"parts of one tile\n[^\0]*pairs\)[^\0]*by place"
    ):
        tiles.write_split(splits, tmp_path / "split.csv")
    assert not list(tmp_path.iterdir())
    assert tiles.overlap(splits).same_tile.all()


def test_parents_that_overlap_are_refused(tmp_path):
    made, shift = [], 30
    for number in range(3):
        path = tmp_path / f"{number}.tif"
        place = rasterio.Affine(10, 0, 600_000 + number * shift * 10, 0, -10, 1_400_000)
        how = dict(
            driver="GTiff", count=1, dtype="uint8", crs="EPSG:32630", transform=place
        )
        with rasterio.open(path, "w", width=50, height=50, **how) as file:
            file.write(np.ones((1, 50, 50), np.uint8))
        made.append(scenes.Scene(str(number), path))
    splits = {"train": [made[0]], "val": [made[1]], "test": [made[2]]}
    found = tiles.overlap(splits)
    assert found[["id", "other_id"]].values.tolist() == [["0", "1"], ["1", "2"]]
    assert found.share.tolist() == pytest.approx([0.4, 0.4], abs=0.01)
    with pytest.raises(ValueError, match="train 0 and val 1: 40% of the smaller"):
        tiles.write_split(splits, tmp_path / "split.csv")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("buffer", [0, 100])
def test_a_split_by_place_keeps_its_distance(subtiles, seed, buffer):
    how = dict(n_val=16, n_test=16, block=800, buffer=buffer, seed=seed)
    splits, left = tiles.split_by_place(subtiles, **how)
    ids = [x.id for some in splits.values() for x in some] + [x.id for x in left]
    assert sorted(ids) == sorted(x.id for x in subtiles)
    assert bool(left) == (buffer > 0)
    assert all(x.split == s for s, some in splits.items() for x in some)
    frame = scenes.outlines(splits)
    frame = frame.to_crs("EPSG:32630")
    for one in ("train", "val"):
        for other in ("val", "test"):
            if one != other:
                a, b = frame[frame.split == one], frame[frame.split == other]
                near = min(a.distance(shape).min() for shape in b.geometry)
                assert near >= buffer - 1
    again, _ = tiles.split_by_place(subtiles, **how)
    assert again == splits


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(n_val=0), "n_val must be 1 at least"),
        (dict(n_val=9), "leave none for train"),
        (dict(n_val=1, buffer=1e6), "a buffer of 1,000,000 m leave none for train"),
        (dict(n_val=1, block=-1), "block more than 0"),
    ],
)
def test_a_split_by_place_that_cannot_be(parents, values, says):
    with pytest.raises(ValueError, match=says):
        tiles.split_by_place(parents, **values)


def test_scenes_without_a_place_are_not_split_by_it(tmp_path):
    how = dict(driver="PNG", width=8, height=8, count=1, dtype="uint8")
    with rasterio.open(tmp_path / "a.png", "w", **how) as file:
        file.write(np.ones((1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="1 scenes have no place on earth, such as a"):
        tiles.split_by_place([scenes.Scene("a", tmp_path / "a.png")], 1)


# --- real tiles


IMAGES = "Tile {tile}/images/image_part_{part}.jpg"
MASKS = "Tile {tile}/masks/image_part_{part}.png"


def test_real_tiles_whose_parts_differ_in_size(shared_data, tmp_path):
    found = scenes.find_scenes(shared_data("dubai"), IMAGES, MASKS)
    shapes = {scene.id: scenes.image_info(scene.image).shape for scene in found}
    assert len(found) == 45 and len({*shapes.values()}) > len(
        {s.parts["tile"] for s in found}
    )
    splits = scenes.split_scenes(found, n_val=1, n_test=1, by="tile")
    table = tiles.write_split(splits, tmp_path / "dubai.csv")
    assert sum(map(len, scenes.find_splits(table).values())) == 45
    with pytest.raises(ValueError, match="parts of one tile"):
        tiles.write_split(scenes.split_scenes(found, n_val=9), tmp_path / "b.csv")
    with pytest.raises(ValueError, match="do not divide"):
        tiles.cut_subtiles(found, tmp_path / "subtiles", 100)
    for scene in found[::11]:
        whole, shape = pixels(scene.image), shapes[scene.id]
        padded = np.pad(whole, [(0, 0), (0, 192), (0, 192)], mode="edge")
        windows = chips.grid_windows(shape, 192, 128)
        pieces = [padded[:, y : y + h, x : x + w] for y, x, h, w in windows]
        assert np.array_equal(tiles.restitch(pieces, windows, shape), whole)


# --- a whole run


@pytest.mark.slow
@pytest.mark.parametrize("own_sources", [False, True])
def test_a_run_on_tiles_of_two_sensors(parents, folder, tmp_path, own_sources):
    "From a stack, and from the same files through Raster Vision's own source."
    from rvtutorial import engine
    from rvtutorial.config import get_config
    from rvtutorial.metrics.leaderboard import leaderboard

    some = scenes.split_scenes(parents, n_val=5, seed=2)
    table = tiles.write_split(some, tmp_path / "split.csv")
    cfg = get_config(
        "inprocess", tmp_path / "run", "smoke", table,
        classes=",".join(NAMES), label_values=tiles.LABEL_VALUES, zeros="data",
        model="segmentationcnn", pool_sizes="5,2", embedding_size=4,
        chip_sz=40, stride_length=20, epochs=2,
    )  # fmt: skip
    if own_sources:
        every = [*cfg.dataset.train_scenes, *cfg.dataset.validation_scenes]
        for scene in every:
            files = tiles.bands_of(folder / scene.id, FEW)
            night = {
                tiles.NIGHT_MAX: folder.parent / f"stacks/{scene.id}-viirs-max.tif"
            }
            order = {k: v for k, v in files.items() if k.startswith("viirs")} | night
            scene.raster_source = tiles.stack_source(order | files)
    engine.run(cfg, progress=False)
    board = leaderboard({"run": tmp_path / "run"}, metric="macro_iou")
    assert board.scenes.item() == 5 and 0 <= board.pixel_macro_iou.item() <= 1
    for (
        scene
    ) in cfg.dataset.validation_scenes:  # one class for each square of 10 pixels
        labels = pixels(tmp_path / f"run/predict/{scene.id}/labels.tif")[0]
        cells = labels.reshape(8, 10, 8, 10).transpose(0, 2, 1, 3).reshape(64, 100)
        assert (cells == cells[:, :1]).all()

"""Label rasters: what their numbers and colours mean, and nothing read as something else."""

import json
import re
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from rvtutorial import scenes
from rvtutorial.data.label_values import Meaning, _line_to_add
from rvtutorial.scenes import DataError, Scene, check_scenes, find_splits

SIZE = 64
PLACE = dict(crs="EPSG:32611", transform=from_origin(6e5, 4e6, 1, 1))
TWO = "255:building,0:background"


def pattern(seed: int = 0) -> np.ndarray:
    "True where a mask has buildings: blocks of eight pixels, about a quarter."
    blocks = np.random.default_rng(seed).random((SIZE // 8, SIZE // 8)) < 0.25
    blocks[0, 0], blocks[0, 1] = True, False
    return blocks.repeat(8, 0).repeat(8, 1)


def write(path, array, **changes):
    "A raster of one or more bands, on the common grid."
    array = array if array.ndim == 3 else array[None]
    profile = dict(driver="GTiff", count=len(array), dtype=array.dtype.name)
    profile |= dict(height=array.shape[1], width=array.shape[2], **PLACE)
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {k: changes.pop(k) for k in ("palette", "valid", "scale") if k in changes}
    with rasterio.open(path, "w", **profile | changes) as file:
        file.write(array)
        if "palette" in extra:
            file.write_colormap(1, extra["palette"])
        if "valid" in extra:
            file.write_mask(extra["valid"])
        if "scale" in extra:
            file.scales = (extra["scale"],)
    return path


def image_of(seed: int) -> np.ndarray:
    "An image in which buildings are bright."
    rng = np.random.default_rng(seed)
    pixels = rng.integers(20, 60, (3, SIZE, SIZE)).astype(np.uint8)
    pixels[:, pattern(seed)] += 150
    return pixels


def make_set(folder, mask_of, hole=True):
    "Two training scenes, one for validation (with a hole) and one test scene."
    numbers = {"train": (1, 2), "val": (3,), "test": (4,)}
    for split, some in numbers.items():
        for i in some:
            pixels = image_of(i)
            if hole and split == "val":
                pixels[:, :16, :16] = 0
            write(folder / split / f"i_{i}.tif", pixels)
            mask_of(folder / split / f"m_{i}.tif", pattern(i))
    return folder


def tags(**how):
    "A function that writes masks of 255 and 0, with something declared about them."

    def mask_of(path, there):
        write(path, np.where(there, 255, 0).astype(np.uint8), **how)

    return mask_of


def values(building, background, dtype, **how):
    "A function that writes masks of two values of a type."

    def mask_of(path, there):
        write(path, np.where(there, building, background).astype(dtype), **how)

    return mask_of


def bands_of(building, background, alpha=None, dtype="uint8"):
    "A function that writes masks of several bands."

    def mask_of(path, there):
        rows = [
            np.where(there, a, b) for a, b in zip(building, background, strict=True)
        ]
        how = {} if len(rows) < 3 else dict(photometric="RGB")
        if alpha is not None:
            rows.append(np.where(there, alpha, 0))
            how["ALPHA"] = "YES"
        write(path, np.array(rows).astype(dtype), **how)

    return mask_of


def shuffled_palettes(path, there):
    "Palette masks in which every file numbers its colours in another order."
    first = int(path.stem[-1]) % 2
    colours = {first: (60, 16, 152, 255), 1 - first: (132, 41, 246, 255)}
    index = np.where(there, first, 1 - first).astype(np.uint8)
    write(path, index, palette=colours)


def three_values(nodata):
    "A function that writes masks of 1, 0 and 255, of which one is declared as no data."

    def mask_of(path, there):
        array = there.astype(np.uint8)
        array[-8:] = 255
        write(path, array, nodata=nodata)

    return mask_of


def half_masked():
    "A dataset mask that hides the lower half."
    valid = np.full((SIZE, SIZE), 255, np.uint8)
    valid[SIZE // 2 :] = 0
    return valid


KINDS = {
    "plain": (tags(), TWO),
    "nodata 255": (tags(nodata=255), TWO),
    "nodata 255, of three": (three_values(255), "1:building,0:background,255:null"),
    "nodata 1, of three": (three_values(1), "1:building,0:background,255:null"),
    "nodata 0": (tags(nodata=0), TWO),
    "nodata elsewhere": (tags(nodata=7), TWO),
    "internal mask": (tags(valid=half_masked()), TWO),
    "scale": (tags(scale=0.1), TWO),
    "uint16": (values(1000, 256, "uint16"), "1000:building,256:background"),
    "65535": (values(65535, 0, "uint16", nodata=65535), "65535:building,0:background"),
    "negative": (values(-1, 300, "int16", nodata=-1), "-1:building,300:background"),
    "float": (values(1, 0, "float32", nodata=1), "1:building,0:background"),
    "inverted": (values(0, 1, "uint8"), "0:building,1:background"),
    "large": (values(2**40, 0, "float64"), f"{2**40}:building,0:background"),
    "grey and alpha": (bands_of((255,), (0,), alpha=255), TWO),
    "rgb": (bands_of((60, 16, 152), (132, 41, 246)), "#3C1098:building,#8429F6:background"),
    "rgba": (
        bands_of((60, 16, 152), (132, 41, 246), alpha=255),
        "#3c1098:building,#8429f6:background",
    ),
    "palettes": (shuffled_palettes, "#3C1098:building,#8429F6:background"),
    "grey by colours": (tags(), "#FFFFFF:building,#000000:background"),
}  # fmt: skip
PATTERNS = dict(image_pattern="i_{id}.tif", label_pattern="m_{id}.tif")


def config_of(data, folder, **changes):
    pytest.importorskip("rastervision.pytorch_backend")
    from rvtutorial.config import get_config

    asked = dict(chip_sz=32, stride_length=32, max_windows=4, epochs=1) | PATTERNS
    return get_config("inprocess", folder, "smoke", data, **asked | changes)


def labels_by_stock(cfg):
    "{scene id: class ids} as Raster Vision itself reads them."
    from rastervision.pipeline.file_system import get_tmp_dir

    found = {}
    with get_tmp_dir() as tmp:
        for scene in cfg.dataset.all_scenes:
            scene.label_store = None
            built = scene.build(cfg.dataset.class_config, tmp)
            found[scene.id] = built.label_source.get_label_arr()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_is_what_label_values_says(tmp_path, kind):
    mask_of, said = KINDS[kind]
    data = make_set(tmp_path / "d", mask_of)
    table = check_scenes(
        find_splits(data, "i_{id}.tif", "m_{id}.tif"), label_values=said
    )
    three = "of three" in kind
    shares = [
        pattern(int(i))[: -8 if three else None].sum() / SIZE**2 for i in table["id"]
    ]
    assert table["share"].tolist() == pytest.approx(shares, abs=1e-4)
    assert re.search(r"(#\w{6} )?building: ", table["notes"][0])
    cfg = config_of(data, tmp_path / "run", label_values=said)
    for name, ids in labels_by_stock(cfg).items():
        there = np.where(pattern(int(name)), 0, 1)
        if name == "3":
            there[:16, :16] = 2  # no data in the image
        if three:
            there[-8:] = 2
        assert np.array_equal(ids, there), name
    for copy in (tmp_path / "run" / "labels").glob("*.tif"):
        with rasterio.open(copy) as file:
            assert (file.nodata, file.dtypes[0], file.count) == (None, "uint8", 1)
    copies = 1 if kind in ("plain", "inverted") else 4
    assert len(list((tmp_path / "run" / "labels").glob("*.tif"))) == copies


@pytest.mark.parametrize("kind", ["nodata 255", "inverted", "palettes"])
def test_what_hangs_over_is_background(tmp_path, kind):
    "Copies say so as the files themselves do when 0 is background."
    mask_of, said = KINDS[kind]
    if kind == "inverted":
        said = "0:building,1:background"
    cfg = config_of(
        make_set(tmp_path / "d", mask_of), tmp_path / "run", label_values=said
    )
    from rastervision.core.box import Box
    from rastervision.pipeline.file_system import get_tmp_dir

    beside = 0 if kind == "inverted" else 1
    with get_tmp_dir() as tmp:
        for scene in cfg.dataset.all_scenes:
            scene.label_store = None
            source = scene.build(cfg.dataset.class_config, tmp).label_source
            ids = source.get_label_arr(Box(-8, -8, SIZE, SIZE))
            assert (ids[:8] == beside).all(), (scene.id, np.unique(ids[:8]))


def odd(value, dtype, at=3, pixels=5):
    "A function that writes masks of 255 and 0 with a few pixels of another value."

    def mask_of(path, there):
        array = np.where(there, 255, 0).astype(dtype)
        if int(path.stem[-1]) == at:
            array.flat[2000 : 2000 + pixels] = value
        write(path, array)

    return mask_of


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (256, "uint16", "256 (5 pixels"),
        (1000, "uint16", "1000 (5 pixels"),
        (65535, "uint16", "65535 (5 pixels"),
        (-1, "int16", "-1 (5 pixels"),
        (-9999, "float32", "-9999 (5 pixels"),
        (0.4, "float64", "0.4 (5 pixels"),
        (254.9, "float64", "254.9 (5 pixels"),
        (np.nan, "float32", "nan (5 pixels"),
        (np.inf, "float32", "inf (5 pixels"),
        (7, "uint8", "7 (5 pixels"),
        (2**40 + 255, "float64", f"{2**40 + 255} (5 pixels"),
        (255 + 1j, "complex64", "255"),
    ],
)
@pytest.mark.parametrize("at", [2, 3])
def test_what_has_no_class_is_named_and_nothing_is_cast(
    tmp_path, value, dtype, words, at
):
    data = make_set(tmp_path / "d", odd(value, dtype, at))
    with pytest.raises(ValueError) as err:
        config_of(data, tmp_path / "run", label_values=TWO)
    assert f"m_{at}.tif" in str(err.value) and words in str(err.value)
    assert not (tmp_path / "run").exists()


def test_a_fraction_is_no_label(tmp_path):
    data = make_set(tmp_path / "d", values(0.9, 0.4, "float32"))
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    with pytest.raises(DataError, match=r"0.9.* whole numbers"):
        check_scenes(splits, label_values="1:building,0:background")
    with pytest.raises(DataError, match="0.4.*whole numbers"):
        check_scenes(splits)


def test_raster_labels_need_their_meaning_said(tmp_path):
    for building, background, line in (
        (1, 0, 'label_values="1:building,0:background"'),
        (255, 0, 'label_values="255:building,0:background"'),
    ):
        data = make_set(tmp_path / str(building), values(building, background, "uint8"))
        for call in (
            lambda d=data: config_of(d, tmp_path / "run"),
            lambda d=data: check_scenes(find_splits(d, "i_{id}.tif", "m_{id}.tif")),
        ):
            with pytest.raises(ValueError) as err:
                call()
            assert line in str(err.value)
            assert f"0: {1 - np.mean([pattern(i) for i in (1, 2, 3, 4)]):.1%}" in str(
                err.value
            )
        assert not (tmp_path / "run").exists()
    table = check_scenes(
        find_splits(data, "i_{id}.tif", "m_{id}.tif"), label_values=TWO
    )
    assert f"building: {pattern(1).mean():.1%}" in table["notes"][0]
    assert "255" not in table["notes"][0]


@pytest.mark.parametrize(
    ("found", "nodata", "line"),
    [
        ({0: 9, 1: 3}, {None}, "1:building,0:background"),
        ({255: 9, 0: 3}, {255}, "255:building,0:background"),
        ({0: 9, 255: 4, 1: 3}, {255}, "255:null,1:building,0:background"),
        ({0: 9, 2: 4, 1: 3}, {None}, "2:CLASS,1:CLASS,0:CLASS"),
        ({2: 4, 1: 3}, {None}, "2:CLASS,1:CLASS"),
        ({"#3C1098": 4, "#000000": 3}, {None}, "#3C1098:CLASS,#000000:CLASS"),
    ],
)
def test_the_line_to_add_guesses_no_more_than_it_can(found, nodata, line):
    told = _line_to_add(found, ["building", "background"], nodata)
    assert told == f'label_values="{line}"'


def test_share_is_that_of_the_class_looked_for(tmp_path):
    def three(path, there):
        array = np.where(there, 1, 2).astype(np.uint8)
        array[-8:] = 3
        write(path, array)

    data = make_set(tmp_path / "d", three, hole=False)
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    said = "1:background,2:road,3:null"
    table = check_scenes(splits, classes=["background", "road"], label_values=said)
    for row in table.itertuples():
        road = ~pattern(int(row.id))
        road[-8:] = False
        assert row.share == pytest.approx(road.mean(), abs=1e-4)
        assert "null: 12.5%" in row.notes
    mask = scenes.scene_mask(
        splits["train"][0], classes=["background", "road"], label_values=said
    )
    road = ~pattern(1)
    road[-8:] = False
    assert np.array_equal(mask > 0, road)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("255", "pairs such as"),
        ("255:house,0:background", "house"),
        ("0.5:building,0:background", "whole numbers"),
        ("nan:building,0:background", "whole numbers"),
        ("#12:building,0:background", "whole numbers or colours"),
        ("#3C1098:building,0:background", "not both"),
        ("255:building,255:background", "255 is building and background"),
        ({"#3c1098": "building", "#3C1098": "background"}, "#3C1098 is building and"),
        ("", "numbers or colours"),
        (255, "text such as 255:building"),
        (["255:building"], "text such as 255:building"),
    ],
)
def test_label_values_that_say_nothing_are_refused(tmp_path, said, words):
    with pytest.raises(ValueError, match=words):
        Meaning.of(said, ["building", "background"])


def test_null_is_a_class_and_values_may_be_many():
    found = Meaning.of(
        {255: "null", "1.0": "building", -2: "background", 3: "building"},
        ["building", "background"],
    )
    assert found.ids == {255: 2, 1: 0, -2: 1, 3: 0}


def test_colours_without_a_class_are_named_with_their_shares(tmp_path):
    def stray(path, there):
        array = np.where(there, [[[60]], [[16]], [[152]]], [[[132]], [[41]], [[246]]])
        array[:, -1, -4:] = 0
        write(path, array.astype(np.uint8), photometric="RGB")

    data = make_set(tmp_path / "d", stray, hole=False)
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    said = "#3C1098:building,#8429F6:background"
    with pytest.raises(DataError, match=r"#000000 \(4 pixels, 0.1%\).*#000000:null"):
        check_scenes(splits, label_values=said)
    table = check_scenes(splits, label_values=f"{said},#000000:null")
    assert "#000000 null: 0.1%" in table["notes"][0]
    with pytest.raises(DataError, match="has colours .*#3C1098.* names numbers"):
        check_scenes(splits, label_values=TWO)
    with pytest.raises(DataError, match='other names are given as classes="'):
        check_scenes(splits)


def test_classes_of_ones_own_are_told_the_line_to_add():
    with pytest.raises(ValueError, match='say so: classes="land,water"'):
        Meaning.of("1:land,2:water,3:null", ["building", "background"])
    with pytest.raises(ValueError, match=r'classes="house,background"$'):
        Meaning.of("255:house,0:null", ["building", "background"])
    with pytest.raises(ValueError, match=r"did you mean 'building'\? If these"):
        Meaning.of("255:buildings,0:background", ["building", "background"])
    with pytest.raises(ValueError, match=r"known are a, b, null\. If these"):
        Meaning.of("1:road,2:b", ["a", "b"])


def mixed(first, second):
    "Masks of scenes 1 and 2 by the first function, the others by the second."

    def write_one(path, there):
        (first if path.stem in ("m_1", "m_2") else second)(path, there)

    return write_one


def black_and_white(path, there):
    "One bit a pixel, and a palette."
    colours = {0: (0, 0, 0, 255), 1: (255, 255, 255, 255)}
    write(path, there.astype(np.uint8), nbits=1, palette=colours)


def test_one_line_is_proposed_for_files_of_colours_and_of_numbers(tmp_path):
    data = make_set(tmp_path / "d", mixed(black_and_white, values(255, 0, "uint8")))
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    with pytest.raises(DataError, match="#000000:CLASS,#FFFFFF:CLASS"):
        check_scenes(splits)
    said = "#FFFFFF:building,#000000:background"
    table = check_scenes(splits, label_values=said)
    assert (table["labels"] == "raster").all() and (table["share"] > 0.1).all()
    data = make_set(tmp_path / "e", mixed(black_and_white, values(255, 0, "uint16")))
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    with pytest.raises(DataError, match="m_1.*colours and .*m_3.*uint16: write all"):
        check_scenes(splits)


def test_palettes_are_compared_where_their_numbers_occur(tmp_path):
    "Software fills palettes up with black."
    three = {0: (0, 0, 0, 255), 1: (60, 16, 152, 255), 2: (132, 41, 246, 255)}

    def with_a_third(path, there):
        array = there.astype(np.uint8)
        array[-8:, :8] = 2
        write(path, array, palette=three)

    two = {i: three[i] for i in (0, 1)}
    data = make_set(
        tmp_path / "d", mixed(values(1, 0, "uint8", palette=two), with_a_third)
    )
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    said = "1:building,0:background,2:null"
    assert len(check_scenes(splits, label_values=said)) == 4


def test_palettes_that_differ_are_not_read_by_number(tmp_path):
    data = make_set(tmp_path / "d", shuffled_palettes)
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    with pytest.raises(
        DataError, match="different palettes.*: 0 is #8429F6 in .*m_1.*#3C1098"
    ):
        check_scenes(splits, label_values="0:building,1:background")
    with pytest.raises(ValueError, match="different palettes"):
        config_of(data, tmp_path / "run", label_values="0:building,1:background")
    same = {0: (60, 16, 152, 255), 1: (132, 41, 246, 255)}
    data = make_set(tmp_path / "same", values(0, 1, "uint8", palette=same))
    check_scenes(
        find_splits(data, "i_{id}.tif", "m_{id}.tif"),
        label_values="0:building,1:background",
    )


def test_colours_are_asked_of_a_file_that_has_none(tmp_path):
    data = make_set(tmp_path / "d", values(1, 0, "uint16"))
    with pytest.raises(DataError, match="has numbers and no colours"):
        check_scenes(
            find_splits(data, "i_{id}.tif", "m_{id}.tif"),
            label_values="#3C1098:building,#000000:background",
        )


@pytest.mark.parametrize("bands", [2, 5])
def test_bands_that_are_no_label_are_refused(tmp_path, bands):
    def mask_of(path, there):
        write(
            path, np.stack([there.astype(np.uint8)] * bands), photometric="MINISBLACK"
        )

    data = make_set(tmp_path / "d", mask_of)
    with pytest.raises(DataError, match=f"has {bands} bands"):
        check_scenes(find_splits(data, "i_{id}.tif", "m_{id}.tif"), label_values=TWO)


def test_a_mask_without_a_place_lies_on_its_image(tmp_path):
    "PNG masks of GeoTIFF images: Raster Vision would look for them at the equator."

    def mask_of(path, there):
        array = np.where(there, 255, 0).astype(np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(path, array, crs=None, transform=rasterio.Affine.identity())

    data = make_set(tmp_path / "d", mask_of)
    cfg = config_of(data, tmp_path / "run", label_values=TWO)
    for name, ids in labels_by_stock(cfg).items():
        assert ((ids == 0) == pattern(int(name)))[16:].all()


@pytest.mark.parametrize("both", [True, False])
def test_images_that_a_world_file_places(tmp_path, both):
    "They have a grid and no reference system, and so have the labels of the run."
    from rvtutorial import engine
    from rvtutorial.runs import Run

    nowhere = dict(crs=None, transform=None, driver="PNG")

    def mask_of(path, there):
        image, mask = path.with_name(f"i_{path.stem[2:]}.tif"), path.with_suffix(".png")
        with rasterio.open(image) as file:
            pixels = file.read()
        image.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(image.with_suffix(".png"), pixels, **nowhere)
            write(mask, np.where(there, 255, 0).astype(np.uint8), **nowhere)
        for file in (image, mask)[: 1 + both]:
            file.with_suffix(".pgw").write_text("1\n0\n0\n-1\n600000.5\n3999999.5\n")

    data = make_set(tmp_path / "d", mask_of)
    ends = dict(image_pattern="i_{id}.png", label_pattern="m_{id}.png")
    cfg = config_of(data, tmp_path / "run", label_values=TWO, **ends)
    for name, ids in labels_by_stock(cfg).items():
        assert ((ids == 0) == pattern(int(name)))[16:].all()
    engine.run(cfg, progress=False)
    items = Run(tmp_path / "run").evaluation("validation")["overall"]
    building = next(i for i in items if i.get("class_name") == "building")
    there = pattern(3)
    there[:16, :16] = False
    assert building["gt_count"] == there.sum()
    with rasterio.open(tmp_path / "run/predict/3/labels.tif") as file:
        assert file.transform == PLACE["transform"] and file.crs is None


def coarse(path, there):
    "Colours with pixels twice as large as those of the image."
    array = np.where(there, [[[60]], [[16]], [[152]]], [[[132]], [[41]], [[246]]])
    place = PLACE | dict(transform=from_origin(6e5, 4e6, 2, 2))
    write(path, array[:, ::2, ::2].astype(np.uint8), photometric="RGB", **place)


def south_up(path, there):
    "Numbers with a tag, the southernmost row first."
    step = rasterio.Affine(1, 0, 6e5, 0, 1, 4e6 - SIZE)
    array = np.where(there, 255, 0).astype(np.uint8)[::-1]
    write(path, array, **PLACE | dict(transform=step, nodata=255))


@pytest.mark.parametrize(
    ("mask_of", "said"),
    [(coarse, "#3C1098:building,#8429F6:background"), (south_up, TWO)],
)
def test_labels_on_a_grid_of_their_own_are_mapped_too(tmp_path, mask_of, said):
    data = make_set(tmp_path / "d", mask_of)
    splits = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    table = check_scenes(splits, label_values=said)
    assert table["notes"].str.contains("brought to the image's grid").all()
    cfg = config_of(data, tmp_path / "run", label_values=said)
    for name, ids in labels_by_stock(cfg).items():
        assert np.array_equal((ids == 0)[16:], pattern(int(name))[16:])
    scene = splits["train"][0]
    mask = scenes.scene_mask(scene, label_values=said)
    assert np.array_equal(mask == 1, pattern(1))
    title = scenes.plot_scene(scene, label_values=said).axes[0].get_title()
    assert title == f"scene 1: building on {pattern(1).mean():.0%} of it"


def test_a_damaged_mask_is_named_and_the_others_are_checked(tmp_path):
    data = make_set(tmp_path / "d", tags())
    for i, split in ((1, "train"), (4, "test")):
        path = data / split / f"m_{i}.tif"
        path.write_bytes(path.read_bytes()[: -SIZE * SIZE // 2])
    with pytest.raises(DataError) as err:
        check_scenes(find_splits(data, "i_{id}.tif", "m_{id}.tif"), label_values=TWO)
    assert len(err.value.problems) == 2
    for problem, i in zip(err.value.problems, (1, 4), strict=True):
        assert f"m_{i}.tif" in problem and "cut off or damaged" in problem


def test_scores_of_a_run_are_about_what_label_values_says(tmp_path):
    "From a tagged mask to eval.json, and our own count of the same files."
    from rvtutorial import engine
    from rvtutorial.metrics import counting, leaderboard
    from rvtutorial.runs import Run

    data = make_set(tmp_path / "d", tags(nodata=255))
    cfg = config_of(data, tmp_path / "run", label_values=TWO, lr=1e-2)
    engine.run(cfg, progress=False)
    run = Run(tmp_path / "run")
    found = run.evaluation("validation")
    counts = {i["class_name"]: i for i in found["overall"] if "conf_mat_dict" in i}
    there = pattern(3)
    there[:16, :16] = False
    building = counts["building"]["conf_mat_dict"]
    assert building["TP"] + building["FN"] == there.sum() > 0
    ours = leaderboard.counts_of(run.path)
    assert ours.total[0].sum() == there.sum()
    again = [counting.count_rasters(run.label("3"), run.prediction("3"), ours.classes,
                                   **leaderboard.label_meaning(run, "3"))]  # fmt: skip
    from rvtutorial.figures import maps

    drawn = maps.SceneLayers.of_run(run, "3").truth(run)
    assert np.array_equal(drawn == 0, there)
    total = again[0].total
    assert building["TP"] == total[0, 0]
    assert building["FP"] == total[1:, 0].sum()


def test_a_copy_is_not_taken_for_the_labels_of_another_scene(tmp_path):
    "Scene 1 has a copy named 1.tif; the own file of scene 2 is named so as well."
    from rvtutorial.runs import Run

    data = make_set(tmp_path / "d", tags())
    (tmp_path / "labels").mkdir()
    found = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    one = found["train"][0]
    other = one.label.rename(tmp_path / "labels" / "3.tif")
    splits = found | {"train": [Scene("1", one.image, other), found["train"][1]]}
    table = scenes.write_table(splits, tmp_path / "t.csv")
    cfg = config_of(table, tmp_path / "run", label_values=TWO)
    cfg.to_file(str(tmp_path / "run" / "pipeline-config.json"))
    assert (tmp_path / "run" / "labels" / "3.tif").exists()
    run = Run(tmp_path / "run")
    assert run.label("1").resolve() == other.resolve()
    assert run.label("3") == run.path / "labels" / "3.tif"
    (tmp_path / "run").rename(tmp_path / "moved")
    assert Run(tmp_path / "moved").label("3") == tmp_path / "moved" / "labels" / "3.tif"


def with_tagged_masks(cfg, found):
    "The same configuration with the label files as stock users name them."
    from rvtutorial.config import make_scene

    classes, groups = cfg.dataset.class_config, ("train", "validation", "test")
    for group, split in zip(groups, ("train", "val", "test"), strict=True):
        made = [
            make_scene(s.id, s.image, s.label, classes, label_values={255: 0, 0: 1})
            for s in found[split]
        ]
        setattr(cfg.dataset, f"{group}_scenes", made)
    return cfg


def test_the_engine_says_once_that_a_tag_hides_a_class(tmp_path, capsys):
    "And then it trains, evaluates and counts as Raster Vision does."
    from rvtutorial import engine
    from rvtutorial.engine import pipeline
    from rvtutorial.metrics import counting, leaderboard
    from rvtutorial.runs import Run

    data = make_set(tmp_path / "d", tags(nodata=255), hole=False)
    cfg = config_of(data, tmp_path / "run", label_values=TWO)
    assert pipeline._hidden_classes(cfg.dataset) == []
    found = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    engine.run(with_tagged_masks(cfg, found))
    told = capsys.readouterr().out
    assert told.count("declare 255 as no data") == 1
    assert "4 label rasters" in told and "the class building" in told
    assert "Raster Vision reads such pixels as background" in told
    run = Run(tmp_path / "run")
    items = run.evaluation("validation")["overall"]
    (building,) = (i for i in items if i.get("class_name") == "building")
    counts = building["conf_mat_dict"]
    assert counts["TP"] + counts["FN"] == 0  # as stock reads them
    ours = counting.count_rasters(
        run.label("3"), run.prediction("3"), ("building", "background", "null"),
        **leaderboard.label_meaning(run, "3"),
    )  # fmt: skip
    assert ours.total[0].sum() == 0 and ours.total[:, 0].sum() == counts["FP"]


def test_nodata_that_is_no_number_is_no_class():
    from rvtutorial.engine import pipeline

    for value in (float("inf"), float("-inf"), float("nan"), None, 0.5, 9):
        assert pipeline._class_of(value, [], ["a", "b"]) is None
    assert pipeline._class_of(1.0, [], ["a", "b"]) == "b"


@pytest.mark.parametrize("nodata", [None, 0, 7])
def test_a_tag_that_hides_nothing_is_not_mentioned(tmp_path, nodata):
    from rvtutorial.engine import pipeline

    data = make_set(tmp_path / "d", tags(nodata=nodata), hole=False)
    cfg = config_of(data, tmp_path / "run", label_values=TWO)
    found = find_splits(data, "i_{id}.tif", "m_{id}.tif")
    assert pipeline._hidden_classes(with_tagged_masks(cfg, found).dataset) == []


def test_drawing_a_scene_with_a_mask(tmp_path):
    data = make_set(tmp_path / "d", values(0, 1, "uint8"))
    scene = find_splits(data, "i_{id}.tif", "m_{id}.tif")["train"][0]
    axes = scenes.plot_scene(scene, label_values="0:building,1:background").axes[0]
    share = pattern(1).mean()
    assert axes.get_title() == f"scene 1: building on {share:.0%} of it"
    assert "label_values" in scenes.plot_scene(scene).axes[0].get_title()


@pytest.mark.parametrize("how", ["average", "nearest", "bilinear"])
def test_overviews_of_a_mask_are_not_looked_at(tmp_path, how):
    "They may hold averages, which are no classes."
    from rvtutorial.figures import maps

    there = np.random.default_rng(0).random((512, 512)) < 0.3
    image = write(tmp_path / "i.tif", np.ones((3, 512, 512), np.uint8))
    mask = write(tmp_path / "m.tif", np.where(there, 255, 0).astype(np.uint8))
    with rasterio.open(mask, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling[how])
    axes = scenes.plot_scene(Scene("1", image, mask), 128, label_values=TWO).axes[0]
    assert axes.get_title() == "scene 1: building on 30% of it"
    frame = maps.Frame.of(image)
    for drawn in (
        maps._read_labels(mask, 128),
        maps._read_labels(mask, 128, frame),
    ):
        assert drawn.shape == (128, 128) and set(np.unique(drawn)) == {0, 255}
        assert (drawn > 0).mean() == pytest.approx(0.3, abs=0.02)


def test_real_rio_masks_are_read_in_spite_of_their_tag(shared_data, tmp_path):
    folder = shared_data("spacenet1_rio")
    name = "3band_013022223130_Public_img{id}.tif"
    found = scenes.find_scenes(folder, f"images/{name}", f"masks/{name}")
    splits = dict(train=found[:2], val=found[3:4], test=found[4:5])
    table = scenes.write_table(splits, tmp_path / "rio.csv")
    cfg = config_of(table, tmp_path / "run", label_values=TWO)
    for name, ids in labels_by_stock(cfg).items():
        scene = next(s for s in found if s.id == name)
        with rasterio.open(scene.label) as file:
            assert np.array_equal(ids == 0, file.read(1) == 255)


def test_real_dubai_becomes_classes(shared_data, tmp_path):
    folder = shared_data("dubai")
    names = ["building", "land", "road", "vegetation", "water"]
    said = "#3C1098:building,#8429F6:land,#6EC1E4:road,#FEDD3A:vegetation,"
    said += "#E2A929:water,#9B9B9B:null,#000000:null"
    meaning = Meaning.of(said, names)
    total = np.zeros(7)
    for path in sorted(folder.glob("Tile [14]/masks/*.png")):
        ids = meaning.read(path)
        total += np.bincount(ids.ravel(), minlength=7)
        _, counted = meaning.explain(path)
        assert meaning.by_class(counted) == {
            n: int((ids == i + 1).sum())
            for i, n in enumerate([*names, "null"])
            if (ids == i + 1).any()
        }
    assert total[0] == 0 and total[1] > 0


def test_a_table_holds_the_meaning_as_json(tmp_path):
    data = make_set(tmp_path / "d", tags(nodata=255))
    config_of(data, tmp_path / "run", label_values=TWO)
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["asked"]
    assert asked["labels"]["label_values"] == TWO
    assert Scene("a", data).split == ""

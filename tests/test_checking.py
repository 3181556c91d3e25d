"""`rvtutorial check` finds what is planted, and says nothing of what is sound."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.warp import calculate_default_transform, reproject
from shapely import Polygon, affinity

from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.hpc import checking, sites
from rvtutorial.hpc.checking import check_run
from rvtutorial.hpc.sites import Site, check_site

RASTERS = dict(label_pattern="mask_{id}.tif", label_values="255:building,0:background")
IMAGE = "RGB-PanSharpen_AOI_2_Vegas_img{}.tif"
LABEL = "buildings_AOI_2_Vegas_img{}.geojson"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    "Twelve scenes, with their labels also as rasters of 255 and 0."
    folder = make_sample_scenes(tmp_path_factory.mktemp("sound") / "data", 8, 3, 1, 300)
    for label in folder.glob("*/*.geojson"):
        number = label.stem.rpartition("img")[2]
        with rasterio.open(label.with_name(IMAGE.format(number))) as file:
            about, shape = file.profile, file.shape
        frame = geopandas.read_file(label).to_crs(about["crs"])
        drawn = [(shape, 255) for shape in frame.geometry]
        mask = np.zeros(shape, np.uint8)
        if drawn:
            mask = rasterize(drawn, shape, transform=about["transform"], dtype="uint8")
        about |= dict(count=1, dtype="uint8", photometric="minisblack")
        with rasterio.open(label.with_name(f"mask_{number}.tif"), "w", **about) as out:
            out.write(mask, 1)
    return folder


@pytest.fixture
def folder(clean, tmp_path):
    "A copy that a test may spoil."
    return Path(shutil.copytree(clean, tmp_path / "data"))


def said(data, site=None, **settings):
    "What a check says: problems and doubts."
    found = check_run(data, settings, site)
    return found.problems + found.doubts


def change(path, edit, **about):
    "Write a raster again, its pixels (bands, rows, columns) edited."
    with rasterio.open(path) as file:
        pixels, kept = file.read(), file.profile
    pixels = edit(pixels)
    kept |= dict(count=len(pixels), dtype=pixels.dtype, height=pixels.shape[1])
    kept |= dict(width=pixels.shape[2]) | about
    if len(pixels) != 3:
        kept["photometric"] = "minisblack"
    with rasterio.open(path, "w", **kept) as file:
        file.write(pixels)


def move(path, rows, columns, image):
    "Move labels by pixels of an image."
    with rasterio.open(image) as file:
        place = file.transform
    frame = geopandas.read_file(path)
    frame["geometry"] = frame.translate(columns * place.a, rows * place.e)
    frame.to_file(path, driver="GeoJSON")


# --- what is planted: each changes a folder, and returns settings for the check


def strip_at_the_edge(folder):
    return dict(preset="sample", chip_sz=220, stride_length=300)


def learning_rate_too_high(folder):
    return dict(preset="sample", lr=0.08)


def reference_systems_mixed(folder):
    path = folder / "train" / IMAGE.format(2)
    with rasterio.open(path) as file:
        pixels, about = file.read(), file.profile
        how = calculate_default_transform(
            file.crs, "EPSG:32611", file.width, file.height, *file.bounds
        )
    out = np.zeros((3, how[2], how[1]), pixels.dtype)
    reproject(pixels, out, src_transform=about["transform"], src_crs=about["crs"],
              dst_transform=how[0], dst_crs="EPSG:32611")  # fmt: skip
    about |= dict(crs="EPSG:32611", transform=how[0], height=how[2], width=how[1])
    with rasterio.open(path, "w", **about) as file:
        file.write(out)


def nodata_learned(folder):
    def edit(pixels):
        pixels[:, :, :40] = 3000
        return pixels

    change(folder / "train" / IMAGE.format(2), edit)


def labels_shifted(folder):
    for label in folder.glob("*/*.geojson"):
        number = label.stem.rpartition("img")[2]
        move(label, 6, -7, label.with_name(IMAGE.format(number)))


def labels_of_one_scene_shifted(folder):
    path = folder / "train" / LABEL.format(1)
    move(path, 9, 8, path.with_name(IMAGE.format(1)))


def mask_inverted(folder):
    for mask in folder.glob("*/mask_*.tif"):
        change(mask, lambda pixels: 255 - pixels)
    return RASTERS


def mask_of_one_scene_inverted(folder):
    change(folder / "train" / "mask_1.tif", lambda pixels: 255 - pixels)
    return RASTERS


def split_leaked(folder):
    for name, new in ((IMAGE, IMAGE), (LABEL, LABEL)):
        shutil.copy(folder / "train" / name.format(1), folder / "val" / new.format(99))


def split_leaked_without_place(folder):
    "Nothing says where scenes lie, so that only the files tell."
    for path in [*folder.glob("*/RGB*.tif"), *folder.glob("*/mask*.tif")]:
        change(path, lambda pixels: pixels, crs=None, transform=None)
    for name in (IMAGE, "mask_{}.tif"):
        shutil.copy(folder / "train" / name.format(1), folder / "val" / name.format(99))
    return RASTERS


def split_leaked_by_a_copy_that_was_written_again(folder):
    split_leaked_without_place(folder)
    noise = np.random.default_rng(0).integers(0, 9, (3, 300, 300))
    path = folder / "val" / IMAGE.format(99)
    change(path, lambda p: (0.9 * p + noise).astype(p.dtype), compress="deflate")
    return RASTERS


def chip_smaller_than_a_building(folder):
    return dict(preset="sample", chip_sz=32, stride_length=16)


def class_never_drawn(folder):
    for label in folder.glob("*/*.geojson"):
        frame = geopandas.read_file(label)
        frame["kind"] = "building"
        frame.to_file(label, driver="GeoJSON")
    return dict(classes="building,pool,background", class_field="kind")


def class_hardly_ever_drawn(folder):
    "One small building in all of training."
    for label in (folder / "train").glob("*.geojson"):
        frame = geopandas.read_file(label)
        frame = frame.iloc[:1] if "img2" in label.stem else frame.iloc[:0]
        frame.to_file(label, driver="GeoJSON")
    return dict(preset="sample", chip_sz=64, stride_length=64, max_windows=1)


def validation_that_jumps(folder):
    for label in (folder / "val").glob("*.geojson"):
        geopandas.read_file(label).iloc[:3].to_file(label, driver="GeoJSON")


def too_little_memory(folder):
    return dict(preset="sample", batch_sz=512, site=Site(name="here", mem="4G"))


def wall_time_too_short(folder):
    site = Site(name="here", time="00:10:00", cpus=2)
    return dict(preset="sample", epochs=10000, max_windows=1000, site=site)


def budget_beyond_wall_time(folder):
    return dict(preset="own", budget="3 h", site=Site(name="here", time="01:00:00"))


def image_without_label(folder):
    (folder / "train" / LABEL.format(1)).unlink()


def label_without_image(folder):
    (folder / "train" / IMAGE.format(1)).unlink()


def two_files_of_one_id(folder):
    for split, number in (("val", 9), ("train", 9)):
        for name in (IMAGE, LABEL):
            path = folder / split / name.format(number)
            if not path.exists():
                shutil.copy(folder / "train" / name.format(1), path)


def truncated_image(folder):
    path = folder / "train" / IMAGE.format(2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def invalid_geometry(folder):
    path = folder / "train" / LABEL.format(1)
    frame = geopandas.read_file(path)
    x0, y0, x1, y1 = frame.geometry.iloc[0].bounds
    bow = Polygon([(x0, y0), (x1, y1), (x1, y0), (x0, y1)])
    frame.loc[0, "geometry"] = affinity.scale(bow, 3, 3)
    frame.to_file(path, driver="GeoJSON")


def labels_of_another_grid(folder):
    change(folder / "train" / "mask_1.tif", lambda pixels: pixels[:, :-7, :-7])
    return RASTERS


def band_missing_in_one_image(folder):
    change(folder / "train" / IMAGE.format(1), lambda pixels: pixels[:2])


def other_type_in_one_image(folder):
    path = folder / "train" / IMAGE.format(1)
    change(path, lambda pixels: (pixels // 16).astype(np.uint8))


def palette_that_differs(folder):
    for number, path in enumerate(sorted(folder.glob("*/RGB*.tif"))):
        with rasterio.open(path) as file:
            about, pixels = file.profile, file.read(1)
        about |= dict(count=1, dtype="uint8", photometric="palette")
        with rasterio.open(path, "w", **about) as file:
            file.write((pixels // 16).astype(np.uint8), 1)
            grey = {i: (i, i, i if number else 0, 255) for i in range(256)}
            file.write_colormap(1, grey)


def values_that_are_not_scaled(folder):
    return dict(preset="sample", scaling="none")


def chips_that_are_resized(folder):
    return dict(preset="sample", img_sz=128)


def pixels_of_another_size(folder):
    path = folder / "train" / IMAGE.format(2)
    with rasterio.open(path) as file:
        place = file.transform
    change(path, lambda pixels: pixels[:, ::3, ::3], transform=place @ place.scale(3))


FAULTS = {
    strip_at_the_edge: "leave gaps",
    learning_rate_too_high: "lr 0.08 is high",
    reference_systems_mixed: "reference systems are mixed: 11 .* scene 2 in EPSG:32611",
    nodata_learned: "scene 2 holds 3000 where there is probably no data",
    labels_shifted: r"shifted: in all scenes .* moved by -[567] rows and \+[678] col",
    labels_of_one_scene_shifted: r"shifted: in scene 1.* moved by -(8|9|10) rows and -[789]",
    mask_inverted: "inverted in all scenes",
    mask_of_one_scene_inverted: "inverted in scene 1:",
    split_leaked: "train 1 and val 99 share 100% of their ground",
    split_leaked_without_place: "1 of train and 99 of val are the same image",
    split_leaked_by_a_copy_that_was_written_again: "1 of train and 99 of val show the",
    chip_smaller_than_a_building: "chip_sz 32 is smaller than many",
    class_never_drawn: "no label of train shows pool",
    class_hardly_ever_drawn: "hardly ever drawn",
    validation_that_jumps: "jump from epoch to epoch",
    too_little_memory: "out of memory",
    wall_time_too_short: "stopped before it",
    budget_beyond_wall_time: "budget 3 h is longer than the time of the job, 60 min",
    image_without_label: "images without labels: 1",
    label_without_image: "labels without images: 1",
    two_files_of_one_id: "the same id is met twice: 9",
    truncated_image: "cut off",
    invalid_geometry: "1 invalid repaired",
    labels_of_another_grid: "cut or resample it to the image's grid",
    band_missing_in_one_image: "1: bands is 2, 3 is expected",
    other_type_in_one_image: "1: dtype is uint8, uint16 is expected",
    palette_that_differs: "palette differs",
    values_that_are_not_scaled: "scaling is none",
    chips_that_are_resized: "img_sz 128 is not chip_sz",
    pixels_of_another_size: "pixels differ in size",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_said(folder, plant):
    settings = plant(folder) or {}
    found = check_run(folder, settings, settings.pop("site", None))
    notes = [row["notes"] for row in found.rows]
    text = "\n".join(found.problems + found.doubts + notes)
    assert re.search(FAULTS[plant], text), text


# --- what is sound


def test_nothing_is_said_of_sound_scenes(clean):
    assert said(clean) == []
    assert said(clean, **RASTERS) == []
    for preset in ("sample", "smoke", "own"):
        assert said(clean, preset=preset) == []


def test_nothing_is_said_of_the_scenes_of_the_presets(tmp_path):
    from rvtutorial.data.synthetic import SAMPLES

    for preset in ("smoke", "sample"):
        folder = make_sample_scenes(tmp_path / preset, **SAMPLES[preset])
        assert said(folder, preset=preset, site="local") == []


@pytest.mark.parametrize("name", ["rio", "kampala", "dubai", "vegas", "spacenet7"])
def test_nothing_is_said_of_real_imagery(name, shared_data, tmp_path):
    from rvtutorial import scenes

    classes = "building,land,road,vegetation,water"
    colours = "#3C1098:building,#8429F6:land,#6EC1E4:road,#FEDD3A:vegetation,"
    where, patterns, settings = {
        "rio": ("spacenet1_rio", ("images/*img{id}.tif", "masks/*img{id}.tif"),
                dict(label_values="255:building,0:background")),
        "kampala": ("openaerialmap_kampala", ("images/OAM-{x}-{y}-{z}.png", "labels.geojson"), {}),
        "dubai": ("dubai", ("Tile {tile}/images/image_part_{id}.jpg", "Tile {tile}/masks/image_part_{id}.png"),
                  dict(classes=classes, label_values=colours + "#E2A929:water,#9B9B9B:null,#000000:null")),
        "vegas": ("spacenet2_vegas", ("images/*img{id}.tif", "labels/*img{id}.geojson"), {}),
        "spacenet7": ("spacenet7", ("images/{id}.tif", "labels/{id}_Buildings.geojson"), {}),
    }[name]  # fmt: skip
    found = scenes.find_scenes(shared_data(where), *patterns)
    if name == "kampala":
        found = scenes.place_tiles([s for s in found if s.parts["z"] == "20"], tmp_path)
    how = {}
    if name == "dubai":
        splits = scenes.split_scenes(found, n_val=1, n_test=1, by="tile")
    elif len(found) > 5:
        splits = scenes.split_scenes(found, n_val=len(found) // 4)
    else:
        splits = {"train": found}
    table = scenes.write_table(splits, tmp_path / "scenes.csv")
    assert said(table, **settings, **how) == []
    assert said(table, preset="own", **settings, **how) == []


# --- the job


def test_what_a_site_asks_for_in_vain(tmp_path, monkeypatch):
    "Account, partition, GPU, time and disk, each with its remedy."
    programs = {
        "sbatch": "", "squeue": "",
        "sinfo": 'case "$*" in *%G*) echo "cpu|1:00:00|8|16000|idle|(null)";'
                 ' echo "gpu|2:00:00|8|16000|idle|gpu:a100:2";; *) echo cpu; echo gpu;; esac',
        "sacctmgr": 'case "$*" in *associations*) echo "crops||normal";; *) echo crops;; esac',
    }  # fmt: skip
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def wrong(**fields):
        table = check_site(Site(name="here", queue="slurm", **fields))
        return [
            "{what}: {found}; {remedy}".format(**r)
            for r in table[~table.ok].to_dict("records")
        ]

    assert wrong(account="crops", partition="gpu", gres="gpu:1", time="01:00:00") == []
    assert wrong(account="maize") == ["account: maize; yours: crops"]
    assert wrong(partition="huge") == ["partition: huge; yours: cpu, gpu"]
    assert (
        "gres gpu:1 is more than its nodes have: none"
        in wrong(partition="cpu", gres="gpu:1")[0]
    )
    assert (
        "time 05:00:00 is more than its partition gpu allows"
        in wrong(partition="gpu", time="05:00:00")[0]
    )
    monkeypatch.setattr(
        sites.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8)
    )
    assert wrong(partition="gpu")[0].startswith("free disk: 0 GB")


def test_disk_for_maps(clean, monkeypatch):
    free = SimpleNamespace(free=10**5)
    monkeypatch.setattr(checking.shutil, "disk_usage", lambda _: free)
    (found,) = said(clean, preset="sample", scores="float32")
    assert "GB are free" in found


def test_thin_images_and_images_of_few_values(folder):
    "Neither stops the check, and few values are not taken for frames."
    for path in folder.glob("*/RGB*.tif"):
        change(path, lambda pixels: pixels // 512)
    assert [text for text in said(folder, **RASTERS) if "no data" in text] == []
    for path in [*folder.glob("*/RGB*.tif"), *folder.glob("*/mask*.tif")]:
        change(path, lambda pixels: pixels[:, :1])
    check_run(folder, RASTERS)


@pytest.mark.parametrize(
    "gres, size",
    [("gpu:2", 141), ("gpu:a100_40gb:1", 40), ("gpu:nvidia_a100-sxm4:1", 80)],
)
def test_memory_of_a_gpu_by_its_name(gres, size):
    limits = checking._limits_of(Site(name="here", gres=gres))
    assert limits["gpu"] and limits["memory"] == size * 10**9


def test_what_settings_say_where_a_chip_does_not_fit(clean):
    found = said(clean, preset="sample", chip_sz=512, lr=0.3)
    assert len(found) == 2 and "at most 300" in found[0] and "lr 0.3" in found[1]


def test_a_name_that_is_no_setting(clean):
    with pytest.raises(
        ValueError, match="chip_size is no setting; did you mean 'chip_sz'"
    ):
        said(clean, chip_size=3)


def test_the_command(clean, capsys):
    from rvtutorial.cli import _cli

    with pytest.raises(SystemExit) as done:
        _cli(["check", str(clean), "--only", "data", "lr=0.3", "--json"])
    doc = json.loads(capsys.readouterr().out)
    assert done.value.code == 0 and doc["ok"] and len(doc["odd"]) == 1

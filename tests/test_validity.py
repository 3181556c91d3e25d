"""Which pixels hold data: one answer for checks, statistics, labels, figures and maps."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from rvtutorial import scenes
from rvtutorial.data import validity
from rvtutorial.data.pairing import Scene
from rvtutorial.data.validity import Validity, windows_of

HOLE = np.zeros((200, 150), bool)
HOLE[20:60, 30:90] = True


def valid(file, window=None, **how):
    "Which pixels of an open raster hold data."
    return Validity(file, **how).valid(window)


def image(bands=3, dtype="uint8", seed=0):
    "Pixels without a zero."
    shape = (bands, *HOLE.shape)
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def write(path, pixels, mask=None, alpha=None, **more):
    "A GeoTIFF; `alpha` is the place of the alpha band, `mask` an internal mask."
    about = dict(driver="GTiff", width=pixels.shape[2], height=pixels.shape[1])
    about |= dict(count=len(pixels), dtype=pixels.dtype, crs="EPSG:32611")
    about |= dict(transform=from_origin(6e5, 4e6, 0.5, 0.5)) | more
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=more.get("internal", True)),
        rasterio.open(path, "w", **about) as file,
    ):
        if alpha is not None:
            kinds = [ColorInterp.gray] + [ColorInterp.undefined] * (len(pixels) - 1)
            kinds[alpha] = ColorInterp.alpha
            file.colorinterp = kinds
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
    return path


def cases():
    "Name -> pixels, options of `write`, the reason; all have the same hole."
    tall = image(5)
    tall[4] = np.where(HOLE, 0, 255)
    first = image(3)
    first[0] = np.where(HOLE, 0, 7)
    floats = image(3, "float32")
    gap, odd, nothing, inf = (floats.copy() for _ in range(4))
    gap[1][HOLE], odd[:, HOLE], nothing[:, HOLE], inf[2][HOLE] = (
        -9999,
        np.float32(-3.4028235e38),
        np.nan,
        np.inf,
    )
    one_nan = floats.copy()
    one_nan[2][HOLE] = np.nan
    dark, tagged = image(3), image(3)
    dark[:, HOLE], tagged[:, HOLE] = 0, 255
    wide = image(3, "uint16")
    wide[:, HOLE] = 65535
    return {
        "alpha last": (np.concatenate([image(3), tall[4:]]), dict(alpha=3), "alpha"),
        "alpha in band 5": (tall, dict(alpha=4), "alpha in band 5"),
        "alpha in band 1": (first, dict(alpha=0), "alpha in band 1"),
        "internal mask": (image(3), dict(mask=~HOLE), "masked in the file"),
        "mask beside": (image(3), dict(mask=~HOLE, internal=False), "masked"),
        "-9999 in one band": (gap, dict(nodata=-9999), "declared nodata -9999"),
        "65535 declared": (wide, dict(nodata=65535), "declared nodata 65535"),
        "rounded": (odd, dict(nodata=-3.4e38), "declared nodata -3.4e+38"),
        "fill undeclared": (odd, {}, "not finite"),
        "nan declared": (nothing, dict(nodata=np.nan), "declared nodata nan"),
        "nan undeclared": (nothing, {}, "not finite"),
        "nan in one band": (one_nan, {}, "not finite"),
        "inf in one band": (inf, {}, "not finite"),
        "zeros undeclared": (dark, {}, "0 in all bands, undeclared"),
        "zeros declared": (dark, dict(nodata=0), "declared nodata 0"),
        "255 declared": (tagged, dict(nodata=255), "declared nodata 255"),
    }


@pytest.fixture(params=cases())
def case(request, tmp_path):
    "A file with a hole, and the reason."
    pixels, how, why = cases()[request.param]
    return write(tmp_path / "image.tif", pixels, **how), why


def test_every_way_to_say_that_there_is_nothing(case):
    path, why = case
    with rasterio.open(path) as file:
        assert (valid(file) == ~HOLE).all()
        share, note = Validity(file).emptiness()
        assert share == pytest.approx(HOLE.mean(), abs=1e-9)
    assert why in note and note.count("%") == 2


def test_the_check_says_what_is_empty_and_why(case):
    path, why = case
    table = scenes.check_scenes([Scene("1", path)])
    assert table.no_data[0] == pytest.approx(HOLE.mean(), abs=1e-4)
    assert why in table.notes[0]


def test_percentiles_and_pictures_are_of_pixels_with_data(case):
    path, _ = case
    low, high = scenes.percentiles([Scene("1", path)], 1, 99)
    with rasterio.open(path) as file:
        colours = validity.colour_bands(file)
        alpha = [b for b in range(file.count) if b not in colours]
    low, high = (np.delete(part, alpha) for part in (low, high))
    assert (low >= 1).all() and (high < 250).all() and (low < high).all()
    axes = scenes.plot_scene(Scene("1", path)).axes[0]
    drawn = axes.images[0].get_array()
    assert not drawn[HOLE].any() and np.isfinite(drawn).all() and drawn[~HOLE].any()


def test_one_band_of_zero_is_dark_and_no_gap(tmp_path):
    pixels = image(3)
    pixels[0][HOLE] = 0
    for name, more in (("a.tif", {}), ("b.tif", dict(nodata=0))):
        with rasterio.open(write(tmp_path / name, pixels, **more)) as file:
            assert (
                valid(file).all() and not valid(file, bands=[0])[HOLE].any() or not more
            )
            assert valid(file, bands=[1, 2]).all()


def test_a_value_that_a_camera_may_measure_takes_all_bands_that_declare_it(tmp_path):
    "As GDAL's own mask has it: a roof that saturates one band is no gap."
    for kind, value in (("uint8", 255), ("uint16", 65535), ("int16", 32767)):
        pixels = image(3, kind)
        pixels[0][HOLE] = value
        with rasterio.open(write(tmp_path / "a.tif", pixels, nodata=value)) as file:
            assert valid(file).all() and (file.dataset_mask() > 0).all()
            assert (valid(file, bands=[0]) == ~HOLE).all()
            assert Validity(file).emptiness() == (0, "")
    pixels = image(3, "int16")
    pixels[0][HOLE] = -9999
    with rasterio.open(write(tmp_path / "a.tif", pixels, nodata=-9999)) as file:
        assert (valid(file) == ~HOLE).all()


def test_a_thinned_window_looks_for_patches_of_the_same_size(tmp_path):
    pixels = image(3)
    pixels[:, 20:24, 20:24], pixels[:, 100:120, 40:80] = 0, 0
    with rasterio.open(write(tmp_path / "a.tif", pixels)) as file:
        look, whole = Validity(file), Window(0, 0, 150, 200)
        assert look.valid(Window(10, 10, 60, 60), shape=(60, 60)).all()
        seen = look.valid(Window(0, 0, 100, 150), shape=(75, 50))
        assert (seen == valid(file)[:150:2, :100:2]).all() and not seen.all()
        thin = look.valid(whole, shape=(100, 75))
        assert (thin == look.valid(shape=(100, 75))).all() and not thin.all()


def test_a_small_share_is_not_called_none(tmp_path):
    pixels = image(3, "float32")
    pixels[1, 5, 5:7] = np.nan
    with rasterio.open(write(tmp_path / "a.tif", pixels)) as file:
        told = "less than 0.01% without data (not finite: less than 0.01%)"
        assert Validity(file).emptiness()[1] == told
    pixels[1, 5, 5:35] = np.nan
    with rasterio.open(write(tmp_path / "a.tif", pixels)) as file:
        told = "0.10% without data (not finite: 0.10%)"
        assert Validity(file).emptiness()[1] == told
    table = scenes.check_scenes([Scene("1", tmp_path / "a.tif")])
    assert table.no_data[0] == 30 / HOLE.size


def test_a_band_that_is_asked_for_is_no_alpha(tmp_path):
    pixels = image(4)
    pixels[3] = np.where(HOLE, 0, 9)
    with rasterio.open(write(tmp_path / "a.tif", pixels, alpha=3)) as file:
        assert not valid(file)[HOLE].any()
        assert valid(file, bands=[0, 1, 2, 3]).all()
        assert Validity(file).alphas == [3]
        assert Validity(file, [3, 2]).alphas == []


@pytest.mark.filterwarnings("ignore")
def test_a_value_for_each_band_stands_for_nothing_only_together(tmp_path):
    pixels = image(3)
    pixels[0], pixels[:, HOLE] = 7, np.array([[7], [8], [9]])
    path = write(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as file:
        file.update_tags(NODATA_VALUES="7 8 9")
    with rasterio.open(path) as file:
        assert (valid(file) == ~HOLE).all()


def test_zeros_can_be_data(tmp_path):
    pixels = image(1, "float32")
    pixels[:, HOLE] = 0
    path = write(tmp_path / "sea.tif", pixels)
    with rasterio.open(path) as file:
        assert not valid(file)[HOLE].any() and valid(file, zeros="data").all()
        with pytest.raises(ValueError, match='zeros must be "empty".*got .maybe.'):
            valid(file, zeros="maybe")
    table = scenes.check_scenes([Scene("1", path)], zeros="data")
    assert table.no_data[0] == 0
    low, _ = scenes.percentiles([Scene("1", path)], 1, 99, zeros="data")
    assert low == [0.0]


def patches(shape=(300, 260), seed=0):
    "Zeros in patches of all sizes around 64 pixels, some of them snakes of one pixel."
    rng = np.random.default_rng(seed)
    zero = rng.random(shape) < 0.5
    for _ in range(60):
        y, x, n = (
            *(int(rng.integers(0, side)) for side in shape),
            int(rng.integers(56, 72)),
        )
        zero[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + n + 1] = False
        zero[y, x : x + n] = True
    return zero


def by_hand(zero, smallest=64):
    "Patches of some size, found by walking."
    out, seen = np.zeros_like(zero), np.zeros_like(zero)
    for start in zip(*np.nonzero(zero), strict=True):
        if seen[start]:
            continue
        patch, todo = [], [start]
        seen[start] = True
        while todo:
            y, x = todo.pop()
            patch.append((y, x))
            for v, w in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < zero.shape[0] and 0 <= w < zero.shape[1]
                if inside and zero[v, w] and not seen[v, w]:
                    seen[v, w] = True
                    todo.append((v, w))
        if len(patch) >= smallest:
            out[tuple(np.transpose(patch))] = True
    return out


@pytest.mark.parametrize("seed", range(3))
def test_windows_are_parts_of_the_whole(tmp_path, seed):
    zero = patches(seed=seed)
    pixels = np.where(zero, 0, 9).astype("uint8")[None]
    expected = ~by_hand(zero)
    assert 0.05 < (~expected).sum() / zero.sum() < 0.95
    rng = np.random.default_rng(seed)
    with rasterio.open(write(tmp_path / "a.tif", pixels)) as file:
        assert (valid(file) == expected).all()
        for size in (1, 7, 64, 100):
            for _ in range(15):
                y, x = (int(rng.integers(0, side - size + 1)) for side in zero.shape)
                found = valid(file, Window(x, y, size, size))
                assert (found == expected[y : y + size, x : x + size]).all()


def test_a_window_of_a_snake_along_its_border(tmp_path):
    "64 pixels in a row: data as soon as one of them is missing."
    for n in (63, 64):
        pixels = np.ones((1, 5, 200), "uint8")
        pixels[0, 2, 40 : 40 + n] = 0
        with rasterio.open(write(tmp_path / f"{n}.tif", pixels)) as file:
            found = valid(file, Window(0, 0, 41, 5))
            assert found.all() == (n == 63)


@pytest.mark.parametrize("layout", [
    {}, dict(tiled=True, blockxsize=64, blockysize=48), dict(blockysize=300),
])  # fmt: skip
def test_windows_cover_every_pixel_once_within_bounds(tmp_path, layout):
    pixels = np.zeros((3, 300, 517), "uint16")
    path = write(tmp_path / "a.tif", pixels, **layout)
    with rasterio.open(path) as file:
        for most in (2**25, 40_000):
            seen = np.zeros(file.shape, int)
            for window in windows_of(file, most=most):
                seen[window.toslices()] += 1
                assert window.height * window.width * 6 <= 4 * most
            assert (seen == 1).all()


def test_masks_that_are_compared_in_the_type_of_the_band():
    values = np.array([0, 7, 255], "uint8")
    assert not validity._stands_for(values, -9999).any()
    assert not validity._stands_for(values, 7.5).any()
    assert validity._stands_for(values, 255.0).tolist() == [False, False, True]
    third = np.float32([0.1, 0.2])
    assert validity._stands_for(third, 0.1).tolist() == [True, False]


def test_thinned_out_for_drawing(tmp_path):
    pixels = image(3)
    pixels[:, HOLE] = 0
    pixels[:, 150:154, 100:104] = 0
    with rasterio.open(write(tmp_path / "a.tif", pixels)) as file:
        found = Validity(file).valid(shape=(100, 75))
    assert (found == ~HOLE[::2, ::2]).mean() > 0.98 and not found[12:28, 17:43].any()


# the size of what is checked

PEAK = """
import sys
from pathlib import Path
import geopandas, pyproj, rasterio.features, shapely
from rvtutorial import scenes
MiB = lambda what: int(Path("/proc/self/status").read_text().partition(what)[2].split()[0]) // 1024
before = MiB("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
image, label, values = sys.argv[1:]
scene = scenes.Scene("1", Path(image), Path(label))
table = scenes.check_scenes([scene], label_values=values or None)
print(table.no_data[0], table.share[0], MiB("VmHWM:") - before, before)
"""


def sparse(path, width, height, count=1, **more):
    "A large file of empty blocks, and a corner with data."
    about = dict(driver="GTiff", width=width, height=height, count=count, dtype="uint8")
    about |= dict(tiled=True, blockxsize=512, blockysize=512, sparse_ok=True)
    about |= dict(crs="EPSG:32611", transform=from_origin(6e5, 4e6, 0.5, 0.5))
    about |= dict(compress="deflate", bigtiff="if_safer") | more
    with rasterio.open(path, "w", **about) as file:
        some = np.full((count, 1000, 1000), 9, "uint8")
        file.write(some, window=Window(0, 0, 1000, 1000))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(12_000, 12_000), (1_200, 120_000)])
@pytest.mark.parametrize("kind", ["polygons", "raster"])
def test_large_scenes_are_checked_in_little_memory(tmp_path, shape, kind):
    import geopandas
    import shapely

    path = sparse(tmp_path / "a.tif", shape[1], shape[0], 3)
    if kind == "raster":
        label, values = (
            sparse(tmp_path / "b.tif", shape[1], shape[0]),
            "9:building,0:background",
        )
        labelled = 1e6
    else:
        label, values = tmp_path / "a.gpkg", ""
        labelled = 500 * 1000 + 2 * (shape[0] - 1000)
        boxes = [
            shapely.box(6e5, 4e6 - 500, 6e5 + 250, 4e6),
            shapely.box(6e5, 0, 6e5 + 1, 4e6),
        ]
        geopandas.GeoSeries(boxes, crs="EPSG:32611").to_file(label)
    args = [sys.executable, "-c", PEAK, str(path), str(label), values]
    out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    empty, share, most, libraries = map(float, out.split())
    assert empty == pytest.approx(1 - 1e6 / np.prod(shape), abs=1e-4)
    assert share == pytest.approx(labelled / np.prod(shape), abs=1e-4) and share > 0
    # MiB beyond Python and its libraries, which take 125; one band whole would be 137 more
    assert most < 200, (most, libraries)


# maps


def three(chips):
    "Scores of three classes by a rule that a pixel alone decides; refuses odd numbers."
    assert np.isfinite(chips).all() and (np.abs(chips) < 1e6).all()
    bright = chips.astype("float32").sum(-1) % 7 / 7
    return np.stack([bright, 1 - bright, np.zeros_like(bright)], 1)


def mapped(path, out, **more):
    "Labels and scores of a map, and how many chips were predicted."
    from rvtutorial.engine.prediction import map_images

    how = dict(classes=["building", "background", "null"], chip_sz=32, scores="float32")
    told = map_images(path, three, out, polygons=False, **how | more)
    folder = next(out.iterdir())
    with rasterio.open(folder / "labels.tif") as file:
        labels = file.read(1)
    with rasterio.open(folder / "scores.tif") as file:
        return labels, file.read(), told["chips"]


def test_maps_are_empty_where_the_check_says_so(case, tmp_path):
    path, _ = case
    labels, scores, _ = mapped(path, tmp_path / "out")
    assert ((labels == 255) == HOLE).all()
    assert ((scores == 0).all(0) == HOLE).all()


def test_zeros_are_mapped_on_request(tmp_path):
    pixels = image(3)
    pixels[:, HOLE] = 0
    labels, *_ = mapped(
        write(tmp_path / "a.tif", pixels), tmp_path / "out", zeros="data"
    )
    assert (labels != 255).all()


@pytest.mark.parametrize("blend", ["cosine", "mean", "votes"])
def test_empty_windows_are_not_predicted_and_nothing_else_changes(
    tmp_path, blend, monkeypatch
):
    from rvtutorial.engine import mapfiles

    pixels = np.random.default_rng(0).integers(1, 250, (3, 900, 700)).astype("uint8")
    pixels[:, 40:800, 100:600] = 0
    pixels[:, 300:305, 300:305] = 8  # an island in the hole
    pixels[:, 500:505, 500:510] = np.where(np.eye(5, 10), 9, 0)
    how = dict(blend=blend, stride=20)
    path = write(tmp_path / "a.tif", pixels)
    *maps, chips = mapped(path, tmp_path / "out", **how)
    monkeypatch.setattr(mapfiles.Raster, "empty", lambda *_: False)
    *others, every = mapped(path, tmp_path / "again", **how)
    assert chips < 0.55 * every
    for mine, theirs in zip(maps, others, strict=True):
        assert (mine == theirs).all()
    with rasterio.open(path) as file:
        assert ((maps[0] == 255) == ~valid(file)).all()


def test_an_image_without_data_becomes_a_map_without_data(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((3, 400, 2000), "uint8"))
    labels, scores, chips = mapped(path, tmp_path / "out")
    assert (labels == 255).all() and not scores.any() and chips == 0


def test_rows_are_looked_at_once_and_again_when_asked_again(tmp_path):
    from rvtutorial.engine.mapfiles import Raster

    pixels = image(3)
    pixels[:, HOLE] = 0
    raster = Raster(write(tmp_path / "a.tif", pixels))
    assert raster.valid(0, 15) is None
    assert (raster.valid(15, 100) == ~HOLE[15:100]).all()
    assert (raster.valid(0, 200) == ~HOLE).all()
    assert raster.empty(25, 40, 20) and not raster.empty(25, 71, 20)
    assert not raster.empty(-10, -10, 30)
    raster.close()


# runs


def spoiled(path, how):
    "An image of floats with a corner that holds nothing, said in one of many ways."
    with rasterio.open(path) as file:
        pixels, profile = file.read().astype("float32"), file.profile
    profile |= dict(dtype="float32", predictor=1)
    if how == "nan":
        pixels[:, :90, :60] = np.nan
    elif how == "nan in one band":
        pixels[1, :90, :60] = np.nan
    elif how == "-9999 in one band":
        pixels[2, :90, :60], profile["nodata"] = -9999, -9999
    else:
        pixels[:, :90, :60], profile["nodata"] = np.float32(-3.4028235e38), -3.4e38
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    "Sample scenes as floats, each with a corner without data."
    from rvtutorial.data.synthetic import make_sample_scenes

    folder = tmp_path_factory.mktemp("floats")
    make_sample_scenes(folder, n_train=4, n_val=1, n_test=1, size=200)
    ways = ["nan", "nan in one band", "-9999 in one band", "rounded", "nan", "rounded"]
    for path, how in zip(sorted(folder.rglob("*.tif")), ways, strict=True):
        spoiled(path, how)
    return folder


def configured(data, out, **more):
    "A tiny run."
    from rvtutorial.config import get_config

    how = dict(epochs=2, max_windows=2, chip_sz=100, stride_length=100, batch_sz=4)
    return get_config("inprocess", out, "smoke", data, **how | more)


@pytest.mark.slow
def test_no_number_that_is_none_reaches_the_network(floats, tmp_path):
    "Plain Raster Vision builds the scenes; all that it reads is finite and of usual size."
    from rastervision.pipeline.config import build_config
    from rastervision.pipeline.file_system import get_tmp_dir

    cfg = build_config(configured(floats, tmp_path / "run").dict())
    for scene in cfg.dataset.all_scenes:
        scene.label_store = None
        with get_tmp_dir() as tmp:
            made = scene.build(cfg.dataset.class_config, tmp)
        chip = made.raster_source.get_chip(made.raster_source.extent)
        assert np.isfinite(chip).all() and np.abs(chip).max() < 1e4
        corner = made.label_source.get_label_arr()[:90, :60]
        judged = scene.id in [s.id for s in cfg.dataset.validation_scenes]
        assert (corner == 2).all() or not judged


@pytest.mark.slow
def test_a_run_of_such_scenes_is_trained_and_maps_nothing_there(floats, tmp_path):
    from rvtutorial import engine
    from rvtutorial.runs import Run

    engine.run(configured(floats, tmp_path / "run"), progress=False)
    log = Run(tmp_path / "run").log()
    assert np.isfinite(log[["train_loss", "val_loss"]]).all(axis=None)
    images = sorted(floats.rglob("*.tif"))
    maps = engine.predict(tmp_path / "run", images, tmp_path / "maps", progress=False)
    for image_path, folder in zip(maps.image, maps.folder, strict=True):
        with rasterio.open(f"{folder}/labels.tif") as file:
            labels = file.read(1) == 255
        assert labels[:90, :60].all() and not labels[90:, 60:100].any()
        table = scenes.check_scenes([Scene("1", image_path)])
        assert table.no_data[0] == pytest.approx(labels.mean(), abs=1e-4)


@pytest.mark.slow
def test_infinite_values_are_refused_before_anything_is_written(floats, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(floats, data)
    path = sorted(data.rglob("*.tif"))[0]
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        pixels[0, 150:, 150:] = np.inf
        file.write(pixels)
    with pytest.raises(ValueError, match="holds infinite values"):
        configured(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_remembers_that_zeros_are_data(tmp_path):
    from rvtutorial import engine
    from rvtutorial.data.synthetic import make_sample_scenes

    data = tmp_path / "data"
    make_sample_scenes(data, n_train=2, n_val=1, n_test=1, size=200)
    for path in data.rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            pixels = file.read()
            pixels[:, :90, :60] = 0
            file.write(pixels)
    run = tmp_path / "run"
    cfg = configured(data, run, zeros="data", epochs=1)
    assert not (run / "labels").exists() or not list((run / "labels").iterdir())
    engine.run(cfg, progress=False)
    said = dict(images=path, progress=False)
    for zeros, empty in ((None, False), ("data", False), ("empty", True)):
        out = tmp_path / f"maps-{zeros}"
        engine.predict(run, out=out, zeros=zeros, **said)
        with rasterio.open(next(out.rglob("labels.tif"))) as file:
            assert ((file.read(1) == 255)[:90, :60] == empty).all()
    with pytest.raises(ValueError, match="another configuration|other settings|zeros"):
        configured(data, run, epochs=1)
    with pytest.raises(ValueError, match="zeros must be"):
        configured(data, tmp_path / "other", zeros="no")


# real files


def test_real_scenes_without_data(shared_data):
    rio = shared_data("spacenet1_rio")
    found = scenes.find_scenes(
        rio, "images/3band_013022223130_Public_img{id}.tif", None
    )
    table = scenes.check_scenes(found).set_index("id")
    assert table.no_data["58"] == 1 and table.no_data["59"] == pytest.approx(
        0.95, abs=0.01
    )
    assert table.no_data["60"] == pytest.approx(0.37, abs=0.01)
    assert "0 in all bands, undeclared" in table.notes["60"]
    atlanta = next(shared_data("spacenet4_atlanta").glob("images/*.tif"))
    assert scenes.check_scenes([Scene("1", atlanta)]).no_data[0] == 0
    seven = next(shared_data("spacenet7").glob("images/*.tif"))
    assert scenes.check_scenes([Scene("1", seven)]).no_data[0] == 0


def test_real_tiles_with_alpha(shared_data):
    tiles = sorted(shared_data("openaerialmap_kampala").glob("images/*.png"))
    seen = 0
    for path in tiles[:40]:
        with rasterio.open(path) as file:
            if file.count == 4:
                clear = file.read(4) == 0
                assert not valid(file)[clear].any()
                _, note = Validity(file).emptiness()
                assert ("alpha in band 4" in note) == clear.any()
                seen += clear.any()
    assert seen


@pytest.mark.slow
def test_a_band_that_holds_the_declared_value_stays_where_others_hold_data(tmp_path):
    "In training with plain Raster Vision and here, and in prediction: nodata 255, bright roofs."
    from rastervision.core.box import Box
    from rastervision.pipeline.file_system import get_tmp_dir

    from rvtutorial.data.synthetic import make_sample_scenes
    from rvtutorial.engine.mapfiles import Raster
    from rvtutorial.engine.reading import build_scene

    data = make_sample_scenes(tmp_path / "d", n_train=2, n_val=1, n_test=0, size=200)
    for path in sorted(data.rglob("*.tif")):
        with rasterio.open(path) as file:
            pixels, profile = file.read().clip(1, 250), file.profile
        pixels[0, 50:70, 50:70] = 255
        pixels[:2, 80:90, 80:90] = 255
        pixels[:, :, 150:] = 255
        with rasterio.open(path, "w", **profile | dict(nodata=255)) as file:
            file.write(pixels)
    cfg = configured(data, tmp_path / "run")
    for scene in cfg.dataset.all_scenes:
        scene.label_store = None
        path = next(data.rglob(f"*img{scene.id}.tif"))
        with rasterio.open(path) as file:
            wanted = file.read().transpose(1, 2, 0)
        wanted[:, 150:] = 0
        box = Box(0, 0, 200, 200)
        with get_tmp_dir() as tmp:
            stock = scene.build(cfg.dataset.class_config, tmp).raster_source
            ours = build_scene(scene, cfg.dataset.class_config, tmp).raster_source
            for source in (stock, ours):
                assert (source.get_chip(box) == wanted).all()
            hanging = Box(-20, 90, 100, 210)
            assert (stock.get_chip(hanging) == ours.get_chip(hanging)).all()
        raster = Raster(path)
        assert (raster.read(0, 0, 200) == wanted).all()
        assert not raster.valid(0, 200)[:, 150:].any()
        raster.close()

"""Which pixels hold data: one answer for checks, statistics, labels, figures and maps."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from rvtutorial import scenes, validity
from rvtutorial.pairs import Scene
from rvtutorial.validity import Validity, emptiness, valid, windows_of

HOLE = np.zeros((200, 150), bool)
HOLE[20:60, 30:90] = True


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
    wide[1][HOLE] = 65535
    return {
        "alpha last": (np.concatenate([image(3), tall[4:]]), dict(alpha=3), "alpha"),
        "alpha in band 5": (tall, dict(alpha=4), "alpha in band 5"),
        "alpha in band 1": (first, dict(alpha=0), "alpha in band 1"),
        "internal mask": (image(3), dict(mask=~HOLE), "masked in the file"),
        "mask beside": (image(3), dict(mask=~HOLE, internal=False), "masked"),
        "-9999 in one band": (gap, dict(nodata=-9999), "declared nodata -9999"),
        "65535 in one band": (wide, dict(nodata=65535), "declared nodata 65535"),
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
        found = emptiness(file)
        assert found.share == pytest.approx(HOLE.mean(), abs=1e-9)
    assert why in found.notes[0] and len(found.why) == 1


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


def test_a_band_that_is_asked_for_is_no_alpha(tmp_path):
    pixels = image(4)
    pixels[3] = np.where(HOLE, 0, 9)
    with rasterio.open(write(tmp_path / "a.tif", pixels, alpha=3)) as file:
        assert not valid(file)[HOLE].any()
        assert valid(file, bands=[0, 1, 2, 3]).all()
        assert validity.alpha_bands(file) == [3]
        assert validity.alpha_bands(file, [3, 2]) == []


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
    assert not validity.stands_for(values, -9999).any()
    assert not validity.stands_for(values, 7.5).any()
    assert validity.stands_for(values, 255.0).tolist() == [False, False, True]
    third = np.float32([0.1, 0.2])
    assert validity.stands_for(third, 0.1).tolist() == [True, False]


def test_thinned_out_for_drawing(tmp_path):
    pixels = image(3)
    pixels[:, HOLE] = 0
    pixels[:, 150:154, 100:104] = 0
    with rasterio.open(write(tmp_path / "a.tif", pixels)) as file:
        found = Validity(file).valid(shape=(100, 75))
    assert (found == ~HOLE[::2, ::2]).mean() > 0.98 and not found[12:28, 17:43].any()


# the size of what is checked

PEAK = """
import resource, sys
from pathlib import Path
from rvtutorial import scenes
begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = scenes.check_scenes([scenes.Scene("1", *map(Path, sys.argv[1:]))])
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(table.no_data[0], table.share[0], most // 1024)
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
def test_large_scenes_are_checked_in_little_memory(tmp_path, shape):
    import geopandas
    import shapely

    path = sparse(tmp_path / "a.tif", shape[1], shape[0], 3)
    label = tmp_path / "a.gpkg"
    boxes = [
        shapely.box(6e5, 4e6 - 500, 6e5 + 250, 4e6),
        shapely.box(6e5, 0, 6e5 + 1, 4e6),
    ]
    geopandas.GeoSeries(boxes, crs="EPSG:32611").to_file(label)
    args = [sys.executable, "-c", PEAK, str(path), str(label)]
    out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    empty, share, most = map(float, out.split())
    assert empty == pytest.approx(1 - 1e6 / np.prod(shape), abs=1e-4)
    tall = (500 * 1000 + 2 * (shape[0] - 1000)) / np.prod(shape)
    assert share == pytest.approx(tall, abs=1e-4) and share > 0
    assert most < 420  # of which 150 MB are Python and its libraries

"""Draw tiles of several sensors and dates with coarse labels of settlements and electric light, from a seed.

The layout is that of the IEEE GRSS Data Fusion Contest of 2021, track DSE: a folder for
each parent tile, a file for each band, sensor and date, and `groundTruth.tif` with one
label for 50 x 50 pixels. What is in them is made up.

Each parent tile has a soil, a season, an exposure of its night images of its own, so that
parts of one tile look alike and those of another differ: as in real imagery.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rvtutorial.data.synthetic import SURFACES, WAVES, new_folder

CLASSES = {  # Value in a label file: what it means
    1: "settlement without electricity",
    2: "no settlement without electricity",
    3: "settlement with electricity",
    4: "no settlement with electricity",
}
COLOURS = {1: "#FF0000", 2: "#0000FF", 3: "#FFFF00", 4: "#B266FF"}  # The contest's
TRUTH = "groundTruth.tif"
CRS, ORIGIN, PIXEL = "EPSG:32630", (600_000.0, 1_400_000.0), 10.0  # metres
VERSION = 1

_SENTINEL2 = {  # nm
    "01": 443, "02": 490, "03": 560, "04": 665, "05": 705, "06": 740, "07": 783,
    "08": 842, "8A": 865, "09": 945, "11": 1610, "12": 2190,
}  # fmt: skip
_LANDSAT8 = {  # nm; 10 and 11 are thermal
    "1": 443, "2": 482, "3": 561, "4": 655, "5": 865, "6": 1609, "7": 2201, "8": 590,
    "9": 1373, "10": 10895, "11": 12005,
}  # fmt: skip
SENSORS = {  # Bands of a date; dates of the contest
    "viirs": ((None,), 9),
    "sentinel1": (("VV", "VH"), 4),
    "sentinel2": (tuple(_SENTINEL2), 4),
    "landsat8": (tuple(_LANDSAT8), 3),
}
_NAMES = {  # Of a file: {n} is the date, {band} the band
    "viirs": "DNB_VNP46A1_A{n:%Y%j}.tif",
    "sentinel1": "S1A_IW_GRDH_{n:%Y%m%d}_{band}.tif",
    "sentinel2": "L2A_{n:%Y%m%d}_B{band}.tif",
    "landsat8": "LC08_L1TP_{n:%Y-%m-%d}_B{band}.tif",
}
_DAYS = {  # The first dates, and the days from the last of them to each further one
    "viirs": ([date(2020, 8, 8)], 1),
    "sentinel1": ([date(2020, 8, 4)], 7),
    "sentinel2": ([date(2020, 8, 4)], 7),
    "landsat8": ([date(2020, 8, 15), date(2020, 8, 16), date(2020, 9, 17)], 16),
}


def make_settlements(
    folder: Path,  # Where the folders Tile1, Tile2 ... shall stand
    n: int = 12,  # Parent tiles; the contest has 60
    size: int = 800,  # Side of a tile in pixels of 10 m
    scale: int = 50,  # Pixels along a side of a label
    dates: dict
    | None = None,  # Dates of each sensor; None: the contest's 9, 4, 4 and 3
    seed: int = 0,  # Source of all chance
    progress: bool = False,  # Show a bar
) -> Path:  # The folder
    """Make parent tiles, or return at once when they are there.

    The contest's dates give 98 files a tile and, with the largest value of the night
    images, 99 bands. Tiles lie side by side, 8 in a row. The same arguments give the same
    bytes; what a tile holds depends on the seed, its number, `size`, `scale` and `dates`.
    Raises ValueError for numbers of which none can be made, FileExistsError when the folder
    holds anything else.
    """
    every = {name: many for name, (_, many) in SENSORS.items()}
    dates = every if dates is None else dict(dates)
    if unknown := dates.keys() - SENSORS.keys():
        raise ValueError(
            f"dates names {sorted(unknown)}; known are {', '.join(SENSORS)}"
        )
    numbers = dict(n=n, size=size, scale=scale, seed=seed + 1, **dates)
    if any(not isinstance(v, int | np.integer) or v < 1 for v in numbers.values()):
        raise ValueError(f"whole numbers from 1 up are needed, got {numbers}")
    if size % scale or size // scale < 2:
        raise ValueError(
            f"size must be a multiple of scale, twice at least: {size} pixels are no whole "
            f"labels of {scale}"
        )
    folder = Path(folder)
    asked = dict(kind="settlements", n=n, size=size, scale=scale, dates=dates)
    with new_folder(folder, asked | dict(seed=seed, version=VERSION)) as new:
        if new:
            bar = tqdm(range(1, n + 1), desc="making tiles", disable=not progress)
            for number in bar:
                (new / f"Tile{number}").mkdir()
                _write_tile(new / f"Tile{number}", number, size, scale, dates, seed)
    return folder


@dataclass
class _Ground:
    "What lies in a tile; all arrays (size, size) but `labels`."

    labels: np.ndarray  # (cells, cells) of 1 to 4
    roofs: np.ndarray  # Share of roof in a pixel, 0 to 1
    green: np.ndarray  # Share of plants in a pixel, 0 to 1
    rocks: np.ndarray  # Bright ground that is no roof, 0 to 1
    light: np.ndarray  # Of the night, nW/cm2/sr


def _smooth(rng, size, sigma):
    "Smooth noise with mean 0 and spread 1; `sigma` is the size of its blobs in pixels."
    from scipy.ndimage import gaussian_filter, zoom

    step = max(1, int(sigma / 2))
    side = -(-size // step) + 1
    noise = gaussian_filter(
        rng.standard_normal((side, side)), sigma / step, mode="wrap"
    )
    noise = (
        zoom(noise, step, order=1)[:size, :size] if step > 1 else noise[:size, :size]
    )
    return (noise - noise.mean()) / max(noise.std(), 1e-9)


def _ground(rng, size, scale):
    "Draw villages, fields, rocks and lamps."
    from scipy.ndimage import gaussian_filter

    cells = size // scale
    for _ in range(100):
        towns = _smooth(rng, cells, cells / 10) + 0.4 * rng.standard_normal(
            (cells, cells)
        )
        settled = towns > np.quantile(towns, rng.uniform(0.55, 0.8))
        grid = _smooth(rng, cells, cells / 5)  # where lines and roads reach
        lit = grid + 0.5 * settled > np.quantile(grid, rng.uniform(0.4, 0.7))
        labels = np.where(settled, np.where(lit, 3, 1), np.where(lit, 4, 2))
        if len(np.unique(labels)) == 4 or cells < 4:
            break

    def fine(cell_values):
        return np.kron(cell_values, np.ones((scale, scale)))

    house = max(2, scale // 12)
    side = -(-size // house)
    lots = rng.random((side, side))
    lots = np.kron(lots, np.ones((house, house)))[:size, :size]
    roofs = lots < fine(np.where(settled, rng.uniform(0.2, 0.35), 0.004))
    green = np.clip(0.45 + 0.25 * _smooth(rng, size, scale / 2), 0, 1)
    patches = _smooth(rng, size, scale / 6)
    rocks = patches > np.quantile(patches, 1 - rng.uniform(0.02, 0.2))
    lamps = fine(np.where(lit, np.where(settled, 9.0, 3.5), 0.0))
    light = gaussian_filter(lamps, 0.6 * scale)  # a VIIRS pixel is wider than a label
    found = (a.astype(np.float32) for a in (roofs, green, rocks & ~roofs, light))
    return _Ground(labels.astype(np.uint8), *found)


@dataclass
class _Place:
    "What is the same all over a tile, and another in the next."

    soil: float  # 0: sand, 1: clay
    bright: float  # Of roofs, as a multiple
    season: float  # How green plants are, 0 to 1
    glow: float  # Of the night sky without lamps
    gain: float  # Of lamps
    rough: float  # Radar: how much the ground sends back, dB

    @classmethod
    def draw(cls, rng):
        bright, season = rng.uniform(0.55, 1.5), rng.uniform(0.1, 1)
        night = rng.uniform(0.2, 2.5), np.exp(rng.normal(0, 0.45))
        return cls(rng.random(), bright, season, *night, rng.normal(0, 1.5))


def _reflectance(surface, wave):
    "Of a surface at a wavelength in nm: 0 to 1; beyond 832 nm as there."
    return float(np.interp(wave, WAVES, SURFACES[surface]))


def _optical(rng, ground, place, wave, haze):
    "Reflectance of all pixels at one wavelength, float64."
    sand, clay = (_reflectance(name, wave) for name in ("sand", "clay"))
    soil = (1 - place.soil) * sand + place.soil * clay
    plants = _reflectance("grass", wave) * place.season
    plants += _reflectance("dry", wave) * (1 - place.season)
    roof = _reflectance("concrete", wave) * place.bright
    rock = _reflectance("pale", wave) * 0.8
    values = soil * (1 - ground.green) + plants * ground.green
    values = values * (1 - ground.roofs) + roof * ground.roofs
    values = values * (1 - ground.rocks) + rock * ground.rocks
    values *= 1 + 0.12 * rng.standard_normal(values.shape)
    return np.clip(values * (1 - haze) + 0.4 * haze, 0.001, 1)


def _bands(rng, ground, place, sensor, scale):
    "The bands of one date of a sensor: {band: (size, size) of the sensor's own type}."
    from scipy.ndimage import gaussian_filter, uniform_filter

    size = ground.light.shape[0]
    if sensor == "viirs":
        clouds = np.clip(_smooth(rng, size, 3 * scale), 0, None) * (rng.random() < 0.4)
        values = (place.glow + place.gain * ground.light) * np.exp(-clouds)
        noise = 0.35 * _smooth(rng, size, 0.5 * scale)
        return {None: np.clip(values + noise, 0, None).astype(np.float32)}
    if sensor == "sentinel1":
        found = {}
        for band, base, gain in (("VV", -11, 7), ("VH", -18, 6)):
            values = base + place.rough + gain * uniform_filter(ground.roofs, 3)
            values = values + 2 * ground.rocks + 1.5 * ground.green
            speckle = 10 * np.log10(rng.gamma(4, 0.25, values.shape))
            found[band] = (values + speckle).astype(np.float32)
        return found
    haze = rng.uniform(0, 0.25) + 0.5 * (rng.random() < 0.2)
    waves = _SENTINEL2 if sensor == "sentinel2" else _LANDSAT8
    found = {}
    for band, wave in waves.items():
        if wave > 9000:  # thermal, in kelvins
            values = 300 + 6 * ground.roofs - 4 * place.season * ground.green
            values = values + 0.5 * rng.standard_normal(values.shape)
            found[band] = (10 * gaussian_filter(values, 3)).astype(np.uint16)
            continue
        values = _optical(rng, ground, place, wave, haze)
        if sensor == "landsat8":  # pixels of 30 m
            values = uniform_filter(values, 3)
        found[band] = (10_000 * values).astype(np.uint16)
    return found


def _day(sensor: str, number: int) -> date:
    "The date of an image, counted from 0."
    first, step = _DAYS[sensor]
    last = len(first) - 1
    return first[min(number, last)] + timedelta(step * max(number - last, 0))


def _write_tile(folder, number, size, scale, dates, seed):
    "Write the files of one parent tile."
    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    ground, place = _ground(rng, size, scale), _Place.draw(rng)
    row, column = divmod(number - 1, 8)
    side = size * PIXEL
    x, y = ORIGIN[0] + column * side, ORIGIN[1] - row * side

    def write(name, values, pixel):
        how = dict(driver="GTiff", count=1, crs=CRS, compress="deflate", zlevel=1)
        how |= dict(height=len(values), width=len(values), dtype=values.dtype)
        how["transform"] = from_origin(x, y, pixel, pixel)
        with rasterio.open(folder / name, "w", **how) as file:
            file.write(values, 1)

    write(TRUTH, ground.labels, PIXEL * scale)
    for sensor, many in dates.items():
        for number in range(many):
            day = _day(sensor, number)
            found = _bands(rng, ground, place, sensor, scale)
            for band, values in found.items():
                write(_NAMES[sensor].format(n=day, band=band), values, PIXEL)

"""A map drawn over its image, or as grey levels, in a file beside it: any size, a few rows at a time.

Written by hand: rasterio reads and writes, the colours are those of the figures.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.colors import to_rgb
from rasterio.windows import Window

from rvtutorial.core.colours import OTHERS, PALETTE
from rvtutorial.core.files import atomic_path
from rvtutorial.data.places import unplaced_allowed
from rvtutorial.data.validity import colour_bands

STYLES = ("overlay", "grey")
ROWS = 512


def draw_map(
    folder: str | Path,  # Of a map: labels.tif, with the names of its classes
    image: str | Path | None = None,  # Under an overlay; None: as labels.tif says
    style: str = "overlay",  # Colours over the image, or grey levels
    leave: tuple[str, ...] = (
        "background",
        "null",
    ),  # Not painted, nor is the null class
) -> Path:  # overlay_<UTC>.tif or grey_<UTC>.tif, uint8
    """Draw a map; several may lie side by side, each with the time in its name.

    Grey levels are spread evenly, the last class is 255, and 0 is what is not painted.
    Raises ValueError for another style, and for an image of another size.
    """
    if style not in STYLES:
        raise ValueError(f"style is one of {', '.join(STYLES)}, got {style!r}")
    folder = Path(folder)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    out = folder / f"{style}_{stamp}.tif"
    with unplaced_allowed(), rasterio.open(folder / "labels.tif") as labels:
        names, null = (
            json.loads(labels.tags()["classes"]),
            labels.tags().get("null_class"),
        )
        painted = [i for i, name in enumerate(names) if name not in (*leave, null)]
        how = dict(
            driver="GTiff", height=labels.height, width=labels.width, dtype="uint8"
        )
        how |= dict(tiled=True, compress="deflate", transform=labels.transform)
        how |= dict(crs=labels.crs, count=1 if style == "grey" else 3)
        with atomic_path(out) as partial:
            if style == "grey":
                with rasterio.open(partial, "w", **how) as file:
                    _grey(labels, file, painted)
            else:
                with rasterio.open(image or labels.tags()["image"]) as under:
                    if under.shape != labels.shape:
                        raise ValueError(
                            f"{under.name} has {under.shape} pixels and its map "
                            f"{labels.shape} (rows, columns)"
                        )
                    with rasterio.open(partial, "w", **how) as file:
                        _overlay(labels, file, painted, under, names)
    return out


def _strips(file):
    for top in range(0, file.height, ROWS):
        yield Window(0, top, file.width, min(ROWS, file.height - top))


def _grey(labels, file, painted) -> None:
    levels = np.zeros(256, np.uint8)
    for place, number in enumerate(painted, start=1):
        levels[number] = round(255 * place / len(painted))
    for window in _strips(labels):
        file.write(levels[labels.read(1, window=window)], 1, window=window)


def _overlay(labels, file, painted, under, names, strength=0.5) -> None:
    others = iter(OTHERS * len(names))
    colours = {name: PALETTE.get(name) or next(others) for name in names}
    table = np.zeros((256, 3), np.float32)
    table[painted] = [255 * np.array(to_rgb(colours[names[i]])) for i in painted]
    bands = (colour_bands(under) * 3)[:3]
    numbers = [i + 1 for i in bands]
    small = [max(1, min(side, 512)) for side in under.shape]
    look = under.read(numbers, out_shape=(3, *small)).astype(float)
    low, high = np.nanpercentile(look, [2, 98], axis=(1, 2))
    reach = np.where(high > low, high - low, 1)
    for window in _strips(labels):
        said = labels.read(1, window=window)
        image = under.read(numbers, window=window).astype(np.float32)
        image = (image - low[:, None, None]) / reach[:, None, None]
        image = 255 * np.clip(np.nan_to_num(image), 0, 1)
        over = table[said].transpose(2, 0, 1)
        mixed = (1 - strength) * image + strength * over
        drawn = np.where(np.isin(said, painted), mixed, image)
        file.write(np.rint(drawn).astype(np.uint8), window=window)

"""What the numbers or colours of a label raster mean: mapped to classes first, and cast afterwards."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvtutorial.data import validity
from rvtutorial.data.labels import ImageInfo, label_fit, named, open_image
from rvtutorial.core.files import atomic_path
from rvtutorial.core.names import near_match

EXAMPLE = "255:building,0:background"
NULL = "null"
MOST = 32  # More different values than this are no classes
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def read_meaning(
    label_values: str | dict | None,  # "255:building,0:background", or a dict of these
    classes: Sequence[str],  # Names in the order of their ids; null may be left out
) -> dict | None:  # Number, or colour such as "#3C1098", -> class id; None: not said
    """What the numbers or the colours in label rasters mean.

    Raises ValueError for a class that is not there, for what is neither a whole number
    nor a colour, for both kinds at once, and for one value with two meanings.
    """
    if label_values is None:
        return None
    names, found = [*classes, *([] if NULL in classes else [NULL])], {}
    pairs = [(value, str(name).strip()) for value, name in _pairs(label_values)]
    for value, name in pairs:
        if name not in names:
            told = [n for n in dict.fromkeys(n for _, n in pairs) if n != NULL]
            more = [n for n in ("background", "building") if n not in told]
            told += more[: max(2 - len(told), 0)]  # two classes at least
            hint = near_match(name, names)
            raise ValueError(
                f"label_values names the class {name!r}; {hint}{'' if hint[-1] == '?' else '.'} "
                f'If these are your classes, say so: classes="{",".join(told)}"'
            )
        key = _value(value)
        if found.setdefault(key, names.index(name)) != names.index(name):
            other = names[found[key]]
            raise ValueError(f"label_values says that {key} is {other} and {name}")
    if not found or len({type(key) for key in found}) > 1:
        raise ValueError(
            f"label_values must be numbers or colours, not both, got {label_values!r}"
        )
    return found


def _pairs(label_values):
    "Values and names, as they were given."
    if isinstance(label_values, dict):
        return label_values.items()
    if not isinstance(label_values, str):
        raise ValueError(
            f"label_values must be text such as {EXAMPLE}, or a dict, got {label_values!r}"
        )
    items = [item for item in label_values.split(",") if item.strip()]
    for item in items:
        if ":" not in item:
            raise ValueError(
                f"label_values must be pairs such as {EXAMPLE}, got {item.strip()!r}"
            )
    return [item.split(":", 1) for item in items]


def _value(text):
    "A whole number, or a colour in capital letters."
    text = str(text).strip()
    if _COLOUR.fullmatch(text):
        return text.upper()
    try:
        number = float(text)
        if number.is_integer():
            return int(text) if text.lstrip("+-").isdigit() else int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"label_values must name whole numbers or colours such as #3C1098, got {text!r}"
    )


def is_coloured(
    values: dict,  # From `read_meaning`
) -> bool:  # False: by numbers
    "Whether a meaning is told by colours."
    return any(isinstance(key, str) for key in values)


@dataclass(frozen=True)
class _Mask:
    "How a label raster stores its classes."

    path: Path
    bands: tuple[int, ...]  # Counted from 1: one of numbers, or three of colours
    dtype: str
    nodata: float | None  # What the file declares as no data; it decides nothing
    palette: tuple[int, ...] | None  # Colour of each index, -1: none; None: no palette
    plain: bool  # Whether every reader finds the numbers that the file holds
    crs: object
    transform: object
    notes: tuple[str, ...] = ()  # What the file declares and what is not followed

    @property
    def colours(self) -> bool:
        "Whether the file holds colours: three bands, or a palette."
        return len(self.bands) == 3 or self.palette is not None


def look_at_mask(
    path: Path,  # A label raster
) -> _Mask:  # From its header
    "See how a label raster stores its classes; ValueError for bands that are no labels."
    from rasterio.enums import ColorInterp, MaskFlags

    with named(path), open_image(path) as f:
        alpha = {b for b in f.indexes if f.colorinterp[b - 1] == ColorInterp.alpha}
        bands = tuple(b for b in f.indexes if b not in alpha) or (1,)
        if len(bands) not in (1, 3):
            raise ValueError(
                f"{path} has {len(bands)} bands: a label raster has one band of "
                "numbers, or three of colours"
            )
        if len(bands) == 3 and {f.dtypes[b - 1] for b in bands} != {"uint8"}:
            raise ValueError(f"{path} has three bands that are no colours of 8 bits")
        palette = palette_of(f, bands[0]) if len(bands) == 1 else None
        flags = {flag for b in bands for flag in f.mask_flag_enums[b - 1]}
        masked = bool(flags & {MaskFlags.per_dataset, MaskFlags.alpha})
        scaled = any(f.scales[b - 1] != 1 or f.offsets[b - 1] for b in bands)
        notes = []
        if f.nodata is not None:
            notes.append(f"no-data value of the labels ({f.nodata:g}) not followed")
        if masked or alpha:
            notes.append("mask or alpha band of the labels not followed")
        if scaled:
            notes.append("scale and offset of the labels not followed")
        plain = f.count == 1 and f.dtypes[0] == "uint8" and palette is None
        return _Mask(
            Path(path), bands, f.dtypes[bands[0] - 1], f.nodata, palette,
            plain and not notes, f.crs, f.transform, tuple(notes),
        )  # fmt: skip


def palette_of(
    f,  # An open raster
    band: int = 1,  # Counted from 1
) -> tuple[int, ...] | None:  # Colour of each index as 0xRRGGBB, -1: none
    "The palette of a raster, None for a file without one."
    try:
        found = f.colormap(band)
    except ValueError:
        return None
    return tuple(
        found[i][0] << 16 | found[i][1] << 8 | found[i][2] if i in found else -1
        for i in range(max(found) + 1)
    )


def _read(f, mask, coloured, **how):
    "The pixels of a label raster: numbers as they are stored, or colours as 0xRRGGBB."
    return _codes(f.read(list(mask.bands), **how), mask, coloured)


def _codes(pixels, mask, coloured):
    "The same of pixels that have been read, (bands, height, width)."
    if len(pixels) == 3:
        red, green, blue = pixels.astype(np.int32)
        return red << 16 | green << 8 | blue
    if not coloured:
        return pixels[0]
    if mask.palette is None:  # grey
        return pixels[0].astype(np.int32) * 0x010101
    table = np.full(np.iinfo(mask.dtype).max + 1, -1, np.int32)
    table[: len(mask.palette)] = mask.palette
    return table[pixels[0]]


def _key(value, coloured):
    "A pixel's value as it is told: an int or a colour where it can be a label."
    if coloured:
        return f"#{value:06X}" if value >= 0 else "an index without a colour"
    if isinstance(value, complex) or not math.isfinite(value):
        return str(value)
    return int(value) if value == int(value) else value


def count_values(
    mask: _Mask,  # From `look_at_mask`
    coloured: bool | None = None,  # As colours; None: if the file holds colours
    most: int = MOST,  # More different values are no classes
) -> dict:  # Value or "#RRGGBB" -> pixels, most frequent first
    """Count what a label raster holds, in bounded memory.

    Numbers are int where they are whole and finite, else float or text. Raises
    ValueError for a file that cannot be read to its end or holds too many values.
    """
    coloured = mask.colours if coloured is None else coloured
    found = Counter()
    with named(mask.path), open_image(mask.path) as f:
        for window in validity.windows_of(f):
            pixels = _read(f, mask, coloured, window=window)
            values, times = np.unique(pixels, return_counts=True)
            if len(values) > 100 * most:
                values, times = values[: 100 * most], times[: 100 * most]
            for value, n in zip(values.tolist(), times.tolist(), strict=True):
                found[_key(value, coloured)] += n
            if len(found) > most:
                some = ", ".join(str(v) for v, _ in found.most_common(5))
                raise ValueError(
                    f"{mask.path} holds more than {most} values ({some}, ...): is it a "
                    "label raster, and stored without loss (no JPEG)?"
                )
    return dict(found.most_common())


def listed(
    found: dict,  # Value -> pixels
    most: int = 12,  # Further ones are not listed
) -> str:  # Such as "0: 86.5%, 255: 13.5%"
    "Values and their shares in words."
    total = sum(found.values())
    some = sorted(found.items(), key=lambda item: -item[1])
    text = ", ".join(f"{v}: {n / total:.1%}" for v, n in some[:most])
    return text + (f", ... ({len(some)} in all)" if len(some) > most else "")


def total_of(
    rasters: Sequence[tuple],  # (Mask, value -> pixels), from `count_values`
) -> dict:  # Value -> pixels: numbers alone, or colours alone
    """What several label rasters hold together.

    Beside files of colours, numbers of 8 bits are the greys that they are as colours.
    Raises ValueError where other numbers stand beside colours.
    """
    total, coloured = Counter(), {m.colours: m for m, _ in reversed(rasters)}
    for mask, found in rasters:
        grey = len(coloured) == 2 and not mask.colours
        if grey and mask.dtype != "uint8":
            raise ValueError(
                f"{coloured[True].path} holds colours and {mask.path} numbers of type "
                f"{mask.dtype}: write all label rasters in the same way"
            )
        total.update(
            {f"#{v * 0x010101:06X}": n for v, n in found.items()} if grey else found
        )
    return dict(total)


def line_to_add(
    found: dict,  # Value -> pixels, of one kind: numbers or colours
    classes: Sequence[str],  # Names
    nodata: Collection = (),  # Values that files declare as no data
) -> str:  # Such as label_values="255:building,0:background"
    """What a user may add who has not said what the values mean.

    Classes are proposed for 0 and one other number; elsewhere CLASS stands for them.
    """
    names = [name for name in classes if name not in ("background", NULL)]
    values = sorted(found, key=lambda v: -found[v])
    said = dict.fromkeys(values, "CLASS")
    if 0 in values and len(names) == 1:
        values.sort(key=lambda v: (v == 0, -v))
        empty = {v for v in values if v in nodata and v != 0} if len(values) > 2 else ()
        others = [v for v in values if v != 0 and v not in empty]
        if len(others) == 1:
            said |= {0: "background" if "background" in classes else NULL}
            said |= {others[0]: names[0]} | dict.fromkeys(empty, NULL)
    return f'label_values="{",".join(f"{v}:{said[v]}" for v in values)}"'


def _unexplained(
    mask: _Mask,  # A label raster
    found: dict,  # Value -> pixels, from `count_values`
    values: dict,  # Value -> class id, from `read_meaning`
) -> str | None:  # None: every pixel has a class
    "What values of a file mean no class, how often they occur, and what would help."
    total = sum(found.values())
    strange = {v: n for v, n in found.items() if v not in values}
    if not strange:
        return None
    told = ", ".join(
        f"{v} ({n} pixels, {n / total:.1%}"
        + (", declared as no data)" if v == mask.nodata else ")")
        for v, n in list(strange.items())[:8]
    )
    told += f", ... ({len(strange)} in all)" if len(strange) > 8 else ""
    coloured = is_coloured(values)
    kind = "colours" if coloured else "values"
    text = f"{mask.path} holds {kind} that mean no class: {told}"
    if not coloured and not all(isinstance(v, int) for v in strange):
        return f"{text}; labels are whole numbers: write the file again with those"
    more = ",".join(f"{v}:{NULL}" for v in list(strange)[:8])
    return (
        f"{text}; say in label_values which class each is, or that it is none: {more}"
    )


def explain(
    path: Path,  # A label raster
    values: dict,  # Value -> class id, from `read_meaning`
) -> tuple[_Mask, dict]:  # How the file stores its classes; value -> pixels
    """Read a label raster whole and see that every pixel has a class.

    Raises ValueError that names the file, the values or colours, and how often they occur.
    """
    mask, coloured = look_at_mask(path), is_coloured(values)
    if coloured and not mask.colours and mask.dtype != "uint8":
        found = listed(count_values(mask))
        raise ValueError(f"{path} has numbers and no colours ({found})")
    if len(mask.bands) == 3 and not coloured:
        raise ValueError(
            f"{path} has colours ({listed(count_values(mask))}), and label_values names "
            'numbers: name the colours, such as label_values="#3C1098:building,..."'
        )
    found = count_values(mask, coloured, MOST + len(values))
    if problem := _unexplained(mask, found, values):
        raise ValueError(problem)
    return mask, found


def in_words(
    found: dict,  # Value -> pixels
    values: dict,  # Value -> class id
    names: Sequence[str],  # Of the classes, with null
) -> str:  # Such as "building: 13.5%, background: 86.5%"
    "Classes and their shares; with their colours, where these tell them."
    if is_coloured(values):
        return listed({f"{v} {names[values[v]]}": n for v, n in found.items()})
    return listed(by_class(found, values, names))


def by_class(
    found: dict,  # Value -> pixels
    values: dict,  # Value -> class id
    names: Sequence[str],  # Of the classes, with null
) -> dict:  # Class name -> pixels
    "Count the pixels of each class."
    out = Counter()
    for value, n in found.items():
        out[names[values[value]]] += n
    return dict(out)


def check_palettes(
    masks: Sequence[tuple],  # (Mask, value -> pixels) of files that are read by number
) -> str | None:  # None: a number is the same colour in all of them
    "Say where one number is one colour in one file and another in the next."
    seen = {}
    for mask, found in masks:
        if mask.palette is None:
            continue
        for v in sorted(v for v in found if isinstance(v, int)):
            colour = mask.palette[v] if v < len(mask.palette) else -1
            first, path = seen.setdefault(v, (colour, mask.path))
            if first != colour and min(first, colour) >= 0:
                return (
                    f"files with different palettes cannot be read by number: {v} is "
                    f"#{first:06X} in {path} and #{colour:06X} in {mask.path}; name the "
                    'colours instead, such as label_values="#3C1098:building,..."'
                )
    return None


def _ids(pixels, values, path):
    "Class ids + 1 of pixels; whoever calls has seen that every value has a class."
    if is_coloured(values):
        values = {int(colour[1:], 16): i for colour, i in values.items()}
    small = pixels.dtype in (np.uint8, np.uint16)
    kinds, *place = (
        [np.unique(pixels)] if small else np.unique(pixels, return_inverse=True)
    )
    try:
        numbers = [values[_key(kind, False)] + 1 for kind in kinds.tolist()]
    except KeyError as err:
        raise ValueError(f"{path} holds {err.args[0]}, which means no class") from None
    numbers = np.array(numbers, np.uint8)
    if place:
        return numbers[place[0]].reshape(pixels.shape)
    table = np.zeros(int(kinds[-1]) + 1, np.uint8)  # quicker than sorting all pixels
    table[kinds] = numbers
    return table[pixels]


def read_classes(
    path: Path,  # A label raster
    values: dict,  # Value -> class id, from `read_meaning`
    max_size: int | None = None,  # Longest side of what is returned; None: all pixels
    image: ImageInfo | None = None,  # On whose grid; None: as the file lies
) -> np.ndarray:  # (height, width), uint8: class id + 1
    "Read the classes of a label raster; ValueError for a value that means none."
    import rasterio

    mask = look_at_mask(path)
    own = dict(OVERVIEW_LEVEL="NONE")  # overviews may hold averages
    little = rasterio.Env(
        GDAL_CACHEMAX=validity.CACHE
    )  # or all pixels of a large file stay
    with named(path), open_image(path, **own) as f, little:
        scale = max(1.0, max(f.shape) / max_size) if max_size else 1.0
        shape = tuple(max(1, round(n / scale)) for n in f.shape)
        whole = (len(mask.bands), *shape)
        pixels = _read(f, mask, is_coloured(values), out_shape=whole)
        ids = _ids(pixels, values, path)
    if image is None:
        return ids
    lies = label_fit(path, image)
    if max_size is None:
        ids = ids.repeat(lies.rows, 0).repeat(lies.columns, 1)
    return lies.turned(ids)


def as_stock_reads(
    mask: _Mask,  # A label raster
    values: dict,  # Value -> class id, from `read_meaning`
    image: ImageInfo,  # Its image
) -> bool:  # False: a copy is needed
    "Whether Raster Vision finds in a file the numbers that are explained, pixel on pixel."
    same = mask.crs == image.crs and mask.transform == image.transform
    return mask.plain and same and not is_coloured(values)


def write_classes(
    path: Path,  # A label raster
    values: dict,  # Value -> class id, from `read_meaning`
    image: ImageInfo,  # Its image: gives the place
    out: Path,  # The GeoTIFF to write
    null_id: int | None = None,  # Class of pixels without data
    empty: np.ndarray | None = None,  # (height, width), True where there is no data
) -> Path:  # The same; uint8, class id + 1, no no-data value
    """Write the classes of a label raster so that every reader finds them.

    0 stands for what lies outside of the file, in windows that reach over its edge.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    mask, coloured, lies = (
        look_at_mask(path),
        is_coloured(values),
        label_fit(path, image),
    )
    how = dict(driver="GTiff", dtype="uint8", count=1, compress="deflate")
    how |= dict(width=image.width, height=image.height, BIGTIFF="IF_SAFER")
    if image.crs is not None or not image.transform.is_identity:  # of a world file
        how |= dict(crs=image.crs, transform=image.transform)
    if max(image.width, image.height) > 2048:
        how |= dict(tiled=True, blockxsize=512, blockysize=512)
    with warnings.catch_warnings(), named(path), atomic_path(out) as partial:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with open_image(path) as f, rasterio.open(partial, "w", **how) as new:
            for window in validity.windows_of(new):
                pixels = np.stack([lies.read(f, window, band) for band in mask.bands])
                ids = _ids(_codes(pixels, mask, coloured), values, path)
                if empty is not None:
                    rows, columns = window.toslices()
                    ids[empty[rows, columns]] = null_id + 1
                new.write(ids, 1, window=window)
    return Path(out)


def coding(
    values: dict,  # Value -> class id, of the labels as they were found
    classes: Sequence[str],  # Names with null, in the order of their ids
    copied: bool,  # Whether `write_classes` wrote a copy
) -> dict[int, int]:  # Number in the file that the run reads -> class id
    "What the numbers mean in the label file that a run reads; 0 also lies beside a scene."
    rest = "background" if "background" in classes else NULL
    beside = values.get(0, list(classes).index(rest))
    if not copied:
        return {0: beside} | values
    return {0: beside} | {i + 1: i for i in range(len(classes))}

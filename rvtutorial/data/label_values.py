"""What the numbers or colours of a label raster mean: mapped to classes first, and cast afterwards."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvtutorial.core.files import atomic_path
from rvtutorial.core.names import near_match
from rvtutorial.data import validity
from rvtutorial.data.labels import ImageInfo, named, open_image
from rvtutorial.data.places import unplaced_allowed

EXAMPLE = "255:building,0:background"
NULL = "null"
_MOST = 32  # More different values than this are no classes
_COLOUR = re.compile(r"(#[0-9a-fA-F]{6})([0-9a-fA-F]{2})?")


def _key(value, coloured):
    "A pixel's value as it is told: an int or a colour where it can be a label."
    if coloured:
        return f"#{value:06X}" if value >= 0 else "an index without a colour"
    if isinstance(value, complex) or not math.isfinite(value):
        return str(value)
    return int(value) if value == int(value) else value


@dataclass(frozen=True)
class Mask:
    "How a label raster stores its classes."

    path: Path
    bands: list[int]  # Counted from 1: one of numbers, or three of colours
    dtype: str
    nodata: float | None  # What the file declares as no data; it decides nothing
    palette: tuple[int, ...] | None  # Colour of each index, -1: none; None: no palette
    plain: bool  # Whether every reader finds the numbers that the file holds
    place: tuple  # Its reference system and transform
    notes: list[str]  # What the file declares and what is not followed

    @classmethod
    def of(
        cls,
        path: Path,  # A label raster
    ) -> "Mask":  # From its header
        "See how a label raster stores its classes; ValueError for bands that are no labels."
        from rasterio.enums import ColorInterp, MaskFlags

        with named(path), open_image(path) as f:
            alpha = {b for b in f.indexes if f.colorinterp[b - 1] == ColorInterp.alpha}
            bands = [b for b in f.indexes if b not in alpha] or [1]
            if len(bands) not in (1, 3):
                raise ValueError(
                    f"{path} has {len(bands)} bands: a label raster has one band of "
                    "numbers, or three of colours"
                )
            if len(bands) == 3 and {f.dtypes[b - 1] for b in bands} != {"uint8"}:
                raise ValueError(
                    f"{path} has three bands that are no colours of 8 bits"
                )
            palette = Mask.palette_of(f, bands[0]) if len(bands) == 1 else None
            flags = {flag for b in bands for flag in f.mask_flag_enums[b - 1]}
            notes = []
            if f.nodata is not None:
                notes.append(f"no-data value of the labels ({f.nodata:g}) not followed")
            if alpha or flags & {MaskFlags.per_dataset, MaskFlags.alpha}:
                notes.append("mask or alpha band of the labels not followed")
            if any(f.scales[b - 1] != 1 or f.offsets[b - 1] for b in bands):
                notes.append("scale and offset of the labels not followed")
            plain = f.count == 1 and f.dtypes[0] == "uint8" and palette is None
            plain, place = plain and not notes, (f.crs, f.transform)
            kind = f.dtypes[bands[0] - 1], f.nodata, palette
            return cls(Path(path), bands, *kind, plain, place, notes)

    @staticmethod
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

    @property
    def colours(self) -> bool:
        "Whether the file holds colours: three bands, or a palette."
        return len(self.bands) == 3 or self.palette is not None

    def codes(
        self,
        pixels: np.ndarray,  # (bands, height, width), as the file stores them
        coloured: bool,  # Whether colours are asked for
    ) -> np.ndarray:  # (height, width): numbers as they are stored, or 0xRRGGBB
        "One number for each pixel."
        if len(pixels) == 3:
            red, green, blue = pixels.astype(np.int32)
            return red << 16 | green << 8 | blue
        if not coloured:
            return pixels[0]
        if self.palette is None:  # grey
            return pixels[0].astype(np.int32) * 0x010101
        table = np.full(np.iinfo(self.dtype).max + 1, -1, np.int32)
        table[: len(self.palette)] = self.palette
        return table[pixels[0]]

    def count(
        self,
        coloured: bool | None = None,  # As colours; None: if the file holds colours
        most: int = _MOST,  # More different values are no classes
    ) -> dict:  # Value or "#RRGGBB" -> pixels, most frequent first
        """Count what the raster holds, in bounded memory.

        Numbers are int where they are whole and finite, else float or text. Raises
        ValueError for a file that cannot be read to its end or holds too many values.
        """
        coloured = self.colours if coloured is None else coloured
        found = Counter()
        with named(self.path), open_image(self.path) as f:
            for window in validity.windows_of(f):
                pixels = self.codes(f.read(self.bands, window=window), coloured)
                values, times = np.unique(pixels, return_counts=True)
                some = slice(100 * most)
                values, times = values[some].tolist(), times[some].tolist()
                for value, n in zip(values, times, strict=True):
                    found[_key(value, coloured)] += n
                if len(found) > most:
                    some = ", ".join(str(v) for v, _ in found.most_common(5))
                    raise ValueError(
                        f"{self.path} holds more than {most} values ({some}, ...): is it "
                        "a label raster, and stored without loss (no JPEG)?"
                    )
        return dict(found.most_common())

    @staticmethod
    def listed(
        found: dict,  # Value -> pixels
        most: int = 12,  # Further ones are not listed
    ) -> str:  # Such as "0: 86.5%, 255: 13.5%"
        "Values and their shares in words."
        total = sum(found.values())
        some = sorted(found.items(), key=lambda item: -item[1])
        text = ", ".join(f"{v}: {n / total:.1%}" for v, n in some[:most])
        return text + (f", ... ({len(some)} in all)" if len(some) > most else "")


@dataclass(frozen=True)
class Meaning:
    "What the numbers or the colours in label rasters mean."

    ids: dict  # Number, or colour such as "#3C1098" -> class id
    names: list[str]  # Of the classes, in the order of their ids, with null

    @classmethod
    def of(
        cls,
        label_values: str | dict | None,  # "255:building,0:background", or such a dict
        classes: Sequence,  # Names in the order of their ids; null may be left out
    ) -> "Meaning | None":  # None: not said
        """Read what was said about the values.

        Raises ValueError for a class that is not there, for what is neither a whole number
        nor a colour, for both kinds at once, and for one value with two meanings.
        """
        if label_values is None:
            return None
        names = [*map(str, classes)]
        names, found = names + ([] if NULL in names else [NULL]), {}
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
        return cls(found, names)

    @staticmethod
    def in_one_text(
        label_values: str | dict | None,  # What the values mean, as it was given
    ) -> str | dict | None:  # The same where it names a class for each value
        "What the values mean as one text, such as #3C1098:building,#6EC1E4:road."
        pairs = _pairs(label_values) if label_values else []
        if isinstance(label_values, dict) and all(
            label_values.get(value) == name for value, name in pairs
        ):
            return label_values
        return ",".join(f"{_value(v)}:{name}" for v, name in pairs) or label_values

    @property
    def coloured(self) -> bool:
        "Whether colours have a meaning, and not numbers."
        return any(isinstance(key, str) for key in self.ids)

    def explain(
        self,
        path: Path,  # A label raster
    ) -> tuple[Mask, dict]:  # How the file stores its classes; value -> pixels
        """Read a label raster whole and see that every pixel has a class.

        Raises ValueError that names the file, the values or colours, and how often they
        occur.
        """
        mask = Mask.of(path)
        if self.coloured and not mask.colours and mask.dtype != "uint8":
            found = Mask.listed(mask.count())
            raise ValueError(f"{path} has numbers and no colours ({found})")
        if len(mask.bands) == 3 and not self.coloured:
            raise ValueError(
                f"{path} has colours ({Mask.listed(mask.count())}), and label_values names "
                'numbers: name the colours, such as label_values="#3C1098:building,..."'
            )
        found = mask.count(self.coloured, _MOST + len(self.ids))
        strange = {v: n for v, n in found.items() if v not in self.ids}
        if not strange:
            return mask, found
        total, some = sum(found.values()), list(strange)[:8]
        declared = {mask.nodata: ", declared as no data"}
        told = [
            f"{v} ({strange[v]} pixels, {strange[v] / total:.1%}{declared.get(v, '')})"
            for v in some
        ]
        told += [f"... ({len(strange)} in all)"] if len(strange) > 8 else []
        kind = "colours" if self.coloured else "values"
        text = f"{path} holds {kind} that mean no class: {', '.join(told)}"
        if not self.coloured and not all(isinstance(v, int) for v in strange):
            raise ValueError(
                f"{text}; labels are whole numbers: write the file again with those"
            )
        raise ValueError(
            f"{text}; say in label_values which class each is, or that it is none: "
            + ",".join(f"{v}:{NULL}" for v in some)
        )

    def by_class(
        self,
        found: dict,  # Value -> pixels
    ) -> dict:  # Class name -> pixels
        "Count the pixels of each class."
        out = Counter()
        for value, n in found.items():
            out[self.names[self.ids[value]]] += n
        return dict(out)

    def in_words(
        self,
        found: dict,  # Value -> pixels
    ) -> str:  # Such as "building: 13.5%, background: 86.5%"
        "Classes and their shares; with their colours, where these tell them."
        if not self.coloured:
            return Mask.listed(self.by_class(found))
        return Mask.listed(
            {f"{v} {self.names[self.ids[v]]}": n for v, n in found.items()}
        )

    def _classes(self, codes, path):
        "Class ids + 1 of pixels; ValueError for a value that means no class."
        ids = self.ids
        if self.coloured:
            ids = {int(colour[1:], 16): i for colour, i in ids.items()}
        small = codes.dtype in (np.uint8, np.uint16)
        kinds = np.unique(codes)
        try:
            numbers = [ids[_key(kind, False)] + 1 for kind in kinds.tolist()]
        except KeyError as err:
            raise ValueError(
                f"{path} holds {err.args[0]}, which means no class"
            ) from None
        numbers = np.array(numbers, np.uint8)
        if not small:
            return numbers[np.searchsorted(kinds, codes)]
        table = np.zeros(
            int(kinds[-1]) + 1, np.uint8
        )  # quicker than sorting all pixels
        table[kinds] = numbers
        return table[codes]

    def read(
        self,
        path: Path,  # A label raster
        max_size: int
        | None = None,  # Longest side of what is returned; None: all pixels
        image: ImageInfo | None = None,  # On whose grid; None: as the file lies
    ) -> np.ndarray:  # (height, width), uint8: class id + 1
        "Read the classes of a label raster; ValueError for a value that means none."
        import rasterio

        mask, own = Mask.of(path), dict(OVERVIEW_LEVEL="NONE")  # they may hold averages
        little = rasterio.Env(GDAL_CACHEMAX=validity.CACHE)  # or all pixels stay
        with named(path), open_image(path, **own) as f, little:
            scale = max(1.0, max(f.shape) / max_size) if max_size else 1.0
            shape = tuple(max(1, round(n / scale)) for n in f.shape)
            pixels = f.read(mask.bands, out_shape=(len(mask.bands), *shape))
            ids = self._classes(mask.codes(pixels, self.coloured), path)
        if image is None:
            return ids
        lies = image.fit_of(path)
        if max_size is None:
            ids = ids.repeat(lies.rows, 0).repeat(lies.columns, 1)
        return lies.turned(ids)

    def stock_reads(
        self,
        path: Path,  # A label raster
        image: ImageInfo,  # Its image
    ) -> bool:  # False: a copy is needed
        "Whether Raster Vision finds in a file the numbers that mean something, pixel on pixel."
        mask = Mask.of(path)
        same = mask.place == (image.crs, image.transform)
        return mask.plain and same and not self.coloured

    def write(
        self,
        path: Path,  # A label raster
        image: ImageInfo,  # Its image: gives the place
        out: Path,  # The GeoTIFF to write
        empty: np.ndarray | None = None,  # (height, width), True where there is no data
    ) -> Path:  # The same; uint8, class id + 1, no no-data value; `empty` is null
        """Write the classes of a label raster so that every reader finds them.

        0 stands for what lies outside of the file, in windows that reach over its edge.
        """
        import rasterio

        mask, lies, (high, wide) = Mask.of(path), image.fit_of(path), image.shape
        how = dict(driver="GTiff", dtype="uint8", count=1, compress="deflate")
        how |= dict(width=wide, height=high, BIGTIFF="IF_SAFER")
        if image.crs is not None or not image.transform.is_identity:  # of a world file
            how |= dict(crs=image.crs, transform=image.transform)
        if max(image.shape) > 2048:
            how |= dict(tiled=True, blockxsize=512, blockysize=512)
        with unplaced_allowed(), named(path), atomic_path(out) as partial:
            with open_image(path) as f, rasterio.open(partial, "w", **how) as new:
                for window in validity.windows_of(new):
                    pixels = np.stack([lies.read(f, window, b) for b in mask.bands])
                    ids = self._classes(mask.codes(pixels, self.coloured), path)
                    if empty is not None:
                        ids[empty[window.toslices()]] = self.names.index(NULL) + 1
                    new.write(ids, 1, window=window)
        return Path(out)

    def coding(
        self,
        copied: bool,  # Whether `write` wrote a copy
    ) -> dict[int, int]:  # Number in the file that the run reads -> class id
        "What the numbers mean in the label file that a run reads; 0 also lies beside a scene."
        rest = "background" if "background" in self.names else NULL
        beside = self.ids.get(0, self.names.index(rest))
        copies = {i + 1: i for i in range(len(self.names))}
        return {0: beside} | (copies if copied else self.ids)

    @staticmethod
    def problems(
        rasters: list,  # Pairs of a Mask and what it holds (value -> pixels)
        classes,  # Class names in order
        label_values: str | dict | None,  # What the values mean, as it was given
    ) -> list[str]:
        "What is wrong with the label rasters of a data set as a whole, in sentences."
        if not rasters:
            return []
        if label_values is not None:
            coloured = Meaning.of(label_values, classes).coloured
            return [] if coloured else _palette_problems(rasters)
        try:
            total = _total(rasters)
        except ValueError as err:
            return [str(err)]
        text = (
            f"{len(rasters)} label rasters, such as {rasters[0][0].path}, and nothing "
        )
        text += f"says what their values mean. Values found: {Mask.listed(total)}."
        if odd := [
            v for v in total if isinstance(v, float) or v in ("nan", "inf", "-inf")
        ]:
            return [f"{text} Labels are whole numbers, not {odd[0]}"]
        line = _line_to_add(total, classes, {mask.nodata for mask, _ in rasters})
        if "CLASS" in line:
            line += (
                f", with {', '.join(map(str, classes))} or null for CLASS; other names "
            )
            line += 'are given as classes="building,road,..."'
        return [f"{text} Add for example {line}"]


def _pairs(label_values):
    """Values and names: 255:building, or building:255, where several values may follow."""
    if isinstance(label_values, dict):
        pairs = []
        for one, other in label_values.items():
            if _is_value(other) and not _is_value(one):
                pairs.append((other, one))
            elif isinstance(other, list | tuple | set):
                pairs += [(value, one) for value in other]
            else:
                pairs.append((one, other))
        return pairs
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
    pairs = [[part.strip() for part in item.split(":", 1)] for item in items]
    turned = [_is_value(name) and not _is_value(value) for value, name in pairs]
    return [
        pair[::-1] if turn else pair for pair, turn in zip(pairs, turned, strict=True)
    ]


def _is_value(text):
    "Whether something can be a value of a label raster, and no name of a class."
    try:
        return _value(text, opaque=False) is not None
    except ValueError:
        return False


def _value(text, opaque=True):
    """A whole number, or a colour in capital letters: #3C1098, or (60, 16, 152).

    A fourth part is alpha, which no reader follows: it must be 255.
    """
    if isinstance(text, list | tuple):
        parts = [int(p) if str(p).isdecimal() else -1 for p in text]
        if len(parts) not in (3, 4) or not 0 <= min(parts) <= max(parts) <= 255:
            raise ValueError(
                f"a colour is three numbers from 0 to 255, such as (60, 16, 152), got {text!r}"
            )
        text = "#" + bytes(parts).hex()
    text = str(text).strip()
    if found := _COLOUR.fullmatch(text):
        if opaque and (found[2] or "FF").upper() != "FF":
            raise ValueError(
                f"label_values names {text}, a colour that is not opaque; transparency of "
                f"labels is not followed: name the colour below it, {found[1].upper()}"
            )
        return found[1].upper()
    try:
        number = float(text)
        if number.is_integer():
            return int(text) if text.lstrip("+-").isdigit() else int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"label_values must name whole numbers or colours such as #3C1098, got {text!r}"
    )


def _total(rasters):
    """What several label rasters hold together: numbers alone, or colours alone.

    Beside files of colours, numbers of 8 bits are the greys that they are as colours.
    Raises ValueError where other numbers stand beside colours.
    """
    total, coloured = Counter(), {m.colours: m for m, _ in reversed(rasters)}
    for mask, found in rasters:
        if len(coloured) == 2 and not mask.colours:
            if mask.dtype != "uint8":
                raise ValueError(
                    f"{coloured[True].path} holds colours and {mask.path} numbers of type "
                    f"{mask.dtype}: write all label rasters in the same way"
                )
            found = {f"#{v * 0x010101:06X}": n for v, n in found.items()}
        total.update(found)
    return dict(total)


def _line_to_add(found, classes, nodata=()):
    """What a user may add who has not said what the values mean (value -> pixels).

    Classes are proposed for 0 and one other number that no file declares as no data;
    elsewhere CLASS stands for them.
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


def _palette_problems(rasters):
    "Where one number is one colour in one file and another in the next."
    seen = {}
    for mask, found in (one for one in rasters if one[0].palette is not None):
        for v in sorted(v for v in found if isinstance(v, int)):
            colour = mask.palette[v] if v < len(mask.palette) else -1
            first, path = seen.setdefault(v, (colour, mask.path))
            if first != colour and min(first, colour) >= 0:
                return [
                    f"files with different palettes cannot be read by number: {v} is "
                    f"#{first:06X} in {path} and #{colour:06X} in {mask.path}; name the "
                    'colours instead, such as label_values="#3C1098:building,..."'
                ]
    return []

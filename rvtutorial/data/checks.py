"""Checks of a run's scenes before training, and its labels with `null` where there is no data.

Written by hand: what `get_config` does before it builds a configuration. Everything that
cannot be trained on is refused with a reason before anything is written.
"""

import bisect
import difflib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.features import geometry_mask, shapes
from rasterio.warp import transform_geom
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rvtutorial import scenes
from rvtutorial.core.files import atomic_path
from rvtutorial.core.hyperparams import MIDDLING
from rvtutorial.core.names import read_classes
from rvtutorial.core.records import read_json, write_json
from rvtutorial.core.renamed import say_once
from rvtutorial.data import doubts
from rvtutorial.data.label_values import Meaning
from rvtutorial.data.labels import RESTS, image_info, is_raster, open_image
from rvtutorial.data.labels import read_shapes, values_without_area
from rvtutorial.data.validity import Validity, check_zeros
from rvtutorial.runs import Hyperparams, Run, Workspace


def data_settings(
    preset: str,  # Whose scenes, when no folder is named
    data: str | Path | None,  # A folder of scenes, or a CSV table of them
    **where,  # Patterns, classes, class_field, label_values, bands, layer, zeros
) -> dict:  # data is an absolute path; usual zeros are None
    """What is asked of data and labels, so that two ways to write one thing are one run.

    There are no blanks around names and numbers. Sample scenes are made on first use.
    """

    def plain(text, mark, cuts=-1):
        if not isinstance(text, str):
            return text
        return mark.join(part.strip() for part in text.split(mark, cuts))

    if data is None:
        folder = Workspace(preset=preset).data_of(
            preset
        )  # RVTUTORIAL_PRESET may differ
        data = scenes.ensure_data(SimpleNamespace(preset=preset, data=folder))
    out = {"data": str(Path(data).expanduser().absolute()), **where}
    out |= {k: plain(where[k], ",") for k in ("classes", "label_values", "bands")}
    out["label_values"] = Meaning.in_one_text(out["label_values"])
    if isinstance(out["label_values"], str):
        pairs = out["label_values"].split(",")
        out["label_values"] = ",".join(plain(pair, ":", 1) for pair in pairs)
    zeros_are_data = check_zeros(where["zeros"]) == "data"
    return out | {"zeros": "data" if zeros_are_data else None}


def numbered_bands(
    bands: str | list | None,  # Such as "3,2,1", or "red,green,nir"
    every: list,  # Scenes
) -> str | list | None:  # The same as numbers
    """Bands by the names that the images give them (band descriptions).

    Raises ValueError for a name that is not there, or stands elsewhere in another image.
    """
    given = bands.split(",") if isinstance(bands, str) else list(bands or [])
    given = [str(band).strip() for band in given]
    if all(band.isdigit() or not band for band in given):
        return bands
    found = {}
    for scene in every:
        try:
            with open_image(scene.image) as file:
                names = [(text or "").strip() for text in file.descriptions]
        except (ValueError, FileNotFoundError):
            continue  # the check of all scenes says what is wrong with it
        places = [
            [i + 1 for i, name in enumerate(names) if name.lower() == band.lower()]
            or ([int(band)] if band.isdigit() else [])
            for band in given
        ]
        wrong = [band for band, at in zip(given, places, strict=True) if len(at) != 1]
        if wrong:
            there = [f"{i}: {name}" for i, name in enumerate(names, 1) if name]
            raise ValueError(
                f"bands names {', '.join(wrong)}, and {scene.image} "
                + (f"names its bands {', '.join(there)}" if there else "names none")
                + f"; its {len(names)} bands are also counted, such as bands=3,2,1"
            )
        found.setdefault(",".join(str(at[0]) for at in places), scene.image)
    if len(found) > 1:
        told = "; ".join(f"{order} in {image}" for order, image in found.items())
        raise ValueError(
            f"bands={','.join(given)} are not the same bands in all images: {told}; write "
            "them in one order (gdal_translate -b)"
        )
    return next(iter(found), None)


def read_bands(bands, available, image=None):
    """Bands such as "3,2,1" in that order, counted from 0 as Raster Vision does.

    They are given as QGIS counts them, from 1. Raises ValueError.
    """
    given = bands.split(",") if isinstance(bands, str) else bands
    order = [int(b) - 1 for b in given]
    if not order or min(order) < 0 or max(order) >= available:
        text = f"bands must be from 1 to {available}, got {bands!r}"
        raise ValueError(f"{image}: {text}" if image else text)
    return order


def _band_order(bands, infos):
    """Which bands the network sees: those asked for, else all but alpha; counted from 0.

    Raises ValueError for bands that are not there, and for images (id -> header) of which
    some have an alpha band where others have none.
    """
    if bands is not None:
        return read_bands(bands, min(info.bands for info in infos.values()))
    orders = {}
    for name, info in infos.items():
        left = tuple(b for b in range(info.bands) if b not in info.alphas)
        orders.setdefault(left, name)
    if len(orders) > 1:
        told = "; ".join(
            f"scene {name}: {','.join(str(b + 1) for b in order)}"
            for order, name in orders.items()
        )
        raise ValueError(
            f"the images tag different bands as alpha, which leaves {told}; say which "
            'bands are meant, such as bands="1,2,3"'
        )
    return list(next(iter(orders)))


def _by_chance(data, image_pattern, label_pattern):
    """The splits of a folder; without train/ a sixth of its scenes tells when to stop.

    Parts of one tile, where the pattern has such, and scenes that share ground stay
    together, where that leaves a choice. No test is set aside.
    """
    folder = Path(data)
    if not folder.is_dir() or (folder / "train").is_dir():
        return scenes.find_splits(data, image_pattern, label_pattern)
    found = scenes.find_scenes(folder, image_pattern, label_pattern)
    if len(found) < 2:
        raise ValueError(
            f"{folder} has one scene, and training needs a second one to tell when to "
            "stop: scenes.split_by_area(image, labels, 'quarters', 'areas') makes four of it"
        )
    groups, many = _groups(found), len(found)
    small = [some for some in groups if len(some) <= max(1, many / 3)]  # others train
    order = np.random.default_rng(0).permutation(len(small))
    order = sorted(order[: max(1, round(len(groups) / 6))])
    val = [replace(scene, split="val") for i in order for scene in small[i]]
    aside = {scene.id for scene in val}
    train = [scene for some in groups for scene in some if scene.id not in aside]
    train = [replace(scene, split="train") for scene in train]
    say_once(
        f"{folder} has no folder train/: of its {many} scenes {len(val)} "
        f"were set aside by chance to tell when to stop ({', '.join(s.id for s in val[:5])}"
        f"{', ...' * (len(val) > 5)}), the others train, none is a test. "
        f"scenes.split_scenes and scenes.write_table choose otherwise"
    )
    return {"train": train, "val": val, "test": []}


def _groups(found):
    "Scenes that belong on one side of a split: three groups or more, else each alone."
    names = [*{name: None for scene in found for name in scene.parts}]
    at, near, tiles, same = {s.id: i for i, s in enumerate(found)}, [], {}, []
    with suppress(ValueError, FileNotFoundError):  # which the check of all scenes says
        alone = {scene.id: [scene] for scene in found}
        shared = scenes.leaks(scenes.outlines(alone))
        near = [(at[one], at[other]) for one, _, other, *_ in shared]
    if len(names) > 1:
        same = [
            (tiles.setdefault(s.parts[names[0]], at[s.id]), at[s.id]) for s in found
        ]
    for pairs in (near + same, same, near, []):
        rows, columns = np.array(pairs, int).reshape(-1, 2).T
        links = np.ones(len(pairs)), (rows, columns)
        many, group = connected_components(coo_array(links, (len(found),) * 2), False)
        if many >= 3:
            break
    return [
        [s for s, g in zip(found, group, strict=True) if g == n] for n in range(many)
    ]


def _say_leaks(splits):
    "Say which scenes of different splits share ground."
    found = scenes.leaks(scenes.outlines(splits))
    if found:
        one, i, other, j, share = max(found, key=lambda pair: pair[-1])
        say_once(
            f"{len(found)} pairs of scenes of different splits share ground, most of all "
            f"{one} {i} and {other} {j} ({share:.0%} of the smaller one): where training "
            "saw what validation or the test show, scores are memory. Sort scenes that "
            "overlap into one split, or use scenes.split_by_area"
        )


def _limits_of(scaling, bands):
    "Lowest and highest value of each band: one range for all, or one for each."
    if ":" not in scaling:
        low, high = (float(value) for value in scaling.split(","))
        return [low] * bands, [high] * bands
    ranges = [[float(v) for v in pair.split(":")] for pair in scaling.split(",")]
    if len(ranges) != bands:
        raise ValueError(
            f"scaling must be a range for each of the {bands} bands that are used, or one "
            f"for all, got {len(ranges)}: {scaling}"
        )
    return [low for low, _ in ranges], [high for _, high in ranges]


def _fills_of(every, order):
    """Values of float images, such as -9999, that are no measurement; None: no floats.

    The network must not see them. Raises ValueError for infinite values, which no
    transformer of Raster Vision removes.
    """
    found, floats = set(), False
    for image in (scene.image for scene in every):
        with rasterio.open(image) as file:
            if not any(np.dtype(kind).kind == "f" for kind in file.dtypes):
                continue
            floats, values = True, Validity(file, order).fill_values()
        if not np.isfinite(list(values)).all():
            raise ValueError(
                f"{image} holds infinite values: write nan or a declared nodata value there"
            )
        found |= values
    return sorted(map(int, found)) if floats else None


PERCENTILES = (1, 99)


def _burn_null(label, image, empty, value):
    "Label the pixels without data in a GeoJSON; polygons that come last lie on top."
    with rasterio.open(image) as file:
        crs, transform = file.crs, file.transform
    nudge = Affine.translation(0.01, 0.01)  # Raster Vision floors vertices to pixels
    found = shapes(empty.astype("uint8"), empty, transform=transform @ nudge)
    holes = [shape for shape, _ in found]
    if crs is not None and crs != "EPSG:4326":
        holes = [transform_geom(crs, "EPSG:4326", hole) for hole in holes]
    made = read_json(label)
    about = {"type": "Feature", "properties": {"class_id": value}}
    made["features"] += [{**about, "geometry": hole} for hole in holes]
    write_json(label, made)


def _own_labels(scene, folder, classes, where, order, holes):
    """Labels as Raster Vision needs them, with `null` where there is no data, if asked.

    The label file, and what the numbers of a raster mean.
    """
    names, null, empty = classes.names, classes.null_class_id, None
    if holes:
        with rasterio.open(scene.image) as file:
            empty = ~Validity(file, order, where.get("zeros")).valid()
        empty = empty if empty.any() else None
    if scene.aoi is not None and scene.split != "train":
        beside = ~_inside(scene)
        empty = beside if empty is None else empty | beside
    if is_raster(scene.label):
        info = image_info(scene.image)
        meaning = Meaning.of(where["label_values"], names)
        info.fit_of(scene.label)
        if empty is None and meaning.stock_reads(scene.label, info):
            return Path(scene.label), meaning.coding(copied=False)
        out = meaning.write(scene.label, info, folder / f"{scene.id}.tif", empty)
        return out, meaning.coding(copied=True)
    out, field = folder / f"{scene.id}.geojson", where.get("class_field")
    found = scenes.clean_labels(scene, out, field, names[:-1], where.get("layer"))
    if empty is None:
        return found, None
    with atomic_path(out) as partial:
        shutil.copyfile(found, partial)
        _burn_null(partial, scene.image, empty, null)
    return out, None


def _inside(scene):
    "Which pixels of an image lie in the area that counts."
    info = image_info(scene.image)
    frame, _ = read_shapes(scene.aoi, info)
    return geometry_mask(frame.geometry, info.shape, info.transform, invert=True)


def _check_areas(hp, splits) -> list[int]:
    """How large a chip may be in each area of training.

    Raises ValueError where none fits, or where what is beside an area would count.
    """
    rooms = []
    for scene in (s for some in splits.values() for s in some if s.aoi is not None):
        if scene.split != "train" and hp.null != "ignore":
            raise ValueError(
                f"scene {scene.id}: its area is no rectangle, so what is beside it has "
                f"no label: that needs null=ignore, got null={hp.null}"
            )
        if scene.split != "train":
            continue
        rooms.append(_widest_square(_inside(scene)))
        if hp.chip_sz and hp.chip_sz > rooms[-1]:
            raise ValueError(
                f"scene {scene.id}: no chip of {hp.chip_sz} x {hp.chip_sz} pixels fits into "
                f"its area ({scene.aoi}): draw a wider one, or lower chip_sz"
            )
    return rooms


def _check_label_settings(where, every):
    """ValueError for settings of other labels, and for classes that polygons cannot fill.

    Polygons without `class_field` are all of one class, and what lies outside polygons is
    `background`, or `null` where that was asked for.
    """
    kinds = {is_raster(s.label) for s in every if s.label is not None}
    idle = {True: ("class_field", "layer"), False: ("label_values",)}
    for name in idle[kinds.pop()] if len(kinds) == 1 else ():
        if where.get(name):
            what = "polygons" if name != "label_values" else "rasters"
            raise ValueError(
                f"{name}={where[name]} is for labels that are {what}, and none are: leave "
                "it out"
            )
    if not any(s.label is not None and not is_raster(s.label) for s in every):
        return
    asked, wrong = [*read_classes(where["classes"])], []
    field = where.get("class_field")
    found = [name for name in asked if name not in RESTS]
    low = {name.lower(): name for name in found}
    near = difflib.get_close_matches("background", low, n=1, cutoff=0.7)
    if "background" not in asked and near:
        found.remove(odd := low[near[0]])
        right = ",".join("background" if name == odd else name for name in asked)
        wrong += [f"{odd!r} is not 'background', so write classes={right}"]
    elif "background" not in asked and (len(found) < 2 or "null" not in asked):
        every = ",".join(found if field else found[:1])
        text = (
            f"nothing is said of what lies outside polygons: classes={every},background"
        )
        if field and len(found) > 1:
            text += f", or to leave it out of the loss, classes={every},null"
        wrong += [text]
    if len(found) > 1 and not field:
        wrong += [
            f"all polygons would be {found[0]}, none {' or '.join(found[1:])}: say which "
            "attribute holds the class, class_field=NAME"
        ]
    if wrong:
        told = f"classes={','.join(asked)} with polygons as labels"
        raise ValueError(f"{told}: {'; '.join(wrong)}")


def _common_nodata(image):
    "What several bands of whole numbers declare as nodata, if it is above 0, as text."
    with open_image(image) as file:
        values, kinds = {*file.nodatavals}, {*file.dtypes}
        alone = all(flags == [MaskFlags.nodata] for flags in file.mask_flag_enums)
    if not alone or len(values) > 1 or len(kinds) > 1:
        return None  # none is declared, or a mask says more
    value, whole = values.pop(), np.dtype(kinds.pop()).kind in "iu"
    return f"{value:.0f}" if whole and value > 0 else None


_MENDED = "left out", "repaired", "closed", "outside the image"


def _say_mended(where, names, every, table):
    """Say what was left out of vector labels, or repaired.

    ValueError for a class of which all features are lines and points.
    """
    told, flat = {}, False  # (label file, notes): sentence
    for scene, row in zip(every, table.itertuples(), strict=True):
        notes = row.notes.split("; ") if row.labels == "vector" else []
        notes = "; ".join(n for n in notes if any(word in n for word in _MENDED))
        if notes:
            told.setdefault((scene.label, notes), f"{Path(scene.label).name}: {notes}")
        flat |= "without an area" in notes
    field, layer = where.get("class_field"), where.get("layer")
    if flat and field:
        drawn, lines = set(), set()
        for scene in every:
            if scene.label is not None and not is_raster(scene.label):
                info = image_info(scene.image)
                frame, _ = read_shapes(scene.label, info, layer, scene.shared)
                drawn |= {*map(str, frame[field])} if len(frame) else set()
        for label in {s.label for s in every if s.label and not is_raster(s.label)}:
            lines |= values_without_area(label, field, layer)
        if lonely := [name for name in names if name in lines - drawn]:
            raise ValueError(
                f"all features of {field} {', '.join(lonely)} are lines or points, which "
                "have no area and label no pixel: buffer them by half their width (QGIS: "
                "Vector geometry, Buffer; geopandas: frame.buffer(3)), or leave them out"
            )
    if told:
        more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
        say_once(
            f"labels are not used as they are ({len(told)} files): "
            f"{'; '.join(list(told.values())[:3])}{more}. rvtutorial check lists all"
        )


def _widest_square(inside: np.ndarray) -> int:
    "Side of the largest square of a mask, found by halving; 0 for an empty one."
    sums = np.pad(inside.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def fits(n):
        full = sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]
        return (full == n * n).any()

    return bisect.bisect_left(
        range(1, min(inside.shape) + 1), True, key=lambda n: not fits(n)
    )


def _say_if_one_is_narrow(hp, table, room) -> None:
    "Which scene makes the chips of all so small, if it is far from usual; once."
    sides = table[["height", "width"]].min(axis=1)
    if hp.chip_sz is None and room < MIDDLING and 2 * room <= sides.median():
        say_once(
            f"scene {table.id[sides.idxmin()]} is {sides.min()} pixels wide, and half of "
            f"them are {sides.median():.0f} or more: all chips become so small, for "
            f"none may be larger than a scene. Leave it out if the rest is enough"
        )


def _check_validation(hp, splits, data):
    "Without validation scenes nothing can be chosen by them: ValueError, or a word of it."
    if splits["val"]:
        return
    if hp.checkpoint == "best" or hp.patience is not None:
        name = "patience" if hp.patience is not None else "checkpoint='best'"
        raise ValueError(
            f"{data} has no validation scenes, which {name} looks at: add rows with the "
            "split val, or keep the last weights or their mean (checkpoint='mean')"
        )
    say_once(
        f"{data} has no validation scenes: all {len(splits['train'])} scenes train, and "
        "nothing tells how good the result is on others, unless there are test scenes. "
        "engine.run can do that, plain Raster Vision's training cannot"
    )


class RunData:
    """The scenes of a run; what cannot be trained on is refused before anything is written.

    Attributes: `splits` (train, val, test: scenes), `shapes` (scene id: rows, columns,
    bands), `room` (side in pixels of the smallest scene, or area of training), `bands` as asked for, by number, `order` of the bands that the network sees,
    counted from 0, `limits` (lowest and highest value of each; None: as they are) and
    `fills` (values of float images that are no measurement; None: integers).
    """

    def __init__(
        self,
        hp: Hyperparams,  # chip_sz, max_windows, scaling
        where: dict,  # As `data_settings` returns it
        classes,  # ClassConfig
        split: bool = False,  # Split a folder without train/ by chance
    ):
        patterns = where["image_pattern"], where["label_pattern"]
        found = (_by_chance if split else scenes.find_splits)(where["data"], *patterns)
        self.where, self.classes, self.splits = where, classes, found
        _check_validation(hp, found, where["data"])
        zeros = check_zeros(where.get("zeros"))
        how = {
            name: where.get(name) for name in ("class_field", "label_values", "layer")
        }
        how |= dict(classes=classes.names[:-1], zeros=zeros)
        every = [scene for some in found.values() for scene in some]
        _check_label_settings(where, every)
        asked = self.bands = numbered_bands(where.get("bands"), every)
        with tempfile.TemporaryDirectory() as tmp:
            shown = self.shown_as_bands(tmp)  # every image has those bands
            order = None if asked is None else read_bands(asked, sys.maxsize)
            try:
                table = scenes.check_scenes(shown, **how, order=order)
            except scenes.DataError as err:  # about images, and not about views of them
                problems = "\n".join(err.problems)
                views = [view for found in shown.values() for view in found]
                for view, scene in zip(views, every, strict=True):
                    problems = problems.replace(str(view.image), str(scene.image))
                raise scenes.DataError(problems.split("\n")) from None
            unlabelled = table[table.labels == "none"]
            if len(unlabelled):
                raise ValueError(f"scenes without labels: {', '.join(unlabelled.id)}")
            _say_mended(where, classes.names, every, table)
            for doubt in doubts.empty_pixels(hp, table):
                say_once(doubt)
            hp.check_scene(int(table.height.min()), int(table.width.min()))
            rooms = [*_check_areas(hp, found), *table.height, *table.width]
            self.room = int(min(rooms))
            _say_if_one_is_narrow(hp, table, self.room)
            if hp.max_windows and len(found["train"]) * hp.max_windows < 2:
                raise ValueError(
                    "one chip an epoch is too little to train on: raise max_windows"
                )
            for doubt in doubts.parts_of_one_tile(found):
                say_once(doubt)
            infos = {scene.id: image_info(scene.image) for scene in every}
            order = self.order = _band_order(asked, infos)
            if hp.scaling == "none":
                self.limits = None
            elif hp.scaling == "percentiles":
                more = dict(zeros=zeros, order=order)
                self.limits = scenes.percentiles(shown["train"], *PERCENTILES, **more)
            else:
                self.limits = _limits_of(hp.scaling, len(order))
        _say_leaks(found)
        self.shapes = {
            i: (*info.shape, info.bands - len(info.alphas)) for i, info in infos.items()
        }
        self.fills = _fills_of(every, order)
        self._holes = set(table.id[table.no_data > 0])

    def shown_as_bands(
        self,
        folder: str | Path,  # Where views of images are written, if any are needed
    ) -> dict:  # The same splits
        """Images that Raster Vision reads as they are meant.

        A band that was asked for is a band, also when tagged alpha, which Raster Vision
        takes for a mask; and a declared nodata that a camera may measure, such as 255, is
        none where other bands hold data. A view is a small VRT file that names the image
        and has other tags.
        """

        def view(scene):
            try:
                info = image_info(scene.image)
            except (ValueError, FileNotFoundError):
                return scene  # the check of all scenes says what is wrong with it
            order, alphas = range(info.bands), {*info.alphas}
            if self.bands is not None:
                order = read_bands(self.bands, info.bands, scene.image)
            tagged = alphas & {*order} if self.bands is not None else None
            several = len({*order}) > 1 and (tagged or not alphas)
            empty = _common_nodata(scene.image) if several else None
            if not tagged and empty is None:
                return scene
            out, alpha = Path(folder) / f"{scene.id}.vrt", ColorInterp.alpha
            with atomic_path(out) as partial:
                rasterio.shutil.copy(scene.image.absolute(), partial, driver="VRT")
                with rasterio.open(partial, "r+") as file:
                    if tagged:
                        file.colorinterp = [
                            ColorInterp.undefined if c == alpha else c
                            for c in file.colorinterp
                        ]
                    if empty is not None:  # GDAL: no data where all bands say so
                        file.nodata = None
                        file.update_tags(NODATA_VALUES=" ".join([empty] * file.count))
            return replace(scene, image=out)

        return {
            name: [view(scene) for scene in some] for name, some in self.splits.items()
        }

    @contextmanager
    def begun(
        self,
        output_uri: str | Path,  # Folder of the run
        hp: Hyperparams,  # All of them
        preset: str,  # Its name
        windows: dict,  # Scene id -> which chips are cut from it
    ) -> Iterator[Run]:  # New, or the same run again; ValueError when it is another one
        """Open the folder of a run; if what follows fails, a new one is left as it was found.

        Values, data and windows make two runs the same run.
        """
        grid = {s.id: json.loads(windows[s.id].json()) for s in self.splits["val"]}
        text = json.dumps(grid, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        data = {k: self.where[k] for k in ("data", "image_pattern", "label_pattern")}
        asked = {
            "hyperparams": hp.asdict(),
            "preset": preset,
            "data": {**data, "digest": scenes.dataset_digest(self.splits)},
            "labels": {k: v for k, v in self.where.items() if k not in data},
            "windows_digest": digest,
            "seed": hp.seed,
        }
        run = Run(output_uri)
        there, new = run.path.exists(), not run.manifest
        run = Run.open_for(output_uri, asked)
        if new:  # who will run it is not known, so its files tell its state
            run.update("went", state=None)
        try:
            yield run
        except BaseException:
            for name in ("labels", "images", "hub") if new else ():
                shutil.rmtree(run.path / name, ignore_errors=True)
            for name in ("run.json", ".run.lock") if new else ():
                (run.path / name).unlink(missing_ok=True)
            if not there:
                with suppress(OSError):  # something else lies there by now
                    run.path.rmdir()
            raise

    def labels(
        self,
        hp: Hyperparams,  # null, sampling
        shown: dict,  # Of `shown_as_bands`
        folder: Path,  # Where copies of labels are written, if any are needed
    ) -> dict:  # Scene id -> (label file, what the numbers of a raster mean)
        "The labels of all scenes as a run uses them."
        made = {}
        for split, some in shown.items():
            # chips anywhere may hold nothing else, and a loss over no pixel is no number
            needed = split != "train" or hp.sampling == "labels"
            marked = hp.null == "ignore" and needed
            for scene in some:
                more = self.where, self.order, marked and scene.id in self._holes
                made[scene.id] = _own_labels(scene, folder, self.classes, *more)
        return made

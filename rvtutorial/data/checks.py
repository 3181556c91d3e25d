"""Checks of a run's scenes before training, and its labels with `null` where there is no data.

Written by hand: what `get_config` does before it builds a configuration. Everything that
cannot be trained on is refused with a reason before anything is written.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.features import shapes
from rasterio.warp import transform_geom

from rvtutorial import scenes
from rvtutorial.data import label_values, validity
from rvtutorial.data.labels import check_grid, image_info, is_raster
from rvtutorial.core.files import atomic_path
from rvtutorial.core.records import read_json, write_json
from rvtutorial.runs import Hyperparams, Workspace

__all__ = ["data_folder", "labels_of_run", "look_at_data"]
__all__ += ["shown_as_bands"]


def data_folder(
    preset: str = "sample",  # Whose scenes, when no folder is named
    data: str | Path | None = None,  # A folder of scenes, or a CSV table of them
) -> Path:  # Absolute; sample scenes are made on first use
    "Where the scenes are."
    if data is not None:
        return Path(data).expanduser().absolute()
    folder = Workspace(preset=preset).data_of(
        preset
    )  # also when RVTUTORIAL_PRESET differs
    return Path(scenes.ensure_data(SimpleNamespace(preset=preset, data=folder)))


def _shape_of(
    image: str | Path,  # A raster
) -> tuple[int, int, int]:  # Rows, columns, bands (an alpha band does not count)
    "How large an image is, without reading its pixels."
    with rasterio.open(image) as file:
        bands = sum(c != ColorInterp.alpha for c in file.colorinterp)
        return file.height, file.width, bands


def _read_bands(
    bands: str | list | None,  # Such as "3,2,1", counted from 1 as QGIS does; None: all
    available: int,  # Bands of the images
    image: str | Path | None = None,  # Which of them, for the message
) -> list[int]:  # Counted from 0, as Raster Vision does
    "Which bands the network sees, in which order; raises ValueError."
    if bands is None:
        return list(range(available))
    given = bands.split(",") if isinstance(bands, str) else bands
    try:
        order = [int(b) - 1 for b in given]
    except ValueError:
        raise ValueError(
            f"bands must be numbers such as 3,2,1, got {bands!r}"
        ) from None
    if not order or min(order) < 0 or max(order) >= available:
        text = f"bands must be from 1 to {available}, got {bands!r}"
        raise ValueError(f"{image}: {text}" if image else text)
    return order


def _band_order(
    bands: str | list | None,  # As `_read_bands` takes them
    splits: dict,  # {"train": scenes, "val": scenes, "test": scenes}
) -> list[int]:  # Counted from 0
    """Which bands the network sees: those asked for, else all but alpha.

    Raises ValueError for bands that are not there, and for images of which some have an
    alpha band where others have none.
    """
    every = [scene for found in splits.values() for scene in found]
    found = {scene.id: image_info(scene.image) for scene in every}
    if bands is not None:
        return _read_bands(bands, min(info.bands for info in found.values()))
    orders = {}
    for name, info in found.items():
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


def shown_as_bands(
    splits: dict,  # {"train": scenes, "val": scenes, "test": scenes}
    bands: str | list | None,  # What was asked for; None: alpha stays alpha
    folder: Path,  # Where views of images are written, if any are needed
) -> dict:  # The same splits
    """Images in which a band that was asked for is a band, also when tagged alpha.

    Raster Vision takes such a tag for a mask. A view is a small VRT file that names the
    image and leaves the tag out.
    """
    if bands is None:
        return splits

    def view(scene):
        try:
            info = image_info(scene.image)
        except (ValueError, FileNotFoundError):
            return scene  # the check of all scenes says what is wrong with it
        wanted = _read_bands(bands, info.bands, scene.image)
        if not {*info.alphas} & {*wanted}:
            return scene
        out = Path(folder) / f"{scene.id}.vrt"
        _without_alpha(scene.image, out)
        return scenes.Scene(scene.id, out, scene.label, scene.split)

    return {name: [view(scene) for scene in found] for name, found in splits.items()}


def _without_alpha(
    image: Path,  # A raster
    out: Path,  # The VRT file to write
) -> None:
    "Write a view of an image in which no band is alpha."
    with atomic_path(out) as partial:
        rasterio.shutil.copy(Path(image).absolute(), partial, driver="VRT")
        with rasterio.open(partial, "r+") as file:
            file.colorinterp = [
                ColorInterp.undefined if c == ColorInterp.alpha else c
                for c in file.colorinterp
            ]


def look_at_data(
    hp: Hyperparams,  # chip_sz, max_windows
    where: dict,  # data, patterns, class_field, label_values, layer, bands, zeros
    classes,  # ClassConfig
) -> dict:  # splits, shapes by scene id, holes, order of bands, values, limits, fills
    "Find the scenes and refuse what cannot be trained on, before anything is written."
    patterns = where["image_pattern"], where["label_pattern"]
    splits = scenes.find_splits(where["data"], *patterns)
    zeros = validity.check_zeros(where.get("zeros"))
    names = ("class_field", "label_values", "layer")
    labels = {name: where.get(name) for name in names}
    asked = where.get("bands")
    with tempfile.TemporaryDirectory() as tmp:
        shown = shown_as_bands(splits, asked, tmp)  # every image has those bands
        order = None if asked is None else _read_bands(asked, sys.maxsize)
        try:
            more = dict(classes=classes.names[:-1], zeros=zeros, order=order)
            table = scenes.check_scenes(shown, **labels, **more)
        except scenes.DataError as err:
            raise _about_images(err, shown, splits) from None
        _refuse_untrainable(hp, table, len(splits["train"]))
        order = _band_order(asked, splits)
        limits = _input_range(shown["train"], hp.scaling, order, zeros)
    shapes = {s.id: _shape_of(s.image) for found in splits.values() for s in found}
    holes = set(table.id[table.no_data > 0])
    values = label_values.read_meaning(where.get("label_values"), classes.names)
    found = {"splits": splits, "shapes": shapes, "holes": holes}
    found |= {"order": order, "values": values, "limits": limits}
    return found | {"fills": _fills_of(splits, order)}


def _refuse_untrainable(hp, table, train):
    "ValueError for scenes without labels, too small, or too few."
    unlabelled = table[table.labels == "none"]
    if len(unlabelled):
        raise ValueError(f"scenes without labels: {', '.join(unlabelled.id)}")
    hp.check_scene(int(table.height.min()), int(table.width.min()))
    if train * hp.max_windows < 2:
        raise ValueError(
            "one chip an epoch is too little to train on: raise max_windows"
        )


def _about_images(error, shown, splits):
    "The same problems, with the names of images in place of those of views."
    problems = "\n".join(error.problems)
    for name, found in splits.items():
        for view, scene in zip(shown[name], found, strict=True):
            problems = problems.replace(str(view.image), str(scene.image))
    return scenes.DataError(problems.split("\n"))


def _fills_of(
    splits: dict,  # {"train": scenes, "val": scenes, "test": scenes}
    order: list | None = None,  # Used bands, counted from 0; None: all but alpha
) -> list[int] | None:  # Such as [-9999]; None: no floats
    """Values of float images that are no measurement, and that the network must not see.

    Raises ValueError for infinite values, which no transformer of Raster Vision removes.
    """
    found, floats = set(), False
    for image in (scene.image for some in splits.values() for scene in some):
        with rasterio.open(image) as file:
            if not any(np.dtype(kind).kind == "f" for kind in file.dtypes):
                continue
            floats, values = True, validity.fill_values(file, order)
        if not np.isfinite(list(values)).all():
            raise ValueError(
                f"{image} holds infinite values: write nan or a declared nodata value there"
            )
        found |= values
    return sorted(map(int, found)) if floats else None


PERCENTILES = (1, 99)


def _input_range(
    train: list,  # The training scenes, and no others
    how: str,  # percentiles, none, or LO,HI
    channel_order: list,  # Bands, counted from 0
    zeros: str | None = None,  # Patches of 0 in all bands: "empty" (None), "data"
) -> tuple[list, list] | None:  # Lowest and highest value of each band
    "The values between which the imagery lives."
    if how == "none":
        return None
    if how == "percentiles":
        zeros = validity.check_zeros(zeros)
        return scenes.percentiles(train, *PERCENTILES, zeros=zeros, order=channel_order)
    low, high = (float(v) for v in how.split(","))
    return [low] * len(channel_order), [high] * len(channel_order)


def _no_data(
    image: str | Path,  # A raster
    zeros: str | None = None,  # Patches of 0 in all bands: "empty" (None), "data"
    order: list | None = None,  # Used bands, counted from 0; None: all but alpha
) -> np.ndarray | None:  # (rows, columns), True where there is no data; None: nowhere
    "Where an image holds no data, as `validity.valid` says."
    with rasterio.open(image) as file:
        empty = ~validity.valid(file, bands=order, zeros=validity.check_zeros(zeros))
    return empty if empty.any() else None


def _burn_null(
    label: Path,  # GeoJSON in longitude and latitude; changed in place
    image: Path,  # Gives the pixel grid
    empty: np.ndarray,  # (rows, columns), True where there is no data
    value: int,  # What these pixels are labelled with
) -> None:
    "Label the pixels without data; polygons that come last lie on top."
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


def _own_labels(
    scene: scenes.Scene,  # Image and labels as they were found
    folder: Path,  # Where this run keeps its labels
    classes,  # ClassConfig
    values: dict | None = None,  # Value or colour in a label raster -> class id
    class_field: str | None = None,  # Attribute of vector labels that holds the class
    holes: bool = True,  # Look for pixels without data, and label them null
    layer: str | None = None,  # Layer of vector labels; None: the only one
    zeros: str | None = None,  # Patches of 0 in all bands: "empty" (None), "data"
    order: list | None = None,  # Used bands, counted from 0; None: all but alpha
) -> tuple[Path, dict | None]:  # The label file, and what the numbers of a raster mean
    "Labels as Raster Vision needs them, with `null` where there is no data."
    names, null = classes.names, classes.null_class_id
    empty = _no_data(scene.image, zeros, order) if holes else None
    if is_raster(scene.label):
        info, mask = image_info(scene.image), label_values.look_at_mask(scene.label)
        check_grid(scene.label, info)
        if empty is None and label_values.as_stock_reads(mask, values, info):
            return Path(scene.label), label_values.coding(values, names, copied=False)
        out = folder / f"{scene.id}.tif"
        label_values.write_classes(scene.label, values, info, out, null, empty)
        return out, label_values.coding(values, names, copied=True)
    out = folder / f"{scene.id}.geojson"
    found = scenes.clean_labels(scene, out, class_field, names[:-1], layer)
    if empty is None:
        return found, None
    with atomic_path(out) as partial:
        shutil.copyfile(found, partial)
        _burn_null(partial, scene.image, empty, null)
    return out, None


def labels_of_run(folder, hp, where, found, splits, classes) -> dict:
    "The labels of all scenes as a run uses them; its own copies lie in its folder."
    place, made = Path(folder) / "labels", {}
    how = {name: where.get(name) for name in ("class_field", "layer", "zeros")}
    how["order"] = found["order"]
    for split, some in splits.items():
        marked = hp.null == "ignore" and split != "train"
        for s in some:
            holes = marked and s.id in found["holes"]
            made[s.id] = _own_labels(
                s, place, classes, found["values"], holes=holes, **how
            )
    return made

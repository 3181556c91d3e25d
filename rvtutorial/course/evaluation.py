"""Image, truth and prediction of every validation tile, put together and written as GeoTIFF, PNG and a figure.

Written by hand: the course's `evaluate`.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rvtutorial import scenes
from rvtutorial.core.files import atomic_path, writing
from rvtutorial.core.records import read_json, write_json
from rvtutorial.course import tiles
from rvtutorial.data.labels import image_info, is_raster, open_image, read_image
from rvtutorial.data.pairing import Scene
from rvtutorial.data.places import unplaced_allowed
from rvtutorial.figures import maps
from rvtutorial.metrics.counting import Counts, confusion
from rvtutorial.metrics.calibration import ScoreCounts, count_scores
from rvtutorial.metrics.leaderboard import score_files
from rvtutorial.runs import Run

__all__ = ["evaluate_tiles"]


@dataclass
class _Parent:
    "A tile, whole: what `evaluate_tiles` writes of it."

    id: str
    picture: np.ndarray  # (rows, columns, 3), 0 to 1
    truth: np.ndarray  # (label rows, label columns) class ids
    prediction: np.ndarray  # The same
    transform: object  # Affine of the picture
    crs: object


def evaluate_tiles(
    run: str | Path | Run,  # A run that has predicted its validation scenes
    out: str | Path = "predictions",  # Files go to a folder of the network's name in it
    checkpoint: str | Path | None = None,  # last, best or a file; None: the run's maps
    split: str = "validation",  # Or test
    trust: bool = False,  # With `checkpoint`: run code of others that the run carries
    cell: int | None = None,  # Pixels along a side of a label; None: as label files say
) -> pd.DataFrame:  # Index: class, and macro. accuracy, iou, f1, auc
    """Put every tile of a split together again, write it, draw it and score it.

    Of each tile there are `ID-image`, `ID-truth` and `ID-prediction` as GeoTIFF and PNG, and
    a figure of the three, `ID.png`. Subtiles (`tiles.cut_subtiles`) are put together;
    other scenes are tiles themselves. Truth and prediction have the grid of the labels:
    where a label stands for a square of pixels, the class is that of most of them. The
    accuracy of a class is the share of its pixels that are found; `auc` is NaN for a run
    that keeps no scores. A checkpoint's weights predict as the run does: the same windows,
    blend and precision. What is there of the same run, split and checkpoint is replaced.
    Raises FileNotFoundError when the run has no maps, ValueError for a tile that lacks
    subtiles, for a checkpoint of another network, and where the folder holds the tiles of
    another run, split or checkpoint.
    """
    run = Run.of(run)
    if checkpoint in KEPT:
        checkpoint = run.path / KEPT[checkpoint]
    ids = run.scene_ids(split)
    kinds = maps.Classes(run)
    names, null = kinds.names, kinds.null
    place = Path(out) / _network_of(run)
    about = dict(run=str(run.path.absolute()), split=split)
    about |= {"checkpoint": checkpoint and str(Path(checkpoint).absolute())}
    with tempfile.TemporaryDirectory() as tmp:
        drawn = {i: run.prediction(i) for i in ids} if checkpoint is None else None
        _refuse_other(place, about)
        if checkpoint is not None:
            drawn = _predicted(run, ids, Path(checkpoint), Path(tmp), trust)
        with writing(place):
            _refuse_other(place, about)
            matrix, known = np.zeros((len(names),) * 2, np.int64), []
            for parent in _parents(run, ids, drawn, len(names), cell):
                write_json(place / NOTE, about)
                _write(parent, place, kinds.colours, null)
                matrix += confusion(parent.truth, parent.prediction, len(names))
                known.append(parent.id)
            table = _table(matrix, names, null)
            areas = _areas(run, split, drawn if checkpoint else {})
            table["auc"] = pd.Series(areas, dtype=float)
            table.loc["macro", "auc"] = table["auc"].mean()
            with atomic_path(place / "scores.csv") as path:
                table.to_csv(path)
    table.attrs["folder"], table.attrs["tiles"] = place, known
    return table


KEPT = {"last": "train/last.pt", "best": "train/best.pt"}  # of a Lightning training
NOTE = "evaluated.json"  # beside the tiles: run, split and checkpoint


def _network_of(run) -> str:
    "Architecture and encoder, such as unet-efficientnet-lite0."
    hp = run.hyperparams
    names = [] if hp.get("hubconf") else [hp.get("model"), hp.get("encoder")]
    return "-".join(name for name in names if name) or run.name


def _refuse_other(place: Path, about: dict) -> None:
    "ValueError for a folder that holds tiles of anything else."
    there = read_json(place / NOTE, {}, form={})
    if there == about or not (there or [*place.glob("[!.]*")]):
        return
    said = (
        ", ".join(f"{k} {v}" for k, v in there.items() if v) or "files of other origin"
    )
    asked = ", ".join(f"{k} {v}" for k, v in about.items() if v)
    raise ValueError(
        f"{place} holds {said}, and is asked for {asked}: name another folder (--out "
        f"{place.parent / Path(about['run']).name}), or delete this one"
    )


def _parents(run, ids, drawn, classes, cell):
    "Each tile of a run, one after the other."
    subtiles, files = [], {} if cell else _label_files(run)
    more = drawn, classes, cell, files
    for scene in ids:
        image = run.image(scene)
        if "tile" in read_json(Path(image).with_suffix(".json"), {}, form={}):
            subtiles.append(Scene(scene, image))
        else:
            yield _put_together(run, scene, [scene], None, None, *more)
    for tile, (found, windows, shape) in tiles.places_of(subtiles).items():
        some = [scene.id for scene in found]
        yield _put_together(run, tile, some, windows, shape, *more)


def _label_files(run) -> dict[str, Path]:
    "The label files of a run's data, where they are still there; a run may have copies."
    data = run.manifest.get("asked", {}).get("data") or {}
    try:
        where = (data[k] for k in ("data", "image_pattern", "label_pattern"))
        found = scenes.find_splits(*where)
    except (KeyError, OSError, ValueError):
        return {}
    return {scene.id: scene.label for some in found.values() for scene in some}


def _put_together(
    run, name, ids, windows, shape, drawn, classes, cell, files
) -> _Parent:
    "A tile from its scenes."
    read = [maps.SceneLayers.of_run(run, scene, max_size=10**9) for scene in ids]
    raw = [read_image(run.image(scene)) for scene in ids]
    truths = [layers.truth(run) for layers in read]
    said = [_labels(drawn[scene], classes) for scene in ids]
    first = 0
    if windows is None:
        (image,), (truth,), (prediction,) = raw, truths, said
    else:
        image, truth, prediction = (
            tiles.restitch(some, windows, shape) for some in (raw, truths, said)
        )
        first = int(np.lexsort((windows[:, 1], windows[:, 0]))[0])
    label = files.get(ids[first]) or read[first].label
    cell = cell or _cell(label, run.image(ids[first]))
    if cell > 1:
        truth, prediction = (_most(some, cell, classes) for some in (truth, prediction))
    with open_image(run.image(ids[first])) as file:
        where = file.transform, file.crs
    picture = scenes.stretch(image)
    return _Parent(name, picture, truth, prediction, *where)


def _labels(path, classes) -> np.ndarray:
    "Class ids of a map; where an image has no data they are those of null, the last one."
    with open_image(path) as file:
        return file.read(1).clip(max=classes - 1)


def _cell(label, image) -> int:
    "Pixels of the image along a side of a label."
    if label is None or not is_raster(label):
        return 1
    with open_image(label) as file:
        there = file.shape
    info = image_info(image)
    cells = {side // own for side, own in zip(info.shape, there, strict=True)}
    exact = all(s % own == 0 for s, own in zip(info.shape, there, strict=True))
    return cells.pop() if exact and len(cells) == 1 else 1


def _most(labels, cell, classes) -> np.ndarray:
    "The class of most pixels of each square, the first of several that have as many."
    rows, columns = (side // cell for side in labels.shape)
    blocks = labels.reshape(rows, cell, columns, cell)
    counts = [(blocks == k).sum(axis=(1, 3)) for k in range(classes)]
    return np.argmax(counts, axis=0).astype(labels.dtype)


def _table(matrix, names, null) -> pd.DataFrame:
    counts = Counts(matrix[None], ("all",), tuple(names), null)
    found = counts.overall()
    table = pd.DataFrame(
        {
            "accuracy": found.pixel_recall,
            "iou": found.pixel_iou,
            "f1": found.pixel_f1,
        }
    )
    table.loc["macro"] = table.mean()
    return table


def _areas(run, split, drawn) -> dict[str, float]:
    "The area under the ROC curve of each class; `drawn`: other maps, with scores beside them."
    try:
        files = score_files(run, split)
    except FileNotFoundError:
        return {}
    for scene, path in drawn.items():
        files[scene]["scores"] = path.with_name("scores.tif")
    found = [count_scores(scene=scene, **how) for scene, how in files.items()]
    counts = ScoreCounts.joined(found)
    return {name: counts.scores(name)["roc_auc"] for name in counts.classes}


# --- files


def _write(parent: _Parent, place: Path, colours: dict, null: str | None) -> None:
    "GeoTIFF and PNG of image, truth and prediction, and the figure of the three."
    import rasterio
    from affine import Affine
    from matplotlib.colors import to_rgb
    from PIL import Image

    place.mkdir(parents=True, exist_ok=True)
    paint = (np.array([to_rgb(c) for c in colours.values()]) * 255).round()
    paint = paint.astype(np.uint8)
    picture = (parent.picture * 255).round().astype(np.uint8)
    layers = {"image": picture.transpose(2, 0, 1)}
    layers |= {"truth": parent.truth[None], "prediction": parent.prediction[None]}
    for name, bands in layers.items():
        cell = parent.picture.shape[0] / bands.shape[1]
        profile = dict(driver="GTiff", dtype="uint8", count=len(bands), crs=parent.crs)
        profile |= dict(height=bands.shape[1], width=bands.shape[2], compress="deflate")
        profile["transform"] = parent.transform @ Affine.scale(cell)
        with atomic_path(place / f"{parent.id}-{name}.tif") as path, unplaced_allowed():
            with rasterio.open(path, "w", **profile) as file:
                file.write(bands.astype(np.uint8))
                if name != "image":
                    palette = {i: (*map(int, c), 255) for i, c in enumerate(paint)}
                    file.write_colormap(1, palette)
        shown = picture if name == "image" else paint[bands[0].clip(0, len(paint) - 1)]
        with atomic_path(place / f"{parent.id}-{name}.png") as path:
            Image.fromarray(shown).save(path, "PNG")
    with atomic_path(place / f"{parent.id}.png") as path:
        Path(path).write_bytes(maps.figure_bytes(_figure(parent, colours, null), "png"))


def _figure(parent: _Parent, colours: dict, null: str | None):
    "Image, truth and prediction side by side, in pixels of the image."
    from matplotlib.colors import ListedColormap

    height, width = parent.picture.shape[:2]
    fig, axes = maps.subplots(10.5, 3.7 * height / width + 0.6, 1, 3, sharey=True)
    look = dict(extent=(0, width, height, 0), interpolation="nearest")
    axes[0].imshow(parent.picture, **look)
    codes = dict(cmap=ListedColormap(list(colours.values())), vmin=-0.5)
    for ax, labels in zip(axes[1:], (parent.truth, parent.prediction), strict=True):
        ax.imshow(labels, **look, **codes, vmax=len(colours) - 0.5)
    for ax, title in zip(axes, ("image", "truth", "prediction"), strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("column (pixels)", fontsize=9)
    axes[0].set_ylabel("row (pixels)", fontsize=9)
    right = (parent.truth == parent.prediction)[parent.truth != _null(colours, null)]
    share = f"{right.mean():.1%} of the labels right" if right.size else "no labels"
    shown = {k: c for k, c in colours.items() if k != null}
    maps.captions(fig, f"tile {parent.id}: {share}", shown)
    return fig


def _null(colours, null) -> int:
    return list(colours).index(null) if null in colours else -1


# --- other weights


def _as_predicted(run) -> dict:
    "How a run drew its maps, as `predict` takes it."
    made = run.manifest["went"].get("maps", {}).get("made_by")
    blend, dtype = made[2:4] if made else ("mean", "auto")
    scores = run.hyperparams.get("scores", "none")
    smooth = scores != "none"
    how = dict(blend=blend if smooth else "votes", scores=scores if smooth else None)
    options = run.config["predict_options"]
    how |= {k: options.get(k) for k in ("chip_sz", "stride", "crop_sz")}
    how["precision"] = str(dtype).removeprefix("torch.")
    return how | dict(polygons=False, progress=False)


def _predicted(run, ids, checkpoint, tmp, trust) -> dict[str, Path]:
    "Maps that a checkpoint's weights draw, by scene."
    from rvtutorial.course.training import load_weights, network_name
    from rvtutorial.engine.bundles import Model
    from rvtutorial.engine.learner import FastLearner, quiet
    from rvtutorial.engine.pipeline import predict

    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    (tmp / "opened").mkdir()
    bundle = Model.open(run.path, tmp / "opened", trust).bundle
    twin = tmp / "run"
    for name in ("pipeline-config.json", "run.json"):
        (twin / "train").mkdir(parents=True, exist_ok=True)
        shutil.copy(run.path / name, twin / name)
    with quiet():
        learner = FastLearner.from_model_bundle(str(bundle), str(tmp / "learner"))
    load_weights(learner.model, checkpoint, network_name(learner.cfg))
    shutil.unpack_archive(bundle, tmp / "open")
    learner.save_weights(tmp / "open" / "model.pth")
    FastLearner.pack(tmp / "open", twin / "train" / "model-bundle.zip")
    drawn = {}
    for scene in ids:
        place = tmp / "maps" / scene
        predict(twin, run.image(scene), place, trust=trust, **_as_predicted(run))
        drawn[scene] = next(place.rglob("labels.tif"))
    return drawn

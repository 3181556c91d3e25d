"""Prediction thresholds from a model and a data set, wherever both lie: fetched, predicted if need be, tuned, written.

Written by hand: what the command `rvtutorial thresholds` and the job `fit_thresholds` do.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rvtutorial.core.files import scratch_folder
from rvtutorial.core.record import Run
from rvtutorial.core.records import Unreadable, read_json, write_json
from rvtutorial.core.remote import fetch, is_remote, store
from rvtutorial.data.pairing import IMAGE_PATTERN, LABEL_PATTERN, find_scenes
from rvtutorial.metrics.calibration import ScoreCounts
from rvtutorial.metrics.leaderboard import blocks_of, one_look, open_test, score_files
from rvtutorial.metrics.threshold_file import bundle_digests, write_thresholds
from rvtutorial.metrics.thresholds import Tuned, count_scenes, draw_scenes, tune

_LEAVE = (
    "checkpoint*",
    ".*",
    "train/*",
    "*.log",
    "*.out",
    "*.err",
)  # Of a remote model


def fit_thresholds(
    model: str | Path,  # A run folder or a bundle; may be gs:// or s3://
    split: str = "validation",  # Or test, with `on_test`
    dataset: str
    | Path
    | None = None,  # Folder of images and labels; None: as the run says
    out: str | Path | None = None,  # Where the file goes; None: beside the model
    message: str | None = None,  # What the reader should know
    batch_sz: int = 16,  # Chips that are predicted together, where there are no scores
    trust: bool = False,  # Run code that the model carries and that is not this package's
    image_pattern: str = IMAGE_PATTERN,  # In `dataset`, where it has to be predicted
    label_pattern: str = LABEL_PATTERN,
    values: Mapping[int, int] | None = None,  # Value of a raster label -> class number
    counts: Sequence[
        str | Path
    ] = (),  # Files of `count_part`: nothing is counted again
    metadata: Mapping
    | None = None,  # More for the file: dataset_directory, gcp_bucket ...
    **how,  # Of `tune`: metric, classes, rule, over, method, share, seed, on_test ...
) -> tuple[Tuned, str]:  # The thresholds, and where the file is
    """Tune the thresholds of a model and write `model_thresholds_<UTC>.yaml` beside it.

    A run that kept its scores is not predicted again. Else the images of `dataset` that
    are drawn (`share`) are predicted once, and the scores stay in the scratch folder for
    the next time, until an image or the model changes. Raises
    what `tune` raises, and FileNotFoundError for a model or a data set that is not there.
    """
    begun, home = time.perf_counter(), str(model).rstrip("/")
    place = _here(home, "models")
    data = None if dataset is None else _here(str(dataset).rstrip("/"), "datasets")
    run = Run(place) if place.is_dir() else None
    if counts:
        given = _parts(counts, place)
        split = given.split or split
        where = how.get("blocks", "auto")
        if run is not None and isinstance(where, str):
            where = blocks_of([run], given.scenes, where)
            alone = where is None
            how["blocks"] = (
                None if alone else dict(zip(given.scenes, where, strict=True))
            )
    else:
        more = batch_sz, trust, image_pattern, label_pattern, values
        more += how.get("share", 1.0), how.get("seed", 0)
        given = _scored(place, run, split, data, *more)
    drawn = {"share": 1.0} if isinstance(given, Mapping) else {}  # drawn already
    beside = home if is_remote(home) else str(place)
    target = str(out or (beside if place.is_dir() else beside.rpartition("/")[0]))
    folder = target
    if is_remote(target):
        folder = scratch_folder() / "thresholds" / "written"
    with one_look():
        if split == "test" and how.get("on_test"):
            record = folder if is_remote(home) else None
            of = {Path(home).name: run or _run_with(place)}
            open_test(of, how.get("metric", "iou"), record, what="thresholds")
        made = tune(given, split=split, data=data, **how | drawn)
    made = replace(made, share=how.get("share", 1.0))
    known = dict(batch_size=batch_sz, dataset_directory=dataset and str(dataset))
    known |= dict(model_id=Path(home).name) | dict(metadata or {})
    took = time.perf_counter() - begun
    known["scores"] = given if isinstance(given, Mapping) else None
    written = write_thresholds(made, run or Run(place), folder, message, took, **known)
    return made, store(written, target) if is_remote(target) else str(written)


def judge_thresholds(
    made: Tuned,  # What is judged
    model: str | Path,  # A run folder or a bundle, on this machine
    split: str = "test",
    dataset: str | Path | None = None,  # As in `fit_thresholds`, for these scenes
    batch_sz: int = 16,
    trust: bool = False,
    image_pattern: str = IMAGE_PATTERN,
    label_pattern: str = LABEL_PATTERN,
    values: Mapping[int, int] | None = None,
    **how,  # Of `Tuned.on`: blocks, unscored, draws, seed
) -> pd.DataFrame:  # As of `Tuned.on`
    "What thresholds give on other scenes, predicted if need be; a look at test is recorded."
    place = _here(str(model).rstrip("/"), "models")
    data = None if dataset is None else _here(str(dataset).rstrip("/"), "datasets")
    run = Run(place) if place.is_dir() else None
    more = batch_sz, trust, image_pattern, label_pattern, values
    given = _scored(place, run, split, data, *more)
    with one_look():
        if split == "test":
            of = {place.name: run or _run_with(place)}
            open_test(of, made.metric, what="thresholds")
        return made.on(given, split, data=data, **how)


def _run_with(bundle: Path) -> Run:
    "The run in which a bundle lies; where there is none the bundle alone."
    above = bundle.parent.parent
    return Run(above if (above / "pipeline-config.json").is_file() else bundle)


def count_part(
    model: str | Path,  # A run folder that kept its scores
    part: str,  # Such as 2/8: every eighth scene, the second of them first
    path: str | Path,  # File to be written
    split: str = "validation",
    data: str | Path | None = None,  # Folder to which the labels were moved
) -> ScoreCounts:
    "Count a part of the scenes of a run, for `fit_thresholds(counts=...)` to put together."
    try:
        number, many = map(int, part.split("/"))
        if not 1 <= number <= many:
            raise ValueError
    except ValueError:
        raise ValueError(f"part is like 2/8, from 1/8 to 8/8: {part!r}") from None
    data = None if data is None else _here(str(data).rstrip("/"), "datasets")
    run = Run(_here(str(model).rstrip("/"), "models"))
    files = score_files(run, split, data)
    own = list(files)[number - 1 :: many]
    if not own:
        raise ValueError(f"part {part} is empty: there are {len(files)} scenes")
    counts = count_scenes({scene: files[scene] for scene in own}, split)
    counts = replace(counts, model=tuple(bundle_digests(run.path).values()))
    counts.write(path)
    return counts


def _parts(paths, model: Path) -> ScoreCounts:
    "Counts of one model, split and every scene once, put together; ValueError for others."
    here, seen, parts = set(bundle_digests(model).values()), {}, []
    for path in paths:
        part = ScoreCounts.read(path)
        if here and not here & set(part.model):
            what = (
                "are of another model than"
                if part.model
                else "do not say that they are of"
            )
            raise ValueError(f"the counts in {path} {what} {model}")
        twice = [scene for scene in part.scenes if scene in seen]
        if twice:
            raise ValueError(
                f"scene {twice[0]} was counted twice, in {seen[twice[0]]} and in {path}"
            )
        if parts and part.split != parts[0].split:
            raise ValueError(
                f"the counts in {paths[0]} are of the {parts[0].split} split and those in "
                f"{path} of {part.split}"
            )
        seen |= dict.fromkeys(part.scenes, path)
        parts.append(part)
    return ScoreCounts.joined(parts)


def _here(place: str, kind: str) -> Path:
    "A folder or file of this machine; what is elsewhere is fetched."
    if is_remote(place):
        name = hashlib.sha256(place.encode()).hexdigest()[:12]
        folder = scratch_folder() / "thresholds" / kind / name / Path(place).name
        found = fetch(place, folder, _LEAVE if kind == "models" else ())
        if kind == "models" and found.is_dir() and not bundle_digests(found):
            inside = "train/model-bundle.zip"
            with contextlib.suppress(FileNotFoundError):  # scores may do without it
                fetch(f"{place}/{inside}", found / inside)
        return found
    path = Path(place).expanduser().absolute()
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        what = "model" if kind == "models" else "data set"
        raise FileNotFoundError(f"{what} {path.name}: {path} is empty or not there")
    return path


def _scored(
    place,
    run,
    split,
    data,
    batch_sz,
    trust,
    image_pattern,
    label_pattern,
    values,
    share=1.0,
    seed=0,
):
    "The run, if it has scores of these scenes; else where they are predicted, drawn before."
    if run is not None and (place / "pipeline-config.json").is_file():
        try:
            score_files(run, split, data)
            return run
        except FileNotFoundError:
            if data is None:
                raise
    if data is None:
        raise FileNotFoundError(
            f"{place} has no scores: name a folder of images and labels to predict"
        )
    inside = _folder_of(data, split)
    scenes = find_scenes(inside, image_pattern, label_pattern, split)
    drawn = set(draw_scenes([one.id for one in scenes], share, seed))
    images = {str(Path(one.image).absolute()): one for one in scenes if one.id in drawn}
    digests = json.dumps([bundle_digests(place), str(inside.resolve()), *images])
    name = hashlib.sha256(digests.encode()).hexdigest()[:12]
    out = scratch_folder() / "thresholds" / "scores" / name
    folders = _predicted(place, list(images), out, batch_sz=batch_sz, trust=trust)
    found = {}
    for image, scene in images.items():
        classes, null = _classes_of(folders[image] / "labels.tif")
        more = {} if values is None else dict(values=dict(values))
        found[scene.id] = dict(truth=scene.label, scores=folders[image] / "scores.tif",
                               classes=classes, null=null, **more)  # fmt: skip
    return found


def _predicted(model: Path, images: list[str], out: Path, **how) -> dict[str, Path]:
    "The folder of the scores of each image; predicted where they lack or the image changed."
    from rvtutorial.engine.mapfiles import find_images

    record, before = out / "images.json", {}
    with contextlib.suppress(Unreadable):
        before = read_json(record, {}, form={})
    stats = {image: Path(image).stat() for image in images}
    now = {image: [one.st_size, one.st_mtime_ns] for image, one in stats.items()}
    folders = {image: out / name for name, image in find_images(images, out).items()}
    files = {
        image: [folder / name for name in ("labels.tif", "scores.tif")]
        for image, folder in folders.items()
    }
    missing = [
        image for image in images
        if before.get(image) != now[image] or not all(p.is_file() for p in files[image])
    ]  # fmt: skip
    if not missing:
        return folders
    for path in (path for image in missing for path in files[image]):
        path.unlink(missing_ok=True)  # then what is there is of the image as it is now
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, now)
    from rvtutorial import engine

    maps = engine.predict(model, missing, out, scores="float32", polygons=False, **how)
    return folders | {row.image: Path(row.folder) for row in maps.itertuples()}


_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


def _folder_of(data: Path, split: str) -> Path:
    "The folder of a split in a data set, or the data set where it has no such folders."
    kinds = {name: kind for kind, names in _FOLDERS.items() for name in names}
    there = [name for name in kinds if (data / name).is_dir()]
    own = [name for name in there if kinds[name] == split]
    if there and not own:
        raise FileNotFoundError(
            f"{data} has no folder {split} for the {split} scenes, only {', '.join(there)}"
        )
    if not own and kinds.get(data.name, split) != split:
        raise ValueError(
            f"{data} is a folder of {kinds[data.name]} scenes, and {split} scenes are asked for"
        )
    return data / own[0] if own else data


def _classes_of(labels: Path) -> tuple[list[str], str | None]:
    "Names of the classes of a map, and of the one that stands for no data."
    import rasterio

    with rasterio.open(labels) as file:
        tags = file.tags()
    return json.loads(tags["classes"]), tags.get("null_class") or None

"""Run a Raster Vision configuration: train, predict, evaluate and bundle, faster and resumable.

Written by hand: the stages of `engine.run`, what is written down about them, and
`engine.predict` for new images.
"""

# first, for it imports torch and Raster Vision with care  # ruff: noqa: E402, I001
from rvtutorial.engine.inputs import allow_open_files

import contextlib
import copy
import ctypes
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch

from rvtutorial.core import files
from rvtutorial.core.hyperparams import BEYOND_STOCK, Hyperparams
from rvtutorial.core.renamed import renamed_arguments
from rvtutorial.core.names import near_match
from rvtutorial.core.progress import ProgressLine
from rvtutorial.core.records import read_json
from rvtutorial.data.places import unplaced_allowed
from rvtutorial.data.validity import check_zeros, declared_nodata
from rvtutorial.engine import prediction, scoring, speed
from rvtutorial.engine.optimizer import Recipe
from rvtutorial.engine.batches import BatchTransform, seed_everything
from rvtutorial.engine.budget import epochs_in
from rvtutorial.engine.bundles import Model
from rvtutorial.engine.learner import (
    Checkpoint,
    FastLearner,
    Interrupted,
    Options,
    Paused,
    PixelAugmentation,
    quiet,
)
from rvtutorial.engine.reading import build_scene, slow_reason
from rvtutorial.engine.store import SceneStore
from rvtutorial.metrics.threshold_file import decision_for, source_tags
from rvtutorial.runs import Run

from rastervision.core import data as rv  # isort: skip  after what keeps it quiet
from rastervision.core.data.utils import color_to_triple, listify_uris
from rastervision.core.rv_pipeline import SemanticSegmentationConfig
from rastervision.pipeline.config import build_config, save_pipeline_config
from rastervision.pipeline.file_system import get_tmp_dir
from rastervision.pipeline.pipeline_config import PipelineConfig
from rastervision.pytorch_learner import SemanticSegmentationGeoDataConfig
from rastervision.pytorch_learner import SemanticSegmentationLearner as StockLearner


# --- the configuration


def _prepare(config: PipelineConfig) -> PipelineConfig:
    """What Raster Vision makes of a configuration before it runs it, complete and checked.

    ValueError unless it is for semantic segmentation. The one given is not changed.
    """
    Model.refuse_other_task(getattr(config, "type_hint", None), "the configuration")
    config = copy.deepcopy(config)
    classes = config.dataset.class_config
    taken, black = {_triple(color) for color in classes.colors}, (0, 0, 0)
    if classes.null_class is None and "null" not in classes.names and black in taken:
        # Raster Vision would draw a random colour for null
        free = next(c for i in range(256) if (c := (i, i, i)) not in taken)
        classes.names.append("null")
        classes.colors.append(free)
    with quiet():
        config.update()
        config.recursive_validate_config()
        return build_config(config.dict())


def _triple(color):
    return tuple(color_to_triple(color) if isinstance(color, str) else color)


def _fingerprint(config: PipelineConfig | dict, places: bool = True) -> str:
    """Digest of what a configuration says, or a pipeline-config.json: 16 hex digits.

    Versions and the order of sets do not count, nor does the way in which a local folder
    is named: `runs/a` or its whole path. `places`: does it count where files lie?
    """
    tree = config if isinstance(config, dict) else json.loads(config.json())
    text = json.dumps(_without(tree, places), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without(tree, places):
    "A tree without what does not count, and with local paths in full."
    if isinstance(tree, list):
        return [_without(item, places) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {}
    for name, value in tree.items():
        uri = name.endswith(("uri", "uris"))
        if name not in ("rv_config", "plugin_versions", "scene_groups"):
            if places or not uri:
                kept[name] = _without(_place(value) if uri else value, places)
    return kept


def _place(uri):
    "Local paths in full; everything else as it is."
    if isinstance(uri, list):
        return [_place(one) for one in uri]
    if not isinstance(uri, str) or "://" in uri or uri.startswith("/vsi"):
        return uri
    return os.path.realpath(uri)


# --- which code runs what


def _paths(
    cfg: PipelineConfig,  # Complete, as `_prepare` returns it
    ddp: bool = False,  # Train on several GPUs?
) -> pd.DataFrame:  # Index: the part of a run; columns: path, why
    """Which code runs each part of a configuration.

    fast: ours. plain: ours, with chips made one by one by albumentations.
    stock: Raster Vision's.
    """
    slow = {slow_reason(scene) for scene in cfg.dataset.all_scenes} - {None}
    rows = {
        "scenes": _path(", ".join(sorted(slow))),
        "chips": _chips_path(cfg),
        "training": _path("on several GPUs" if ddp else None),
        "prediction": _path(_why_predict_stock(cfg)),
        "evaluation": _path(scoring.why_stock(cfg)),
        "bundle": _path("a remote folder" if "://" in cfg.bundle_uri else None),
    }
    if cfg.analyzers:
        rows["analysis"] = _path("statistics are counted once")
    if _chips_cut(cfg):
        rows["chipping"] = _path("chips are cut once")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["path", "why"])


def _mapped(cfg):
    "The scenes that are predicted and evaluated."
    return cfg.dataset.validation_scenes + cfg.dataset.test_scenes


def _is_temporal(scene):
    return getattr(scene.raster_source, "temporal", False)


def _path(why_stock):
    return ("stock", why_stock) if why_stock else ("fast", "")


def _chips_cut(cfg):
    return not isinstance(cfg.backend.data, SemanticSegmentationGeoDataConfig)


def _chips_path(cfg):
    "How chips become batches."
    if _chips_cut(cfg):
        return "stock", "chips were cut beforehand"
    data = cfg.backend.data
    if any(map(_is_temporal, data.scene_dataset.train_scenes)):
        return "plain", "a time series"
    how = BatchTransform.of(data, "uint8", augment=True)
    return ("plain", how) if isinstance(how, str) else ("fast", "")


def _why_predict_stock(cfg):
    "What keeps maps from being made in a stream."
    if type(cfg) is not SemanticSegmentationConfig:
        return f"{type(cfg).__name__} may predict in its own way"
    if "://" in cfg.predict_uri:
        return "a remote folder"
    for scene in _mapped(cfg):
        store = scene.label_store
        if type(store) is not rv.SemanticSegmentationLabelStoreConfig:
            return f"{type(store).__name__} is not ours to write"
        if store.vector_output:
            return "vector outputs"
        if _is_temporal(scene):
            return "a time series"
    return None


# --- what cannot be run


def _refuse_impossible(cfg, stock=False) -> None:
    """ValueError for what would only fail, or be wrong in silence, after the training.

    Two classes of one colour in labels that are saved as colours, and images without
    georeference where Raster Vision saves the maps.
    """
    scenes, classes, names = _mapped(cfg), cfg.dataset.class_config, {}
    for name, color in zip(classes.names, classes.colors, strict=True):
        names.setdefault(_triple(color), []).append(name)
    for color, alike in names.items():
        saved = any(getattr(scene.label_store, "rgb", False) for scene in scenes)
        if saved and len(alike) > 1:
            raise ValueError(
                f"classes {' and '.join(alike)} both have the colour {color}, and labels "
                f"are to be saved as colours (rgb=True): give each class its own"
            )
    if stock or _why_predict_stock(cfg):
        _refuse_without_place(scenes)


def _refuse_outside(
    folder: str | Path,  # Where a folder of that name is to be written
    scene_id: str,  # One name, or a path below the folder
) -> None:
    "Raise ValueError when the id of a scene leads out of a folder, or to the folder itself."
    above = os.path.abspath(folder)
    there = os.path.abspath(os.path.join(above, scene_id))
    if os.path.isabs(scene_id) or not there.startswith(above.rstrip("/") + "/"):
        raise ValueError(
            f"the id of a scene is {scene_id!r}, which leads out of {above}: give it "
            f"another name"
        )


def _refuse_remote(config) -> None:
    "ValueError when a run is to live on another machine."
    for name in ("root_uri", "train_uri"):
        uri = getattr(config, name, None) or ""
        if "://" in uri:
            raise ValueError(
                f"{name} must be a folder of this machine, got {uri}: the engine keeps "
                f"run.json, weights and checkpoints there; predict_uri, eval_uri and "
                f"bundle_uri may be remote"
            )


def _refuse_without_place(scenes):
    "Raster Vision cannot save the map of an image that has no place on Earth."
    for scene in scenes:
        source = scene.raster_source
        parts = getattr(source, "raster_sources", [source])
        uris = getattr(parts[getattr(source, "primary_source_idx", 0)], "uris", None)
        with contextlib.suppress(rasterio.RasterioIOError, IndexError, TypeError):
            uri = uris if isinstance(uris, str) else uris[0]
            with unplaced_allowed(), rasterio.open(uri) as file:
                place = rv.RasterioCRSTransformer.from_dataset(file)
            if isinstance(place, rv.IdentityCRSTransformer):
                raise ValueError(
                    f"scene {scene.id}: {file.name} has no georeference, and Raster "
                    f"Vision's own code cannot save a map of it: use engine='fast' and "
                    f"label stores without vector output"
                )


def _hidden_classes(dataset) -> list[str]:
    """What Raster Vision does to label rasters whose declared no-data value is a class.

    It reads such pixels as 0, and then takes them for the class that 0 means.
    """
    hidden, names = [], dataset.class_config.names
    for scene in dataset.all_scenes:
        source = getattr(scene.label_source, "raster_source", None)
        if type(source) is not rv.RasterioSourceConfig:
            continue
        steps = [getattr(t, "mapping", None) or {} for t in source.transformers]
        for uri in listify_uris(source.uris):
            value = declared_nodata(uri)
            meant = _class_of(value, steps, names)
            read = _class_of(0, steps, names)
            if value and meant is not None and meant != read:
                hidden.append((uri, value, meant, read or "0"))
    if not hidden:
        return []
    uri, value, meant, read = hidden[0]
    return [
        f"{len(hidden)} label rasters, such as {uri}, declare {value:g} as no data, which "
        f"is the class {meant}: Raster Vision reads such pixels as {read}. Take the tag "
        "away (gdal_edit.py -unsetnodata) if they are meant"
    ]


def _resized(chip_sz: int, data, run: bool = True) -> list[str]:
    "What is said of chips that do not come to the network as they are."
    if chip_sz == data.img_sz:
        return []
    scale, trained = data.img_sz / chip_sz, Model.scale(data)
    text = f"chips of {chip_sz} pixels are resized to {data.img_sz} (img_sz) when "
    text += "the network predicts, as Raster Vision does it"
    if trained is not None and abs(scale / trained - 1) > 0.01:
        remedy = f"chip_sz={round(data.img_sz / trained)}"
        if run:
            remedy = f"img_sz={round(trained * chip_sz)}"
        text += (
            f": everything has {scale / trained:.2f} times the size that it had in "
            f"training. With {remedy} it would have the same"
        )
    return [text]


def _class_of(value, steps, names):
    "The name of the class that a number becomes, None if it becomes none."
    for mapping in steps:
        value = mapping.get(value, value)
    whole = value is not None and math.isfinite(value) and int(value) == value
    return names[int(value)] if whole and 0 <= value < len(names) else None


# --- the stages


@dataclass
class _Work:
    "What the stages of a run need."

    cfg: PipelineConfig
    pipeline: object  # Raster Vision's, for what it does itself
    folder: Run
    options: Options
    out: object  # Takes a line of text
    blend: str = "mean"
    ddp: bool = False
    learner: type[FastLearner] = FastLearner


class _OrderedDDPLearner(StockLearner):
    """Raster Vision's training on several GPUs, with a new order of chips in each epoch.

    Its `train_epoch` goes through another loader than the one whose order it has just set.
    """

    def train_epoch(self, optimizer, dataloader=None, step_scheduler=None):
        before, self.train_dl = self.train_dl, dataloader or self.train_dl
        try:
            return super().train_epoch(optimizer, None, step_scheduler)
        finally:
            self.train_dl = before


def _train_stage(work: _Work) -> None:
    "Train from the last checkpoint on, or from the first epoch."
    cfg, options = work.cfg, work.options
    if options.checkpoint.too_old:
        aside = options.checkpoint.path.with_name("checkpoint.old.pt")
        work.out(
            f"train: {options.checkpoint.path} was written by an earlier version, and "
            f"such a file can run any program: it is not read, and the training begins "
            f"anew. It is kept as {aside.name}: give it its old name back, and "
            f"engine.run(..., trust=True) goes on with it"
        )
        os.replace(options.checkpoint.path, aside)
    if not options.checkpoint.path.exists():
        _clear_folder(work, cfg.train_uri)
    options.inputs = _note_inputs(work)
    learner_cfg = cfg.backend.get_learner_config(cfg)
    more = dict(tmp_dir=work.pipeline.tmp_dir)
    if work.ddp:
        _OrderedDDPLearner(learner_cfg, **more).main()
        return
    more |= dict(options=options)
    if cfg.source_bundle_uri is None:
        learner = work.learner(learner_cfg, **more)
    else:
        more |= dict(cfg=learner_cfg, training=True)
        learner = work.learner.from_model_bundle(cfg.source_bundle_uri, **more)
    learner.main()
    about = {"best": learner.best, "epochs": learner.epoch, "keep": options.keep}
    if options.keep == "mean":
        about["averaged"] = int(learner.mean.n_averaged)
        if not about["averaged"]:
            work.out(
                "train: ended in the first half, so the last epoch's weights are kept"
            )
    about |= {"precision": str(learner.dtype).removeprefix("torch.")}
    work.folder.update("went", training={**about, "stopped_early": learner.settled})
    size, bands = learner.cfg.data.img_sz, learner.cfg.data.img_channels or 3
    where = learner.device, learner.dtype
    found = speed.measure(learner.model, (bands, size, size), *where)
    work.folder.update("went", **found)


def _note_inputs(work):
    "Write into `run.json` what the network is shown, for those who predict with it."
    scenes = work.cfg.dataset.train_scenes or work.cfg.dataset.validation_scenes
    found = Model.inputs_of([scene.raster_source for scene in scenes])
    work.folder.update("went", inputs=found)
    return found


def _clear_folder(work, uri) -> None:
    """Delete what an earlier attempt of a stage has left, if the run has made it.

    ValueError when a folder outside the run's own holds files that are not of this run.
    """
    if "://" in uri:
        return
    place = Path(os.path.realpath(uri))
    known = work.folder.manifest["went"].get("folders", [])
    if not _is_own(work.cfg, uri) and str(place) not in known:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ValueError(
                f"{place} is to be emptied for this run, and holds files that it has not "
                f"made: name another folder, or empty that one yourself"
            )
        work.folder.update("went", folders=[*known, str(place)])
    shutil.rmtree(place, ignore_errors=True)


def _is_own(cfg, uri) -> bool:
    "Whether a folder lies in that of the run, and holds nothing of another stage."
    place, root = (Path(os.path.realpath(p)) for p in (uri, cfg.root_uri))
    names = ("analyze", "chip", "train", "predict", "eval", "bundle")
    stages = [Path(os.path.realpath(getattr(cfg, f"{name}_uri"))) for name in names]
    inside = [stage for stage in stages if stage.is_relative_to(place)]
    return place != root and place.is_relative_to(root) and inside in ([], [place])


# --- maps of scenes


def _map_file(cfg, scene) -> Path:
    "Where the labels of a scene are written."
    named = getattr(scene.label_store, "uri", None)
    return Path(named or Path(cfg.predict_uri, scene.id), "labels.tif")


class _Maps:
    """The maps that a run has made itself, as its `run.json` says.

    A map that is there is not enough: another run, or plain Raster Vision, may have
    written to the same place.
    """

    def __init__(self, cfg, folder):
        self.cfg, self.folder = cfg, folder
        went = folder.manifest.get("went", {})
        self.known = went.get("maps") or {}
        self.noted = time.monotonic()
        # a run that is older than this record has its maps in its own folder
        self.unknown = "maps" not in went

    def begin(self, made_by: list) -> None:
        "Forget the maps of another model, or of other settings."
        if self.known.get("made_by") != made_by:
            _clear_maps(self.cfg)
            self.known, self.unknown = {"made_by": made_by, "scenes": {}}, False
            self.write()

    def done(self, scene) -> bool:
        "Whether all files of a scene's map are there, and are those that this run wrote."
        path, store = _map_file(self.cfg, scene), scene.label_store
        smooth = getattr(store, "smooth_output", False)
        names = ["labels.tif", *["scores.tif", "pixel_hits.npy"] * smooth]
        if not all(path.with_name(name).exists() for name in names):
            return False
        if self.unknown:
            return _inside(path, self.cfg.root_uri)
        known = self.known["scenes"].get(scene.id)
        if known is None:
            return False
        now = path.stat()
        return known[:2] == [now.st_size, now.st_mtime_ns] or known[2] == _digest(path)

    def note(self, scene, seconds: float = 1.0) -> None:
        "Note that a map is complete; `run.json` is written now, or at the next map."
        path = _map_file(self.cfg, scene)
        if path.exists():
            now = path.stat()
            known = [now.st_size, now.st_mtime_ns, _digest(path)]
            self.known.setdefault("scenes", {})[scene.id] = known
        if time.monotonic() - self.noted >= seconds:
            self.write()

    def write(self) -> None:
        "Write down what is known."
        self.folder.update("went", maps=self.known)
        self.noted = time.monotonic()


def _digest(path):
    "16 hex digits of what a file holds."
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _inside(path, root):
    "Whether a path lies in a folder, whatever links lead there."
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _clear_maps(cfg) -> None:
    "Delete the maps of all scenes, wherever they lie, and nothing else outside the run."
    if _is_own(cfg, cfg.predict_uri):
        shutil.rmtree(cfg.predict_uri, ignore_errors=True)
    for scene in _mapped(cfg):
        _clear_map(cfg, scene)


def _clear_map(cfg, scene) -> None:
    place = _map_file(cfg, scene).parent
    names = ("labels.tif", "scores.tif", "pixel_hits.npy")
    outlines = place.glob("vector_output/class-*.json")
    for path in [*(place / name for name in names), *outlines]:
        path.unlink(missing_ok=True)


def _predict_stage(work: _Work) -> None:
    "Map validation and test scenes; what is there of others is replaced."
    cfg, bundle = work.cfg, _products(work.cfg, "train")[0]
    learner = FastLearner.from_model_bundle(
        str(_safe_bundle(work)), work.pipeline.tmp_dir, options=copy.copy(work.options)
    )
    stat, maps = bundle.stat(), _Maps(cfg, work.folder)
    made_by = [stat.st_size, stat.st_mtime_ns, work.blend, str(learner.dtype)]
    if _why_predict_stock(cfg):
        _predict_as_stock(work, learner)
    else:
        maps.begin(made_by)
        _map_scenes(work, learner, maps)


def _safe_bundle(work: _Work) -> Path:
    """The bundle of a run's training, or a copy of it without compiled code.

    ValueError when this run has not trained it and it carries code of others, unless
    that is trusted, or is that by which the configuration defines its network.
    """
    bundle = _products(work.cfg, "train")[0]
    trained = (work.folder.manifest["went"].get("trained") or {}).get("bundle")
    if work.options.checkpoint.trust or trained == _digest(bundle):
        return bundle
    definition = getattr(work.cfg.backend.model, "external_def", None)
    place, known = Path(getattr(definition, "uri", None) or work.cfg.root_uri), set()
    if not _inside(place, work.cfg.root_uri):
        code_files = [path for path in place.rglob("*") if path.is_file()]
        known = {hashlib.sha256(path.read_bytes()).hexdigest() for path in code_files}
    folder = Path(tempfile.mkdtemp(dir=work.pipeline.tmp_dir))
    return Model.open(bundle, folder, known=known).bundle


def _predict_as_stock(work, learner) -> None:
    "Let Raster Vision predict, which adds to scores that it finds: so none are there."
    backend = work.cfg.backend.build(work.cfg, work.pipeline.tmp_dir)
    backend.learner, work.pipeline.backend = learner, backend
    _clear_maps(work.cfg)
    work.pipeline.predict()
    maps = _Maps(work.cfg, work.folder)
    maps.known = {"made_by": None, "scenes": {}}
    for scene in _mapped(work.cfg):
        maps.note(scene)
    maps.write()


def _map_scenes(work, learner, maps) -> None:
    "Map all scenes that have no complete map, in one stream of windows."
    cfg, stop, how = work.cfg, work.options.stop, work.cfg.predict_options
    more = cfg.dataset.class_config, work.pipeline.tmp_dir

    def targets():
        for config in _mapped(cfg):
            if maps.done(config):
                continue
            _clear_map(
                cfg, config
            )  # of others: with their scores no store can be built
            scene = build_scene(config, *more, labels=False)
            blend = work.blend if config.label_store.smooth_output else None
            done = partial(maps.note, config)
            target = prediction.scene_target(scene, how, blend, done)
            if target.plan.differs:
                work.out(f"scene {config.id}: {target.plan.differs}")
            yield target

    try:
        counts = prediction.stream(
            targets(),
            learner.scores,
            batch_sz=how.batch_sz,
            tell=lambda done, of_all: stop.check(),
        )
    finally:
        maps.write()
    meter = work.options.meters.setdefault("predict", speed.Meter("predict"))
    meter.seconds += counts["seconds"]["total"]
    meter.count(counts["chips"], counts["pixels"])
    meter.add("compute", counts["seconds"]["computing"])
    meter.add("wait", counts["seconds"]["waiting"])


# --- evaluation, bundle, and stages of stock


def _eval_stage(work: _Work) -> None:
    "Compare maps with labels."
    _clear_folder(work, work.cfg.eval_uri)
    if scoring.why_stock(work.cfg):
        scoring.refuse_missing(_mapped(work.cfg))
        work.pipeline.eval()
    else:
        scoring.evaluate(work.cfg, work.pipeline.tmp_dir, build_scene, tell=work.out)


def _bundle_stage(work: _Work) -> None:
    "Put the model and the configuration into one file."
    cfg = work.cfg
    if "://" in cfg.bundle_uri:
        work.pipeline.bundle()
        return
    with tempfile.TemporaryDirectory(dir=work.pipeline.tmp_dir) as folder:
        place = Path(folder)
        for name in cfg.backend.get_bundle_filenames():
            os.symlink(Path(cfg.train_uri, name).resolve(), place / name)
        if Path(cfg.analyze_uri).exists():
            shutil.copytree(cfg.analyze_uri, place / "analyze")
        shutil.copy(cfg.get_config_uri(), place / "pipeline-config.json")
        FastLearner.pack(place, Path(cfg.get_model_bundle_uri()))


def _chip_stage(work: _Work) -> None:
    "Cut chips anew: stock adds a second set to what it finds."
    _clear_folder(work, work.cfg.chip_uri)
    work.pipeline.chip()


def _stock_stage(work: _Work, name: str) -> None:
    "A stage as Raster Vision runs it, but never on top of an older one."
    if name in ("chip", "train", "eval"):
        _clear_folder(work, getattr(work.cfg, f"{name}_uri"))
    if name == "train":
        _note_inputs(work)
    if name == "eval":
        scoring.refuse_missing(_mapped(work.cfg))
    if work.options.seed is not None:
        seed_everything(work.options.seed)  # all that can be seeded from outside
    if name == "predict":
        bundle = str(_safe_bundle(work))
        learner = StockLearner.from_model_bundle(bundle, work.pipeline.tmp_dir)
        _predict_as_stock(work, learner)
    else:
        getattr(work.pipeline, name)()


STAGES = {
    "analyze": lambda work: work.pipeline.analyze(),
    "chip": _chip_stage,
    "train": _train_stage,
    "predict": _predict_stage,
    "eval": _eval_stage,
    "bundle": _bundle_stage,
}


# --- what is done


def _products(cfg, stage) -> list[Path]:
    "The files without which a stage is not done; none for one that is always done again."
    scenes = _mapped(cfg)
    groups = {"validation_scenes": cfg.dataset.validation_scenes}
    groups |= {"test_scenes": cfg.dataset.test_scenes}
    return {
        "train": [Path(cfg.train_uri) / "model-bundle.zip"],
        "predict": [_map_file(cfg, scene) for scene in scenes],
        "eval": [Path(cfg.eval_uri) / g / "eval.json" for g, s in groups.items() if s],
        "bundle": [Path(cfg.get_model_bundle_uri())],
    }.get(stage, [])


def _stages_done(run, cfg) -> list[dict]:
    "The stages of a run that need not be done again: name and seconds of each, in order."
    scenes, done = _mapped(cfg), []
    for stage in run.manifest.get("went", {}).get("stages", []):
        made = _products(cfg, stage["name"])
        if not made or not all(path.exists() for path in made):
            break
        if stage["name"] == "predict" and not all(map(_Maps(cfg, run).done, scenes)):
            break
        done.append(stage)
    return done


# --- what is written down about a run


PACKAGES = (
    "rvtutorial rastervision torch torchvision albumentations numpy rasterio".split()
)


def _git_state() -> str | None:
    "The commit of the code that runs, with + when files were changed since; None outside git."

    def ask(*args):
        cmd = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(cmd, capture_output=True, text=True, timeout=20)

    try:
        commit = ask("rev-parse", "--short=12", "HEAD")
        changed = ask("status", "--porcelain", "-uno")
    except (OSError, subprocess.TimeoutExpired):
        return None
    dirty = "+" if changed.stdout.strip() else ""
    return commit.stdout.strip() + dirty if commit.returncode == 0 else None


def _made_with() -> dict:
    "Versions, device, threads, commit and container of this process."
    cuda, versions = torch.cuda.is_available(), dict.fromkeys(PACKAGES)
    for name in versions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "container": os.environ.get("APPTAINER_CONTAINER"),
    }


def _report(folder, meters) -> dict:
    "Chips and pixels per second, share of waiting, share of the machine's peak, in words."
    went, found = folder.manifest["went"], {}
    for name in ("train", "validate", "predict"):
        meter = meters.get(name)
        if meter is None or not meter.seconds:
            continue
        flops = (went.get("flops") or {}).get("train" if name == "train" else "predict")
        found[name] = meter.report(went.get("peak"), flops)
    if found:
        folder.update("went", speed={**went.get("speed", {}), **found})
    return found


# --- a run


def _open_run(cfg, seed=...) -> tuple[Run, int | None]:
    """The folder of a run and its seed, if it holds this configuration or nothing.

    ValueError if not. Seed: a number, None: not seeded, or what the run was asked for.
    What `rastervision run` has trained from this configuration counts as trained.
    """
    run, digest = Run(cfg.root_uri), _fingerprint(cfg)
    asked = run.manifest.get("asked") or {}
    if not asked:
        there = read_json(run.path / "pipeline-config.json", None)
        trained = all(path.exists() for path in _products(cfg, "train"))
        theirs = bool(there) and trained and _fingerprint(there) == digest
        asked = {"config": digest, "seed": 0 if seed is ... else seed}
        if theirs and seed is ...:
            asked["seed"] = None  # nobody knows
        differ = "continue" if theirs else "refuse"
        run = Run.open_for(cfg.root_uri, asked, differ)
        if theirs:
            run.update("went", stages=[{"name": "train", "seconds": 0.0}])
    if seed is not ... and seed != asked.get("seed"):
        there = asked.get("seed")
        raise ValueError(f"{run.path} holds a run with seed {there}, got {seed}")
    there = run.path / "pipeline-config.json"
    if there.exists() and run.manifest["went"].get("stages"):
        places = "data" not in asked  # get_config has compared the data by their digest
        if _fingerprint(read_json(there), places) != _fingerprint(cfg, places):
            raise ValueError(
                f"{run.path} holds a run with another configuration: see {there.name}; "
                f"give this one a folder of its own"
            )
    return run, asked.get("seed")


@contextlib.contextmanager
def _numpy_int0():
    """Inside, numpy has the name `int0`, which numpy 2 took away.

    Raster Vision 0.31.1 was made for numpy 1.26 and draws buildings with it
    (`BuildingVectorOutputConfig`). It is all that is ever changed for the whole process,
    and only while Raster Vision's code runs.
    """
    if hasattr(np, "int0"):
        yield
        return
    np.int0 = np.intp
    try:
        yield
    finally:
        vars(np).pop("int0", None)


@contextlib.contextmanager
def _settings(threads: int | None = None, ddp: bool = False):
    "One device unless `ddp`, repeatable kernels where torch has them, and a number of threads."
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    asked = os.environ.get("RASTERVISION_USE_DDP")
    os.environ["RASTERVISION_USE_DDP"] = "YES" if ddp else "NO"
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with _numpy_int0():
            yield
    finally:
        torch.use_deterministic_algorithms(before[1], warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_num_threads(before[0])
        os.environ.pop("RASTERVISION_USE_DDP")
        if asked is not None:
            os.environ["RASTERVISION_USE_DDP"] = asked


@contextlib.contextmanager
def _kept_memory():
    """Inside, freed memory stays with the process; where the C library is not glibc, nothing.

    This concerns the whole process, for the time of a run. It stays because each step of a
    training frees and takes the same large tensors: without it two epochs of the sample
    preset took 158 s of CPU time instead of 118 s, and 622,000 page faults instead of
    93,000. The variables MALLOC_*_ of the environment would do the same for new processes
    only, not for a notebook that calls `engine.run`.
    """
    trim, pad, maps = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of malloc.h
    try:
        library = ctypes.CDLL("libc.so.6")
        options = [(maps, 0), (trim, 2**31 - 1), (pad, 64 * 2**20)]
        usual = [(maps, 65536), (trim, 128 * 1024), (pad, 128 * 1024)]
        change, give_back = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    for option in options:
        change(*option)
    try:
        yield
    finally:
        for option in usual:
            change(*option)
        give_back(0)


@contextlib.contextmanager
def _attempt(run: Run):
    """Keep the state of a run in `run.json`, whatever happens.

    In a job its own process does that: here only the memory is noted.
    """
    last = (run.manifest["went"].get("attempts") or [{}])[-1]
    ours = last.get("pid") != os.getppid() or last.get("state") != "running"

    def state(name, why=None):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        values = {"state": name, "why": why} if ours else {}
        run.update("went", peak_memory_mb=most, **values)

    state("running")
    run.update("went", paused=None)
    try:
        yield
    except Paused as err:
        state("paused", str(err))
        run.update("went", paused=err.epoch)
        return
    except (KeyboardInterrupt, Interrupted) as err:
        state("interrupted", str(err) or "KeyboardInterrupt")
        raise
    except BaseException as err:
        state("failed", f"{type(err).__name__}: {err}")
        raise
    state("succeeded")


_CHOICES = ("precision", "onnx", "keep", "patience", "monitor")
DEFAULTS = {"engine": "fast"} | {name: getattr(Options, name) for name in _CHOICES}


def _chosen(folder, **given) -> dict:
    "Options that hold for a run: the call wins, then what the run was asked for."
    asked = folder.manifest.get("asked", {}).get("hyperparams", {})
    asked = Hyperparams.under_new_names(asked, says=False)
    asked = asked | {"keep": asked.get("checkpoint")}
    known = {k: asked[k] for k in DEFAULTS if asked.get(k) is not None}
    found = {**DEFAULTS, **known, **{k: v for k, v in given.items() if v is not None}}
    if found["engine"] not in ("fast", "stock"):
        raise ValueError(f"engine must be fast or stock, got {found['engine']!r}")
    return found


@cache
def _shared_store() -> SceneStore:
    "The pixels that all runs of this process share."
    store = SceneStore(say=print)
    with contextlib.suppress(OSError):
        store.prune()
    return store


@renamed_arguments(keep="checkpoint")
def run(
    config: PipelineConfig,  # A stock configuration for semantic segmentation
    commands: list | None = None,  # Stages to run; None: all
    seed: int | None = ...,  # Nothing: what the run was asked for, else 0
    progress: bool = True,  # Print a line for each epoch and stage
    threads: int | None = None,  # CPU threads of torch; None: as it is set
    onnx: bool | None = None,  # Export to ONNX; None: as the run was asked, else not
    engine: str | None = None,  # fast, or stock: all by Raster Vision's own code
    precision: str | None = None,  # auto, float32 or bfloat16
    checkpoint: str | None = None,  # Weights that become the model: last, best or mean
    patience: int | None = None,  # Epochs without a better `monitor` before stopping
    monitor: str | None = None,  # A column of the log, val_loss by default
    pause: int | None = None,  # Stop after so many epochs in all, as the state says
    checkpoint_minutes: float = 5.0,  # Between checkpoints within an epoch
    blend: str = "mean",  # How overlapping scores are joined: mean, as stock, or cosine
    store: SceneStore | None = None,  # Holds pixels; None: one for all runs here
    ddp: bool = False,  # Train on all GPUs, with Raster Vision's own code
    compile: bool = False,  # torch.compile on a GPU: worth it in long trainings
    trust: bool = False,  # Run code of others: of a bundle, of an old checkpoint
    learner: type[FastLearner] = FastLearner,  # Whose objects train
) -> Path:  # The run folder
    """Run a configuration in this process; what is done already is not done again.

    Weights, predictions and log are the same, byte for byte, for one seed, one machine
    and one number of threads, however often the run was interrupted. SIGTERM, SIGUSR1
    and SIGHUP end it after the next batch with exit status 75 (`Interrupted`), SIGINT
    with KeyboardInterrupt; the same call goes on. A model that this run has not trained,
    such as that of a changed copy, predicts only if it carries no other code of others
    than the configuration names, or with `trust=True`. Raises ValueError when the folder holds another run or the loss is no longer a
    number, when code is not trusted, and, before anything is written, for other tasks
    and for what could not be finished (`_refuse_impossible`); FileNotFoundError when a label or a prediction is
    missing, `files.Busy` when another process is at work in the folder.
    """
    _refuse_remote(config)
    cfg = _as_planned(_prepare(config))
    for scene in cfg.dataset.all_scenes:  # each gets a folder of that name
        _refuse_outside(cfg.predict_uri, scene.id)
    given = dict(engine=engine, precision=precision, onnx=onnx, keep=checkpoint)
    how = _chosen(Run(cfg.root_uri), **given, patience=patience, monitor=monitor)
    engine = how.pop("engine")
    _refuse_impossible(cfg, engine == "stock")
    if engine == "stock" or ddp:
        _refuse_beyond_stock(Run(cfg.root_uri), how)
        if not cfg.dataset.validation_scenes and "train" in (commands or ["train"]):
            raise ValueError(
                "Raster Vision's own training needs validation scenes, and there are "
                "none: use engine='fast' on one device, or add some"
            )
    if pause and (engine == "stock" or ddp):
        raise ValueError("pause needs the fast engine on one device")
    folder, seed = _open_run(cfg, seed)
    asked = folder.manifest.get("asked", {}).get("hyperparams", {})
    options = Options(
        seed=seed,
        recipe=Recipe.of(asked),
        sampling=asked.get("sampling", "random"),
        augmentation=PixelAugmentation.of(asked),
        checkpoint_minutes=checkpoint_minutes,
        compile=compile,
        store=store or _shared_store(),
        pause=pause,
        **how,
    )
    out = print if progress else _say_nothing
    allow_open_files(len(cfg.dataset.all_scenes))
    alone = files.writing(folder.path)
    with alone, _attempt(folder), _settings(threads, ddp), get_tmp_dir() as tmp:
        cache = rasterio.Env(GDAL_CACHEMAX=64 * 2**20)
        with options.stop.listening(), cache, _kept_memory():
            folder.update("made_with", **_made_with())
            _remove_partials(folder.path)
            if asked.get("budget"):
                _plan_epochs(cfg, folder, options, tmp, out)
            digest = _training_digest(cfg, options, how, learner)
            place = folder.path / "checkpoint.pt"
            options.checkpoint = Checkpoint(place, digest, trust)
            with files.atomic_path(cfg.get_config_uri()) as path:
                save_pipeline_config(cfg, str(path))
            with quiet():
                pipeline = cfg.build(tmp)
            work = _Work(cfg, pipeline, folder, options, out, blend, ddp, learner)
            _run_stages(work, commands, engine == "stock")
    return folder.path


def _refuse_beyond_stock(folder, how) -> None:
    "ValueError when Raster Vision's own training would leave out what a run was asked for."
    asked = folder.manifest.get("asked", {}).get("hyperparams", {})
    asked = Hyperparams.under_new_names(asked, says=False)
    asked = asked | {"checkpoint": how["keep"], "patience": how["patience"]}
    left = Hyperparams(**{k: asked[k] for k in BEYOND_STOCK if k in asked})
    if left.beyond_stock:
        raise ValueError(
            f"Raster Vision's own training knows nothing of {', '.join(left.beyond_stock)}, "
            f"which this run was asked for: use engine='fast' on one device"
        )


def _as_planned(cfg):
    "A configuration with the epochs that were planned when its run began, if they were."
    planned = Run(cfg.root_uri).manifest.get("went", {}).get("budget")
    if planned:
        cfg.backend.solver.num_epochs = planned["epochs"]
    return cfg


def _plan_epochs(cfg, folder, options, tmp, out) -> None:
    "Turn the budget of a run into epochs, once, and write them down."
    if folder.manifest["went"].get("budget"):
        return
    budget = folder.manifest["asked"]["hyperparams"]["budget"]
    found = epochs_in(budget, cfg.backend.get_learner_config(cfg), options, tmp)
    folder.update("went", budget=found)
    folder.update("asked.hyperparams", epochs=found["epochs"])
    _as_planned(cfg)
    many = f"{found['epochs']} epoch{'s' * (found['epochs'] > 1)}"
    out(f"train: {many} of {found['epoch']:.1f} s fit into {budget}")


def _training_digest(cfg, options, how, learner) -> str:
    "16 hex digits of all that decides what a training gives."
    more = [] if options.recipe.is_stock else [options.recipe]
    more += [] if options.sampling == "random" else [options.sampling]
    pixels = options.augmentation
    more += [pixels.jitter] if pixels.jitter else []
    more += [pixels] if pixels.noise or pixels.blur else []
    more += [] if learner is FastLearner else [learner.__name__, learner.settings]
    digest = repr([_fingerprint(cfg, False), options.seed, how, *more]).encode()
    return hashlib.sha256(digest).hexdigest()[:16]


def _say_nothing(text: str) -> None:
    "In place of print."


def _say(text: str) -> None:
    "What matters without a progress line too; importing Raster Vision switches warnings off."
    print(text, file=sys.stderr, flush=True)


def _remove_partials(folder) -> None:
    "Delete what a killed process had not finished writing: the names of `atomic_path`."
    places = [folder / name for name in ("train", "predict", "eval", "bundle")]
    found = [p for place in places for p in place.rglob(".*")]
    for path in [*found, *folder.glob(".*.checkpoint.pt")]:
        if re.match(r"\.[0-9a-f]{8}\..", path.name):
            path.unlink(missing_ok=True)


def _run_stages(work: _Work, commands, stock: bool) -> None:
    "All stages that were asked for, one after the other."
    with quiet():
        every = work.pipeline.commands
    commands = every if commands is None else commands
    commands = commands.split() if isinstance(commands, str) else list(commands)
    for name in commands:
        if name not in every:
            raise ValueError(f"there is no stage {name!r}; {near_match(name, every)}")
    wanted = [name for name in every if name in commands]  # as they need each other
    done = {stage["name"] for stage in _stages_done(work.folder, work.cfg)}
    texts = []
    if {"chip", "train", "eval"} & {*wanted} - done:  # these read labels
        texts += _hidden_classes(work.cfg.dataset)
    if "predict" in {*wanted} - done and type(work.cfg) is SemanticSegmentationConfig:
        texts += _resized(work.cfg.predict_options.chip_sz, work.cfg.backend.data)
    for text in texts:
        (_say if work.out is _say_nothing else work.out)(text)
    if not stock:
        table = _paths(work.cfg, work.ddp)
        work.folder.update("went", paths=table.path.to_dict())
        for part, why in table.query("path == 'stock'").why.items():
            work.out(f"{part}: Raster Vision's own code ({why})")
    for name in wanted:
        _run_stage(name, work, stock)
        work.options.stop.check()
    for name, numbers in _report(work.folder, work.options.meters).items():
        work.out(f"{name}: {numbers['chips_per_s']} chips/s. {numbers['in_words']}")


def _run_stage(name: str, work: _Work, stock: bool = False) -> None:
    "Run one stage unless it is done, and write down that it is."
    folder, out, start = work.folder, work.out, time.perf_counter()
    done = _stages_done(folder, work.cfg)
    if name in [d["name"] for d in done]:
        out(f"{name}: done already")
        return
    folder.update("went", stages=done)
    if name == "train" and out is not _say_nothing:
        work.options.tell = ProgressLine(work.cfg.backend.solver.num_epochs, out)
    with quiet(stdout=name != "train"):
        stage = STAGES[name] if not stock else partial(_stock_stage, name=name)
        stage(work)
    if name == "train" and (bundle := _products(work.cfg, name)[0]).exists():
        # what code it carries is that of this configuration
        folder.update("went", trained={"bundle": _digest(bundle)})
    for split in ("validation", "test") if name == "eval" else ():
        if folder.path.joinpath("eval", f"{split}_scenes", "eval.json").exists():
            folder.update(
                f"results.{split}", **folder.headline(folder.evaluation(split))
            )
    seconds = round(time.perf_counter() - start, 2)
    folder.update("went", stages=[*done, {"name": name, "seconds": seconds}])
    if name == "train":
        work.options.checkpoint.remove()  # not before run.json says that its work is done
    out(f"{name}: {seconds:.1f} s")


# --- new images


def predict(
    model: str | Path,  # A run folder, or a bundle that Raster Vision wrote
    images,  # A file, a folder, a glob, a URI, or a list of these
    out: str | Path,  # Each map gets a folder in this one
    blend: str = "cosine",  # How overlapping chips are joined: cosine, mean or votes
    chip_sz: int | None = None,  # Pixels along a side; None: as the run predicted
    stride: int | None = None,  # None: half a chip (whole squares of networks that score
    # these); for mean and votes as the run
    crop_sz: int | None = None,  # Pixels discarded along each edge; None: likewise
    bands: list[int] | None = None,  # Counted from 0; None: by name, else as the run
    scores: str | None = None,  # Also scores.tif: float32, float16 or uint8
    polygons: bool = True,  # Also polygons.gpkg
    batch_sz: int | None = None,  # Chips that are predicted together
    precision: str = "auto",  # auto, float32 or bfloat16
    progress: bool = True,  # Print a line now and then
    zeros: str | None = None,  # Patches of 0: empty, or data; None: as the run
    trust: bool = False,  # Run code that the model carries and that is not this package's
    min_area: float | str | None = None,  # Smaller patches go: m2 of ground, or "40px"
    thresholds=None,  # model_thresholds_*.yaml, or a number, or class -> number
    force: bool = False,  # Also thresholds of another model, or changed by hand
) -> pd.DataFrame:  # One row an image: where it is, where its map is
    """Map new images; memory grows with the width of an image, not with its height.

    Which bands the network sees, and through which transformers, is read from the
    configuration of the model's pipeline, of any version of Raster Vision; an image that
    describes its bands by the names of the training images is read by name. With
    `blend="mean"` (a run with `smooth_output`) or `"votes"` (one without), labels are
    those of its `Predictor` wherever there is data, but for pixels of which some bands
    hold a declared nodata above 0: it reads these bands as 0. Otherwise no window hangs over an
    image that is large enough, and chips of another `chip_sz` are not resized: things
    have the size that they had in training. Labels are class ids, 255 where the
    image has no data (`Validity.valid`, as `check_scenes` counts it); a chip without any
    data is not predicted. A map that is there already is replaced if it is of the same
    image by the same thresholds, else refused. Patches below `min_area` become what most of their surroundings
    are. With `thresholds` labels and polygons are what these make of the scores, which
    need not be stored; `(file, numbers)` puts numbers before those of a file. Where the
    file holds a calibration, stored scores are calibrated. The networks of this package
    are known; other code that a model carries runs only with `trust=True`.

    Raises FileNotFoundError when there is no model or no image, ValueError when an image
    does not suit the model, or when code is not trusted, `files.Busy` when another
    process predicts into the folder `out`; says on standard error when bands, sizes of
    pixels or values of images are unlike those of the training.
    """
    line = ProgressLine(None, every=10, unit="px", unit_scale=True, form=_MAPPED)

    def tell(done, of_all):
        line.total = of_all
        line.reach(done)

    alone = files.writing(out)
    with _ended_by_signals(), alone, tempfile.TemporaryDirectory() as tmp, _settings():
        with quiet(stdout=False):
            opened = Model.open(Path(model), Path(tmp), trust)
            bundle, options = str(opened.bundle), Options(precision=precision)
            learner = FastLearner.from_model_bundle(bundle, tmp, options=options)
        data, how = learner.cfg.data, opened.predicts
        chip = chip_sz or how.get("chip_sz") or data.img_sz
        if chip != how.get("chip_sz"):  # seen at the size of things in training
            known = data.img_sz / how.get("chip_sz", data.img_sz)
            data.img_sz = max(1, round(chip * (Model.scale(data) or known)))
        for text in _resized(chip, data, run=False):
            _say(text)
        if blend == "cosine" or chip != how.get("chip_sz"):
            how = {k: v for k, v in how.items() if k not in ("stride", "crop_sz")}
        same = {k: v for k, v in (("stride", stride), ("crop_sz", crop_sz)) if v}
        as_predictor = "stride" in how and same.items() <= how.items()
        manifest = Run(model).manifest if Path(model).is_dir() else {}
        asked = manifest.get("asked", {}).get("labels", {}).get("zeros")
        source = _source_of(opened, data, bands)
        names = opened.classes or list(data.class_config.names)
        null = data.class_config.null_class  # whatever it is called
        null = null if null in names else None
        source |= _decided(model, names, null, thresholds, blend, force)
        half = max(chip // 2 // learner.cell, 1) * learner.cell  # in whole squares
        _say_what_is_odd(prediction.find_images(images, out), opened, source)
        with quiet(stdout=False):
            counts = prediction.map_images(
                images,
                learner.scores,
                out,
                classes=names,
                chip_sz=chip,
                stride=stride or how.get("stride") or half,
                crop_sz=how.get("crop_sz") if crop_sz is None else crop_sz,
                blend=blend,
                scores=scores,
                polygons=polygons,
                batch_sz=batch_sz or how.get("batch_sz") or 8,
                zeros=check_zeros(zeros or asked),
                inside=not as_predictor,
                min_area=min_area,
                null_class=null,
                tell=tell if progress else None,
                **source,
            )
    return pd.DataFrame.from_dict(counts["maps"], orient="index")


def _decided(model, names, null, thresholds, blend, force) -> dict:
    "What trained thresholds make of scores, as `map_images` takes it."
    if thresholds is None:
        return {}
    if blend == "votes":
        raise ValueError("votes are no scores: thresholds need blend cosine or mean")
    both = thresholds if isinstance(thresholds, tuple) else (thresholds, None)
    if isinstance(both[0], int | float | dict):
        both = (None, both[0])
    how = dict(file=both[0], given=both[1], force=force)
    decision, maps = decision_for(model, tuple(names), null, **how)
    found = {names.index(name): one.apply for name, one in maps.items()}
    tags = {"thresholds": str(decision), **source_tags(both[0])}
    return dict(decide=decision.labels, calibrate=found, tags=tags)


_MAPPED = "{n_fmt}px mapped, {rate_noinv_fmt}, {percentage:.0f}%, {remaining} left"


class _Ended(BaseException):
    "A signal has come that ends the process."


@contextlib.contextmanager
def _ended_by_signals():
    "SIGTERM and SIGHUP end what happens inside as Ctrl-C does: nothing half is left."
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def end(number, frame):
        if not came:  # a second one does not disturb the clearing up
            came.append(number)
            raise _Ended

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {s: signal.getsignal(s) for s in wanted}
    for s, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # nohup, or not python's to put back
            signal.signal(s, end)
    try:
        yield
    except _Ended:
        pass
    finally:
        for s, handler in before.items():
            if handler is not None:
                signal.signal(s, handler)
    if came:
        if before[came[0]] == signal.SIG_DFL:  # this process ends here, without atexit
            files.remove_own_folders()
        signal.raise_signal(came[0])
        raise SystemExit(128 + came[0])


def _source_of(model, data, bands) -> dict:
    "How a model's own scenes are read, as `map_images` takes it; `data`: of its learner."
    known, source = model.inputs, model.source()
    if source is None:
        _say(
            "the model does not say how its images were read: their bands are taken as "
            "they are. Give its run folder, or the bundle of the run"
        )
        return {"bands": bands, "channels": data.img_channels}
    known = known or Model.inputs_of([source.config])
    model.inputs = known
    named = None if bands is not None or source.several else model.named_bands
    prepare = source.prepare(bands)
    bands = source.bands if bands is None else bands
    found = {"bands": bands, "prepare": prepare, "dtype": known and known["dtype"]}
    found["bands_of"] = named
    count = known["bands"] if known else data.img_channels
    return found | {"channels": count if known or not prepare else None}


def _say_what_is_odd(images, model, reads):
    """Say on standard error which images are unlike those of the training.

    In the order of their bands, the size of their pixels, or their values.
    """
    bands, named = reads["bands"], reads.get("bands_of")
    if named:
        for uri in images.values():
            own = named(uri)
            if own and own != (bands or list(range(len(own)))):
                numbers = ", ".join(str(i + 1) for i in own)
                names = ", ".join(model.inputs["names"])
                _say(f"{uri}: its bands {numbers} are read, which it calls {names}")
    if other := model.other_sizes(images.values()):
        more = f" (and {len(other) - 3} more)" if len(other) > 3 else ""
        _say(
            "pixels have another size than in training, so things look larger or smaller "
            f"to the network: {'; '.join(other[:3])}{more}. Bring images to the size in "
            "training (gdalwarp -tr SIZE SIZE, in metres of a projected system)"
        )
    source = model.source()
    if source is None or source.stretched:
        return
    if model.inputs is None:
        _say(
            "what the network was trained on is not known: neither the model says it, nor "
            "are its images there. Type and range of these images are not compared"
        )
        return
    odd = model.odd_ranges(images.values(), bands, bool(named))
    if odd:
        more = f" (and {len(odd) - 3} more)" if len(odd) > 3 else ""
        _say(
            "values are far from those that the network was trained on, and its map may "
            f"mean nothing: {'; '.join(odd[:3])}{more}"
        )

"""Label rasters made anew from stored scores with trained thresholds, and evaluated like a run.

Written by hand: plumbing between `metrics.thresholds` and the files of a run. Nothing of
the run that kept the scores is changed.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import rasterio
from rasterio.windows import Window

from rvtutorial.core import files
from rvtutorial.core.names import as_text
from rvtutorial.core.progress import ProgressLine
from rvtutorial.core.record import Run
from rvtutorial.core.records import Unreadable
from rvtutorial.data.places import unplaced_allowed
from rvtutorial.engine import scoring
from rvtutorial.engine.learner import quiet
from rvtutorial.engine.mapfiles import BLOCK, CACHE, Outputs
from rvtutorial.engine.reading import build_scene
from rvtutorial.metrics.leaderboard import LabelFolder, score_files
from rvtutorial.metrics.threshold_file import decision_for, source_tags
from rvtutorial.metrics.thresholds import Decision, Tuned

with quiet():
    from rastervision.pipeline.config import (
        build_config,
        save_pipeline_config,
        upgrade_config,
    )


def apply_thresholds(
    run: str | Path | Run | LabelFolder,  # That kept its scores
    thresholds: str | Path | Tuned | None = None,  # model_thresholds_*.yaml
    out: str | Path | None = None,  # A new folder, to which everything is written
    given: float | dict[str, float] | None = None,  # Numbers, before those of the file
    force: bool = False,  # Also thresholds of another model, or changed by hand
    polygons: bool = False,  # Also polygons.gpkg, without background and null
) -> Run | LabelFolder:  # The new folder, which goes wherever a run goes
    """Make the labels of a run anew from its scores, and evaluate them like the run.

    The labels of every predicted scene go to a new run folder, with `eval.json` by Raster
    Vision's evaluator; of a LabelFolder to a new LabelFolder. A pixel that was not
    predicted stays null. Raises FileNotFoundError where there are no scores, ValueError
    for thresholds of another model (unless forced) and for an `out` that holds something.
    """
    run, tags = Run.of(run), source_tags(thresholds)
    if out is None:
        raise ValueError("say where the labels go: out=FOLDER, which is new")
    out = Path(out).expanduser().absolute()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds something: labels need a folder that is new")
    if isinstance(run, LabelFolder):
        decision, _ = decision_for(
            run, tuple(run.classes), run.null, thresholds, given, force
        )
        scenes = score_files(run)
        _relabel(scenes, decision, lambda scene: out / scene, polygons, 255, tags)
        return replace(run, predictions=out, pattern="{id}/labels.tif")
    kinds = run.config["dataset"]["class_config"]
    names, null = tuple(kinds["names"]), kinds.get("null_class")
    decision, _ = decision_for(run, names, null, thresholds, given, force)
    scenes = {}
    for split in ("validation", "test"):
        if run.scene_ids(split):
            scenes |= score_files(run, split)
    config = _config_for(run, out)
    words = {"thresholds": f"{decision.rule} {_in_words(decision)}"}
    asked = {"hyperparams": {**run.hyperparams, **words}, "of": str(run.path)}
    asked["thresholds"] = (
        str(thresholds) if isinstance(thresholds, str | Path) else None
    )
    with files.writing(out):
        made = Run.open_for(out, asked)
        number = names.index(null) if null in names else 255
        _relabel(
            scenes, decision, lambda s: out / "predict" / s, polygons, number, tags
        )
        _evaluate(config)
        made.update("went", state="succeeded")
        made.update("results", **Run(out).results)
    return Run(out)


def _in_words(decision: Decision) -> str:
    numbers = decision.thresholds.items()
    return ",".join(f"{name}:{as_text(round(t, 6))}" for name, t in numbers)


def _relabel(scenes, decision, place, polygons, null, tags) -> None:
    "Write the labels of scenes, a few rows at a time."
    done, wanted = 0, []
    words = f"{decision.rule} {_in_words(decision)}"
    tags = {"thresholds": words, "null_class": decision.null or "", **tags}
    if polygons:
        wanted = [k for k in decision.classes if k not in ("background", decision.null)]
    with ProgressLine(len(scenes), every=10) as line:
        for scene, how in scenes.items():
            _relabel_one(how, decision, place(scene), wanted, null, tags)
            done += 1
            line.reach(done, f"labels of {done} of {len(scenes)} scenes")


def _relabel_one(how, decision, folder, polygons, null, tags) -> None:
    hits = np.load(how["hits"], mmap_mode="r") if "hits" in how else None
    cache = rasterio.Env(GDAL_CACHEMAX=CACHE)
    with cache, unplaced_allowed(), rasterio.open(how["scores"]) as file:
        profile = {k: file.profile[k] for k in ("height", "width", "transform")}
        crs = file.crs.to_wkt(version="WKT2_2019") if file.crs else None
        outputs = Outputs(
            folder=folder,
            profile=profile | {"crs": crs},
            classes=list(decision.classes),
            null=null,
            nodata=255 if null == 255 else None,
            polygons=polygons,
            tags=tags,
        )
        rows = outputs.open()
        try:
            for top in range(0, file.height, BLOCK):
                n = min(BLOCK, file.height - top)
                scores = file.read(window=Window(0, top, file.width, n))
                labels = decision.labels(scores)
                seen = ~np.isnan(scores.astype(np.float32, copy=False)).any(axis=0)
                if hits is not None:
                    seen &= hits[top : top + n] > 0
                labels = np.where(seen, labels, np.uint8(null))
                rows.put(SimpleNamespace(labels=labels, hits=seen.view(np.uint8)))
        except BaseException:
            rows.abort()
            raise
        rows.finish()


def _config_for(run: Run, out: Path):
    "The configuration of a run, with its predictions and evaluation in another folder."
    tree = json.loads(json.dumps(run.config)) | {"root_uri": str(out)}
    tree |= {"predict_uri": None, "eval_uri": None}
    for split in ("train_scenes", "validation_scenes", "test_scenes"):
        for scene in tree["dataset"].get(split) or []:
            if scene.get("label_store"):
                scene["label_store"] |= {"uri": None, "smooth_output": False}
    for evaluator in tree.get("evaluators") or []:
        evaluator["output_uri"] = None
    try:
        with quiet():
            config = build_config(upgrade_config(tree))
            config.update()
            return build_config(config.dict())
    except Exception as err:  # of any kind: it is a file that somebody may have changed
        why = f"its configuration cannot be read: {err}"
        raise Unreadable(run.path / "pipeline-config.json", why) from err


def _evaluate(config) -> None:
    "Write eval.json, as the engine evaluates a run."
    with files.atomic_path(config.get_config_uri()) as partial:
        save_pipeline_config(config, str(partial))
    with tempfile.TemporaryDirectory() as tmp:
        if scoring.why_stock(config):
            config.build(tmp).eval()
        else:
            scoring.evaluate(config, tmp, build_scene)

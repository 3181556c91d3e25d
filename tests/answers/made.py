"""Folders that the answers to 5.5, 6.4, 7.5 and 8.4 name, made by hand: nothing is trained."""

import atexit
import json
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from fake_runs import evaluation, make_scene, truth_of, write_raster

from rvtutorial.metrics import label_folder
from rvtutorial.runs import Hyperparams, Run
from rvtutorial.sweeps.sweepfile import SweepFile, Trial, trial_names

_HOME = tempfile.TemporaryDirectory(prefix="answers-")
atexit.register(_HOME.cleanup)
HOME = Path(_HOME.name)
SCENES = 8


def asked(name, digest="d1", **changes) -> Path:
    "A run folder as `get_config` leaves it."
    hp = Hyperparams.of("smoke", **changes)
    data = {"data": f"/data/{digest}", "digest": digest}
    more = {"preset": "smoke", "labels": {}, "windows_digest": "w", "seed": hp.seed}
    run = Run.open_for(HOME / name, {"hyperparams": hp.asdict(), "data": data, **more})
    run.update("went", state=None)
    return run.path


def trained(name, recall=0.8, luck=0, n=SCENES, state="succeeded", **changes) -> Path:
    "A run folder with the scores of n scenes, of which a share of the buildings is found."
    folder, rng = asked(name, **changes), np.random.default_rng(luck)
    matrices = {}
    for i in range(n):
        built = 2000 + 200 * i
        tp = int(built * np.clip(recall + rng.normal(0, 0.02), 0, 1))
        matrices[f"s{i}"] = [[tp, built - tp, 0], [200, 9000, 0], [0, 0, 0]]
    path = folder / "eval" / "validation_scenes" / "eval.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(evaluation(matrices)))
    Run(folder).update("went", state=state)
    return folder


def sweep(name, trials, states=None, other=None, **fixed) -> Path:
    """A sweep folder with these trials; `states` of trials that have not succeeded.

    `other` changes what the runs were asked for, behind the back of the record.
    """
    fixed = {"preset": "smoke", "data": "/data", **fixed}
    found = [
        Trial(one, one, own)
        for one, own in zip(trial_names(trials), trials, strict=True)
    ]
    SweepFile(fixed, {}).write(HOME / name, found)
    values = {k: v for k, v in fixed.items() if k not in ("preset", "data")}
    for trial in found:
        state = (states or {}).get(trial.name, "succeeded")
        if state != "new":
            changes = values | trial.parameters | (other or {})
            trained(f"{name}/{trial.name}", state=state, **changes)
    return HOME / name


# --- a town of five scenes in clear light, and images of it

BOXES = [(5, 5, 12, 20), (22, 10, 12, 25)]
SHAPE = (40, 50)
TOWN = HOME / "town" / "val"
for _scene in range(1, 6):
    make_scene(TOWN, _scene, BOXES, SHAPE)


def town_maps(
    name,  # Of the folder of maps
    light=1.0,  # Of the images that were mapped; None: those of the town itself
    shift=0,  # Pixels by which buildings are drawn elsewhere
    drawn=lambda labels: labels,  # What becomes of the labels
    scenes=range(1, 6),
    tags=True,  # As `engine.predict` writes them
    names=("building", "background"),
    **more,  # Of `label_folder`
):
    "The maps of the town, with its labels."
    for scene in scenes:
        image = TOWN / f"RGB-PanSharpen_AOI_2_Vegas_img{scene}.tif"
        with rasterio.open(image) as file:
            values, how = file.read(), dict(transform=file.transform, crs=file.crs)
        if light is not None:
            image = HOME / f"{name} images" / image.name
            write_raster(image, (values * light).astype(values.dtype), **how)
        labels = truth_of([(r, c + shift, h, w) for r, c, h, w in BOXES], SHAPE)
        path = HOME / name / image.stem / "labels.tif"
        write_raster(path, drawn(labels), **how)
        said = {"classes": '["building", "background", "null"]', "image": str(image)}
        with rasterio.open(path, "r+") as file:
            file.update_tags(**(said if tags else {}))
    maps = HOME / name / "RGB-PanSharpen_AOI_2_Vegas_img{id}" / "labels.tif"
    truth = TOWN / "buildings_AOI_2_Vegas_img{id}.geojson"
    return label_folder(maps, truth, list(names), null=None, **more)

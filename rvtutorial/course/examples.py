"""Made-up runs that no network trained, for lessons and tests of figures and tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rvtutorial.figures import maps
from rvtutorial.metrics.counting import confusion
from rvtutorial.core.records import write_json
from rvtutorial.sweeps.sweepfile import SweepFile, Trial, trial_names


def _believed(truth, skill, seeds):
    "A made-up network's score of building at each pixel, 0 to 1."
    from scipy.ndimage import gaussian_filter

    def noise(seed, sigma):
        draws = np.random.default_rng(seed).normal(size=truth.shape)
        field = gaussian_filter(draws, sigma)
        return field / field.std()

    shared, own = noise(seeds[0], 7), noise(seeds[1], 4)
    logit = 7 * gaussian_filter((truth == 0).astype(float), 1.5) - 3.5
    return 1 / (1 + np.exp(-(logit + 1.6 * shared + 1.1 * own / skill)))


def _write_scene(folder, scene, score, truth, grid):
    "labels.tif and scores.tif of one scene, and its confusion matrix."
    import rasterio

    labels = np.where(score >= 0.5, 0, 1).astype(np.uint8)
    bands = np.stack([score, 1 - score, 0 * score]) * 255
    folder = folder / "predict" / scene
    folder.mkdir(parents=True, exist_ok=True)
    how = grid | dict(driver="GTiff", dtype="uint8", compress="deflate", zlevel=1)
    for name, pixels in (("labels", labels[None]), ("scores", np.rint(bands))):
        path = folder / f"{name}.tif"
        with rasterio.open(path, "w", count=len(pixels), **how) as file:
            file.write(pixels.astype(np.uint8))
    return confusion(truth, labels, 3)


def _evaluation(matrices):
    "What Raster Vision's eval.json holds, as far as anybody here reads it."

    def items(matrix):
        found = []
        for i, name in enumerate(("building", "background", "null")):
            tp, fn = matrix[i, i], matrix[i].sum() - matrix[i, i]
            fp = matrix[:, i].sum() - tp
            counts = dict(TP=tp, FP=fp, FN=fn, TN=matrix.sum() - tp - fn - fp)
            found.append(dict(class_id=i, class_name=name, conf_mat_dict=counts))
        return [*found, dict(class_name="average", conf_mat=matrix)]

    scenes = {scene: items(matrix) for scene, matrix in matrices.items()}
    return {"overall": items(sum(matrices.values())), "per_scene": scenes}


def _write_records(folder, scenes, parameters, skill, minutes):
    "Log, configuration and record of a made-up run, with curves that suit its skill."
    epoch = np.arange(8)
    loss = 0.1 + 0.6 * np.exp(-0.5 * skill * (epoch + 1))
    f1 = 0.93 * skill / (0.3 + skill) * (1 - np.exp(-0.8 * (epoch + 1)))
    columns = dict(epoch=epoch, train_loss=loss, val_loss=1.1 * loss, building_f1=f1)
    (folder / "train").mkdir(exist_ok=True)
    pd.DataFrame(columns).to_csv(folder / "train" / "log.csv", index=False)
    names = dict(names=["building", "background", "null"], null_class="null")
    configs = []
    for scene, image, label in scenes:
        labels = dict(vector_source=dict(uris=str(label)))
        labels |= dict(rasterizer_config=dict(background_class_id=1))
        source = dict(id=scene, raster_source=dict(uris=str(image)))
        configs.append(source | dict(label_source=dict(raster_source=labels)))
    dataset = dict(class_config=names, validation_scenes=configs)
    write_json(folder / "pipeline-config.json", dict(dataset=dataset))
    ended = pd.Timestamp("2026-01-01T00:00:00+00:00") + pd.Timedelta(minutes=minutes)
    times = dict(started="2026-01-01T00:00:00+00:00", ended=ended.isoformat())
    went = dict(state="succeeded", attempts=[times])
    record = dict(schema=1, asked=dict(hyperparams=parameters), went=went)
    write_json(folder / "run.json", record | {"made_with": dict(device="cuda:0")})


def make_example_runs(
    folder: str | Path,  # The sweep folder that is made
    scenes: Sequence,  # Pairs of image and label, from `find_splits`
    trials: Sequence[dict],  # Hyperparameters: lr and epochs count, others do not
    seed: int = 0,
) -> Path:  # The sweep folder
    "Make runs that no network trained, to try figures and tables on."
    import rasterio

    folder, names = Path(folder), trial_names(list(trials))
    for number, (name, parameters) in enumerate(zip(names, trials, strict=True)):
        # best at a learning rate of 1e-3, better with more epochs
        far = np.log10(parameters.get("lr", 1e-3)) + 3
        epochs, matrices = parameters.get("epochs", 8), {}
        skill = float(np.exp(-0.45 * far**2) * (epochs / 8) ** 0.15)
        for scene in scenes:
            frame = maps.Frame.of(scene.image)
            truth = frame.read_truth(scene.label, max(frame.shape))
            seeds = ([seed, int(scene.id)], [seed, int(scene.id), number + 1])
            with rasterio.open(scene.image) as source:
                keys = ("width", "height", "crs", "transform")
                grid = {key: source.profile[key] for key in keys}
            score, id = _believed(truth, skill, seeds), scene.id
            matrices[id] = _write_scene(folder / name, id, score, truth, grid)
        evaluation = folder / name / "eval/validation_scenes/eval.json"
        write_json(evaluation, _evaluation(matrices))
        ids = [(scene.id, scene.image, scene.label) for scene in scenes]
        _write_records(folder / name, ids, parameters, skill, 0.4 * epochs)
    tried = {k: [t[k] for t in trials] for k in trials[0]}
    made = [Trial(n, n, p) for n, p in zip(names, trials, strict=True)]
    SweepFile({}, tried).write(folder, made)
    return folder

"Thresholds from end to end: trained by the command, in a bucket, applied to runs and images."

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from click.testing import CliRunner
from fake_runs import three_scenes, truth_of, write_raster
from sklearn.metrics import f1_score, jaccard_score
from test_thresholds import FOUR, folder_of, four_classes

from rvtutorial.cli import _cli
from rvtutorial.core.record import Run
from rvtutorial.core.remote import fetch, is_remote
from rvtutorial.metrics.leaderboard import blocks_of, leaderboard
from rvtutorial.metrics.threshold_file import (
    decision_for,
    read_thresholds,
    write_thresholds,
)
from rvtutorial.metrics.thresholds import tune


def run_of(folder, splits=("validation", "test")):
    "A run with scores that are good and too low to win: a box has 0.1 to 0.4."
    import rasterio
    from fake_runs import fake_run

    scenes = three_scenes(folder / "data")
    run = fake_run(folder / "run", scenes)
    config = json.loads((run / "pipeline-config.json").read_text())
    if "test" in splits:
        group = config["dataset"]["validation_scenes"]
        config["dataset"]["test_scenes"] = [
            {**one, "id": f"t{one['id']}"} for one in group
        ]
        (run / "pipeline-config.json").write_text(json.dumps(config))
    for scene, (image, _, boxes, shape) in scenes.items():
        truth = truth_of(boxes, shape)
        for name in (scene, f"t{scene}") if "test" in splits else (scene,):
            rng = np.random.default_rng(len(name))
            score = np.where(
                truth == 0, rng.uniform(0.1, 0.4, shape), rng.uniform(0, 0.15, shape)
            )
            scores = np.rint(255 * np.stack([score, 1 - score, 0 * score])).astype(
                np.uint8
            )
            with rasterio.open(image) as source:
                place = dict(transform=source.transform, crs=source.crs)
            write_raster(run / "predict" / name / "scores.tif", scores, **place)
    return run


def call(*words):
    done = CliRunner().invoke(_cli, ["thresholds", *map(str, words)])
    return done.exit_code, done.output


def test_the_command_writes_a_file_beside_the_model(tmp_path):
    run = run_of(tmp_path)
    code, text = call(run, "--message", "of May", "--numpy-random-global-seed", 3)
    assert code == 0, text
    (path,) = run.glob("model_thresholds_*.yaml")
    assert str(path) in text and "building: 0." in text
    found = yaml.safe_load(path.read_text())
    about = found["metadata"]
    assert about["message"] == "of May" and about["numpy_random_global_seed"] == 3
    assert about["model_id"] == "run" and about["batch_size"] == 16
    assert about["num_classes"] == 3
    how = about["thresholds_training_configuration"]
    assert (
        how["optimizing_class_metric"] == "iou"
        and how["dataset_downsample_factor"] == 1
    )
    assert 0.1 < found["final_trained_prediction_thresholds"]["building"] < 0.2
    assert set(found["digests"]["scores"]) == {"9", "10", "11"}
    code, text = call(run, "--json", "--dataset-downsample-factor", 0.5)
    assert code == 0 and len(list(run.glob("model_thresholds_*.yaml"))) == 2
    doc = json.loads(text[text.index("{") :])
    assert doc["scenes"] == 2 and doc["classes"][0]["status"] == "ok"


def test_words_that_cannot_be_meant(tmp_path):
    run = run_of(tmp_path)
    for words, code, said in (
        ([run, "--metric", "precision"], 2, "precision@recall>=0.9"),
        (
            [run, "--metric", "binary_cross_entropy"],
            2,
            "does not depend on a threshold",
        ),
        ([], 2, "name a RUN_OR_BUNDLE, or --model-id"),
        ([run, "--gcp-bucket", "sandbox"], 2, "must start with gs://"),
        ([run, "--dataset-downsample-factor", "0"], 2, "above 0 and at most 1"),
        ([run, "--split", "test"], 1, "say on_test=True"),
        ([run, "--class", "road"], 1, "no scores of 'road'"),
        ([tmp_path / "nowhere"], 1, "model nowhere"),
        (
            [run, "--dataset-directory", tmp_path / "no" / "validation"],
            1,
            "data set validation",
        ),
    ):
        found, text = call(*words)
        assert (found, said in text) == (code, True), text
    assert not list(run.glob("model_thresholds_*.yaml"))


def test_a_class_that_is_not_there_ends_with_an_error_and_a_file(tmp_path):
    run = run_of(tmp_path, splits=("validation",))
    for path in (tmp_path / "data").glob("*.geojson"):
        path.write_text('{"type": "FeatureCollection", "features": []}')
    code, text = call(run)
    assert code == 1 and "no threshold for building" in text
    (path,) = run.glob("model_thresholds_*.yaml")
    assert (
        yaml.safe_load(path.read_text())["thresholds"]["building"]["status"]
        == "undefined"
    )


def test_tuning_on_test_is_on_record_and_marked(tmp_path):
    run = run_of(tmp_path)
    code, text = call(run, "--split", "test", "--on-test")
    assert code == 0, text
    (path,) = run.glob("model_thresholds_*.yaml")
    found = yaml.safe_load(path.read_text())
    assert found["tuned_on_test"] and "opened once" in found["notes"][0]
    assert len((tmp_path / "test-openings.jsonl").read_text().splitlines()) == 1
    code, text = call(run, "--report", "test", "--json")
    assert code == 0, text
    (row,) = json.loads(text[text.index("{\n") :])["report"]
    assert row["regret"] >= 0 and row["value"] + row["regret"] == pytest.approx(
        row["best"]
    )
    (tmp_path / "test-openings.jsonl").write_text("")
    made = tune(run, draws=10)
    assert made.on(run).regret["building"] >= 0
    assert len((tmp_path / "test-openings.jsonl").read_text().splitlines()) == 1


def test_counts_of_parts_are_put_together(tmp_path):
    from rvtutorial.engine.fitting import count_part, fit_thresholds

    run = run_of(tmp_path)
    paths = [tmp_path / f"{i}.npz" for i in (1, 2)]
    for i, path in enumerate(paths, start=1):
        count_part(run, f"{i}/2", path)
    made, file = fit_thresholds(run, counts=paths, draws=20)
    whole = tune(run, draws=20, blocks=None)
    assert (
        made.thresholds["building"].threshold == whole.thresholds["building"].threshold
    )
    assert made.value == whole.value and sorted(made.scenes) == sorted(whole.scenes)
    names = ("building", "background", "null")
    decision, _ = decision_for(run, names, "null", file)
    assert decision.thresholds == whole.decision.thresholds
    for part in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ValueError, match="part is like 2/8"):
            count_part(run, part, tmp_path / "x.npz")
    paths[0].write_bytes(b"PK")
    with pytest.raises(ValueError, match="holds no counts of scores"):
        fit_thresholds(run, counts=paths)


def test_counts_are_of_this_model_and_every_scene_once(tmp_path):
    from rvtutorial.engine.fitting import count_part, fit_thresholds
    from rvtutorial.metrics.calibration import ScoreCounts

    run = run_of(tmp_path)
    one, two, test, old = (tmp_path / f"{n}.npz" for n in ("one", "two", "test", "old"))
    count_part(run, "1/2", one)
    count_part(run, "2/2", test, "test")
    replace(ScoreCounts.read(one), model=()).write(old)
    with pytest.raises(ValueError, match="scene 9 was counted twice, in .*one.npz and"):
        fit_thresholds(run, counts=[one, one])
    with pytest.raises(
        ValueError, match="one.npz are of the validation split and thos"
    ):
        fit_thresholds(run, counts=[one, test])
    with pytest.raises(ValueError, match="old.npz do not say that they are of"):
        fit_thresholds(run, counts=[old])
    (run / "bundle" / "model-bundle.zip").write_bytes(b"trained again")
    count_part(run, "2/2", two)
    with pytest.raises(ValueError, match="one.npz are of another model than"):
        fit_thresholds(run, counts=[two, one])
    assert not list(run.glob("model_thresholds_*.yaml"))


def test_every_look_at_the_test_split_is_on_record(tmp_path, monkeypatch):
    from rvtutorial.engine import fitting
    from rvtutorial.figures.thresholds import plot_thresholds

    run, record = run_of(tmp_path), tmp_path / "test-openings.jsonl"
    how = dict(on_test=True, draws=0)

    def looks():
        return len(record.read_text().splitlines()) if record.is_file() else 0

    plot_thresholds(run, ("iou", "f1"), split="test", **how)
    assert looks() == 1 and "iou, f1" in record.read_text()
    fitting.count_part(run, "1/1", tmp_path / "all.npz", "test")
    with pytest.raises(ValueError, match="say on_test=True"):
        fitting.fit_thresholds(run, counts=[tmp_path / "all.npz"])
    assert looks() == 1
    made, file = fitting.fit_thresholds(run, counts=[tmp_path / "all.npz"], **how)
    assert looks() == 2 and made.split == "test" and "opened 2 times" in made.notes[0]
    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    out = tmp_path / "mine"  # of a model that lies elsewhere the record is kept here
    made, _ = fitting.fit_thresholds(f"file://{run}", "test", out=out, **how)
    assert len((out / record.name).read_text().splitlines()) == 1 and looks() == 2
    assert "opened once" in made.notes[0]
    files = fitting.score_files(run, "test")
    monkeypatch.setattr(fitting, "_scored", lambda *given: files)
    bundle = run / "bundle" / "model-bundle.zip"
    made, file = fitting.fit_thresholds(bundle, "test", tmp_path / "data", **how)
    assert looks() == 3 and yaml.safe_load(Path(file).read_text())["tuned_on_test"]


def moved_beside_each_other(paths):
    for i, path in enumerate(paths):
        with rasterio.open(path, "r+") as file:
            file.transform = rasterio.Affine(1, 0, 5e5 + i * file.width, 0, -1, 4e6)
            file.crs = "EPSG:32631"


def test_neighbours_are_one_whether_scores_come_from_a_run_or_from_files(
    tmp_path, monkeypatch
):
    from rvtutorial.engine import fitting

    scenes = {f"{i:02}": four_classes(i, 16) for i in range(30)}
    folder = folder_of(tmp_path / "four", scenes, null=None)
    for pattern in ("truth/??.tif", "maps/??.tif", "maps/??_scores.tif"):
        moved_beside_each_other(sorted((tmp_path / "four").glob(pattern)))
    how = dict(classes=["building"], draws=0)
    low = tune(folder, **how).thresholds["building"].value_low
    assert low != tune(folder, blocks=None, **how).thresholds["building"].value_low
    files = fitting.score_files(folder)
    assert tune(files, **how).thresholds["building"].value_low == low

    run = run_of(tmp_path)
    files = fitting.score_files(run)
    for how in files.values():
        shutil.copy(how["scores"], how["scores"].with_name("labels.tif"))
    moved_beside_each_other(
        [how["scores"].with_name("labels.tif") for how in files.values()]
    )
    given = []
    monkeypatch.setattr(
        fitting, "tune", lambda of, **how: given.append(how) or tune(of)
    )
    fitting.count_part(run, "1/1", tmp_path / "all.npz")
    fitting.fit_thresholds(run, counts=[tmp_path / "all.npz"])
    found = list(given[0]["blocks"].values())
    assert list(given[0]["blocks"]) == list(files) and len(set(found)) == 2
    assert found == blocks_of([Run(run)], list(files)).tolist()


def test_scenes_are_of_the_split_that_is_asked_for(tmp_path, monkeypatch):
    from rvtutorial import engine
    from rvtutorial.engine import fitting

    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    model, asked = tmp_path / "model-bundle.zip", []
    model.write_bytes(b"a model")
    for folder in ("val", "plain"):
        for name in ("1.tif", "1_labels.tif"):
            write_raster(tmp_path / "data" / folder / name, np.ones((4, 4), np.uint8))

    def predict(place, images, out, **how):
        asked.append(Path(images[0]).parent.name)
        raise FileNotFoundError("far enough")

    monkeypatch.setattr(engine, "predict", predict, raising=False)
    how = dict(image_pattern="{id}.tif", label_pattern="{id}_labels.tif")
    data = tmp_path / "data"
    for split, folder, error in (
        ("validation", data, "far enough"),
        ("validation", data / "val", "far enough"),
        ("test", data / "plain", "far enough"),
        ("test", data, "has no folder test for the test scenes, only val"),
        ("test", data / "val", "is a folder of validation scenes"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=error):
            fitting.fit_thresholds(model, split, folder, on_test=True, **how)
    assert asked == ["val", "val", "plain"]


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    "A bundle, a data set, and the images that were predicted, a list for each call."
    from rvtutorial import engine

    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "model-bundle.zip").write_bytes(b"a model")
    numbers = {"val": range(6), "test": range(10, 16)}
    for split, seeds in numbers.items():
        for seed in seeds:
            truth, scores = four_classes(seed, 32)
            place = tmp_path / "data" / split
            write_raster(place / f"{seed}.tif", scores)
            write_raster(place / f"{seed}_labels.tif", truth)
    calls = []

    def predict(model, images, out, **how):
        calls.append([Path(image).stem for image in images])
        rows = {}
        for image in images:
            folder = Path(out) / Path(image).stem
            with rasterio.open(image) as file:
                scores = file.read()
            write_raster(folder / "labels.tif", scores.argmax(axis=0).astype(np.uint8))
            write_raster(folder / "scores.tif", scores)
            with rasterio.open(folder / "labels.tif", "r+") as file:
                file.update_tags(classes=json.dumps(FOUR), image=image, null_class="")
            rows[folder.name] = dict(image=image, folder=str(folder))
        return pd.DataFrame.from_dict(rows, orient="index")

    monkeypatch.setattr(engine, "predict", predict, raising=False)
    return calls


def test_images_are_predicted_once_and_only_those_that_are_drawn(tmp_path, predicted):
    from rvtutorial.engine.fitting import fit_thresholds

    model, data = tmp_path / "model-bundle.zip", tmp_path / "data"
    how = dict(dataset=data, draws=0, image_pattern="{id}.tif", blocks=None)
    how |= dict(label_pattern="{id}_labels.tif", classes=["building"])
    made, file = fit_thresholds(model, share=0.5, seed=1, **how)
    assert predicted == [list(made.scenes)] and len(made.scenes) == 3
    assert made.share == 0.5 and read_thresholds(file).share == 0.5
    predicted.clear()
    first, _ = fit_thresholds(model, **how)
    again, _ = fit_thresholds(model, **how)
    assert predicted == [list("012345")] and again.value == first.value
    truth, scores = four_classes(50, 32)
    write_raster(data / "val" / "3.tif", scores)
    write_raster(data / "val" / "3_labels.tif", truth)
    os.utime(data / "val" / "3.tif", (1, 1))
    (lost,) = (tmp_path / "scratch").rglob("scores/*/5/scores.tif")
    lost.unlink()
    changed, _ = fit_thresholds(model, **how)
    assert predicted[1:] == [["3", "5"]] and changed.value != first.value
    model.write_bytes(b"another")
    fit_thresholds(model, **how)
    assert predicted[2] == list("012345")


def test_a_bundle_is_judged_on_the_test_scenes_of_its_data_set(tmp_path, predicted):
    words = ["--class", "building", "--report", "test", "--json"]
    words += ["--image-pattern", "{id}.tif", "--label-pattern", "{id}_labels.tif"]
    model, record = tmp_path / "model-bundle.zip", tmp_path / "test-openings.jsonl"
    for i, folder in enumerate((tmp_path / "data", tmp_path / "data" / "val"), start=1):
        code, text = call(model, "--dataset-directory", folder, *words)
        assert code == 0, text
        (row,) = json.loads(text[text.index("{\n") :])["report"]
        assert row["split"] == "test" and row["scenes"] == 6 and row["allowed"]
        assert row["value"] + row["regret"] == pytest.approx(row["best"])
        assert len(record.read_text().splitlines()) == i


def test_labels_that_were_moved_are_found_for_the_report(tmp_path):
    run = run_of(tmp_path)
    for split in ("validation", "test"):
        (tmp_path / "moved" / split).mkdir(parents=True)
        for path in (tmp_path / "data").glob("*.geojson"):
            shutil.copy(path, tmp_path / "moved" / split)
    shutil.rmtree(tmp_path / "data")
    folder = tmp_path / "moved" / "validation"
    code, text = call(run, "--dataset-directory", folder, "--report", "test", "--json")
    assert code == 0, text
    (row,) = json.loads(text[text.index("{\n") :])["report"]
    assert row["split"] == "test" and row["scenes"] == 3


# --- applied ---------------------------------------------------------------------------


def test_labels_of_a_folder_are_made_anew(tmp_path):
    from rvtutorial import engine

    scenes = {str(i): four_classes(i, 48) for i in range(5)}
    folder = folder_of(tmp_path / "old", scenes, null=None)
    before = {p: p.read_bytes() for p in (tmp_path / "old").rglob("*.tif")}
    made = tune(folder, "f1", classes=["building"], draws=0, blocks=None)
    new = engine.apply_thresholds(folder, made, tmp_path / "new")
    assert before == {p: p.read_bytes() for p in (tmp_path / "old").rglob("*.tif")}
    counts = new.counts.table("building").sum()
    f1 = 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)
    assert f1 == pytest.approx(made.thresholds["building"].value, abs=1e-9)
    board = leaderboard({"arg-max": folder, "tuned": new}, class_name="building")
    assert board.loc["tuned", "pixel_f1"] == pytest.approx(f1)
    assert set(board.index) == {"arg-max", "tuned"}
    with pytest.raises(ValueError, match="holds something: labels need a folder"):
        engine.apply_thresholds(folder, made, tmp_path / "new")
    with pytest.raises(ValueError, match="out=FOLDER"):
        engine.apply_thresholds(folder, made)
    with pytest.raises(ValueError, match="every class has a threshold"):
        engine.apply_thresholds(folder, None, tmp_path / "half", {"water": 0.3})
    assert not (tmp_path / "half").exists()


@pytest.mark.slow
def test_thresholds_of_a_run_are_its_own_row_by_raster_visions_evaluator(
    tmp_path, monkeypatch
):
    "A real run: tuned, applied to its scores and to its images, and evaluated by stock."
    from rastervision.core.evaluation import SemanticSegmentationEvaluatorConfig

    from rvtutorial import config, engine
    from rvtutorial.data.synthetic import make_sample_scenes
    from rvtutorial.runs import Run

    data = make_sample_scenes(tmp_path / "data", 2, 5, 2, 96)
    asked = dict(preset="smoke", data=str(data), epochs=1, scores="float32")
    asked |= dict(chip_sz=64, stride_length=48)
    cfg = config.get_config("inprocess", **asked, output_uri=str(tmp_path / "run"))
    run = Run(engine.run(cfg, progress=False))
    labels = run.prediction(run.scene_ids("validation")[0]).read_bytes()
    made, file = import_module("rvtutorial.engine.fitting").fit_thresholds(
        run.path, metric="f1", draws=20, unscored="leave out"
    )
    new = engine.apply_thresholds(run, file, tmp_path / "tuned", polygons=True)
    assert run.prediction(run.scene_ids("validation")[0]).read_bytes() == labels
    value = made.thresholds["building"].value
    assert new.results["validation"]["f1"] == pytest.approx(value, abs=1e-9)
    board = leaderboard({"arg-max": run, "tuned": new})
    assert board.loc["tuned", "pixel_f1"] == pytest.approx(value, abs=1e-9)
    assert "thresholds" in new.hyperparams and new.state == "succeeded"
    # Raster Vision's own evaluator on the new labels
    from rastervision.pipeline.config import build_config

    stock = build_config(json.loads((new.path / "pipeline-config.json").read_text()))
    scenes = [
        one.build(stock.dataset.class_config, str(tmp_path))
        for one in stock.dataset.validation_scenes
    ]
    evaluator = SemanticSegmentationEvaluatorConfig(output_uri=str(tmp_path / "stock"))
    evaluator.build(stock.dataset.class_config).process(scenes, str(tmp_path))
    theirs = json.loads((tmp_path / "stock" / "eval.json").read_text())["overall"]
    theirs = next(one for one in theirs if one["class_name"] == "building")
    assert theirs["metrics"]["f1"] == pytest.approx(value, abs=1e-9)
    # while predicting, without storing scores
    image = run.image(run.scene_ids("validation")[0])
    how = dict(blend="mean", polygons=False, progress=False)
    maps = engine.predict(
        run.path, str(image), tmp_path / "maps", thresholds=file, **how
    )
    import rasterio

    there = Path(maps.folder.iloc[0])
    assert [p.name for p in there.iterdir()] == ["labels.tif"]
    with rasterio.open(there / "labels.tif") as live:
        said, tags = live.read(1), live.tags()
    with rasterio.open(new.prediction(run.scene_ids("validation")[0])) as stored:
        agree = (stored.read(1) == said)[said != 255].mean()
    assert agree > 0.999 and "Decision" in tags["thresholds"]
    with pytest.raises(ValueError, match="votes are no scores"):
        engine.predict(
            run.path, str(image), tmp_path / "v", blend="votes", thresholds=0.4
        )
    # a bundle alone predicts a data set first
    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    apart, where = import_module("rvtutorial.engine.fitting").fit_thresholds(
        run.path / "bundle" / "model-bundle.zip", dataset=data / "val", metric="f1",
        out=tmp_path / "apart", draws=0,
    )  # fmt: skip
    assert Path(where).parent == tmp_path / "apart" and len(apart.scenes) == 5
    assert list(read_thresholds(where).digests["bundles"]) == ["model-bundle.zip"]
    other = tmp_path / "other.zip"
    shutil.copy(run.path / "bundle" / "model-bundle.zip", other)
    with open(other, "ab") as out:
        out.write(b"\n")
    with pytest.raises(ValueError, match="was trained with another model"):
        engine.predict(other, str(image), tmp_path / "o", thresholds=file, **how)


def test_a_map_is_what_scikit_learn_makes_of_the_threshold(tmp_path):
    truth, scores = four_classes(5, 48)
    folder = folder_of(
        tmp_path, {"a": (truth, scores), "b": four_classes(6, 48)}, null=None
    )
    made = tune(folder, classes=["road"], draws=0, blocks=None)
    said = made.decision.labels(scores)
    called = scores[1].astype(float) >= made.thresholds["road"].threshold
    for metric in (f1_score, jaccard_score):
        a, b = (metric(truth.ravel() == 1, one.ravel()) for one in (said == 1, called))
        assert a == b


@pytest.mark.parametrize("blend", ["mean", "cosine"])
def test_thresholds_decide_while_an_image_is_mapped(tmp_path, blend):
    "Labels by the rule, scores stored only when asked for and then calibrated."
    import rasterio

    from rvtutorial.engine.prediction import map_images
    from rvtutorial.metrics.thresholds import Calibration, Decision

    truth, scores = four_classes(3, 80)
    where = write_raster(
        tmp_path / "a.tif", np.rint(1e4 * scores).astype(np.uint16) + 1
    )

    def predict(chips):  # what the image itself says
        return ((chips.transpose(0, 3, 1, 2) - 1.0) / 1e4).clip(0, 1).astype(np.float32)

    decision = Decision("ratio", FOUR, {"road": 0.35, "building": 0.2}, None)
    halved = Calibration("temperature", temperature=2.0)
    how = dict(
        classes=list(FOUR), chip_sz=32, stride=24, bands=[0, 1, 2, 3], blend=blend
    )
    how |= dict(decide=decision.labels, polygons=True, tags={"thresholds": "said"})
    map_images(str(where), predict, tmp_path / "plain", **how)
    names = {p.name for p in (tmp_path / "plain" / "a").iterdir()}
    assert names == {"labels.tif", "polygons.gpkg"}
    with rasterio.open(tmp_path / "plain" / "a" / "labels.tif") as file:
        said, tags = file.read(1), file.tags()
    stored = np.rint(1e4 * scores) / 1e4
    assert (said == decision.labels(stored.astype(np.float32))).mean() > 0.998  # ties
    assert (
        tags["thresholds"] == "said"
        and (said == 2).sum() > (scores.argmax(0) == 2).sum()
    )
    more = dict(scores="float32", calibrate={2: halved.apply})
    map_images(str(where), predict, tmp_path / "more", **how, **more)
    with rasterio.open(tmp_path / "more" / "a" / "labels.tif") as file:
        assert np.array_equal(file.read(1), said)
    with rasterio.open(tmp_path / "more" / "a" / "scores.tif") as file:
        there = file.read()
    assert there[2] == pytest.approx(halved.apply(stored[2]), abs=1e-3)
    assert there[1] == pytest.approx(stored[1], abs=1e-3)
    assert len(truth) == 80


def test_a_map_by_other_thresholds_is_not_written_over(tmp_path):
    from rvtutorial.engine.pipeline import _decided
    from rvtutorial.engine.prediction import map_images

    scenes = {"a": four_classes(3, 80)}
    folder = folder_of(tmp_path / "four", scenes, null=None)
    file = write_thresholds(
        tune(folder, classes=["road"], draws=0, blocks=None), folder, tmp_path
    )
    where = write_raster(tmp_path / "a.tif", scenes["a"][1])
    how = dict(classes=list(FOUR), chip_sz=32, bands=[0, 1, 2, 3], polygons=False)
    labels = tmp_path / "maps" / "a" / "labels.tif"

    def predict(chips):
        return chips.transpose(0, 3, 1, 2).astype(np.float32)

    def map_by(thresholds):
        asked = _decided(folder, list(FOUR), None, thresholds, "mean", False)
        map_images(str(where), predict, tmp_path / "maps", blend="mean", **asked, **how)
        with rasterio.open(labels) as made:
            return made.tags()

    tags = map_by((file, None))
    assert tags["thresholds_file"] == str(file)
    assert tags["thresholds_sha256"] == sha256(file.read_bytes()).hexdigest()
    there = labels.read_bytes()
    for other in ((file, {"road": 0.01}), None):
        with pytest.raises(ValueError, match="holds a map by other thresholds"):
            map_by(other)
        assert labels.read_bytes() == there
    assert map_by((file, None)) == tags  # the same is made anew
    new = import_module("rvtutorial.engine").apply_thresholds(
        folder, file, tmp_path / "new"
    )
    with rasterio.open(new.prediction("a")) as made:
        assert tags.items() & made.tags().items() >= {
            (k, v) for k, v in tags.items() if k.startswith("thresholds_")
        }


def test_a_map_is_drawn_over_its_image_or_in_grey(tmp_path):
    import rasterio

    from rvtutorial.figures.drawn import draw_map

    labels = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    image = np.arange(18, dtype=np.uint16).reshape(3, 2, 3) * 100
    where = write_raster(tmp_path / "image.tif", image)
    path = write_raster(tmp_path / "map" / "labels.tif", labels)
    names = ["building", "background", "road"]
    with rasterio.open(path, "r+") as file:
        file.update_tags(classes=json.dumps(names), image=str(where))
    with rasterio.open(draw_map(path.parent, style="grey")) as file:
        assert file.read(1).tolist() == [[128, 0, 255], [0, 255, 128]]
    first, second = draw_map(path.parent), draw_map(path.parent)
    assert first != second and first.name.startswith("overlay_2")
    with rasterio.open(first) as file:
        drawn = file.read()
    plain = np.ptp(drawn[:, [0, 1], [1, 0]], axis=0)
    assert drawn.shape == (3, 2, 3) and (plain < 60).all()  # image alone: nearly grey
    assert drawn[0, 0, 0] > drawn[2, 0, 0] + 60  # building is orange
    with rasterio.open(path, "r+") as file:
        file.update_tags(null_class="road")
    with rasterio.open(draw_map(path.parent, style="grey")) as file:
        assert file.read(1).tolist() == [[255, 0, 0], [0, 0, 255]]
    with pytest.raises(ValueError, match="one of overlay, grey"):
        draw_map(path.parent, style="red")
    other = write_raster(tmp_path / "other.tif", image[:, :1])
    with pytest.raises(ValueError, match="and its map"):
        draw_map(path.parent, other)
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


# --- buckets ---------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch):
    pytest.importorskip("obstore")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in dict(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1", AWS_ALLOW_HTTP="true",
    ).items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="sandbox")
    yield "s3://sandbox"
    server.stop()


@pytest.fixture
def gs(monkeypatch):
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server(
        "127.0.0.1", port, in_memory=True, default_bucket="sandbox"
    )
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    yield "gs://sandbox"
    server.stop()


FLOW = """
import json, shutil, sys
from pathlib import Path
from click.testing import CliRunner
from rvtutorial.cli import _cli
from rvtutorial.core.remote import fetch, store

bucket, here = sys.argv[1], Path(sys.argv[2])
said = {}
for path in sorted(p for p in (here / "run").rglob("*") if p.is_file()):
    inside = str(path.parent.relative_to(here / "run"))
    store(path, f"{bucket}/models/mine/{inside}".rstrip("/."))
for path in sorted((here / "data").iterdir()):
    store(path, f"{bucket}/datasets/city/validation")
for name, act in (
    ("twice", lambda: store(here / "run/pipeline-config.json", f"{bucket}/models/mine")),
    ("none", lambda: fetch(f"{bucket}/models/none", here / "none")),
):
    try:
        act()
    except OSError as error:
        said[name] = f"{type(error).__name__}: {error}"
shutil.rmtree(here / "data")
words = [f"{bucket}/models/mine", "--dataset-directory", f"{bucket}/datasets/city/validation"]
if bucket.startswith("gs"):  # as the old program was called
    words = ["--gcp-bucket", bucket, "--model-id", "mine"]
    words += ["--dataset-directory", "city/validation"]
done = CliRunner().invoke(_cli, ["thresholds", *words])
said |= dict(code=done.exit_code, output=done.output)
fetch(f"{bucket}/models/mine", here / "got", leave=("predict/*",))
print(json.dumps(said))
"""


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_folders_are_fetched_and_files_stored_once(
    kind, request, tmp_path, monkeypatch
):
    "In a process of its own: what speaks with buckets has threads that outlive a test."
    import subprocess
    import sys

    bucket = request.getfixturevalue(kind)
    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    run = run_of(tmp_path)
    assert is_remote(bucket) and not is_remote(run)
    cmd = [sys.executable, "-c", FLOW, bucket, str(tmp_path)]
    done = subprocess.run(cmd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0, said["output"]
    assert "FileExistsError" in said["twice"] and "is there already" in said["twice"]
    assert (
        "FileNotFoundError" in said["none"]
        and "models/none holds nothing" in said["none"]
    )
    (where,) = [line for line in said["output"].splitlines() if line.startswith(bucket)]
    assert where.startswith(f"{bucket}/models/mine/model_thresholds_")
    got = tmp_path / "got"
    (path,) = got.glob("model_thresholds_*.yaml")
    assert not (got / "predict").exists()
    made = read_thresholds(path)
    assert 0.1 < made.thresholds["building"].threshold < 0.2
    about = yaml.safe_load(path.read_text())["metadata"]
    assert about["model_id"] == "mine"
    assert about["gcp_bucket"] == (bucket if kind == "gs" else None)


def test_what_changed_or_went_at_an_address_does_so_here(tmp_path):
    there, here = tmp_path / "there", tmp_path / "cache" / "here"
    (there / "a").mkdir(parents=True)
    for name in ("x.txt", "a/y.txt", "a/z.log"):
        (there / name).write_text("old")
    uri = f"file://{there}"
    fetch(uri, here, ("*.log",))
    (here / "mine.txt").write_text("of this machine")
    copied = (here / "x.txt").stat().st_mtime_ns
    (there / "a" / "y.txt").write_text("new")  # of the same size
    os.utime(there / "a" / "y.txt", (1, 1))
    fetch(uri, here, ("*.log",))
    assert (here / "a" / "y.txt").read_text() == "new"
    assert (here / "x.txt").stat().st_mtime_ns == copied  # not again
    (there / "x.txt").unlink()
    assert fetch(uri, here) == here
    names = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    assert names == {"mine.txt", "a/y.txt", "a/z.log"}
    one = tmp_path / "cache" / "y.txt"
    assert fetch(f"{uri}/a/y.txt", one, (".*",)) == one and one.read_text() == "new"
    shutil.rmtree(there)
    with pytest.raises(FileNotFoundError, match="holds nothing, or is not there"):
        fetch(f"{uri}/a/y.txt", one)
    assert not one.exists()


@pytest.mark.parametrize("kind", ["run", "train", "bundle"])
def test_the_file_goes_beside_a_remote_model_or_where_it_is_said(
    tmp_path, monkeypatch, kind
):
    from rvtutorial.engine import fitting

    monkeypatch.setenv("RVTUTORIAL_SCRATCH", str(tmp_path / "scratch"))
    run = run_of(tmp_path)
    model, home = run, run
    for name in ("checkpoint.pt", "train/last-model.pth"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(bytes(10))
    if kind != "run":
        bundle = run / "train" / "model-bundle.zip"
        (run / "bundle" / "model-bundle.zip").rename(bundle)
    if kind == "bundle":
        model, home = bundle, bundle.parent
        files = fitting.score_files(run)
        monkeypatch.setattr(fitting, "_scored", lambda *given: files)
    how = dict(draws=0, blocks=None)
    _, where = fitting.fit_thresholds(f"file://{model}", **how)
    (file,) = home.glob("model_thresholds_*.yaml")
    assert where == f"file://{file}"
    bundles = read_thresholds(file).digests["bundles"]
    where = dict(run="bundle/", train="train/", bundle="")[kind]
    assert list(bundles) == [f"{where}model-bundle.zip"]
    _, where = fitting.fit_thresholds(f"file://{model}", out=tmp_path / "mine", **how)
    assert Path(where).parent == tmp_path / "mine" and Path(where).is_file()
    (tmp_path / "far").mkdir()
    _, where = fitting.fit_thresholds(model, out=f"file://{tmp_path}/far", **how)
    assert where.startswith(f"file://{tmp_path}/far/model_thresholds_")
    assert len(list(home.glob("model_thresholds_*.yaml"))) == 1
    cached = {p.name for p in (tmp_path / "scratch").rglob("*.p*t*")}
    assert not cached & {"checkpoint.pt", "last-model.pth"}


# --- as a job --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_job_counts_parts_and_puts_them_together(tmp_path):
    import subprocess
    import sys

    from rvtutorial.core.names import packaged
    from rvtutorial.core.records import write_json
    from rvtutorial.runs import Run

    model, book = run_of(tmp_path), packaged("jobs", "fit_thresholds")

    def job(name, **params):
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "params.json", {"model": str(model), **params})
        cmd = [
            sys.executable,
            "-m",
            "rvtutorial.hpc.runner",
            folder,
            "--notebook",
            book,
        ]
        subprocess.run(list(map(str, cmd)), capture_output=True)
        return Run(folder)

    parts = [job(f"p{i}", part=f"{i}/2") for i in (1, 2)]
    assert [one.state for one in parts] == ["succeeded"] * 2
    folders = ",".join(str(one.path) for one in parts)
    late = job("late", part="1/1", split="test")
    how = dict(on_test=True, over="mean", classes="building", unscored="leave out")
    final = job("final", counts=str(late.path), **how)
    assert final.state == "succeeded" and (final.path / "thresholds.png").is_file()
    (file,) = model.glob("model_thresholds_*.yaml")
    assert read_thresholds(file).split == "test"
    file.unlink()
    whole = job("whole", counts=folders, metric="f1", message="of an array")
    assert whole.state == "succeeded" and (whole.path / "thresholds.png").is_file()
    (file,) = model.glob("model_thresholds_*.yaml")
    made = read_thresholds(file)
    assert made.metric == "f1" and sorted(made.scenes) == ["10", "11", "9"]
    wrong = job("wrong", metric="precision")
    assert wrong.state == "failed"

"""The engine: the same seed gives the same bytes, nothing is done twice, nothing is skipped silently."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
import rasterio.vrt
import torch

from rvtutorial.config import get_config
from rvtutorial.core.files import Busy
from rvtutorial.core.progress import ProgressLine
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.engine import learner, pipeline
from rvtutorial.engine.reading import SceneStore
from rvtutorial.runs import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "smoke"
    return make_sample_scenes(folder, n_train=3, n_val=2, n_test=1, size=150)


SMALL = dict(chip_sz=64, stride_length=60, max_windows=2, batch_sz=3, epochs=2)


def configure(data, folder, **changes):
    return get_config("inprocess", folder, "smoke", data, **SMALL | changes)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    "A finished run."
    folder = tmp_path_factory.mktemp("runs") / "a"
    pipeline.run(configure(data, folder), progress=False)
    return Run(folder)


@pytest.fixture
def copied(finished, tmp_path):
    "A finished run that a test may damage, at its own place."
    kept = tmp_path / "kept"
    shutil.copytree(finished.path, kept)
    yield finished
    shutil.rmtree(finished.path)
    shutil.copytree(kept, finished.path)


def spoken(config, **options):
    "What a call of the engine prints."
    with contextlib.redirect_stdout(io.StringIO()) as out:
        pipeline.run(config, **options)
    return out.getvalue()


def produce(run):
    "Weights, predictions and log of a run, without the log's time columns."
    log = run.log().drop(columns=["train_time", "valid_time"])
    files = {p.name: p.read_bytes() for p in [run.path / "train" / "last-model.pth"]}
    for path in sorted((run.path / "predict").rglob("*.*")):
        files[str(path.relative_to(run.path))] = path.read_bytes()
    return files | {"log": log.to_csv(index=False)}


# --- the same and not the same


@pytest.mark.slow
def test_one_seed_gives_the_same_bytes(data, finished, tmp_path):
    torch.rand(7), np.random.rand(7)  # whatever happened before does not matter
    pipeline.run(configure(data, tmp_path / "b"), progress=False)
    first, second = produce(finished), produce(Run(tmp_path / "b"))
    assert len(first) == 2 + 3 * 3
    assert first == second


@pytest.mark.slow
def test_another_seed_gives_other_weights(data, finished, tmp_path):
    pipeline.run(configure(data, tmp_path / "b", seed=1), ["train"], progress=False)
    one, two = (read_weights(r) for r in (finished, Run(tmp_path / "b")))
    assert not torch.equal(one["first.0.weight"], two["first.0.weight"])


def read_weights(run):
    return torch.load(run.path / "train" / "last-model.pth")


@pytest.mark.slow
def test_a_training_that_was_cut_goes_on_and_ends_the_same(data, finished, tmp_path):
    cfg, run = configure(data, tmp_path / "b"), Run(tmp_path / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "_tell_epoch", lambda *a: os.kill(os.getpid(), 2))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(cfg)
    assert run.state == "interrupted" and len(run.log()) == 1
    assert (run.path / "checkpoint.pt").exists()
    pipeline.run(cfg, progress=False)
    assert run.state == "succeeded" and not (run.path / "checkpoint.pt").exists()
    assert produce(run) == produce(finished)


@pytest.mark.slow
def test_a_pause_changes_nothing_in_the_end(data, finished, tmp_path):
    cfg, run = configure(data, tmp_path / "b"), Run(tmp_path / "b")
    pipeline.run(cfg, progress=False, pause=1)
    assert (run.state, run.paused, len(run.log())) == ("paused", 1, 1)
    assert not (run.path / "predict").exists()
    pipeline.run(cfg, progress=False, pause=1)  # asked for no more: nothing is done
    assert (run.state, len(run.log())) == ("paused", 1)
    pipeline.run(cfg, progress=False)
    assert (run.state, run.paused) == ("succeeded", None)
    assert produce(run) == produce(finished)
    with pytest.raises(ValueError, match="pause must be after 1 epoch"):
        pipeline.run(configure(data, tmp_path / "c"), progress=False, pause=-1)
    with pytest.raises(ValueError, match="pause needs the fast engine"):
        pipeline.run(configure(data, tmp_path / "c"), engine="stock", pause=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_exits_with_75(data, finished, tmp_path, name):
    cfg, run = configure(data, tmp_path / "b"), Run(tmp_path / "b")
    step = pipeline.FastLearner.step

    def stepped(self, *args):
        step(self, *args)
        if (self.epoch, self.batch) == (1, 0):
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.FastLearner, "step", stepped)
        with pytest.raises(SystemExit) as exit:
            pipeline.run(cfg, progress=False)
    assert exit.value.code == 75
    assert run.state == "interrupted" and name in run.manifest["went"]["why"]
    assert "going on in epoch 2" in spoken(cfg)
    assert produce(run) == produce(finished)


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path):
    cfg = configure(data, tmp_path / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "_tell_epoch", lambda *a: os.kill(os.getpid(), 2))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(cfg)
    with pytest.raises(ValueError, match=r"digest is \w{16} .* this one's is \w{16}"):
        pipeline.run(cfg, progress=False, checkpoint="best")


# --- one at a time

ELSEWHERE = """
import os, sys, time
sys.path.insert(0, {tests!r})
from rvtutorial.engine import learner, pipeline
from pathlib import Path
from test_engine import configure

def wait(*args):
    print("inside", flush=True)
    time.sleep(120)

{what}
"""


def elsewhere(what, **values):
    "Another process that stops in the middle of a call of the engine."
    code = ELSEWHERE.format(
        tests=str(Path(__file__).parent), what=what.format(**values)
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line == "inside\n":
            return process
    raise AssertionError(f"ended with {process.wait()}")


@pytest.mark.slow
def test_two_cannot_run_in_one_folder(data, finished, tmp_path):
    "The second is told who is inside and changes nothing; a killed one blocks nobody."
    what = "learner._tell_epoch = wait\n"
    what += "pipeline.run(configure(Path({data!r}), Path({run!r})))"
    other = elsewhere(what, data=str(data), run=str(tmp_path / "b"))
    cfg, run = configure(data, tmp_path / "b"), Run(tmp_path / "b")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    try:
        with pytest.raises(Busy, match=f"process {other.pid} on .* since 20") as err:
            pipeline.run(cfg, progress=False)
        assert str(run.path) in str(err.value) and run.state == "running"
        after = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
        assert {p for p in before if before[p] != after.get(p)} <= {
            run.path / ".run.lock"
        }
    finally:
        other.kill(), other.wait()
    pipeline.run(cfg, progress=False)
    assert run.state == "succeeded" and len(run.log()) == 2
    assert len((run.path / "train/log.csv").read_text().splitlines()) == 3
    assert produce(run) == produce(finished)
    assert not (run.path / ".writing.lock").exists()


@pytest.mark.slow
def test_two_cannot_predict_into_one_folder(data, finished, tmp_path):
    what = "pipeline.ProgressLine.reach = wait\n"
    what += "pipeline.predict({run!r}, {data!r}, {out!r})"
    images, out = str(data / "val"), tmp_path / "maps"
    given = dict(data=images, run=str(finished.path), out=str(out))
    other = elsewhere(what, **given)
    try:
        halves = {p.name for p in out.rglob(".*.tif")}
        with pytest.raises(Busy, match=f"process {other.pid} on"):
            pipeline.predict(finished.path, images, out, progress=False)
        assert {p.name for p in out.rglob(".*.tif")} >= halves
    finally:
        other.kill(), other.wait()
    told = pipeline.predict(finished.path, images, out, progress=False)
    assert len(told) == 2 and all(Path(f, "labels.tif").exists() for f in told.folder)
    assert not list(out.glob(".*"))


def as_first_version(path):
    "Rewrite a checkpoint as version 1 wrote it."
    state = torch.load(path, weights_only=True) | {"version": 1}
    state["random"]["numpy"] = np.random.get_state()  # a numpy array, no plain value
    torch.save(state, path)


@pytest.mark.slow
@pytest.mark.parametrize("trust", [False, True])
def test_a_checkpoint_of_the_first_version(trust, data, finished, tmp_path):
    "Without trust the training begins anew, and that is said; the end is the same."
    cfg, run = configure(data, tmp_path / "b"), Run(tmp_path / "b")
    pipeline.run(cfg, progress=False, pause=1)
    as_first_version(run.path / "checkpoint.pt")
    said = spoken(cfg, trust=trust)
    assert ("training begins anew" in said) != trust
    assert ("going on in epoch 2" in said) == trust
    if not trust:
        assert str(run.path / "checkpoint.pt") in said and "trust=True" in said
        kept = learner.Checkpoint(run.path / "checkpoint.old.pt", "")
        assert kept.too_old and kept.path.name in said  # nothing is lost
        assert produce(run) == produce(finished)
    assert run.state == "succeeded" and len(run.log()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../x", "..", "/x", "a/../.."])
def test_a_scene_whose_name_leads_out_is_refused(name, data, tmp_path):
    cfg = configure(data, tmp_path / "runs" / "b")
    before = {p for p in tmp_path.rglob("*") if p.name[0] != "."}
    (scene,), windows = cfg.dataset.test_scenes, cfg.backend.data.sampling
    windows[name] = windows[scene.id]
    scene.id = name
    with pytest.raises(ValueError, match="the id of a scene is .* leads out of"):
        pipeline.run(cfg, progress=False)
    assert {p for p in tmp_path.rglob("*") if p.name[0] != "."} == before


@pytest.mark.slow
def test_a_prediction_that_was_cut_keeps_what_it_has(data, copied):
    cfg = configure(data, copied.path)
    before, gone = produce(copied), copied.prediction(copied.scene_ids("test")[0])
    times = {p: p.stat().st_mtime_ns for p in copied.path.rglob("labels.tif")}
    gone.unlink()
    copied.update("went", stages=copied.manifest["went"]["stages"][:1])
    pipeline.run(cfg, progress=False)
    assert produce(copied) == before
    kept = [p for p in times if p.stat().st_mtime_ns == times[p]]
    assert len(kept) == len(times) - 1


# --- the folder


def test_the_stock_files_are_there(finished):
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*")}
    for name in (
        "pipeline-config.json", "run.json", "bundle/model-bundle.zip",
        "train/log.csv", "train/last-model.pth", "train/model-bundle.zip",
        "train/learner-config.json", "train/valid_metrics.json",
        "train/modules/unet/hubconf.py", "eval/validation_scenes/eval.json",
        "eval/test_scenes/eval.json",
    ):  # fmt: skip
        assert name in names
    for scene in finished.scene_ids("validation") + finished.scene_ids("test"):
        assert finished.prediction(scene).exists() and finished.scores(scene).exists()


def test_the_log_has_raster_visions_columns(finished):
    log = finished.log()
    assert list(log.columns[:4]) == ["epoch", "train_loss", "train_time", "val_loss"]
    assert {"building_f1", "background_f1", "avg_f1", "valid_time"} <= set(log.columns)
    assert pd.to_timedelta(log.train_time).dt.total_seconds().gt(0).all()


def test_run_json_says_what_with_what_and_how(finished):
    made, went = finished.manifest["made_with"], finished.manifest["went"]
    assert made["versions"]["rastervision"] == "0.31.1"
    assert made["threads"] == torch.get_num_threads() and made["device"]
    assert [s["name"] for s in went["stages"]] == ["train", "predict", "eval", "bundle"]
    assert (
        all(s["seconds"] > 0 for s in went["stages"]) and went["peak_memory_mb"] > 100
    )
    assert went["state"] == "succeeded"
    results = finished.manifest["results"]
    assert set(results) == {"validation", "test"} and "iou" in results["test"]
    asked = finished.manifest["asked"]
    assert asked["data"]["digest"] and asked["windows_digest"] and asked["seed"] == 0


def test_null_is_never_predicted(finished):
    for scene in finished.scene_ids("validation"):
        with rasterio.open(finished.prediction(scene)) as file:
            assert set(np.unique(file.read(1))) <= {0, 1}
        with rasterio.open(finished.scores(scene)) as file:
            assert file.dtypes[0] == "uint8" and not file.read(3).any()


def test_no_onnx_unless_asked(finished):
    names = zipfile.ZipFile(finished.path / "train" / "model-bundle.zip").namelist()
    assert "model.pth" in names and not any("onnx" in name for name in names)


@pytest.mark.slow
def test_onnx_if_asked_and_without_a_word(data, tmp_path, capfd):
    cfg = configure(data, tmp_path / "run", onnx=True, epochs=1)
    pipeline.run(cfg, ["train"], progress=False)
    bundle = zipfile.ZipFile(tmp_path / "run" / "train" / "model-bundle.zip")
    assert "model.onnx" in bundle.namelist()
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and "onnx" not in said.lower(), said


@pytest.mark.slow
def test_a_bundle_predicts_in_plain_raster_vision(finished, tmp_path):
    scene = finished.scene_ids("validation")[0]
    shutil.copy(finished.path / "bundle" / "model-bundle.zip", tmp_path / "away.zip")
    shutil.copy(finished.image(scene), tmp_path / "image.tif")
    code = (
        "import sys; sys.modules['rvtutorial'] = None\n"
        "from rastervision.core.predictor import Predictor\n"
        "Predictor('away.zip', 'tmp').predict(['image.tif'], 'out')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with rasterio.open(tmp_path / "out" / "labels.tif") as a:
        with rasterio.open(finished.prediction(scene)) as b:
            same = (a.read(1) == b.read(1)).mean()
    print(f"{same:.2%} of the labels are stock's, in float32")  # ours may be bfloat16
    assert same > 0.97


def test_a_moved_run_goes_on(data, finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "moved")
    shutil.copytree(data, tmp_path / "scenes")
    said = spoken(configure(tmp_path / "scenes", tmp_path / "moved"))
    assert said.count("done already") == 4


# --- running again


def test_what_is_done_is_not_done_again(data, finished):
    before = produce(finished)
    said = spoken(configure(data, finished.path))
    assert said.count("done already") == 4
    assert produce(finished) == before


def test_a_hidden_class_is_said_before_labels_are_read(
    data, copied, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(
        pipeline, "_hidden_classes", lambda data: asked.append(data) or ["a tag"]
    )
    cfg = configure(data, copied.path)
    pipeline.run(cfg, progress=False)  # nothing is left to do
    assert not asked and "a tag" not in capsys.readouterr().err
    shutil.rmtree(copied.path / "eval")
    pipeline.run(cfg, ["eval"], progress=False)
    assert len(asked) == 1 and "a tag" in capsys.readouterr().err


@pytest.mark.slow
def test_missing_products_are_made_again(data, copied):
    before = produce(copied)
    shutil.rmtree(copied.path / "predict")
    said = spoken(configure(data, copied.path))
    assert "train: done already" in said and "predict: done" not in said
    assert "eval: done" not in said  # what comes after it is done again too
    assert produce(copied) == before


def test_predicting_again_does_not_average(data, copied):
    before = produce(copied)
    copied.update("went", stages=copied.manifest["went"]["stages"][:1])
    pipeline.run(configure(data, copied.path), ["predict"], progress=False)
    assert produce(copied) == before


def test_stages_run_in_their_order(data, copied):
    copied.update("went", stages=copied.manifest["went"]["stages"][:1])
    said = spoken(configure(data, copied.path), commands="eval predict")
    assert said.index("predict") < said.index("eval") and "bundle" not in said
    with pytest.raises(ValueError, match="did you mean 'predict'"):
        pipeline.run(configure(data, copied.path), ["predictt"], progress=False)


# --- what is refused


def test_a_missing_label_is_an_error_that_names_it(data, copied):
    cfg = configure(data, copied.path)
    scene = cfg.dataset.validation_scenes[0]
    scene.label_source.raster_source.vector_source.uris = "/nowhere/labels_7.geojson"
    copied.update("went", stages=copied.manifest["went"]["stages"][:2])
    with pytest.raises(FileNotFoundError, match="labels_7.geojson"):
        pipeline.run(cfg, ["eval"], progress=False)
    assert copied.state == "failed"


def test_another_configuration_in_the_same_folder_is_refused(data, finished):
    cfg = configure(data, finished.path)
    cfg.backend.solver.lr = 0.5
    before = (finished.path / "run.json").read_text()
    with pytest.raises(ValueError, match="another configuration"):
        pipeline.run(cfg, progress=False)
    with pytest.raises(ValueError, match="seed 0, got 5"):
        pipeline.run(configure(data, finished.path), seed=5, progress=False)
    assert (finished.path / "run.json").read_text() == before


def test_a_failure_is_written_down(data, tmp_path):
    cfg = configure(data, tmp_path / "run", lr=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.FastLearner, "train_step", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run(cfg, progress=False)
    went = Run(tmp_path / "run").manifest["went"]
    assert went["state"] == "failed" and "ZeroDivisionError" in went["why"]
    assert went["stages"] == []


@pytest.mark.slow
def test_batches_without_a_labelled_pixel_do_no_harm(data, tmp_path):
    cfg = configure(data, tmp_path / "run", batch_sz=1, max_windows=2)
    rasters = iter(cfg.dataset.train_scenes + cfg.dataset.validation_scenes)
    scene = next(rasters)
    with rasterio.open(scene.raster_source.uris) as file:
        profile = file.profile | {"count": 1, "dtype": "uint8"}
    blank = tmp_path / "blank.tif"
    with rasterio.open(blank, "w", **profile) as file:
        file.write(np.full((profile["height"], profile["width"]), 2, "uint8"), 1)
    from rvtutorial.config import make_classes, make_label_raster

    for scene in cfg.dataset.train_scenes[:1] + cfg.dataset.validation_scenes[:1]:
        scene.label_source.raster_source = make_label_raster(blank, make_classes())
    pipeline.run(cfg, ["train"], progress=False)
    log = Run(tmp_path / "run").log()
    assert np.isfinite(log[["train_loss", "val_loss"]].to_numpy()).all()
    weights = read_weights(Run(tmp_path / "run"))
    assert all(
        torch.isfinite(w).all() for w in weights.values() if w.is_floating_point()
    )


@pytest.mark.slow
def test_raster_visions_own_code_on_request(data, tmp_path):
    run = Run(tmp_path / "run")
    pipeline.run(configure(data, run.path, engine="stock", epochs=1), progress=False)
    assert run.state == "succeeded" and run.results["validation"]["f1"] is not None
    assert "iou" not in run.evaluation("validation")["overall"][0]["metrics"]
    with pytest.raises(ValueError, match="engine must be fast or stock"):
        pipeline._chosen(run, engine="quick")


def test_the_mean_of_the_last_epochs(data, tmp_path):
    "Of the second half, whether the training was interrupted or not."
    made = {}
    for name in ("last", "mean", "paused"):
        keep = "last" if name == "last" else "mean"
        cfg = configure(data, tmp_path / name, epochs=4, checkpoint=keep)
        cfg.backend.save_all_checkpoints = True
        if name == "paused":
            pipeline.run(cfg, ["train"], progress=False, pause=3)
        pipeline.run(cfg, ["train"], progress=False)
        made[name] = torch.load(tmp_path / name / "train" / "last-model.pth")
    before = torch.load(tmp_path / "last/train/checkpoints/model-ckpt-epoch-2.pth")
    for key, found in made["mean"].items():
        assert torch.equal(found, made["paused"][key])
        if found.is_floating_point():
            mean = (before[key] + made["last"][key]) / 2
            assert torch.allclose(found, mean, atol=1e-6), key
    assert any(not torch.equal(made["last"][k], v) for k, v in made["mean"].items())
    assert Run(tmp_path / "mean").manifest["went"]["training"]["averaged"] == 2
    with zipfile.ZipFile(tmp_path / "mean/train/model-bundle.zip") as bundle:
        held = torch.load(io.BytesIO(bundle.read("model.pth")))
    assert all(torch.equal(held[k], v) for k, v in made["mean"].items())


def test_an_early_end_leaves_nothing_to_average(data, tmp_path, capsys):
    how = dict(epochs=40, lr=0.05, checkpoint="mean", patience=1)
    pipeline.run(configure(data, tmp_path / "run", **how), ["train"])
    told = Run(tmp_path / "run").manifest["went"]["training"]
    assert told["stopped_early"] and told["epochs"] < 20 and told["averaged"] == 0
    assert "ended in the first half" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_epoch_and_an_early_end(data, tmp_path):
    run = Run(tmp_path / "run")
    cfg = configure(data, run.path, epochs=9, lr=0.05, checkpoint="best", patience=1)
    pipeline.run(cfg, progress=False)
    log, told = run.log(), run.manifest["went"]["training"]
    best = int(log.val_loss.idxmin())
    assert told["stopped_early"] and told["epochs"] == len(log) < 9
    assert told["best"]["epoch"] == best == len(log) - 2
    assert told["best"]["value"] == pytest.approx(log.val_loss.min())
    weights = [run.path / "train" / f"{n}-model.pth" for n in ("best", "last")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_report_of_speed(finished):
    speed = finished.manifest["went"]["speed"]
    assert set(speed) == {"train", "validate", "predict"}
    for numbers in speed.values():
        assert numbers["chips_per_s"] > 0 and 0 <= numbers["waiting_share"] <= 1
        assert numbers["in_words"].endswith(".")
    assert 0 < speed["train"]["peak_share"] < 1
    assert finished.manifest["went"]["paths"]["training"] == "fast"


def test_many_runs_share_what_they_read(data, tmp_path):
    store = SceneStore(budget_mb=50)
    configs = [
        configure(data, tmp_path / f"{lr}", lr=lr, epochs=1) for lr in (1e-3, 1e-4)
    ]
    configs.append(configure(data, tmp_path / "odd", epochs=1))
    configs[-1].dataset.train_scenes[0].raster_source.uris = "/nowhere/image.tif"
    for config in configs[:2]:
        pipeline.run(config, progress=False, store=store)
    with pytest.raises(FileNotFoundError, match="/nowhere/image.tif"):
        pipeline.run(configs[2], progress=False, store=store)
    assert all(Run(tmp_path / f"{lr}").state == "succeeded" for lr in (1e-3, 1e-4))
    assert len(store.held) <= 2 * 6  # an image and labels of each scene, once


# --- new images


@pytest.mark.slow
def test_new_images_become_maps(data, finished, tmp_path):
    images = sorted((data / "test").glob("*.tif")) + sorted(
        (data / "val").glob("*.tif")
    )
    holes = tmp_path / "holes.tif"
    with rasterio.open(images[0]) as file:
        pixels, profile = file.read(), file.profile
    pixels[:, :40] = 0
    with rasterio.open(holes, "w", **profile | {"nodata": 0}) as file:
        file.write(pixels)
    models = [finished.path, finished.path / "bundle" / "model-bundle.zip"]
    maps = [tmp_path / "one", tmp_path / "two"]
    for model, out in zip(models, maps, strict=True):
        told = pipeline.predict(model, [*images, holes], out, progress=False)
        assert len(told) == 4 and all(Path(f).is_dir() for f in told.folder)
    a, b = (sorted(m.rglob("labels.tif")) for m in maps)
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    with rasterio.open(maps[0] / "holes" / "labels.tif") as file:
        assert file.nodata == 255 and (file.read(1)[:40] == 255).all()
        assert (file.read(1)[60:] != 255).all() and file.crs == profile["crs"]
    shapes = gpd.read_file(maps[0] / "holes" / "polygons.gpkg")
    assert set(shapes["class"]) <= {"building"} and shapes.crs == profile["crs"]
    with pytest.raises(FileNotFoundError, match="no trained model"):
        pipeline.predict(tmp_path, images, tmp_path / "three")


def seen_sides(monkeypatch):
    "The sides of all chips that the network sees from now on."
    sides, predict = set(), pipeline.FastLearner.predict

    def noted(self, x, **how):
        sides.update(x.shape[-2:])
        return predict(self, x, **how)

    monkeypatch.setattr(pipeline.FastLearner, "predict", noted)
    return sides


@pytest.mark.slow
def test_chips_of_any_size_come_to_the_network_as_they_are(
    data, finished, tmp_path, monkeypatch, capfd
):
    "At chip_sz 64 it was trained; larger chips were shrunk to that once."
    image, sides = next((data / "test").glob("*.tif")), seen_sides(monkeypatch)
    for chip_sz in (None, 64, 96):
        told = pipeline.predict(
            finished.path, image, tmp_path / str(chip_sz), chip_sz=chip_sz,
            progress=False, min_area="9px",
        )  # fmt: skip
        assert sides == {chip_sz or 64} and "resized" not in capfd.readouterr().err
        assert "inside" in told.differs.iloc[0]  # of 150 pixels
        sides.clear()
        with rasterio.open(Path(told.folder.iloc[0]) / "labels.tif") as file:
            assert file.tags()["min_area"] == "9px (9 pixels)"


@pytest.mark.slow
def test_chips_that_are_resized_are_said(data, tmp_path, monkeypatch, capfd):
    config = configure(data, tmp_path / "a", img_sz=96, epochs=1)
    sides = seen_sides(monkeypatch)
    said = spoken(config, commands=["train", "predict"])
    assert "chips of 64 pixels are resized to 96 (img_sz)" in said
    assert "1.50 times" in said and "With img_sz=64 it would" in said
    assert sides == {96}
    image, folders = next((data / "test").glob("*.tif")), iter("bcd")
    for chip_sz, seen, words in (
        (None, 96, "With chip_sz=96"),
        (96, 96, ""),
        (80, 80, ""),
    ):
        sides.clear(), capfd.readouterr()
        out = tmp_path / next(folders)
        pipeline.predict(tmp_path / "a", image, out, chip_sz=chip_sz, progress=False)
        err = capfd.readouterr().err
        assert sides == {seen} and ("are resized" in err) == bool(words)
        assert words in err


@pytest.mark.slow
def test_images_by_address_folder_glob_and_vrt(data, finished, tmp_path):
    folder = data / "val"
    images = sorted(folder.glob("*.tif"))
    vrt = tmp_path / "both.vrt"
    with rasterio.open(images[0]) as file, rasterio.vrt.WarpedVRT(file) as made:
        rasterio.shutil.copy(made, vrt, driver="VRT")
    script = Path(__file__).with_name("range_server.py")
    server = subprocess.Popen(
        [sys.executable, script, folder], stdout=subprocess.PIPE, text=True
    )
    port = int(server.stdout.readline())
    address = f"http://127.0.0.1:{port}/{images[0].name}"
    found = {}
    try:
        for name, what in {
            "file": images[0], "folder": folder, "glob": str(folder / "*.tif"),
            "vrt": vrt, "address": address,
        }.items():  # fmt: skip
            told = pipeline.predict(
                finished.path, what, tmp_path / name, polygons=False, progress=False
            )
            with rasterio.open(Path(told.folder.iloc[0]) / "labels.tif") as file:
                found[name] = len(told), file.read(1)
    finally:
        server.kill()
        server.wait()
    assert found["folder"][0] == len(images)
    for name in ("vrt", "address", "folder"):
        assert (found[name][1] == found["file"][1]).all(), name


# --- a configuration that is not ours


@pytest.mark.slow
def test_a_stock_configuration_without_run_json(data, tmp_path):
    cfg = configure(data, tmp_path / "made", val_windows="random", seed="none")
    cfg.root_uri = str(tmp_path / "stock")
    pipeline.run(cfg, progress=False)
    run = Run(tmp_path / "stock")
    assert run.state == "succeeded" and run.results["validation"]["f1"] is not None
    assert run.manifest["asked"]["seed"] == 0
    assert spoken(cfg).count("done already") == 4


# --- seeds


def test_seed_everything_repeats():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist()

    learner.seed_everything(4, 1)
    first = draw()
    learner.seed_everything(4, 2)
    second = draw()
    learner.seed_everything(4, 1)
    assert draw() == first != second


def test_settings_are_put_back():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pipeline._settings(threads=1):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    ) == before


def test_progress_says_what_is_left():
    said = []
    line = ProgressLine(4, said.append)
    line.start_t -= 100
    metrics = {"train_loss": 0.5, "val_loss": 0.4, "building_f1": 0.25}
    learner._tell_epoch(line, 0, metrics)
    assert said[0].startswith(
        "epoch 1/4  loss 0.500, validation 0.400  building F1 0.250"
    )
    assert said[0].endswith("01:40 passed, 05:00 left")
    learner._tell_step(line, 1, 0.5, 0.3)
    assert len(said) == 1  # not so soon again
    line.last_print_t -= 60
    learner._tell_step(line, 1, 0.5, 0.3)
    assert "epoch 2/4 (50%)" in said[1]


def test_fingerprint_ignores_versions_and_order():
    a = {"x": [1, {"scene_groups": [1, 2], "y": 2}], "plugin_versions": {"a": 1}}
    b = {"x": [1, {"scene_groups": [2, 1], "y": 2}], "plugin_versions": {"a": 2}}
    assert pipeline._fingerprint(a) == pipeline._fingerprint(b)
    assert pipeline._fingerprint({**a, "z": 1}) != pipeline._fingerprint(a)
    moved = {"a": [{"uri": "a", "x": 1}]}, {"a": [{"uri": "b", "x": 1}]}
    assert pipeline._fingerprint(moved[0]) != pipeline._fingerprint(moved[1])
    assert pipeline._fingerprint(moved[0], False) == pipeline._fingerprint(
        moved[1], False
    )


# --- real imagery, by patterns alone


@pytest.mark.slow
def test_the_sample_preset_finds_buildings(tmp_path):
    "What no threshold and no tree on pixels can do (tests of the scenes), it can."
    data = make_sample_scenes(tmp_path / "sample")
    config = get_config("inprocess", tmp_path / "run", "sample", data)
    pipeline.run(config, progress=False)
    run = Run(tmp_path / "run")
    train = next(s for s in run.manifest["went"]["stages"] if s["name"] == "train")
    assert train["seconds"] < 600  # twenty on a quiet laptop, many more on a busy one
    assert run.results["validation"]["f1"] >= 0.80
    assert run.results["test"]["f1"] >= 0.80


@pytest.mark.slow
def test_rio_by_patterns(shared_data, tmp_path):
    """Raster labels of 255 and 0, tiles without data, images of unequal size.

    Seven training tiles are little: 40 short epochs reach a pixel F1 of 0.5 to 0.6 on
    the two dense tiles that are held out.
    """
    from rvtutorial import scenes

    rio = shared_data("spacenet1_rio")
    names = ("images/3band_013022223130_Public_img{id}.tif",)
    names += ("masks/3band_013022223130_Public_img{id}.tif",)
    found = [s for s in scenes.find_scenes(rio, *names) if s.id != "58"]  # all no-data
    held_out = {"52": "val", "64": "test"}
    splits = {"train": [], "val": [], "test": []}
    for scene in found:
        splits[held_out.get(scene.id, "train")].append(scene)
    table = scenes.write_table(splits, tmp_path / "rio.csv")
    values = dict(epochs=40, batch_sz=4, lr=3e-3)
    values |= dict(label_values="255:building,0:background")
    cfg = get_config("inprocess", tmp_path / "run", "sample", table, **values)
    pipeline.run(cfg, progress=False)
    run = Run(tmp_path / "run")
    for split in ("validation", "test"):
        assert run.results[split]["f1"] > 0.4, run.results
        for scene in run.scene_ids(split):
            with rasterio.open(run.image(scene)) as image:
                with rasterio.open(run.prediction(scene)) as drawn:
                    assert (drawn.shape, drawn.transform) == (
                        image.shape,
                        image.transform,
                    )
    print("Rio, pixel F1:", {k: round(v["f1"], 3) for k, v in run.results.items()})


def cut(image, label, out, places):
    "Cut one scene into windows with files of their own: {split: [(row, column), ...]}."
    import geopandas
    from rasterio.windows import Window
    from shapely.geometry import box

    shapes = geopandas.read_file(label)
    for split, corners in places.items():
        for row, column in corners:
            number = f"{row}{column}"
            target = out / split
            target.mkdir(parents=True, exist_ok=True)
            with rasterio.open(image) as file:
                window = Window(column * 210, row * 210, 210, 210)
                profile = file.profile | {"width": 210, "height": 210}
                profile |= {"transform": file.window_transform(window)}
                pixels, bounds = file.read(window=window), file.window_bounds(window)
            name = target / f"RGB-PanSharpen_AOI_2_Vegas_img{number}.tif"
            with rasterio.open(name, "w", **profile) as file:
                file.write(pixels)
            name = target / f"buildings_AOI_2_Vegas_img{number}.geojson"
            shapes.clip(box(*bounds)).to_file(name, driver="GeoJSON")
    return out


@pytest.mark.slow
def test_one_vegas_scene_cut_into_windows(shared_data, tmp_path):
    "Three-dimensional polygons; windows of one scene in three splits, as separate files."
    vegas = shared_data("spacenet2_vegas")
    image = next(vegas.glob("images/*.tif"))
    label = next(vegas.glob("labels/*.geojson"))
    places = {"train": [(0, 0), (0, 1), (1, 0), (2, 1), (1, 2)]}
    places |= {"val": [(1, 1), (0, 2)], "test": [(2, 0), (2, 2)]}
    data = cut(image, label, tmp_path / "cut", places)
    values = dict(epochs=30, batch_sz=4, chip_sz=128, stride_length=120)
    cfg = get_config("inprocess", tmp_path / "run", "sample", data, **values)
    pipeline.run(cfg, progress=False)
    run = Run(tmp_path / "run")
    assert run.state == "succeeded"
    assert min(run.results[split]["f1"] for split in ("validation", "test")) > 0.8
    print("Vegas, pixel F1:", {k: round(v["f1"], 3) for k, v in run.results.items()})

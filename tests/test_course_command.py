"""The course's command line: flags, sweep files, and tiles put together again."""

import json
import re
import shutil
import textwrap

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from rvtutorial.core.hyperparams import Hyperparams
from rvtutorial.course import command, evaluation, tiles
from rvtutorial.course.evaluation import evaluate_tiles
from rvtutorial.data.pairing import Scene
from rvtutorial.runs import Run
from rvtutorial.scenes import write_table
from rvtutorial.sweeps import sweepfile

# --- flags


def test_every_setting_is_a_flag():
    from rvtutorial.course.training import LoopSettings

    known = set(command.flags())
    assert known >= {*Hyperparams.model_fields, *LoopSettings.model_fields, "monitor"}
    assert {*sweepfile.LOOP} == {*LoopSettings.model_fields, "monitor"}
    words = [f"--{name}=1" for name in known]
    assert set(command._given(words)[0]) == known


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model_type=SegmentationCNN --max_epochs=5",
         dict(model="segmentationcnn", epochs="5")),
        ("--model_type=UNet --batch_size=8 --learning_rate=1e-3",
         dict(model="courseunet", batch_sz="8", lr="1e-3")),
        ("--model_type=FCNResnetTransfer --num_workers=2",
         dict(model="fcn", backbone="resnet101", pretrained=True, pretrained_on="coco",
              workers="2")),
        ("--model_type=FCNResnetTransfer --pretrained=false --backbone=resnet50",
         dict(model="fcn", backbone="resnet50", pretrained="false")),
        ("--model_type=FCNResnetTransfer --pretrained_on=imagenet",
         dict(model="fcn", backbone="resnet101", pretrained=True,
              pretrained_on="imagenet")),
        ("--model_type=deeplabv3", dict(model="deeplabv3")),
    ],
)  # fmt: skip
def test_the_courses_names(words, expected):
    assert command._given(words.split())[0] == expected


def test_flags_that_cannot_be(capsys):
    assert command.main(["--model_type=UNett"]) == 1
    assert "no model_type 'UNett'; did you mean 'UNet'?" in capsys.readouterr().err
    assert command.main(["--model_type=UNet", "--model=unet"]) == 1
    assert "one thing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--modle=unet"])
    assert "unrecognized arguments: --modle" in capsys.readouterr().err


# --- sweep files


def plan(folder, text):
    path = folder / "sweeps.yml"
    path.write_text(textwrap.dedent(text))
    return sweepfile.SweepFile.read(path, command._entry, command.NOTEBOOK)


COURSE = """\
    program: scripts/train_sweeps.py
    name: course
    project: segmentation
    method: grid
    metric:
      name: macro_iou
      goal: maximize
    parameters:
      model_type:
        values: [SegmentationCNN, UNet]
      learning_rate:
        values: [1e-3, 1e-2]
      max_epochs:
        value: 2
      batch_size:
        value: 4
      wandb:
        value: "off"
"""


def test_a_sweep_file_of_the_course(tmp_path):
    found = plan(tmp_path, COURSE)
    assert found.fixed == {"epochs": 2, "batch_sz": 4, "wandb": "off"}
    assert found.tried["model"] == ["segmentationcnn", "courseunet"]
    assert found.tried["lr"] == [1e-3, 1e-2]
    assert len(found.trials()) == 4 and found.program == "train_lightning.ipynb"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, dict(backbone="resnet101", pretrained=True, pretrained_on="coco")),
        ({"backbone": "resnet50", "pretrained_on": "imagenet"},
         dict(backbone="resnet50", pretrained=True, pretrained_on="imagenet")),
        ({"pretrained": False}, dict(backbone="resnet101", pretrained=False)),
    ],
)  # fmt: skip
def test_a_sweep_of_the_transfer_begins_with_trained_weights(more, expected, tmp_path):
    parameters = {"model_type": {"value": "FCNResnetTransfer"}}
    parameters |= {k: {"value": v} for k, v in more.items()}
    content = dict(parameters=parameters | {"lr": {"values": [1e-3, 1e-2]}})
    found = plan(tmp_path, json.dumps(content))
    assert found.fixed == {"model": "fcn", **expected}


def test_a_flag_wins_over_what_follows_from_the_network(tmp_path, monkeypatch):
    import rvtutorial.sweep

    seen = []
    monkeypatch.setattr(
        rvtutorial.sweep,
        "run_sweep",
        lambda *args, **more: seen.append((args, more)) or 1 / 0,
    )
    content = dict(parameters={"model_type": {"values": ["FCNResnetTransfer"]}})
    (tmp_path / "sweeps.yml").write_text(json.dumps(content))
    with pytest.raises(ZeroDivisionError):
        command._sweep({"pretrained": "false"}, tmp_path / "sweeps.yml", "local")
    ((_, found), more), *_ = seen
    assert found.fixed == {"backbone": "resnet101"}
    assert more["base"] == {"pretrained": "false"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("macro_iou", "val_loss", "line 5.*no metric 'val_loss'"),
        ("maximize", "minimize", "line 5.*more is better"),
        ("batch_size", "in_channels", "line 15.*in_channels.*follows from the data"),
        ("batch_size", "max_epochs", "line 15.*max_epochs stands already in line 13"),
        ("batch_size", "epochs", "line 15.*epochs stands already in line 13"),
        ("batch_size", "n_decoders", "line 15.*no parameter 'n_decoders'"),
        ("UNet]", "UNett]", "line 9.*did you mean 'UNet'"),
        ("batch_size:\n        value: 4", "n_encoders:\n        value: 3",
         "n_encoders.*for model courseunet.*segmentationcnn knows nothing of it"),
        ('value: "off"', "values: [offline]", "line 17.*same in all trials"),
        ("UNet]", "FCNResnetTransfer]", "line 9.*a sweep file of its own"),
        ('value: "off"', "value: maybe", "line 17.*wandb.*got 'maybe'"),
        ('wandb:\n        value: "off"', "num_workers:\n        value: 2",
         "line 17.*workers=2 would do nothing.*raster_vision"),
        ('wandb:\n        value: "off"', "accumulate:\n        value: 0",
         "line 17.*accumulate.*got 0"),
    ],
)  # fmt: skip
def test_odd_keys_are_refused_with_the_line(old, new, said, tmp_path):
    text = COURSE.replace(old, new)
    assert text != COURSE
    with pytest.raises(ValueError, match=f"(?s)sweeps.yml.*{said}"):
        plan(tmp_path, text)


@pytest.mark.slow
def test_a_sweep_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(tmp_path))
    text = COURSE.replace("[SegmentationCNN, UNet]", "[SegmentationCNN]")
    text = text.replace("name: macro_iou", "name: f1")
    (tmp_path / "sweeps.yml").write_text(textwrap.dedent(text))
    words = [f"--sweep_file={tmp_path / 'sweeps.yml'}", "--preset=smoke"]
    words += [f"--output_uri={tmp_path / 'sweep'}", "--embedding_size=4"]
    assert command.main(words) == 0, capsys.readouterr().err
    assert "lr=1e-3" in capsys.readouterr().out
    run = Run(tmp_path / "sweep" / "lr=1e-3")
    assert run.state == "succeeded" and run.manifest["went"]["lightning"]


# --- tiles put together


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    "Four tiles of 120 x 120 pixels and 12 x 12 labels, cut into subtiles of 4 x 4 labels."
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    parents = []
    for n in range(4):
        labels = rng.integers(1, 3, (12, 12)).astype("uint8")
        bright = np.kron(labels, np.ones((10, 10))) * 90
        image = np.clip(bright + rng.normal(0, 5, (3, 120, 120)), 0, 255)
        paths = folder / f"t{n}.tif", folder / f"t{n}-labels.tif"
        for path, bands, pixel in ((paths[0], image, 1), (paths[1], labels[None], 10)):
            how = dict(
                driver="GTiff", dtype="uint8", count=len(bands), crs="EPSG:32611"
            )
            how |= dict(height=bands.shape[1], width=bands.shape[2])
            place = from_origin(600_000 + 5000 * n, 4_000_000, pixel, pixel)
            with rasterio.open(path, "w", transform=place, **how) as file:
                file.write(bands.astype("uint8"))
        parents.append(Scene(f"t{n}", *paths))
    subtiles = tiles.cut_subtiles(parents, folder / "cut", size=4)
    splits = {"train": subtiles[:18], "val": subtiles[18:]}
    table = write_table(splits, folder / "split.csv")
    return folder, table


@pytest.mark.parametrize("kind", ["tiles", "subtiles"])
@pytest.mark.parametrize("val_windows", ["grid", "random"])
def test_windows_keep_to_the_grid_of_the_labels(kind, val_windows, tiled, tmp_path):
    from rvtutorial.config import get_config
    from rvtutorial.course import training

    folder, table = tiled
    if kind == "tiles":
        tile = [
            Scene(f"t{n}", *(folder / f"t{n}{s}.tif" for s in ("", "-labels")))
            for n in range(4)
        ]
        table = write_table({"train": tile[:2], "val": tile[2:]}, tmp_path / "a.csv")
    how = dict(classes="low,high", label_values="low:1,high:2", model="segmentationcnn")
    how |= dict(pool_sizes="5,2", embedding_size=4, chip_sz=40, stride_length=37)
    how |= dict(max_windows=60, val_windows=val_windows)
    config = get_config("inprocess", tmp_path / "run", "smoke", table, **how)
    assert config.predict_options.stride % 10 == 0
    _, batches = training.parts(config)
    places = [*range(0, 90, 10)] if kind == "tiles" else [0]
    for loader in (batches.train, batches.valid):
        windows = [item.window for some in loader.items(0) for item in some]
        starts = {start for window in windows for start in (window.ymin, window.xmin)}
        if loader is batches.valid and val_windows == "grid":
            assert all(start % 10 == 0 for start in starts)
        else:  # each place as likely, the last one too
            assert sorted(starts) == places


def test_splits_that_share_a_tile_are_mentioned(tiled, tmp_path, capsys):
    from rvtutorial.config import get_config
    from rvtutorial.scenes import find_splits

    folder, table = tiled
    how = dict(classes="low:#FF0000,high", label_values="low:1,high:2", chip_sz=40)
    how |= dict(stride_length=40)
    config = get_config("inprocess", tmp_path / "run", "smoke", table, **how)
    assert "parts of" not in capsys.readouterr().err
    assert config.dataset.class_config.colors[:2] == ["#FF0000", "#56B4E9"]
    found = find_splits(table)
    moved = {"train": [*found["train"], found["val"][0]], "val": found["val"][1:]}
    table = write_table(moved, tmp_path / "b.csv")
    get_config("inprocess", tmp_path / "other", "smoke", table, **how)
    said = "share 1 of 4 tiles, .* t2_0_0 of train and t2_0_1 of val are parts of t2"
    assert re.search(said, capsys.readouterr().err)


@pytest.fixture(scope="module")
def course_run(tiled):
    "The command of the course on these subtiles, trained for an epoch."
    folder, table = tiled
    words = "--model_type=SegmentationCNN --max_epochs=2 --preset=smoke --wandb=off"
    words += " --classes=low,high --label_values=low:1,high:2 --pool_sizes=5,2"
    words += " --embedding_size=8 --chip_sz=40 --stride_length=40 --max_windows=1"
    words += f" --data={table} --output_uri={folder / 'run'} --lr=1e-2"
    assert command.main(words.split()) == 0
    return Run(folder / "run")


def test_the_command_leaves_a_run(course_run):
    assert course_run.state == "succeeded"
    assert course_run.hyperparams["model"] == "segmentationcnn"
    assert course_run.hyperparams["checkpoint"] == "best"
    assert "low_iou" in course_run.log() and "macro_auc" in course_run.log()


def test_a_perfect_model_is_put_together_exactly(course_run, tiled, tmp_path):
    folder, _ = tiled
    copy = tmp_path / "run"
    shutil.copytree(course_run.path, copy)
    for scene in course_run.scene_ids():  # the truth, as if it were predicted
        path = copy / "predict" / scene / "labels.tif"
        with rasterio.open(folder / "cut" / f"{scene}-labels.vrt") as file:
            truth = np.kron(file.read(1) - 1, np.ones((10, 10), "uint8"))
        with rasterio.open(path, "r+") as file:
            file.write(truth, 1)
    table = evaluate_tiles(copy, tmp_path / "out")
    assert table.attrs["tiles"] == ["t2", "t3"]
    assert (table.loc["macro", ["accuracy", "iou", "f1"]] == 1).all()
    place = tmp_path / "out" / "segmentationcnn"
    for tile in ("t2", "t3"):
        with rasterio.open(folder / f"{tile}-labels.tif") as file:
            truth, where = file.read(1), file.transform
        for name in ("truth", "prediction"):
            with rasterio.open(place / f"{tile}-{name}.tif") as file:
                assert np.array_equal(file.read(1), truth - 1)
                assert file.transform == where
            with Image.open(place / f"{tile}-{name}.png") as picture:
                assert picture.size == (12, 12)
        with rasterio.open(place / f"{tile}-image.tif") as file:
            assert file.shape == (120, 120) and file.count == 3
        with Image.open(place / f"{tile}.png") as picture:
            assert picture.width > 500


def test_evaluate_by_the_command(course_run, tmp_path, capsys):
    words = ["evaluate", str(course_run.path), "--out", str(tmp_path)]
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "macro" in out and "auc" in out
    assert (tmp_path / "segmentationcnn" / "scores.csv").is_file()
    best = course_run.path / "train" / "best.pt"
    again = evaluate_tiles(course_run, tmp_path / "again", checkpoint=best)
    first = evaluate_tiles(course_run, tmp_path / "first")
    assert first.auc.notna().all()  # the bundle holds the best weights
    assert np.allclose(again, first, atol=1e-3)
    kept = evaluate_tiles(course_run, tmp_path / "kept", checkpoint="best")
    assert kept.equals(again)
    weights = torch.load(course_run.path / "train/last.pt", weights_only=True)
    assert weights["epoch"] == course_run.log()["epoch"].iloc[-1] == 1
    words = ["evaluate", str(course_run.path), "--out", str(tmp_path / "word")]
    assert command.main([*words, "--checkpoint", "last"]) == 0
    note = json.loads(next((tmp_path / "word").glob("*/evaluated.json")).read_text())
    assert note["checkpoint"] == str(course_run.path / "train/last.pt")


def test_a_checkpoint_predicts_as_the_run_does(tiled, tmp_path):
    "Windows that overlap are joined the same way."
    folder, _ = tiled
    tile = [
        Scene(f"t{n}", *(folder / f"t{n}{s}.tif" for s in ("", "-labels")))
        for n in range(2)
    ]
    table = write_table({"train": tile[:1], "val": tile[1:]}, tmp_path / "a.csv")
    words = "--model_type=UNet --max_epochs=1 --preset=smoke --wandb=off --lr=1e-3"
    words += " --classes=low,high --label_values=low:1,high:2 --embedding_size=2"
    words += " --chip_sz=64 --stride_length=17 --max_windows=4 --n_encoders=3"
    words += f" --data={table} --output_uri={tmp_path / 'run'}"
    assert command.main(words.split()) == 0
    run = Run(tmp_path / "run")
    (tmp_path / "b").mkdir()
    drawn = evaluation._predicted(
        run, ["t1"], run.path / "train/best.pt", tmp_path / "b", False
    )
    with (
        rasterio.open(drawn["t1"]) as one,
        rasterio.open(run.prediction("t1")) as other,
    ):
        assert np.array_equal(one.read(), other.read())
    with rasterio.open(drawn["t1"].with_name("scores.tif")) as one:
        with rasterio.open(run.scores("t1")) as other:
            assert np.abs(one.read().astype(int) - other.read().astype(int)).max() <= 1


def test_tiles_of_another_run_are_not_overwritten(course_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(course_run.path, copy)
    (tmp_path / "out" / "segmentationcnn").mkdir(parents=True)
    table = evaluate_tiles(course_run, tmp_path / "out")
    assert evaluate_tiles(course_run, tmp_path / "out").equals(table)  # the same again
    for given in (
        dict(run=copy),
        dict(run=course_run, checkpoint=copy / "train/best.pt"),
    ):
        with pytest.raises(
            ValueError, match="holds run .*/run, split validation, and is"
        ):
            evaluate_tiles(out=tmp_path / "out", **given)
    (tmp_path / "old" / "segmentationcnn").mkdir(parents=True)
    (tmp_path / "old" / "segmentationcnn" / "t9.png").touch()
    with pytest.raises(ValueError, match="files of other origin"):
        evaluate_tiles(course_run, tmp_path / "old")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (dict(model="unet", encoder="resnet18"), "unet-resnet18"),
        (dict(model="fpn", encoder="resnet18"), "fpn-resnet18"),
        (dict(model="courseunet", encoder=None), "courseunet"),
        (dict(model="unet", hubconf="/a.py"), "mine"),
    ],
)
def test_predictions_are_named_for_architecture_and_encoder(values, name):
    from types import SimpleNamespace

    run = SimpleNamespace(hyperparams=values, name="mine")
    assert evaluation._network_of(run) == name


def test_a_checkpoint_of_another_network(course_run, tmp_path):
    import torch

    kept = torch.load(course_run.path / "train/best.pt", weights_only=True)
    kept["hyper_parameters"]["network"] = "courseunet of 4 bands and 3 classes"
    kept["state_dict"] = {"network.odd": torch.zeros(1)}
    torch.save(kept, tmp_path / "other.pt")
    said = (
        "courseunet of 4 bands and 3 classes, and this is segmentation_cnn of 3 bands"
    )
    with pytest.raises(ValueError, match=said):
        evaluate_tiles(course_run, tmp_path / "out", checkpoint=tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        evaluate_tiles(course_run, tmp_path / "out", checkpoint=tmp_path / "none.pt")
    assert not list((tmp_path / "out").rglob("*.tif"))


def test_a_tile_that_lacks_subtiles_is_refused(course_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(course_run.path, copy)
    path = copy / "pipeline-config.json"
    config = json.loads(path.read_text())
    config["dataset"]["validation_scenes"].pop()
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="t3 lacks 1 of its 3 x 3 subtiles: 2_2"):
        evaluate_tiles(copy, tmp_path / "out")

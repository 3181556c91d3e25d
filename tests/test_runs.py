"""Hyperparameters, the workspace, files that are whole, and the folder of a run."""

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import pace

import rvtutorial
from rvtutorial import runs
from rvtutorial.core.files import atomic_path
from rvtutorial.core.names import natural_key, near_match, packaged
from rvtutorial.core.records import read_json, write_json
from rvtutorial.runs import (
    PRESETS,
    STOCK,
    Hyperparams,
    Run,
    Workspace,
    differences,
    find_runs,
)

# -- hyperparameters ------------------------------------------------------------


def test_defaults_are_those_of_part_8():
    hp = Hyperparams()
    seven = (hp.chip_sz, hp.stride_length, hp.max_windows, hp.epochs, hp.batch_sz)
    assert seven == (220, 215, 5, 8, 24) and hp.lr == 1e-4
    assert (hp.model, hp.backbone, hp.pretrained) == ("deeplabv3", "resnet50", True)
    assert hp == Hyperparams.of() == Hyperparams.of("version2")


def test_presets_are_the_two_models_of_the_course_and_two_small_ones():
    first = Hyperparams.of("version1")
    assert (first.chip_sz, first.stride_length, first.epochs) == (300, 300, 3)
    assert (first.batch_sz, first.lr, first.max_windows) == (2, 1e-4, 5)
    assert (first.model, first.pretrained) == ("deeplabv3", True)
    sample = Hyperparams.of("sample")
    assert (sample.model, sample.batch_sz, sample.lr) == ("unet", 8, 5e-3)
    assert (sample.chip_sz, sample.epochs, sample.pretrained) == (220, 8, False)
    Hyperparams.of("smoke").check_scene(260, 260)
    for preset in PRESETS:
        assert Hyperparams.of(preset, stock=True).onnx is True


@pytest.mark.parametrize(
    "name, given, value",
    [
        ("lr", "1e-3", 0.001),
        ("lr", np.float32(0.5), 0.5),
        ("lr", 1, 1.0),
        ("chip_sz", "220", 220),
        ("chip_sz", " 2.2e2 ", 220),
        ("chip_sz", 300.0, 300),
        ("chip_sz", np.int64(300), 300),
        ("augment", "False", False),
        ("augment", "yes", True),
        ("augment", 0, False),
        ("augment", np.bool_(False), False),
        ("img_sz", "none", None),
        ("img_sz", "None", None),
        ("padding", "null", None),
        ("padding", "0", 0),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("seed", "none", None),
        ("class_weights", "1,2,0.5", (1.0, 2.0, 0.5)),
        ("class_weights", [1, 2], (1.0, 2.0)),
        ("class_weights", "(1, 2)", (1.0, 2.0)),
        ("class_weights", "none", None),
        ("scaling", "0,2047", "0,2047"),
        ("scaling", (0, 0.5), "0,0.5"),
        ("scaling", "None", "none"),
        ("scaling", "Percentiles", "percentiles"),
        ("null", "CLASS", "class"),
        ("backbone", "resnet101", "resnet101"),
    ],
)
def test_values_are_cast(name, given, value):
    found = getattr(Hyperparams(**{name: given}), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "name, given",
    [
        ("chip_sz", 2.5), ("chip_sz", "2.5"), ("chip_sz", True),
        ("chip_sz", 15), ("chip_sz", 4097), ("chip_sz", "inf"), ("chip_sz", "big"),
        ("chip_sz", ""), ("chip_sz", []), ("stride_length", 0), ("max_windows", 0),
        ("max_windows", -5), ("epochs", 0), ("epochs", "eight"), ("epochs", False),
        ("batch_sz", 0), ("batch_sz", 4097), ("lr", 0), ("lr", -1e-3), ("lr", 1.5),
        ("lr", "nan"), ("lr", math.inf), ("lr", "1e-3x"), ("lr", None), ("lr", True),
        ("seed", -1), ("seed", 2**32), ("seed", 0.5), ("padding", -1),
        ("padding", "half"), ("img_sz", 0), ("augment", "maybe"), ("augment", 2),
        ("augment", None), ("pretrained", 1.5), ("model", "unet2"), ("model", None),
        ("model", 3), ("backbone", "resnet18"), ("val_windows", "sliding"),
        ("null", ""), ("scores", "uint16"), ("onnx", ""), ("class_weights", "1"),
        ("class_weights", "0,0"), ("class_weights", "1,-1"), ("class_weights", "a,b"),
        ("class_weights", "1,nan"), ("class_weights", 3), ("scaling", "5,5"),
        ("scaling", "9,5"), ("scaling", "5"), ("scaling", "1,2,3"), ("scaling", 7),
        ("scaling", "minmax"), ("scaling", "0,inf"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_name_value_and_what_is_allowed(name, given):
    with pytest.raises(ValueError) as err:
        Hyperparams(**{name: given})
    text = str(err.value)
    assert text.startswith(f"{name} must be ")
    assert f"got {given!r}" in text


def test_a_range_comes_with_its_reason():
    with pytest.raises(
        ValueError, match=r"from 16 to 4096, or none \(smaller ones show no"
    ):
        Hyperparams(chip_sz=8)
    with pytest.raises(ValueError, match=r"Adam moves a weight by about lr a step"):
        Hyperparams(lr=2)
    with pytest.raises(ValueError, match="did you mean 'unet'"):
        Hyperparams(model="u-net")


@pytest.mark.parametrize(
    "name, meant",
    [("epoch", "epochs"), ("max_window", "max_windows"), ("chip_size", "chip_sz")],
)
def test_an_unknown_name_is_met_with_a_near_one(name, meant):
    for make in (Hyperparams, Hyperparams.of, Hyperparams().replace):
        with pytest.raises(ValueError, match=f"{name!r}; did you mean {meant!r}"):
            make(**{name: 3})
    with pytest.raises(ValueError, match="of [0-9]+ the closest are"):
        Hyperparams(zzzz=1)
    with pytest.raises(ValueError, match="preset 'sampel'; did you mean 'sample'"):
        Hyperparams.of("sampel")


def test_gaps_between_chips_are_refused_and_counted():
    with pytest.raises(ValueError, match=r"228900 \(54\.2%\) are never predicted"):
        Hyperparams(chip_sz=220, stride_length=300)
    seen = np.zeros((650, 650), bool)
    for y in range(0, 650 - 100 + 1, 130):
        for x in range(0, 650 - 100 + 1, 130):
            seen[y : y + 100, x : x + 100] = True
    with pytest.raises(ValueError, match=f"pixels {(~seen).sum()} "):
        Hyperparams(chip_sz=100, stride_length=130)
    assert Hyperparams(chip_sz=220, stride_length=220).stride_length == 220


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model": "unet"}, "no ImageNet weights. Use pretrained=False"),
        ({"padding": 220}, "whole chips could lie outside"),
        ({"batch_sz": 1}, "batch_sz 1 cannot train deeplabv3"),
    ],
)
def test_other_contradictions_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Hyperparams(**values)
    assert Hyperparams.of("sample", batch_sz=1, backbone="resnet101").batch_sz == 1


def test_a_chip_must_fit_into_the_smallest_scene():
    hp = Hyperparams(chip_sz=300)
    hp.check_scene(300, 900)
    with pytest.raises(ValueError, match="at most 299 .*300 x 299 pixels.*got 300"):
        hp.check_scene(300, 299)


def test_what_may_surprise_is_said():
    assert Hyperparams().notes == []
    assert "backbone is not used" in Hyperparams.of("sample").notes[0]
    stock = " ".join(Hyperparams.of(stock=True, epochs=1).notes)
    assert "resized to 256" in stock and "no seed" in stock and "one_cycle" in stock
    assert "note: chips of 220 pixels are resized to 100" in repr(
        Hyperparams(img_sz=100)
    )


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(preset="own", optimizer="adam", weight_decay=0.1), "adamw or sgd"),
        (dict(preset="sample", encoder_lr=0.5), "model unet has no encoder"),
        (dict(preset="sample", freeze_epochs=2), "model unet has no encoder"),
        (dict(preset="sample", encoder_weights="a.pth"), "there is no encoder"),
    ],
)
def test_a_change_without_effect_is_refused(values, words):
    with pytest.raises(ValueError, match=f"would change nothing: .*{words}"):
        Hyperparams.of(**values)


def test_what_a_preset_brings_may_have_no_effect():
    assert Hyperparams.of("own", optimizer="adam").weight_decay == 0.01
    plain = dict(encoder="none", pretrained=False, encoder_lr=1, frozen_layers=0)
    made = Hyperparams.of("own", **plain)
    assert made.asdict() == Hyperparams.of("own", **made.asdict()).asdict()


def test_epochs_take_the_place_of_the_budget_of_a_preset():
    assert Hyperparams.of("own").budget == "3 min"
    assert (
        Hyperparams.of("own", epochs=2).budget,
        Hyperparams.of("own", epochs=2).epochs,
    ) == (None, 2)
    both = Hyperparams.of("own", epochs=2, budget="1 min")
    assert both.budget == "1 min"


def test_stock_values_win_over_the_preset_and_changes_over_both():
    hp = Hyperparams.of("sample", stock=True, padding=7, lr="1e-2")
    assert (hp.img_sz, hp.scaling, hp.val_windows) == (256, "none", "random")
    assert (hp.padding, hp.lr, hp.batch_sz) == (7, 0.01, 8)


def values_of(name):
    field = Hyperparams.model_fields[name]
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    words = [word for kind in kinds for word in get_args(kind) or [kind]]
    if words and isinstance(words[0], str):
        return st.sampled_from(words)
    if name == "class_weights":
        return st.lists(st.floats(0.01, 1e6), min_size=2, max_size=5)
    if name == "scaling":
        pairs = st.tuples(st.floats(-1e9, 0), st.floats(1e-3, 1e9))
        return pairs | st.sampled_from(["none", "percentiles"])
    if bool in kinds or field.annotation is bool:
        return st.booleans() | (st.none() if kinds else st.nothing())
    if name == "pool_sizes":
        return st.lists(st.integers(1, 50), min_size=1, max_size=4)
    if name == "budget":
        return st.sampled_from(["90 s", "1.5 Hours", "none", None])
    if name == "loss":
        return st.sampled_from(["Dice + cross-entropy", "focal", "lovasz+dice"])
    if name in ("hubconf", "init_weights"):
        return st.sampled_from(["mine.py", "none", None])
    if name in ("encoder", "encoder_weights"):
        return st.sampled_from(["resnet18", "Efficientnet-Lite0 ", "none", None])
    floats = ("lr", "weight_decay", "encoder_lr", "jitter", "noise", "blur")
    numbers = st.floats if name in floats else st.integers
    low, high = (next(iter(asdict(limit).values())) for limit in field.metadata)
    return numbers(low, high) | (st.none() if kinds else st.nothing())


@given(
    st.fixed_dictionaries(
        {}, optional={n: values_of(n) for n in Hyperparams.model_fields}
    )
)
def test_any_values_survive_the_command_line_and_json(values):
    try:
        hp = Hyperparams(**values)
    except ValueError:
        return  # a contradiction
    assert Hyperparams(**hp.args()) == hp
    assert all(isinstance(text, str) for text in hp.args().values())
    assert Hyperparams(**json.loads(json.dumps(hp.asdict()))) == hp
    assert hp.replace() == hp and hash(hp) == hash(hp.replace())


def test_hyperparams_do_not_change_and_show_themselves():
    hp = Hyperparams()
    with pytest.raises(ValueError, match="frozen"):
        hp.lr = 1
    assert "Le(le=1.0)] = 0.0001" in str(Hyperparams.__signature__)
    table = hp.table()
    assert list(table.index) == list(hp.asdict())
    assert table.loc["img_sz", "stock"] == "256" and table.loc["lr", "stock"] == ""
    assert len(repr(hp).splitlines()) == len(table)
    page = Hyperparams.of("sample")._repr_html_()
    assert "<table" in page and "note: backbone is not used" in page


@pytest.mark.slow
def test_stock_values_are_what_raster_vision_does():
    from rastervision.core.data import SemanticSegmentationLabelStoreConfig
    from rastervision.core.rv_pipeline import WindowSamplingConfig
    from rastervision.pytorch_learner import (
        SemanticSegmentationGeoDataConfig,
        SolverConfig,
    )

    data = SemanticSegmentationGeoDataConfig()
    assert data.img_sz == STOCK["img_sz"]
    assert data.base_transform is None and STOCK["scaling"] == "none"
    windows = WindowSamplingConfig(method="random", size=220)
    assert windows.padding is None and STOCK["padding"] == "none"
    assert SolverConfig().ignore_class_index is None and STOCK["null"] == "class"
    store = SemanticSegmentationLabelStoreConfig()
    assert store.smooth_output is False and STOCK["scores"] == "none"


# -- files that are whole ---------------------------------------------------------


def test_json_comes_back_plain(tmp_path):
    file = tmp_path / "new" / "a.json"
    write_json(
        file,
        {
            "a": np.float32(0.5), "b": float("nan"), "c": np.arange(3), 4: {2, 1},
            "p": Path("x/y"), "t": (1, None), "i": np.int64(7), "n": np.array([np.nan]),
        },
    )  # fmt: skip
    assert read_json(file) == {
        "a": 0.5, "b": None, "c": [0, 1, 2], "4": [1, 2], "p": "x/y", "t": [1, None],
        "i": 7, "n": [None],
    }  # fmt: skip
    assert read_json(tmp_path / "none.json", {}) == {}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_broken_json_is_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1,\n "b": ')
    for default in ((), ({},)):
        with pytest.raises(ValueError, match=r"a\.json is not whole JSON: .*line 2"):
            read_json(file, *default)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(file, {"a": object()})
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), atomic_path(file):
        pass
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_has_the_mode_that_any_new_file_has(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_the_partial_file_keeps_its_suffix_and_links_stay_links(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.tif"
    link.symlink_to(tmp_path / "real" / "a.tif")
    with atomic_path(link) as partial:
        assert partial.suffix == ".tif" and partial.parent == tmp_path / "real"
        partial.write_bytes(b"x")
    assert link.is_symlink() and (tmp_path / "real" / "a.tif").read_bytes() == b"x"


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="a.json is as it was before. Free some") as err:
        write_json(file, {"a": 2})
    assert err.value.errno == errno.ENOSPC
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def tiny_disk(tmp_path):
    "A real file system of 64 kB, where one may be mounted."
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk(tiny_disk):
    run = Run.open_for(tiny_disk, asked())
    before = (tiny_disk / "run.json").read_bytes()
    with pytest.raises(OSError, match="no space is left") as err:
        run.update("went", why="x" * 100_000)
    assert err.value.errno == errno.ENOSPC
    assert (tiny_disk / "run.json").read_bytes() == before
    assert {p.name for p in tiny_disk.iterdir()} == {"run.json", ".run.lock"}


# -- workspace --------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch):
    for name in ("PRESET", "SITE", "HOME", "DATA"):
        monkeypatch.delenv(f"RVTUTORIAL_{name}", raising=False)
    return monkeypatch


def test_a_workspace_lies_in_the_checkout_else_in_the_current_folder(clean, tmp_path):
    deep = tmp_path / "nbs" / "jobs"
    deep.mkdir(parents=True)
    clean.chdir(deep)
    assert Workspace().home == deep
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = another\n")
    assert Workspace().home == deep
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = rvtutorial\n")
    here = Workspace()
    clean.chdir("/")
    assert here.home == tmp_path
    assert here.data == tmp_path / "data" / "sample"
    assert here.runs == tmp_path / "runs"
    assert str(tmp_path) not in repr(here)


def test_the_environment_wins_and_says_so(clean, tmp_path):
    clean.setenv("RVTUTORIAL_HOME", str(tmp_path))
    clean.setenv("RVTUTORIAL_DATA", str(tmp_path / "vegas"))
    assert repr(Workspace()).splitlines()[0] == "preset  sample"
    assert Workspace().data == tmp_path / "data" / "sample"
    clean.setenv("RVTUTORIAL_PRESET", "version2")
    clean.setenv("RVTUTORIAL_SITE", "atlas")
    here = Workspace(preset="sample", site="local")
    assert (here.preset, here.site) == ("version2", "atlas")
    assert here.data == tmp_path / "vegas"
    for name in ("PRESET", "SITE", "DATA"):
        assert f"(set by RVTUTORIAL_{name})" in repr(here)
    assert here.hyperparams(lr="1e-3") == Hyperparams(lr=1e-3)
    clean.setenv("RVTUTORIAL_PRESET", "version3")
    with pytest.raises(ValueError, match="preset 'version3'; did you mean 'version"):
        Workspace()


def test_a_site_of_the_user_names_the_data(clean, tmp_path):
    own = tmp_path / "config" / "rvtutorial" / "sites"
    own.mkdir(parents=True)
    (own / "atlas.toml").write_text('data = "/elsewhere/vegas"')
    clean.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert Workspace("version2", "atlas").data == Path("/elsewhere/vegas")


def test_a_site_may_name_the_data_folder(clean, tmp_path):
    site = tmp_path / "mine.toml"
    site.write_text('data = "/data/vegas"\n')
    assert Workspace("version1", str(site), tmp_path).data == Path("/data/vegas")
    assert Workspace("sample", str(site), tmp_path).data == tmp_path / "data/sample"
    home = Workspace("version1", "nowhere", tmp_path)
    assert home.data == tmp_path / "data" / "spacenet"


def test_packaged_files_come_from_the_checkout_then_from_the_wheel(
    tmp_path, monkeypatch
):
    inside = tmp_path / "rvtutorial"
    (inside / "_jobs").mkdir(parents=True)
    (inside / "_sites").mkdir()
    (inside / "_jobs" / "train.ipynb").touch()
    (inside / "_sites" / "local.toml").touch()
    monkeypatch.setattr(rvtutorial, "__file__", str(inside / "__init__.py"))
    assert packaged("jobs", "train") == inside / "_jobs" / "train.ipynb"
    assert packaged("sites", "local.toml") == inside / "_sites" / "local.toml"
    (tmp_path / "nbs" / "jobs").mkdir(parents=True)
    (tmp_path / "nbs" / "jobs" / "train.ipynb").touch()
    assert packaged("jobs", "train.ipynb") == tmp_path / "nbs/jobs/train.ipynb"
    with pytest.raises(FileNotFoundError, match="no job 'trian'; did you mean 'train'"):
        packaged("jobs", "trian")
    with pytest.raises(ValueError, match="jobs, sites, definitions, got 'figures'"):
        packaged("figures", "a")


# -- runs -------------------------------------------------------------------------


def asked(digest="5f2c", data="a", **changes):
    return {
        "hyperparams": Hyperparams.of("sample", **changes).asdict(),
        "preset": "sample",
        "data": {"path": data, "digest": digest},
        "windows_digest": "77",
        "seed": 0,
    }


def scene(folder, number, raster_labels=False):
    image = {"uris": [f"{folder}/img{number}.tif"], "channel_order": [0, 1, 2]}
    label = {"uris": f"{folder}/img{number}.geojson", "transformers": []}
    return {
        "id": str(number),
        "raster_source": image,
        "label_source": {
            "raster_source": label if raster_labels else {"vector_source": label}
        },
    }


def counts(name, tp, fp, fn, tn):
    table = {"TN": tn, "FP": fp, "FN": fn, "TP": tp}
    return {"class_name": name, "conf_mat_dict": table, "metrics": {}}


@pytest.fixture
def plain(tmp_path):
    "A run folder as plain Raster Vision leaves it."
    run, data = tmp_path / "plain", tmp_path / "data"
    for name in ("train", "eval/validation_scenes", "predict/9", "bundle"):
        (run / name).mkdir(parents=True)
    data.mkdir()
    for number in (2, 9, 10, 11):
        (data / f"img{number}.tif").touch()
    dataset = {
        "train_scenes": [scene(data, 11), scene(data, 2)],
        "validation_scenes": [scene(data, 10), scene(data, 9, raster_labels=True)],
        "test_scenes": [],
    }
    backend = {
        "solver": {"lr": 0.01, "num_epochs": 3, "batch_sz": 2, "one_cycle": True},
        "data": {"img_sz": 256, "sampling": {"size": 300, "padding": None}},
        "model": {"backbone": "resnet50", "pretrained": True},
    }
    config = {"dataset": dataset, "backend": backend}
    config["predict_options"] = {"chip_sz": 300, "stride": 300}
    (run / "pipeline-config.json").write_text(json.dumps(config))
    (run / "train" / "log.csv").write_text("epoch,train_loss,valid_time\n0,0.5,1\n")
    evaluation = {
        "overall": [counts("background", 5, 1, 1, 3), counts("building", 3, 1, 2, 4)]
        + [{"class_name": "average", "metrics": {}}],
        "per_scene": {},
    }
    write_json(run / "eval" / "validation_scenes" / "eval.json", evaluation)
    (run / "predict" / "9" / "labels.tif").touch()
    (run / "bundle" / "model-bundle.zip").touch()
    return Run(run)


def test_a_plain_run_can_be_read(plain, tmp_path):
    assert plain.manifest == {} and plain.state == "succeeded"
    assert plain.scene_ids() == plain.scene_ids("val") == ["9", "10"]
    assert plain.scene_ids("train") == ["2", "11"] and plain.scene_ids("test") == []
    assert plain.image("10") == tmp_path / "data" / "img10.tif"
    assert plain.prediction("9").name == "labels.tif"
    assert plain.hyperparams["lr"] == 0.01 and plain.hyperparams["img_sz"] == 256
    assert plain.hyperparams["padding"] is None
    scores = plain.results["validation"]
    assert scores["class"] == "building" and "test" not in plain.results
    assert scores["iou"] == 3 / 6 and scores["f1"] == pytest.approx(6 / 9)
    assert (scores["precision"], scores["recall"]) == (3 / 4, 3 / 5)
    assert scores["accuracy"] == 7 / 10
    assert repr(plain) == "Run(plain: succeeded, validation F1 0.667)"


def test_images_that_moved_are_found_by_name(plain, tmp_path):
    (tmp_path / "data").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="is not there now; say where.*data="):
        plain.image("10")
    assert plain.image("10", data=tmp_path / "gone").name == "img10.tif"
    for place in ("val", "some/where/else"):
        there = tmp_path / place.replace("/", "_") / place
        there.mkdir(parents=True)
        (there / "img9.geojson").touch()
        root = tmp_path / place.replace("/", "_")
        assert plain.label("9", data=root) == there / "img9.geojson"
    with pytest.raises(FileNotFoundError, match="img10.geojson, is not below"):
        plain.label("10", data=tmp_path / "gone")
    with pytest.raises(ValueError, match="no scene '99'; did you mean '9'"):
        plain.image("99")
    with pytest.raises(ValueError, match="split 'tests'; did you mean 'test'"):
        plain.scene_ids("tests")


def test_labels_that_a_run_made_for_itself_move_with_it(plain, tmp_path):
    (plain.path / "labels").mkdir()
    (plain.path / "labels" / "img9.geojson").touch()
    plain.path.rename(tmp_path / "elsewhere")
    moved = Run(tmp_path / "elsewhere")
    assert moved.label("9") == moved.path / "labels" / "img9.geojson"
    config = {"dataset": {"test_scenes": [{"id": "1", "label_source": None}]}}
    write_json(tmp_path / "bare" / "pipeline-config.json", config)
    assert Run(tmp_path / "bare").label("1") is None


def test_what_is_not_there_yet_names_its_stage(tmp_path):
    run = Run.open_for(tmp_path / "new", asked())
    for read, stage in [
        (run.log, "train stage"),
        (run.evaluation, "eval stage"),
        (lambda: run.prediction("9"), "predict stage"),
        (lambda: run.scores("9"), "predict stage"),
        (run.scene_ids, "when a run starts"),
    ]:
        with pytest.raises(FileNotFoundError, match=f"run new has no .*{stage}"):
            read()
    assert run.results == {} and repr(run) == "Run(new: queued)"
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        Run(tmp_path / "nowhere").log()


def test_the_log_of_a_running_job(plain):
    log = plain.path / "train" / "log.csv"
    head = "epoch,train_loss,val_loss,building_f1,valid_time\n"
    log.write_text(head + "0,1.0,2.0,,3\n1,0.5,1.5,0.25,3\n2,0.4,1.2")
    assert list(plain.log()["building_f1"].fillna(-1)) == [-1, 0.25]
    log.write_text(head + "0,1.0,2.0,,3\n1,0.5,1.5,0.25,3")  # the last number may be 30
    assert list(plain.log()["epoch"]) == [0]
    log.write_text(head + "0,1,2,.1,3\n1,1,2,.2\n1,1,2,.3,3\n1,1,2,.4,3\n2,1,2,.5,3\n")
    assert list(plain.log()["building_f1"]) == [0.1, 0.4, 0.5]
    log.write_text(head)
    assert len(plain.log()) == 0 and "val_loss" in plain.log()
    log.write_text("epoch,tra")
    assert len(plain.log()) == 0


def test_undefined_scores_are_none():
    scores = Run.headline({"overall": [counts("building", 0, 0, 0, 9)]})
    assert scores["f1"] is None and scores["iou"] is None and scores["accuracy"] == 1
    scores = Run.headline(
        [counts("road", 1, 0, 0, 9), counts("null", 5, 0, 0, 5)], "null"
    )
    assert scores["class"] == "null" and scores["iou"] == 1


def test_a_record_is_merged_section_by_section(tmp_path):
    run = Run.open_for(tmp_path / "a", asked())
    run.update("went", state="running", job={"index": 7})
    run.update("went", state="succeeded")
    run.append("went", "stages", {"name": "train", "seconds": 1.5})
    run.append("went", "stages", {"name": "predict", "seconds": 2})
    run.update("results.validation", f1=np.float64(0.5), iou=math.nan)
    run.update("results.test", f1=0.25)
    manifest = read_json(run.path / "run.json")
    assert manifest["schema"] == 1
    assert manifest["asked"]["data"]["digest"] == "5f2c"
    went = manifest["went"]
    assert went["state"] == run.state == "succeeded" and went["job"] == {"index": 7}
    assert [stage["name"] for stage in went["stages"]] == ["train", "predict"]
    assert run.results == {"validation": {"f1": 0.5, "iou": None}, "test": {"f1": 0.25}}
    assert run.hyperparams["model"] == "unet"


def add_some(path, n):
    for i in range(n):
        Run(path).append("went", "stages", {"seconds": i})


def test_writers_do_not_lose_each_others_words(tmp_path):
    run = Run.open_for(tmp_path / "a", asked())
    context = get_context("fork")
    crowd = [context.Process(target=add_some, args=(run.path, 20)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    noted = [stage["seconds"] for stage in run.manifest["went"]["stages"]]
    assert sorted(noted) == sorted(list(range(20)) * 4)


def test_a_record_of_a_newer_version_is_not_guessed_at(tmp_path):
    write_json(tmp_path / "run.json", {"schema": 2})
    with pytest.raises(ValueError, match="newer rvtutorial"):
        Run(tmp_path).manifest  # noqa: B018


# -- who may write in a folder ----------------------------------------------------


def test_the_same_run_goes_on(tmp_path):
    path = tmp_path / "deep" / "a"
    Run.open_for(path, asked()).update("went", state="interrupted")
    again = {**asked(data="moved"), "preset": "version2"}
    assert Run.open_for(path, again).state == "interrupted"
    older = asked()  # as asked before there was a hyperparameter of that name
    del older["hyperparams"]["onnx"]
    assert Run.open_for(path, older).path == path
    Run.open_for(tmp_path / "b", older)
    assert Run.open_for(tmp_path / "b", asked()).name == "b"
    with pytest.raises(ValueError, match="onnx: false -> true"):
        Run.open_for(tmp_path / "b", asked(onnx=True))


@pytest.mark.parametrize(
    "other, listed",
    [
        (asked(lr=1e-3, epochs=12), r"epochs: 8 -> 12; hyperparams.lr: 0.005 -> 0.001"),
        (asked(digest="0000"), "data.digest: 5f2c -> 0000"),
        (asked(digest=None, data="b"), "data.path: a -> b"),
        ({**asked(), "windows_digest": "78"}, "windows_digest: 77 -> 78"),
        ({**asked(), "seed": 1}, "seed: 0 -> 1"),
        ({**asked(), "classes": ["road"]}, "classes: none -> road"),
        (asked(class_weights="1,2,3"), r"class_weights: none -> 1.0,2.0,3.0"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path, other, listed):
    Run.open_for(tmp_path / "a", asked())
    before = (tmp_path / "a" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=listed) as err:
        Run.open_for(tmp_path / "a", other)
    assert "a folder of its own" in str(err.value)
    assert (tmp_path / "a" / "run.json").read_bytes() == before


def test_stock_behaviour_is_an_option(tmp_path):
    Run.open_for(tmp_path, asked())
    run = Run.open_for(tmp_path, asked(lr=1e-3), differ="continue")
    assert run.hyperparams["lr"] == 1e-3
    with pytest.raises(ValueError, match="refuse or continue, got 'overwrite'"):
        Run.open_for(tmp_path, asked(), differ="overwrite")


def test_what_is_not_our_run_is_left_alone(plain, tmp_path):
    with pytest.raises(ValueError, match="a run without run.json"):
        Run.open_for(plain.path, asked())
    with pytest.raises(
        ValueError, match=r"belong to no run: img10.tif, img11.tif"
    ) as err:
        Run.open_for(tmp_path / "data", asked())
    assert "delete" not in str(err.value)
    with pytest.raises(ValueError, match="is a file"):
        Run.open_for(tmp_path / "data" / "img2.tif", asked())
    assert not list(tmp_path.rglob("run.json"))


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("s3://bucket/run", Path("s3://bucket/run"), "https://x.org/run"):
        with pytest.raises(ValueError, match="a folder of this machine, got (s3|http)"):
            Run.open_for(address, asked())
    assert not list(tmp_path.iterdir())


def test_what_a_job_leaves_before_the_run_begins_is_no_stranger(tmp_path):
    for name in ("params.json", "job.json", "notebook.ipynb", "slurm-7.out", ".hidden"):
        (tmp_path / name).touch()
    assert Run.open_for(tmp_path, asked()).state == "queued"
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "run.json", {"schema": 1, "went": {"state": "x"}})
    assert Run.open_for(tmp_path / "other", asked()).state == "x"


def test_runs_are_found_in_natural_order(tmp_path, plain):
    for name in ("lr10", "lr9", "sub/lr2"):
        Run.open_for(tmp_path / name, asked())
    assert [r.name for r in find_runs(tmp_path)] == ["lr9", "lr10", "plain", "lr2"]


def test_differences_ignore_how_a_value_was_written():
    one = {"hyperparams": Hyperparams(lr="1e-3", class_weights="1,2").asdict()}
    two = {"hyperparams": Hyperparams(lr=0.001, class_weights=(1, 2)).asdict()}
    assert differences(one, two) == {}
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == {"a.b": (1, 2)}


# -- the rest ---------------------------------------------------------------------


def test_natural_order():
    names = ["img10", "img9", "a", "img1_2", "img1_10", "10", "9"]
    ordered = ["9", "10", "a", "img1_2", "img1_10", "img9", "img10"]
    assert sorted(names, key=natural_key) == ordered
    assert near_match("x", []) == "known are none"


def test_importing_runs_is_quick_and_light():
    code = (
        "import time; start = time.process_time(); import rvtutorial.runs, sys;"
        "print(time.process_time() - start, sorted({'pandas', 'numpy', 'torch',"
        "'rastervision', 'rasterio'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parent.parent)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True, capture_output=True, text=True, env=env,
        ).stdout.split(maxsplit=1)
        for _ in range(3)
    ]  # fmt: skip
    assert min(float(seconds) for seconds, _ in said) < 0.4 * pace()
    assert all(heavy.strip() == "[]" for _, heavy in said)


def test_a_hyperparameter_under_its_old_name(capsys, tmp_path):
    "`keep` is `checkpoint`: in a call, in a record, and when a run goes on."
    hp = Hyperparams.of("sample", keep="best")
    assert hp.checkpoint == "best" and "keep" not in hp.asdict()
    assert "keep is now checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="checkpoint is given twice"):
        Hyperparams(keep="best", checkpoint="last")
    of_before = {k: v for k, v in hp.asdict().items() if k != "checkpoint"}
    of_before = {"hyperparams": of_before | {"keep": "best"}}
    assert differences(of_before, {"hyperparams": hp.asdict()}) == {}
    run = Run.open_for(tmp_path / "run", of_before)
    assert run.hyperparams["checkpoint"] == "best"
    assert Run.open_for(tmp_path / "run", {"hyperparams": hp.asdict()}).path == run.path

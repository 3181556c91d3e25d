"""Folders that version 0.1.0 wrote stay readable.

`kept/runs-0.1.0.zip` holds a run, and a sweep of two, of the preset smoke, as that version
left them: without images and label files, with weights of zeros, and with `@HOME@` for the
folder that was above them.
"""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_raster

from rvtutorial import viz
from rvtutorial.runs import Run, find_runs
from rvtutorial.sweep import Sweep

KEPT = Path(__file__).parent / "kept" / "runs-0.1.0.zip"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    home = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(KEPT) as file:
        file.extractall(home / "runs")
    for path in (home / "runs").rglob("*"):
        if path.suffix in (".json", ".sh", ".csv", ".out", ".log", ".yaml"):
            path.write_text(path.read_text().replace("@HOME@", str(home)))
    return home / "runs"


def test_runs_are_found_and_tell_their_story(kept):
    runs = find_runs(kept)
    assert [run.name for run in runs] == ["first", "lr=1e-2", "lr=5e-3"]
    assert {run.state for run in runs} == {"succeeded"}
    run = runs[0]
    assert run.hyperparams["chip_sz"] == 128 and run.hyperparams["lr"] == 5e-3
    assert run.results["validation"]["f1"] == pytest.approx(
        run.evaluation()["overall"][0]["metrics"]["f1"], abs=1e-4
    )
    assert run.scene_ids("test") == ["7", "8"] and len(run.log()) == 2
    assert run.prediction("5").is_file() and run.scores("5").is_file()
    assert run.manifest["went"]["stages"][0]["name"] == "train"


def test_the_sweep_is_a_sweep(kept):
    sweep = Sweep(kept / "rates")
    assert list(sweep.runs()) == ["lr=5e-3", "lr=1e-2"]
    assert [run.hyperparams["lr"] for run in sweep.runs().values()] == [5e-3, 1e-2]
    assert {run.state for run in sweep.runs().values()} == {"succeeded"}


def test_runs_are_compared(kept):
    board = viz.leaderboard({run.name: run for run in find_runs(kept)})
    scores = {name: Run(kept / place).results["validation"]["f1"] for name, place in {
        "first": "first", "lr=5e-3": "rates/lr=5e-3", "lr=1e-2": "rates/lr=1e-2"
    }.items()}  # fmt: skip
    assert board["pixel_f1"].to_dict() == pytest.approx(scores, abs=1e-6)
    assert viz.plot_metrics(Run(kept / "first")).axes


def test_the_bundle_predicts(kept, tmp_path):
    from rvtutorial import engine

    rng = np.random.default_rng(0)
    image = tmp_path / "new.tif"
    write_raster(image, rng.integers(1, 2000, (3, 150, 200), np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = engine.predict(
            kept / "first" / "bundle" / "model-bundle.zip", image, tmp_path / "maps",
            progress=False,
        )  # fmt: skip
    assert made is not None and list((tmp_path / "maps").rglob("*.tif"))

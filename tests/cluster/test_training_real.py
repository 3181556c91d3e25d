"""A training by Lightning as a job of this Slurm: alone, and in two processes that find each other by its variables."""

import sys

import numpy as np
import pytest

from rvtutorial.course import command
from rvtutorial.hpc.scheduler import SLURM
from rvtutorial.runs import Run
from rvtutorial.slurm import Site, submit
from rvtutorial.sweep import Sweep

ALIKE = {
    "preset": "smoke", "model": "segmentationcnn", "batch_norm": "false",
    "embedding_size": "8", "precision": "float32", "augment": False, "epochs": 3,
    "checkpoint": "last", "wandb": "off", "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_queue(workplace, monkeypatch, tmp_path_factory):
    "Each test has a local queue of its own; data that lessons make is shared."
    monkeypatch.setenv("RVTUTORIAL_QUEUE", str(tmp_path_factory.mktemp("queue")))
    monkeypatch.setenv("RVTUTORIAL_HOME", str(workplace / "home"))
    SLURM.forget()


def test_two_tasks_equal_one_with_batches_twice_as_large(slurm, partition, workplace):
    pytest.importorskip("lightning")
    site = Site(
        name="one", partition=partition, account=slurm.account, mem="3G", cpus=1,
        time=30, python=sys.executable,
    )  # fmt: skip
    place = workplace / "lightning"
    jobs = {
        "one": (site, {"batch_sz": 4}),
        "two": (site.replace(tasks=2), {"batch_sz": 2, "devices": 2}),
    }
    for name, (where, own) in jobs.items():
        submit(place / name, {**ALIKE, **own}, where, "train_lightning").wait()
    one, two = (Run(place / name).log() for name in jobs)
    assert np.allclose(one.train_loss, two.train_loss, atol=1e-3)
    assert np.allclose(one.val_loss, two.val_loss, atol=1e-3)
    assert Run(place / "two").manifest["went"]["lightning"]["processes"] == 2


SWEEP = """program: train_lightning.ipynb
method: grid
metric: {name: macro_iou, goal: maximize}
parameters:
  model_type: {values: [SegmentationCNN, UNet]}
  embedding_size: {value: 8}
  max_epochs: {value: 2}
"""


def test_a_sweep_of_the_course_is_one_array(slurm, partition, workplace, capsys):
    pytest.importorskip("lightning")
    place = workplace / "course"
    place.mkdir()
    (place / "sweep.yml").write_text(SWEEP)
    (place / "site.toml").write_text(
        f'partition = "{partition}"\naccount = "{slurm.account}"\nmem = "3G"\ncpus = 1\n'
        f'time = 30\nqueue = "slurm"\npython = "{sys.executable}"\n'
    )
    words = ["--sweep_file", str(place / "sweep.yml"), "--preset=smoke", "--wandb=off"]
    words += ["--site", str(place / "site.toml"), "--output_uri", str(place / "s")]
    assert command.main(words) == 0
    assert "macro_iou" in capsys.readouterr().out
    runs = Sweep(place / "s").runs(finished=True)
    assert {run.hyperparams["model"] for run in runs.values()} == {
        "segmentationcnn", "courseunet",
    }  # fmt: skip
    attempts = [run.manifest["went"]["attempts"][0]["slurm"] for run in runs.values()]
    assert len({a["array_job_id"] for a in attempts}) == 1

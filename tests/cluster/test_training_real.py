"""A training by Lightning as a job of this Slurm: alone, and in two processes that find each other by its variables."""

import sys

import numpy as np
import pytest

from rvtutorial.hpc.scheduler import SLURM
from rvtutorial.runs import Run
from rvtutorial.slurm import Site, submit

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

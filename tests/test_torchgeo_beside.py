"""The parts of the comparison with torchgeo that need no torchgeo."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "bench" / "torchgeo_beside.py"


@pytest.fixture(scope="module")
def beside():
    spec = importlib.util.spec_from_file_location("torchgeo_beside", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_ours_by_torchgeo_turn_by_turn(beside):
    def row(method, seconds):
        return dict(method=method, F1=0.9, steps=8) | dict.fromkeys(
            beside.TIMES, seconds
        )

    pairs = [(2, 4), (3, 4), (9, 10)]
    rows = [r for a, b in pairs for r in (row("ours", a), row("tuned", b))]
    ours, tuned = beside.summary(rows)
    assert (ours["train s"], tuned["train s"]) == (3, 4)
    assert (tuned["ratio train"], tuned["min"], tuned["max"]) == (0.75, 0.5, 0.9)
    assert "ratio train" not in ours and tuned["bar"] == beside.BAR


def test_f1(beside):
    assert beside.f1(6, 2, 2) == 0.75
    assert beside.f1(0, 0, 0) == 0


def test_schedule_is_that_of_raster_vision(beside):
    from rastervision.pytorch_learner import SolverConfig
    from torch import nn, optim

    solver = SolverConfig(lr=0.01, num_epochs=5, batch_sz=8, one_cycle=True)
    opt = optim.Adam(nn.Linear(1, 1).parameters(), lr=0.01)
    made = solver.build_step_scheduler(opt, 44)
    up, down = beside.triangle(5, 44, 8)
    assert made.total_size == up + down == 25
    assert made.step_ratio == up / (up + down)

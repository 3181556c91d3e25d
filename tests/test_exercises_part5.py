"""Part 5's exercises: right answers pass, each wrong one is told what is wrong."""

import json
from pathlib import Path

import pytest

from rvtutorial.exercises import check
from rvtutorial.runs import STOCK

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "05_model_configuration.ipynb"

RIGHT = [
    ("5.1", "backend.solver.num_epochs"),
    ("5.1", "config.backend.solver.num_epochs"),
    ("5.2", {"padding": None}),
    ("5.2", {"padding": "none"}),
    ("5.2", {"padding": None, "img_sz": "none"}),
    ("5.3", 255 / 65535),
    ("5.3", 0.0039),
    ("5.4", {"epochs", "seed"}),
    ("5.4", ["hyperparams.seed", "hyperparams.epochs"]),
]
WRONG = {
    "5.1": [
        ("solver.num_epochs", "begins at the root"),
        ("backend.solver.epochs", "our name"),
        ("backend.solver.lr", "learning rate"),
        ("backend.model.num_epochs", "not for how long"),
        ("train.epoch_count", "outline(config)"),
        (8, "a path is a text"),
    ],
    "5.2": [
        ({"padding": 0}, "nothing changed"),
        ({"padding": 110}, "until chip_sz changes"),
        ({"padding": "half"}, "refuses it: padding must be"),
        ({"paddin": None}, "did you mean 'padding'"),
        (STOCK, "every departure"),
        ({"padding": None, "lr": 1e-3}, "more than padding changed: lr"),
        ({"padding": 5}, "padding is 5"),
        ("padding=None", "a dict of names"),
    ],
    "5.3": [
        (1, "uint8 file"),
        (255, "does divide"),
        (2047 / 65535, "11 bits; here"),
        (255 / 2047, "could hold, not by"),
        (0.5, "divide the largest"),
        ("0.0039", "a number is asked"),
    ],
    "5.4": [
        ({"lr", "epochs", "seed"}, "is cast"),
        ({"preset", "epochs", "seed"}, "not the name"),
        ({"data.path", "epochs", "seed"}, "may move"),
        ({"data.digest", "epochs", "seed"}, "look again"),
        ({"epochs"}, "seed counts"),
        ({"seed"}, "stretch the schedule"),
        ({"seed", "epochs", "chips"}, "no chips"),
        ("epochs", "a set of names"),
    ],
}


@pytest.mark.parametrize("number, answer", RIGHT)
def test_a_right_answer_passes(number, answer):
    verdict = check(number, answer)
    assert verdict and verdict.right is True, verdict


@pytest.mark.parametrize(
    "number, answer, fragment",
    [(n, a, f) for n, pairs in WRONG.items() for a, f in pairs],
)
def test_a_wrong_answer_is_told_why(number, answer, fragment):
    verdict = check(number, answer)
    assert verdict.right is False
    assert fragment in verdict.message


@pytest.mark.parametrize("number", WRONG)
def test_each_wrong_answer_has_a_message_of_its_own(number):
    messages = [check(number, answer).message for answer, _ in WRONG[number]]
    assert len(set(messages)) == len(messages) >= 3


@pytest.mark.parametrize("number", WRONG)
def test_no_answer_is_no_failure(number):
    verdict = check(number, ...)
    assert verdict.right is None and "not answered" in verdict.message


@pytest.mark.parametrize("number", WRONG)
def test_question_and_solution_are_in_the_part(number):
    notebook = json.loads(NOTEBOOK.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in notebook]
    solutions = next(i for i, t in enumerate(texts) if "## Solutions" in t)
    asked = [i for i, t in enumerate(texts) if f'check("{number}"' in t]
    assert len(asked) == 2
    assert asked[0] < solutions < asked[1]
    assert "answer = ..." in texts[asked[0]]
    assert f'assert check("{number}", answer)' in texts[asked[1]]

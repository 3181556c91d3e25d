"""Part 4's exercises: right answers pass, typical wrong ones are told apart."""

import json
from pathlib import Path

import pytest

from rvtutorial.exercises import check

PART = Path(__file__).resolve().parent.parent / "nbs" / "04_dataset.ipynb"
RIGHT = {
    "4.1": [("images/image_part_{id}.jpg", "masks/image_part_{id}.png"), ["images/{id}.jpg", "masks/{id}.png"]],
    "4.2": [(0, 0.39), (0.0, 0.387)],
    "4.3": [(0.5, 0.0093)],
}  # fmt: skip
WRONG = {
    "4.1": [
        ("images/image_part_001.jpg", "masks/image_part_001.png", "no {id}"),
        ("Tile {id}/images/*.jpg", "Tile {id}/masks/*.png", "one id"),
        ("image_part_{id}.jpg", "image_part_{id}.png", "one folder deeper"),
        ("images/image_part_{id}.png", "masks/image_part_{id}.jpg", "endings"),
        ("images/image_part_{id}.jpg", "masks/{id}.png", "same text"),
    ],
    "4.2": [
        (0.76, 0.24, "accuracy"),
        (0.5, 0.39, "without a single hit"),
        (0, 0.24, "precision"),
        (0, 0.62, "harmonic"),
        (0, 1, "recall: every"),
        (0, 0.5, "2pr"),
    ],
    "4.3": [
        (0.298, 0.0093, "maximum"),
        (0.5545, 0.0093, "take 120 off"),
        (0.4455, 0.0093, "width of the range"),
        (0.7, 0.0093, "(value - low)"),
        (0.5, 0.9, "one per cent"),
    ],
}


@pytest.mark.parametrize(
    "number, answer", [(n, a) for n, all_ in RIGHT.items() for a in all_]
)
def test_right(number, answer):
    verdict = check(number, answer)
    assert verdict, verdict


@pytest.mark.parametrize("number", WRONG)
def test_wrong_answers_are_told_apart(number):
    messages = []
    for first, second, told in WRONG[number]:
        verdict = check(number, (first, second))
        assert verdict.right is False and told in verdict.message, verdict
        messages.append(verdict.message)
    assert len(set(messages)) == len(messages) >= 3


@pytest.mark.parametrize("number", RIGHT)
@pytest.mark.parametrize("answer", [None, 3, "x", ("a", "b", "c"), ("a", None)])
def test_nonsense_is_answered(number, answer):
    assert check(number, answer).right is False


@pytest.mark.parametrize("number", RIGHT)
def test_open_and_solved_in_the_part(number):
    assert check(number).right is None
    sources = ["".join(c["source"]) for c in json.loads(PART.read_text())["cells"]]
    assert any(
        "answer = ..." in s and f'check("{number}", answer)' in s for s in sources
    )
    (solution,) = [s for s in sources if f'assert check("{number}", answer)' in s]
    scope = {"check": check}
    exec(solution, scope)

"Part 7's exercises: the right answer passes, each usual mistake gets its own sentence."

import json
from pathlib import Path

import pytest

from rvtutorial.exercises import CHECKS, check

ROOT = Path(__file__).resolve().parent.parent
RIGHT = {
    "7.1": [0.19, 1 - 0.9**2],
    "7.2": [0.626, 0.139 / 0.222],
    "7.3": [0.829, 170 / 205],
}
RIGHT["7.4"] = ["cannot be told apart", '"Cannot be told apart."']
WRONG = {
    "7.1": {
        0.1: "areas",
        0.2: "corner",
        0.81: "reached",
        0.01: "only the corner",
        19: "per cent",
        0.0: "0.30 did not",
        0.5: "three chips",
        "a tenth": "a number is asked",
    },
    "7.2": {
        0.770: "that is F1",
        0.858: "precision",
        0.698: "recall",
        0.917: "accuracy",
        0.139: "intersection. IoU",
        0.222: "that is the union",
        0.5: "intersection over union",
    },
    "7.3": {
        0.754: "mean of the two",
        0.708: "IoU of both",
        0.842: "first scene alone",
        0.667: "second scene alone",
        0.85: "precision or recall",
        0.5: "divide once",
    },
    "7.4": {
        "A is better": "0 is inside",
        "they are equal": "not the same as",
        "B is better": "lower one",
        "maybe": "choose one",
    },
}


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_pass(number):
    for answer in RIGHT[number]:
        assert check(number, answer), answer
    assert check(number).right is None


@pytest.mark.parametrize("number", WRONG)
def test_usual_mistakes_get_a_sentence_each(number):
    told = {}
    for answer, words in WRONG[number].items():
        verdict = check(number, answer)
        assert not verdict and verdict.right is False
        assert words in verdict.message, (answer, verdict.message)
        told[answer] = verdict.message
    assert len(set(told.values())) == len(told) >= 3


def test_every_exercise_is_asked_and_solved_in_the_part():
    cells = json.loads((ROOT / "nbs" / "07_evaluation.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    headings = ("## Exercises", "## Solutions")
    found = [[i for i, t in enumerate(texts) if h in t.splitlines()] for h in headings]
    (asked,), (solved,) = found
    numbers = [number for number in CHECKS if number.startswith("7.")]
    assert numbers == list(RIGHT)
    for number in numbers:
        call = f'check("{number}", answer)'
        assert any(
            call in text and "answer = ..." in text for text in texts[asked:solved]
        )
        assert any(f"assert {call}" in text for text in texts[solved:])

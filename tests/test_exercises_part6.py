"""Part 6's exercises: right answers pass, and each usual mistake hears its own sentence."""

import json
from pathlib import Path

import pytest

from rvtutorial.exercises import check

RIGHT = {
    "6.1": [72],
    "6.2": ["255:building,0:background", " 0 : background , 255 : building "],
    "6.3": [
        "rastervision run inprocess rvtutorial.config -a output_uri runs/second -a lr 1e-3",
        "rastervision run -a lr 0.001 --arg output_uri runs/second inprocess rvtutorial.config",
    ],
}
BEGIN, GOAL = (
    "rastervision run inprocess rvtutorial.config",
    "-a output_uri runs/second",
)
WRONG = {
    "6.1": {
        9: "one scene",
        24: "one row",
        40: "5 chips",
        80: "10 chips",
        128: "4 by 4",
        216: "training scenes",
        7: "not 7",
        "72": "whole number",
        True: "whole number",
    },
    "6.2": {
        "255:background,0:building": "all that is not one",
        "building:255,background:0": "other way round",
        "255:0,0:1": "named, not numbered",
        "255:building": "every value",
        "255:house,0:background": "not house",
        "building,background": "pairs",
        255: "pairs",
    },
    "6.3": {
        f"{BEGIN} -a lr 1e-3": "no output_uri",
        f"{BEGIN} {GOAL}": "no lr",
        f"{BEGIN} {GOAL} -a lr=1e-3": "equals sign",
        f"{BEGIN} {GOAL} --lr 1e-3": "no option",
        f"{BEGIN} {GOAL} -a lr 1e-4": "0.0001",
        f"{BEGIN} {GOAL} -a lr small": "needs a number",
        f"{BEGIN} -a output_uri runs/first -a lr 1e-3": "another folder",
        f"rastervision run local rvtutorial.config {GOAL} -a lr 1e-3": "every stage",
        f"rastervision run rvtutorial.config {GOAL} -a lr 1e-3": "runner",
        f"python -m rvtutorial.config {GOAL}": "begins with",
        3: "is a text",
    },
}


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_pass(number):
    for answer in RIGHT[number]:
        assert check(number, answer), check(number, answer)


@pytest.mark.parametrize("number", WRONG)
def test_each_usual_mistake_hears_its_own_sentence(number):
    messages = {}
    for answer, words in WRONG[number].items():
        verdict = check(number, answer)
        assert verdict.right is False, answer
        assert words in verdict.message, verdict.message
        messages.setdefault(words, verdict.message)
    assert len(set(messages.values())) == len(messages) >= 3


def test_a_dict_is_understood_but_not_the_answer():
    verdict = check("6.2", {255: "building", 0: "background"})
    assert verdict.right is False and "command line" in verdict.message


@pytest.mark.parametrize("number", RIGHT)
def test_no_answer_is_no_mistake(number):
    assert check(number, ...).right is None


@pytest.mark.parametrize("number", RIGHT)
def test_the_part_asks_and_solves(number):
    path = Path(__file__).parent.parent / "nbs" / "06_code_breakdown.ipynb"
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    start = next(i for i, text in enumerate(cells) if text.startswith("## Solutions"))
    asked = [text for text in cells[:start] if f'check("{number}", answer)' in text]
    solved = [
        text for text in cells[start:] if f'assert check("{number}", answer)' in text
    ]
    assert len(asked) == len(solved) == 1
    assert "answer = ..." in asked[0]
    names: dict = {}
    if number != "6.2":
        exec(solved[0], {"check": check}, names)

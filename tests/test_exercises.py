"""The exercises: right answers pass, and each typical mistake hears a sentence of its own."""

import json
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

from rvtutorial.exercises import CHECKS, check

NBS = Path(__file__).resolve().parent.parent / "nbs"
RIGHT, WRONG = defaultdict(list), defaultdict(list)
for part in range(1, 9):
    answers = import_module(f"answers.part{part}")
    for number, right in answers.RIGHT.items():
        RIGHT[number] += right
    for number, mistakes in answers.WRONG.items():
        WRONG[number] += mistakes


def pairs(table):
    return [(number, case) for number in table for case in table[number]]


@pytest.mark.parametrize("number, answer", pairs(RIGHT))
def test_right_answers_pass(number, answer):
    verdict = check(number, answer)
    assert verdict, verdict


@pytest.mark.parametrize("number, mistake", pairs(WRONG))
def test_a_mistake_is_told_what_is_wrong(number, mistake):
    answer, words = mistake
    verdict = check(number, answer)
    assert verdict.right is False and words in verdict.message, verdict


@pytest.mark.parametrize("number", CHECKS)
def test_at_least_three_mistakes_have_messages_of_their_own(number):
    told = {words: check(number, answer).message for answer, words in WRONG[number]}
    assert len(set(told.values())) == len(told) >= 3
    assert RIGHT[number]


@pytest.mark.parametrize("number", CHECKS)
@pytest.mark.parametrize("answer", [None, object(), -1e9, "?", (), {}, [None, None]])
def test_nonsense_is_a_wrong_answer_and_no_crash(number, answer):
    assert check(number, answer).right is False


@pytest.mark.parametrize("number", CHECKS)
def test_no_answer_is_no_mistake(number):
    verdict = check(number)
    assert verdict.right is None and "not answered" in verdict.message


@pytest.mark.parametrize("number", CHECKS)
def test_the_part_asks_and_solves_it(number):
    (path,) = NBS.glob(f"0{number[0]}_*.ipynb")
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    solutions = next(i for i, s in enumerate(sources) if "## Solutions" in s)
    call = f'check("{number}", '
    asked = [s for s in sources[:solutions] if call in s]
    assert len(asked) == 1 and " = ..." in asked[0]
    assert sum(f"assert {call}" in s for s in sources[solutions:]) == 1


def test_there_is_no_such_exercise():
    with pytest.raises(KeyError, match="no exercise '9.9'"):
        check("9.9", 1)

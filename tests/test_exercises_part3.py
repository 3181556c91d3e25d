"""Part 3's checks: the right answer passes, each usual mistake gets a word of its own."""

import json
from pathlib import Path

import pytest

from rvtutorial.exercises import check

PART = Path(__file__).parent.parent / "nbs" / "03_apptainer_image.ipynb"

RIGHT = {
    "3.1": [
        "/shared/rv/labels:/opt/data/labels:ro",
        "/shared/rv/labels/:/opt/data/labels/:ro",
    ],
    "3.2": ["--cleanenv", "-e", " --cleanenv "],
    "3.3": ["nowhere", "Nowhere"],
}
WRONG = {
    "3.1": [
        ("/shared/rv/labels:/opt/data/labels", "could still write there"),
        ("/opt/data/labels:/shared/rv/labels:ro", "yours are swapped"),
        ("/shared/rv/labels", "without a colon"),
        ("/shared/rv/labels:/opt/data/labels:readonly", "'readonly' is not one"),
        ("--bind /shared/rv/labels:/opt/data/labels:ro", "without the flag"),
        ("/shared/rv/label:/opt/data/labels:ro", "'/shared/rv/label' would appear"),
        (3, "a bind is a text"),
    ],
    "3.2": [
        ("--contain", "hides folders such as your home"),
        ("--containall", "hides much more"),
        ("--no-eval", "run as shell code"),
        ("--nv", "about the GPU"),
        ("--home", "which folder is the home"),
        ("--no-home", "hides the home folder"),
        ("--bind", "shows a folder"),
        ("--env", "one by one"),
        ("cleanenv", "two dashes"),
        ("PYTHONNOUSERSITE=1", "keeps ~/.local out"),
        ("--quiet", "is not the one"),
    ],
    "3.3": [
        ("image", "the image is read-only"),
        ("host", "without --contain"),
        ("input", "bound read-only"),
        ("cloud", "none of image, host"),
    ],
}


@pytest.mark.parametrize(
    ("number", "answer"), [(n, a) for n in RIGHT for a in RIGHT[n]]
)
def test_right(number, answer):
    assert check(number, answer)


@pytest.mark.parametrize(
    ("number", "answer", "words"), [(n, *w) for n in WRONG for w in WRONG[n]]
)
def test_wrong(number, answer, words):
    verdict = check(number, answer)
    assert verdict.right is False and words in verdict.message


@pytest.mark.parametrize("number", WRONG)
def test_messages_differ(number):
    messages = [check(number, answer).message for answer, _ in WRONG[number]]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("number", RIGHT)
def test_open_until_answered(number):
    assert check(number).right is None


def test_each_has_a_question_and_a_solution():
    cells = json.loads(PART.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for number in RIGHT:
        assert sum(f'check("{number}", answer)' in source for source in sources) == 2
        assert (
            sum(f'assert check("{number}", answer)' in source for source in sources)
            == 1
        )

"The parts have the same form, state their time, and link the glossary."

import json
import re

import lesson_form
import pytest
from lesson_form import NBS, PARTS, cells


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_every_part_has_the_same_form(part):
    text = "\n\n".join(text for kind, text in cells(part) if kind == "markdown")
    assert text.startswith("# Part ")
    for wanted in ("| you need |", "After this part you can", "you are here"):
        assert text.count(wanted) == 1, wanted
    assert text.index("## Key points") < text.index("## Exercises")
    stated = int(lesson_form.STATED.search(text)[1])
    assert stated == lesson_form.minutes(part), "python tests/lesson_form.py --write"
    assert int(lesson_form.ASKED.search(text)[1]) == lesson_form.exercises(part)


def test_minutes_are_words_and_cells(tmp_path):
    text = [("markdown", "word " * 1800), ("code", "a = 1"), ("code", "b = 2")]
    text += [("code", "#| hide\nc = 3"), ("code", "answer = ...")]
    text += [("markdown", "## Solutions"), ("markdown", "word " * 9000)]
    book = {"cells": [{"cell_type": k, "source": [t]} for k, t in text]}
    part = tmp_path / "part.ipynb"
    part.write_text(json.dumps(book))
    assert lesson_form.minutes(part) == 10  # 9 of words, 1 of code
    assert lesson_form.exercises(part) == 1


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_the_first_use_of_a_word_is_linked(part):
    title, *texts = [text for kind, text in cells(part) if kind == "markdown"]
    assert "](" not in title  # it becomes the docstring of the module
    for anchor, pattern in lesson_form.words().items():
        at = lesson_form.first_use(texts, pattern)
        if at and not lesson_form.linked(texts, anchor):
            i, a, b = at
            raise AssertionError(f"{texts[i][a:b]!r} is not linked in {part.name}")


def test_links_to_the_glossary_arrive():
    known = {name for name in re.findall(r"^### (.+)$", glossary(), re.M)}
    anchors = {name.lower().replace(" ", "-") for name in known}
    assert len(anchors) == len(known) >= 70
    for path in [*NBS.rglob("*.ipynb"), *(NBS.parent / "docs").glob("*.md")]:
        for anchor in re.findall(r"glossary\.md#([\w-]+)", path.read_text()):
            assert anchor in anchors, f"{path.name}: {anchor}"


def glossary():
    return (NBS / "glossary.md").read_text()

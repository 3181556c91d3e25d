"The page of the stable names: each can be imported, and is described as its docstring says."

import re
from importlib import import_module
from inspect import getdoc
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "public_names.md").read_text()


def test_the_page_says_what_the_docstrings_say():
    lines = PAGE.splitlines()
    rows = [re.match(r"\| `([\w.]+)\.(\w+)` \| (.+) \|$", line) for line in lines]
    rows = [row.groups() for row in rows if row]
    assert 40 <= len(rows) <= 55
    for module, name, says in rows:
        found = getattr(import_module(f"rvtutorial.{module}"), name)
        assert getdoc(found).splitlines()[0] == says, f"{module}.{name}"


def test_what_the_readme_calls_is_on_the_page():
    text = (ROOT / "README.md").read_text()
    called = re.findall(r"\b((?:scenes|viz|engine)\.\w+)\(", text)
    assert {"scenes.split_by_area", "viz.leaderboard", "engine.run"} <= {*called}
    assert [name for name in called if f"`{name}`" not in PAGE] == []

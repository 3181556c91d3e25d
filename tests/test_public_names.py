"The page of the stable names: each can be imported, and is described as its docstring says."

import re
from importlib import import_module
from inspect import getdoc
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "public_names.md"


def test_the_page_says_what_the_docstrings_say():
    lines = PAGE.read_text().splitlines()
    rows = [re.match(r"\| `([\w.]+)\.(\w+)` \| (.+) \|$", line) for line in lines]
    rows = [row.groups() for row in rows if row]
    assert 40 <= len(rows) <= 50
    for module, name, says in rows:
        found = getattr(import_module(f"rvtutorial.{module}"), name)
        assert getdoc(found).splitlines()[0] == says, f"{module}.{name}"

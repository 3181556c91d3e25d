"""How large the package is: lines, public names, names that several modules define; how much of a part is library.

python tests/bench/size.py [CHECKOUT]
"""

import ast
import json
import sys
from collections import Counter
from pathlib import Path

ALIASES = ("_old_names.py", "core/renamed.py")  # they go with the next release


def count(package: Path) -> dict[str, object]:
    "Functions and classes at the top level without an underscore are public names."
    paths = [p for p in sorted(package.rglob("*.py")) if p.name != "_modidx.py"]
    lines = {p.relative_to(package).as_posix(): p.read_text() for p in paths}
    names = Counter(
        node.name
        for text in lines.values()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    )
    total = {name: text.count("\n") for name, text in lines.items()}
    return {
        "lines": sum(total.values()),
        "lines without aliases": sum(n for p, n in total.items() if p not in ALIASES),
        "public names": names.total(),
        "names in several modules": sorted(n for n, many in names.items() if many > 1),
        "lines of the report": sum(
            len((package / "figures" / f"report.{kind}").read_text().splitlines())
            for kind in ("py", "html")
        ),
    }


def exports(notebook: Path) -> tuple[int, int]:
    "Lines of code in exported cells, and in all cells; blank ones and directives do not count."
    found = [0, 0]
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            code = [line.strip() for line in text.splitlines()]
            lines = sum(bool(line) and line[:2] != "#|" for line in code)
            exported = any(mark in text for mark in ("#| export", "#|export"))
            found[0] += lines * exported
            found[1] += lines
    return tuple(found)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[2]
    for what, value in count(root / "rvtutorial").items():
        print(f"{what:26}{value}")
    for path in sorted((root / "nbs").glob("0*.ipynb")):
        made, every = exports(path)
        print(
            f"exports of Part {path.name[1]:10}{made} of {every} ({made / every:.0%})"
        )

"""Put together what the site is built from: the notebooks, the pages of docs/, and the public names.

    python docs/site.py FOLDER

Nothing is executed but the imports of the modules whose names are described. Sphinx then
makes HTML of the folder (`make docs`).
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WINGS = {
    "data": "Scenes and labels",
    "metrics": "Counting, intervals, thresholds",
    "models": "Networks",
    "engine": "Training and prediction",
    "hpc": "Clusters",
    "sweeps": "Sweeps",
    "figures": "Figures",
    "course": "The course on monitoring, and exercises",
}


def appendices(nbs: Path) -> str:
    "A page that lists the lessons of each wing, for the table of contents."
    text = ["# Appendices by subject", ""]
    for wing, title in WINGS.items():
        pages = sorted((nbs / wing).glob("*.ipynb"))
        text += [f"## {title}", "", "```{toctree}", ":maxdepth: 1", ""]
        text += [f"nbs/{wing}/{page.stem}" for page in pages]
        text += ["```", ""]
    return "\n".join(text)


def public_names(page: str) -> str:
    "The page of the public names, each described from its docstring and its parameters' comments."
    row = re.compile(r"^\| `([\w.]+)\.(\w+)` \| .+ \|$")
    text = []
    for line in page.splitlines():
        if found := row.match(line):
            module, name = found.groups()
            kind = "class" if name[0].isupper() else "function"
            directive = f".. auto{kind}:: rvtutorial.{module}.{name}"
            members = ["   :members:"] if kind == "class" else []
            text += ["```{eval-rst}", directive, *members, "```", ""]
        elif not line.startswith("|"):
            text.append(line)
    return "\n".join(text)


def make(folder: Path) -> None:
    "Write all pages into a new folder."
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns(".ipynb_checkpoints", "jobs")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=unwanted)
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, folder)
    (folder / "appendices.md").write_text(appendices(folder / "nbs"))
    names = folder / "public_names.md"
    names.write_text(public_names(names.read_text()))


if __name__ == "__main__":
    make(Path(sys.argv[1]))

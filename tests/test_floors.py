"""Who may import whom: a module imports only from the floors below its own."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "rvtutorial"
# half floors hold what a part's module is made of and shows as its own
FLOORS = {
    -1: {"files", "gdalnames"},  # written by hand, as plumbing is
    -0.8: {"records"},  # plumbing: how records are read
    -0.5: {"places", "validity"},
    0: {"chips", "container", "runs", "sources"},
    0.1: {"counting"},
    0.2: {"comparisons"},
    0.3: {"calibration"},
    0.4: {"forks", "labels", "sites"},
    0.5: {"clusters"},
    0.45: {"masks"},
    0.6: {"pairs", "queues"},
    0.7: {"search"},
    1: {"scenes", "slurm", "models", "metrics", "sweepfile", "ondemand"},
    1.1: {"mapfiles", "reading", "tracking"},
    1.2: {"batches", "mapping", "scoring", "speed"},
    1.5: {"drawing", "inputs", "learner"},
    2: {"config", "engine", "jobs", "tiles"},
    1.6: {"bundles", "page"},
    1.7: {"swipe"},
    2.5: {"trials"},
    2.6: {"plots"},
    2.7: {"sweepplots"},
    3: {"sweep", "viz", "thresholds", "buildings"},
    3.5: {"housekeeping"},
    4: {"training", "report", "exercises"},
    5: {"cli"},
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                found |= {module} if module else {a.name for a in node.names}
            elif module == "rvtutorial":
                found |= {a.name for a in node.names}
            elif module.startswith("rvtutorial."):
                found.add(module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {
                a.name.split(".")[1]
                for a in node.names
                if a.name.startswith("rvtutorial.")
            }
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize(
    "path",
    sorted(p for p in LIBRARY.glob("*.py") if not p.stem.startswith("_")),
    ids=lambda p: p.stem,
)
def test_imports_go_down(path):
    mine = path.stem
    assert mine in FLOOR, f"{mine} stands on no floor: add it to FLOORS and the design"
    for other in imported(path) & FLOOR.keys():
        below = FLOOR[other] < FLOOR[mine]
        assert below, f"{mine} (floor {FLOOR[mine]}) imports {other} ({FLOOR[other]})"

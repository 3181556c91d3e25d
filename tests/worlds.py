"Simulated scenes and runs: the code of the lesson on intervals, from its notebook."

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from rvtutorial.metrics import intervals

LESSON = Path(__file__).parent.parent / "nbs" / "metrics" / "intervals.ipynb"
NAMES = ("class World:", "def trials(", "def plot_power(")


def code() -> str:
    "The source of the three cells."
    cells = json.loads(LESSON.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(next(s for s in sources if name in s) for name in NAMES)


_made = {**vars(intervals), "__name__": __name__, "np": np, "plt": plt}
exec(compile(code(), str(LESSON), "exec"), _made)
World, trials, power = _made["World"], _made["trials"], _made["power"]
plot_power = _made["plot_power"]

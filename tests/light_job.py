"""A job notebook that trains nothing, but leaves what a training leaves; for sweeps.

Every epoch is a line of `train/log.csv` and of `epochs.txt`, which is only ever appended
to, so that it shows what was done twice. The score depends on the learning rate.
"""

import nbformat

PARAMETERS = """output_uri: str = None
preset: str = "sample"
data: str = None
epochs: int = None
lr: float = None
seed: str = None
pause: int = None"""

BODY = """import math, time
from pathlib import Path
from fake_runs import evaluation, write_log
from rvtutorial.core.records import write_json
from rvtutorial.runs import Run
folder, whole = Path(output_uri or "."), int(epochs or 4)
rate, last = float(lr or 1e-3), min(int(pause or whole), whole)
run = Run(folder)
found = max(0.05, 0.9 - 0.1 * abs(math.log10(rate / 3e-3)))
if rate > 0.5:
    raise RuntimeError("the loss is not a number")"""

TRAIN = """done = 0
if (folder / "train" / "log.csv").exists():
    done = len((folder / "train" / "log.csv").read_text().splitlines()) - 1
for epoch in range(done, last):
    time.sleep(PACE)
    with open(folder / "epochs.txt", "a") as file:
        file.write(f"{epoch}\\n")
    write_log(folder / "train" / "log.csv", epoch + 1, found)"""

END = """run.update("went", paused=last if last < whole else None)
if last == whole and not (folder / "eval").exists():  # a stage is done once
    tp = round(2000 * found)
    matrices = {f"s{i}": [[tp + i, 2000 - tp, 0], [200, 9000, 0], [0, 0, 0]] for i in range(5)}
    write_json(folder / "eval" / "validation_scenes" / "eval.json", evaluation(matrices))
    with open(folder / "finished.txt", "a") as file:
        file.write("once\\n")"""


def light_job(path, tests, pace=0.02, first=""):
    "Write the notebook; `tests` is the folder of `fake_runs`, `first` comes before epoch 0."
    new = nbformat.v4.new_code_cell
    imports = f"import sys\nsys.path.insert(0, {str(tests)!r})"
    tagged = new(PARAMETERS, metadata={"tags": ["parameters"]})
    train = TRAIN.replace("PACE", str(pace))
    cells = [new(imports), tagged, *map(new, (BODY, first, train, END))]
    book = nbformat.v4.new_notebook(cells=cells)
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    book.metadata["kernelspec"] = kernel
    path.write_text(nbformat.writes(book))
    return path

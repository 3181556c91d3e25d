"""What runs of one submission gain from sharing their start.

    python tests/bench/starts.py [RUNS] [PRESET] [TURNS]

The same RUNS learning rates (6) with a preset (smoke) by the local queue, once with
kernels that start from nothing and once with kernels of a forkserver that has imported
what the notebook imports; the two take turns. Wall seconds of the whole submission, the same for each
run after the second, and the ratio; weights must be equal byte for byte.
"""

import json
import os
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from rvtutorial.runs import Run
from rvtutorial.slurm import submit_many


def submission(folder, runs, preset):
    "Seconds of all runs and of a later one, and the bytes of all weights."
    folder.mkdir()
    params = {folder / f"run{i}": dict(preset=preset, lr=1e-3) for i in range(runs)}
    submit_many(params).wait(progress=False)
    times = [Run(run).manifest["went"]["attempts"][-1] for run in params]
    began, ended = ([datetime.fromisoformat(t[k]) for t in times] for k in
                    ("started", "ended"))  # fmt: skip
    later = [
        (b - a).total_seconds() for a, b in zip(began[1:], began[2:], strict=False)
    ]
    weights = {(run / "train" / "last-model.pth").read_bytes() for run in params}
    return (ended[-1] - began[0]).total_seconds(), statistics.median(later), weights


def main(runs=6, preset="smoke", turns=2):
    found = {"fresh": [], "copies": []}
    with tempfile.TemporaryDirectory() as place:
        os.environ["RVTUTORIAL_QUEUE"] = f"{place}/queue"
        for turn in range(turns):
            for kind, rows in found.items():
                os.environ["RVTUTORIAL_FRESH"] = str(int(kind == "fresh"))
                rows.append(submission(Path(place, f"{kind}{turn}"), runs, preset))
                print(kind, *(f"{s:.1f} s" for s in rows[-1][:2]), flush=True)
    whole, later = (
        [a[i] / b[i] for a, b in zip(*found.values(), strict=True)] for i in (0, 1)
    )
    equal = len(set().union(*(row[2] for rows in found.values() for row in rows))) == 1
    print(json.dumps(dict(runs=runs, preset=preset, all_runs=whole, later_runs=later,
                          weights_equal=equal)))  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*(int(a) if a.isdigit() else a for a in given))

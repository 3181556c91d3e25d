"""Is a model of the engine as good as one of plain Raster Vision? Five seeds of each.

    python tests/bench/accuracy.py [SEEDS] [FOLDER]

Both run the sample preset, same configuration, on the same scenes; the scores are pixel
F1 of buildings on whole validation scenes. Seeds of the two do not belong together: stock
draws its windows in another way. About ten minutes of two cores.
"""

import sys
import tempfile
from pathlib import Path

import pandas as pd

from rvtutorial import engine
from rvtutorial.config import get_config
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.runs import Run


def score(root, data, name, seed):
    "F1 on validation and test scenes, and minutes."
    folder = root / f"{name}-{seed}"
    config = get_config("inprocess", folder, "sample", data, seed=seed)
    engine.run(config, ["train", "predict", "eval"], engine=name, progress=False)
    run = Run(folder)
    minutes = sum(s["seconds"] for s in run.manifest["went"]["stages"]) / 60
    found = {split: run.results[split]["f1"] for split in ("validation", "test")}
    return {"engine": name, "seed": seed, **found, "minutes": round(minutes, 2)}


def main(seeds=5, root=None):
    root = Path(root or tempfile.mkdtemp())
    data = make_sample_scenes(root / "data")
    rows = []
    for seed in range(seeds):
        for name in ("fast", "stock"):  # taking turns
            rows.append(score(root, data, name, seed))
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1))
    table = pd.DataFrame(rows)
    numbers = table.groupby("engine")[["validation", "test", "minutes"]]
    print(numbers.agg(["mean", "std", "min", "max"]).round(4).T.to_string())
    for split in ("validation", "test"):
        mean, spread = numbers.mean()[split], numbers.std()[split]
        gap = mean["fast"] - mean["stock"]
        word = "less" if abs(gap) < spread.max() else "more"
        print(
            f"{split}: {gap:+.4f}, {word} than the spread of seeds {spread.max():.4f}"
        )
    return table


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 5, given[1] if len(given) > 1 else None)

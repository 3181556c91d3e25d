"""How much does stopping early lose? Full grids are trained once, rungs are replayed.

    python tests/bench/halving.py                 # replays results/halving.json
    python tests/bench/halving.py SEEDS FOLDER [RUNS]

The grid is the first course's seven learning rates with the sample preset. Each run's
F1 on validation chips after each epoch, and F1 on whole scenes at the end, are kept in
FOLDER/curves.json, and runs that stand there are not trained again; with RUNS at most so
many are trained in this call. About three minutes a seed on two cores. For several
ladders: the share of the full grid's epochs, and how far the trial that is left lies
behind the best of the full grid.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

from rvtutorial.core.records import read_json, write_json
from rvtutorial.runs import Run
from rvtutorial.sweeps.space import Halving

RATES = (1e-2, 1e-3, 1e-4, 1e-5, 5e-3, 2e-3, 8e-2)
EPOCHS = 8
LADDERS = [
    {"min_iter": 1, "eta": 2},
    {"min_iter": 1, "eta": 3},
    {"min_iter": 2, "eta": 2},
    {"min_iter": 2, "eta": 2, "strict": True},
    {"min_iter": 2, "eta": 3},
    {"min_iter": 2, "eta": 3, "strict": True},
    {"min_iter": 3, "eta": 3},
]
KEPT = Path(__file__).parent / "results" / "halving.json"
NEAR = 0.005  # F1 behind the best; the aim is that for at most 45 % of the epochs


def train(root, data, lr, seed):
    "Scores of one run: on chips after each epoch, on whole scenes at the end."
    from rvtutorial import engine
    from rvtutorial.config import get_config

    folder = root / f"lr={lr:g}-seed={seed}"
    config = get_config("inprocess", folder, "sample", data, seed=seed, lr=lr)
    engine.run(config, ["train", "predict", "eval"], progress=False)
    run = Run(folder)
    found = {"chips": run.log()["building_f1"].tolist()}
    found["scenes"] = run.results["validation"]["f1"]
    shutil.rmtree(folder)
    return found


def grids(seeds, root, most=None):
    "The curves of all seeds, trained where they are missing."
    from rvtutorial.data.synthetic import make_sample_scenes

    book = read_json(root / "curves.json", {})
    missing = [
        (s, lr) for s in range(seeds) for lr in RATES if f"{lr:g}/{s}" not in book
    ]
    if missing:
        data = root / "data"
        data = data if data.is_dir() else make_sample_scenes(data)
    for seed, lr in missing[:most]:
        book[f"{lr:g}/{seed}"] = found = train(root, data, lr, seed)
        write_json(root / "curves.json", book)
        print(f"seed {seed}, lr {lr:g}: F1 {found['scenes']:.4f}", flush=True)
    return book


def judge(book, seeds):
    "One line for each ladder and seed whose grid is complete."
    rows = []
    for seed in range(seeds):
        runs = {f"{lr:g}": book.get(f"{lr:g}/{seed}") for lr in RATES}
        if None in runs.values():
            continue
        chips = {lr: run["chips"] for lr, run in runs.items()}
        for given in LADDERS:
            left, spent = Halving.of(given, EPOCHS).replay(chips)
            row = {
                "ladder": " ".join(f"{k}={v}" for k, v in given.items()),
                "seed": seed,
            }
            row["share"] = spent / (EPOCHS * len(runs))
            row["left"] = left
            best = max(curve[-1] for curve in chips.values())
            row["behind, chips"] = best - chips[left][-1]
            best = max(run["scenes"] for run in runs.values())
            row["behind, scenes"] = best - runs[left]["scenes"]
            rows.append(row)
    return pd.DataFrame(rows)


def main(seeds=20, root=None, most=None):
    if root is None:
        table = judge(read_json(KEPT), seeds)
    else:
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        table = judge(grids(seeds, root, most), seeds)
    if not len(table):
        return table
    table["within"] = table["behind, chips"] <= NEAR
    columns = ["share", "behind, chips", "behind, scenes"]
    spread = table.groupby("ladder", sort=False)[columns].agg(["mean", "max"])
    spread[f"within {NEAR}"] = table.groupby("ladder", sort=False)["within"].mean()
    print(f"{table['seed'].nunique()} seeds")
    print(spread.round(4).to_string())
    return table


if __name__ == "__main__":
    given = sys.argv[1:]
    numbers = [int(given[i]) if len(given) > i else None for i in (0, 2)]
    main(numbers[0] or 20, given[1] if len(given) > 1 else None, numbers[1])

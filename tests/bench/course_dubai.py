"""The course's networks on real imagery: five classes of Dubai, split by tile, one budget.

    python tests/bench/course_dubai.py [--minutes 7] [--data FOLDER] [--out FOLDER]

SegmentationCNN, the course's UNet and FCN-ResNet50 from nothing, and the pre-trained
encoder of preset="own" train for the same time on Tiles 1, 5 and 6 (every sixth image is
for validation) and are scored on Tiles 4 and 8. Printed are the leaderboard of
the mean IoU of the five classes (the unlabelled one aside) with its intervals over images,
each network's IoU by class, and the CPU minutes of each training. A run that is there is
not trained again. Bar: 0.55 for the best, at most 15 CPU minutes each.
"""

import argparse
import json
import resource
import sys
from pathlib import Path

import pandas as pd
from real import LABELS, ROOT, dubai, splits_of

from rvtutorial import engine, scenes
from rvtutorial.config import get_config
from rvtutorial.metrics.leaderboard import counts_of, leaderboard
from rvtutorial.runs import Run

NEW = dict(encoder="none", pretrained=False, encoder_lr=1, frozen_layers=0, lr=1e-3)
NETWORKS = {
    "pre-trained encoder": {},
    "SegmentationCNN": dict(NEW, model="segmentationcnn", pool_sizes="2,2"),
    "course UNet": dict(NEW, model="courseunet", n_encoders=3, embedding_size=32),
    "FCN-ResNet50": dict(NEW, model="fcn"),
}


def cpu_seconds():
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def train(name, table, folder, budget):
    "Train, map and score one network; CPU seconds of the training are kept beside it."
    run, kept = Run(folder), folder / "cpu.json"
    if not kept.exists():
        how = dict(preset="own", data=table, budget=budget, **LABELS["dubai"])
        config = get_config("inprocess", folder, **how, **NETWORKS[name])
        begun = cpu_seconds()
        engine.run(config, ["train"])
        kept.write_text(json.dumps(cpu_seconds() - begun))
        engine.run(config, ["predict", "eval"])
    return run, json.loads(kept.read_text())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "course_dubai")
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    splits = splits_of(dubai(asked.data)["all"])
    table = scenes.write_table(splits, asked.out / "scenes.csv")
    runs, spent = {}, {}
    for name in NETWORKS:
        folder = asked.out / name.replace(" ", "-").lower()
        runs[name], spent[name] = train(name, table, folder, f"{asked.minutes:g} min")
    board = leaderboard(runs, "macro_iou", "test")
    classes = {
        name: counts_of(run, "test").overall()["iou"] for name, run in runs.items()
    }
    spent = pd.Series(spent, name="CPU minutes") / 60
    with pd.option_context("display.width", 160, "display.max_columns", 20):
        print(board, board.summary(), "", sep="\n")
        print(pd.DataFrame(classes).T.join(spent).round(3))
    return 0


if __name__ == "__main__":
    sys.exit(main())

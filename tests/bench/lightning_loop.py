"""How fast does Lightning train, beside the engine?

    python tests/bench/lightning_loop.py [TURNS] [EPOCHS]

The same configuration is trained by both in turn. Printed are chips a second of training
and validation together, and their ratio for each turn; 1.00 would be a loop that costs
nothing. Weights & Biases is off, as the engine tells it nothing either.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from rvtutorial import engine
from rvtutorial.config import get_config
from rvtutorial.course import training
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.runs import Run


def seconds(folder, data, train, **settings):
    "Seconds of all epochs of a training, from its log: what frames them does not count."
    config = get_config("inprocess", folder, data=data, precision="float32", **settings)
    start = time.perf_counter()
    train(config)
    whole = time.perf_counter() - start
    log = Run(folder).log()
    spent = sum(log[c].map(_seconds).sum() for c in ("train_time", "valid_time"))
    return spent, log.train_time.map(_seconds).sum(), whole


def _seconds(text):
    hours, minutes, rest = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def by_engine(config):
    engine.run(config, ["train"], progress=False)


def by_lightning(config):
    training.train(config, ["train"], progress=False, wandb="off", checkpoint="last")


def main(turns=3, epochs=4):
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        data = make_sample_scenes(root / "data", n_train=16, n_val=4, n_test=1)
        for name, settings in {
            "unet, batch 8": dict(preset="sample"),
            "segmentationcnn, batch 8": dict(preset="sample", model="segmentationcnn"),
        }.items():
            ratios = []
            for turn in range(turns + 1):  # the first warms up
                found = {}
                for kind in (by_engine, by_lightning)[:: 1 if turn % 2 else -1]:
                    place = root / f"{name[:4]}-{turn}-{kind.__name__}"
                    how = dict(epochs=epochs, **settings)
                    found[kind] = seconds(place, data, kind, **how)
                if turn:
                    pairs = zip(found[by_engine], found[by_lightning], strict=True)
                    ratios.append([mine / theirs for mine, theirs in pairs])
            names = ("epochs", "training alone", "whole call")
            for what, some in zip(names, zip(*ratios, strict=True), strict=True):
                middle = statistics.median(some)
                print(
                    f"{name}, {what}: {middle:.3f} of the engine's throughput "
                    f"({min(some):.3f} to {max(some):.3f})",
                    flush=True,
                )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:3]))

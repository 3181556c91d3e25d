"""How much of a training's time goes into anything but the step itself?

    python tests/bench/step.py [TURNS]

The same learner trains on batches of its loader, as in a run, and on one batch that lies
ready in memory; the two take turns. 1.00 would be a loader that costs nothing.
"""

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rvtutorial.config import get_config
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.engine import pipeline, reading
from rvtutorial.engine.learner import FastLearner, Options, quiet


def learner_of(root, data, **settings):
    "A learner of the engine with everything it needs."
    cfg = pipeline._prepare(
        get_config("inprocess", root / "run", data=data, **settings)
    )
    options = Options(store=reading.SceneStore())
    with quiet():
        return FastLearner(
            cfg.backend.get_learner_config(cfg), tmp_dir=str(root), options=options
        )


def rate(learner, batches):
    "Chips per second."
    start, chips = time.perf_counter(), 0
    for batch in batches:
        learner.step(batch, learner.opt, None)
        chips += len(batch[0])
    return chips / (time.perf_counter() - start)


def measure(learner, steps, turns):
    "Ratios of the two rates."
    learner.model.train()
    epochs = itertools.count()
    endless = itertools.chain.from_iterable(learner.train_dl.epoch(e) for e in epochs)
    ready = tuple(part.clone() for part in next(endless))
    rate(learner, itertools.islice(endless, steps))
    ratios = []
    for _ in range(turns):
        loaded = rate(learner, itertools.islice(endless, steps))
        bare = rate(learner, itertools.repeat(ready, steps))
        ratios.append(loaded / bare)
    endless = None
    return ratios


def main(turns=5):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_sample_scenes(root / "data", n_train=16, n_val=2, n_test=1)
        cases = {
            "unet, batch 8": (dict(preset="sample"), 40),
            "deeplabv3, batch 8": (
                dict(preset="version2", pretrained=False, batch_sz=8), 4,
            ),
        }  # fmt: skip
        for i, (name, (settings, steps)) in enumerate(cases.items()):
            learner = learner_of(root / str(i), data, **settings)
            found = measure(learner, steps, turns)
            low, high = min(found), max(found)
            middle = statistics.median(found)
            print(f"{name}: {middle:.3f} of the bare step ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))

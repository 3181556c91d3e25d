"""How many epochs of a training fit into a time, measured on its own first steps.

Written by hand: Raster Vision trains for a number of epochs, and a person has an hour.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import torch

from rvtutorial.core.hyperparams import seconds
from rvtutorial.engine.learner import FastLearner, Options, quiet

WARM = 2  # steps that are not counted: the first ones are slower
STEPS = 6  # at least so many are measured
SHARE = 0.04  # of the time; so long they are measured


def epochs_in(
    budget: str,  # Such as 3 min, as `Hyperparams` writes it
    learner_cfg,  # SemanticSegmentationLearnerConfig of the run
    options: Options,  # How it will be trained
    tmp_dir: str | Path,  # For what the measurement leaves
) -> dict:  # epochs, and what was measured, in seconds
    """The number of epochs that fit, validation after each of them and the start included.

    Trains a network of its own for a few steps and drops it. Raises ValueError when not
    even one epoch fits.
    """
    begun, whole = time.perf_counter(), seconds(budget)
    learner_cfg = learner_cfg.model_copy(deep=True)
    learner_cfg.output_uri = str(Path(tmp_dir, "measured"))
    learner_cfg.log_tensorboard = learner_cfg.run_tensorboard = False
    probe = dataclasses.replace(
        options, checkpoint=None, tell=None, pause=None, patience=None, meters={}
    )
    with quiet():
        learner = FastLearner(learner_cfg, tmp_dir=str(tmp_dir), options=probe)
    start = time.perf_counter() - begun
    step = _usual(_steps(learner), whole)
    score = _usual(_scores(learner), whole / 4)
    saved = time.perf_counter()
    learner.save_weights(Path(learner_cfg.output_uri, "weights.pth"))
    saved = 4 * (
        time.perf_counter() - saved
    )  # weights, and a checkpoint of three times
    epoch = step * len(learner.train_dl) + score * len(learner.valid_dl) + saved
    left = whole - (time.perf_counter() - begun) - start
    epochs = int(left / epoch)
    if epochs < 1:
        raise ValueError(
            f"budget {budget} is too short for one epoch: {len(learner.train_dl)} steps of "
            f"{step:.2f} s and {len(learner.valid_dl)} batches of validation of {score:.2f} "
            f"s take {epoch:.0f} s, and {max(left, 0):.0f} s are left after a start of "
            f"{whole - left:.0f} s. Use a longer budget, smaller chips, or fewer of them "
            f"(max_windows)"
        )
    measured = dict(step=step, validation=score, epoch=epoch, start=start)
    return {"epochs": epochs} | {k: round(v, 4) for k, v in measured.items()}


def _usual(times, whole):
    "Median of the times that come: the first scenes are read from disk; until they are enough."
    every = []
    for seconds_ in times:
        every.append(seconds_)
        found = every[WARM:]
        enough = len(found) >= STEPS and sum(found) >= SHARE * whole
        if enough or sum(every) > 4 * SHARE * whole:  # slow steps: a few say enough
            break
    found = every[WARM:] or every[-1:]
    return statistics.median(found) if found else 0.0


def _steps(learner):
    "Seconds of one step of training after the other."
    learner.model.train()
    epoch = 0
    while True:
        last = time.perf_counter()
        for batch in learner.train_dl.epoch(epoch):
            learner.step(batch, learner.opt, None)
            yield time.perf_counter() - last
            last = time.perf_counter()
        epoch += 1


def _scores(learner):
    "Seconds of one batch of validation after the other."
    learner.model.eval()
    last = time.perf_counter()
    with torch.inference_mode():
        for number, batch in enumerate(learner.valid_dl):
            learner.validate_step(batch, number)
            yield time.perf_counter() - last
            last = time.perf_counter()

"Label arrays and counts made by chance, for tests of what is done with them."

import numpy as np

from rvtutorial.metrics.counting import Counts, _count_arrays

NAMES = ("building", "background", "null")


def labels(seed, shape=(60, 70), n=3):
    "True and drawn class ids, a fifth of them different."
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n, shape).astype(np.uint8)
    flip = rng.random(shape) < 0.3
    return truth, np.where(flip, rng.integers(0, n, shape), truth).astype(np.uint8)


def some_counts(seed=0, scenes=6, null=False):
    "Counts of a few scenes."
    parts = []
    for i in range(scenes):
        truth, drawn = labels([seed, i], n=3 if null else 2)
        parts.append(_count_arrays(truth, drawn, NAMES, scene=str(i)))
    return Counts.joined(parts)

"""Do the intervals of ROC-AUC, average precision, Brier and ECE hold what they promise?

    python tests/bench/score_coverage.py [SETS]

Two runs of equal skill score 50 made-up scenes, SETS times (400): scenes that are hard
one by one, and scenes that are hard in blocks of five. Shares of the sets in which the
95 % interval of one run holds the true value (of 40,000 scenes), with the blocks and
without, and in which a better run is named although there is none. Twenty seconds.
"""

import sys

import numpy as np
import pandas as pd

from rvtutorial.metrics import calibration, leaderboard
from rvtutorial.metrics.calibration import LEVELS, ScoreCounts

SCENES, PIXELS, WIDTH = 50, 400, len(LEVELS["uint8"])


def world(rng, n, block=1):
    "How hard each scene is, and how much of it is built; equal within a block."
    k = -(-n // block)
    hard, share = rng.normal(0, 0.3, k), rng.lognormal(-1.6, 0.6, k).clip(0.02, 0.8)
    return np.repeat(hard, block)[:n], np.repeat(share, block)[:n]


def draw(rng, hard, share, block=1):
    "Counts of the scores of one run; luck is its own, hardness is shared."
    n = len(hard)
    luck = np.repeat(rng.normal(0, 0.25, -(-n // block)), block)[:n]
    counts = np.zeros((n, 1, 2, WIDTH), np.uint32)
    for i in range(n):
        built = rng.random(PIXELS) < share[i]
        logit = rng.normal(size=PIXELS) + np.where(built, 1, -1) * (
            1 + luck[i] + hard[i]
        )
        level = np.rint(255 / (1 + np.exp(-1.5 * logit))).astype(int)
        for kind in (0, 1):
            counts[i, 0, kind] = np.bincount(level[built == kind], minlength=WIDTH)
    return ScoreCounts(counts, tuple(map(str, range(n))), ("building",))


def main(sets=400):
    rng = np.random.default_rng(0)
    big = draw(rng, *world(rng, 40_000)).ranking()
    true = {name: calibration.ranking_scores(big)[name] for name in calibration.SCORES}
    rows = []
    for block in (1, 5):
        place = np.arange(SCENES) // block if block > 1 else None
        for _ in range(sets):
            shared = world(rng, SCENES, block)
            a, b = (draw(rng, *shared, block) for _ in range(2))
            blocks = None if place is None else dict(zip(a.scenes, place, strict=True))
            own = a.summary(blocks=place).iloc[0]
            plain = a.summary().iloc[0]
            for name, value in true.items():
                pair = leaderboard.compare(a, b, name, blocks=blocks)
                inside = [one[f"{name}_low"] <= value <= one[f"{name}_high"]
                          for one in (own, plain)]  # fmt: skip
                rows.append((block, name, *inside, pair.winner is not None))
    columns = ["block", "score", "covered", "without blocks", "winner named"]
    table = pd.DataFrame(rows, columns=columns).groupby(["block", "score"]).mean()
    print(table.round(3).to_string())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

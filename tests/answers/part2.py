"""Part 2: right answers, and typical mistakes with a word of what each is told."""

import numpy as np
import pandas as pd

from rvtutorial.chips import grid_windows


def chips(rows, columns, size=256):
    "Windows that begin at each of some rows and columns."
    return np.array([(row, col, size, size) for row in rows for col in columns])


FEW = chips((0, 256, 512, 744), (0, 256, 444))
SCENE = (1000, 700)

RIGHT = {
    "2.1": [215, 215.0, np.int64(215), np.float32(215), np.array(215)],
    "2.2": [1672, 1672.0, np.int16(1672)],
    "2.3": [
        {
            "cars": "object detection",
            "asphalt": "Semantic Segmentation",
            "chips": "chip_classification",
        }
    ],
    "2.4": [
        FEW,
        FEW[::-1],
        FEW.tolist(),
        [tuple(row) for row in FEW],
        FEW.astype(np.uint16),
        pd.DataFrame(FEW),
        chips((0, 248, 496, 744), (0, 222, 444)),
    ],
}
TASKS = RIGHT["2.3"][0]
WRONG = {
    "2.1": [
        (220, "220 covers 45.8%: the last chip ends at pixel 440"),
        (430, "there are gaps between chips of 220"),
        (86, "not the largest"),
        (213, "213 covers 98.8%: the last chip ends at pixel 646"),
        (-5, "not a whole number"),
        (214.5, "not a whole number"),
        ("215 px", "is not a number"),
        (float("nan"), "nan is not a number"),
        (np.float64("inf"), "is not a number"),
    ],
    "2.2": [
        (40_000, "how many chips go through"),
        (5_000, "chips of one epoch"),
        (209, "right for one epoch"),
        (208, "208 full batches"),
        (1_664, "forgets the last batch of each epoch"),
        (1_667, "each starts anew"),
        (336, "one chip a scene"),
        (8, "number of epochs"),
        (1666.7, "is not whole"),
        (17, "start with the batches"),
        ("many", "one number"),
    ],
    "2.3": [
        (TASKS | {"cars": "semantic segmentation"}, "do not say how many cars"),
        (TASKS | {"cars": "chip classification"}, "that there are cars in it"),
        (TASKS | {"asphalt": "object detection"}, "boxes around asphalt"),
        (TASKS | {"asphalt": "chip classification"}, "half asphalt"),
        (TASKS | {"chips": "object detection"}, "drawn by hand"),
        (TASKS | {"chips": "semantic segmentation"}, "far cheaper"),
        (TASKS | {"cars": "counting"}, "none of the three tasks"),
        ({"cars": "object detection"}, "no entry for asphalt, chips"),
        ("object detection", "is a dictionary"),
    ],
    "2.4": [
        (grid_windows(SCENE, 256, 256), "6 of 12 chips hang over"),
        (grid_windows(SCENE, 256, 222), "3 of 15 chips hang over"),
        (
            grid_windows(SCENE, 256, 256, pad=False),
            "43.8% of the pixels are in no chip",
        ),
        (grid_windows(SCENE, 256, 186, pad=False), "10.3% of the pixels"),
        (chips((0, 222, 444, 666, 744), (0, 222, 444)), "15 chips do it"),
        (np.vstack([FEW, FEW[:1]]), "13 chips do it"),
        (chips((0, 256, 444), (0, 256, 512, 744)), "are swapped"),
        (chips((-1, 256, 512, 744), (0, 256, 444)), "at row -1, column 0"),
        (chips((0, 400, 700), (0, 400), 300), "yours have [300, 300]"),
        (np.hstack([FEW[:, :2], FEW[:, :2] + 256]), "not where a window ends"),
        (FEW.astype(float), "whole pixels, and these are float64"),
        (FEW[:, :2], "shape (n, 4); yours has (12, 2)"),
        (FEW[0], "yours has (4,)"),
        (np.zeros((0, 4), int), "yours has (0, 4)"),
        (np.tile(FEW, (100_000, 1)), "1200000 chips are far more"),
        (12, "an array is asked for"),
        ([[0, 0, 256, 256], [0, 256]], "cannot be read (ValueError)"),
        (FEW.astype(np.int64) + [2**62, 0, 0, 0], "12 of 12 chips hang over"),
    ],
}

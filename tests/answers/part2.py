"""Part 2: right answers, and typical mistakes with a word of what each is told."""

import numpy as np

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
}

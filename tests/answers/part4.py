"""Part 4: right answers, and typical mistakes with a word of what each is told."""

from pathlib import Path

import numpy as np

RIGHT = {
    "4.1": [("images/image_part_{id}.jpg", "masks/image_part_{id}.png"), ["images/{id}.jpg", "masks/{id}.png"],
            ("images/image_part_0{id}.jpg", "masks/image_part_0{id}.png"), ("images/image_{id}.jpg", "masks/image_{id}.png"),
            ("i*/image_part_{id}.jpg", "m*/image_part_{id}.png"), ("images/image_part_{id}.j*", "masks/image_part_{id}.p*"),
            (Path("images/{id}.jpg"), Path("masks/{id}.png"))],
    "4.2": [(0, 0.39), (0.0, 0.387), np.array([0, 0.39]), (np.float32(0), np.float64(0.387))],
    "4.3": [(0.5, 0.0093)],
}  # fmt: skip
WRONG = {
    "4.1": [
        (("images/image_part_001.jpg", "masks/image_part_001.png"), "no {id}"),
        (("Tile {id}/images/*.jpg", "Tile {id}/masks/*.png"), "one id"),
        (("image_part_{id}.jpg", "image_part_{id}.png"), "one folder deeper"),
        (("images/image_part_{id}.png", "masks/image_part_{id}.jpg"), "endings"),
        (("images/image_part_{id}.jpg", "masks/{id}.png"), "same text"),
    ],
    "4.2": [
        ((0.76, 0.24), "accuracy"),
        ((0.5, 0.39), "without a single hit"),
        ((0, 0.24), "precision"),
        ((0, 0.62), "harmonic"),
        ((0, 1), "recall: every"),
        ((0, 0.5), "2pr"),
        ((float("nan"), 0.39), "two finite numbers"),
        ((0, float("nan")), "two finite numbers"),
        (("0", "0.39"), "two finite numbers"),
    ],
    "4.3": [
        ((0.298, 0.0093), "maximum"),
        ((0.5545, 0.0093), "take 120 off"),
        ((0.4455, 0.0093), "width of the range"),
        ((0.7, 0.0093), "(value - low)"),
        ((0.5, 0.9), "one per cent"),
        ((0.5, float("nan")), "two finite numbers"),
        ((float("nan"), 0.0093), "two finite numbers"),
    ],
}

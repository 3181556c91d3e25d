"""Part 4: right answers, and typical mistakes with a word of what each is told."""

RIGHT = {
    "4.1": [("images/image_part_{id}.jpg", "masks/image_part_{id}.png"), ["images/{id}.jpg", "masks/{id}.png"]],
    "4.2": [(0, 0.39), (0.0, 0.387)],
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
    ],
    "4.3": [
        ((0.298, 0.0093), "maximum"),
        ((0.5545, 0.0093), "take 120 off"),
        ((0.4455, 0.0093), "width of the range"),
        ((0.7, 0.0093), "(value - low)"),
        ((0.5, 0.9), "one per cent"),
    ],
}

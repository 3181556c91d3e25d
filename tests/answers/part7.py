"""Part 7: right answers, and typical mistakes with a word of what each is told."""

import numpy as np
from answers.made import HOME, town_maps

CLEAR = town_maps("clear maps", light=None)
MENDED = town_maps("mended maps")

RIGHT = {
    "7.1": [0.19, 1 - 0.9**2, np.float32(0.19)],
    "7.2": [0.626, 0.139 / 0.222, np.array(0.626)],
    "7.3": [0.829, 170 / 205],
}
RIGHT["7.4"] = [
    "cannot be told apart",
    '"Cannot be told apart."',
    "A and B can't be told apart",
    "they can not be told apart",
]
RIGHT["7.5"] = [
    MENDED,
    town_maps("bright maps", light=1.2),
    town_maps("rounded maps", light=0.98, shift=1),
    town_maps("maps without tags", tags=False),
    town_maps("others as null", names=("building", "background", "null")),
]
WRONG = {
    "7.1": {
        0.1: "areas",
        0.2: "corner",
        0.81: "reached",
        0.01: "only the corner",
        19: "per cent",
        0.0: "0.30 did not",
        0.5: "three chips",
        "a tenth": "a number is asked",
        float("nan"): "a number is asked",
    },
    "7.2": {
        0.770: "that is F1",
        0.858: "precision",
        0.698: "recall",
        0.917: "accuracy",
        0.139: "intersection. IoU",
        0.222: "that is the union",
        0.5: "intersection over union",
    },
    "7.3": {
        0.754: "mean of the two",
        0.708: "IoU of both",
        0.842: "first scene alone",
        0.667: "second scene alone",
        0.85: "precision or recall",
        0.5: "divide once",
    },
    "7.4": {
        "A is better": "0 is inside",
        "they are equal": "not the same as",
        "B is better": "lower one",
        "maybe": "choose one",
        "can be told apart": "the other way round",
        "A and B can be told apart": "the other way round",
    },
    "7.5": {
        town_maps("dark maps", light=0.4, shift=9): "still maps of dark images",
        town_maps("half maps", light=0.6, shift=9): "part of the way. Values are 60%",
        town_maps(
            "too bright maps", light=2.0, shift=9
        ): "part of the way. Values are 200%",
        town_maps(
            "exchanged maps", drawn=lambda labels: 1 - labels
        ): "two classes are exchanged",
        town_maps(
            "wrong names", names=("background", "building")
        ): "in these maps 0 is building",
        town_maps("four maps", scenes=range(1, 5)): "4 of the town's 5 scenes",
        town_maps("no maps", scenes=()): "nothing to compare",
        CLEAR: "maps of the clear images",
        town_maps("poor maps", shift=9): "though the values are right",
        town_maps("empty maps", drawn=np.ones_like): "F1 is 0.000",
        town_maps(
            "poor maps without tags", shift=9, tags=False
        ): "that the network was given",
        HOME / "mended maps": "a LabelFolder is asked for",
        "mended": "label_folder(...)",
    },
}
WRONG = {number: list(told.items()) for number, told in WRONG.items()}

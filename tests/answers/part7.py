"""Part 7: right answers, and typical mistakes with a word of what each is told."""

import numpy as np

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
}
WRONG = {number: list(told.items()) for number, told in WRONG.items()}

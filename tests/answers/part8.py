"""Part 8: right answers, and typical mistakes with a word of what each is told."""

import numpy as np

from rvtutorial.sweeps.sweepfile import SweepFile, grid

SWEEP = {"epochs": {"value": 8}, "lr": {"values": [1e-3, 3e-3]}}
SEEDS = {"seed": {"values": [0, 1, 2]}}


def text(lr="{values: [1e-3, 3e-3]}", seed="{values: [0, 1, 2]}", epochs="{value: 8}"):
    return f"parameters:\n  lr: {lr}\n  seed: {seed}\n  epochs: {epochs}\n"


RIGHT = {
    "8.1": [
        (250, 200),
        [256, 197],
        (130, 104),
        np.array([250, 200]),
        (np.int64(250), np.int32(200)),
    ],
    "8.2": [
        {"method": "grid", "parameters": {**SWEEP, **SEEDS}},
        text(),
        text(epochs="{values: [8]}"),
        grid(lr=[1e-3, 3e-3], seed=[0, 1, 2], epochs=[8]),
        grid(epochs=["8"], seed=np.arange(3), lr=["1e-3", "3e-3"]),
        SweepFile.read({"method": "grid", "parameters": {**SWEEP, **SEEDS}}),
    ],
    "8.3": [
        {"a", "b", "c"},
        ["c", "b", "a"],
        np.array(["a", "b", "c"]),
    ],
}
WRONG = {
    "8.1": [
        ((300, 175), "do not fit in the memory"),
        ((200, 225), "gaps of 25"),
        ((250, 250), "strip of 150 pixels is left over, 41% of the scene"),
        ((220, 215), "overlap by 5 pixels"),
        ((130, 130), "overlap by 0 pixels"),
        (220, "give two whole numbers"),
        ((220.0, 215), "give two whole numbers"),
        ((0, 5), "give two whole numbers"),
    ],
    "8.2": [
        ({"parameters": SWEEP}, "one seed cannot tell"),
        (text(lr="[1e-3, 3e-3]"), "write `value:"),
        (text(lr="{values: 1e-3}"), "values must be a list"),
        (text(lr="{values: [1e-3, 1e-2]}"), "1e-3 and 3e-3"),
        (text(epochs="{value: 10}"), "with the value 8"),
        (text(epochs="{values: [4, 8]}"), "with the value 8"),
        (grid(lr=[1e-3, 3e-3], epochs=[8]), "one seed cannot tell"),
        (grid(lr=[1e-3, 3e-3], seed=[0, 1, 2]), "with the value 8"),
        (
            grid(lr=[1e-3, 3e-3], seed=[0, 1, 2], epochs=[8])[:5],
            "makes 6 trials, not 5",
        ),
        (
            grid(lr=[1e-3, 3e-3], seed=[0, 1, 2], epochs=[8]) * 2,
            "asked for more than once",
        ),
        ("run_cap: 5\n" + text(), "makes 6 trials, not 5"),
        (text().replace("lr:", "learning_rate:"), "did you mean 'lr'"),
        (3e-3, "the text of the file or a dictionary"),
    ],
    "8.3": [
        ({"a"}, "the highest number alone"),
        ({"a", "b"}, "All six considered"),
        ({"a", "c"}, "count how many comparisons"),
        ({"a", "b", "c", "d"}, "far from zero"),
        ({"b"}, "a has the highest score"),
        ({"a", "e"}, "no run 'e'"),
        ("a", "give a set"),
    ],
}

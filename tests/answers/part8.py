"""Part 8: right answers, and typical mistakes with a word of what each is told."""

import numpy as np
from answers.made import HOME, asked, sweep

from rvtutorial.runs import Run
from rvtutorial.sweep import Sweep
from rvtutorial.sweeps.sweepfile import SweepFile, grid, trial_names

SWEEP = {"epochs": {"value": 8}, "lr": {"values": [1e-3, 3e-3]}}
SEEDS = {"seed": {"values": [0, 1, 2]}}


def text(lr="{values: [1e-3, 3e-3]}", seed="{values: [0, 1, 2]}", epochs="{value: 8}"):
    return f"parameters:\n  lr: {lr}\n  seed: {seed}\n  epochs: {epochs}\n"


CHIPS = {"max_windows": [5, 10], "seed": [0, 1]}
FOUR = grid(**CHIPS)
WINDOWS = sweep("windows", FOUR, epochs=2)
FIRST = "max_windows=5+seed=0"
LONE = HOME / "by hand"
for number, trial in enumerate(FOUR):
    asked(f"by hand/{number}", **trial)

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
    "8.4": [
        WINDOWS,
        Sweep(WINDOWS),
        sweep("other-order", grid(seed=["1", "0"], max_windows=["10", 5]), epochs=1),
        sweep("in-the-grid", grid(**CHIPS, epochs=[2])),
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
    "8.4": [
        (HOME / "nowhere", "there is no folder"),
        (asked("alone"), "there is no sweep.yaml"),
        (WINDOWS / "sweep.yaml", "that is a file"),
        (Run(WINDOWS / FIRST), "the run of one trial"),
        (LONE, "4 runs lie there that were trained one by one"),
        ([LONE / str(number) for number in range(4)], "not 4 things"),
        (sweep("one-seed", grid(max_windows=[5, 10]), epochs=2), "one seed only"),
        (sweep("seeds", grid(**CHIPS | {"seed": [1, 2]})), "seeds should be 0 and 1, and are 1, 2"),
        (sweep("more", grid(**CHIPS | {"max_windows": [5, 20]})), "and is 5, 20"),
        (sweep("epochs", grid(**CHIPS, epochs=[1, 2])), "epochs should be the same"),
        (sweep("rates", grid(**CHIPS, lr=[1e-3, 5e-3])), "more is tried than was asked for: lr"),
        (sweep("three", FOUR[:3], epochs=2), "4 trials, not 3"),
        (sweep("queued", FOUR, {FIRST: "queued"}), "still to be trained: max_windows=5"),
        (sweep("new", FOUR, dict.fromkeys(trial_names(FOUR), "new")), "max_windows=5+seed=1"),
        (sweep("failed", FOUR, {FIRST: "failed"}), "max_windows=5+seed=0 (failed)"),
        (sweep("exchanged", FOUR, other={"seed": 0}), "two groups of two seeds"),
        (4, "a folder is asked for"),
    ],
}  # fmt: skip

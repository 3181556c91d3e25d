"""Part 5: right answers, and typical mistakes with a word of what each is told."""

import numpy as np
from answers.made import HOME, asked

from rvtutorial.runs import STOCK, Run

INSIDE, OVER = asked("inside"), asked("over", padding="none")
BROKEN = asked("broken")
(BROKEN / "run.json").write_text('{"schema": 1, "asked')
EMPTY = asked("empty")
(EMPTY / "run.json").unlink()

RIGHT = {
    "5.1": [
        "backend.solver.num_epochs",
        "config.backend.solver.num_epochs",
    ],
    "5.2": [
        {"padding": "none"},
        {"padding": STOCK["padding"]},
        {"padding": "none", "img_sz": "none"},
    ],
    "5.3": [
        255 / 65535,
        0.0039,
        np.float32(255 / 65535),
    ],
    "5.4": [
        {"epochs", "seed"},
        ["hyperparams.seed", "hyperparams.epochs"],
    ],
    "5.5": [
        (INSIDE, OVER),
        [str(INSIDE), str(OVER)],
        (Run(INSIDE), f"{OVER}/"),
        np.array([str(INSIDE), str(OVER)]),
        (asked("moved", digest="d2"), asked("moved-over", digest="d2", padding="none")),
    ],
}
WRONG = {
    "5.1": [
        ("solver.num_epochs", "begins at the root"),
        ("backend.solver.epochs", "our name"),
        ("backend.solver.lr", "learning rate"),
        ("backend.model.num_epochs", "not for how long"),
        ("train.epoch_count", "outline(config)"),
        (8, "a path is a text"),
    ],
    "5.2": [
        ({"padding": 0}, "nothing changed"),
        ({"padding": 110}, "until chip_sz changes"),
        ({"padding": "half"}, "refuses it: padding must be"),
        ({"paddin": None}, "did you mean 'padding'"),
        (STOCK, "every departure"),
        ({"padding": None, "lr": 1e-3}, "more than padding changed: lr"),
        ({"padding": 5}, "padding is 5"),
        ({"padding": None}, "takes the preset's value"),
        ("padding=None", "a dict of names"),
    ],
    "5.3": [
        (1, "uint8 file"),
        (255, "does divide"),
        (2047 / 65535, "11 bits; here"),
        (255 / 2047, "could hold, not by"),
        (0.5, "divide the largest"),
        ("0.0039", "a number is asked"),
    ],
    "5.4": [
        ({"lr", "epochs", "seed"}, "is cast"),
        ({"preset", "epochs", "seed"}, "not the name"),
        ({"data.path", "epochs", "seed"}, "may move"),
        ({"data.digest", "epochs", "seed"}, "look again"),
        ({"epochs"}, "seed counts"),
        ({"seed"}, "stretch the schedule"),
        ({"seed", "epochs", "chips"}, "no chips"),
        ("epochs", "a set of names"),
    ],
    "5.5": [
        ((INSIDE, INSIDE), "the same folder twice"),
        ((INSIDE, HOME / "nowhere"), "there is no folder"),
        ((INSIDE, EMPTY), "no run.json"),
        ((INSIDE, BROKEN), "does not say what was asked"),
        ((INSIDE, asked("none-given")), "None means the preset's value"),
        ((OVER, asked("over-twice", padding="none")), "the first run should have our"),
        ((INSIDE, asked("lr", lr=1e-3)), "padding is the same in both, and this is not: lr"),
        ((INSIDE, asked("seed", padding="none", seed=1)), "more than padding differs: seed."),
        ((INSIDE, asked("data", digest="d2", padding="none")), "differs: data.digest"),
        ((OVER, INSIDE), "swapped"),
        ((asked("five", padding=5), OVER), "the first run has padding 5"),
        ((INSIDE, asked("half", padding=64)), "64 pixels are half a chip"),
        ((INSIDE, asked("ten", padding=110)), "padding is 110"),
        (INSIDE, "as a tuple"),
        ({"inside": INSIDE, "over": OVER}, "2 things are asked for"),
        ((0, None), "a folder is asked for, not 0"),
    ],
}  # fmt: skip

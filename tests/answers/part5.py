"""Part 5: right answers, and typical mistakes with a word of what each is told."""

import numpy as np

from rvtutorial.runs import STOCK

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
}

"""Part 6: right answers, and typical mistakes with a word of what each is told."""

import numpy as np
from answers.made import HOME, asked, trained

from rvtutorial.runs import Run

OURS = trained("ours", 0.9)
FEW = trained("few", 0.9, n=2)
PADDED = trained("padded", 0.6, padding="none")
SIZED = trained("sized", 0.9, luck=1, img_sz=256)
CUT = trained("cut", 0.6, padding="none")
(CUT / "eval/validation_scenes/eval.json").write_text("{")
STOCK = trained("stock-chips", 0.8, img_sz=256, padding="none", null="class")
APART = "cannot be told apart"

RIGHT = {
    "6.1": [72, 72.0, np.int64(72)],
    "6.2": ["255:building,0:background", " 0 : background , 255 : building "],
    "6.3": [
        "rastervision run inprocess rvtutorial.config -a output_uri runs/second -a lr 1e-3",
        "rastervision run -a lr 0.001 --arg output_uri runs/second inprocess rvtutorial.config",
        "rastervision run inprocess rvtutorial.config -a output_uri ./runs/second/ -a lr .001",
        "rastervision run inprocess rvtutorial.config train predict eval -a lr 1e-3 -a output_uri runs/second",
        "!rastervision run inprocess rvtutorial.config \\\n  -a output_uri 'runs/second' -a lr 1e-3 -a preset smoke",
    ],
    "6.4": [
        (PADDED, OURS, "worse"),
        (OURS, PADDED, "better"),
        (str(SIZED), Run(OURS), APART),
        [SIZED, OURS, "They can't be told apart."],
        (trained("nulls", 0.97, null="class"), OURS, "Better"),
        (trained("few-padded", 0.6, n=2, padding="none"), FEW, APART),
        (trained("no-null", 0.5, img_sz=256, padding="none"), STOCK, "it is worse"),
    ],
}
BEGIN, GOAL = (
    "rastervision run inprocess rvtutorial.config",
    "-a output_uri runs/second",
)
WRONG = {
    "6.1": {
        9: "one scene",
        24: "one row",
        40: "5 chips",
        80: "10 chips",
        128: "4 by 4",
        216: "training scenes",
        7: "not 7",
        "72": "whole number",
        True: "whole number",
    },
    "6.2": {
        "255:background,0:building": "all that is not one",
        "building:255,background:0": "other way round",
        "255:0,0:1": "named, not numbered",
        "255:building": "every value",
        "255:house,0:background": "not house",
        "building,background": "pairs",
        255: "pairs",
        "255:building,0:background,": "pairs",
        "255:building,255:building,0:background": "twice",
    },
    "6.3": {
        f"{BEGIN} -a lr 1e-3": "no output_uri",
        f"{BEGIN} {GOAL}": "no lr",
        f"{BEGIN} {GOAL} -a lr=1e-3": "equals sign",
        f"{BEGIN} {GOAL} -a lr 1e-3 -a banana 7": "no parameter of get_config 'banana'",
        f"{BEGIN} {GOAL} -a lr 1e-3 -a epochs ten": "epochs must be",
        f"{BEGIN} {GOAL} -a lr '1e-3": "no closing quotation",
        f"{BEGIN} {GOAL} -a lr": "the last one has fewer",
        f"{BEGIN} predict {GOAL} -a lr 1e-3": "nothing is trained",
        f"{BEGIN} {GOAL} -a lr nan": "learning rate is nan",
        f"{BEGIN} {GOAL} --lr 1e-3": "no option",
        f"{BEGIN} {GOAL} -a lr 1e-4": "0.0001",
        f"{BEGIN} {GOAL} -a lr small": "needs a number",
        f"{BEGIN} -a output_uri runs/first -a lr 1e-3": "another folder",
        f"rastervision run local rvtutorial.config {GOAL} -a lr 1e-3": "every stage",
        f"rastervision run rvtutorial.config {GOAL} -a lr 1e-3": "runner",
        f"python -m rvtutorial.config {GOAL}": "begins with",
        3: "is a text",
    },
    "6.4": {
        (OURS, OURS, "better"): "the same folder twice",
        (HOME / "nowhere", OURS, "worse"): "there is no folder",
        (HOME, OURS, "worse"): "no run.json",
        (
            trained("other", digest="d2", padding="none"),
            OURS,
            "worse",
        ): "saw other data",
        (
            trained("rate", lr=1e-3, padding="none"),
            OURS,
            "worse",
        ): "one of the three: lr",
        (trained("again", 0.8), OURS, "worse"): "nothing differs",
        (STOCK, OURS, "worse"): "img_sz and padding and null differ at once",
        (
            trained("half-chip", padding=64),
            OURS,
            "worse",
        ): "padding is 64; stock's own value is none",
        (
            trained("chip", img_sz=220),
            OURS,
            "worse",
        ): "img_sz is 220; stock's own value is 256",
        (asked("new", padding="none"), OURS, "worse"): "its state is unfinished",
        (
            trained("at-work", padding="none", state="running"),
            OURS,
            "worse",
        ): "its state is running",
        (
            trained("broke", padding="none", state="failed"),
            OURS,
            "worse",
        ): "its state is failed",
        (CUT, OURS, "worse"): "the scores of yours cannot be read",
        (PADDED, OURS, "bad"): 'one of "better"',
        (
            PADDED,
            OURS,
            "better",
        ): "the other way round. The leaderboard: the other is better",
        (PADDED, OURS, APART): "they can be told apart",
        (SIZED, OURS, "worse"): "these scenes do not say so. The leaderboard: ",
        (
            trained("two", 0.6, n=2, padding="none"),
            FEW,
            "worse",
        ): "2 scenes are too few",
        (PADDED, OURS): "3 things are asked for",
        PADDED: "as a tuple",
    },
}
WRONG = {number: list(told.items()) for number, told in WRONG.items()}

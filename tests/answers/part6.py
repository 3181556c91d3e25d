"""Part 6: right answers, and typical mistakes with a word of what each is told."""

import numpy as np

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
}
WRONG = {number: list(told.items()) for number, told in WRONG.items()}

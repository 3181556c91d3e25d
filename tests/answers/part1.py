"""Part 1: right answers, and typical mistakes with a word of what each is told."""

from datetime import timedelta

import numpy as np

from rvtutorial.hpc.sites import Site


def farm(**changes):
    given = dict(
        name="farm", account="crops", partition="gpu", gres="gpu:1", cpus=2, mem="8G"
    )
    return Site(**(given | changes))


RIGHT = {
    "1.1": [
        "01:04:00",
        "01:03:12",
        "64",
        64,
        "0-01:05:00",
        np.int64(64),
        timedelta(minutes=64),
    ],
    "1.2": [farm(), farm(mem="8192M"), farm(gres="gpu")],
    "1.3": [["d"], "d", ("d",)],
}
WRONG = {
    "1.1": [
        ("soon", "cannot read"), (3792, "counts minutes"), ("1:04", "minutes and seconds"),
        ("02:06:24", "longer the wait"), ("3840", "counts minutes"), (float("nan"), "cannot read"),
        ("00:53:00", "add a fifth"), ("00:30:00", "the job early"), ("1-0", "longer the wait"),
    ],
    "1.2": [
        ({"account": "crops"}, "hand them to Site"), ("farm", "this is a str"),
        (farm(name="local"), "run on this machine"), (farm(account=None), "account is None"),
        (farm(gres=None), "gives no GPU"), (farm(cpus=None), "Slurm gives one"),
        (farm(mem="8M"), "mem is '8M'"), (farm(mem=None), "mem is None"),
        (farm(time="01:00:00"), "nobody has said so"), (farm(partition="cpu"), "no GPU"),
        (farm(name="cluster42"), "called farm"), (farm(parallel=7), "parallel: nobody has said"),
    ],
    "1.3": [
        (["e"], "one or more of the letters"), (["a", "d"], "that run is done"),
        (["b", "d"], "same number"), (["c", "d"], "refused, not mixed"),
    ],
}  # fmt: skip

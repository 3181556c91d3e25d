"""Part 1: right answers, and typical mistakes with a word of what each is told."""

import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np

from rvtutorial.hpc.job import Job
from rvtutorial.hpc.sites import Site
from rvtutorial.runs import Run


def farm(**changes):
    given = dict(
        name="farm", account="crops", partition="gpu", gres="gpu:1", cpus=2, mem="8G"
    )
    return Site(**(given | changes))


class Hello(os.PathLike):
    "The folder of a run of `hello` with these states, made when it is asked for."

    made = tempfile.TemporaryDirectory()

    def __init__(self, *states, name="Ada", why="ValueError: int() of 'two'"):
        self.states, self.name, self.why = states, name, why
        self.folder = Path(self.made.name, f"hello-{len(os.listdir(self.made.name))}")
        self.folder.mkdir()

    def __fspath__(self):
        *earlier, state = self.states
        live = state in ("queued", "running")
        tried = earlier if state == "queued" else self.states
        went = {"state": state, "why": None if live else self.why}
        went["attempts"] = [{"state": each} for each in tried]
        (self.folder / "run.json").write_text(json.dumps({"schema": 1, "went": went}))
        if state == "succeeded" and self.name is not None:
            (self.folder / "hello.txt").write_text(f"hello {self.name}\n")
        return str(self.folder)


def right_hello(kind):
    "A mended run, as a `Run` or a `Job`."
    return kind(os.fspath(Hello("failed", "succeeded")))


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
    "1.4": [
        Hello("failed", "succeeded"),
        Path(Hello("failed", "succeeded", name="Zoë Q.")),
        Hello("failed", "cancelled", "failed", "succeeded"),
        right_hello(Run),
        right_hello(Job),
    ],
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
    "1.4": [
        (Path(Hello.made.name), "no job was submitted"), ("runs/nowhere", "there is no folder"),
        (Hello("queued"), "it is queued"), (Hello("failed", "running"), "it is running"),
        (Hello("failed"), "still failed (ValueError: int() of 'two')"),
        (Hello("failed", "cancelled"), "the state is cancelled"), (Hello("succeeded"), "never failed"),
        (Hello("failed", "succeeded", name="Part 1"), "greets Part 1"),
        (Hello("failed", "succeeded", name="world"), "greets world"),
        (Hello("failed", "succeeded", name=""), "greets nobody"),
        (Hello("failed", "succeeded", name=None), "it is no hello"),
        (Job([Hello.made.name, "b"]), "2 runs"), (["runs/mine"], "a folder is asked for"),
    ],
}  # fmt: skip

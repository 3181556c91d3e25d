"""Count, score and compare segmentation maps, with intervals."""

from importlib import import_module

from rvtutorial.core.renamed import say_once
from rvtutorial.metrics.leaderboard import Board, compare, label_folder

__all__ = ["compare", "label_folder"]


def __getattr__(name):
    "A name of version 0.1.0's module `rvtutorial.metrics`: it works for one release."
    if name == "summary":
        say_once(
            "rvtutorial.metrics.summary is now rvtutorial.metrics.leaderboard.Board.table"
        )
        return Board.table
    for part in ("leaderboard", "counting", "intervals", "calibration"):
        module = import_module(f"rvtutorial.metrics.{part}")
        own = name if name in module.__all__ else f"_{name}"
        if hasattr(module, own):
            say_once(f"rvtutorial.metrics.{name} is now in {module.__name__}")
            return getattr(module, own)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

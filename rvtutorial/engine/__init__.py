"""Train, predict and evaluate any stock Raster Vision configuration, faster and restartable."""

from importlib import import_module

__all__ = ["apply_thresholds", "predict", "run"]


def __getattr__(name):
    "The public names, imported when they are used: not every part needs torch at once."
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "relabel" if name == "apply_thresholds" else "pipeline"
    return getattr(import_module(f"rvtutorial.engine.{module}"), name)

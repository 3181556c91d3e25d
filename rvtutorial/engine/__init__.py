"""Train, predict and evaluate any stock Raster Vision configuration, faster and restartable."""

__all__ = ["predict", "run"]


def __getattr__(name):
    "The public names, imported when they are used: not every part needs torch at once."
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rvtutorial.engine import pipeline

    return getattr(pipeline, name)

"""The curve of every metric against the threshold, with its optimum and where that may lie.

Written by hand: `metrics.thresholds` makes the numbers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rvtutorial.core.record import Run
from rvtutorial.figures import maps
from rvtutorial.metrics import leaderboard
from rvtutorial.metrics.thresholds import Curves, Goal, Tuned, count_scenes, tune

METRICS = ("iou", "f1", "f2", "accuracy", "balanced_accuracy", "mcc")


@maps.literal_text
def plot_thresholds(
    run,  # A run, a LabelFolder, ScoreCounts, or scene -> arguments of `count_scores`
    metrics: Sequence[str] = METRICS,  # As `tune` takes them
    class_name: str | None = None,  # None: the first that is not background
    split: str = "validation",  # Opened on record where it is test
    over: str = "micro",  # All pixels together, or the mean or worst of scenes
    data=None,  # Folder to which the labels were moved
    **how,  # Of `tune`: draws, seed, blocks, unscored, on_test ...
):  # Figure with a panel for each metric
    "Draw each metric by threshold: the best, where 95 % of draws of scenes have it, and 0.5."
    run = Run.of(run)
    files, split = run, getattr(run, "split", "") or split
    if split == "test" and how.get("on_test"):
        name = getattr(run, "name", "scores")
        leaderboard.open_test({name: run}, ", ".join(metrics), what="thresholds")
    if not isinstance(run, Mapping) and not hasattr(run, "histograms"):
        files = leaderboard.score_files(run, split, data)
        how.setdefault("blocks", "auto")
    counts = files if hasattr(files, "histograms") else count_scenes(files, split)
    name = counts.classes[counts.place(class_name)]
    blocks = leaderboard.blocks_of([run], counts.scenes, how.pop("blocks", "auto"))
    if blocks is not None:
        how["blocks"] = dict(zip(counts.scenes, blocks, strict=True))
    n = len(metrics)
    rows = -(-n // 3)
    fig, axes = maps.subplots(9.6, 2.9 * rows, rows, min(n, 3), squeeze=False)
    curves = Curves(counts, name)
    for ax in axes.flat[n:]:
        ax.remove()
    for i, (ax, metric) in enumerate(zip(axes.flat, metrics, strict=False)):
        made = tune(counts, metric, [name], over=over, **how)
        _draw(ax, curves, made, name, i)
    words = leaderboard.scenes_in_words(len(counts), counts.split)
    maps.captions(fig, f"{name} by threshold, {over}, {words}")
    return fig


def _draw(ax, curves: Curves, made: Tuned, name: str, i: int) -> None:
    goal, one = Goal(made.metric), made.thresholds[name]
    value, allowed = curves.values(goal, made.over)
    shown = np.unique(np.searchsorted(curves.edges[1:-1], np.linspace(0, 1, 400)))
    at = np.append(curves.edges[1:-1], 1.0)[shown]
    value = np.where(allowed >= 0, value, np.nan)[shown]
    look = maps.line_style(i) | dict(marker="", linestyle="-")
    ax.plot(at, value, **look)
    ax.axvline(0.5, color="0.5", lw=0.8, linestyle=":")
    title = f"{made.metric}: undefined"
    if one.status != "undefined":
        if not np.isnan(one.threshold_low):
            ax.axvspan(one.threshold_low, one.threshold_high, color="0.88", zorder=0)
        ax.plot(min(one.threshold, 1), one.value, "o", color="black", markersize=5)
        if not np.isnan(one.value_low):
            ends = [[one.value - one.value_low], [one.value_high - one.value]]
            ax.errorbar(min(one.threshold, 1), one.value, ends, color="black", lw=1)
        title = f"{made.metric}: {one.value:.3f} at {one.threshold:.3f}"
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="threshold of the score", xlim=(-0.02, 1.02))
    ax.set(ylabel="cost of a pixel" if goal.least_cost else made.metric.split("@")[0])
    ax.grid(alpha=0.3)

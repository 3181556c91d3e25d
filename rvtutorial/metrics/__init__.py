"""Count, score and compare segmentation maps, with intervals."""

from rvtutorial.metrics.leaderboard import compare, label_folder

__all__ = ["compare", "label_folder"]

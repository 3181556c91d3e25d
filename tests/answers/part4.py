"""Part 4: right answers, and typical mistakes with a word of what each is told."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from rvtutorial.course.exercises import broken_scenes

IMAGE = "RGB-PanSharpen_AOI_2_Vegas_img{}.tif"
LABEL = "buildings_AOI_2_Vegas_img{}.geojson"


class Mended(os.PathLike):
    """A folder of `broken_scenes`, mended and then changed, made when it is asked for.

    `faults` stay as they are; each of `copies` says which file of the whole scenes goes
    where; what is in `gone` is deleted. The scenes are those of the workspace then.
    """

    FAULTS = (LABEL.format(1), LABEL.format(2), IMAGE.format(3), LABEL.format(4))

    def __init__(self, faults=(), copies=(), gone=(), more=None):
        self.faults, self.copies, self.gone = faults, dict(copies), gone
        self.more, self.folder = more or {}, None

    def __fspath__(self):
        if self.folder is None:
            self.made = tempfile.TemporaryDirectory()
            self.folder = Path(self.made.name, "broken")
            whole = broken_scenes(self.folder)
            rest = [name for name in self.FAULTS if name not in self.faults]
            for name, source in (
                dict(zip(rest, rest, strict=True)) | self.copies
            ).items():
                shutil.copy(whole / source, self.folder / name)
            for name in self.gone:
                (self.folder / name).unlink()
            for name, text in self.more.items():
                (self.folder / name).write_text(text)
        return str(self.folder)


NOTHING = '{"type": "FeatureCollection", "features": []}'

RIGHT = {
    "4.1": [("images/image_part_{id}.jpg", "masks/image_part_{id}.png"), ["images/{id}.jpg", "masks/{id}.png"],
            ("images/image_part_0{id}.jpg", "masks/image_part_0{id}.png"), ("images/image_{id}.jpg", "masks/image_{id}.png"),
            ("i*/image_part_{id}.jpg", "m*/image_part_{id}.png"), ("images/image_part_{id}.j*", "masks/image_part_{id}.p*"),
            (Path("images/{id}.jpg"), Path("masks/{id}.png"))],
    "4.2": [(0, 0.39), (0.0, 0.387), np.array([0, 0.39]), (np.float32(0), np.float64(0.387))],
    "4.3": [(0.5, 0.0093)],
    "4.4": [Mended(), Mended(more={".notes": "1, 2, 3 and 4", f"{IMAGE.format(1)}.aux.xml": "<PAMDataset/>"})],
}  # fmt: skip
WRONG = {
    "4.1": [
        (("images/image_part_001.jpg", "masks/image_part_001.png"), "no {id}"),
        (("Tile {id}/images/*.jpg", "Tile {id}/masks/*.png"), "one id"),
        (("image_part_{id}.jpg", "image_part_{id}.png"), "one folder deeper"),
        (("images/image_part_{id}.png", "masks/image_part_{id}.jpg"), "endings"),
        (("images/image_part_{id}.jpg", "masks/{id}.png"), "same text"),
    ],
    "4.2": [
        ((0.76, 0.24), "accuracy"),
        ((0.5, 0.39), "without a single hit"),
        ((0, 0.24), "precision"),
        ((0, 0.62), "harmonic"),
        ((0, 1), "recall: every"),
        ((0, 0.5), "2pr"),
        ((float("nan"), 0.39), "two finite numbers"),
        ((0, float("nan")), "two finite numbers"),
        (("0", "0.39"), "two finite numbers"),
    ],
    "4.3": [
        ((0.298, 0.0093), "maximum"),
        ((0.5545, 0.0093), "take 120 off"),
        ((0.4455, 0.0093), "width of the range"),
        ((0.7, 0.0093), "(value - low)"),
        ((0.5, 0.9), "one per cent"),
        ((0.5, float("nan")), "two finite numbers"),
        ((float("nan"), 0.0093), "two finite numbers"),
    ],
    "4.4": [
        (
            Mended(Mended.FAULTS),
            "still broken: ... is not a set of pairs: images without labels: 4",
        ),
        (
            Mended(Mended.FAULTS[:1]),
            "still broken: scene 1: the labels in .../buildings",
        ),
        (Mended(Mended.FAULTS[:3]), "still broken (the first of 3): scene 1"),
        (Mended([LABEL.format(2)]), "img2.geojson is broken JSON"),
        (Mended([IMAGE.format(3)]), "img3.tif is cut off or damaged"),
        (Mended(gone=[IMAGE.format(3)]), "labels without images: 3"),
        (
            Mended(gone=[IMAGE.format(3), LABEL.format(3)]),
            "scene 3 is not there any more",
        ),
        (
            Mended(more={LABEL.format(4): NOTHING}),
            "label of scene 4 is a file without buildings",
        ),
        (
            Mended(more={LABEL.format(3): f"{NOTHING} "}),
            "label of scene 3 can be read, but",
        ),
        (
            Mended(
                copies={
                    LABEL.format(4): LABEL.format(2),
                    IMAGE.format(4): IMAGE.format(2),
                }
            ),
            "label of scene 2",
        ),
        (
            Mended(copies={"label4.geojson": LABEL.format(4)}, gone=[LABEL.format(4)]),
            "label4.geojson is the name of no",
        ),
        (Mended(copies={"label4.geojson": LABEL.format(4)}), "more than 12 files"),
        (
            Mended(
                copies={LABEL.format("4b"): LABEL.format(4)}, gone=[LABEL.format(4)]
            ),
            "img4b.geojson is the name of no",
        ),
        (
            Mended(
                copies={
                    LABEL.format(7): LABEL.format(3),
                    IMAGE.format(7): IMAGE.format(3),
                },
                gone=[LABEL.format(3), IMAGE.format(3)],
            ),
            "scene 3 is not there",
        ),
        (Path(__file__).parents[1], "folders in this one"),
        (Path("/"), "the scenes of the course lie there"),
        (Path(tempfile.gettempdir(), "no such folder"), "there is no folder"),
        (None, "a folder is asked for, not None"),
    ],
}

"""Random windows where there are labels: none from empty places, and every class often enough.

Written by hand: Raster Vision draws windows anywhere, and knows nothing of what is in them.
"""

import numpy as np
from rastervision.core.box import Box

ATTEMPTS = 50  # windows that are tried before one without the class is taken
CELLS = 8  # cells along a chip: the map of classes need be no finer
LEAST = 0.25  # share of a window's cells that must have labels


class LabelledWindows:
    """Draws windows of scenes; half of them must show a class that is drawn first.

    The class is drawn from all that the scene's labels have, each as likely, so that a rare
    one is seen often. A window has labels in a quarter of it, if the scene has such.
    """

    def __init__(self, null: int | None = None):
        self.null, self.maps = null, {}  # null: the class id of pixels without a label

    def __call__(self, part) -> Box:  # part: a window data set of Raster Vision
        "A window of one scene, from numpy's random numbers and those of the data set."
        if id(part) not in self.maps:
            self.maps[id(part)] = self._map_of(part)
        side, seen, there = self.maps[id(part)]
        wanted = 0
        if len(there) and np.random.random() < 0.5:
            wanted = 1 << int(np.random.choice(there))
        best, most = None, -1.0
        for _ in range(ATTEMPTS):
            window = part.sample_window()
            top, left, bottom, right = (max(0, edge) for edge in window)
            cells = seen[
                top // side : -(-bottom // side), left // side : -(-right // side)
            ]
            labelled = float((cells != 0).mean()) if cells.size else 0.0
            fits = not wanted or bool((cells & wanted).any())
            if labelled >= LEAST and fits:
                return window
            worth = min(labelled, LEAST) + fits
            if worth > most:
                best, most = window, worth
        return best

    def _map_of(self, part):
        "Side of a cell, which classes each cell has (a bit each), ids of all classes there."
        source, size = part.scene.label_source, min(part.min_size)
        side = max(1, size // CELLS)
        height, width = source.bbox.height, source.bbox.width
        seen = np.zeros((-(-height // side), -(-width // side)), np.int64)
        for row in range(len(seen)):
            top, bottom = row * side, min((row + 1) * side, height)
            strip = source.get_label_arr(Box(top, 0, bottom, width))
            bits = np.where(
                strip < 62, np.int64(1) << np.minimum(strip, 62).astype(np.int64), 0
            )
            if self.null is not None:
                bits[strip == self.null] = 0
            starts = np.arange(0, width, side)
            seen[row] = np.bitwise_or.reduceat(np.bitwise_or.reduce(bits, 0), starts)
        whole = int(np.bitwise_or.reduce(seen, None))
        return side, seen, [bit for bit in range(62) if whole >> bit & 1]

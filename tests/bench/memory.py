"""Peak memory of mapping against the height of the image.

    python tests/bench/memory.py [--rows 5000 50000] [--columns 2000] [--polygons]

Each height runs in a process of its own; what is compared is the largest resident set
of each (ru_maxrss). The model is a 3 x 3 mean, blending and uint8 scores are on. The
JSON it prints says the peaks in MiB, and the ratio of the last to the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine


def make_image(path: Path, rows: int, columns: int) -> None:
    "An image of soft blobs, written strip by strip."
    place = Affine(0.3, 0, 6e5, 0, -0.3, 4e6)
    profile = {"driver": "GTiff", "height": rows, "width": columns, "count": 3}
    profile |= {"dtype": "uint8", "crs": "EPSG:32611", "transform": place}
    across = np.sin(np.arange(columns) / 17)
    with rasterio.Env(GDAL_CACHEMAX=2**24), rasterio.open(path, "w", **profile) as file:
        for top in range(0, rows, 500):
            n = min(500, rows - top)
            down = np.sin(np.arange(top, top + n) / 23)
            bright = (127 + 100 * np.outer(down, across)).astype(np.uint8)
            window = rasterio.windows.Window(0, top, columns, n)
            file.write(np.stack([bright] * 3), window=window)


def mean_of_nine(chips: np.ndarray) -> np.ndarray:
    "Scores of three classes from the mean of 3 x 3 pixels."
    bright = chips[..., 0].astype(np.float32) / 255
    edge = np.pad(bright, ((0, 0), (1, 1), (1, 1)))
    rows = edge[:, :-2] + edge[:, 1:-1] + edge[:, 2:]
    mean = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return np.stack([mean, 1 - mean, np.zeros_like(mean)], axis=1)


def measure(image: str, out: str, polygons: bool) -> None:
    "Map an image in this process; print what it took."
    import resource

    from rvtutorial.engine.prediction import map_images

    classes = ["building", "background", "null"]
    start = time.perf_counter()
    options = {"chip_sz": 256, "scores": "uint8", "polygons": polygons}
    report = map_images(image, mean_of_nine, out, classes=classes, **options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - start
    found = {"mib": peak, "seconds": seconds, "parts": report["seconds"]}
    print(json.dumps(found | {"mpx_per_s": report["pixels"] / 1e6 / seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[5000, 50000])
    parser.add_argument("--columns", type=int, default=2000)
    parser.add_argument("--polygons", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return measure(*args.child, args.polygons)
    found = {}
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.tif"
            make_image(image, rows, args.columns)
            command = [sys.executable, __file__, "--child", str(image), folder + "/out"]
            command += ["--polygons"] * args.polygons
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found[rows] = json.loads(done.stdout)
    peaks = [one["mib"] for one in found.values()]
    print(
        json.dumps({"rows": found, "ratio": round(peaks[-1] / peaks[0], 4)}, indent=1)
    )


if __name__ == "__main__":
    main()

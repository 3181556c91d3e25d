"Folders laid out like Raster Vision's runs, made in milliseconds for the tests."

import json
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from rvtutorial.core.files import atomic_path

# peak memory in MB of a process itself; ru_maxrss would be its parent's at first
PEAK = "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024"

NAMES = ("building", "background", "null")
VEGAS = from_origin(-115.2, 36.2, 2.7e-06, 2.7e-06)  # 0.24 m by 0.3 m


def write_raster(path, bands, transform=VEGAS, crs="EPSG:4326", **more):
    "Write (bands, rows, columns) or (rows, columns) as GeoTIFF."
    bands = np.atleast_3d(bands) if np.ndim(bands) == 3 else np.asarray(bands)[None]
    shape = dict(count=bands.shape[0], height=bands.shape[1], width=bands.shape[2])
    place = dict(transform=transform, crs=crs) if crs else {}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=bands.dtype, **shape, **place, **more
    ) as out:
        out.write(bands)
    return Path(path)


def write_boxes(path, boxes, transform=VEGAS):
    "Write boxes of pixels (row, column, rows, columns) as GeoJSON polygons."
    features = []
    for row, column, rows, columns in boxes:
        corners = [
            (column, row),
            (column + columns, row),
            (column + columns, row + rows),
        ]
        corners += [(column, row + rows), (column, row)]
        # a hair inside, so that cutting to whole pixels gives the corner back
        ring = [
            list(rasterio.transform.xy(transform, r + 1e-3, c + 1e-3, offset="ul"))
            for c, r in corners
        ]
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {}, "geometry": shape})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )
    return Path(path)


def make_scene(folder, scene, boxes=((2, 3, 8, 10),), shape=(40, 50), seed=0):
    "An image and its labels under SpaceNet's names; buildings are bright."
    rng = np.random.default_rng([seed, int(scene)])
    image = rng.integers(100, 400, (3, *shape), dtype=np.uint16)
    for row, column, rows, columns in boxes:
        image[:, row : row + rows, column : column + columns] += 800
    folder = Path(folder)
    name = f"AOI_2_Vegas_img{scene}"
    label = write_boxes(folder / f"buildings_{name}.geojson", boxes)
    return write_raster(folder / f"RGB-PanSharpen_{name}.tif", image), label


def truth_of(boxes, shape):
    labels = np.ones(shape, np.uint8)
    for row, column, rows, columns in boxes:
        labels[row : row + rows, column : column + columns] = 0
    return labels


def evaluation(matrices, names=NAMES):
    "What Raster Vision's eval.json holds for {scene: confusion matrix}."
    total = sum(np.asarray(matrix, float) for matrix in matrices.values())
    scenes = {scene: _items(matrix, names) for scene, matrix in matrices.items()}
    return {"overall": _items(total, names), "per_scene": scenes}


def _items(matrix, names):
    matrix = np.asarray(matrix, float)
    items = []
    for number, name in enumerate(names):
        tp = matrix[number, number]
        fp, fn = matrix[:, number].sum() - tp, matrix[number].sum() - tp
        tn = matrix.sum() - tp - fp - fn
        share = {"TN": tn, "FP": fp, "FN": fn, "TP": tp}
        item = {"class_id": number, "class_name": name, "gt_count": tp + fn}
        item["metrics"] = {"f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None}
        item["conf_mat"] = [[tn, fp], [fn, tp]]
        item["conf_mat_dict"] = share
        item["conf_mat_frac_dict"] = {k: v / matrix.sum() for k, v in share.items()}
        items.append(item)
    average = {"class_name": "average", "metrics": {}, "conf_mat": matrix.tolist()}
    return [*items, average]


def _scene_config(scene, image, label, background=1):
    vector = {"type_hint": "geojson_vector_source", "uris": str(label)}
    source = {
        "vector_source": vector,
        "rasterizer_config": {"background_class_id": background},
    }
    if Path(label).suffix == ".tif":
        maps = [{"type_hint": "reclass_transformer", "mapping": {"255": 0, "0": 1}}]
        source = {"uris": [str(label)], "transformers": maps}
    raster = {"type_hint": "rasterio_source", "uris": [str(image)]}
    return {
        "id": str(scene),
        "raster_source": raster,
        "label_source": {"raster_source": source},
    }


def write_log(path, epochs, f1=0.8):
    "train/log.csv with Raster Vision's columns; valid_time is the last one."
    columns = "epoch,train_loss,train_time,val_loss,avg_precision,avg_recall,avg_f1"
    for name in NAMES:
        columns += f",{name}_precision,{name}_recall,{name}_f1"
    lines = [columns + ",valid_time"]
    for epoch in range(epochs):
        loss, now = 1 / (epoch + 1), f1 * (epoch + 1) / epochs
        numbers = [
            loss,
            "0:00:05",
            0.9 * loss,
            *(3 * [now]),
            *(6 * [now]),
            *(3 * [0.0]),
        ]
        lines.append(",".join(map(str, [epoch, *numbers, "0:00:01"])))
    with atomic_path(path) as partial:  # others may be reading it
        partial.write_text("\n".join(lines) + "\n")


def fake_run(
    folder, scenes, shift=1, epochs=3, stages=("train", "predict", "eval", "bundle")
):
    """A run that predicts every box `shift` pixels too far to the right.

    `scenes`: {id: (image, label, boxes, shape)} of the validation split.
    """
    folder = Path(folder)
    configs = [
        _scene_config(i, image, label) for i, (image, label, *_) in scenes.items()
    ]
    classes = {"names": list(NAMES), "null_class": "null"}
    splits = {"train_scenes": [], "validation_scenes": configs, "test_scenes": []}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"dataset": {"class_config": classes, **splits}, "backend": {}}
    (folder / "pipeline-config.json").write_text(json.dumps(config))
    if "train" in stages:
        write_log(folder / "train" / "log.csv", epochs)
    matrices = {}
    for scene, (image, _, boxes, shape) in scenes.items():
        truth = truth_of(boxes, shape)
        drawn = truth_of([(r, c + shift, h, w) for r, c, h, w in boxes], shape)
        matrices[scene] = np.bincount(
            3 * truth.ravel() + drawn.ravel(), minlength=9
        ).reshape(3, 3)
        if "predict" in stages:
            with rasterio.open(image) as source:
                place = dict(transform=source.transform, crs=source.crs)
            write_raster(folder / "predict" / scene / "labels.tif", drawn, **place)
    if "eval" in stages:
        path = folder / "eval" / "validation_scenes" / "eval.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(evaluation(matrices)))
    if "bundle" in stages:
        (folder / "bundle").mkdir()
        (folder / "bundle" / "model-bundle.zip").write_bytes(b"PK")
    return folder


BOXES = {"9": [(2, 3, 8, 10), (20, 30, 10, 12)], "10": [(5, 5, 12, 12)], "11": []}


def three_scenes(folder):
    "Scenes 9, 10 and 11; the last one is empty, and alphabetically 10 comes first."
    out = {}
    for scene, boxes in BOXES.items():
        out[scene] = (*make_scene(folder, scene, boxes), boxes, (40, 50))
    return out

"""Open a run's folder, check its open files and pre-trained weights, scale its inputs.

Written by hand: what `get_config` does that needs torch; what only needs the scenes
stands in `data.checks`.
"""

# ruff: noqa: E402
from rvtutorial.core.files import need_addresses

need_addresses()  # before torch: with less its import may never end

import hashlib
import importlib
import json
import resource
import shutil
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

with warnings.catch_warnings():  # importing Raster Vision switches all of them off
    warnings.simplefilter("ignore")
    importlib.import_module("rastervision.pytorch_backend")
    learner = "rastervision.pytorch_learner.semantic_segmentation_learner"
    importlib.import_module(learner)

import albumentations as A
import numpy as np
import torch
from rastervision.core.box import Box
from torchvision.models import get_model_weights

from rvtutorial import scenes
from rvtutorial.core.hyperparams import NETWORK_OPTIONS
from rvtutorial.core.names import near_match
from rvtutorial.data import validity
from rvtutorial.data.label_values import Meaning
from rvtutorial.engine.reading import build_scene
from rvtutorial.models import course, encoders, unet
from rvtutorial.runs import Hyperparams, Run

__all__ = ["allow_open_files", "begun", "check_pretrained", "in_one_way"]
__all__ += ["fitted", "make_transform", "network_file", "weighed", "weights_of"]
__all__ += ["chips_of", "network_options"]


def allow_open_files(
    scenes: int,  # Number of scenes
) -> int:  # The limit that now holds
    "Raise this process's limit of open files; OSError when the system allows too few."
    wanted = 256 + 3 * scenes  # images and label rasters, some of them twice
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(
            f"{scenes} scenes need up to {wanted} open files, and this system allows a "
            f"process {hard} (ulimit -Hn): use fewer scenes, or ask for a higher limit"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def make_transform(
    limits: tuple | None,  # Lowest and highest value of each band; None: no transform
    encoder: str | None = None,  # EfficientNet-Lite0 was trained on -1 .. 1
) -> dict | None:  # An albumentations transform, as Raster Vision stores it
    "Bring each band from its own range to -2 .. 2, as ImageNet's networks expect it."
    if limits is None:
        return None
    pairs = [(float(low), float(high)) for low, high in zip(*limits, strict=True)]
    middle = [(low + high) / 2 for low, high in pairs]
    parts = 2 if encoder == encoders.LITE0 else 4
    unit = [max(high - low, 1e-6) / parts for low, high in pairs]
    return A.to_dict(A.Normalize(mean=middle, std=unit, max_pixel_value=1.0))


def check_pretrained(
    hp: Hyperparams,  # model, backbone, pretrained
) -> Path | None:  # File with the weights; None when none are needed
    """Find the ImageNet weights or fetch them; FileNotFoundError says how to get them.

    Raises ValueError for an encoder that segmentation-models-pytorch does not know.
    """
    if hp.encoder:
        return _check_encoder(hp)
    if hp.model not in ("deeplabv3", "fcn") or not hp.pretrained:
        return None
    if hp.model == "fcn" and hp.encoder_weights:
        return _check_file(hp)
    whole = hp.model == "fcn" and hp.pretrained_on == "coco"
    url = get_model_weights(f"fcn_{hp.backbone}" if whole else hp.backbone).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        urllib.request.urlopen(url, timeout=20).close()
        torch.hub.download_url_to_file(url, path, path.stem.split("-")[-1])
    except (OSError, RuntimeError) as err:
        raise FileNotFoundError(
            f"pretrained=true needs {path.name}, which is not in {path.parent} and cannot "
            f"be fetched from here ({err}). On a machine with a network: "
            f"curl --create-dirs -o {path} {url}  (or ask for pretrained=false)"
        ) from err
    return path


def _check_file(hp: Hyperparams) -> Path:
    path = Path(hp.encoder_weights)
    if not path.is_file():
        raise FileNotFoundError(f"encoder_weights={path}: there is no such file")
    return path


def _check_encoder(hp: Hyperparams) -> Path | None:
    from segmentation_models_pytorch.encoders import get_encoder_names

    known = [encoders.LITE0, *get_encoder_names()]
    if hp.encoder not in known and not hp.encoder.startswith("tu-"):  # any of timm's
        hint = near_match(hp.encoder, known)
        raise ValueError(f"there is no encoder {hp.encoder!r}; {hint}")
    if not hp.pretrained or (hp.encoder != encoders.LITE0 and not hp.encoder_weights):
        return None  # segmentation-models-pytorch finds or fetches the others itself
    return encoders.weights_file(hp.encoder, hp.encoder_weights)


def in_one_way(
    where: dict,  # Settings of data and labels, as they were given
) -> dict:  # The same, so that two ways to write one thing are one run
    "Settings without blanks around names and numbers; usual zeros are None."

    def plain(text, mark, cuts=-1):
        if not isinstance(text, str):
            return text
        return mark.join(part.strip() for part in text.split(mark, cuts))

    out = {k: plain(where[k], ",") for k in ("classes", "label_values", "bands")}
    out["label_values"] = Meaning.in_one_text(out["label_values"])
    if isinstance(out["label_values"], str):
        pairs = out["label_values"].split(",")
        out["label_values"] = ",".join(plain(pair, ":", 1) for pair in pairs)
    data = validity.check_zeros(where["zeros"]) == "data"
    return where | out | {"zeros": "data" if data else None}


@contextmanager
def begun(
    output_uri: str | Path,  # Folder of the run
    hp: Hyperparams,  # All of them
    preset: str,  # Its name
    where: dict,  # Settings of data and labels, as `in_one_way` returns them
    splits: dict,  # {"train": scenes, "val": scenes, "test": scenes}
    windows: dict,  # Scene id -> which chips are cut from it
) -> Iterator[Run]:  # New, or the same run again; ValueError when it is another one
    """Open the folder of a run; if what follows fails, a new one is left as it was found.

    Values, data and windows make two runs the same run.
    """
    grid = {s.id: json.loads(windows[s.id].json()) for s in splits["val"]}
    digest = hashlib.sha256(json.dumps(grid, sort_keys=True).encode()).hexdigest()[:16]
    data = {k: where[k] for k in ("data", "image_pattern", "label_pattern")}
    asked = {
        "hyperparams": hp.asdict(),
        "preset": preset,
        "data": {**data, "digest": scenes.dataset_digest(splits)},
        "labels": {k: v for k, v in where.items() if k not in data},
        "windows_digest": digest,
        "seed": hp.seed,
    }
    run = Run(output_uri)
    there, new = run.path.exists(), not run.manifest
    run = Run.open_for(output_uri, asked)
    if new:  # who will run it is not known, so its files tell its state
        run.update("went", state=None)
    try:
        yield run
    except BaseException:
        for name in ("labels", "images", "hub") if new else ():
            shutil.rmtree(run.path / name, ignore_errors=True)
        for name in ("run.json", ".run.lock") if new else ():
            (run.path / name).unlink(missing_ok=True)
        if not there:
            with suppress(OSError):  # something else lies there by now
                run.path.rmdir()
        raise


# --- values that are left to the data


MIDDLING = 192  # pixels: the side of a chip where scenes and memory allow it
FOLD = 32  # what a network halves five times
EPOCH = (160, 320)  # chips of an epoch: fewer are mostly overhead, more hide progress
RARE = 0.05  # share of the labelled pixels below which a class is rare


def fitted(
    hp: Hyperparams,  # Some of which may be none
    shapes: dict,  # Scene id -> (rows, columns, bands)
    output_uri: str | Path,  # Folder of the run, which may know its epochs already
) -> Hyperparams:  # With numbers for chips, and the epochs that were planned
    """Values that are left to the data: chips of 192 pixels, or what the smallest scene holds.

    Sides are multiples of 32 where there is room, as the network halves them five times.
    Windows of a map are two thirds of a chip apart.
    """
    chip, found = hp.chip_sz, {}
    if chip is None:
        room = min(min(shape[:2]) for shape in shapes.values())
        chip = min(MIDDLING, room - room % FOLD if room >= FOLD else room)
        found["chip_sz"] = chip
    if hp.stride_length is None:
        found["stride_length"] = max(1, 2 * chip // 3)
    asked = (Run(output_uri).manifest or {}).get("asked", {}).get("hyperparams", {})
    if hp.budget and asked.get("budget") == hp.budget:
        found["epochs"] = asked["epochs"]  # as they were planned when the run began
    return hp.replace(**found) if found else hp


def chips_of(
    hp: Hyperparams,  # chip_sz, max_windows
    shapes: list,  # (rows, columns, ...) of the scenes of a split
) -> list[int]:  # Random chips of each scene in an epoch, 1 or more
    """How many chips are drawn from each scene: a number, or by its area.

    By area: once over all pixels, but 160 to 320 chips in all.
    """
    if hp.max_windows is not None or not shapes:
        return [hp.max_windows] * len(shapes)
    areas = [rows * columns for rows, columns, *_ in shapes]
    chips = min(max(sum(areas) / hp.chip_sz**2, EPOCH[0]), EPOCH[1])
    return [max(1, round(chips * area / sum(areas))) for area in areas]


def weighed(
    hp: Hyperparams,  # class_weights
    train_scenes: list,  # SceneConfig of the training
    classes,  # ClassConfig with null
) -> Hyperparams:  # With a number for each class
    """Class weights from the labels: a rare class weighs the more, the rarer it is.

    Weights are 1 from a share of 5 % of the labelled pixels on, below it the square root of
    5 % / share. Raises ValueError for a class without any pixel in the training scenes.
    """
    if hp.class_weights != "balanced":
        return hp
    counts = np.zeros(len(classes), np.int64)
    for config in train_scenes:
        source = build_scene(
            config, classes, labels=True, predictions=False
        ).label_source
        height, width = source.bbox.height, source.bbox.width
        for top in range(0, height, STRIP):
            strip = source.get_label_arr(Box(top, 0, min(top + STRIP, height), width))
            counts += np.bincount(strip.ravel(), minlength=len(classes))[: len(classes)]
    names = classes.names[:-1]
    counts = counts[: len(names)]
    none = [name for name, count in zip(names, counts, strict=True) if not count]
    if none:
        raise ValueError(
            f"no pixel of the training scenes is {' or '.join(none)}: a network cannot "
            f"learn it. Check the labels (rvtutorial check), or leave the class out of "
            f"classes={','.join(names)}"
        )
    shares = counts / counts.sum()
    weights = np.sqrt(np.maximum(1, RARE / shares)).round(3)
    return hp.replace(class_weights=None if (weights == 1).all() else weights.tolist())


STRIP = 2048  # rows that are read at once


def weights_of(
    given: str | None,  # A run folder, or a file of weights
) -> str | None:  # A file of weights
    "Where the weights of another run are; FileNotFoundError when there are none."
    if given is None:
        return None
    path = Path(given)
    file = path / "train" / "last-model.pth" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"init_weights={given}: there is no {file.name} there; give the folder of a "
            f"run that has been trained, or a file of its weights (.pth)"
        )
    return str(file)


def network_file(
    hp: Hyperparams,  # hubconf, encoder
) -> tuple[str, str]:  # A Python file, the name of the function in it
    "The file that defines a network; FileNotFoundError when there is none."
    if hp.hubconf:
        if not Path(hp.hubconf).is_file():
            raise FileNotFoundError(f"hubconf={hp.hubconf}: there is no such file")
        return hp.hubconf, "network"
    if hp.encoder:
        return encoders.__file__, "network"
    if hp.model in _COURSE:
        return course.__file__, _COURSE[hp.model]
    return unet.__file__, "unet"


_COURSE = {  # Names of functions in `models.course`
    "segmentationcnn": "segmentation_cnn",
    "courseunet": "course_unet",
    "fcn": "fcn",
}


def network_options(
    hp: Hyperparams,  # model, and what goes with it
) -> dict:  # What the function of a network is called with, beside classes and bands
    "What was asked of one of the course's networks; empty for others."
    names = () if hp.hubconf else NETWORK_OPTIONS.get(hp.model, ())
    every = {n: v for n, v in hp.asdict().items() if n in names and v is not None}
    on = every.pop("pretrained_on", "imagenet")
    if hp.model == "fcn" and not hp.hubconf:
        every["backbone"] = hp.backbone
        every["weights"] = (hp.encoder_weights or on) if hp.pretrained else None
    return every

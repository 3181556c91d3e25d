"""Check open files and pre-trained weights, scale the inputs, weigh the classes.

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

from rvtutorial.core.hyperparams import NETWORK_OPTIONS
from rvtutorial.core.names import near_match, read_classes
from rvtutorial.core.records import read_json
from rvtutorial.core.renamed import say_once
from rvtutorial.engine.reading import build_scene
from rvtutorial.models import course, encoders, unet
from rvtutorial.runs import Hyperparams, Run


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
    if hp.encoder.startswith("tu-"):  # any of timm's
        import timm

        known += [f"tu-{name}" for name in timm.list_models()]
    if hp.encoder not in known:
        hint = near_match(hp.encoder, known)
        raise ValueError(f"there is no encoder {hp.encoder!r}; {hint}")
    if not hp.pretrained or (hp.encoder != encoders.LITE0 and not hp.encoder_weights):
        return None  # segmentation-models-pytorch finds or fetches the others itself
    return encoders.weights_file(hp.encoder, hp.encoder_weights)


def _listed(bands) -> list[str]:
    return [part.strip() for part in str(bands).split(",")]


def check_beginning(
    hp: Hyperparams,  # init_weights
    where: dict,  # classes, bands: what is trained now
) -> None:
    """Compare what the run behind `init_weights` was trained on with what is asked now.

    Raises ValueError where its classes are the same in another order; other classes, or
    other bands, are said on standard error, once.
    """
    if hp.init_weights is None or not Path(hp.init_weights).is_dir():
        return
    manifest = read_json(Path(hp.init_weights) / "run.json", {})
    labels = manifest.get("asked", {}).get("labels", {})
    for name, read in (("classes", read_classes), ("bands", _listed)):
        then, now = (
            [*read(one[name])] if one.get(name) else [] for one in (labels, where)
        )
        if not labels or then == now:
            continue
        text = (
            f"{hp.init_weights}, with whose weights training starts, has the {name} "
            f"{','.join(then) or 'all'}, this run {','.join(now) or 'all'}"
        )
        if name == "classes" and sorted(then) == sorted(now):
            raise ValueError(f"{text}: give them in the same order")
        say_once(text)


RARE = 0.05  # share of the labelled pixels below which a class is rare


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


def refuse_other_code(
    kept: Path,  # RUN/hub/hubconf.py, if the run has begun
    file: str | Path,  # What is to be its network now
) -> None:
    "ValueError when a run that trains already would go on with another network."
    begun = kept.is_file() and (kept.parents[1] / "train").exists()
    if begun and kept.read_bytes() != Path(file).read_bytes():
        raise ValueError(
            f"{file} is not the network with which this run began, which is {kept}: give "
            f"the changed one a folder of its own"
        )

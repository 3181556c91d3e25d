"""Every value a run depends on: its default, its range and the reason for it, and what Raster Vision does instead."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NewType, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rvtutorial.core.names import as_text, near_match
from rvtutorial.core.records import jsonable
from rvtutorial.core.renamed import say_once

_UNET = {"model": "unet", "pretrained": False, "lr": 5e-3}
PRESETS: dict[str, dict] = {
    "version1": {"chip_sz": 300, "stride_length": 300, "epochs": 3, "batch_sz": 2},
    "version2": {},
    "sample": {**_UNET, "batch_sz": 8, "max_windows": 10},
    "smoke": {
        **_UNET, "chip_sz": 128, "stride_length": 66, "max_windows": 2, "epochs": 2,
        "batch_sz": 4,
    },
    "own": {  # for imagery of one's own: what is none comes from the data
        "model": "unet", "encoder": "efficientnet-lite0", "pretrained": True,
        "chip_sz": None, "stride_length": None, "max_windows": None, "batch_sz": 8,
        "optimizer": "adamw", "lr": 2e-3, "encoder_lr": 0.3, "weight_decay": 0.01,
        "cosine": True, "frozen_layers": 9, "jitter": 0.15,
        # Dice beside cross-entropy: new places hold more or less of a class than those of
        # the training, and cross-entropy alone draws as much as there was
        "loss": "cross_entropy+dice", "sampling": "labels", "class_weights": "balanced",
        "checkpoint": "mean", "budget": "3 min",
    },
}  # fmt: skip


# --- types and ranges


def _whole(value) -> int:
    if isinstance(value, bool) or int(float(value)) != float(value):
        raise ValueError
    return int(float(value))


def _real(value) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _word(value) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value.strip().lower()


def _file(value) -> str:
    if not isinstance(value, str | Path):
        raise ValueError
    return str(Path(value).expanduser().absolute())


def _truth(value) -> bool:
    words = {"true": True, "yes": True, "1": True}
    words |= {"false": False, "no": False, "0": False}
    return words[str(value).strip().lower()]


def _listed(value) -> list:
    return value.strip("()[] ").split(",") if isinstance(value, str) else list(value)


def _weights(value) -> "tuple[float, ...] | str":
    if str(value).strip().lower() == "balanced":
        return "balanced"
    weights = tuple(_real(item) for item in _listed(value))
    if len(weights) < 2 or min(weights) < 0 or max(weights) == 0:
        raise ValueError
    return weights


def _scaling(value) -> str:
    if str(value).strip().lower() in ("percentiles", "none"):
        return str(value).strip().lower()
    items = [
        i.split(":") if isinstance(i, str) and ":" in i else i for i in _listed(value)
    ]
    mark = ":" if isinstance(items[0], list | tuple) else ","  # a range for each band
    pairs = [[_real(n) for n in pair] for pair in (items if mark == ":" else [items])]
    if any(low >= high for low, high in pairs):
        raise ValueError
    plain = [[repr(n).removesuffix(".0") for n in pair] for pair in pairs]
    return ",".join(mark.join(pair) for pair in plain)


UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
}


def _budget(value) -> str:
    found = re.fullmatch(r"([\d.]+)\s*([a-z]+)", str(value).strip().lower())
    if not found or not float(found[1]):
        raise ValueError
    number, unit = found[1], found[2].removesuffix("s") or "s"
    short = {1: "s", 60: "min", 3600: "h"}[UNITS[unit]]
    return f"{float(number):g} {short}"


def seconds(budget: str) -> float:
    "The seconds of a budget, as `Hyperparams` writes it: 3 min."
    number, unit = budget.split()
    return float(number) * UNITS[unit]


LOSSES = ("cross_entropy", "dice", "focal", "lovasz")


def _loss(value) -> str:
    terms = [term.strip().lower().replace("-", "_") for term in str(value).split("+")]
    if not {*terms} <= {*LOSSES} or len({*terms}) < len(terms):
        raise ValueError
    return "+".join(sorted(terms, key=LOSSES.index))


def _sizes(value) -> "tuple[int, ...]":
    sizes = tuple(_whole(item) for item in _listed(value))
    if not sizes or min(sizes) < 1:
        raise ValueError
    return sizes


Scaling = NewType("Scaling", str)
Sizes = NewType("Sizes", object)
Weights = NewType("Weights", object)
Budget = NewType("Budget", str)
Loss = NewType("Loss", str)
File = NewType("File", str)
_CASTS = {  # of a type: the cast, and what it takes
    int: (_whole, "a whole number"),
    float: (_real, "a finite number"),
    bool: (_truth, "true or false"),
    Weights: (
        _weights,
        "two or more weights such as 1,2,0.5, none negative, not all 0, or balanced",
    ),
    Budget: (_budget, "a time such as 90 s, 3 min or 1 h"),
    Loss: (_loss, f"{', '.join(LOSSES)}, or a sum such as cross_entropy+dice"),
    Sizes: (_sizes, "whole numbers from 1 up, such as 5,5,2"),
    str: (_word, "a name"),
    File: (_file, "the path of a file"),
    Scaling: (
        _scaling,
        "percentiles, none, a range LO,HI with LO below HI, or LO:HI,LO:HI,... by band",
    ),
}


def _setting(default, what, rv, why="", ge=None, le=None, **stock):
    """Declare one hyperparameter: a field of pydantic's.

    Its value in version 2, what it is, where Raster Vision keeps it, the reason for the
    range; `stock=`: Raster Vision's own value, where ours is another.
    """
    more = {"rv": rv, "why": why, **stock}
    return Field(default, description=what, ge=ge, le=le, json_schema_extra=more)


def _kind(field):
    "The type of a hyperparameter, the words it may be, and whether it may be none."
    kind = field.annotation
    optional = type(None) in get_args(kind)
    kind = get_args(kind)[0] if optional else kind
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return kind, words, optional


def _allowed(field) -> str:
    "What a hyperparameter accepts, in words."
    kind, words, optional = _kind(field)
    text = "one of " + ", ".join(words) if words else _CASTS[kind][1]
    limits = {k: v for m in field.metadata for k, v in asdict(m).items()}
    if limits:
        text += f" from {limits['ge']:g} to {limits['le']:.10g}"
    return text + (", or none" if optional else "")


def _cast(field, given):
    "The value of a hyperparameter, of its type; an error of any kind if it has none."
    kind, words, optional = _kind(field)
    value = given.item() if hasattr(given, "item") else given  # numpy scalars
    value = value.strip() if isinstance(value, str) else value
    if optional and str(value).lower() in ("none", "null"):
        return None
    return _word(value) if words else _CASTS[kind][0](value)


def _refusal(name: str, field, given) -> ValueError:
    "What is allowed, why, and what was given."
    why = field.json_schema_extra["why"]
    text = f"{name} must be {_allowed(field)}{f' ({why})' * bool(why)}, got {given!r}"
    words = _kind(field)[1]
    if words and isinstance(given, str):
        text += f"; {near_match(given, words)}"
    return ValueError(text)


# --- combinations

NETWORK_OPTIONS = {  # Of the course's networks: what each takes beside classes and bands
    "segmentationcnn": (
        "depth", "embedding_size", "pool_sizes", "kernel_size", "batch_norm",
        "scale_factor",
    ),
    "courseunet": ("n_encoders", "embedding_size", "scale_factor"),
    "fcn": ("stem", "pretrained_on", "scale_factor"),
}  # fmt: skip


def _misfits(hp) -> Iterator[str]:
    "What is wrong with the options of the course's networks."
    known = () if hp.hubconf else NETWORK_OPTIONS.get(hp.model, ())
    for name in dict.fromkeys(n for some in NETWORK_OPTIONS.values() for n in some):
        if getattr(hp, name) is not None and name not in known:
            owners = [m for m, names in NETWORK_OPTIONS.items() if name in names]
            yield (
                f"{name} {as_text(getattr(hp, name))} is for model {' or '.join(owners)}, "
                f"and {'hubconf' if hp.hubconf else f'model {hp.model}'} knows nothing of "
                f"it. Leave it out, or use {name}=none"
            )
    if (hp.kernel_size or 1) % 2 == 0:
        yield (
            f"kernel_size {hp.kernel_size} is even, and would move the picture by half a "
            f"pixel. Use {hp.kernel_size - 1} or {hp.kernel_size + 1}"
        )
    pooled = math.prod(hp.pool_sizes or (5, 5, 2))
    if hp.model == "segmentationcnn" and (hp.scale_factor or pooled) % pooled:
        yield (
            f"scale_factor {hp.scale_factor} is no multiple of {pooled}, the product of "
            f"pool_sizes: segmentationcnn scores squares of {pooled} pixels"
        )
    if hp.pretrained_on and not hp.pretrained:
        yield (
            f"pretrained_on {hp.pretrained_on} needs pretrained=true, got pretrained=false"
        )


def _contradictions(hp) -> Iterator[str]:
    "What is wrong with a combination of values that are each allowed."
    if (hp.stride_length or 0) > (hp.chip_sz or math.inf):
        seen = hp.chip_sz * len(range(0, 650 - hp.chip_sz + 1, hp.stride_length))
        lost = 650**2 - seen**2
        yield (
            f"stride_length {hp.stride_length} is larger than chip_sz {hp.chip_sz}: "
            f"the chips leave gaps, and of a scene of 650 x 650 pixels {lost} "
            f"({lost / 650**2:.1%}) are never predicted. Use a stride_length of at "
            f"most {hp.chip_sz}, or larger chips"
        )
    if (hp.padding or 0) >= (hp.chip_sz or math.inf):
        yield (
            f"padding {hp.padding} is not below chip_sz {hp.chip_sz}: whole chips could "
            f"lie outside their scene. Use 0, or none for half a chip"
        )
    if hp.engine == "stock" and (asked := hp.beyond_stock):
        yield (
            f"engine is stock, and Raster Vision's own training knows nothing of "
            f"{', '.join(asked)}. Use engine=fast, or leave them as they are in version 2"
        )
    if hp.hubconf and (hp.encoder or hp.pretrained):
        yield (
            f"hubconf {hp.hubconf} makes the network, and encoder {hp.encoder} and "
            f"pretrained={str(hp.pretrained).lower()} are for those of this package. Use "
            "encoder=none and pretrained=false"
        )
    if hp.model == "unet" and hp.pretrained and not hp.encoder:
        yield (
            "pretrained is true, but for model unet there are no ImageNet weights. "
            "Use pretrained=False, or encoder=efficientnet-lite0"
        )
    encodes = hp.encoder or hp.model in ("deeplabv3", "fcn")
    if hp.frozen_layers and encodes and not (hp.pretrained or hp.init_weights):
        yield (
            f"frozen_layers is {hp.frozen_layers}, and the encoder has learned nothing "
            "yet. Use frozen_layers=0, or pretrained=true"
        )
    if hp.model in ("segmentationcnn", "courseunet") and hp.pretrained:
        yield (
            f"pretrained is true, but for model {hp.model} there are no ImageNet weights. "
            "Use pretrained=False, or model=fcn"
        )
    if hp.encoder and hp.model in ("deeplabv3", "fcn"):
        yield (
            f"encoder {hp.encoder} does not go with model {hp.model}, which has a "
            "backbone. Use model=unet, or deeplabv3plus"
        )
    if hp.encoder and hp.model in ("segmentationcnn", "courseunet"):
        yield (
            f"encoder {hp.encoder} does not go with model {hp.model}, which is trained "
            "from nothing. Use encoder=none, or model=unet"
        )
    yield from _misfits(hp)
    alone = ("deeplabv3", "unet", *NETWORK_OPTIONS)
    if not (hp.encoder or hp.hubconf) and hp.model not in alone:
        yield f"model {hp.model} needs an encoder. Use encoder=efficientnet-lite0"
    if hp.model == "deeplabv3" and hp.batch_sz == 1 and not hp.hubconf:
        yield (
            "batch_sz 1 cannot train deeplabv3: one of its layers normalises over the "
            "batch and has a single value for each chip. Use a batch_sz of 2 or more"
        )


BEYOND_STOCK = ("optimizer", "weight_decay", "cosine", "encoder_lr", "freeze_epochs")
BEYOND_STOCK += (
    "frozen_layers",
    "jitter",
    "noise",
    "blur",
    "sampling",
    "budget",
    "checkpoint",
    "patience",
)

# --- values that are left to the data

MIDDLING = 192  # pixels: the side of a chip where scenes and memory allow it
FOLD = 32  # what a network halves five times
EPOCH = (160, 320)  # chips of an epoch: fewer are mostly overhead, more hide progress

# --- the table

_OLD_NAMES = {"keep": "checkpoint"}  # of version 0.1.0, in records and in calls


class Hyperparams(BaseModel):
    """Every value a run depends on, except its data; the defaults are version 2's.

    Values may be texts, as on a command line. Raises ValueError for a name that is not
    known, a value of the wrong type or out of range, and for contradictions.
    """

    model_config = ConfigDict(frozen=True)

    # which squares are cut from a scene
    chip_sz: int | None = _setting(
        220, "side of a chip, in pixels; none: from the data",
        "WindowSamplingConfig.size, PredictOptions.chip_sz", ge=16, le=4096,
        why="smaller ones show no context, larger ones fill the memory",
    )  # fmt: skip
    stride_length: int | None = _setting(
        215, "pixels from one predicted chip to the next; none: two thirds of chip_sz",
        "PredictOptions.stride",
        ge=1, le=4096, why="a window has to move",
    )  # fmt: skip
    max_windows: int | None = _setting(
        5, "random chips from each scene in each epoch; none: by its area",
        "WindowSamplingConfig.max_windows", ge=1, le=100_000,
        why="a scene without chips teaches nothing",
    )  # fmt: skip
    padding: int | None = _setting(
        0, "pixels by which a random chip may overflow its scene",
        "WindowSamplingConfig.padding", ge=0, le=4096,
        why="none stands for half a chip", stock=None,
    )  # fmt: skip
    val_windows: Literal["grid", "random"] = _setting(
        "grid", "chips scored after each epoch: one grid, or new random ones",
        "GeoDataConfig.sampling", stock="random",
    )  # fmt: skip
    # which network is trained, and on what size
    model: Literal[
        "deeplabv3", "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet",
        "deeplabv3plus", "pan", "upernet", "segformer", "segmentationcnn", "courseunet",
        "fcn",
    ] = _setting("deeplabv3", "architecture", "backend.model")  # fmt: skip
    encoder: str | None = _setting(
        None, "network that reads the image; none: the model's own",
        "ModelConfig.external_def",
    )  # fmt: skip
    encoder_weights: File | None = _setting(
        None, "file of the encoder's weights; none: where they are found", "no field",
    )  # fmt: skip
    hubconf: File | None = _setting(
        None, "file whose function `network` makes one's own; none: model is made",
        "ModelConfig.external_def",
    )  # fmt: skip
    init_weights: File | None = _setting(
        None, "run, or .pth file, with whose weights training starts",
        "ModelConfig.init_weights",
    )  # fmt: skip
    backbone: Literal["resnet50", "resnet101"] = _setting(
        "resnet50", "the part of deeplabv3, and of fcn, that reads the image",
        "ModelConfig.backbone", why="both are built on no other",
    )  # fmt: skip
    pretrained: bool = _setting(
        True, "start from ImageNet weights", "ModelConfig.pretrained",
    )  # fmt: skip
    # sizes of the course's networks; none: the network's own
    scale_factor: int | None = _setting(
        None, "pixels along a side of a square with one label; none: 1, or all that is pooled",
        "ModelConfig.external_def", ge=1, le=4096, why="a chip is no larger",
    )  # fmt: skip
    embedding_size: int | None = _setting(
        None, "channels after the first convolutions; none: 64",
        "ModelConfig.external_def", ge=1, le=1024, why="each halving doubles them",
    )  # fmt: skip
    depth: int | None = _setting(
        None, "convolutions of segmentationcnn before each pooling; none: 2",
        "ModelConfig.external_def", ge=1, le=16, why="deeper ones need shortcuts",
    )  # fmt: skip
    pool_sizes: Sizes | None = _setting(
        None, "sides of the squares that segmentationcnn pools in turn; none: 5,5,2",
        "ModelConfig.external_def",
    )  # fmt: skip
    kernel_size: int | None = _setting(
        None, "side of the convolutions of segmentationcnn; none: 3",
        "ModelConfig.external_def", ge=1, le=31, why="odd, and smaller than a chip",
    )  # fmt: skip
    batch_norm: bool | None = _setting(
        None, "normalise after each convolution of segmentationcnn; none: true",
        "ModelConfig.external_def",
    )  # fmt: skip
    n_encoders: int | None = _setting(
        None, "how often courseunet halves the image; none: 2",
        "ModelConfig.external_def", ge=1, le=8, why="a chip of 256 pixels is one then",
    )  # fmt: skip
    stem: Literal["inflate", "new"] | None = _setting(
        None, "first convolution of fcn: pre-trained, for any bands, or new; none: inflate",
        "ModelConfig.external_def",
    )  # fmt: skip
    pretrained_on: Literal["imagenet", "coco"] | None = _setting(
        None, "weights with which fcn starts; none: imagenet",
        "ModelConfig.external_def",
    )  # fmt: skip
    img_sz: int | None = _setting(
        None, "side to which a chip is resized; none leaves it alone",
        "DataConfig.img_sz", ge=16, le=4096, why="as for chip_sz", stock=256,
    )  # fmt: skip
    # how it is trained
    epochs: int = _setting(
        8, "times the training scenes are gone through", "SolverConfig.num_epochs",
        ge=1, le=100_000, why="without one nothing is learned",
    )  # fmt: skip
    batch_sz: int = _setting(
        24, "chips in one step of the optimizer",
        "SolverConfig.batch_sz, PredictOptions.batch_sz", ge=1, le=4096,
        why="a step needs a chip, and a batch has to fit in memory",
    )  # fmt: skip
    lr: float = _setting(
        1e-4, "learning rate, the peak of the schedule", "SolverConfig.lr", ge=1e-9,
        le=1.0,
        why="Adam moves a weight by about lr a step: less is lost in rounding, more wrecks any network",
    )  # fmt: skip
    one_cycle: bool = _setting(
        True, "raise lr from a tenth to its peak, and back", "SolverConfig.one_cycle",
    )  # fmt: skip
    optimizer: Literal["adam", "adamw", "sgd"] = _setting(
        "adam", "how a step changes the weights; sgd: with Nesterov's momentum of 0.9",
        "no field",
    )  # fmt: skip
    weight_decay: float = _setting(
        0.0, "share of a weight that adamw or sgd takes away, times lr", "no field",
        ge=0, le=1, why="none to all of it",
    )  # fmt: skip
    cosine: bool = _setting(
        False, "raise lr over a tenth of the steps, then a cosine; not one_cycle",
        "no field",
    )  # fmt: skip
    encoder_lr: float = _setting(
        1.0, "learning rate of the encoder, as a share of lr", "no field", ge=1e-4,
        le=1, why="what is pre-trained needs no larger steps than the rest",
    )  # fmt: skip
    freeze_epochs: int = _setting(
        0, "epochs in which the encoder stays as it is", "no field", ge=0, le=100_000,
        why="after them all weights learn",
    )  # fmt: skip
    frozen_layers: int = _setting(
        0, "first convolutions of a pre-trained encoder that never change; if any, its "
        "normalisation does not either", "no field", ge=0, le=1000,
        why="what they see, edges and colours, is in every image",
    )  # fmt: skip
    class_weights: Weights | None = _setting(
        None, "weight of each class in the loss, in their order; balanced: rare ones more",
        "SolverConfig.class_loss_weights",
    )  # fmt: skip
    loss: Loss = _setting(
        "cross_entropy", "what training makes small: one loss, or the sum of several",
        "SolverConfig.external_loss_def",
    )  # fmt: skip
    sampling: Literal["random", "labels"] = _setting(
        "random", "random chips: anywhere, or where there are labels of every class",
        "no field",
    )  # fmt: skip
    budget: Budget | None = _setting(
        None, "time for training on this machine, which then sets epochs", "no field",
    )  # fmt: skip
    augment: bool = _setting(
        True, "turn and mirror training chips at random", "DataConfig.augmentors",
    )  # fmt: skip
    jitter: float = _setting(
        0.0, "by how much light and contrast of training chips vary at random", "no field",
        ge=0, le=1, why="1 takes all contrast away, or doubles it",
    )  # fmt: skip
    noise: float = _setting(
        0.0, "noise on half of the training chips, as a share of their standard deviation",
        "no field", ge=0, le=1, why="at 1 little else is left",
    )  # fmt: skip
    blur: float = _setting(
        0.0, "largest sigma of a Gaussian blur on half of the training chips, in pixels",
        "no field", ge=0, le=5, why="a wider one leaves no building",
    )  # fmt: skip
    seed: int | None = _setting(
        0, "start of every random sequence; none leaves it to chance", "no field",
        ge=0, le=2**32 - 1, why="numpy takes 32 bits", stock=None,
    )  # fmt: skip
    # what happens to numbers on their way in and out
    scaling: Scaling = _setting(
        "percentiles", "range of values in the imagery that is spread out",
        "DataConfig.base_transform", stock="none",
    )  # fmt: skip
    null: Literal["ignore", "class"] = _setting(
        "ignore", "pixels without a label: left out of the loss, or a class",
        "SolverConfig.ignore_class_index", stock="class",
    )  # fmt: skip
    scores: Literal["none", "uint8", "float32"] = _setting(
        "uint8", "class scores written beside the predicted labels",
        "LabelStoreConfig.smooth_output, smooth_as_uint8", stock="none",
    )  # fmt: skip
    onnx: bool = _setting(
        False, "also export the network as ONNX", "no field", stock=True,
    )  # fmt: skip
    # how the engine goes about it; no field of Raster Vision's holds any of this
    engine: Literal["fast", "stock"] = _setting(
        "fast", "whose code trains and predicts: ours, or Raster Vision's", "no field",
    )  # fmt: skip
    precision: Literal["auto", "float32", "bfloat16"] = _setting(
        "auto", "numbers that convolutions use; auto takes the faster ones",
        "no field",
    )  # fmt: skip
    checkpoint: Literal["last", "best", "mean"] = _setting(
        "last", "weights that become the model: the last epoch's, the best one's, or the "
        "mean of the second half", "no field",
    )  # fmt: skip
    patience: int | None = _setting(
        None, "epochs without a lower validation loss before stopping early",
        "no field", ge=1, le=100_000, why="none trains all epochs",
    )  # fmt: skip

    def __init__(self, **given):
        given = self.under_new_names(given)
        known, values = type(self).model_fields, {}
        for name in given:
            if name not in known:
                hint = near_match(name, known)
                raise ValueError(f"there is no hyperparameter {name!r}; {hint}")
        try:
            for name, value in given.items():
                values[name] = _cast(known[name], value)
            super().__init__(**values)
        except ValidationError as err:
            name = err.errors()[0]["loc"][0]
            raise _refusal(name, known[name], given[name]) from None
        except (TypeError, ValueError, OverflowError, KeyError):
            raise _refusal(name, known[name], given[name]) from None
        for wrong in _contradictions(self):
            raise ValueError(wrong)

    @staticmethod
    def under_new_names(
        values: dict,  # By name
        says: bool = True,  # Once, on standard error, what the new name is
    ) -> dict:
        "Hyperparameters that were given by a name of version 0.1.0, by the name of today."
        for old in _OLD_NAMES.keys() & values.keys():
            new = _OLD_NAMES[old]
            if new in values:
                raise ValueError(f"{new} is given twice: {old} is its old name")
            if says:
                say_once(
                    f"the hyperparameter {old} is now {new}; the old name goes soon"
                )
            values = {(new if k == old else k): v for k, v in values.items()}
        return values

    @classmethod
    def of(
        cls,
        preset: str = "version2",  # Where values come from that are not changed
        stock: bool = False,  # Take Raster Vision's own values (`STOCK`)
        **changes,  # Values that win over both; None is a value here, and means none
    ) -> "Hyperparams":
        """The values of a preset, with changes.

        Epochs that are given without a budget take the place of the preset's budget. Raises
        ValueError for what the class refuses, and for a change that has no effect.
        """
        if preset not in PRESETS:
            hint = near_match(preset, PRESETS)
            raise ValueError(f"there is no preset {preset!r}; {hint}")
        before = {**PRESETS[preset], **(STOCK if stock else {})}
        changes = cls.under_new_names(changes)
        if "epochs" in changes and "budget" not in changes:
            before["budget"] = None  # who says how many has no time in mind
        made = cls(**{**before, **changes})
        for name in made.unused.keys() & changes.keys():
            default = cls.model_fields[name].default
            if getattr(made, name) not in (before.get(name, default), default):
                raise ValueError(
                    f"{name}={as_text(getattr(made, name))} would change nothing: "
                    f"{made.unused[name]}"
                )
        return made

    def replace(self, **changes) -> "Hyperparams":
        "The same values with some changed, checked again."
        return Hyperparams(**{**self.asdict(), **changes})

    def asdict(self) -> dict:
        "Names and values, ready for JSON."
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self}

    def args(self) -> dict[str, str]:
        "Names and values as texts, ready for a command line."
        return {name: as_text(value) for name, value in self}

    def check_scene(self, height: int, width: int) -> None:
        "Raise ValueError when a chip is larger than a scene of so many pixels."
        if (self.chip_sz or 0) > min(height, width):
            raise ValueError(
                f"chip_sz must be at most {min(height, width)} (the smallest scene has "
                f"{height} x {width} pixels), got {self.chip_sz}"
            )

    def fitted(
        self,
        room: int,  # Side in pixels of the smallest scene, or area of training
        asked: dict,  # What this very run was asked for already; empty: it is new
    ) -> "Hyperparams":  # With numbers for chips, and the epochs that were planned
        """Values that are left to the data: chips of 192 pixels, or what there is room for.

        Sides are multiples of 32 where there is room, as the network halves them five times.
        Windows of a map are two thirds of a chip apart.
        """
        chip, found, before = self.chip_sz, {}, asked.get("hyperparams", {})
        if chip is None:
            chip = min(MIDDLING, room - room % FOLD if room >= FOLD else room)
            found["chip_sz"] = chip
        if self.stride_length is None:
            found["stride_length"] = max(1, 2 * chip // 3)
        if self.budget and before.get("budget") == self.budget:
            found["epochs"] = before[
                "epochs"
            ]  # as they were planned when the run began
        return self.replace(**found) if found else self

    def chips_of(
        self,
        shapes: list,  # (rows, columns, ...) of the scenes of a split
        split: str = "train",  # Its name
    ) -> list[int]:  # Chips of each scene in an epoch, 1 or more
        """How many chips are drawn from each scene: a number, or by its area.

        By area: once over all pixels, but 160 to 320 chips in all; other splits than
        train have a quarter of that, which costs a tenth of the time.
        """
        if self.max_windows is not None or not shapes:
            return [self.max_windows] * len(shapes)
        areas = [rows * columns for rows, columns, *_ in shapes]
        chips = min(max(sum(areas) / self.chip_sz**2, EPOCH[0]), EPOCH[1])
        chips /= 1 if split == "train" else 4
        return [max(1, round(chips * area / sum(areas))) for area in areas]

    @property
    def init_file(self) -> str | None:
        "The weights that training starts with; FileNotFoundError when there are none."
        if self.init_weights is None:
            return None
        path = Path(self.init_weights)
        file = path / "train" / "last-model.pth" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"init_weights={self.init_weights}: there is no {file.name} there; give the "
                f"folder of a run that has been trained, or a file of its weights (.pth)"
            )
        return str(file)

    @property
    def beyond_stock(self) -> list[str]:
        "Values that decide what is learned and that plain Raster Vision has no field for."
        fields = type(self).model_fields
        return [n for n in BEYOND_STOCK if getattr(self, n) != fields[n].default]

    @property
    def cell(self) -> int:
        "Pixels along a side of the squares that have one score; 1: each pixel has its own."
        if self.hubconf or self.model not in NETWORK_OPTIONS:
            return 1
        pooled = math.prod(self.pool_sizes or (5, 5, 2))
        return self.scale_factor or (pooled if self.model == "segmentationcnn" else 1)

    @property
    def unused(self) -> dict[str, str]:
        "Values that have no effect beside the others: name -> why."
        found = {}
        if self.optimizer == "adam":
            found["weight_decay"] = "it belongs to optimizer=adamw or sgd"
        if not (self.encoder or self.model == "fcn"):
            found["encoder_weights"] = "there is no encoder"
        if not (self.encoder or self.hubconf or self.model in ("deeplabv3", "fcn")):
            why = f"model {self.model} has no encoder"
            found |= dict.fromkeys(
                ("encoder_lr", "freeze_epochs", "frozen_layers"), why
            )
        return found

    @property
    def notes(self) -> list[str]:
        "What is allowed but may surprise."
        notes = []
        if self.model in ("unet", "segmentationcnn", "courseunet"):
            notes.append("backbone is not used: it belongs to deeplabv3 and fcn")
        if (self.chip_sz or 0) % self.cell:
            notes.append(
                f"chips of {self.chip_sz} pixels are no whole squares of {self.cell}"
            )
        if self.img_sz not in (None, self.chip_sz):
            notes.append(f"chips of {self.chip_sz} pixels are resized to {self.img_sz}")
        if self.epochs == 1 and self.one_cycle:
            notes.append("one_cycle is not used: a single epoch has no schedule")
        if self.seed is None:
            notes.append("no seed: the same values will give another model each time")
        return notes

    def table(self):
        "A DataFrame: value, what is allowed, what it is, where Raster Vision keeps it."
        import pandas as pd

        rows = {
            name: {
                "value": as_text(getattr(self, name)),
                "stock": as_text(STOCK[name]) if name in STOCK else "",
                "allowed": _allowed(field),
                "what it is": field.description,
                "in Raster Vision": field.json_schema_extra["rv"],
            }
            for name, field in type(self).model_fields.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self):
        about = {k: field.description for k, field in type(self).model_fields.items()}
        rows = [f"{k:<14} {v:<12} {about[k]}" for k, v in self.args().items()]
        return "\n".join(rows + [f"note: {note}" for note in self.notes])

    __str__ = __repr__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>note: {note}</p>" for note in self.notes)
        return self.table().to_html() + notes


STOCK: dict = {  # None is written none, since to `get_config` it means the preset's
    name: "none" if more["stock"] is None else more["stock"]
    for name, field in Hyperparams.model_fields.items()
    if "stock" in (more := field.json_schema_extra)
}


# --- two runs


def _flat(tree: dict, prefix: str = "") -> dict:
    "A tree of dicts as one dict with dotted names."
    out = {}
    for key, value in tree.items():
        deeper = isinstance(value, dict)
        out |= _flat(value, f"{prefix}{key}.") if deeper else {prefix + key: value}
    return out


def _today(asked: dict) -> dict:
    "What a run was asked for, hyperparameters by the names of today."
    if not isinstance(asked.get("hyperparams"), dict):
        return asked
    return asked | {
        "hyperparams": Hyperparams.under_new_names(asked["hyperparams"], says=False)
    }


def differences(
    old: dict,  # What a run was asked for
    new: dict,  # What is asked for now
) -> dict[str, tuple]:  # Dotted name -> (old value, new value), only where they differ
    "The settings in which two runs differ."
    old, new = (_flat(jsonable(_today(side))) for side in (old, new))
    for known, field in Hyperparams.model_fields.items():
        name = f"hyperparams.{known}"
        if name in old or name in new:  # a run made before this one existed
            old.setdefault(name, jsonable(field.default))
            new.setdefault(name, jsonable(field.default))
    skip = {"preset"}
    if old.get("data.digest") and new.get("data.digest"):
        skip |= {n for n in {*old, *new} if n.startswith("data.")} - {"data.digest"}
    names = sorted({*old, *new} - skip)
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}

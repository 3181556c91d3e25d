"""The course's command line: train with every setting as a flag, run a sweep file, write what was predicted.

Written by hand: `python -m rvtutorial.course.training`.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rvtutorial.core.hyperparams import Hyperparams
from rvtutorial.core.loop_settings import LoopSettings
from rvtutorial.core.names import near_match
from rvtutorial.hpc.job import JobNotebook

__all__ = ["NOTEBOOK", "flags", "main", "train_with", "translated"]

NOTEBOOK = "train_lightning.ipynb"  # The job notebook of a training by Lightning
NAMES = {  # The course's names of parameters, and ours
    "model_type": "model",
    "max_epochs": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "batch_size": "batch_sz",
    "learning_rate": "lr",
    "num_workers": "workers",
    "wandb_run_name": "run_name",
}
NETWORKS = {"segmentationcnn": "segmentationcnn", "unet": "courseunet"}
NETWORKS |= {"fcnresnettransfer": "fcn"}
FROM_DATA = ("in_channels", "out_channels", "num_classes", "img_size", "processed_dir")


def translated(
    name: str,  # Of a parameter, as the course or as we call it
    value=None,  # Of it
) -> tuple:  # The same, as we call them
    """A parameter by the course's name; the network names of `model_type` become ours.

    Raises ValueError for a network that is not known, and for what follows from the data.
    """
    if name in FROM_DATA:
        raise ValueError(
            f"{name} is no choice: it follows from the data and their classes; leave it out"
        )
    if name == "model_type" and value is not None:
        value = _network(value)
    return NAMES.get(name, name), value


def _network(value):
    "The networks of the course by our names; those of the main series as they are."
    if isinstance(value, list):
        return [_network(one) for one in value]
    known = Hyperparams.model_fields["model"].annotation.__args__
    word = str(value).strip().lower()
    if word not in (*NETWORKS, *known):
        hint = near_match(
            value, ["SegmentationCNN", "UNet", "FCNResnetTransfer", *known]
        )
        raise ValueError(f"there is no model_type {value!r}; {hint}")
    return NETWORKS.get(word, word)


def _transfer(asked: Mapping) -> dict:
    "What FCNResnetTransfer is where nothing else was asked for: it begins with COCO's weights."
    found = {"backbone": "resnet101"}
    if asked.get("init_weights") is None:
        found |= {"pretrained": True, "pretrained_on": "coco"}
    found = {k: v for k, v in found.items() if asked.get(k) is None}
    begins = str(asked.get("pretrained", True)).strip().lower()
    if begins not in ("none", "true", "yes", "1"):
        found.pop("pretrained_on", None)
    return found


def _is_transfer(word) -> bool:
    return str(word).strip().lower() == "fcnresnettransfer"


def _entry(name: str, given, others: Mapping) -> dict:
    "A parameter of a sweep file, `{value: ...}` or the like, by our names; what follows."
    if not isinstance(given, Mapping):
        return {translated(name)[0]: given}
    kinds = {
        k: translated(name, given[k])[1] for k in ("value", "values") if k in given
    }
    made = {translated(name)[0]: {**given, **kinds}}
    words = given.get("values", [given.get("value")])
    if name != "model_type" or not isinstance(words, list):
        return made
    if any(map(_is_transfer, words)):
        says = others.items()
        says = {k: v.get("value", v) if isinstance(v, dict) else v for k, v in says}
        more = _transfer(says)
        rest = [str(word) for word in words if not _is_transfer(word)]
        if rest and "pretrained" in more:
            raise ValueError(
                f"FCNResnetTransfer begins with trained weights, which {rest[0]} does not "
                "have: give it a sweep file of its own, or write `pretrained: {value: "
                "false}`"
            )
        made |= {k: {"value": v} for k, v in more.items()}
    return made


# --- flags


def flags() -> list[str]:
    "Names of all that can be set: parameters of the job notebook."
    return [*JobNotebook(NOTEBOOK).parameters]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rvtutorial.course.training",
        description="Train a network with Lightning. `evaluate RUN` writes image, truth and "
        "prediction of every validation tile.",
        allow_abbrev=False,
    )
    parser.add_argument("--sweep_file", help="train every trial of a sweep file")
    site = os.environ.get("RVTUTORIAL_SITE", "local")
    parser.add_argument("--site", default=site, help="where the trials of a sweep run")
    theirs = {}
    for other, own in NAMES.items():
        theirs.setdefault(own, []).append(f"--{other}")
    fields = Hyperparams.model_fields
    for name in flags():
        about = fields[name].description if name in fields else ""
        about = about.replace("%", "%%")
        if name == "model":
            parser.add_argument("--model_type", help="SegmentationCNN, UNet, ...")
            theirs[name] = []
        parser.add_argument(f"--{name}", *theirs.get(name, []), help=about)
    return parser


def _given(words: list[str]) -> tuple[dict, str | None, str]:
    "What was asked for, the sweep file, and the site."
    asked = vars(_parser().parse_args(words))
    sweep, site = asked.pop("sweep_file"), asked.pop("site")
    kind = asked.pop("model_type")
    if kind is not None:
        if asked["model"] is not None:
            raise ValueError(
                f"--model_type={kind} and --model={asked['model']} are one thing: give one"
            )
        asked["model"] = _network(kind)
        asked |= _transfer(asked) if _is_transfer(kind) else {}
    return {k: v for k, v in asked.items() if v is not None}, sweep, site


# --- commands


def main(argv: list[str] | None = None) -> int:  # 0: fine, 1: refused or failed
    "The course's command line; what is wrong goes to standard error in a few words."
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["evaluate"]:
            return _evaluate(words[1:])
        given, sweep, site = _given(words)
        return _sweep(given, Path(sweep), site) if sweep else _train(given)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1


def train_with(
    given: dict,  # Parameters of the job notebook; texts are allowed
) -> Path:  # The run folder
    "Train, predict, evaluate and bundle, from names and values."
    from rvtutorial.config import get_config
    from rvtutorial.course import training

    given = {"checkpoint": "best", **given}
    loop = [n for n in given if n in LoopSettings.model_fields]
    own = {
        name: given.pop(name) for name in (*loop, "monitor", "pause") if name in given
    }
    known = {*inspect.signature(get_config).parameters, *Hyperparams.model_fields}
    for name in given:
        if name not in known:
            raise ValueError(
                f"there is no parameter {name!r}; {near_match(name, known)}"
            )
    if own.get("pause") is not None:
        own["pause"] = int(own["pause"])
    config = get_config("inprocess", **given)
    return training.train(config, checkpoint=given["checkpoint"], **own)


def _train(given: dict) -> int:
    from rvtutorial.runs import Run

    run = Run(train_with(given))
    scores = run.results.get("validation") or {}
    print(run.path)
    shown = ("f1", "iou", "accuracy")
    told = [f"{k} {scores[k]:.3f}" for k in shown if scores.get(k) is not None]
    print(f"validation, {scores.get('class')}: {', '.join(told)}" if told else "")
    return 0


def _sweep(given: dict, file: Path, site: str) -> int:
    "Run a sweep file; flags are the same in all trials."
    from rvtutorial.sweep import run_sweep
    from rvtutorial.sweeps.sweepfile import SweepFile

    def entry(name, entry, others):
        return _entry(name, entry, {**others, **given})

    plan = SweepFile.read(file, entry, NOTEBOOK)
    folder = Path(given.pop("output_uri", None) or Path("sweeps") / file.stem)
    sweep = run_sweep(folder, plan, base=given, site=site).wait()
    print(sweep.leaderboard().to_string())
    print(folder)
    return 0


def _evaluate(words: list[str]) -> int:
    from rvtutorial.course.evaluation import evaluate_tiles

    parser = argparse.ArgumentParser(
        prog="python -m rvtutorial.course.training evaluate", allow_abbrev=False
    )
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--out", default="predictions", help="where the files go")
    parser.add_argument(
        "--checkpoint", help="last, best or a file of weights; none: the run's own maps"
    )
    parser.add_argument("--split", default="validation", help="or test")
    words_of = "pixels along a side of a label; none: as the label files say"
    parser.add_argument("--cell", type=int, help=words_of)
    parser.add_argument("--trust", action="store_true", help="run code of others")
    table = evaluate_tiles(**vars(parser.parse_args(words)))
    print(table.round(3).to_string())
    print(table.attrs["folder"])
    return 0

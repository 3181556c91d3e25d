"""The file of trained prediction thresholds: written beside the model, read back, and refused for another model.

Written by hand: YAML, digests and who may apply what; `metrics.thresholds` finds the
thresholds. The file has all keys of the necstlab program's `model_thresholds_*.yaml`
(github.com/mit-quest/necstlab-damage-segmentation), whose own files can be read too.
"""

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import yaml

from rvtutorial.core.commands import answer
from rvtutorial.core.files import atomic_path, locked, open_plain
from rvtutorial.core.records import jsonable
from rvtutorial.core.record import Run
from rvtutorial.core.yamlkeys import key_lines
from rvtutorial.metrics.calibration import ScoreCounts
from rvtutorial.metrics.leaderboard import LabelFolder, score_files
from rvtutorial.metrics.thresholds import (
    STATUSES,
    Calibration,
    Decision,
    Threshold,
    Tuned,
)

SCHEMA = 1
_TRAINED = "final_trained_prediction_thresholds"
_PACKAGES = "rvtutorial rastervision torch numpy scipy scikit-learn pandas rasterio"


# --- digests


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_digests(
    model: str | Path,  # A run folder, or a bundle
) -> dict[str, str]:  # Name of the file -> SHA-256
    "The digests of a model's bundles; empty where there is none."
    path = Path(model).expanduser()
    names = ("bundle/model-bundle.zip", "train/model-bundle.zip")
    found = (
        {name: path / name for name in names} if path.is_dir() else {path.name: path}
    )
    return {name: _sha256(file) for name, file in found.items() if file.is_file()}


def _score_digests(source, split) -> dict[str, str]:
    "Of the score raster of each scene, where there are some."
    if isinstance(source, ScoreCounts):
        return {}
    try:
        files = source if isinstance(source, Mapping) else score_files(source, split)
    except FileNotFoundError:
        return {}
    return {scene: _sha256(Path(how["scores"])) for scene, how in files.items()}


def _refuse_other_model(tuned: Tuned, model, path: Path) -> None:
    "ValueError unless the thresholds were trained with this model, or on its scores."
    known = set(tuned.digests.get("bundles", {}).values())
    if isinstance(model, LabelFolder):
        here = set(_score_digests(model, "").values())
        known = set(tuned.digests.get("scores", {}).values())
    else:
        here = set(
            bundle_digests(model.path if isinstance(model, Run) else model).values()
        )
    if not known & here:
        why = (
            "was trained with another model"
            if known
            else "does not say for which model"
        )
        raise ValueError(
            f"{path} {why}: its thresholds mean nothing for other scores; force=True "
            "(in a terminal: --force) applies them all the same"
        )


def source_tags(
    file: str | Path | Tuned | None,  # By which a map was made
) -> dict[str, str]:  # thresholds_file, thresholds_sha256
    "What a map says of the file of its thresholds; empty where there was none."
    if not isinstance(file, str | Path):
        return {}
    path = Path(file).expanduser().absolute()
    return {"thresholds_file": str(path), "thresholds_sha256": _sha256(path)}


# --- writing


def _system() -> dict:
    "The machine and the versions of what was used."
    info = dict(platform=platform.system(), platform_release=platform.release())
    info |= dict(platform_version=platform.version(), architecture=platform.machine())
    info |= dict(hostname=platform.node(), processor=platform.processor())
    info |= dict(cpu_count=os.cpu_count(), python=platform.python_version())
    info["ram_gb"] = round(psutil.virtual_memory().total / 2**30, 1)
    gpus = answer(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or ""
    info["gpus"] = [line.strip() for line in gpus.splitlines() if line.strip()]
    info["gpu_count"] = len(info["gpus"])
    libraries = {}
    for name in _PACKAGES.split():
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"System_info": info, "Lib_versions_info": libraries}


def _about_run(run) -> dict:
    "What a run says of its data and its training."
    if not isinstance(run, Run) or not (run.path / "pipeline-config.json").is_file():
        return {}
    dataset, asked = run.config["dataset"], run.hyperparams
    splits = ("train_scenes", "validation_scenes", "test_scenes")
    found = {name: [s["id"] for s in dataset.get(name) or []] for name in splits}
    found["class_config"] = dataset.get("class_config")
    side = asked.get("img_sz") or asked.get("chip_sz")
    made = run.manifest.get("made_with") or {}
    about = dict(dataset_config=found, train_config=asked, git_hash=made.get("git"))
    names = (found["class_config"] or {}).get("names")
    about |= dict(num_classes=len(names)) if names else {}
    return about | dict(target_size=[side, side] if side else None, model_id=run.name)


def _plain(value):
    "As `jsonable`, but infinite numbers stay: YAML has them."
    if isinstance(value, float) and math.isinf(value):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return jsonable(value)


def _content_digest(content: Mapping) -> str:
    "Of all that a file says but the digest itself; empty for what no JSON can hold."
    rest = {k: v for k, v in content.items() if k != "content_sha256"}
    try:
        text = json.dumps(rest, sort_keys=True)
    except (TypeError, ValueError, RecursionError):  # a set, or what holds itself
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _document(tuned: Tuned, run, message, seconds, more) -> dict:
    classes, every = list(tuned.classes), tuned.thresholds.items()
    good = {k: one for k, one in every if one.status != "undefined"}
    trained = {}
    if tuned.rule != "weights":
        trained = {f"class{classes.index(k)}": one.threshold for k, one in good.items()}
        trained |= {k: one.threshold for k, one in good.items()}
    out, history = {}, {}
    for name, one in every:
        key = f"class{classes.index(name)}"
        lower = tuned.metric.startswith("cost")
        out[key] = dict(x=one.threshold, success=one.status != "undefined")
        out[key] |= dict(
            status=STATUSES.index(one.status), message=one.why or one.status
        )
        out[key] |= dict(nfev=len(one.history) or None)
        out[key]["fun"] = one.value if lower else 1 - one.value
        history[key] = [dict(threshold=t, metric=v) for t, v in one.history]
    scipy = dict(tol=1e-2, options=dict(maxiter=500)) if tuned.method == "scipy" else {}
    how = dict(bounds=[0, 1], method=tuned.method, **scipy, rule=tuned.rule)
    how |= dict(optimizing_class_metric=tuned.metric, over=tuned.over)
    how |= dict(training_data=tuned.split, dataset_downsample_factor=tuned.share)
    how |= dict(draws=tuned.draws, seed=tuned.seed, passes=tuned.passes)
    about = dict(message=message, gcp_bucket=None)
    about["created_datetime"] = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    about |= dict(num_classes=len(classes), target_size=None, git_hash=None)
    about["elapsed_minutes"] = None if seconds is None else round(seconds / 60, 4)
    about |= dict(dataset_directory=None, model_id=None, batch_size=None)
    about |= dict(dataset_config=None, train_config=None) | _about_run(run)
    about |= dict(thresholds_training_configuration=how, thresholds_training_output=out)
    about["thresholds_training_history"] = history
    seeds = ("random_module", "numpy_random", "tf_random")
    about |= {f"{name}_global_seed": None for name in seeds} | more
    known = {
        k: {f: v for f, v in asdict(one).items() if f != "history"} for k, one in every
    }
    found = {
        _TRAINED: trained,
        "schema": SCHEMA,
        "rule": tuned.rule,
        "comparison": ">=",
    }
    found |= dict(
        metric=tuned.metric, over=tuned.over, classes=classes, null=tuned.null
    )
    found |= dict(split=tuned.split, tuned_on_test=tuned.split == "test")
    found |= dict(scenes=list(tuned.scenes), notes=list(tuned.notes), value=tuned.value)
    found |= dict(value_argmax=tuned.value_argmax, thresholds=known)
    found["calibration"] = {k: asdict(one) for k, one in tuned.calibration.items()}
    found |= dict(digests=tuned.digests, metadata=about, metadata_system=_system())
    return _plain(found)


def write_thresholds(
    tuned: Tuned,
    run: str | Path | Run | LabelFolder | ScoreCounts,  # By which they were trained
    folder: str | Path | None = None,  # None: that of the run
    message: str | None = None,  # What the reader should know
    seconds: float | None = None,  # That it took
    scores: Mapping[str, Mapping]
    | None = None,  # As `score_files`; None: those of the run
    **metadata,  # dataset_directory, batch_size, gcp_bucket ...
) -> Path:  # model_thresholds_<UTC>.yaml
    "Write the thresholds beside the model, whole or not at all, and over no other file."
    run = Run.of(run)
    place = folder or getattr(run, "path", None)
    if place is None:
        raise ValueError("counts have no folder: say where the thresholds go (folder=)")
    place = Path(place).expanduser()
    bundles = {} if not isinstance(run, Run) else bundle_digests(run.path)
    scores = _score_digests(run if scores is None else scores, tuned.split)
    digests = dict(
        bundles=bundles, scores={s: scores[s] for s in tuned.scenes if s in scores}
    )
    tuned = replace(tuned, digests=tuned.digests or digests)
    found = _document(tuned, run, message, seconds, metadata)
    found["content_sha256"] = _content_digest(found)
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / ".thresholds.lock"):  # two at once get two names
        stem = f"model_thresholds_{found['metadata']['created_datetime']}"
        names = (f"{stem}{f'_{i}' if i else ''}.yaml" for i in range(1000))
        path = next(place / name for name in names if not (place / name).exists())
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return path


# --- reading


def _wrong(path, what) -> ValueError:
    return ValueError(f"{path} is no file of trained thresholds: {what}")


class _Yaml(yaml.SafeLoader):
    "Data only, and a date is the text that it is."

    yaml_implicit_resolvers = {
        first: [one for one in known if not one[0].endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _load(path: Path) -> dict:
    try:
        with open_plain(path) as file:
            loader = _Yaml(file.read().decode())
        node = loader.get_single_node()
        key_lines(node)
        found = loader.construct_document(node) if node else None
    except RecursionError:
        raise _wrong(path, "it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as err:
        mark = getattr(err, "problem_mark", None)
        raise _wrong(
            path, f"line {mark.line + 1}: {err.problem}" if mark else err
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get(_TRAINED), dict):
        raise _wrong(path, f"it has no {_TRAINED}")
    return found


def _number(path, name, value, weight=False) -> float:
    "A threshold; text such as 1e-3, which YAML does not take for a number, is one too."
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not number >= 0:
        raise _wrong(path, f"the threshold of {name} is {value!r}")
    if 1 < number < math.inf and not weight:
        raise _wrong(
            path, f"the threshold of {name} is {value!r}, no share from 0 to 1"
        )
    return number


def _part(path, about, name) -> Mapping:
    "What a file says under a name: keys and values, or nothing."
    found = about.get(name) or {}
    if not isinstance(found, Mapping):
        raise _wrong(path, f"{name} is no mapping but {type(found).__name__}")
    return found


def read_thresholds(
    path: str | Path,  # model_thresholds_*.yaml, of this program or of necstlab's
    force: bool = False,  # Also what was changed after it was written
) -> Tuned:  # Of necstlab's files only the thresholds, by class0, class1 ...
    """Read trained thresholds; only data is read.

    Raises ValueError for a file that is none, that is of a newer version, or that was
    changed by hand.
    """
    path = Path(path).expanduser()
    found = _load(path)
    if "schema" not in found:
        return _from_necstlab(path, found)
    if not isinstance(found["schema"], int) or found["schema"] > SCHEMA:
        raise _wrong(path, f"version {found['schema']} is newer than this program")
    if found.get("content_sha256") != _content_digest(found) and not force:
        raise _wrong(
            path,
            "it was changed after it was written, so nobody knows what its numbers are "
            "worth; give thresholds of your own as numbers, or force it",
        )
    try:
        return _tuned(path, found)
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        if str(path) in str(err):
            raise
        raise _wrong(path, f"{type(err).__name__}: {err}") from None


def _known(kind, values: Mapping, **more):
    "A dataclass of what a file says of it; None was NaN."
    names = {f.name for f in fields(kind)}
    given = {k: math.nan if v is None else v for k, v in values.items() if k in names}
    return kind(**{**given, **more})


def _tuned(path, found) -> Tuned:
    about, every = found["metadata"], {}
    how, history = about["thresholds_training_configuration"], {}
    for key, tried in (about.get("thresholds_training_history") or {}).items():
        history[key] = tuple((one["threshold"], one["metric"]) for one in tried)
    for name, values in found["thresholds"].items():
        key = f"class{found['classes'].index(name)}"
        one = _known(Threshold, values, history=history.get(key, ()))
        if one.status not in STATUSES:
            raise _wrong(path, f"{name} has the status {one.status!r}")
        if one.status != "undefined":
            of = "weight" if found["rule"] == "weights" else "threshold"
            number = _number(path, name, values[of], of == "weight")
            one = replace(one, **{of: number})
        every[name] = one
    maps = {}
    for name, values in (found.get("calibration") or {}).items():
        curve = dict(scores=tuple(values["scores"]), shares=tuple(values["shares"]))
        maps[name] = _known(Calibration, values, **curve)
    more = dict(rule=found["rule"], thresholds=every, calibration=maps)
    more |= dict(classes=tuple(found["classes"]), null=found["null"])
    more |= dict(scenes=tuple(found["scenes"]), notes=tuple(found["notes"]))
    more |= dict(share=how["dataset_downsample_factor"], method=how["method"])
    more |= {k: how[k] for k in ("seed", "draws", "passes")}
    names = ("metric", "over", "split", "value", "value_argmax", "digests")
    return _known(Tuned, {k: found[k] for k in names}, **more)


def _from_necstlab(path, found) -> Tuned:
    "Only what that program writes: a threshold for class0, class1 ..., each on its own."
    wrong = [k for k in found[_TRAINED] if not re.fullmatch(r"class\d+", str(k))]
    if wrong or not found[_TRAINED]:
        raise _wrong(path, f"its classes are {wrong or 'none'}, not class0, class1 ...")
    about, every = _part(path, found, "metadata"), {}
    output = _part(path, about, "thresholds_training_output")
    for key, value in found[_TRAINED].items():
        said = _part(path, output, key)
        if said.get("success") is False:
            why = str(said.get("message") or "its search did not succeed")
            every[key] = Threshold(*[math.nan] * 4, status="undefined", why=why)
            continue
        number, value = _number(path, key, value), said.get("fun")
        value = 1 - value if isinstance(value, float) else math.nan
        every[key] = Threshold(number, number, number, value, "ok")
    how = _part(path, about, "thresholds_training_configuration")
    metric = how.get("optimizing_class_metric")
    where = str(about.get("dataset_directory") or "").rpartition("/")[2]
    order = tuple(sorted(every, key=lambda key: int(key.removeprefix("class"))))
    found = Tuned("ratio", str(metric or "unknown"), "micro", order, None, every, ())
    unknown = dict(bundles={}, scores={})  # for which model, nobody knows
    return replace(found, split=where, method="scipy", digests=unknown)


# --- applying


def decision_for(
    model: str | Path | Run | LabelFolder,  # To whose scores they are applied
    classes: tuple[str, ...],  # Its classes, in the order of the bands
    null: str | None,
    file: str | Path | Tuned | None = None,  # Trained thresholds
    given: float | Mapping[str, float] | None = None,  # Numbers that come before them
    force: bool = False,  # Also thresholds of another model, or changed by hand
) -> tuple[Decision, dict[str, Calibration]]:
    """The rule by which scores become labels: numbers given, then the file, then 0.5.

    One number is for every class but background and null. Raises ValueError for a file of
    another model or with other classes, and for a class without a threshold in it.
    """
    foreground = [k for k in classes if k not in ("background", null)] or list(classes)[
        :1
    ]
    if isinstance(given, int | float):
        given = dict.fromkeys(foreground, float(given))
    large = {k: t for k, t in (given or {}).items() if 1 < t < math.inf}
    if large:
        raise ValueError(f"a threshold is a share from 0 to 1, got {large}")
    rule, numbers, maps = "ratio", {}, {}
    if file is None:
        numbers = dict.fromkeys(foreground, 0.5)
    else:
        where = (
            "the file of these thresholds" if isinstance(file, Tuned) else Path(file)
        )
        tuned = file if isinstance(file, Tuned) else read_thresholds(file, force)
        of = {f"class{i}": name for i, name in enumerate(classes)}
        plain = all(name in of for name in tuned.thresholds)  # necstlab's have no names
        if plain and not set(tuned.thresholds) <= set(classes):
            every = {of[k]: one for k, one in tuned.thresholds.items()}
            tuned = replace(tuned, thresholds=every, classes=tuple(classes), null=null)
        elif tuned.classes != tuple(classes) and not set(tuned.classes) == set(
            classes
        ) - {null}:
            raise ValueError(
                f"{where}: its classes are {', '.join(tuned.classes)}, and those of the "
                f"model {', '.join(classes)}"
            )
        if not force and (tuned.digests or not isinstance(file, Tuned)):
            _refuse_other_model(tuned, model, where)
        lost = [k for k in tuned.undefined if k not in (given or {})]
        if lost:
            why = tuned.thresholds[lost[0]].why
            raise ValueError(
                f"{where}: no threshold for {lost[0]} ({why}); give one as a number"
            )
        rule, numbers, maps = tuned.rule, tuned.decision.thresholds, tuned.calibration
    if given and rule == "weights":
        raise ValueError("a file with weights takes no thresholds beside them")
    decision = Decision(rule, tuple(classes), {**numbers, **(given or {})}, null)
    return decision.check(), dict(maps)

"""Sweep files in the form of Weights & Biases: checked with line numbers, expanded into trials, and kept on record."""

import csv
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path

import yaml

from rvtutorial.core.files import safe_name
from rvtutorial.core.finding import trial_rows
from rvtutorial.hpc.job import job_notebook, parameters
from rvtutorial.core.records import attempt, read_json
from rvtutorial.core.files import atomic_path
from rvtutorial.core.names import near_match
from rvtutorial.runs import Hyperparams, Run, differences
from rvtutorial.sweeps.space import (
    KINDS,
    Distribution,
    Halving,
    distribution,
    draws,
    halving,
)


def grid(
    **values,  # For each parameter the values to try, such as lr=[1e-3, 1e-4]
) -> list[dict]:  # One dictionary a trial
    """Every combination of the values, in order; the last parameter changes fastest.

    Raises ValueError for a value that is not in a list, and for an empty list.
    """
    for name, tried in values.items():
        if isinstance(tried, (str, Mapping)) or not isinstance(tried, Iterable):
            raise ValueError(f"{name}={tried!r} is one value; write {name}=[{tried!r}]")
    values = {name: list(tried) for name, tried in values.items()}
    empty = [name for name, tried in values.items() if not tried]
    if empty or not values:
        raise ValueError(f"no value to try for {', '.join(empty) or 'any parameter'}")
    rows = itertools.product(*values.values())
    return [dict(zip(values, row, strict=True)) for row in rows]


def short(
    value,  # A number, word, truth value or None
) -> str:  # Letters, digits, dots and hyphens only
    "A value as it stands in the name of a run: 0.001 becomes `1e-3`."
    if isinstance(value, (tuple, list)):
        return "-".join(short(item) for item in value)
    if isinstance(value, float) and value and not 0.1 <= abs(value) < 1e4:
        digits, _, power = f"{Decimal(repr(value)).normalize():e}".partition("e")
        return f"{digits}e{int(power)}" if power else digits.lower()
    if isinstance(value, float) and value == value // 1:
        value = int(value)
    return re.sub(r"[^A-Za-z0-9.-]+", "-", str(value).lower())


def trial_names(
    trials: list[dict],  # Parameters of each trial
) -> list[str]:  # One name a trial, such as "lr=1e-3" or "lr=1e-3+seed=1"
    """Names that hold the parameters in which the trials differ, and no others.

    Raises ValueError for a trial that is asked for twice.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial))
    seen = {key: {repr(trial.get(key, ...)) for trial in trials} for key in keys}
    differ = [key for key in keys if len(seen[key]) > 1] or keys
    names = []
    for trial in trials:
        parts = [f"{key}={short(trial[key])}" for key in differ if key in trial]
        names.append(safe_name("+".join(parts) or "as-is"))  # of a folder
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValueError(f"asked for more than once: {', '.join(twice)}")
    return names


class _Yaml(yaml.SafeLoader):
    "YAML that means what it shows: 1e-3 is a number, `yes` and 010 are words."

    yaml_implicit_resolvers: dict = {}


for _tag, _pattern, _first in [
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.?[0-9]*[eE][-+]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+([eE][-+]?[0-9]+)?)",
        list("-+.0123456789"),
    ),
]:
    _whole = re.compile(rf"^(?:{_pattern})$")
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)


_MOST, _DEEPEST = 100_000, 50  # Values of a sweep file, aliases written out; levels


def _below(item) -> Iterable:
    "What stands inside a YAML node, or a dictionary or list; keys are not looked at."
    inside = item.value if isinstance(item, yaml.CollectionNode) else item
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, yaml.MappingNode):
        return [value for _, value in inside]
    return inside if isinstance(inside, (list, tuple)) else ()


def _refuse_endless(item, above: tuple = (), seen: list | None = None) -> None:
    "ValueError for what holds itself, or grows beyond all bounds when written out."
    seen = [] if seen is None else seen
    line = f"line {item.start_mark.line + 1}: " if isinstance(item, yaml.Node) else ""
    if any(item is one for one in above):
        raise ValueError(f"{line}this holds itself (an alias inside its own anchor)")
    seen.append(None)
    if len(seen) > _MOST or len(above) > _DEEPEST:
        raise ValueError(
            f"{line}too much: more than {_MOST:,} values, or {_DEEPEST} levels, once "
            "every alias is written out"
        )
    for one in _below(item):
        _refuse_endless(one, (*above, item) if _below(item) else above, seen)


def _refuse_nameless(content, path: str = "") -> None:
    "ValueError for a key that is no text, in dictionaries that were given as such."
    for key in content if isinstance(content, Mapping) else ():
        if not isinstance(key, str):
            where = f" in {path}" if path else ""
            raise ValueError(f"the key {key!r}{where} is no text")
        _refuse_nameless(content[key], f"{path}.{key}" if path else key)


def _key_lines(node, path: tuple = (), lines: dict | None = None) -> dict:
    "The line of every key in a YAML tree; a key that stands twice is an error."
    lines = {} if lines is None else lines
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        here, line = (*path, str(key.value)), key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:str":
            kind = key.tag.rpartition(":")[2]
            said = key.value if isinstance(key, yaml.ScalarNode) else "this"
            raise ValueError(
                f"line {line}: {said or 'nothing'} is no text but {kind}, and cannot be "
                "a key"
            )
        if here in lines:
            name, first = ".".join(here), lines[here]
            raise ValueError(f"line {line}: {name} stands already in line {first}")
        lines[here] = line
        _key_lines(value, here, lines)
    return lines


def _load_yaml(path: Path) -> tuple[dict, dict]:
    "A YAML file as a dictionary, and the line of each of its keys."
    try:
        loader = _Yaml(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _refuse_endless(node)
        lines = _key_lines(node)
        content = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as err:
        line = f"line {err.problem_mark.line + 1}" if err.problem_mark else "YAML"
        raise ValueError(f"{path.name}, {line}: {err.problem}") from None
    except (yaml.YAMLError, ValueError) as err:
        raise ValueError(f"{path.name}, {err}") from None
    except (
        RecursionError,
        AttributeError,
        LookupError,
        TypeError,
    ) as err:  # of PyYAML itself
        why = "nested too deeply" if isinstance(err, RecursionError) else err
        raise ValueError(
            f"{path.name}: this is no YAML that can be read: {why}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected keys such as `parameters:`")
    return content, lines


SETTINGS = ("preset", "data", "image_pattern", "label_pattern", "classes")
SETTINGS += ("class_field", "label_values", "bands", "layer", "zeros")
_KEYS = ("program", "name", "description", "project", "entity")  # kept
_KEYS += ("method", "metric", "parameters", "run_cap", "early_terminate", "seed")
_METHODS = ("grid", "random", "bayes")
_METRICS = ("f1", "iou", "precision", "recall", "accuracy")
PROGRAM = "train_rastervision.ipynb"  # The job notebook of every trial, if not said
_USUAL = {"learning_rate": "lr", "num_epochs": "epochs", "batch_size": "batch_sz"}
_USUAL |= {"chip_size": "chip_sz", "stride": "stride_length"}  # what others call them


def one_of(
    what: str,  # What kind of thing it is, such as "key"
    found,  # What was given
    known,  # What it may be
) -> None:
    "Raise ValueError unless `found` is one of `known`; the error names the nearest."
    if found not in known:
        near = _USUAL.get(found) if isinstance(found, str) else None
        hint = f"did you mean {near!r}?" if near in known else near_match(found, known)
        raise ValueError(f"there is no {what} {found!r}; {hint}")


def complete(
    fixed: dict,  # What stays: hyperparameters and settings such as preset
    trial: dict,  # What this trial has of its own
) -> Hyperparams:  # Cast and checked
    """All hyperparameters of one trial; the preset is `sample` unless it is fixed.

    Raises ValueError for unknown names, bad values, and values that contradict.
    """
    asked = {**fixed, **trial}
    key = repr(
        sorted(asked.items(), key=str)
    )  # thousands of trials are asked about often
    if key not in _COMPLETE:
        known = {key: value for key, value in asked.items() if key not in SETTINGS}
        if len(_COMPLETE) >= 20_000:
            _COMPLETE.clear()
        _COMPLETE[key] = Hyperparams.of(asked.get("preset", "sample"), **known)
    return _COMPLETE[key]


_COMPLETE: dict[str, Hyperparams] = {}  # They cannot be changed, so they may be shared


@dataclass(frozen=True)
class SweepFile:
    "What a sweep file asks for: values that stay, values to try, and the metric."

    fixed: dict  # Parameters given with `value`
    tried: dict  # Parameters to try, each a list or a Distribution
    metric: str = "f1"  # Which number of the validation scenes decides
    run_cap: int | None = None  # At most so many trials
    others: dict = field(default_factory=dict)  # name and the like
    method: str = "grid"  # Or random, or bayes
    seed: int = 0  # Of random and bayes
    target: float | None = None  # Start no more trials once one has reached it
    early: dict = field(default_factory=dict)  # What stands below early_terminate
    program: str = PROGRAM  # Job notebook

    def trials(self) -> list[dict]:
        "One dictionary a trial, in order; none for bayes, which asks at the start."
        if self.method == "bayes":
            return []
        if self.method == "random":
            return draws(self.spaces, self.run_cap, self.seed)
        return grid(**self.tried)[: self.run_cap] if self.tried else [{}]

    @property
    def spaces(self) -> dict[str, Distribution]:
        "What random and bayes draw from; a list gives each of its values alike."
        return {
            k: v if isinstance(v, Distribution) else distribution({"values": v})
            for k, v in self.tried.items()
        }

    @property
    def ladder(self) -> Halving | None:
        "Where trials are stopped early, if they are."
        if not self.early:
            return None
        return halving(self.early, complete(self.fixed, {}).epochs)


@contextmanager
def _at(source: str, lines: dict, *keys: str):
    "Put the file and the line, or the key, before any ValueError raised inside."
    try:
        yield
    except ValueError as err:
        line = f"line {lines[keys]}" if keys in lines else ".".join(keys)
        raise ValueError(f"{source}, {line}: {err}") from None


def _parameter(name: str, given, method: str, known) -> tuple[str, object]:
    "Read one entry of `parameters`: ('value', x), or ('tried', list or Distribution)."
    one_of("parameter", name, known)
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}: write `value: {given}` or `values: [...]` under it")
    kinds, found = {"value", "values"} & set(given), ", ".join(map(str, given))
    if given.get("distribution", "constant") == "constant" and kinds == {"value"}:
        given = {k: v for k, v in given.items() if k != "distribution"}
        if len(given) == 1:
            return "value", given["value"]
    if name in SETTINGS:
        raise ValueError(f"{name}: runs on other data cannot be compared; give a value")
    values = given.get("values", [None])
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name}: values must be a list such as [1, 2], got {values}")
    if method == "grid":
        return "tried", _steps(name, given, found)
    if len(kinds) == 2 or "value" in given:
        raise ValueError(f"{name}: give value, values or a distribution, found {found}")
    return "tried", values if set(given) == {"values"} else _drawn(name, given)


def _drawn(name: str, given: Mapping) -> Distribution:
    "The distribution of one parameter; errors begin with its name."
    try:
        return distribution(given)
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from None


def _steps(name: str, given: Mapping, found: str) -> list:
    "The values of one parameter in a grid; whole numbers may be given by their ends."
    if set(given) - {"distribution"} == {"values"}:
        return given["values"]
    one = {"value", "values"} & set(given) or not found
    space = None if one else _drawn(name, given)
    if space and space.kind == "int_uniform":
        return list(range(space.min, space.max + 1))
    if space and space.kind == "q_uniform":
        steps = range(round(space.min / space.q), round(space.max / space.q) + 1)
        return [round(n * space.q, 12) for n in steps]
    raise ValueError(
        f"{name}: a grid has either value or values, found {found or 'nothing'}; "
        f"a range without steps wants method random or bayes"
    )


def _metric(given) -> tuple[str, float | None]:
    "Name and target in `metric: {name: f1, goal: maximize, target: 0.9}`."
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or "name" not in given:
        raise ValueError("write `name: f1` and `goal: maximize` under metric")
    for key in given:
        one_of("key", key, ("name", "goal", "target"))
    one_of("metric", given["name"], _METRICS)
    if given.get("goal", "maximize") != "maximize":
        raise ValueError(
            f"goal {given['goal']!r}: of {', '.join(_METRICS)} more is better"
        )
    target = given.get("target")
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if target is not None and not (number and 0 < target <= 1):
        raise ValueError(f"target must be a number above 0, 1 at most, got {target!r}")
    return given["name"], target


def _entries(given, lines: dict, path: tuple) -> Iterable[tuple[tuple, object]]:
    "All parameters with the keys that lead to them; a group may hold a group."
    if not isinstance(given, Mapping) or not given:
        raise ValueError("name at least one parameter, such as `lr: {values: [...]}`")
    for name, content in given.items():
        here = (*path, str(name))
        if isinstance(content, Mapping) and set(content) == {"parameters"}:
            yield from _entries(content["parameters"], lines, (*here, "parameters"))
        else:
            yield here, content


def _parameters(content: Mapping, known, source: str, lines: dict) -> tuple[dict, dict]:
    "Sort `parameters` into what stays and what is tried."
    kinds, places, top = {"value": {}, "tried": {}}, {}, ("parameters",)
    with _at(source, lines, *top):
        entries = list(_entries(content.get("parameters"), lines, top))
    for path, given in entries:
        name = path[-1]
        with _at(source, lines, *path):
            if name in places:
                raise ValueError(f"{name} stands already in {places[name]}")
            kind, found = _parameter(name, given, content.get("method", "grid"), known)
        places[name] = f"line {lines[path]}" if path in lines else ".".join(path)
        kinds[kind][name] = found
    if content.get("method", "grid") != "grid" and not kinds["tried"]:
        with _at(source, lines, "method"):
            raise ValueError(f"nothing to draw for {content['method']}")
    return kinds["value"], kinds["tried"]


def _lines_of_parameters(lines: dict) -> dict:
    "The line of each parameter by its name alone, whatever group it stands in."
    skip = ("parameters", "value", "values", "min", "max", "distribution")
    rows = {
        p: n for p, n in lines.items() if p[0] == "parameters" and p[-1] not in skip
    }
    return {("parameters", path[-1]): line for path, line in rows.items()}


def _check_trials(plan: SweepFile, source: str, lines: dict) -> None:
    "Build the hyperparameters of every trial; an error names the line it comes from."
    lines = lines | _lines_of_parameters(lines)
    with _at(source, lines, "run_cap" if ("run_cap",) in lines else "method"):
        trials = plan.trials()
    for trial in [*trials, *_ends(plan)]:
        try:
            complete(plan.fixed, trial)
        except ValueError as err:
            names = [*trial, *plan.fixed]
            named = [name for name in names if re.search(rf"\b{name}\b", str(err))]
            with _at(source, lines, "parameters", *named[:1]):
                raise
    with _at(source, lines, "parameters"):
        trial_names(trials) if trials else None


def _ends(plan: SweepFile) -> list[dict]:
    "The smallest and the largest value of each range, one at a time."
    ranges = {
        k: v for k, v in plan.tried.items() if getattr(v, "min", None) is not None
    }
    return [{name: space.at(u)} for name, space in ranges.items() for u in (0, 1)]


def _count(content: Mapping, key: str, least: int, default=None):
    "A whole number of a sweep file, or its default."
    value = content.get(key, default)
    if value is not default and (type(value) is not int or value < least):
        raise ValueError(f"{key} must be a whole number from {least}, got {value!r}")
    return value


def _checked_keys(content: Mapping, source: str, lines: dict) -> dict:
    "Every key is known, and those that hold one value hold a good one."
    for key in content:
        with _at(source, lines, str(key)):
            one_of("key", key, _KEYS)
    method, found = content.get("method", "grid"), {}
    with _at(source, lines, "method"):
        one_of("method", method, _METHODS)
    with _at(source, lines, "run_cap"):
        found["run_cap"] = _count(content, "run_cap", 1)
        if method != "grid" and found["run_cap"] is None:
            raise ValueError(f"{method} has no end: say how many trials with run_cap")
    with _at(source, lines, "seed"):
        found["seed"] = _count(content, "seed", 0, 0)
    with _at(source, lines, "metric"):
        found["metric"], found["target"] = _metric(content.get("metric", "f1"))
    return found | {"method": method}


def _early(plan: SweepFile, source: str, lines: dict) -> None:
    "Refuse a ladder that cannot be built, with its line."
    with _at(source, lines, "early_terminate"):
        if not isinstance(plan.early, Mapping):
            raise ValueError("write `type: hyperband` and `min_iter: 2` under it")
        if plan.early and "epochs" in plan.tried:
            raise ValueError("rungs are counted in epochs, so epochs cannot be tried")
        if plan.early and plan.method == "bayes":
            raise ValueError("bayes learns from whole trainings; use method random")
        if plan.early and plan.metric == "accuracy":
            raise ValueError("there is no accuracy after each epoch; use f1 or iou")
        plan.ladder  # noqa: B018, raises


def _known_parameters(
    program: str = PROGRAM, beside: Path | None = None
) -> tuple[str, list[str]]:
    """What a job notebook lets a sweep set: hyperparameters and settings it has.

    Raises ValueError when there is no such job notebook.
    """
    one = beside and beside / program
    path = str(one.resolve()) if one and one.is_file() else program
    try:
        has = parameters(job_notebook(path))
    except FileNotFoundError as err:
        raise ValueError(f"program must be a job notebook: {err}") from None
    ours = list(Hyperparams.model_fields)
    return path, [name for name in (*ours, *SETTINGS) if name in has]


def read_sweep(
    source: Path | str | Mapping,  # A sweep file, or its content as a dictionary
) -> SweepFile:  # With .fixed, .tried, .metric and .trials()
    """Read a sweep in the form that Weights & Biases uses.

    Raises ValueError with file and line for a key or parameter that is not known, a
    key that stands twice, a value or range that cannot be, or the same trial twice.
    """
    is_file = not isinstance(source, Mapping)
    content, lines = _load_yaml(Path(source)) if is_file else (source, {})
    name = Path(source).name if is_file else "sweep"
    if not is_file:
        try:
            _refuse_endless(content)
            _refuse_nameless(content)
        except ValueError as err:
            raise ValueError(f"{name}: {err}") from None
    found = _checked_keys(content, name, lines)
    with _at(name, lines, "program"):
        beside = Path(source).parent if is_file else None
        program, known = _known_parameters(content.get("program", PROGRAM), beside)
    fixed, tried = _parameters(content, known, name, lines)
    others = {key: value for key, value in content.items() if key in _KEYS[1:5]}
    early = content.get("early_terminate") or {}
    plan = SweepFile(fixed, tried, others=others, early=early, program=program, **found)
    _early(plan, name, lines)
    _check_trials(plan, name, lines)
    return plan


@dataclass(frozen=True)
class Trial:
    "One line of trials.csv."

    name: str  # Such as "lr=1e-3"
    folder: str  # Its run folder, seen from the sweep folder
    parameters: dict  # What this trial has of its own

    def path(self, sweep: Path) -> Path:
        "The run folder, given the sweep folder."
        return Path(os.path.normpath(sweep / self.folder))

    @property
    def place_in_order(self) -> list:
        "To sort by: numbers by size and before words, parameter by parameter."
        found = [(isinstance(v, (int, float)), v) for v in self.parameters.values()]
        return [(0, v, "") if number else (1, 0, str(v)) for number, v in found]


def _as_text(value) -> str:
    "A value for a cell of trials.csv; `_as_value` is the way back."
    if isinstance(value, (tuple, list)):
        return ",".join(map(_as_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def _as_value(text: str):
    "Numbers, true, false and null as such; anything else stays text."
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tried(trials: list[Trial], key: str) -> list:
    "What was tried for one parameter, in order, each value once."
    found = [trial.parameters[key] for trial in trials if key in trial.parameters]
    first: dict = {}
    for value in found:
        first.setdefault(tuple(value) if isinstance(value, list) else value, value)
    return list(first.values())


def _entry(space: Distribution) -> dict:
    "A distribution as it stands in a sweep file."
    own = {k: v for k, v in asdict(space).items() if k in KINDS[space.kind]}
    own = {k: list(v) if isinstance(v, tuple) else v for k, v in own.items() if v != ()}
    return {"distribution": space.kind, **own}


def _content(folder: Path, plan: SweepFile, trials: list[Trial]) -> dict:
    "What sweep.yaml says of a sweep."
    drawn = plan.method != "grid"
    names = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    content = {"program": plan.program, **plan.others}
    content |= {"name": folder.name, "method": plan.method}
    content["metric"] = {"name": plan.metric, "goal": "maximize"}
    content["metric"] |= {} if plan.target is None else {"target": plan.target}
    content |= {"seed": plan.seed, "run_cap": plan.run_cap} if drawn else {}
    content |= {"early_terminate": dict(plan.early)} if plan.early else {}
    content["parameters"] = {k: {"value": v} for k, v in plan.fixed.items()}
    if drawn:
        content["parameters"] |= {
            k: {"values": v} if isinstance(v, list) else _entry(v)
            for k, v in plan.tried.items()
        }
    else:
        content["parameters"] |= {k: {"values": _tried(trials, k)} for k in names}
    return content


def write_record(
    folder: Path,  # The sweep folder; made if need be
    plan: SweepFile,  # What is the same in all trials, and how they are chosen
    trials: list[Trial],  # At least one
) -> None:
    """Write sweep.yaml and trials.csv, both whole or not at all.

    Raises OSError when the disk is full; the files are then as they were.
    """
    rows = [
        {"trial": number, "name": trial.name, "folder": trial.folder}
        | {k: _as_text(v) for k, v in trial.parameters.items()}
        for number, trial in enumerate(trials, start=1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(_content(folder, plan, trials), sort_keys=False)
    files = folder / "sweep.yaml", folder / "trials.csv"
    with atomic_path(files[0]) as one, atomic_path(files[1]) as other:
        one.write_text(text, encoding="utf-8")
        with open(other, "w", newline="", encoding="utf-8") as file:
            columns = dict.fromkeys(key for row in rows for key in row)
            table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def _read_plan(folder: Path) -> SweepFile:
    "What a sweep's own sweep.yaml says."
    content = _load_yaml(folder / "sweep.yaml")[0]
    fixed, tried, metric = {}, {}, content.get("metric", {})
    for key, given in content["parameters"].items():
        if "value" in given:
            fixed[key] = given["value"]
        else:
            plain = set(given) == {"values"}
            tried[key] = given["values"] if plain else distribution(given)
    names = ("run_cap", "method", "seed", "program")
    more = {key: content[key] for key in names if key in content}
    more |= {"early": content.get("early_terminate") or {}}
    more |= {"metric": metric.get("name", "f1"), "target": metric.get("target")}
    others = {k: v for k, v in content.items() if k in _KEYS[1:5]}
    return SweepFile(fixed, tried, others=others, **more)


def read_record(
    folder: Path,  # A sweep folder
) -> tuple[SweepFile, list[Trial]]:  # The plan, and the trials
    """What `write_record` wrote.

    Raises `FileNotFoundError` for any other folder, `Unreadable` for a broken record.
    """
    files = folder / "sweep.yaml", folder / "trials.csv"
    for path in files:
        if not path.exists():
            text = f"{folder} is no sweep folder: it has no {path.name}"
            raise FileNotFoundError(text)
    plan = attempt(lambda: _read_plan(folder), files[0], "record of a sweep")
    rows = trial_rows(folder)
    return plan, attempt(
        lambda: _trials(rows, folder, plan), files[1], "list of trials"
    )


def _trials(rows: list[dict], folder: Path, plan: SweepFile) -> list[Trial]:
    "The trials in the lines of a sweep's trials.csv."
    trials = []
    for row in rows:
        row.pop("trial")
        name, place = row.pop("name"), row.pop("folder")
        own = {key: _as_value(text) for key, text in row.items() if text != ""}
        if plan.method == "bayes" and not own:
            own = _started_with(folder / place, plan)
        trials.append(Trial(name, place, own))
    return trials


def _started_with(folder: Path, plan: SweepFile) -> dict:
    "The values that a trial was given when it started, if it has."
    given = read_json(folder / "params.json", {}, form={})
    return {key: given[key] for key in plan.tried if key in given}


def expand(
    trials,  # A list of dictionaries, a SweepFile, or a sweep file's path or content
    base: dict | None = None,  # What is the same in all trials
) -> tuple[SweepFile, list[dict]]:  # The plan, with what stays cast; and the trials
    "What a sweep is asked to do; raises ValueError where file and base disagree."
    if isinstance(trials, (str, Path, Mapping)):
        trials = read_sweep(trials)
    is_file = isinstance(trials, SweepFile)
    plan, base = trials if is_file else SweepFile({}, {}), base or {}
    clash = [k for k in base if k in plan.fixed and base[k] != plan.fixed[k]]
    if clash:
        raise ValueError(f"the sweep file and base disagree on {', '.join(clash)}")
    fixed = {**plan.fixed, **base}
    if fixed.get("data") is not None:
        fixed["data"] = os.path.abspath(os.path.expanduser(fixed["data"]))
    whole = complete(fixed, {}).asdict()
    plan = replace(plan, fixed={k: whole.get(k, v) for k, v in fixed.items()})
    plan.ladder  # noqa: B018, raises where the base has too few epochs
    return plan, plan.trials() if is_file else list(trials)


def new_trials(
    fixed: dict,  # What stays
    asked: list[dict],  # Parameters of the trials asked for
    known: list[Trial],  # Trials on record
) -> list[dict]:  # Parameters, cast
    "Which of the trials asked for are not on record; asking twice is an error."
    seen = {complete(fixed, trial.parameters) for trial in known}
    new, fresh = set(), []
    for trial in asked:
        both = [key for key in trial if key in SETTINGS or key in fixed]
        if both:
            raise ValueError(f"{both[0]} is part of the base, the same in all trials")
        whole = complete(fixed, trial)
        if whole in new:
            raise ValueError(f"asked for more than once: {trial}")
        if whole not in seen:
            values = whole.asdict()
            fresh.append({key: values[key] for key in trial})
        new.add(whole)
    return fresh


def refuse_other_plan(
    folder: Path,  # The sweep folder, for the message
    old: SweepFile,  # What the sweep keeps fixed, and how it chooses
    new: SweepFile,  # What is asked for now
) -> None:
    "Raise ValueError when runs would differ in more than what is tried."
    sides = [{**p.fixed, **complete(p.fixed, {}).asdict()} for p in (old, new)]
    other = differences(*sides)
    for name in ("program", "method", "early"):
        ours, theirs = getattr(old, name), getattr(new, name)
        other |= {name: (ours, theirs)} if ours != theirs else {}
    if old.method != "grid" and (old.tried, old.seed) != (new.tried, new.seed):
        other["parameters"] = ("its own distributions and seed", "others")
    if other:
        listed = ", ".join(f"{k}: {a} -> {b}" for k, (a, b) in other.items())
        raise ValueError(
            f"{folder} keeps other values fixed ({listed}); runs that differ in more "
            f"than what is tried cannot be compared. Give this sweep its own folder"
        )


def add_trials(
    folder: Path,  # The sweep folder
    plan: SweepFile,  # What stays, and how trials are chosen
    known: list[Trial],  # Trials on record
    asked: list[dict],  # Parameters of the trials asked for
    reuse: Iterable = (),  # Runs that may stand in for a trial
) -> list[Trial]:
    """The known trials, and after them those asked for that are new, each with a name.

    Raises ValueError for a trial that is asked for twice or that has bad values.
    """
    if plan.method == "bayes":
        names = [f"trial-{n}" for n in range(len(known) + 1, (plan.run_cap or 0) + 1)]
        return [*known, *(Trial(name, name, {}) for name in names)]
    fixed = plan.fixed
    fresh = new_trials(fixed, asked, known)
    names = trial_names([trial.parameters for trial in known] + fresh)[len(known) :]
    digests = {_digest(Run(trial.path(folder))) for trial in known} - {None}
    added = []
    for name, own in zip(names, fresh, strict=True):
        lent = _lent(complete(fixed, own).asdict(), reuse, digests)
        place = os.path.relpath(lent, folder) if lent else name
        added.append(Trial(name, place, own))
    return [*known, *added]


def _lent(wanted: dict, reuse, digests: set) -> Path | None:
    "The finished run among `reuse` that has these hyperparameters and this data."
    for run in map(Run, [reuse] if isinstance(reuse, (str, Path)) else reuse):
        if not run.manifest or run.state != "succeeded":
            continue
        same = not differences(run.hyperparams, wanted)
        if same and (not digests or digests == {_digest(run)}):
            return run.path
    return None


def _digest(run: Run) -> str | None:
    "The fingerprint of the data that a run was trained on."
    return (run.manifest.get("asked", {}).get("data") or {}).get("digest")


def job_params(
    params: dict,  # What stays and what a trial has of its own
) -> dict:  # Texts, numbers, truth values and None
    "Parameters as a job notebook takes them: lists as text, None as the word `none`."
    words = {}
    for key, value in params.items():
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        if value is None and key not in SETTINGS:
            value = "none"  # for a job, None means the preset's own value
        words[key] = value
    return words

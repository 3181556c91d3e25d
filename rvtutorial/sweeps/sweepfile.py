"""Sweep files in the form of Weights & Biases: checked with line numbers, expanded into trials, and kept on record."""

import contextlib
import csv
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import yaml

from rvtutorial.core.files import atomic_path, safe_name
from rvtutorial.core.finding import trial_rows
from rvtutorial.core.loop_settings import LoopSettings
from rvtutorial.core.names import near_match
from rvtutorial.core.records import attempt, read_json
from rvtutorial.core.yamlkeys import key_lines
from rvtutorial.hpc.job import JobNotebook
from rvtutorial.runs import Hyperparams
from rvtutorial.sweeps.space import KINDS, Distribution, Halving, draws


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


_POWER = r"([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"
for _tag, _pattern, _first in [
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", rf"[-+]?({_POWER}|[0-9]+\.[0-9]*|\.[0-9]+)", list("-+.0123456789")),
]:
    _whole = re.compile(rf"^(?:{_pattern})$")
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)


class _Places:
    "Where the keys of a sweep file stand."

    def __init__(self, name: str):
        self.name, self.lines = name, {}  # Of the file; the keys that lead to one: line

    def of(self, keys: tuple) -> str:
        "The line of a key, or the keys that lead to it."
        return f"line {self.lines[keys]}" if keys in self.lines else ".".join(keys)

    @contextmanager
    def at(self, *keys: str):
        "Put the file and the place before any ValueError raised inside."
        try:
            yield
        except ValueError as err:
            place = f", {self.of(keys)}" if keys else ""
            raise ValueError(f"{self.name}{place}: {err}") from None


_MOST, _DEEPEST = 100_000, 50  # Values of a sweep file, aliases written out; levels


def _refuse_endless(item, places: _Places, path: tuple, above: tuple, count) -> None:
    "ValueError for what holds itself or grows beyond all bounds, and for odd keys."
    keys = list(item) if isinstance(item, Mapping) else []
    inside = [((*path, key), item[key]) for key in keys]
    if isinstance(item, (list, tuple)):
        inside = [(path, one) for one in item]
    with places.at(*path):
        if any(item is one for one in above):
            raise ValueError("this holds itself (an alias inside its own anchor)")
        if next(count) > _MOST or len(above) > _DEEPEST:
            raise ValueError(
                f"too much: more than {_MOST:,} values, or {_DEEPEST} levels, once "
                "every alias is written out"
            )
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text")
    for here, one in inside:
        _refuse_endless(one, places, here, (*above, item), count)


def _load(source: Path | str | Mapping) -> tuple[Mapping, _Places]:
    "The content of a sweep file, or of what is one already, and where its keys stand."
    if isinstance(source, Mapping):
        content, places = source, _Places("sweep")
    else:
        name, places = Path(source).name, _Places(Path(source).name)
        try:
            loader = _Yaml(Path(source).read_text(encoding="utf-8"))
            node = loader.get_single_node()
            places.lines = key_lines(node)
            content = loader.construct_document(node) if node else None
        except RecursionError:
            raise ValueError(f"{name}: nested too deeply") from None
        except (yaml.YAMLError, ValueError) as err:
            mark = getattr(err, "problem_mark", None)
            why = f"line {mark.line + 1}: {err.problem}" if mark else err
            raise ValueError(f"{name}, {why}") from None
        except (AttributeError, LookupError, TypeError) as err:  # of PyYAML itself
            why = "this is no YAML that can be read"
            raise ValueError(f"{name}: {why}: {err}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{name}: expected keys such as `parameters:`")
    _refuse_endless(content, places, (), (), itertools.count(1))
    return content, places


SETTINGS = ("preset", "data", "image_pattern", "label_pattern", "classes")
SETTINGS += ("class_field", "label_values", "bands", "layer", "zeros")
LOOP = (*LoopSettings.model_fields, "monitor")  # of course.training
SETTINGS += LOOP
_OTHERS = ("name", "description", "project", "entity")  # kept, and not looked at
_KEYS = (*_OTHERS, "program", "method", "metric", "parameters", "run_cap", "seed")
_KEYS += ("early_terminate",)
_METHODS = ("grid", "random", "bayes")
_METRICS = ("f1", "iou", "precision", "recall", "accuracy", "macro_f1", "macro_iou",
            "foreground_f1", "foreground_iou")  # fmt: skip
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
    key = repr(sorted(asked.items(), key=str))  # thousands are asked about often
    if key not in _COMPLETE:
        known = {key: value for key, value in asked.items() if key not in SETTINGS}
        if len(_COMPLETE) >= 20_000:
            _COMPLETE.clear()
        _COMPLETE[key] = Hyperparams.of(asked.get("preset", "sample"), **known)
    return _COMPLETE[key]


def _cast_together(fixed: dict, trials: list) -> Hyperparams:
    "What stays, cast: alone, or beside the first trial where only its network knows it."
    try:
        return complete(fixed, {})
    except ValueError as alone:
        own = {k: v for k, v in dict(*trials[:1]).items() if k not in fixed}
        with contextlib.suppress(ValueError):
            return complete(fixed, own)
        raise alone from None


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

    @classmethod
    def read(
        cls,
        source: Path | str | Mapping,  # A sweep file, or its content as a dictionary
        translate: Callable
        | None = None,  # (name, entry, all) -> ours, and what follows
        program: str | None = None,  # Job notebook, whatever the file says
    ) -> "SweepFile":  # With .fixed, .tried, .metric and .trials()
        """Read a sweep in the form that Weights & Biases uses.

        Raises ValueError with file and line for a key or parameter that is not known, a
        key that stands twice, a value or range that cannot be, or the same trial twice.
        """
        content, places = _load(source)
        for key in content:
            with places.at(key):
                one_of("key", key, _KEYS)
        method = content.get("method", "grid")
        with places.at("method"):
            one_of("method", method, _METHODS)
        with places.at("run_cap"):
            run_cap = _count(content, "run_cap", 1)
            if method != "grid" and run_cap is None:
                raise ValueError(
                    f"{method} has no end: say how many trials with run_cap"
                )
        with places.at("seed"):
            seed = _count(content, "seed", 0, 0)
        with places.at("metric"):
            metric, target = _metric(content.get("metric", "f1"))
        with places.at("program"):
            program = program or content.get("program", PROGRAM)
            if (
                not isinstance(source, Mapping)
                and (Path(source).parent / program).is_file()
            ):
                program = str((Path(source).parent / program).resolve())
            try:
                has = JobNotebook(program).parameters
            except FileNotFoundError as err:
                raise ValueError(f"program must be a job notebook: {err}") from None
        known = [name for name in (*Hyperparams.model_fields, *SETTINGS) if name in has]
        fixed, tried, paths = _parameters(content, known, places, translate)
        others = {key: value for key, value in content.items() if key in _OTHERS}
        early = content.get("early_terminate") or {}
        plan = cls(
            fixed, tried, metric, run_cap, others, method, seed, target, early, program
        )
        with places.at("early_terminate"):
            if not isinstance(early, Mapping):
                raise ValueError("write `type: hyperband` and `min_iter: 2` under it")
            if early and "epochs" in tried:
                raise ValueError(
                    "rungs are counted in epochs, so epochs cannot be tried"
                )
            if early and method == "bayes":
                raise ValueError("bayes learns from whole trainings; use method random")
            if early and metric == "accuracy":
                raise ValueError("there is no accuracy after each epoch; use f1 or iou")
            plan.ladder  # noqa: B018, raises
        _check_trials(plan, places, paths)
        return plan

    @classmethod
    def expand(
        cls,
        trials,  # Dictionaries, a SweepFile, or a sweep file's path or content
        base: dict | None = None,  # What is the same in all trials
    ) -> tuple["SweepFile", list[dict]]:  # The plan, with what stays cast; the trials
        "What a sweep is asked to do; raises ValueError where file and base disagree."
        if isinstance(trials, (str, Path, Mapping)):
            trials = cls.read(trials)
        is_file = isinstance(trials, SweepFile)
        plan, base = trials if is_file else cls({}, {}), base or {}
        clash = [k for k in base if k in plan.fixed and base[k] != plan.fixed[k]]
        if clash:
            raise ValueError(f"the sweep file and base disagree on {', '.join(clash)}")
        fixed = {**plan.fixed, **base}
        LoopSettings.of(**_loop_of(fixed))
        if fixed.get("data") is not None:
            fixed["data"] = os.path.abspath(os.path.expanduser(fixed["data"]))
        made = plan.trials() if is_file else list(trials)
        whole = _cast_together(fixed, made).asdict()
        plan = replace(plan, fixed={k: whole.get(k, v) for k, v in fixed.items()})
        plan.ladder  # noqa: B018, raises where the base has too few epochs
        return plan, made

    def write(
        self,
        folder: Path,  # The sweep folder; made if need be
        trials: list["Trial"],  # At least one
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
        text = yaml.safe_dump(self._content(folder.name, trials), sort_keys=False)
        files = folder / "sweep.yaml", folder / "trials.csv"
        with atomic_path(files[0]) as one, atomic_path(files[1]) as other:
            one.write_text(text, encoding="utf-8")
            with open(other, "w", newline="", encoding="utf-8") as file:
                columns = dict.fromkeys(key for row in rows for key in row)
                table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                table.writeheader()
                table.writerows(rows)

    def _content(self, name: str, trials: list["Trial"]) -> dict:
        "What sweep.yaml says."
        content = {"program": self.program, **self.others}
        content |= {"name": name, "method": self.method}
        content["metric"] = {"name": self.metric, "goal": "maximize"}
        content["metric"] |= {} if self.target is None else {"target": self.target}
        tried = self.tried
        if self.method != "grid":
            content |= {"seed": self.seed, "run_cap": self.run_cap}
        else:  # what was tried, each value once
            pairs = [pair for trial in trials for pair in trial.parameters.items()]
            seen = {key: {} for key, _ in pairs}
            for key, value in pairs:
                seen[key].setdefault(repr(value), value)
            tried = {key: list(values.values()) for key, values in seen.items()}
        content |= {"early_terminate": dict(self.early)} if self.early else {}
        content["parameters"] = {k: {"value": v} for k, v in self.fixed.items()}
        for key, space in tried.items():
            entry = {"values": space}
            if isinstance(space, Distribution):
                own = {k: getattr(space, k) for k in KINDS[space.kind]}
                own = {k: v for k, v in own.items() if v != ()}
                lists = {k: list(v) for k, v in own.items() if isinstance(v, tuple)}
                entry = {"distribution": space.kind, **own, **lists}
            content["parameters"][key] = entry
        return content

    @staticmethod
    def on_record(
        folder: Path,  # A sweep folder
    ) -> tuple["SweepFile", list["Trial"]]:  # The plan, and the trials
        """What `write` wrote.

        Raises `FileNotFoundError` for any other folder, `Unreadable` for a broken record.
        """
        files = folder / "sweep.yaml", folder / "trials.csv"
        for path in files:
            if not path.exists():
                text = f"{folder} is no sweep folder: it has no {path.name}"
                raise FileNotFoundError(text)

        def read_plan() -> SweepFile:
            content = _load(files[0])[0]
            fixed, tried, metric = {}, {}, content.get("metric", {})
            for key, given in content["parameters"].items():
                if "value" in given:
                    fixed[key] = given["value"]
                else:
                    plain = set(given) == {"values"}
                    tried[key] = given["values"] if plain else Distribution.of(given)
            names = ("run_cap", "method", "seed", "program")
            more = {key: content[key] for key in names if key in content}
            more |= {"early": content.get("early_terminate") or {}}
            more |= {"metric": metric.get("name", "f1"), "target": metric.get("target")}
            others = {k: v for k, v in content.items() if k in _OTHERS}
            return SweepFile(fixed, tried, others=others, **more)

        def trial(row: dict) -> Trial:
            del row["trial"]
            name, place = row.pop("name"), row.pop("folder")
            own = {key: _as_value(text) for key, text in row.items() if text != ""}
            if plan.method == "bayes" and not own:  # as it was started, if it was
                given = read_json(folder / place / "params.json", {}, form={})
                own = {key: given[key] for key in plan.tried if key in given}
            return Trial(name, place, own)

        plan, rows = (
            attempt(read_plan, files[0], "record of a sweep"),
            trial_rows(folder),
        )
        return plan, attempt(lambda: [*map(trial, rows)], files[1], "list of trials")

    @property
    def spaces(self) -> dict[str, Distribution]:
        "What random and bayes draw from; a list gives each of its values alike."
        return {
            k: v if isinstance(v, Distribution) else Distribution.of({"values": v})
            for k, v in self.tried.items()
        }

    @property
    def ladder(self) -> Halving | None:
        "Where trials are stopped early, if they are."
        if not self.early:
            return None
        return Halving.of(self.early, complete(self.fixed, {}).epochs)

    def new_trials(
        self,
        asked: list[dict],  # Parameters of the trials asked for
        known: list["Trial"],  # Trials on record
    ) -> list[dict]:  # Parameters, cast
        "Which of the trials asked for are not on record; asking twice is an error."
        seen = {complete(self.fixed, trial.parameters) for trial in known}
        new, fresh = set(), []
        for trial in asked:
            both = [key for key in trial if key in SETTINGS or key in self.fixed]
            if both:
                raise ValueError(
                    f"{both[0]} is part of the base, the same in all trials"
                )
            whole = complete(self.fixed, trial)
            if whole in new:
                raise ValueError(f"asked for more than once: {trial}")
            if whole not in seen:
                values = whole.asdict()
                fresh.append({key: values[key] for key in trial})
            new.add(whole)
        return fresh


def _parameter(given, method: str, setting: bool) -> tuple[str, object]:
    "Read one entry of `parameters`: ('value', x), or ('tried', list or Distribution)."
    if not isinstance(given, Mapping):
        raise ValueError(f"write `value: {given}` or `values: [...]` under it")
    kinds, found = {"value", "values"} & set(given), ", ".join(map(str, given))
    if given.get("distribution", "constant") == "constant" and kinds == {"value"}:
        if not set(given) - {"value", "distribution"}:
            return "value", given["value"]
    if setting:
        raise ValueError(
            "this is the same in all trials, as runs on other data cannot be compared; "
            "give a value"
        )
    values = given.get("values", [None])
    if not isinstance(values, list) or not values:
        raise ValueError(f"values must be a list such as [1, 2], got {values}")
    listed = set(given) == {"values"}
    if method != "grid":
        if len(kinds) == 2 or "value" in given:
            raise ValueError(f"give value, values or a distribution, found {found}")
        return "tried", values if listed else Distribution.of(given)
    if listed or set(given) == {"values", "distribution"}:
        return "tried", values
    space = None if kinds or not found else Distribution.of(given)
    if space and space.kind == "int_uniform":
        return "tried", list(range(space.min, space.max + 1))
    if space and space.kind == "q_uniform":
        steps = range(round(space.min / space.q), round(space.max / space.q) + 1)
        return "tried", [round(n * space.q, 12) for n in steps]
    raise ValueError(
        f"a grid has either value or values, found {found or 'nothing'}; a range "
        f"without steps wants method random or bayes"
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


def _entries(given, path: tuple = ("parameters",)) -> Iterator[tuple[tuple, object]]:
    "All parameters with the keys that lead to them; a group may hold a group."
    if not isinstance(given, Mapping) or not given:
        raise ValueError("name at least one parameter, such as `lr: {values: [...]}`")
    for name, content in given.items():
        here = (*path, name)
        if isinstance(content, Mapping) and set(content) == {"parameters"}:
            yield from _entries(content["parameters"], (*here, "parameters"))
        else:
            yield here, content


def _parameters(content, known, places: _Places, translate) -> tuple[dict, dict, dict]:
    "What stays, what is tried, and the keys that lead to each parameter."
    kinds, paths, method = {"value": {}, "tried": {}}, {}, content.get("method", "grid")
    with places.at("parameters"):
        entries = list(_entries(content.get("parameters")))
    others, follow = {path[-1]: given for path, given in entries}, []
    for path, given in entries:
        name = path[-1]
        with places.at(*path):
            if translate:
                (name, given), *more = translate(name, given, others).items()
                follow += [(other, entry, path) for other, entry in more]
            if name in paths:
                raise ValueError(f"{name} stands already in {places.of(paths[name])}")
            one_of("parameter", name, known)
            try:
                kind, found = _parameter(given, method, name in SETTINGS)
            except ValueError as err:
                raise ValueError(f"{name}: {err}") from None
        paths[name], kinds[kind][name] = path, found
    for name, given, path in follow:
        paths[name], kinds["value"][name] = path, given["value"]
    _check_loop(kinds["value"], places, paths)
    if method != "grid" and not kinds["tried"]:
        with places.at("method"):
            raise ValueError(f"nothing to draw for {method}")
    return kinds["value"], kinds["tried"], paths


def _loop_of(values: dict) -> dict:
    return {k: v for k, v in values.items() if k in LoopSettings.model_fields}


def _check_loop(values: dict, places: _Places, paths: dict) -> None:
    "Build the settings of Lightning's loop; an error names the line it comes from."
    own = _loop_of(values)
    try:
        LoopSettings.of(**own)
    except ValueError as err:
        found = {n: re.search(rf"\b{n}\b", str(err)) for n in own}
        named = sorted((m.start(), paths[n]) for n, m in found.items() if m)
        with places.at(*(named[0][1] if named else ("parameters",))):
            raise


def _check_trials(plan: SweepFile, places: _Places, paths: dict) -> None:
    "Build the hyperparameters of every trial; an error names the line it comes from."
    with places.at("run_cap" if plan.run_cap else "method"):
        trials = plan.trials()
    ranges = {
        k: v for k, v in plan.tried.items() if getattr(v, "min", None) is not None
    }
    ends = [{name: space.at(u)} for name, space in ranges.items() for u in (0, 1)]
    for trial in [*trials, *ends]:
        try:
            complete(plan.fixed, trial)
        except ValueError as err:
            names = [*trial, *plan.fixed]
            named = [paths[n] for n in names if re.search(rf"\b{n}\b", str(err))]
            with places.at(*(named or [("parameters",)])[0]):
                raise
    if trials:
        with places.at("parameters"):
            trial_names(trials)


def _count(content: Mapping, key: str, least: int, default=None):
    "A whole number of a sweep file, or its default."
    value = content.get(key, default)
    if value is not default and (type(value) is not int or value < least):
        raise ValueError(f"{key} must be a whole number from {least}, got {value!r}")
    return value


@dataclass(frozen=True)
class Trial:
    "One line of trials.csv."

    name: str  # Such as "lr=1e-3"
    folder: str  # Its run folder, seen from the sweep folder
    parameters: dict  # What this trial has of its own

    def path(self, sweep: Path) -> Path:
        "The run folder, given the sweep folder."
        return Path(os.path.normpath(sweep / self.folder))


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

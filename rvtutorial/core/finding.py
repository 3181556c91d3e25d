"""Which runs are meant: a path, a sweep, a list or a dictionary becomes runs by their names."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from rvtutorial.core.records import Unreadable, attempt
from rvtutorial.core.names import natural_key
from rvtutorial.core.record import Run, find_runs


def is_sweep(path: Path) -> bool:
    "Whether a folder is a sweep's."
    return (path / "trials.csv").is_file()


def trial_rows(
    sweep: Path,  # A sweep folder
) -> list[dict[str, str]]:  # trial, name, folder and the parameters of each, as text
    "The lines of a sweep's trials.csv; raises `Unreadable` for one that is broken."
    path = sweep / "trials.csv"

    def read() -> list[dict[str, str]]:
        try:
            with open(path, newline="", encoding="utf-8") as file:
                header, *lines = csv.reader(file, strict=True)
        except csv.Error as err:
            raise ValueError(err) from None
        if not {"trial", "name", "folder"} <= {*header}:
            raise ValueError(f"its columns are {header}")
        return [dict(zip(header, line, strict=True)) for line in lines if line]

    return attempt(read, path, "list of trials")


def _runs_below(
    path: Path,  # A run, a sweep, or a folder that holds some
) -> dict[str, Run]:  # In natural order; the trials of a sweep in their order
    "The runs that a folder stands for, by their names seen from it; empty if none."
    if is_sweep(path):
        try:
            return _trials(path)
        except Unreadable:
            if not find_runs(path):
                raise
    found = {run.path: run for run in find_runs(path)}
    marks = path.rglob("trials.csv") if path not in found else ()
    for mark in list(marks):
        try:  # a sweep may have borrowed a run that lies elsewhere
            found |= {run.path: run for run in _trials(mark.parent).values()}
        except Unreadable:
            continue
    names = {run: os.path.relpath(run, path) for run in found} | {path: path.name}
    return {names[run]: found[run] for run in sorted(found, key=natural_key)}


def _trials(sweep: Path) -> dict[str, Run]:
    places = {row["name"]: sweep / row["folder"] for row in trial_rows(sweep)}
    return {name: Run(os.path.normpath(place)) for name, place in places.items()}


def named_runs(
    runs,  # A run or a path, a list of them, a dictionary name -> run, or a sweep
    strict: bool = False,  # Refuse a folder that is no run and holds none
) -> dict[str, Run]:  # Whatever else has a path and a name is taken as it is
    """Runs by their names; what is named twice is there once.

    A path may be a run, a sweep folder, or a folder that holds runs. Two runs of one
    name are called by their folders too. Raises FileNotFoundError for a folder that is
    not there.
    """
    runs = runs.runs() if callable(getattr(runs, "runs", None)) else runs
    if isinstance(runs, Mapping):
        return {name: Run.of(run) for name, run in runs.items()}
    found, seen = {}, set()
    for one in runs if isinstance(runs, (list, tuple)) else [runs]:
        for above, name, run in _meant(one, strict):
            if run.path not in seen:
                seen.add(run.path)
                name = name if name not in found else f"{above}/{name}"
                found[name if name not in found else str(run.path)] = run
    return found


def _meant(one, strict: bool) -> list[tuple]:
    "The runs that one member of a list stands for: folder above, name, run."
    if not isinstance(one, (str, Path)):
        return [(one.path.parent.name, one.name, one)]
    path = Path(os.path.abspath(os.path.expanduser(one)))
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    below = _runs_below(path)
    if strict and not below:
        raise FileNotFoundError(f"{path} is no run and holds none")
    if not below or path in {run.path for run in below.values()}:
        return [(path.parent.name, path.name, Run(path))]
    return [(path.name, name, run) for name, run in below.items()]

"""Disk use of run folders, and rules by which files that no run needs are deleted."""

import contextlib
import os
import re
import secrets
import stat
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from humanize import naturalsize

from rvtutorial.core import records
from rvtutorial.core.files import Busy, held, scratch_places
from rvtutorial.core.names import near_match
from rvtutorial.core.records import Unreadable, read_json
from rvtutorial.hpc.job import Job
from rvtutorial.hpc.scheduler import LIVE
from rvtutorial.runs import Run, find_runs


@dataclass(frozen=True)
class _Rule:
    "One kind of thing that may go."

    what: str  # What goes
    why: str  # Why it will not be missed
    patterns: tuple[str, ...] = ()  # Seen from the run folder
    done: bool = True  # Only where the run has succeeded


RULES = {
    "checkpoints": _Rule(
        "checkpoints of finished runs", "only a run that is not done goes on from one",
        ("checkpoint.pt", "checkpoint.old.pt", "train/checkpoints/*.pth"),
    ),
    "weights": _Rule(
        "loose weights beside the bundles", "both bundles hold the model",
        ("train/last-model.pth", "train/best-model.pth", "train/last.pt", "train/best.pt"),
    ),
    "tensorboard": _Rule(
        "TensorBoard's files", "train/log.csv has the numbers",
        ("train/tb-logs/**/events.*",),
    ),
    "attempts": _Rule(
        "notebooks of failed attempts", "the run has succeeded since",
        ("notebook.attempt*.ipynb",),
    ),
    "partials": _Rule(
        "files that a killed process left half-written", "nobody reads them",
        (".*", "train/.*", "predict/*/.*", "eval/*/.*", "bundle/.*"), done=False,
    ),
    "submissions": _Rule(
        "submissions that no run refers to", "their runs were submitted again or deleted"
    ),
    "cache": _Rule(
        "pixels of scenes in scratch", "the next training reads the scenes anew"
    ),
    "scores": _Rule(
        "scores of the predicted scenes", "gone for good: curves need them, maps do not",
        ("predict/*/scores.tif", "predict/*/pixel_hits.npy"),
    ),
}  # fmt: skip


_KEPT = re.compile(
    r"(^|/)(run\.json|pipeline-config\.json|params\.json|notebook\.ipynb|log\.csv|"
    r"eval\.json|labels\.tif|[^/]*bundle\.zip)$|^(labels|bundle|eval)/[^.]"
)
_PARTIAL = re.compile(r"\.([0-9a-f]{8}\..+|reserve|gone-.+)")  # `atomic_path`, jobs, us
_GONE = re.compile(r"\.gone-[0-9a-f]+")  # a submission of a call that was killed
_SUBMISSION = re.compile(
    r"(tasks|job|queue|cancelled|modules)\.json|job\.sh|queue\.log|(local|slurm)-.+\.out|"
    r"\.(reserve|probe|cancelling|[0-9a-f]{8}\..+)"
)
_CACHED = re.compile(r"[0-9a-f]{32}\.npy|\.[0-9a-f]{8}\.[0-9a-f]{32}\.npy")


@dataclass(frozen=True)
class _Found:
    "One file, or one folder of a submission, that a rule lets go."

    rule: str
    path: Path
    size: int  # Bytes
    run: Path | None = None  # The run folder it belongs to, if it does


def _busy_runs(runs: Iterable[Run]) -> dict[Path, str]:
    "Run folder -> state of those at work, or unreadable, by their record or the queue."
    said, alone = {run.path: run.state for run in runs}, (*LIVE, "unreadable")
    for detail in Job(list(said)).details(now=True) if said else ():
        if detail["state"] in alone:
            said[detail["folder"]] = detail["state"]
    return {path: state for path, state in said.items() if state in alone}


def _in_run(run: Run, rules: dict[str, _Rule]) -> list[_Found]:
    "What the rules let go of one run; the caller knows that nobody works in it."
    found, whole = {}, run.path.resolve()
    bundles = [run.path / stage / "model-bundle.zip" for stage in ("train", "bundle")]
    for name, rule in rules.items():
        if rule.done and run.state != "succeeded":
            continue
        if name == "weights" and not all(map(zipfile.is_zipfile, bundles)):
            continue
        for path in sorted(p for pat in rule.patterns for p in run.path.glob(pat)):
            if path.is_symlink() or not path.is_file():
                continue
            if name == "partials" and not (
                _PARTIAL.fullmatch(path.name) and _old(path)
            ):
                continue
            inside = path.resolve().is_relative_to(whole)
            if inside and not _KEPT.search(path.relative_to(run.path).as_posix()):
                found[path] = _Found(name, path, path.stat().st_size, run.path)
    names, sizes = {}, []  # one of several names of a file frees its bytes, if all go
    for path in found:
        names.setdefault((path.stat().st_dev, path.stat().st_ino), []).append(path)
    for paths in names.values():
        if len(paths) == paths[0].stat().st_nlink:
            sizes += [found[paths[0]], *(replace(found[p], size=0) for p in paths[1:])]
    return sizes


def _is_own_file(path: Path) -> bool:
    "Whether a path is a file of this user, and no link to one."
    with contextlib.suppress(OSError):
        now = path.lstat()
        return stat.S_ISREG(now.st_mode) and now.st_uid == os.geteuid()
    return False


def _old(path: Path) -> bool:
    "Whether nobody has written to a path for an hour: it may be in the making."
    return time.time() - path.stat().st_mtime > 3600


def _is_submission(home: Path, folder: Path) -> bool:
    "Whether a folder was made by a hand-over to the queue, lies inside, and holds nothing else."
    if not _lies_inside(home, folder):
        return False
    try:
        tasks = read_json(home / "tasks.json", form=records.TASKS, needed=("folders",))
        read_json(home / "job.json", form=records.SUBMITTED, needed=("queue",))
    except (OSError, ValueError):
        return False
    whole = tasks["folders"] and (home / "job.sh").is_file()
    return bool(whole) and _only_ours(home, tasks.get("notebook"))


def _only_ours(home: Path, notebook: str | None = None) -> bool:
    "Whether all that lies in a folder are files of a submission."
    return all(
        _is_own_file(path)
        and (_SUBMISSION.fullmatch(path.name) or path.name == notebook)
        for path in home.iterdir()
    )


def _lies_inside(path: Path, folder: Path) -> bool:
    "Whether a folder is a real one below another, with no link on the way."
    straight = folder.resolve() / path.relative_to(folder)
    return path.is_dir() and path.resolve() == straight


def _superseded(home: Path) -> bool:
    "Whether no run refers to a submission any more, and no queue knows it."
    tasks = home / "tasks.json"
    if not _old(home) or not _old(tasks):
        return False  # it may be in the making
    for folder in map(Path, read_json(tasks)["folders"]):
        moved = home.parent.parent / folder.name  # with the submissions beside it
        for run in (Run(folder), Run(moved)):
            try:
                job = run.manifest.get("went", {}).get("job") or {}
                turns = [job.get("submission"), *(t[0] for t in job.get("earlier", []))]
                if home.name in [Path(turn).name for turn in turns if turn]:
                    return False
            except Unreadable:  # nobody can tell
                return False
    told = {word for word, _ in Job.ask({str(home)}, now=True).values()}
    return told.isdisjoint({*LIVE, "unreadable", "unknown"})


def _old_submissions(folder: Path) -> list[_Found]:
    homes = [tasks.parent for tasks in sorted(folder.rglob("jobs/*/tasks.json"))]
    homes = [h for h in homes if _is_submission(h, folder) and _superseded(h)]
    for path in sorted(folder.rglob("jobs/.gone-*")):
        if _GONE.fullmatch(path.name) and _lies_inside(path, folder):
            with contextlib.suppress(OSError, ValueError):
                tasks = read_json(path / "tasks.json", {}, records.TASKS)
                homes += [path] if _only_ours(path, tasks.get("notebook")) else []
    sizes = {home: sum(p.lstat().st_size for p in home.iterdir()) for home in homes}
    return [_Found("submissions", home, size) for home, size in sizes.items()]


@dataclass(frozen=True)
class _Cleaning:
    "What would go, or has gone. Prints as a table."

    found: tuple[_Found, ...]
    rules: dict[str, _Rule]
    left: dict = field(default_factory=dict)  # Path -> why it is left alone

    @property
    def size(self) -> int:
        "Bytes of all that was found."
        return sum(item.size for item in self.found)

    def clean(
        self,
    ) -> "_Cleaning":  # What has gone, and in `.left` what has not, and why
        "Delete what was found, run by run; what has changed meanwhile stays."
        gone, left, groups = [], dict(self.left), {}
        for item in self.found:
            groups.setdefault(item.run, []).append(item)
        for run, items in groups.items():
            try:
                with contextlib.ExitStack() as stack:  # which keeps jobs out meanwhile
                    state = run and _busy_runs([Run(run)]).get(run)
                    if (
                        run and not state and (run / "job.lock").exists()
                    ):  # they may be back
                        stack.enter_context(held(run / "job.lock", keep=True))
                        state = {Run(run).state} & set(LIVE)  # by now
                    if state:
                        raise Busy("a job has begun or was queued meanwhile")
                    still = items if run is None else _in_run(Run(run), self.rules)
                    gone += [i for i in items if i in still and _delete(i, left)]
            except (Busy, OSError, ValueError) as err:
                left[run] = str(err)
        return _Cleaning(tuple(gone), self.rules, left)

    def rows(self) -> list[dict]:
        "One row a rule: rule, files, bytes, what, why."
        rows = []
        for name, rule in self.rules.items():
            own = [item for item in self.found if item.rule == name]
            row = {"rule": name, "files": len(own), "bytes": sum(i.size for i in own)}
            rows.append(row | {"what": rule.what, "why": rule.why})
        return rows

    def __repr__(self):
        lines = [
            f"{r['rule']:<12} {r['files']:>6} {naturalsize(r['bytes']):>9}  "
            f"{r['what']} ({r['why']})"
            for r in self.rows()
        ]
        lines += [f"{'all':<12} {len(self.found):>6} {naturalsize(self.size):>9}"]
        names = {path: "/".join(path.parts[-2:]) for path in self.left}
        lines += [f"left alone: {names[p]} ({why})" for p, why in self.left.items()]
        return "\n".join(lines)


def look(
    folders: Iterable[str | Path],  # Runs, sweeps, or folders that hold some
    rules: Iterable[str] = (),  # Names of some rules; none: all but scores
    scores: bool = False,  # With the scores of predicted scenes
) -> _Cleaning:
    "Find what may go below some folders; nothing is touched."
    folders = [Path(f).expanduser().absolute() for f in folders]
    names = [*(rules or [n for n in RULES if n != "scores"]), *["scores"] * scores]
    for name in names:
        if name not in RULES:
            raise ValueError(f"there is no rule {name!r}; {near_match(name, RULES)}")
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    rules = {name: RULES[name] for name in names}
    runs = {run.path: run for folder in folders for run in find_runs(folder)}
    busy, found = _busy_runs(runs.values()), []
    for path, run in runs.items():
        found += [] if path in busy else _in_run(run, rules)
    if "submissions" in rules:
        found += [item for folder in folders for item in _old_submissions(folder)]
    for place in scratch_places() if "cache" in rules else ():
        for path in sorted(place.iterdir()):
            if _CACHED.fullmatch(path.name) and _is_own_file(path) and _old(path):
                found.append(_Found("cache", path, path.stat().st_size))
    unique = {item.path: item for item in found}
    return _Cleaning(tuple(unique.values()), rules, busy)


def _delete(item: _Found, left: dict) -> bool:
    "Let one thing go; whether it has gone."
    try:
        gone, above = item.path, item.path.parent
        if not gone.is_dir():
            gone.unlink()
            return True
        if not _GONE.fullmatch(gone.name):
            if not _is_submission(gone, above.parent):
                left[gone] = "it is no submission any more"
                return False
            gone = gone.with_name(f".gone-{secrets.token_hex(4)}")
            os.rename(item.path, gone)
        tasks = gone / "tasks.json"  # last: it names the notebook
        for path in sorted(gone.iterdir(), key=lambda path: (path == tasks, path)):
            path.unlink()
        gone.rmdir()
        return True
    except OSError as err:
        left[item.path] = err.strerror or str(err)
        return False

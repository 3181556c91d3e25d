"""What a job of a sweep decides when it begins, how far a sweep is and what it costs, and its runs for CSV, TensorBoard and Weights & Biases."""

import contextlib
import math
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from rvtutorial.hpc.scheduler import LIVE
from rvtutorial.metrics.counting import table
from rvtutorial.metrics.intervals import jackknife
from rvtutorial.metrics.leaderboard import counts_of
from rvtutorial.core import records
from rvtutorial.core.files import locked
from rvtutorial.hpc.job import Job, check_params, job_notebook, notebook_line
from rvtutorial.hpc.queue import Submission
from rvtutorial.core.files import safe_name
from rvtutorial.core.finding import named_runs
from rvtutorial.core.records import Unreadable, read_json
from rvtutorial.core.files import atomic_path
from rvtutorial.core.records import write_json
from rvtutorial.runs import Hyperparams, Run
from rvtutorial.sweeps.space import ask, enlist, promoted, tell
from rvtutorial.hpc.sites import Site
from rvtutorial.slurm import submit, submit_many
from rvtutorial.sweeps.sweepfile import (
    SweepFile,
    Trial,
    add_trials,
    complete,
    expand,
    job_params,
    new_trials,
    read_record,
    refuse_other_plan,
    write_record,
)


def _final_score(run: Run, metric: str = "f1") -> float | None:
    "A finished run's score on whole validation scenes."
    if run.state != "succeeded":
        return None
    return (run.results.get("validation") or {}).get(metric)


def _score_at(run: Run, epochs: int, metric: str = "f1") -> float | None:
    "A run's score on validation chips on its way, of the first class that is named."
    try:
        log = run.log()
    except FileNotFoundError:
        return None
    rows = log[log["epoch"] == epochs - 1] if "epoch" in log else log
    if not len(rows):
        return None
    column = _first_class(log.columns) + ("_f1" if metric == "iou" else f"_{metric}")
    value = float(rows[column].iloc[-1])
    return value / (2 - value) if metric == "iou" else value  # IoU of an F1


def _first_class(columns: Iterable[str]) -> str:
    "The class that scores are about: the first but for the average, background, null."
    names = [c.removesuffix("_f1") for c in columns if c.endswith("_f1")]
    named = [n for n in names if n not in ("avg", "background", "null")]
    return (named or names)[0]


BROKEN = ("failed", "out of memory", "timed out")  # It will not come further by itself
_FULL = re.compile("no space (is )?left|disk quota|disk is full", re.IGNORECASE)


def _failed_itself(state: str, why: str | None) -> bool:
    "Whether a trial has failed, and not only because the disk was full."
    return state in BROKEN and not _FULL.search(why or "")


def _sweep_lock(
    folder: Path,  # The sweep folder; made if need be
):  # A context
    "Hold a sweep folder, however long another process does."
    folder.mkdir(parents=True, exist_ok=True)
    return locked(folder / ".sweep.lock", math.inf)


class _NotYet(RuntimeError):
    "A decision lacks the result of a trial that is not over."


def _rung_scores(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials: list[Trial],  # Those on this rung
    rung: int,  # Epochs
) -> dict[str, float | None]:  # By trial; None: it failed
    "What the trials of a rung have reached; `_NotYet` when one is still missing."
    found = {}
    for trial in trials:
        run = Run(trial.path(folder))
        ended = run.state == "succeeded"  # with patience, before the rung perhaps
        at = min(rung, len(run.log())) if ended else rung
        found[trial.name] = _score_at(run, at, plan.metric)
        if found[trial.name] is None:
            [seen] = Job(run.path).details()
            if not _failed_itself(seen["state"], seen["why"]):
                raise _NotYet(f"{trial.name} has not reached epoch {rung} yet")
    return found


def _who_goes_on(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials: list[Trial],  # All of them
    place: int,  # Of the rung at which is decided, from 0
) -> list[str]:  # Names
    "The trials that go beyond a rung; decided once, and kept in rungs.json."
    with _sweep_lock(folder):
        book = read_json(folder / "rungs.json", {}, records.RUNGS)
        alive = trials
        for rung in plan.ladder.rungs[: place + 1]:
            if str(rung) not in book:
                scores = _rung_scores(folder, plan, alive, rung)
                going = promoted(scores, plan.ladder.keeps(len(alive)))
                book[str(rung)] = {"scores": scores, "go on": going}
                write_json(folder / "rungs.json", book)
            going = book[str(rung)]["go on"]
            alive = [trial for trial in alive if trial.name in going]
        return [trial.name for trial in alive]


HOOK = "rvtutorial.sweeps.trials:prepare_trial"


def prepare_trial(
    folder: Path,  # The run folder
    params: dict,  # What was submitted
) -> dict | str:  # What to run with, or why it is not needed
    "What a trial's job asks of the sweep folder when it begins."
    folder = Path(folder)
    sweep, name = folder.parent, folder.name
    plan, trials = read_record(sweep)
    reached = _target_reached(sweep, plan, trials)
    if reached:
        return reached
    if plan.early:
        out = _left_behind(sweep, plan, trials, name, params.get("pause"))
        if out:
            return out
    if plan.method == "bayes":
        own = _values_for(sweep, plan, trials, name)
        _note_values(sweep, name, own)
        params = params | job_params(own)
        Run(folder).update("went.job", params=params)
    return params


before = prepare_trial  # queued jobs of version 0.1.0 name it


def _target_reached(folder: Path, plan: SweepFile, trials: list[Trial]) -> str | None:
    "Words about the trial that has reached the sweep's target, if one has."
    for trial in trials if plan.target is not None else []:
        value = _final_score(Run(trial.path(folder)), plan.metric)
        if value is not None and value >= plan.target:
            return f"{trial.name} reached {plan.metric} {value:.3f} of {plan.target:g}"
    return None


def _left_behind(
    folder: Path, plan: SweepFile, trials: list[Trial], name: str, pause: int | None
) -> str | None:
    "Why a trial does not go on to the rung that it is asked for, if it does not."
    rungs = plan.ladder.rungs
    place = rungs.index(pause or rungs[-1])
    try:
        for i in range(place):
            if name not in _who_goes_on(folder, plan, trials, i):
                return f"not among the best after {rungs[i]} epochs"
    except _NotYet as err:
        return f"waits for a decision: {err}"
    return None


def _values_for(folder: Path, plan: SweepFile, trials: list[Trial], name: str) -> dict:
    """Tell the journal what is finished, then ask it for this trial's values.

    Raises ValueError for values that contradict each other.
    """
    enlist(folder, [trial.name for trial in trials])
    tell(folder, _results(folder, plan, trials))
    startup = max(3, min(10, len(trials) // 3))
    own = ask(folder, name, plan.spaces, plan.seed, startup)
    try:
        whole = complete(plan.fixed, own).asdict()
    except ValueError:
        tell(folder, {name: None})
        raise
    return {key: whole[key] for key in own}


def _note_values(folder: Path, name: str, own: dict) -> None:
    "Write the values that a trial was given into trials.csv."
    with _sweep_lock(folder):
        plan, trials = read_record(folder)
        trials = [replace(t, parameters=own) if t.name == name else t for t in trials]
        write_record(folder, plan, trials)


def _results(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials: list[Trial],
) -> dict[str, float | None]:  # By trial
    "Scores of the trials that are over; None for those that failed."
    found = {}
    for trial in trials:
        run = Run(trial.path(folder))
        why = run.manifest.get("went", {}).get("why")
        if run.state == "succeeded" or _failed_itself(run.state, why):
            found[trial.name] = _final_score(run, plan.metric)
    return found


def _submissions(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials: list[Trial],  # Those to run
) -> list[dict[Path, dict]]:  # One submission each: run folder -> parameters
    "The submissions of a sweep that are still to be made, in order."
    own = [t for t in trials if t.folder == t.name]  # the others are borrowed
    if not plan.early:
        return [_params(folder, plan, own)] if own else []
    book, found = read_json(folder / "rungs.json", {}, records.RUNGS), []
    for rung in plan.ladder.rungs:
        if str(rung) in book:
            own = [t for t in own if t.name in book[str(rung)]["go on"]]
        short = [t for t in own if _score_at(Run(t.path(folder)), rung) is None]
        if rung == plan.ladder.rungs[-1]:
            short = [t for t in own if Run(t.path(folder)).state != "succeeded"]
        last = rung == plan.ladder.rungs[-1]
        found.append(_params(folder, plan, short, {} if last else {"pause": rung}))
    return [runs for runs in found if runs]


def _params(folder: Path, plan: SweepFile, trials: list[Trial], more=()) -> dict:
    "Run folder -> parameters of some trials."
    return {
        t.path(folder): job_params(plan.fixed | t.parameters) | dict(more)
        for t in trials
    }


def _needs_hook(plan: SweepFile) -> bool:
    "Whether a sweep's jobs have to ask something before they begin."
    return bool(plan.early) or plan.target is not None or plan.method == "bayes"


def _submit_trials(
    folder: Path,  # The sweep folder, whose record is written
    plan: SweepFile,
    trials: list[Trial],  # Those to run
    every: list[Trial],  # All trials of the sweep
    site: str | Path | Site = "local",
) -> Job | None:  # The last submission; None: nothing was to be done
    "Submit what of a sweep is still to be done; the caller holds the folder's lock."
    reached = _target_reached(folder, plan, every)
    _note_final_states(folder, every, reached)
    if reached:
        return None
    if plan.method == "bayes":
        enlist(folder, [trial.name for trial in every])
    job = None
    for runs in _submissions(folder, plan, trials):
        order = {"after": job} if job else {}
        order |= {"before": HOOK} if _needs_hook(plan) else {}
        job = submit_many(runs, site=site, notebook=_program(plan), **order)
    return job


def _program(plan: SweepFile) -> str:
    "The sweep's job notebook as `submit` takes it: a path, or a name."
    name = plan.program
    return name if "/" in name else name.removesuffix(".ipynb")


def start_sweep(
    folder: Path,  # The sweep folder
    trials,  # As `sweep.run_sweep` takes them
    base: dict | None = None,  # The same in all trials
    site: str | Path | Site = "local",
    reuse: Iterable = (),  # Runs that may stand in for a trial with the same values
    compare: bool | None = None,  # Submit a comparison behind; None: on Slurm only
) -> None:
    "Start a sweep or go on with it; raises what `sweep.run_sweep` raises."
    plan, asked = expand(trials, base)
    new_trials(plan.fixed, asked, [])
    if not (folder / "trials.csv").is_file():
        checked_trials(folder, plan, asked, reuse=reuse)  # before there is a folder
        return record_and_submit(folder, plan, asked, reuse, site, compare)
    old, known = read_record(folder)
    refuse_other_plan(folder, old, plan)
    fresh = new_trials(old.fixed, asked, known)
    fresh = fresh or max(0, (plan.run_cap or 0) - len(known)) * (plan.method == "bayes")
    if fresh:
        names = ", ".join(trial.name for trial in known)
        raise ValueError(f"{folder} has {names}, not {fresh}; use Sweep.extend")
    record_and_submit(folder, old, asked, reuse, site, compare)


def record_and_submit(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    asked: list[dict],  # Parameters of the trials asked for
    reuse: Iterable,  # Runs that may stand in for a trial
    site: str | Path | Site,
    compare: bool | None = None,  # Submit a comparison behind; None: on Slurm only
) -> None:
    "Put what is new on record, then submit what is not done."
    with _sweep_lock(folder):
        there = (folder / "trials.csv").is_file()
        known = read_record(folder)[1] if there else []
        trials = checked_trials(folder, plan, asked, known, reuse)
        write_record(folder, plan, trials)
        job = _submit_trials(folder, plan, trials, trials, site)
    if job and (Site.read(site).queue == "slurm" if compare is None else compare):
        _submit_comparison(folder, trials, site)


def resume_sweep(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials: list[Trial],  # All of them
    site: str | Path | Site | None = None,  # None: where it ran last
    only: Iterable[str] | None = None,  # Names of some trials
) -> None:
    "Submit what is not done."
    with _sweep_lock(folder):
        site = site or last_site(folder, trials)
        some = [t for t in trials if only is None or t.name in only]
        job = _submit_trials(folder, plan, some, trials, site)
    if job and Site.read(site).queue == "slurm":
        _submit_comparison(folder, trials, site)


def wider(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials,  # As `sweep.run_sweep` takes them, or a number of them
) -> tuple[SweepFile, list[dict]]:
    "The plan and the trials of a sweep that gets more of them; ValueError if it cannot."
    if plan.early and (folder / "rungs.json").exists():
        raise ValueError(
            f"{folder} has decided who goes on; new trials want a sweep of their own"
        )
    if isinstance(trials, int) and plan.method != "grid":
        plan = replace(plan, run_cap=plan.run_cap + trials)
        return plan, plan.trials()
    if plan.method == "bayes" or isinstance(trials, int):
        how = "a number of trials" if plan.method == "bayes" else "a list of trials"
        raise ValueError(f"a sweep of method {plan.method} is extended by {how}")
    new, asked = expand(trials)
    fixed = {**plan.fixed, **new.fixed}
    refuse_other_plan(folder, plan, replace(plan, fixed=fixed))
    return plan, asked


def _submit_comparison(
    folder: Path, trials: list[Trial], site: str | Path | Site = "local"
) -> Job:
    "Submit the job that compares all trials, to begin when they are over."
    job = Job([t.path(folder) for t in trials if t.folder == t.name])
    places = [folder / "comparisons" / str(n) for n in range(1, 1000)]
    place = next(path for path in places if not path.exists())
    return submit(place, {"sweep": str(folder)}, site, "compare_runs", after=job)


def _note_final_states(
    folder: Path, trials: list[Trial], reached: str | None = None
) -> None:
    "Say of trials that need no further turn, whose queue is gone, how they have ended."
    own = [trial.path(folder) for trial in trials if trial.folder == trial.name]
    for detail in Job(own).details():
        run = Run(detail["folder"])
        if detail["state"] not in ("lost", "cancelled") or run.state not in LIVE:
            continue
        if run.paused:
            run.update("went", state="paused", why=f"after {run.paused} epochs")
        elif reached:
            run.update("went", state="skipped", why=reached)


WEIGHTS = {  # Bytes of a network's weights for three classes, as a file holds them
    ("unet", None): 1.97e6,
    ("deeplabv3", "resnet50"): 158.9e6,
    ("deeplabv3", "resnet101"): 235.0e6,
}
_SMALL_FILES = 0.3e6  # Notebook, logs, configurations and scores of a run
# Share of a raster that compression leaves: 0.03 to 0.18 and 0.24 to 0.6 were measured
LABELS_LEFT, SCORES_LEFT = 0.1, 0.4


@dataclass(frozen=True)
class _Room:
    "What the runs of a sweep need of a disk, and what it has."

    runs: int  # Still to be made
    each: float  # Bytes that a run leaves
    extra: float  # Bytes while it trains, on top
    free: float  # Bytes

    @property
    def needed(self) -> float:
        "Bytes at the worst moment, with one run at work."
        return self.runs * self.each + (self.extra if self.runs else 0)

    def __repr__(self):
        text = f"{self.runs} runs of {_size(self.each)} need {_size(self.needed)}"
        return f"{text}, {_size(self.free)} are free"


def _size(n: float) -> str:
    "Bytes in words: 12 MB, 1.2 GB."
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _run_size(
    hp: Hyperparams,
    pixels: int = 0,  # Of all validation and test scenes together
    classes: int = 3,  # With null
) -> tuple[float, float]:  # Bytes that stay, and bytes more while it trains
    """How large a run folder gets; other networks count as the largest one.

    Stock Raster Vision keeps no best weights and compresses no rasters.
    """
    key = (hp.model, hp.backbone if hp.model == "deeplabv3" else None)
    weights, stock = WEIGHTS.get(key, max(WEIGHTS.values())), hp.engine == "stock"
    copies = (1 if stock else 2) + (4 if hp.onnx else 2)
    labels, part = (1, 1) if stock else (LABELS_LEFT, SCORES_LEFT)
    scores = {"none": 0, "uint8": 1, "float32": 4}[hp.scores] * classes * part
    hits = 1 if scores else 0  # how often each pixel was predicted, uncompressed
    rasters = pixels * (labels + scores + hits)
    return copies * weights + rasters + _SMALL_FILES, 4 * weights


def _predicted_pixels(fixed: Mapping) -> int:
    "Pixels of the validation and test scenes of a data folder; 0 when unknown."
    from rvtutorial.data.pairing import IMAGE_PATTERN, LABEL_PATTERN, find_splits

    patterns = [fixed.get("image_pattern") or IMAGE_PATTERN]
    patterns += [fixed.get("label_pattern") or LABEL_PATTERN]
    try:
        import rasterio

        splits = find_splits(Path(fixed["data"]), *patterns)
        scenes = [*splits["val"], *splits["test"]]
        with rasterio.open(scenes[0].image) as source:  # others are like it
            return source.width * source.height * len(scenes)
    except (KeyError, TypeError, ValueError, OSError, IndexError):
        return 0


def room_for(
    folder: Path,  # The sweep folder; need not exist
    plan: SweepFile,
    trials: list[Trial],
) -> _Room:
    "What the trials that have not begun need, and what the disk has."
    runs = [Run(t.path(folder)) for t in trials if t.folder == t.name]
    new = [r for r in runs if not (r.path / "train").exists()]
    own = [complete(plan.fixed, t.parameters) for t in trials[:1]]
    each, extra = _run_size(own[0], _predicted_pixels(plan.fixed)) if own else (0, 0)
    there = next(p for p in (folder, *folder.parents) if p.is_dir())
    return _Room(len(new), each, extra, shutil.disk_usage(there).free)


def _refuse_full_disk(
    folder: Path,  # The sweep folder; need not exist
    plan: SweepFile,
    trials: list[Trial],
    room: _Room | None = None,  # None: look
) -> None:
    "Raise ValueError when the runs of a sweep cannot fit on the disk."
    room = room or room_for(folder, plan, trials)
    if room.needed > room.free:
        raise ValueError(
            f"{room!r} on the disk of {folder}. Free some, try fewer values, or "
            f"keep no scores (scores: none)"
        )


def checked_trials(
    folder: Path,  # The sweep folder; need not exist
    plan: SweepFile,
    asked: list[dict],  # Parameters of the trials asked for
    known: Iterable[Trial] = (),  # Trials on record
    reuse: Iterable = (),  # Runs that may stand in for a trial
) -> list[Trial]:  # Known and new
    "All trials of a sweep; ValueError for what its notebook or the disk cannot take."
    trials = add_trials(folder, plan, list(known), asked, reuse)
    notebook = job_notebook(_program(plan))
    for trial in trials:
        check_params(notebook, job_params(plan.fixed | trial.parameters))
    _refuse_full_disk(folder, plan, trials)
    return trials


def _gpus(
    gres: str | None,  # As a site file has it: "gpu:1", "gpu:a100:2"
) -> int:
    "How many GPUs a job asks for."
    count = 0
    for part in (gres or "").split(","):
        found = re.fullmatch(
            r"(gres/)?gpu(:[^:,()]*[^\d:,()][^:,()]*)?(:(\d+))?(\(.*\))?", part
        )
        count += int(found[4] or 1) if found else 0
    return count


def worked(
    run: Run,
) -> float:  # Seconds
    "How long a run was at work, all its attempts together, the present one too."
    total, state = 0.0, run.state
    for attempt in run.manifest.get("went", {}).get("attempts") or []:
        begun = datetime.fromisoformat(attempt["started"])
        now = datetime.now(UTC) if state == "running" else begun
        end = datetime.fromisoformat(attempt["ended"]) if attempt.get("ended") else now
        total += max(0.0, (end - begun).total_seconds())
    return total


def _site_of(run: Run) -> dict:
    "The site that a run was submitted to."
    job = run.manifest.get("went", {}).get("job") or {}
    return Submission(job.get("submission") or run.path).job.get("site") or {}


def _trouble(run: Run) -> str | None:
    "Why the records of a run and of its submission cannot be read; None if they can."
    try:
        _site_of(run)
    except Unreadable as error:
        return str(error)
    return None


def last_site(
    folder: Path,  # The sweep folder
    trials: list[Trial],
) -> Site:
    "The site that a sweep was last submitted to; `local` before it was."
    for trial in reversed(trials):
        found = _site_of(Run(trial.path(folder)))
        if found and trial.folder == trial.name:
            try:
                return Site(**found)
            except TypeError as err:  # of another version
                raise ValueError(
                    f"the site of {trial.name} is not known: {err}"
                ) from None
    return Site.read("local")


def gpu_minutes(
    runs: Iterable[Run],
) -> float:
    "Minutes times GPUs of some runs; a run on a GPU that nobody asked for counts one."
    total = 0.0
    for run in (run for run in runs if not _trouble(run)):
        device = (run.manifest.get("made_with") or {}).get("device", "cpu")
        count = _gpus(_site_of(run).get("gres")) or int(str(device).startswith("cuda"))
        total += count * worked(run) / 60
    return total


@dataclass(frozen=True)
class SweepProgress:
    "How a sweep is getting on; prints as one line."

    states: dict  # State -> how many trials
    best: str  # The best finished trial and its score with interval; or empty
    elapsed: float  # Seconds that the runs have worked, all together
    remaining: float | None  # Seconds, by the speed so far; None: unknown
    gpu_minutes: float

    @property
    def over(self) -> bool:
        "Whether nothing is queued or running."
        return not set(LIVE) & set(self.states)

    def __repr__(self):
        parts = [", ".join(f"{n} {state}" for state, n in self.states.items())]
        parts += [f"best so far {self.best}"] if self.best else []
        parts += [f"{_clock(self.elapsed)} worked"]
        if not self.over and self.remaining is not None:
            parts += [f"about {_clock(self.remaining)} left"]
        parts += [f"{self.gpu_minutes:.0f} GPU-minutes"] if self.gpu_minutes else []
        return "; ".join(parts)


def _clock(seconds: float) -> str:
    "1:05 or 2:03:10."
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress(
    folder: Path,  # The sweep folder
    plan: SweepFile,
    trials: list[Trial],
) -> SweepProgress:
    "States, best so far, time and cost of a sweep, from its run folders and the queue."
    runs = {t.name: Run(t.path(folder)) for t in trials}
    details = Job([run.path for run in runs.values()]).details()
    states = [detail["state"] for detail in details]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    own = [
        run for t, run in zip(trials, runs.values(), strict=True) if t.folder == t.name
    ]
    own = [run for run in own if not _trouble(run)]
    seconds = sum(map(worked, own))
    left = _seconds_left(plan, details, seconds, runs)
    return SweepProgress(
        counts, _best_so_far(runs, plan.metric), seconds, left, gpu_minutes(own)
    )


def _best_so_far(runs: Mapping[str, Run], metric: str) -> str:
    "The finished run with the highest score, and its interval, in words."
    scored = {}
    for name, run in runs.items():
        with contextlib.suppress(Unreadable):
            value = _final_score(run, metric)
            scored |= {} if value is None else {name: value}
    if not scored:
        return ""
    name = max(scored, key=scored.get)
    return f"{name}: {jackknife(table(counts_of(runs[name])), metric)!r}"


def _seconds_left(plan, details: list[dict], seconds: float, runs) -> float | None:
    "Wall time of the epochs that are left, at the speed of those that are done."
    done = sum(d["done"] for d in details)
    whole = [d["epochs"] or 0 for d in details]
    planned = plan.ladder.epochs(len(details)) if plan.early else sum(whole)
    if not done or not seconds:
        return None
    site = next((_site_of(run) for run in runs.values() if not _trouble(run)), {})
    abreast = min(site.get("parallel") or 1, len(details))
    abreast = abreast if site.get("queue") == "slurm" else 1
    return max(0, planned - done) * seconds / done / abreast


def status_table(
    folder: Path,  # The sweep folder
    trials: list[Trial],
) -> pd.DataFrame:  # Index: name of the trial
    "How far each trial is: state, epochs done and asked for, seconds, run folder, why."
    runs = {trial.name: Run(trial.path(folder)) for trial in trials}
    details = Job([run.path for run in runs.values()]).details()
    rows = []
    for trial, detail in zip(trials, details, strict=True):
        run, stages = runs[trial.name], []
        if detail["state"] != "unreadable" and not run.trouble:
            stages = run.manifest.get("went", {}).get("stages") or []
        row = {"state": detail["state"], "epochs": detail["done"]}
        row |= {"of": detail["epochs"]}
        row["seconds"] = round(sum(stage.get("seconds") or 0 for stage in stages), 1)
        row |= trial.parameters if trial.name.startswith("trial-") else {}
        rows.append(row | {"folder": trial.folder, "why": detail["why"]})
    return pd.DataFrame(rows, index=pd.Index(runs, name="trial"))


def _teller(quiet: bool):
    "A function that shows a SweepProgress: in one line where there is one, else when it changed."
    line = None if quiet else notebook_line()
    live, states = sys.stderr.isatty(), []

    def say(now: SweepProgress):
        if line:
            line.write(f"{now!r}")
            line.flush()
        elif live and not quiet:
            end = "\n" if now.over else ""
            print(f"\r\x1b[K{now!r}", end=end, file=sys.stderr, flush=True)
        elif not quiet and [now.states] != states:
            print(f"{now!r}", file=sys.stderr, flush=True)
        states[:] = [now.states]

    return say


def follow(
    look,  # Called for a SweepProgress, again and again
    every: float = 1.0,  # Seconds between two looks
    timeout: float | None = None,  # Seconds; the sweep itself goes on
    quiet: bool = False,
) -> SweepProgress:  # The last one
    "Show the progress of a sweep until it is over; TimeoutError when that takes too long."
    start, say = time.monotonic(), _teller(quiet)
    while True:
        now = look()
        say(now)
        if now.over:
            return now
        if timeout is not None and time.monotonic() - start > timeout:
            raise TimeoutError(f"still at work after {timeout:g} s: {now!r}")
        time.sleep(every)


# --- runs for other programs: CSV, TensorBoard, Weights & Biases


def _history(
    run: Run,
) -> pd.DataFrame:  # One line an epoch; numbers only, times in seconds
    "The curves of a run; without lines when it has not trained yet."
    try:
        log = run.log()
    except FileNotFoundError:
        return pd.DataFrame({"epoch": []})
    for name in log.select_dtypes(object).columns:
        log[name] = pd.to_timedelta(log[name], errors="coerce").dt.total_seconds()
    return log


def _asked_of(run: Run) -> dict:
    "The hyperparameters of a run, as trackers take them."
    try:
        given = run.hyperparams
    except FileNotFoundError:  # it has not begun
        return {}
    plain = {
        k: v if isinstance(v, (int, float, str)) else str(v) for k, v in given.items()
    }
    return {k: v for k, v in plain.items() if given[k] is not None}


def _outcome(
    run: Run,
) -> dict[str, float]:  # Such as validation/f1
    "The scores of a run on whole scenes; empty before it is evaluated."
    found = {}
    for split, scores in run.results.items():
        for name, value in scores.items():
            if isinstance(value, (int, float)):
                found[f"{split}/{name}"] = value
    return found


def _run_table(
    runs,  # As `named_runs` takes them
) -> pd.DataFrame:  # Index: run
    "One line a run: state, hyperparameters, and scores on whole scenes."
    rows = {}
    for name, run in named_runs(runs).items():
        try:
            rows[name] = {"state": run.state, **_asked_of(run), **_outcome(run)}
        except Unreadable as error:
            rows[name] = {"state": f"unreadable: {error}"}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis("run")


def _to_csv(
    runs,  # As `named_runs` takes them
    folder: str | Path,  # Where the two files go
) -> list[Path]:  # history.csv and summary.csv
    "Write the curves of all runs below each other, and the list of runs."
    folder, found = Path(folder), named_runs(runs)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_history(run).assign(run=name) for name, run in found.items()]
    curves = pd.concat([part for part in parts if len(part)] or parts[:1])
    curves = curves[["run", *(c for c in curves.columns if c != "run")]]
    with atomic_path(folder / "history.csv") as path:
        curves.to_csv(path, index=False)
    with atomic_path(folder / "summary.csv") as path:
        _run_table(found).to_csv(path)
    return [folder / "history.csv", folder / "summary.csv"]


def _times(
    run: Run,
    curves: pd.DataFrame,  # From `_history`
) -> list[float]:  # Seconds since 1970, one an epoch
    "When the epochs ended, as far as can be told from the run's start."
    attempts = run.manifest.get("went", {}).get("attempts") or [{}]
    start = attempts[0].get("started")
    begun = datetime.fromisoformat(start).timestamp() if start else 0.0
    spent = [curves[c] for c in ("train_time", "valid_time") if c in curves]
    each = sum(spent) if spent else pd.Series(1.0, curves.index)
    return list(begun + each.fillna(0).cumsum())


def _to_tensorboard(
    runs,  # As `named_runs` takes them
    folder: str | Path,  # For `tensorboard --logdir`; each run gets a folder in it
) -> list[Path]:  # The folders of the runs
    """Write event files; ImportError says what is missing.

    A name that is no name of a folder (`a/b`, `../x`) is made one, with a digest behind
    it. ValueError where a folder of that name holds other things than event files.
    """
    made = []
    for name, run in named_runs(runs).items():
        place = Path(folder) / safe_name(name)
        part = place.with_name(f".{place.name}.part")
        _delete_events(place)
        _delete_events(part)
        _write_events(run, part)
        _delete_events(place)
        os.replace(part, place)
        made.append(place)
    return made


def _delete_events(folder: Path) -> None:
    "Delete a folder of event files; ValueError, and all stays, where it holds anything else."
    if not os.path.lexists(folder):
        return
    found = [] if folder.is_symlink() else sorted(folder.rglob("*"))
    others = [p for p in found if p.is_symlink() or not (p.is_dir() or _EVENTS(p.name))]
    if others or folder.is_symlink() or not folder.is_dir():
        what = f"holds {others[0].name}" if others else "is a link or a file"
        raise ValueError(
            f"{folder} {what}, and only a folder of event files is replaced: choose "
            f"another folder for TensorBoard's files"
        )
    shutil.rmtree(folder)


_EVENTS = re.compile(r"events\.out\..+").fullmatch


def _write_events(run: Run, folder: Path) -> None:
    "The event files of one run."
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("event files need torch and tensorboard") from None
    curves = _history(run)
    with SummaryWriter(folder) as writer:
        for row, when in zip(
            curves.to_dict("records"), _times(run, curves), strict=True
        ):
            step = int(row.pop("epoch"))
            for name, value in row.items():
                if pd.notna(value):
                    writer.add_scalar(_grouped(name), value, step, walltime=when)
        if _outcome(run):
            writer.add_hparams(_asked_of(run), _outcome(run), run_name=".")


def _grouped(name: str) -> str:
    "A column's name with the group it is shown in: train_loss becomes train/loss."
    first, _, rest = name.partition("_")
    group = {"train": "train", "val": "validation", "valid": "validation"}.get(first)
    return f"{group}/{rest}" if group else f"validation/{name}"


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    "Set environment variables for a while."
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update(
                {name: value}
            )


def _wandb():
    "The package, or an ImportError that says how to get it."
    try:
        import wandb
    except ImportError:
        raise ImportError(
            "Weights & Biases is not installed: pip install wandb. Or write "
            "TensorBoard's files, or CSV, which need nothing more"
        ) from None
    return wandb


def _run_id(run: Run) -> str:
    "An id that stays the same for a run."
    text = f"{run.path}\n{sorted(_asked_of(run).items())}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _to_wandb(
    runs,  # As `named_runs` takes them
    folder: str | Path,  # Where the offline runs go, in a folder `wandb`
    project: str = "rvtutorial",
    online: bool = False,  # Upload now; needs an account and the network
) -> list[Path]:  # The folders of the runs
    "Write runs for Weights & Biases; ImportError says what is missing."
    mode = "online" if online else "offline"
    quiet = {"WANDB_MODE": mode, "WANDB_ERROR_REPORTING": "false"}
    quiet |= {
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = []
    with _environment(**quiet):
        wandb = _wandb()
        for name, run in named_runs(runs).items():
            settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True)
            begun = wandb.init(
                project=project, name=name, id=_run_id(run), dir=str(folder), mode=mode,
                config=_asked_of(run), settings=settings, reinit="finish_previous",
            )  # fmt: skip
            for row in _history(run).to_dict("records"):
                step = int(row.pop("epoch"))
                begun.log({_grouped(k): v for k, v in row.items() if pd.notna(v)}, step)
            begun.summary.update(_outcome(run) | {"state": run.state})
            made.append(Path(begun.dir).parent)
            begun.finish()
    return made


def _track(
    runs,  # A run, a path, a list of them, name -> run, or a sweep
    folder: str | Path,  # Where the files go
    csv: bool = True,
    tensorboard: bool = False,
    wandb: bool = False,  # Offline
    online: bool = False,  # With wandb: upload at once
    project: str = "rvtutorial",  # With wandb
) -> dict[str, list[Path]]:  # What was written, by kind
    "Carry runs into trackers; nothing leaves the machine unless `online` is true."
    if online and not wandb:
        raise ValueError("online is for Weights & Biases: add wandb=True")
    folder, found, made = Path(folder), named_runs(runs), {}
    if csv:
        made["csv"] = _to_csv(found, folder)
    if tensorboard:
        made["tensorboard"] = _to_tensorboard(found, folder / "tensorboard")
    if wandb:
        made["wandb"] = _to_wandb(found, folder, project, online)
    return made

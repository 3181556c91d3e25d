"""The folder of a sweep: what a job of a sweep decides when it begins, how far a sweep is and what it costs, and its runs for CSV, TensorBoard and Weights & Biases."""

import contextlib
import hashlib
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from humanize import naturalsize
from tqdm import tqdm

from rvtutorial.core import records
from rvtutorial.core.files import atomic_path, locked, safe_name
from rvtutorial.core.finding import is_sweep, named_runs
from rvtutorial.core.records import Unreadable, read_json, write_json
from rvtutorial.hpc.job import Job, JobNotebook, notebook_line
from rvtutorial.hpc.local_queue import Submission
from rvtutorial.hpc.scheduler import LIVE
from rvtutorial.hpc.sites import Site
from rvtutorial.metrics import counting
from rvtutorial.metrics.intervals import jackknife
from rvtutorial.metrics.leaderboard import counts_of
from rvtutorial.runs import Hyperparams, Run, differences
from rvtutorial.slurm import submit, submit_many
from rvtutorial.sweeps import sweepfile
from rvtutorial.sweeps.space import Journal
from rvtutorial.sweeps.sweepfile import SETTINGS, SweepFile, Trial, complete


def _final_score(run: Run, metric: str = "f1") -> float | None:
    "A finished run's score on whole validation scenes."
    if run.state != "succeeded":
        return None
    if metric in counting.MEANS:  # run.json has the scores of one class only
        try:
            value = jackknife(counts_of(run), metric).value
        except FileNotFoundError:
            return None
        return None if np.isnan(value) else value
    return (run.results.get("validation") or {}).get(metric)


def _score_at(run: Run, epochs: int, metric: str = "f1") -> float | None:
    """A run's score on validation chips on its way, of the first class that is named.

    A mean over classes is that of their F1, which is what the log has.
    """
    try:
        log = run.log()
    except FileNotFoundError:
        return None
    rows = log[log["epoch"] == epochs - 1] if "epoch" in log else log
    if not len(rows):
        return None
    names = [c.removesuffix("_f1") for c in log if c.endswith("_f1")]
    if metric in counting.MEANS:
        mean, _, score = metric.partition("_")
        aside = ("avg", "null") + ("background",) * (mean == "foreground")
        each = [float(rows[f"{n}_f1"].iloc[-1]) for n in names if n not in aside]
        return float(np.mean([v / (2 - v) if score == "iou" else v for v in each]))
    named = [n for n in names if n not in ("avg", "background", "null")]
    column = (named or names)[0] + ("_f1" if metric == "iou" else f"_{metric}")
    value = float(rows[column].iloc[-1])
    return value / (2 - value) if metric == "iou" else value  # IoU of an F1


BROKEN = ("failed", "out of memory", "timed out")  # It will not come further by itself
_FULL = re.compile("no space (is )?left|disk quota|disk is full", re.IGNORECASE)


def _failed_itself(state: str, why: str | None) -> bool:
    "Whether a trial has failed, and not only because the disk was full."
    return state in BROKEN and not _FULL.search(why or "")


def _job_params(params: dict) -> dict:
    "Parameters as a job notebook takes them: lists as text, None as the word `none`."
    words = {}
    for key, value in params.items():
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        if value is None and key not in SETTINGS:
            value = "none"  # for a job, None means the preset's own value
        words[key] = value
    return words


def _sweep_lock(folder: Path):
    "Hold a folder, which is made if need be, however long another process does."
    folder.mkdir(parents=True, exist_ok=True)
    return locked(folder / ".sweep.lock", math.inf)


class _NotYet(RuntimeError):
    "A decision lacks the result of a trial that is not over."


HOOK = "rvtutorial.sweeps.folder:prepare_trial"


class SweepFolder:
    "A sweep folder: its plan and trials, what is still to be run, and how far it is."

    def __init__(
        self,
        folder: str | Path,
        plan: SweepFile | None = None,  # None: plan and trials that are on record
        trials: Iterable[Trial] = (),  # In the order they were asked for
    ):
        self.folder = Path(folder).expanduser().resolve()
        if plan is None:
            plan, trials = SweepFile.on_record(self.folder)
        self.plan, self.trials, self.fixed = plan, list(trials), plan.fixed

    def in_order(self) -> list[Trial]:
        "The trials in the order of their values: numbers by size and before words."

        def place(trial):
            found = [
                (isinstance(v, (int, float)), v) for v in trial.parameters.values()
            ]
            return [(0, v, "") if number else (1, 0, str(v)) for number, v in found]

        return sorted(self.trials, key=place)

    def runs(self, finished: bool = False) -> dict[str, Run]:
        "The run of each trial by the trial's name, in the order of its values."
        runs = {t.name: self._run(t) for t in self.in_order()}
        done = {name: run for name, run in runs.items() if run.state == "succeeded"}
        return done if finished else runs

    def _run(self, trial: Trial) -> Run:
        return Run(trial.path(self.folder))

    def own_trials(self) -> list[Trial]:
        "The trials whose run is not borrowed from elsewhere."
        return [trial for trial in self.trials if trial.folder == trial.name]

    def write(self) -> None:
        self.plan.write(self.folder, self.trials)

    # --- which trials there are

    @classmethod
    def asked(
        cls,
        folder: Path,
        trials,  # As `sweep.run_sweep` takes them
        base: dict | None = None,  # The same in all trials
        reuse: Iterable = (),  # Runs that may stand in for a trial
    ) -> "SweepFolder":
        "The sweep that starting these trials leads to; nothing is written."
        plan, asked = SweepFile.expand(trials, base)
        plan.new_trials(asked, [])
        if not is_sweep(Path(folder)):
            return cls(folder, plan).with_trials(plan, asked, reuse)
        there = cls(folder)
        there._refuse_other(plan)
        known = there.trials
        fresh = there.plan.new_trials(asked, known)
        if plan.method == "bayes":
            fresh = max(0, plan.run_cap - len(known))
        if fresh:
            names = ", ".join(trial.name for trial in known)
            raise ValueError(
                f"{there.folder} has {names}, not {fresh}; use Sweep.extend"
            )
        return there.with_trials(there.plan, asked, reuse)

    def with_trials(
        self, plan: SweepFile, asked: list[dict], reuse: Iterable = ()
    ) -> "SweepFolder":
        "Those asked for too; ValueError for what the notebook or the disk cannot take."
        added = []
        if plan.method == "bayes":
            numbers = range(len(self.trials) + 1, (plan.run_cap or 0) + 1)
            added = [Trial(f"trial-{n}", f"trial-{n}", {}) for n in numbers]
        else:
            fresh = plan.new_trials(asked, self.trials)
            every = [trial.parameters for trial in self.trials] + fresh
            names = sweepfile.trial_names(every)[len(self.trials) :]
            digests = {_digest(self._run(trial)) for trial in self.trials} - {None}
            for name, own in zip(names, fresh, strict=True):
                lent = _lent(complete(plan.fixed, own).asdict(), reuse, digests)
                place = os.path.relpath(lent, self.folder) if lent else name
                added.append(Trial(name, place, own))
        wider = type(self)(self.folder, plan, [*self.trials, *added])
        book = JobNotebook(wider.program)
        for trial in wider.trials:
            book.check(_job_params(plan.fixed | trial.parameters))
        room = wider.room()
        if not room.enough:
            raise ValueError(
                f"{room!r} on the disk of {self.folder}. Free some, try fewer values, "
                f"or keep no scores (scores: none)"
            )
        return wider

    def _refuse_other(self, new: SweepFile) -> None:
        "Raise ValueError when runs would differ in more than what is tried."
        old = self.plan
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
                f"{self.folder} keeps other values fixed ({listed}); runs that differ "
                f"in more than what is tried cannot be compared. Give this sweep its "
                f"own folder"
            )

    def room(self) -> "_Room":
        "What the runs that have not begun need of the disk, and what it has."
        places = [trial.path(self.folder) for trial in self.own_trials()]
        new = sum(not (place / "train").exists() for place in places)
        each, extra = 0, 0
        if self.trials:
            hp = complete(self.fixed, self.trials[0].parameters)
            each, extra = _run_size(hp, _predicted_pixels(self.fixed))
        there = next(p for p in (self.folder, *self.folder.parents) if p.is_dir())
        return _Room(new, each, extra, shutil.disk_usage(there).free)

    # --- running them

    @classmethod
    def start(
        cls, folder: Path, trials, base=None, site="local", reuse=(), compare=None
    ) -> "SweepFolder":
        "Start a sweep or go on with it, as `sweep.run_sweep` says."
        folder = Path(folder).expanduser().resolve()
        found = None if is_sweep(folder) else cls.asked(folder, trials, base, reuse)
        with _sweep_lock(folder):
            if is_sweep(folder):  # perhaps of another process, by now
                found = cls.asked(folder, trials, base, reuse)
            found.write()
            found.submit_trials(found.trials, site, compare)
        return cls(folder)

    def resume(
        self,
        site: str | Path | Site | None = None,  # None: where it ran last
        only: Iterable[str] | None = None,  # Names of some trials
    ) -> "SweepFolder":
        "Queue what is not done."
        with _sweep_lock(self.folder):
            some = [t for t in self.trials if only is None or t.name in only]
            self.submit_trials(some, site or self._last_site())
        return type(self)(self.folder)

    def extend(
        self,
        trials,  # As `run_sweep` takes them, or a number where they are drawn
        reuse: Iterable = (),  # Runs that may stand in for a trial with the same values
        site: str | Path | Site | None = None,  # None: where it ran last
    ) -> "SweepFolder":
        "Add trials, and queue what is not done."
        plan, method = self.plan, self.plan.method
        if plan.early and (self.folder / "rungs.json").exists():
            raise ValueError(
                f"{self.folder} has decided who goes on; new trials want a sweep of "
                f"their own"
            )
        if isinstance(trials, int) and method != "grid":
            plan = replace(plan, run_cap=plan.run_cap + trials)
            asked = plan.trials()
        elif method == "bayes" or isinstance(trials, int):
            how = "a number of trials" if method == "bayes" else "a list of trials"
            raise ValueError(f"a sweep of method {method} is extended by {how}")
        else:
            new, asked = SweepFile.expand(trials)
            self._refuse_other(replace(plan, fixed={**plan.fixed, **new.fixed}))
        with _sweep_lock(self.folder):
            wider = type(self)(self.folder).with_trials(plan, asked, reuse)
            wider.write()
            wider.submit_trials(wider.trials, site or self._last_site())
        return type(self)(self.folder)

    @property
    def program(self) -> str:
        "The sweep's job notebook as `submit` takes it: a path, or a name."
        name = self.plan.program
        return name if "/" in name else name.removesuffix(".ipynb")

    def submit_trials(
        self, some: list[Trial], site, compare: bool | None = None
    ) -> None:
        "Submit what of some trials is still to be done; the caller holds the lock."
        plan, reached, job = self.plan, self.target_reached(), None
        self._note_final_states(reached)
        if reached:
            return
        if plan.method == "bayes":
            Journal(self.folder).enlist([trial.name for trial in self.trials])
        asks = plan.early or plan.target is not None or plan.method == "bayes"
        for runs in [*self._submissions([t for t in some if t.folder == t.name])]:
            order = {"after": job} if job else {}
            order |= {"before": HOOK} if asks else {}
            job = submit_many(runs, site=site, notebook=self.program, **order)
        if job and (Site.read(site).queue == "slurm" if compare is None else compare):
            places = (self.folder / "comparisons" / str(n) for n in range(1, 1000))
            place = next(path for path in places if not path.exists())
            behind = Job([trial.path(self.folder) for trial in self.own_trials()])
            sweep = {"sweep": str(self.folder)}
            submit(place, sweep, site, "compare_runs", after=behind)

    def _submissions(self, own: list[Trial]) -> Iterable[dict[Path, dict]]:
        "Run folder -> parameters of each submission that is to be made, in order."
        ladder, book = self.plan.ladder, {}
        if ladder:
            book = read_json(self.folder / "rungs.json", {}, records.RUNGS)
        for rung in ladder.rungs if ladder else [None]:
            if str(rung) in book:
                own = [t for t in own if t.name in book[str(rung)]["go on"]]
            some, more = own, {}
            if ladder and rung == ladder.rungs[-1]:
                some = [t for t in own if self._run(t).state != "succeeded"]
            elif ladder:
                some = [t for t in own if _score_at(self._run(t), rung) is None]
                more = {"pause": rung}
            if some:
                yield {
                    t.path(self.folder): _job_params(self.fixed | t.parameters) | more
                    for t in some
                }

    def _note_final_states(self, reached: str | None) -> None:
        "Say how trials have ended that need no further turn and whose queue is gone."
        for detail in Job([t.path(self.folder) for t in self.own_trials()]).details():
            run = Run(detail["folder"])
            if detail["state"] not in ("lost", "cancelled") or run.state not in LIVE:
                continue
            if run.paused:
                run.update("went", state="paused", why=f"after {run.paused} epochs")
            elif reached:
                run.update("went", state="skipped", why=reached)

    def _last_site(self) -> Site:
        "The site that the sweep was last submitted to; `local` before it was."
        for trial in reversed(self.own_trials()):
            if found := _site_of(self._run(trial)):
                try:
                    return Site(**found)
                except TypeError as err:  # of another version
                    raise ValueError(
                        f"the site of {trial.name} is not known: {err}"
                    ) from None
        return Site.read("local")

    # --- what a job asks

    def target_reached(self) -> str | None:
        "Words about the trial that has reached the sweep's target, if one has."
        metric, target = self.plan.metric, self.plan.target
        for trial in self.trials if target is not None else []:
            value = _final_score(self._run(trial), metric)
            if value is not None and value >= target:
                return f"{trial.name} reached {metric} {value:.3f} of {target:g}"
        return None

    def _rung_scores(self, trials: list[Trial], rung: int) -> dict[str, float | None]:
        "What trials have reached at a rung, None if they failed; or `_NotYet`."
        found = {}
        for trial in trials:
            run = self._run(trial)
            ended = run.state == "succeeded"  # with patience, before the rung perhaps
            at = min(rung, len(run.log())) if ended else rung
            found[trial.name] = _score_at(run, at, self.plan.metric)
            if found[trial.name] is None:
                [seen] = Job(run.path).details()
                if not _failed_itself(seen["state"], seen["why"]):
                    raise _NotYet(f"{trial.name} has not reached epoch {rung} yet")
        return found

    def who_goes_on(self, place: int) -> list[str]:
        "The trials that go beyond a rung; decided once, and kept in rungs.json."
        ladder, alive = self.plan.ladder, self.trials
        with _sweep_lock(self.folder):
            book = read_json(self.folder / "rungs.json", {}, records.RUNGS)
            for rung in ladder.rungs[: place + 1]:
                if str(rung) not in book:
                    scores = self._rung_scores(alive, rung)
                    book[str(rung)] = {"scores": scores, "go on": ladder.best(scores)}
                    write_json(self.folder / "rungs.json", book)
                alive = [t for t in alive if t.name in book[str(rung)]["go on"]]
        return [trial.name for trial in alive]

    def values_for(self, name: str) -> dict:
        "Tell the journal what is finished, then ask it for a trial's values."
        plan, journal, found = self.plan, Journal(self.folder), {}
        journal.enlist([trial.name for trial in self.trials])
        for trial in self.trials:
            run = self._run(trial)
            why = run.manifest.get("went", {}).get("why")
            if run.state == "succeeded" or _failed_itself(run.state, why):
                found[trial.name] = _final_score(run, plan.metric)
        journal.tell(found)
        startup = max(3, min(10, len(self.trials) // 3))
        own = journal.ask(name, plan.spaces, plan.seed, startup)
        try:
            whole = complete(plan.fixed, own).asdict()
        except ValueError:  # they contradict each other
            journal.tell({name: None})
            raise
        return {key: whole[key] for key in own}

    # --- how far it is

    def status(self) -> pd.DataFrame:  # Index: name of the trial
        "How far each trial is: state, epochs done and asked for, seconds, run folder."
        runs, trials, rows = self.runs(), self.in_order(), []
        details = Job([run.path for run in runs.values()]).details()
        for trial, detail in zip(trials, details, strict=True):
            run, stages = runs[trial.name], []
            if detail["state"] != "unreadable" and not run.trouble:
                stages = run.manifest.get("went", {}).get("stages") or []
            seconds = sum(stage.get("seconds") or 0 for stage in stages)
            row = {"state": detail["state"], "epochs": detail["done"]}
            row |= {"of": detail["epochs"], "seconds": round(seconds, 1)}
            row |= trial.parameters if trial.name.startswith("trial-") else {}
            rows.append(row | {"folder": trial.folder, "why": detail["why"]})
        return pd.DataFrame(rows, index=pd.Index(runs, name="trial"))

    def progress(self) -> "_Progress":
        "States, best so far with its interval, time worked and left, GPU-minutes."
        now = type(self)(self.folder)  # jobs may have noted more meanwhile
        runs, plan = now.runs(), now.plan
        details = Job([run.path for run in runs.values()]).details()
        states = [detail["state"] for detail in details]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        own = [self._run(trial) for trial in now.own_trials()]
        scored, best = {}, ""
        for name, run in runs.items():
            with contextlib.suppress(Unreadable):
                value = _final_score(run, plan.metric)
                scored |= {} if value is None else {name: value}
        if scored:
            name = max(scored, key=scored.get)
            interval = jackknife(counts_of(runs[name]), plan.metric)
            best = f"{name}: {interval!r}"
        seconds, left = sum(run.worked for run, _ in _readable(own)), None
        done = sum(d["done"] for d in details)
        planned = sum(d["epochs"] or 0 for d in details)
        planned = plan.ladder.epochs(len(details)) if plan.early else planned
        if done and seconds:  # the epochs that are left at the speed of those done
            site = next((site for _, site in _readable(runs.values())), {})
            abreast = min(site.get("parallel") or 1, len(details))
            abreast = abreast if site.get("queue") == "slurm" else 1
            left = max(0, planned - done) * seconds / done / abreast
        return _Progress(counts, best, seconds, left, gpu_minutes(own))

    def follow(
        self,
        every: float = 1.0,  # Seconds between two looks
        timeout: float | None = None,  # Seconds; the sweep itself goes on
        quiet: bool = False,
    ) -> "_Progress":  # The last one
        "Show the progress until it is over; TimeoutError when that takes too long."
        start, before, live = time.monotonic(), None, sys.stderr.isatty()
        line = None if quiet else notebook_line()
        while True:
            now = self.progress()
            if line:
                line.write(f"{now!r}")
                line.flush()
            elif live and not quiet:
                end = "\n" if now.over else ""
                print(f"\r\x1b[K{now!r}", end=end, file=sys.stderr, flush=True)
            elif now.states != before and not quiet:
                print(f"{now!r}", file=sys.stderr, flush=True)
            before = now.states
            if now.over:
                return now
            if timeout is not None and time.monotonic() - start > timeout:
                raise TimeoutError(f"still at work after {timeout:g} s: {now!r}")
            time.sleep(every)


def prepare_trial(
    folder: Path,  # The run folder
    params: dict,  # What was submitted
) -> dict | str:  # What to run with, or why it is not needed
    "What a trial's job asks of the sweep folder when it begins."
    folder = Path(folder)
    sweep, name = SweepFolder(folder.parent), folder.name
    if reached := sweep.target_reached():
        return reached
    if sweep.plan.early:
        rungs = sweep.plan.ladder.rungs
        try:
            for place in range(rungs.index(params.get("pause") or rungs[-1])):
                if name not in sweep.who_goes_on(place):
                    return f"not among the best after {rungs[place]} epochs"
        except _NotYet as err:
            return f"waits for a decision: {err}"
    if sweep.plan.method == "bayes":
        own = sweep.values_for(name)
        with _sweep_lock(sweep.folder):
            now = SweepFolder(sweep.folder)
            for i, trial in enumerate(now.trials):
                if trial.name == name:
                    now.trials[i] = replace(trial, parameters=own)
            now.write()
        params = params | _job_params(own)
        Run(folder).update("went.job", params=params)
    return params


before = prepare_trial  # queued jobs of version 0.1.0 name it


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

    @property
    def enough(self) -> bool:
        return self.needed <= self.free

    def __repr__(self):
        each, needed, free = map(naturalsize, (self.each, self.needed, self.free))
        return f"{self.runs} runs of {each} need {needed}, {free} are free"


_WEIGHTS = {  # Bytes of a network's weights for three classes, as a file holds them
    ("unet", None): 1.97e6,
    ("unet", "efficientnet-lite0"): 21.1e6,
    ("deeplabv3", "resnet50"): 158.9e6,
    ("deeplabv3", "resnet101"): 235.0e6,
    ("segmentationcnn", None): 4.6e6,
    ("courseunet", None): 7.5e6,
    ("fcn", "resnet50"): 131.9e6,
    ("fcn", "resnet101"): 208.0e6,
}


def _run_size(hp: Hyperparams, pixels: int) -> tuple[float, float]:
    """Bytes of a run folder that stay, and bytes more while it trains.

    Other networks count as the largest one, pixels are those of all validation and test
    scenes. Stock Raster Vision keeps no best weights and compresses no rasters.
    """
    encoder = hp.backbone if hp.model in ("deeplabv3", "fcn") else hp.encoder
    key = (hp.hubconf or hp.model, encoder)
    weights, stock = _WEIGHTS.get(key, max(_WEIGHTS.values())), hp.engine == "stock"
    weights *= ((hp.embedding_size or 64) / 64) ** 2 * 4.0 ** ((hp.n_encoders or 2) - 2)
    copies = (1 if stock else 2) + (4 if hp.onnx else 2)
    # compression leaves 0.03 to 0.18 of labels and 0.24 to 0.6 of scores, measured
    labels, part = (1, 1) if stock else (0.1, 0.4)
    scores = {"none": 0, "uint8": 1, "float32": 4}[hp.scores] * 3 * part  # classes
    hits = 1 if scores else 0  # how often each pixel was predicted, uncompressed
    others = 0.3e6  # notebook, logs, configurations
    rasters = pixels * (labels + scores + hits)
    return copies * weights + rasters + others, 4 * weights


def _predicted_pixels(fixed: Mapping) -> int:
    "Pixels of the validation and test scenes of a data folder; 0 when unknown."
    import rasterio

    from rvtutorial.data.pairing import IMAGE_PATTERN, LABEL_PATTERN, find_splits

    patterns = [fixed.get("image_pattern") or IMAGE_PATTERN]
    patterns += [fixed.get("label_pattern") or LABEL_PATTERN]
    try:
        splits = find_splits(Path(fixed["data"]), *patterns)
        scenes = [*splits["val"], *splits["test"]]
        with rasterio.open(scenes[0].image) as source:  # others are like it
            return source.width * source.height * len(scenes)
    except (KeyError, TypeError, ValueError, OSError, IndexError):
        return 0


_GPU = re.compile(
    r"(?:^|,)(?:gres/)?gpu(?:$|(?=[:,(]))(?::[^:,()]*[^\d:,()][^:,()]*)?(?::(\d+))?"
)


def _gpus(gres: str | None) -> int:
    "How many GPUs a job asks for with gpu:1 or gpu:a100:2."
    return sum(int(number or 1) for number in _GPU.findall(gres or ""))


def _site_of(run: Run) -> dict:
    "The site that a run was submitted to."
    job = run.manifest.get("went", {}).get("job") or {}
    return Submission(job.get("submission") or run.path).job.get("site") or {}


def _readable(runs: Iterable[Run]) -> Iterable[tuple[Run, dict]]:
    "Runs whose records can be read, and the site that each was submitted to."
    for run in runs:
        with contextlib.suppress(Unreadable):
            yield run, _site_of(run)


def gpu_minutes(runs: Iterable[Run]) -> float:
    "Minutes times GPUs of some runs; a run on a GPU that nobody asked for counts one."
    total = 0.0
    for run, site in _readable(runs):
        device = (run.manifest.get("made_with") or {}).get("device", "cpu")
        count = _gpus(site.get("gres")) or int(str(device).startswith("cuda"))
        total += count * run.worked / 60
    return total


@dataclass(frozen=True)
class _Progress:
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
        parts += [f"{tqdm.format_interval(self.elapsed)} worked"]
        if not self.over and self.remaining is not None:
            parts += [f"about {tqdm.format_interval(self.remaining)} left"]
        parts += [f"{self.gpu_minutes:.0f} GPU-minutes"] if self.gpu_minutes else []
        return "; ".join(parts)


# --- runs for other programs: CSV, TensorBoard, Weights & Biases


def _history(run: Run) -> pd.DataFrame:
    "The curves of a run, one line an epoch, times in seconds; empty before it trains."
    try:
        log = run.log()
    except FileNotFoundError:
        return pd.DataFrame({"epoch": []})
    for name in log.select_dtypes(object).columns:
        log[name] = pd.to_timedelta(log[name], errors="coerce").dt.total_seconds()
    return log


def _epochs(curves: pd.DataFrame) -> Iterable[tuple[int, dict[str, float]]]:
    "Number and values of each epoch; train_loss is called train/loss, and so on."
    groups = {"train": "train", "val": "validation", "valid": "validation"}
    for row in curves.to_dict("records"):
        step, named = int(row.pop("epoch")), {}
        for name, value in row.items():
            first, _, rest = name.partition("_")
            name = (
                f"{groups[first]}/{rest}" if first in groups else f"validation/{name}"
            )
            named |= {name: value} if pd.notna(value) else {}
        yield step, named


def _asked_of(run: Run) -> dict:
    "The hyperparameters of a run, as trackers take them."
    try:
        given = {k: v for k, v in run.hyperparams.items() if v is not None}
    except FileNotFoundError:  # it has not begun
        return {}
    return {
        k: v if isinstance(v, (int, float, str)) else str(v) for k, v in given.items()
    }


def _outcome(run: Run) -> dict[str, float]:
    "The scores of a run on whole scenes, such as validation/f1."
    return {
        f"{split}/{name}": value
        for split, scores in run.results.items()
        for name, value in scores.items()
        if isinstance(value, (int, float))
    }


def _to_csv(runs: dict[str, Run], folder: Path) -> list[Path]:
    "Write the curves of all runs below each other, and a line for each run."
    parts, rows = [], {}
    for name, run in runs.items():
        parts.append(_history(run).assign(run=name))
        try:
            rows[name] = {"state": run.state, **_asked_of(run), **_outcome(run)}
        except Unreadable as error:
            rows[name] = {"state": f"unreadable: {error}"}
    curves = pd.concat([part for part in parts if len(part)] or parts[:1])
    curves = curves[["run", *(c for c in curves.columns if c != "run")]]
    summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "history.csv") as path:
        curves.to_csv(path, index=False)
    with atomic_path(folder / "summary.csv") as path:
        summary.to_csv(path)
    return [folder / "history.csv", folder / "summary.csv"]


def _to_tensorboard(runs: dict[str, Run], folder: Path) -> list[Path]:
    "Write event files, in a folder for each run under a name that leads nowhere else."
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("event files need torch and tensorboard") from None
    made = []
    for name, run in runs.items():
        made.append(folder / safe_name(name))
        _delete_events(made[-1])
        curves = _history(run)  # epochs end when they did, as far as can be told
        start = (run.manifest.get("went", {}).get("attempts") or [{}])[0].get("started")
        begun = datetime.fromisoformat(start).timestamp() if start else 0.0
        spent = [curves[c] for c in ("train_time", "valid_time") if c in curves]
        each = sum(spent) if spent else pd.Series(1.0, curves.index)
        times = begun + each.fillna(0).cumsum()
        with SummaryWriter(made[-1]) as writer:
            for (step, values), when in zip(_epochs(curves), times, strict=True):
                for label, value in values.items():
                    writer.add_scalar(label, value, step, walltime=when)
            if _outcome(run):
                writer.add_hparams(_asked_of(run), _outcome(run), run_name=".")
    return made


def _delete_events(folder: Path) -> None:
    "Delete a folder of event files; ValueError, and all stays, for anything else."
    if not os.path.lexists(folder):
        return
    found = [] if folder.is_symlink() else sorted(folder.rglob("*"))
    event = re.compile(r"events\.out\..+").fullmatch
    others = [p for p in found if p.is_symlink() or not (p.is_dir() or event(p.name))]
    if others or folder.is_symlink() or not folder.is_dir():
        what = f"holds {others[0].name}" if others else "is a link or a file"
        raise ValueError(
            f"{folder} {what}, and only a folder of event files is replaced: choose "
            f"another folder for TensorBoard's files"
        )
    shutil.rmtree(folder)


def _to_wandb(
    runs: dict[str, Run], folder: Path, project: str, online: bool
) -> list[Path]:
    "Write runs for Weights & Biases, offline unless they are to be uploaded now."
    mode = "online" if online else "offline"
    quiet = dict(WANDB_MODE=mode, WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
    quiet |= dict(WANDB_CONSOLE="off", WANDB_DISABLE_GIT="true")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with mock.patch.dict(os.environ, quiet):
        try:
            import wandb
        except ImportError:
            raise ImportError(
                "Weights & Biases is not installed: pip install wandb. Or write "
                "TensorBoard's files, or CSV, which need nothing more"
            ) from None
        for name, run in runs.items():
            text = f"{run.path}\n{sorted(_asked_of(run).items())}"
            own = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True)
            begun = wandb.init(
                project=project, name=name, id=own, dir=str(folder), mode=mode,
                config=_asked_of(run), settings=settings, reinit="finish_previous",
            )  # fmt: skip
            for step, values in _epochs(_history(run)):
                begun.log(values, step)
            begun.summary.update(_outcome(run) | {"state": run.state})
            made.append(Path(begun.dir).parent)
            begun.finish()
    return made


def track(
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

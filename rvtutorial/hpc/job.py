"""Jobs: what a notebook can be asked, the state of a run, waiting, cancelling, and logs.

A run's own record is exact while its process can write; it cannot know that it was killed.
The queue knows that, but forgets everything after some minutes. So both are asked.
"""

import ast
import contextlib
import functools
import math
import os
import socket
import sys
import time
from pathlib import Path

from rvtutorial.core import records
from rvtutorial.core.commands import answer
from rvtutorial.core.files import Busy, is_locked, is_other, locked
from rvtutorial.core.names import near_match, packaged
from rvtutorial.core.records import Unreadable, read_json, write_json
from rvtutorial.hpc.local_queue import Submission
from rvtutorial.hpc.scheduler import FINE, LIVE, NEVER, SLURM, SlurmError
from rvtutorial.runs import Hyperparams, Run


class JobFailed(RuntimeError):
    "A job that was waited for did not succeed."


# --- job notebooks and their parameters


@functools.lru_cache(maxsize=64)
def _parameters(notebook: str, *facts: int) -> dict:
    "The same, read from the file; `facts` tell whether it is still the same one."
    book = read_json(notebook, form={"cells": [dict]}, needed=("cells",))
    cells = [
        "".join(cell.get("source") or "")
        for cell in book["cells"]
        if "parameters" in ((cell.get("metadata") or {}).get("tags") or [])
    ]
    if len(cells) != 1:
        raise ValueError(
            f"{notebook} has {len(cells)} cells tagged parameters, not one"
        )
    found = {}
    for node in _statements(cells[0], notebook):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                value = ast.unparse(node.value)
            found |= {t.id: value for t in targets if isinstance(t, ast.Name)}
    return found


def _statements(source: str, notebook: str | Path) -> list[ast.stmt]:
    "The Python in a cell, once IPython has turned its own lines into Python."
    try:
        return ast.parse(source).body
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager
    except (ValueError, RecursionError, MemoryError) as err:
        raise ValueError(
            f"{notebook}: the parameters cell is no Python: {err}"
        ) from None
    try:
        return ast.parse(TransformerManager().transform_cell(source)).body
    except (SyntaxError, ValueError) as err:
        line, text = getattr(err, "lineno", None) or 1, getattr(err, "msg", err)
        shown = (source.splitlines()[line - 1 : line] or [""])[0].strip()
        raise ValueError(
            f"{notebook}: line {line} of the parameters cell is no Python: {shown!r} "
            f"({text})"
        ) from None


def _scalar(name: str, value):
    "A parameter's value as JSON carries it; ValueError where it could not arrive whole."
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(
            f"parameter {name} must be a text, a number, true, false or none, got the "
            f"{type(value).__name__} {value!r}; a list is written as a text, '1,2'"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"parameter {name} must be a finite number, got {value}")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"parameter {name} holds half a character: {value!r}"
            ) from None
    return value


class JobNotebook:
    "A notebook that is run as a job, and what it can be asked."

    def __init__(
        self,
        name: str | Path,  # Of a notebook of this package, or the path of one
    ):
        path = Path(name).expanduser()
        if path.is_file():
            self.path = path.resolve()
        elif path.parent != Path("."):
            raise FileNotFoundError(f"there is no job notebook {path}")
        else:
            self.path = packaged("jobs", str(name))

    @property
    def parameters(self) -> dict:  # An expression is given as its text
        """Names and default values: the assignments of the cell tagged `parameters`.

        Lines for IPython, such as `%matplotlib inline` and `!ls`, are left out. Raises
        `ValueError` with the line for what is no Python, and where no one cell is tagged.
        """
        facts = os.stat(self.path)  # thousands of trials ask the same
        return dict(_parameters(str(self.path), facts.st_mtime_ns, facts.st_size))

    @property
    def imports(self) -> list[str]:  # Some may be names in a module
        "What it imports of this package, up to a cell that is no Python."
        found = []
        with contextlib.suppress(ValueError):
            for cell in read_json(self.path, form={"cells": [dict]})["cells"]:
                code = cell.get("cell_type") == "code"
                code = code and "".join(cell.get("source") or "")
                for node in _statements(code, self.path) if code else ():
                    if isinstance(node, ast.ImportFrom) and node.module:
                        found += [f"{node.module}.{alias.name}" for alias in node.names]
                    elif isinstance(node, ast.Import):
                        found += [alias.name for alias in node.names]
        return [name for name in found if name.startswith("rvtutorial.")]

    def hyperparams(
        self,
        params: dict,  # Value by name
    ) -> dict | None:  # None for a notebook that trains nothing
        "All values a training would use, checked."
        known = self.parameters
        names = {*Hyperparams().asdict()} & {*known}
        if "lr" not in names:
            return None
        given = {k: v for k, v in (known | params).items() if k in names}
        given = {k: v for k, v in given.items() if v is not None}
        preset = params.get("preset") or known.get("preset") or "sample"
        return Hyperparams.of(preset, **given).asdict()

    def check(
        self,
        params: dict,  # Value by name
    ) -> dict:  # The same, as JSON carries it
        "Refuse before queueing what would fail after it: unknown names, bad values."
        known = self.parameters
        params = params if "keep" in known else Hyperparams.under_new_names(params)
        for name in params:
            if name not in known:
                raise ValueError(
                    f"{name!r} is no parameter of {self.path.stem}; "
                    f"{near_match(name, known)}"
                )
        params = {name: _scalar(name, value) for name, value in params.items()}
        self.hyperparams(params)
        return params

    def differences(
        self,
        folder: Path,  # Of a run
        params: dict,  # What is asked for now
    ) -> list[str]:  # A text for each setting; empty for a new folder
        "How a request differs from what the folder already holds."
        manifest = Run(folder).manifest
        if not manifest:
            stranger = (folder / "pipeline-config.json").exists()
            return ["it was made by plain Raster Vision"] if stranger else []
        job = manifest.get("went", {}).get("job") or {}
        made = manifest.get("asked") or Run(folder).state in ("succeeded", *LIVE)
        if not made or "params" not in job:
            return []
        known, sides = self.parameters, []
        for side in (job["params"], params):
            if "keep" not in known:
                side = Hyperparams.under_new_names(side, says=False)
            given = known | {k: v for k, v in side.items() if v is not None}
            with contextlib.suppress(ValueError):  # what notebook and preset fill in
                given |= self.hyperparams(given) or {}
            sides.append(given)
        old, new = sides
        names = sorted({*old, *new} - {"pause"})
        names = [name for name in names if old.get(name) != new.get(name)]
        return [f"{n} is {old.get(n)!r} there, {new.get(n)!r} here" for n in names]

    def refuse_other_run(self, folder: Path, params: dict) -> None:
        "Raise ValueError when a folder holds a run with other settings."
        other = self.differences(folder, params)
        if other:
            raise ValueError(
                f"{folder} holds another run: {'; '.join(other)}. Give the new run a folder "
                f"of its own, or delete this one"
            )


# --- the state of a run

CANCELLING = "cancelled by hand"


def _merge(
    went: dict,  # Section `went` of run.json
    word: str | None,  # The queue's word in ours; None: it knows nothing of this job
    reason: str = "",  # Why a job waits, in the queue's words
) -> tuple[str, str]:  # State and reason
    "One state out of what a run's own record says and what the queue says."
    state, why = went.get("state", "new"), went.get("why") or ""
    job, last = went.get("job") or {}, (went.get("attempts") or [{}])[-1]
    own = all(last.get(k) == job.get(k) for k in ("submission", "index"))
    begun = last.get("state") if own else None  # of the submission that is asked about
    if reason == CANCELLING and state == "interrupted":
        return "cancelled", why
    if word == "unreadable":
        if state in (*LIVE, "interrupted"):
            return word, reason
        return state, "; ".join(filter(None, [why, f"unreadable: {reason}"]))
    if word == "unknown":
        if state == "interrupted":  # not over before the queue has been asked
            return "queued", reason or "interrupted, and perhaps queued again"
        return state, reason if state in LIVE else why
    if word == "running" and state == "interrupted":
        return "running", "interrupted, and about to be queued again or to end"
    if word == "running" and begun not in (None, "running"):
        return state, why
    if word in LIVE:
        return word, reason
    reason = "" if reason == "NonZeroExitCode" else reason  # says nothing new
    if reason == NEVER:
        reason = "a run that it needs did not succeed"
    if state in LIVE and (job or begun):
        if word in (None, "succeeded"):
            return "lost", "it is in no queue any more and has not said how it ended"
        silent = "its notebook began" if begun is None else "it could say why"
        return word, reason or (f"it ended before {silent}" if word == "failed" else "")
    if state == "interrupted" and word not in (None, "succeeded", "failed"):
        return word, why
    return state, why


def _at_work(folder: Path, elsewhere: bool = True) -> bool:
    "Whether a process holds a run's lock, or did on another machine (`elsewhere`)."
    path = Path(folder) / "job.lock"
    empty = path.is_file() and not path.stat().st_size  # nobody has it, or just now
    owner = {} if empty else read_json(path, {}, records.OWNER)
    if is_other(owner.get("folder"), folder):  # copied with the run
        return False
    away = owner.get("host") not in (None, socket.gethostname())
    return (away and elsewhere) or is_locked(path)


def _own_submissions(folder: Path, job: dict, known: dict) -> tuple[dict, str | None]:
    """Believe a submission only if it names this very folder.

    The record of a copied run names the submission of the original. Whoever cancels the
    copy must not stop the original. Returns the job without what is not its own, and
    whose copy it is; `known` keeps the folders of each submission that was read.
    """
    own, original = [], None
    for home, index, params in Job.queued_for(job):
        if home and home not in known:
            known[home] = Submission(home).folders
        names = known.get(home)
        place = names[index] if names and index in range(len(names)) else None
        if names and (place is None or is_other(place, folder, gone=True)):
            original = place or f"a run of {home}"
        else:
            own.append([home, index, params])
    if not own:
        away = ("submission", "index", "earlier")
        return {k: v for k, v in job.items() if k not in away}, original
    first = dict(zip(("submission", "index", "params"), own[0], strict=True))
    job = job | {k: v for k, v in first.items() if k in job}
    return job | ({"earlier": own[1:]} if "earlier" in job else {}), None


def _epochs(folder: Path) -> tuple[int, int | None]:
    "How many epochs a training has done, and how many it was asked for if known."
    manifest = Run(folder).manifest
    asked = manifest.get("asked", {}).get("hyperparams", {}).get("epochs")
    asked = asked or (manifest.get("went", {}).get("job") or {}).get("epochs")
    try:
        text = (Path(folder) / "train" / "log.csv").read_text(errors="replace")
        rows = text.splitlines()[1:]
    except OSError:
        rows = []
    return len({row.split(",")[0] for row in rows if row[:1].isdigit()}), asked


def _run_folder(folder: str | Path) -> Path:
    "An absolute path that every program on the way can take."
    text = os.path.abspath(os.path.expanduser(folder))
    if not text.isprintable():
        raise ValueError(
            f"run folder {text!r} holds a character that cannot be printed"
        )
    if os.path.exists(text) and not os.path.isdir(text):
        raise ValueError(f"{text} is a file; a run needs a folder of its own")
    return Path(text)


def _state_of(folder: Path, job: dict, known: dict) -> tuple[str, str]:
    "State and reason of one run, from its record, the queues and who is at work in it."
    went = Run(folder).manifest.get("went", {})
    home, index = job.get("submission"), job.get("index")
    word, reason = known.get((home, index)) or known.get((home, None), (None, ""))
    if job.get("trouble"):
        word, reason = "unreadable", job["trouble"]
    # a queue that was killed leaves a member at work; a node that is gone leaves a lock
    told = home is None or went.get("state") in (*LIVE, "interrupted")
    if told and word in (None, "unreadable") and _at_work(folder, home is None):
        word, reason = "running", f"unreadable: {reason}" if word else ""
    if word is None and job.get("copy_of") and went.get("state") in LIVE:
        place = job["copy_of"]
        return "interrupted", f"copied or moved from {place}, to which its job belongs"
    return _merge(went, word, reason)


# --- cancelling, and logs


def _tail(path: Path, lines: int) -> str:
    "The last lines of a text file, without reading all of it; bars are drawn out."
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        text = file.read().decode("utf-8", "replace")
    rows = [row.rstrip("\r").rsplit("\r", 1)[-1] for row in text.rstrip().split("\n")]
    return "\n".join(rows[-lines:])


# --- a line that follows several runs


class _Line:
    "A file for tqdm whose last line stays in a notebook's output, and only that."

    def __init__(self):
        from IPython.display import display

        self.text = ""
        self.shown = display(self, display_id=True)

    def write(self, text: str):
        self.text = text.strip("\r\n ") or self.text

    def flush(self):
        self.shown.update(self)

    def __repr__(self):
        return self.text


def notebook_line() -> _Line | None:
    "A line in the output of this notebook's cell, None outside a notebook's kernel."
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    return _Line() if hasattr(shell, "kernel") else None


class _Progress:
    "A progress line over the epochs of several runs."

    def __init__(self, details: list[dict], progress: bool = True):
        from tqdm.std import tqdm

        line = (notebook_line() if progress else None) or sys.stderr
        form = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} elapsed, {remaining} left"
        self.live, self.said = isinstance(line, _Line) or line.isatty(), ""
        self.bar = tqdm(disable=not progress, file=line, bar_format=form, mininterval=0)
        self.show(details)

    def show(self, details: list[dict]):
        "Draw the line."
        self.details = details
        self.over = not any(d["state"] in LIVE for d in details)
        before = self.said
        self.said, self.bar.n, self.bar.total = Job.summary(details)
        if self.live or before != self.said:  # a log file gets a line for each change
            self.bar.set_description_str(self.said)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()


# --- the job itself

SILENCE = 900  # Seconds that `wait` bears with a Slurm that does not answer


class Job:
    "What `submit` returns; `Job(folder)` finds it again."

    def __init__(self, folders):
        folders = [folders] if isinstance(folders, (str, Path)) else folders
        self.folders = [_run_folder(folder) for folder in folders]

    @staticmethod
    def queued_for(job: dict) -> list:
        "Submission, place in it and parameters of each time that a run is queued for."
        first = [job.get(k) for k in ("submission", "index", "params")]
        return [first, *job.get("earlier", [])]

    @staticmethod
    def ask(
        homes: set[str],  # Folders of submissions
        now: bool = False,  # Ask Slurm even if it was asked a moment ago
    ) -> dict[
        tuple, tuple[str, str]
    ]:  # (folder, member or None for all) -> word, reason
        "What the queues know of some submissions."
        found, by_id, cancelled, broken = {}, {}, [], {}
        for home in homes:
            try:
                one = Submission(home)
                cancelled += [(home, member) for member in one.cancelled]
                queue = one.job.get("queue")
                if queue == "local":
                    found |= {(home, i): w for i, w in one.local_states().items()}
                elif queue:
                    number = one.slurm_id()
                    unheard = {(home, None): ("unknown", "not heard of yet")}
                    found |= unheard if number == "" else {}
                    by_id |= {number: home} if number else {}
            except Unreadable as error:
                broken[home] = str(error)
        if by_id:
            reply = SLURM.states(set(by_id), now)
            found |= {(by_id[j], i): w for (j, i), w in reply.items()}
        for key in cancelled:
            found[key] = (found.get(key, ("cancelled", ""))[0], CANCELLING)
        found = {key: word for key, word in found.items() if key[0] not in broken}
        return found | {
            (home, None): ("unreadable", why) for home, why in broken.items()
        }

    @staticmethod
    def summary(
        details: list[dict],
    ) -> tuple[str, int, int]:  # "1 running (a: epoch 3 of 8)"; epochs done and in all
        """States counted, how far the run is that is at work, and how far all are.

        An epoch counts one, and all that comes after the last one too.
        """
        states = [d["state"] for d in details]
        counts = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
        text = ", ".join(counts) if len(states) > 1 else states[0]
        notes = []
        for d in [d for d in details if d["state"] == "running"][:2]:
            count = f": epoch {d['done']} of {d['epochs']}" if d["epochs"] else ""
            notes.append(d["folder"].name + count)
        if not notes:  # why the first one waits
            notes = [d["why"] for d in details if d["state"] == "queued" and d["why"]][
                :1
            ]
        text += f" ({', '.join(notes)})" if notes else ""
        rows = [(d["state"], d["done"], (d["epochs"] or 0) + 1) for d in details]
        done = sum(n if state in LIVE else whole for state, n, whole in rows)
        return text, done, sum(whole for _, _, whole in rows)

    def recorded(self) -> dict[Path, dict]:
        "What is on record of each run's own job; of a copied run `copy_of` in its place."
        found, known = {}, {}
        for folder in self.folders:
            try:
                job = Run(folder).manifest.get("went", {}).get("job") or {}
                job, original = _own_submissions(folder, job, known)
                found[folder] = job | ({"copy_of": original} if original else {})
            except Unreadable as error:
                found[folder] = {"trouble": str(error)}
        return found

    def details(self, now: bool = False) -> list[dict]:
        "For each run: folder, state, why, epochs done and asked for."
        jobs, found = self.recorded(), []
        homes = {j["submission"] for j in jobs.values() if j.get("submission")}
        known = self.ask(homes, now)
        for folder, job in jobs.items():
            row = dict(folder=folder, done=0, epochs=None)
            try:
                row["state"], row["why"] = _state_of(folder, job, known)
                row["done"], row["epochs"] = _epochs(folder)
            except Unreadable as error:
                row |= dict(state="unreadable", why=str(error))
            found.append(row)
        return found

    def states(self) -> dict[Path, str]:
        "Folder -> state: queued, running, succeeded, or what went wrong."
        return {d["folder"]: d["state"] for d in self.details()}

    @property
    def done(self) -> bool:
        "Whether nothing is queued or running any more."
        return not any(state in LIVE for state in self.states().values())

    def wait(
        self,
        progress: bool = True,  # Show states, epochs, elapsed and remaining time
        timeout: float | None = None,  # Seconds; the job itself goes on
        every: float = 1.0,  # Seconds between two looks
    ) -> "Job":
        "Wait until nothing is queued or running; raise `JobFailed` for what failed."
        start = time.monotonic()
        with _Progress(self.details(), progress) as line:
            while not line.over:
                if timeout is not None and time.monotonic() - start > timeout:
                    raise TimeoutError(f"still at work after {timeout} s:\n{self!r}")
                time.sleep(every)
                line.show(self.details())
                if SLURM.silence > SILENCE:
                    raise SlurmError(
                        f"Slurm has not answered for {SILENCE // 60} minutes. The jobs "
                        f"may well go on; wait again later, nothing is lost:\n{self!r}"
                    )
        self.settle()
        failed = []
        for d in (d for d in line.details if d["state"] not in FINE):
            folder, why = d["folder"], d["why"] and f" ({d['why']})"
            text = f"{folder.name}: {d['state']}{why}\n{self.log(folder, 12)}"
            books = sorted(folder.glob("notebook*.ipynb"), key=os.path.getmtime)
            text += f"\nnotebook up to there: {books[-1]}" if books else ""
            failed.append(text)
        if failed:
            raise JobFailed("\n\n".join(failed))
        return self

    def settle(self) -> None:
        "Give the local queue a moment to note that a run has ended."
        for job in self.recorded().values():
            own, states = Submission(job.get("submission") or ""), {}
            for _ in range(50):
                with contextlib.suppress(Unreadable):
                    local = own.job.get("queue") == "local"
                    states = own.local_states() if local else {}
                if states.get(job.get("index"), ("", ""))[0] not in LIVE:
                    break
                time.sleep(0.1)

    def cancel(self) -> "Job":
        "Take what is queued out of the queue and stop what is running."
        jobs, states, homes = self.recorded(), self.states(), {}
        for folder, job in jobs.items():
            for home, index, _ in self.queued_for(job):
                if home and states[folder] in LIVE:
                    homes.setdefault(home, []).append(index)
        errors = {}
        for home, members in homes.items():
            try:
                Submission(home).cancel(members)
            except (Unreadable, SlurmError, Busy, OSError) as error:  # the others first
                errors[home] = error
        for folder, job in jobs.items():
            left = any(home in errors for home, _, _ in self.queued_for(job))
            if not left and Run(folder).state == "queued":
                Run(folder).update("went", state="interrupted", why="cancelled")
        for error in errors.values():
            raise error
        return self

    def log(self, folder: str | Path | None = None, lines: int = 20) -> str:
        "The last lines that a run wrote, wherever it wrote them."
        folder, job = _run_folder(folder) if folder else self.folders[0], {}
        with contextlib.suppress(Unreadable):
            job = Run(folder).manifest.get("went", {}).get("job") or {}
        home, index = Path(job.get("submission") or folder), job.get("index", 0)
        outs = [*home.glob(f"slurm-*_{index}.out"), home / f"local-{index}.out"]
        # where its notebook never began, what came before
        logs = [folder / "job.log", *outs, home / "queue.log"]
        logs = [path for path in logs if path.is_file() and path.stat().st_size]
        return _tail(max(logs, key=os.path.getmtime), lines) if logs else ""

    def __repr__(self):
        width, rows = max(len(f.name) for f in self.folders), []
        for d in self.details():
            count = f"  epoch {d['done']} of {d['epochs']}" if d["epochs"] else ""
            why = f"  ({d['why']})" if d["why"] else ""
            why = f": {d['why']}" if d["state"] == "unreadable" else why
            rows.append(f"{d['folder'].name:<{width}}  {d['state']}{count}{why}")
        return "\n".join(rows)

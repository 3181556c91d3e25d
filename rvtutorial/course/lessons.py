"""Run the eight parts from top to bottom, with a line that says how long it will take, and a table of the runs they made."""

import argparse
import asyncio
import base64
import configparser
import contextlib
import glob
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from rvtutorial.core.files import atomic_path
from rvtutorial.core.records import Unreadable, read_json, write_json
from rvtutorial.core.renamed import say_once
from rvtutorial.hpc.kernels import own_kernel
from rvtutorial.hpc.job import Job
from rvtutorial.hpc.local_queue import Submission
from rvtutorial.hpc.runner import EXIT_FAILED, EXIT_OK
from rvtutorial.hpc.scheduler import LIVE, SlurmError
from rvtutorial.runs import Workspace, find_runs


class _LessonFailed(RuntimeError):
    "A lesson stopped at an error; the message holds the cell and the traceback."


def _skip_flags(notebook: Path) -> set[str]:
    "Directives that mean: not here. Read from `tst_flags` in the nearest settings.ini."
    settings = configparser.ConfigParser(interpolation=None)
    for folder in notebook.parents:
        if settings.read(folder / "settings.ini"):
            break
    return set(settings.get("DEFAULT", "tst_flags", fallback="gpu slow").split())


def _skipped(cell: dict, flags: set[str]) -> bool:
    "Whether a cell says that it is not to be run, by a tag or a directive of `flags`."
    if "skip-execution" in cell["metadata"].get("tags", []):
        return True
    said = re.findall(r"^\s*#\s*\|\s*(.*?)\s*$", cell["source"], re.M)
    return any(re.fullmatch(r"eval:\s*false", d) or d in flags for d in said)


def _lesson_client(book, options: dict, folder: Path, flags: set[str], after):
    "A client of nbclient that skips what is marked and calls `after` behind each cell."
    from nbclient import NotebookClient

    class Client(NotebookClient):
        stopped, at = False, 0  # True after Ctrl-C; the cell that is executed

        async def async_execute_cell(self, cell, cell_index, **given):
            self.at = cell_index
            try:
                if _skipped(cell, flags):
                    return cell
                return await super().async_execute_cell(cell, cell_index, **given)
            finally:
                after(cell_index)

        def stop(self):
            self.stopped = True
            os.killpg(self.km.provisioner.process.pid, signal.SIGKILL)

    def listen(**_):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError):  # not the main thread: in a notebook
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, client.stop)

    options |= {"resources": {"metadata": {"path": str(folder)}}}
    client = Client(book, on_notebook_start=listen, **options)
    return client


def _save_figures(book, folder: Path, stem: str) -> None:
    "Write the pictures of a notebook as files, named by the place of their cell."
    kinds = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{glob.escape(stem)}-*"):
        old.unlink()
    for number, cell in enumerate(book.cells):
        datas = [out.get("data", {}) for out in cell.get("outputs", [])]
        for kind, suffix in kinds.items():
            for place, data in enumerate([d[kind] for d in datas if kind in d]):
                path = folder / f"{stem}-{number:02}-{place}.{suffix}"
                text = "".join(data)
                raw = text.encode() if suffix == "svg" else base64.b64decode(text)
                path.write_bytes(raw)


def _run_lesson(
    notebook: str | Path,  # A part, or another notebook
    out_folder: str | Path,  # Where the executed copy goes, and where it runs
    env: dict | None = None,  # More environment variables for its kernel
    progress=None,  # Called with (cells done, cells in all)
) -> Path:  # The executed copy
    """Execute a lesson as a reader would, cell by cell, leaving out what is marked.

    Cells with the directives `eval: false`, `gpu` or `slow` or the tag `skip-execution`
    keep the outputs they have. Figures are written as files into `figures/` beside the
    copy. Raises `_LessonFailed` with cell and traceback; the copy is saved up to there.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError

    notebook, out = Path(notebook).resolve(), Path(out_folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    book, path = nbformat.read(notebook, 4), out / notebook.name

    def save():
        with atomic_path(path) as part:
            part.write_text(nbformat.writes(book), encoding="utf-8")

    def after(index):
        save()
        if progress:
            progress(index + 1, len(book.cells))

    with own_kernel(env) as (options, env):
        client = _lesson_client(book, options, out, _skip_flags(notebook), after)
        try:
            client.execute(env=env)
        except Exception as error:
            if client.stopped:
                raise KeyboardInterrupt from None
            where, what = notebook.name, f"{type(error).__name__}: {error}"
            if isinstance(error, CellExecutionError):
                where = f"{where}, cell {client.at}"
                what = f"{error.ename}: {error.evalue}\n\n{error.traceback}"
            text = re.sub(r"\x1b\[[0-9;]*m", "", f"{where}: {what}")
            raise _LessonFailed(f"{text}\n\nExecuted so far: {path}") from None
        finally:
            save()
            _save_figures(book, out / "figures", notebook.stem)
    return path


# how long each part takes, until it has been run here
_SECONDS = dict(zip(range(1, 9), (20, 15, 10, 30, 60, 90, 40, 300), strict=True))


def _trainings(
    runs: Path,  # Folder of all runs
    since: float,  # Time of the clock
) -> tuple[str, float | None]:  # In words, and seconds that are left; None: not known
    "How far the jobs are that were submitted after a time, at the speed so far."
    new = _submitted_since(runs, since)
    details = Job([folder for part in new.values() for folder in part]).details()
    if not any(d["state"] in LIVE for d in details):
        return "", None
    text, done, total = Job.summary(details)
    worked = time.time() - min(path.stat().st_mtime for path in new)
    return text, worked / done * (total - done) if done else None


class _Progress:
    "One line that says which part runs, how long it has taken and how long it will."

    def __init__(self, parts, durations: dict, out=None, look=lambda since: ("", None)):
        self.out, self.parts, self.look = out or sys.stdout, parts, look
        self.live, self.at = self.out.isatty(), (0, 0, 1)
        self.clock, self.looked, self.seen = time.time(), -math.inf, ("", None)
        self.took = {}  # Seconds of the parts that are over
        self.start = self.begun = time.monotonic()
        self.expected = [
            durations.get(p.stem) or _SECONDS.get(int(p.stem[:2]), 30) for p in parts
        ]

    def remaining(self, spent: float) -> float:
        """Seconds that remain, from what is left to do.

        A part that takes longer than usual has its unfinished cells and trainings left;
        a machine that was slower so far stays so.
        """
        part, done, total = self.at
        usual = sum(self.expected[p] for p in self.took)
        pace = max(1.0, sum(self.took.values()) / usual) if usual else 1.0
        whole = self.expected[part] * pace
        here = whole - spent if spent < whole else whole * (total - done) / total
        here = max(here, self.seen[1] or 0) if done < total else 0
        return here + pace * sum(self.expected[part + 1 :])

    def show(self, part: int, done: int = 0, total: int = 1):
        "Note where we are, and draw the line if that is news."
        if done == 0:
            self.begun, self.clock = time.monotonic(), time.time()
            self.looked, self.seen = -math.inf, ("", None)
        if done == total:
            self.took[part] = time.monotonic() - self.begun
        self.at = (part, done, total)
        if self.live or done in (0, total):
            self.draw(last=done == total)

    def draw(self, last: bool = False):
        "Write the line; on a screen over the old one."
        (part, done, total), now = self.at, time.monotonic()
        if not last and now - self.looked > 5:  # what the trainings of this part are at
            with contextlib.suppress(OSError, ValueError, SlurmError):
                self.seen = self.look(self.clock)
            self.looked = now
        jobs = "" if last else self.seen[0]
        text = (
            f"part {part + 1} of {len(self.parts)}  {self.parts[part].stem:<27}"
            f" cell {done:>2} of {total:<2}  elapsed {tqdm.format_interval(now - self.start)}"
            f"  about {tqdm.format_interval(self.remaining(now - self.begun))} left"
        ) + (f"  [{jobs}]" if jobs else "")
        self.out.write(f"\r\x1b[K{text}" if self.live else text)
        self.out.write("\n" if last or not self.live else "")
        self.out.flush()

    @contextlib.contextmanager
    def ticking(self):
        "Draw the line again and again while the context lasts."
        over = threading.Event()

        def tick():
            while not over.wait(1 if self.live else 30):
                self.draw()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _runs_table(folder: str | Path):
    "All runs below a folder in one table; scores are those of whole validation scenes."
    import pandas as pd

    numbers, rows = ["val F1", "val IoU", "minutes"], []
    for run in find_runs(folder):
        state, values = run.state, (None, None, None)
        try:
            scores = run.results.get("validation") or {}
            values = scores.get("f1"), scores.get("iou"), run.worked / 60 or None
        except Unreadable as error:
            state = f"unreadable: {error}"
        rows.append((os.path.relpath(run.path, folder), state, *values, str(run.path)))
    table = pd.DataFrame(rows, columns=["run", "state", *numbers, "path"])
    return table.astype(dict.fromkeys(numbers, float))


def _run_lessons(
    folder_of_parts: str | Path,  # Folder with 01_... to 08_...
    out: str | Path,  # Where the executed copies go
    home: str | Path | None = None,  # RVTUTORIAL_HOME of the lessons
    only: list[str] | None = None,  # Beginnings of names, such as ["01", "04"]
) -> int:  # 0; 1 when a part stopped; 130 after Ctrl-C
    "Execute the parts in order, stop at the first that fails, and show what was made."
    folder, out = Path(folder_of_parts).resolve(), Path(out).resolve()
    home = Path(home or folder.parent).resolve()
    runs, since = home / "runs", time.time()
    parts = sorted(folder.glob("0[1-8]_*.ipynb"))
    parts = [p for p in parts if not only or p.name.startswith(tuple(only))]
    if not parts:
        raise FileNotFoundError(f"no parts named 01_... to 08_... in {folder}")
    durations = read_json(out / "durations.json", {})
    if (folder / "images").is_dir():
        shutil.copytree(folder / "images", out / "images", dirs_exist_ok=True)
    line = _Progress(parts, durations, look=partial(_trainings, runs))
    try:
        with line.ticking():
            for number, part in enumerate(parts):
                line.show(number)
                env = {"RVTUTORIAL_HOME": str(home)}
                _run_lesson(part, out, env, partial(line.show, number))
                durations[part.stem] = round(time.monotonic() - line.begun, 1)
                write_json(out / "durations.json", durations)
    except _LessonFailed as error:
        print(f"\n\n{error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        made = [f for part in _submitted_since(runs, since).values() for f in part]
        live = [folder for folder in made if not Job(folder).done]
        if live:
            Job(live).cancel()
        print(f"\n\ninterrupted; {len(live)} jobs were cancelled", file=sys.stderr)
        return 130
    table = _runs_table(runs) if runs.is_dir() else ()
    form = dict(index=False, na_rep="-", float_format="{:.3f}".format)
    figures = len(list((out / "figures").glob("*")))
    print(
        f"\nAll parts done in {tqdm.format_interval(time.monotonic() - line.start)}. "
        f"Runs (scores are those of whole validation scenes):\n\n"
        f"{table.to_string(**form) if len(table) else 'no runs were made'}\n\n"
        f"executed notebooks  {out}\n"
        f"figures ({figures})        {out / 'figures'}\nrun folders         {runs}"
    )
    return EXIT_OK


def _submitted_since(runs: Path, since: float) -> dict[Path, list[str]]:
    "The lists of submissions that were made after a time, and their run folders."
    found = {}
    for path in runs.rglob("jobs/*/tasks.json"):
        if path.stat().st_mtime >= since:
            try:
                found[path] = Submission(path.parent).folders or []
            except Unreadable as error:  # the others all the same
                say_once(f"left out: {error}")
    return found


def _main(argv: list[str] | None = None) -> int:
    "The command line: `python -m rvtutorial.course.lessons`."
    home = Workspace().home
    parser = argparse.ArgumentParser(prog="python -m rvtutorial.course.lessons")
    parser.add_argument("--parts", default=home / "nbs", help="folder of the parts")
    parser.add_argument(
        "--out", default=home / "runs" / "lessons", help="executed copies"
    )
    parser.add_argument("--only", nargs="*", help="such as 01 04")
    given = parser.parse_args(argv)
    try:
        return _run_lessons(given.parts, given.out, home, given.only)
    except (ValueError, OSError, SlurmError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(_main())

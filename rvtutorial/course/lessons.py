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
from datetime import datetime
from functools import partial
from pathlib import Path

from rvtutorial.core.records import Unreadable, read_json
from rvtutorial.core.renamed import say_once
from rvtutorial.hpc.job import Job, summary
from rvtutorial.hpc.kernels import (
    kernel_env,
    kernel_options,
    refuse_limits,
    socket_folder,
)
from rvtutorial.hpc.queue import folders_of
from rvtutorial.hpc.runner import EXIT_FAILED, EXIT_OK
from rvtutorial.hpc.scheduler import LIVE, SlurmError
from rvtutorial.core.files import atomic_path
from rvtutorial.core.records import write_json
from rvtutorial.runs import Workspace, find_runs


class _LessonFailed(RuntimeError):
    "A lesson stopped at an error; the message holds the cell and the traceback."


def _skip_flags(notebook: Path) -> set[str]:
    "Directives that mean: not here. Read from `tst_flags` in the nearest settings.ini."
    settings = configparser.ConfigParser(interpolation=None)
    for folder in Path(notebook).resolve().parents:
        if settings.read(folder / "settings.ini"):
            break
    words = settings.get("DEFAULT", "tst_flags", fallback="gpu slow")
    return set(words.split())


def _skipped(
    cell: dict,  # Cell of a notebook
    flags: set[str],  # Such as {"gpu", "slow"}
) -> bool:  # True: leave it alone
    "Whether a cell says that it is not to be run."
    if "skip-execution" in cell["metadata"].get("tags", []):
        return True
    said = re.findall(r"^\s*#\s*\|\s*(.*?)\s*$", cell["source"], re.M)
    return any(re.fullmatch(r"eval:\s*false", d) or d in flags for d in said)


def _lesson_client(book, sockets: Path, folder: Path, flags: set[str], after):
    "A client of nbclient that skips what is marked and calls `after` behind each cell."
    from nbclient import NotebookClient

    class Client(NotebookClient):
        stopped = False  # True after Ctrl-C

        async def async_execute_cell(self, cell, cell_index, **given):
            try:
                if cell.cell_type == "code" and not _skipped(cell, flags):
                    return await super().async_execute_cell(cell, cell_index, **given)
                return cell
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

    here = {"metadata": {"path": str(folder)}}
    options = kernel_options(sockets)
    client = Client(book, resources=here, on_notebook_start=listen, **options)
    return client


def _save_notebook(book, path: Path) -> None:
    "Write a notebook in one step."
    import nbformat

    with atomic_path(path) as part:
        part.write_text(nbformat.writes(book), encoding="utf-8")


def _save_figures(
    book,  # An executed notebook
    folder: Path,  # Where the image files go
    stem: str,  # How their names begin
) -> list[Path]:  # In the order of the cells
    "Write the pictures of a notebook as files, named by the place of their cell."
    kinds = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{glob.escape(stem)}-*"):
        old.unlink()
    made = []
    for number, cell in enumerate(book.cells):
        datas = [out.get("data", {}) for out in cell.get("outputs", [])]
        for kind, suffix in kinds.items():
            for place, data in enumerate([d[kind] for d in datas if kind in d]):
                path = folder / f"{stem}-{number:02}-{place}.{suffix}"
                text = "".join(data)
                raw = text.encode() if suffix == "svg" else base64.b64decode(text)
                path.write_bytes(raw)
                made.append(path)
    return made


def _failed_cell(book, name: str, error: Exception) -> str:
    "Which cell stopped a lesson, what it says, and where it happened."
    for number, cell in enumerate(book.cells):
        meant = "raises-exception" in cell["metadata"].get("tags", [])
        for out in [] if meant else cell.get("outputs", []):
            if out["output_type"] == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(out["traceback"]))
                what = f"{out['ename']}: {out['evalue']}"
                return f"{name}, cell {number}: {what}\n\n{cell['source']}\n\n{trace}"
    return f"{name}: {type(error).__name__}: {error}"


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
    refuse_limits()
    import nbformat

    notebook, out = Path(notebook).resolve(), Path(out_folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    book, path = nbformat.read(notebook, 4), out / notebook.name
    sockets, total = socket_folder(), len(book.cells)

    def after(index):
        _save_notebook(book, path)
        if progress:
            progress(index + 1, total)

    client = _lesson_client(book, sockets, out, _skip_flags(notebook), after)
    try:
        client.execute(env=kernel_env(sockets, env))
    except Exception as error:
        if client.stopped:
            raise KeyboardInterrupt from None
        message = _failed_cell(book, notebook.name, error)
        raise _LessonFailed(f"{message}\n\nExecuted so far: {path}") from None
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
        _save_notebook(book, path)
        _save_figures(book, out / "figures", notebook.stem)
    return path


SECONDS = {
    "01": 20,
    "02": 15,
    "03": 10,
    "04": 30,
    "05": 60,
    "06": 90,
    "07": 40,
    "08": 300,
}


def _clock(seconds: float) -> str:  # Such as 3:07
    "Minutes and seconds."
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _trainings(
    runs: Path,  # Folder of all runs
    since: float,  # Time of the clock
) -> tuple[str, float | None]:  # In words, and seconds that are left; None: not known
    "How far the jobs are that were submitted after a time, at the speed so far."
    new = _submitted_since(runs, since)
    details = Job([folder for part in new.values() for folder in part]).details()
    if not any(d["state"] in LIVE for d in details):
        return "", None
    total = sum((d["epochs"] or 0) + 1 for d in details)
    done = sum(
        d["done"] if d["state"] in LIVE else (d["epochs"] or 0) + 1 for d in details
    )
    worked = time.time() - min(path.stat().st_mtime for path in new)
    return summary(details), worked / done * (total - done) if done else None


class _Progress:
    "One line that says which part runs, how long it has taken and how long it will."

    def __init__(
        self,
        parts: list[Path],
        durations: dict,  # Seconds that each took the last time, by its name
        out=None,  # A file; None: the screen
        look=lambda since: ("", None),  # As `_trainings`, for the part that runs
    ):
        self.out, self.parts, self.look = out or sys.stdout, parts, look
        self.clock, self.looked, self.seen = time.time(), -math.inf, ("", None)
        self.took = {}  # Seconds of the parts that are over
        self.start = self.begun = time.monotonic()
        self.at, self.over = (0, 0, 1), threading.Event()
        self.expected = [
            durations.get(p.stem) or SECONDS.get(p.stem[:2], 30) for p in parts
        ]

    def left(self, part: int, spent: float) -> float:
        "Seconds that remain, from how long each part usually takes."
        return max(self.expected[part] - spent, 0) + sum(self.expected[part + 1 :])

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

    def glance(self) -> str:
        "What the trainings of this part are at; looked at every five seconds."
        if time.monotonic() - self.looked > 5:
            with contextlib.suppress(OSError, ValueError, SlurmError):
                self.seen = self.look(self.clock)
            self.looked = time.monotonic()
        return self.seen[0]

    def show(self, part: int, done: int = 0, total: int = 1):
        "Note where we are, and draw the line if that is news."
        if done == 0:
            self.begun, self.clock = time.monotonic(), time.time()
            self.looked, self.seen = -math.inf, ("", None)
        if done == total:
            self.took[part] = time.monotonic() - self.begun
        self.at = (part, done, total)
        if self.out.isatty() or done in (0, total):
            self.draw(last=done == total)

    def draw(self, last: bool = False):
        "Write the line; on a screen over the old one."
        (part, done, total), now = self.at, time.monotonic()
        jobs = "" if last else self.glance()
        text = (
            f"part {part + 1} of {len(self.parts)}  {self.parts[part].stem:<27}"
            f" cell {done:>2} of {total:<2}  elapsed {_clock(now - self.start)}"
            f"  about {_clock(self.remaining(now - self.begun))} left"
        ) + (f"  [{jobs}]" if jobs else "")
        live = self.out.isatty()
        self.out.write(f"\r\x1b[K{text}" if live else text)
        self.out.write("\n" if last or not live else "")
        self.out.flush()


@contextlib.contextmanager
def _ticking(line: _Progress):
    "Draw a line again and again while the context lasts."

    def tick():
        while not line.over.wait(1 if line.out.isatty() else 30):
            line.draw()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        line.over.set()
        thread.join()


def _minutes(went: dict) -> float | None:
    "How long a run worked, all its attempts together."
    spans = [
        datetime.fromisoformat(a["ended"]) - datetime.fromisoformat(a["started"])
        for a in went.get("attempts") or []
        if a.get("ended")
    ]
    return sum(s.total_seconds() for s in spans) / 60 if spans else None


def _runs_table(
    folder: str | Path,  # Folder of run folders
):  # DataFrame: run, state, val F1, val IoU, minutes, path
    "All runs below a folder in one table; scores are those of whole validation scenes."
    import pandas as pd

    rows = []
    for run in find_runs(folder):
        row = {"run": os.path.relpath(run.path, folder), "state": run.state}
        try:
            val, went = (
                run.results.get("validation") or {},
                run.manifest.get("went", {}),
            )
            row |= {"val F1": val.get("f1"), "val IoU": val.get("iou")}
            row |= {"minutes": _minutes(went)}
        except Unreadable as error:
            row |= {"state": f"unreadable: {error}", "val F1": None, "val IoU": None}
            row |= {"minutes": None}
        rows.append(row | {"path": str(run.path)})
    table = pd.DataFrame(rows)
    numbers = ["val F1", "val IoU", "minutes"]
    return table.astype(dict.fromkeys(numbers, float)) if rows else table


def _find_parts(folder: Path, only: list[str] | None = None) -> list[Path]:
    "The notebooks of the parts, in order."
    parts = sorted(folder.glob("0[1-8]_*.ipynb"))
    parts = [p for p in parts if not only or p.name.startswith(tuple(only))]
    if not parts:
        raise FileNotFoundError(f"no parts named 01_... to 08_... in {folder}")
    return parts


def _run_lessons(
    folder_of_parts: str | Path,  # Folder with 01_... to 08_...
    out: str | Path,  # Where the executed copies go
    home: str | Path | None = None,  # RVTUTORIAL_HOME of the lessons
    only: list[str] | None = None,  # Beginnings of names, such as ["01", "04"]
) -> int:  # 0; 1 when a part stopped; 130 after Ctrl-C
    "Execute the parts in order, stop at the first that fails, and show what was made."
    folder, out = Path(folder_of_parts).resolve(), Path(out).resolve()
    home = Path(home or folder.parent).resolve()
    parts, durations = _find_parts(folder, only), read_json(out / "durations.json", {})
    if (folder / "images").is_dir():
        shutil.copytree(folder / "images", out / "images", dirs_exist_ok=True)
    look, since = partial(_trainings, home / "runs"), time.time()
    line = _Progress(parts, durations, look=look)
    try:
        with _ticking(line):
            _run_parts(line, out, {"RVTUTORIAL_HOME": str(home)}, durations)
    except _LessonFailed as error:
        print(f"\n\n{error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        stopped = _cancel_since(home / "runs", since)
        print(f"\n\ninterrupted; {stopped} jobs were cancelled", file=sys.stderr)
        return 130
    print(_closing_text(home / "runs", out, time.monotonic() - line.start))
    return EXIT_OK


def _run_parts(line: _Progress, out: Path, env: dict, durations: dict) -> None:
    "Execute one part after the other and note how long each takes."
    for number, part in enumerate(line.parts):
        line.show(number)
        _run_lesson(part, out, env, lambda d, t, n=number: line.show(n, d, t))
        durations[part.stem] = round(time.monotonic() - line.begun, 1)
        write_json(out / "durations.json", durations)


def _submitted_since(runs: Path, since: float) -> dict[Path, list[str]]:
    "The lists of submissions that were made after a time, and their run folders."
    new = [p for p in runs.rglob("jobs/*/tasks.json") if p.stat().st_mtime >= since]
    found = {}
    for path in new:
        try:
            found[path] = folders_of(path.parent) or []
        except Unreadable as error:  # the others all the same
            say_once(f"left out: {error}")
    return found


def _cancel_since(runs: Path, since: float) -> int:
    "Cancel the jobs that were submitted after a time (of the clock); their number."
    folders = [f for part in _submitted_since(runs, since).values() for f in part]
    live = [f for f in folders if not Job(f).done]
    if live:
        Job(live).cancel()
    return len(live)


def _closing_text(runs: Path, out: Path, seconds: float) -> str:
    "What was made, and where to look."
    table = _runs_table(runs) if runs.is_dir() else None
    text = "no runs were made"
    if table is not None and len(table):
        text = table.to_string(
            index=False, na_rep="-", float_format=lambda v: f"{v:.3f}"
        )
    figures = len(list((out / "figures").glob("*")))
    return (
        f"\nAll parts done in {_clock(seconds)}. Runs (scores are those of whole validation scenes):\n\n"
        f"{text}\n\nexecuted notebooks  {out}\n"
        f"figures ({figures})        {out / 'figures'}\nrun folders         {runs}"
    )


def main(argv: list[str] | None = None) -> int:
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
    sys.exit(main())

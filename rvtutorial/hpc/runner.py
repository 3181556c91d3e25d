"""Run one notebook as a job: signals, locks, full disks, and a record of how it went.

The notebook runs by papermill in a kernel of its own that listens on files, not on ports.
A warning before the end of the time interrupts it, so that it can save its work; exit code
75 then asks to be queued again.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import psutil

from rvtutorial.core import records
from rvtutorial.core.files import Busy, TooLittle, addresses_gb, atomic_path, held
from rvtutorial.core.records import read_json, reserve_disk, write_json
from rvtutorial.hpc.job import JobNotebook
from rvtutorial.hpc.kernels import own_kernel, share_imports
from rvtutorial.hpc.local_queue import Submission
from rvtutorial.hpc.scheduler import SlurmError
from rvtutorial.runs import Run

# 75 asks to be queued again; 143 is what the shell says of SIGTERM
EXIT_OK, EXIT_FAILED, EXIT_REQUEUE, EXIT_TERMINATED = 0, 1, 75, 143


def _now() -> str:  # Such as 2026-11-20T08:15:00+00:00
    "The time, in a form that sorts and that every language reads."
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Stop(BaseException):
    "Raised when a signal asks a job to leave at once."


GRACE = {signal.SIGUSR1: 90, signal.SIGTERM: 10, signal.SIGHUP: 10, signal.SIGINT: 10}


class _Signals:
    """Notes the signals of a job while the context lasts, and passes the first one to the kernel.

    From then on SIGALRM looks every two seconds whether the kernel still works.
    """

    def __init__(self):
        self.got, self.process, self.client = [], None, None
        self.armed, self.deadline, self.seconds = False, float("inf"), 0.0

    def __enter__(self):
        wanted = (*GRACE, signal.SIGALRM)
        self.before = {n: signal.signal(n, self.receive) for n in wanted}
        return self

    def __exit__(self, *error):
        signal.alarm(0)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number, frame):
        "First signal: interrupt the kernel and give it time. Time over: leave."
        if number != signal.SIGALRM:
            name = signal.Signals(number).name
            os.write(2, f"got {name}\n".encode())  # print() may be busy
            self.got.append(name)
            self.deadline = min(self.deadline, time.monotonic() + GRACE[number])
            if len(self.got) == 1:
                self.kill(signal.SIGINT)
        elif self.armed and not self.at_work():
            raise _Stop(self.got[0])
        if self.armed and self.process is None:
            raise _Stop(self.got[0])
        signal.alarm(2)

    def kill(self, number):
        "Send a signal to the kernel and to everything that it has started."
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def at_work(self) -> bool:
        "Whether there is time left, and the kernel has used the last two seconds."
        before, self.seconds, waiting = self.seconds, 0.0, False
        with contextlib.suppress(psutil.Error):
            kernel = psutil.Process(self.process.pid)
            for process in (kernel, *kernel.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self.seconds += times.user + times.system
                    waiting |= process.status() == psutil.STATUS_DISK_SLEEP
        used = waiting or self.seconds - before > 0.02
        return used and time.monotonic() < self.deadline

    def started(self, **_):
        "Remember the kernel's process once it runs."
        self.process = self.client.km.provisioner.process
        self.check()

    def check(self, **_):
        "Before each cell: leave if a signal came meanwhile."
        if self.got:
            raise _Stop(self.got[0])


def _use_atomic_files(folder: Path) -> None:
    "Let papermill replace a notebook only when the new one is wholly on disk."
    from papermill.iorw import LocalHandler, papermill_io

    class Atomic(LocalHandler):
        def write(self, text, path):
            with atomic_path(path) as part:
                with open(part, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())

    papermill_io.register(str(folder), Atomic())


def _why_failed(error: BaseException, signals: _Signals) -> str:
    "One line on what ended a job, with the limits that may have been too low."
    name, found = type(error).__name__, addresses_gb()
    few = f" (a process may have {found:.1f} GB of addresses here, ulimit -v)"
    few = few if found < 8 else ""
    if name == "PapermillExecutionError":
        return f"{error.ename}: {error.evalue}{few}"
    if isinstance(error, TooLittle):
        return str(error)
    if name == "DeadKernelError":
        code = signals.process.poll() if signals.process else None
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        more = "; out of memory is the usual reason" if code == -signal.SIGKILL else ""
        return f"the kernel died ({how}{more}){few}"
    return f"{name}: {error}".strip(": ") + few


def _run_notebook(notebook: Path, folder: Path, params: dict, signals: _Signals):
    "Run a job notebook by papermill; raises what ended it."
    with own_kernel() as (options, env):
        import papermill
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import NBClientEngine, papermill_engines

        class Engine(NBClientEngine):
            @classmethod
            def execute_managed_notebook(cls, nb_man, kernel_name, **given):
                files = {k: given.get(k) for k in ("stdout_file", "stderr_file")}
                hooks = dict(on_notebook_start=signals.started)
                hooks |= dict(on_cell_start=signals.check)
                client = PapermillNotebookClient(nb_man, **options, **files, **hooks)
                signals.client = client
                return client.execute(env=env)

        papermill_engines.register("rvtutorial", Engine)
        _use_atomic_files(folder)
        paths = [notebook, folder / "notebook.ipynb"]
        try:
            papermill.execute_notebook(
                *(str(p).replace("{", "{{").replace("}", "}}") for p in paths),
                parameters=params,
                engine_name="rvtutorial",
                kernel_name="python3",
                language="python",
                progress_bar=False,
                autosave_cell_every=10,
                cwd=str(folder),
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
        finally:
            signals.kill(signal.SIGKILL)


def _execute(notebook: Path, folder: Path, params: dict, signals: _Signals) -> tuple:
    "Run a job notebook, whatever happens: state, reason, exit code and traceback."
    try:
        signals.armed = True
        signals.check()
        _run_notebook(notebook, folder, params, signals)
        return "succeeded", None, EXIT_OK, ""
    except (_Stop, Exception) as error:
        signals.armed = False
        if signals.got:
            code = EXIT_REQUEUE if signals.got[0] == "SIGUSR1" else EXIT_TERMINATED
            return "interrupted", signals.got[0], code, ""
        known = type(error).__name__ == "PapermillExecutionError"  # it is in the log
        known |= isinstance(error, TooLittle)
        text = "" if known else traceback.format_exc()
        return "failed", _why_failed(error, signals), EXIT_FAILED, text
    finally:
        signals.armed = False


def _run_params(book: JobNotebook, folder: Path) -> dict:
    "The parameters of a run folder, with the folder itself where the notebook asks for it."
    path = Path(folder) / "params.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no params.json in {folder}: rvtutorial.slurm.submit writes one"
        )
    params = read_json(path, {})
    known = book.parameters
    if "output_uri" in known and not params.get("output_uri"):
        params["output_uri"] = str(folder)
    if params.get("keep") and "checkpoint" not in known:  # a notebook of version 0.1.0
        params["checkpoint"] = params["keep"]  # asks Hyperparams for the names of today
    return params


def _attempt(folder: Path, book: JobNotebook, record: dict, signals: _Signals) -> int:
    "One attempt: record its beginning, run it, record its end; its exit code."
    run = Run(folder)
    went = run.manifest.get("went", {})
    attempts, path = [*went.get("attempts", []), record], folder / "notebook.ipynb"
    if path.exists() and attempts[:-1] and attempts[-2]["state"] != "succeeded":
        os.replace(path, folder / f"notebook.attempt{len(attempts) - 1}.ipynb")
    given, params = read_json(folder / "params.json"), _run_params(book, folder)
    job = went.get("job") or {}
    if job.get("submission") in (None, record["submission"]):  # not queued again since
        job = dict(job, notebook=str(book.path), params=given)
    run.update("went", state="running", why=None, attempts=attempts, job=job)
    with reserve_disk(folder):  # for the record of how it ended
        state, why, code, text = _execute(book.path, folder, params, signals)
        paused = run.manifest["went"].get("paused") if state == "succeeded" else None
        if paused:
            state, why = "paused", f"paused after {paused} epochs, as asked"
        record.update(ended=_now(), state=state, why=why)
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        noted = getattr(signals.process, "peak", None)  # of a kernel from a forkserver
        peak = round((used if noted is None else noted.value) / 1024)
        end = dict(state=state, why=why, attempts=attempts, peak_memory_mb=peak)
        run.update_last("went", **end)
    with contextlib.suppress(OSError, ValueError):  # papermill's own status is too kind
        book = json.loads(path.read_text(encoding="utf-8"))
        ended = dict(state=state, why=why, attempt=len(attempts))
        book["metadata"]["rvtutorial"] = ended
        write_json(path, book)
    with contextlib.suppress(OSError):
        print(f"{text}{_now()} {state}" + (f": {why}" if why else ""), flush=True)
    return code


@contextlib.contextmanager
def _log_to(path: Path):
    "Send all that this process and its children print to a file, line by line."
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        try:
            sys.stdout.flush(), sys.stderr.flush()
        except OSError:  # disk full: what is left in the buffer goes nowhere
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)


def _run_job(folder, notebook=None, submission=None, index=None) -> int:
    "Run a folder's job, unless it has succeeded already or somebody else runs it."
    folder = Path(folder).resolve()
    asked = (Run(folder).manifest.get("went", {}).get("job") or {}).get("notebook")
    book = JobNotebook(notebook or asked or "train_rastervision")
    _run_params(book, folder)  # there, and readable
    try:
        with _Signals() as signals, held(folder / "job.lock", keep=True):
            book.refuse_other_run(folder, read_json(folder / "params.json", {}))
            if Run(folder).state == "succeeded":
                print(f"{folder} has succeeded already: nothing to do")
                return EXIT_OK
            print(f"{_now()} {book.path.stem} in {folder}, log in job.log", flush=True)
            with _log_to(folder / "job.log"):
                names = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT")
                slurm = {n.lower(): os.environ.get(f"SLURM_{n}") for n in names}
                slurm = {k: v for k, v in slurm.items() if v is not None}
                record = dict(started=_now(), state="running")
                record |= dict(host=socket.gethostname(), pid=os.getpid())
                record |= dict(submission=submission, index=index, slurm=slurm)
                record |= dict(container=os.environ.get("APPTAINER_CONTAINER"))
                record |= dict(python=platform.python_version())
                return _attempt(folder, book, record, signals)
    except (Busy, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


def _read_tasks(tasks: str | Path) -> dict:
    "The members of a submission; FileNotFoundError where it is gone."
    doc = read_json(tasks, None, records.TASKS, ("folders", "notebook"))
    if doc is None:
        raise FileNotFoundError(f"there is no {tasks}")
    return doc


def _serve(tasks: str | Path) -> int:
    "Run the members whose numbers come in line by line, and answer how each has ended."
    doc, home = _read_tasks(tasks), Path(tasks).resolve().parent
    hook = (doc.get("before") or "").partition(":")[0]
    hooks = [hook] if hook.startswith("rvtutorial.") else []
    share_imports([*JobNotebook(home / doc["notebook"]).imports, *hooks])
    with contextlib.suppress(ValueError):  # `python -m` has put it there
        sys.path.remove(os.getcwd())
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        number = int(line)
        _listen(signal.SIG_DFL)  # from here on a signal is meant for this member
        with _log_to(home / f"local-{number}.out"):
            gone = number in Submission(home).cancelled  # its signal came before
            code = EXIT_TERMINATED if gone else _main(["member", tasks, number])
        _listen(signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError):  # the queue was killed
            os.write(answers, f"\nended {number} {code}\n".encode())
    return EXIT_OK


def _listen(how) -> None:
    for number in GRACE:
        signal.signal(number, how)


def _run_member(tasks: str | Path, index: int | str) -> int:
    """Run one member of a submission: its number picks the folder from tasks.json.

    `before` may choose its parameters when it begins, so that a second round can look at
    the first without a process that has to watch over them. A run that is not needed
    ends as skipped, or stays paused, with the reason.
    """
    doc, index = _read_tasks(tasks), int(index)
    home, folder = Path(tasks).resolve().parent, Path(doc["folders"][index])
    run = Run(folder)
    if run.state != "succeeded" and "params" in doc:
        params = doc["params"][index]
        if doc.get("before"):
            module, _, name = doc["before"].partition(":")
            params = getattr(importlib.import_module(module), name)(folder, params)
            if not isinstance(params, dict):
                paused = run.manifest.get("went", {}).get("paused")
                state = "paused" if paused else "skipped"
                run.update("went", state=state, why=str(params or "not needed"))
                print(f"{_now()} {folder.name} {state}: {params}", flush=True)
                return EXIT_OK
            if not run.manifest.get("asked"):  # else its values are settled
                run.update("went.job", params=params)
        write_json(folder / "params.json", params)
    return _run_job(folder, home / doc["notebook"], str(home), index)


def _main(argv: list[str] | None = None) -> int:
    """The command line, and what job scripts call.

    `python -m rvtutorial.hpc.runner RUN_FOLDER [--notebook N]`.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m rvtutorial.hpc.runner")
    parser.add_argument("folder", help="run folder, with its params.json")
    parser.add_argument("--notebook", help="name or path of a job notebook")
    try:
        if argv[:1] == ["member"]:
            return _serve(argv[1]) if argv[2:] == ["serve"] else _run_member(*argv[1:3])
        given = parser.parse_args(argv)
        return _run_job(given.folder, given.notebook)
    except (ValueError, OSError, SlurmError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(_main())

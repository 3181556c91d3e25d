"""The local queue: submissions take turns on a machine without Slurm, and their members run one after the other.

Each submission is a process of its own with a ticket, a file that is named by the time of
submission; it waits until nobody holds an earlier one. The operating system frees the lock
of a process that ends, however it ends, so that a crash never blocks the queue.
"""

import contextlib
import errno
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from rvtutorial.core import files, records
from rvtutorial.core.commands import answer, clean_env
from rvtutorial.core.records import Unreadable, read_json, write_json
from rvtutorial.core.renamed import say_once
from rvtutorial.hpc.scheduler import FINE, NEVER, SLURM, WORDS, SlurmError, find_job
from rvtutorial.hpc.sites import option
from rvtutorial.runs import Run

QUEUE = {  # queue.json
    "pid": int, "host": str, "script": int, "members": [{"state": str, "reason": str}],
}  # fmt: skip


# --- processes


def _command(pid) -> list[str] | None:
    "The words of a process's command, None where there is no such process."
    try:
        return psutil.Process(int(pid)).cmdline()
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return None


def _is_queue(pid, home: str | Path = "") -> bool:
    "Whether a process is the queue of a submission, or of any; not a later one of its number."
    command = _command(pid)
    if command == []:  # just being started, or the kernel's own: 2 and its children
        with contextlib.suppress(psutil.Error):
            return psutil.Process(int(pid)).ppid() not in (0, 2)
    # the second until 0.1.0, the third for some days after
    names = {f"rvtutorial.{name}" for name in ("hpc.local_queue", "queues", "hpc.queue")}
    command = command or []
    return bool(names & {*command}) and str(home) in [*command, ""]


def _is_script(pid, home: Path) -> bool:
    "Whether a process is the job script of a submission, which lives as long as a member."
    return str(home / "job.sh") in (_command(pid) or [])


# --- whose turn it is


def queue_folder() -> Path:
    "Where the local queue of this machine and user keeps its tickets; OSError if nowhere."
    named = os.environ.get("RVTUTORIAL_QUEUE")
    if named:
        Path(named).mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(named)
    try:
        return files.lasting_folder("rvtutorial-queue")
    except OSError as err:  # a folder for each process would be a queue for each
        raise OSError(
            f"no private folder for the local queue ({err.filename} is not yours alone): "
            f"set RVTUTORIAL_QUEUE to a folder of yours"
        ) from None


def _ticket_of(since: int, pid: int) -> Path:
    "Where a process that waits in the queue puts its ticket."
    return queue_folder() / f"{since:020}-{pid}.ticket"


@contextlib.contextmanager
def _first_in_queue(since: int, label: str = "", waiting=lambda ahead: None):
    "Wait until all jobs queued before `since` (ns) are over, then hold the queue."
    mine = _ticket_of(since, os.getpid())
    new = Path(f"{mine}.new")
    with files.locked(new, 0), contextlib.ExitStack() as stack:
        new.write_text(f"{label}\n")
        os.rename(new, mine)
        stack.callback(mine.unlink, missing_ok=True)

        def held_up() -> bool:  # Whether an earlier ticket came meanwhile
            ahead = _ahead(mine)
            waiting(ahead or "another job")
            return bool(ahead)

        while True:
            while ahead := _ahead(mine):
                waiting(ahead)
                time.sleep(0.2)
            with contextlib.suppress(files.Busy):
                running = queue_folder() / "running.lock"
                stack.enter_context(files.locked(running, math.inf, held_up, 0.2))
                break
        yield


def _ahead(mine: Path) -> str | None:
    "The label of the first ticket before ours that is held, or whose owner is starting."
    for path in sorted(mine.parent.glob("*.ticket")):
        if path < mine and (
            files.is_locked(path) or _is_queue(path.stem.split("-")[1])
        ):
            with contextlib.suppress(FileNotFoundError):
                return path.read_text().strip() or "another job"
    return None


# --- submissions

_SOUGHT: dict = {}  # Submission folder -> when its job id was looked for, and found


class Submission:
    "The folder of runs that were submitted together: what is on record, and its queue."

    def __init__(self, home: str | Path):
        self.home = Path(home)

    @property
    def job(self) -> dict:
        "What `job.json` says; empty where there is none."
        return read_json(self.home / "job.json", {}, records.SUBMITTED, ("queue",))

    @property
    def folders(self) -> list[str] | None:
        "The run folders in order; None where it is gone."
        found = read_json(self.home / "tasks.json", None, records.TASKS, ("folders",))
        return found and found["folders"]

    @property
    def cancelled(self) -> list[int]:
        "The members that somebody has cancelled."
        return read_json(self.home / "cancelled.json", [], records.CANCELLED)

    def slurm_id(self) -> str | None:  # "": perhaps it is on its way
        "The id that Slurm gave; looked for by its name where none is noted."
        doc = self.job
        if doc.get("id") or doc.get("refused"):
            return doc.get("id")
        at, found = _SOUGHT.get(self.home, (-math.inf, None))
        if time.monotonic() - at >= SLURM.every:
            # whoever submitted was killed, or it was pasted
            found = find_job(
                self.home.name, option(doc.get("sbatch") or (), "clusters")
            )
            _SOUGHT[self.home] = time.monotonic(), found
        if found:
            write_json(self.home / "job.json", doc | {"id": found})
        sent = time.time() - (self.home / "job.json").stat().st_mtime
        return found or (None if found == "" and sent > 90 else "")

    def start_local(self) -> str:
        "Start the local queue's process for it; its process id."
        command = [sys.executable, "-m", "rvtutorial.hpc.local_queue", str(self.home)]
        null, env = subprocess.DEVNULL, clean_env()
        with open(self.home / "queue.log", "ab") as log:
            process = subprocess.Popen(
                command, stdin=null, stdout=log, stderr=log, cwd=self.home, env=env,
                start_new_session=True,  # outlives this notebook's kernel
            )  # fmt: skip
        # its place in the queue is that of its submission, however slowly it starts
        _ticket_of((self.home / "tasks.json").stat().st_mtime_ns, process.pid).touch()
        return str(process.pid)

    def local_states(self) -> dict[int, tuple[str, str]]:  # Member -> our word, reason
        "States of the members in the local queue, by the processes that are at work."
        doc = read_json(
            self.home / "queue.json", None, QUEUE, ("pid", "host", "members")
        )
        if doc is None:  # its process is just starting, or never did
            starting = [dict(state="PENDING", reason="starting")]
            starting *= len(self.folders or ())
            job = self.job
            doc = dict(pid=job.get("id"), host=job.get("host"), members=starting)
        over = ()  # States that are no longer true
        if doc["host"] == socket.gethostname() and not _is_queue(doc["pid"], self.home):
            over = ("PENDING", "RUNNING")
            if _is_script(doc.get("script"), self.home):  # the queue was killed alone
                over = ("PENDING",)
        found = {}
        for index, member in enumerate(doc["members"]):
            if member.get("state") not in over:
                word = WORDS.get(member.get("state"), "unknown")
                found[index] = (word, member.get("reason") or "")
        return found

    def cancel(self, members: list[int]) -> None:
        "Take members out of the queue, or stop them."
        slurm = self.job.get("queue") == "slurm"
        self.home.mkdir(parents=True, exist_ok=True)
        with files.locked(self.home / ".cancelling"):  # another may be adding members
            known = sorted({*self.cancelled, *members})
            write_json(self.home / "cancelled.json", known)
        SLURM.forget()
        if slurm:
            number, _, cluster = (self.slurm_id() or "").partition(";")
            if not number:
                raise SlurmError(
                    f"Slurm has not said yet which number the job {self.home.name} has: "
                    f"cancel it again in a minute, or in a terminal: "
                    f"scancel --name={self.home.name}"
                )
            command = ["scancel", *(f"{number}_{m}" for m in members)]
            if answer(command, cluster) is None:
                command[1:1] = ["-M", cluster] if cluster else []
                raise SlurmError(f"{' '.join(command)} failed; try it in a terminal")
            return
        queue = read_json(self.home / "queue.json", {}, QUEUE)
        if queue.get("host") == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                if _is_queue(queue.get("pid"), self.home):
                    os.kill(queue["pid"], signal.SIGUSR1)
                elif _is_script(queue.get("script"), self.home):  # alone
                    states = [m.get("state") for m in queue.get("members", [])]
                    if "RUNNING" in [states[m] for m in members if m < len(states)]:
                        os.kill(queue["script"], signal.SIGTERM)


# --- a full disk

FULL = "the disk is full"


def _is_full(folder: Path) -> bool:  # Not even room for 64 kB
    "Whether the disk of a folder, or somebody's share of it, is full."
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(records.RESERVE))
    except OSError as err:
        return err.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        probe.unlink(missing_ok=True)
    return False


# --- the process of a submission

DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # CUDA and ROCm do not work after a fork


class _JobScript:
    "The job script of a submission: for one member, or for all, each told by a line."

    def __init__(self, home: Path, member: int, shares: bool):
        self.home, self.shares, self.member = home, shares, member
        pipe = subprocess.PIPE if shares else None
        command = ["bash", str(home / "job.sh"), "serve" if shares else str(member)]
        with self._log() as log:
            self.process = subprocess.Popen(
                command, stdin=pipe or subprocess.DEVNULL, stdout=pipe or log,
                stderr=log, start_new_session=True, bufsize=0,
            )  # fmt: skip
        self.pid = self.process.pid

    def _log(self):
        try:
            return open(self.home / f"local-{self.member}.out", "ab", buffering=0)
        except OSError:  # a full disk
            return open(os.devnull, "ab", buffering=0)

    def run(self, member: int) -> None:
        "Begin a member; a script that has just ended has no use for the line."
        self.member = member
        if self.shares:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(f"{member}\n".encode())

    def wait(self, timeout: float | None = None) -> int:
        "Exit code of the member that runs; raises `subprocess.TimeoutExpired`."
        if not self.shares:
            return self.process.wait(timeout)
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end == math.inf else max(0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise subprocess.TimeoutExpired(f"member {self.member}", timeout)
            line = self.process.stdout.readline()
            if not line:  # killed, or it could not even start
                return self.process.wait() or 1
            if line.split()[:2] == [b"ended", str(self.member).encode()]:
                return int(line.split()[2])
            if line.strip():  # what else the script prints
                with contextlib.suppress(OSError), self._log() as log:
                    log.write(line)

    def send_signal(self, number: int) -> None:
        "Send a signal to the script, which passes it on."
        self.process.send_signal(number)

    def close(self) -> None:
        "Let the script end."
        if self.shares:
            self.process.stdin.close()
        self.process.wait()


KILL_WAIT = 30  # Seconds between SIGTERM and SIGKILL, Slurm's default


def _end_in_time(script, seconds: float | None, warn: float) -> tuple[int, bool]:
    "Exit code of a job that may take only so long, and whether it had to be stopped."
    stopped, begun = False, time.monotonic()
    seconds = math.inf if seconds is None else seconds
    steps = [(seconds - warn, signal.SIGUSR1)] if 0 < warn < seconds else []
    steps += [(seconds, signal.SIGTERM), (seconds + KILL_WAIT, signal.SIGKILL)]
    for limit, number in steps if seconds < math.inf else []:
        try:
            return script.wait(max(0, begun + limit - time.monotonic())), stopped
        except subprocess.TimeoutExpired:
            stopped = number != signal.SIGUSR1
            if number == signal.SIGKILL:  # with all that it has started
                os.killpg(script.pid, number)
            else:
                script.send_signal(number)
    return script.wait(), stopped


class _LocalQueue:
    "Runs the members of one submission, one after the other, and notes their states."

    def __init__(self, home: str | Path):  # Folder of the submission
        self.home, self.running, self.script = Path(home), None, None
        self.tasks = read_json(
            self.home / "tasks.json", form=records.TASKS, needed=("folders",)
        )
        folders = self.tasks["folders"]
        self.members = [dict(state="PENDING", reason="") for _ in folders]
        # members share their imports unless RVTUTORIAL_FRESH=1 says no
        fresh = os.environ.get("RVTUTORIAL_FRESH", "") not in ("", "0")
        fresh = fresh or files.addresses_gb() < 8 or any(map(os.path.exists, DRIVERS))
        self.shares = len(folders) > 1 and not fresh
        more = f" and {len(folders) - 1} more" if folders[1:] else ""
        self.label = Path(folders[0]).name + more

    def note(self, members=(), last=False, **values):
        "Write what is known of all members, the same news of some of them."
        for member in members:
            self.members[member].update(values)
        script = self.script.pid if self.script is not None else None
        doc = dict(pid=os.getpid(), host=socket.gethostname(), script=script)
        doc |= {"members": self.members}
        with contextlib.suppress(OSError):  # no room: the next call says it again
            write_json(self.home / "queue.json", doc, last)

    def cancelled(self, member: int) -> bool:
        "Whether somebody asked that a member should not run."
        try:
            return member in Submission(self.home).cancelled
        except Unreadable as error:  # nobody can have meant that
            say_once(str(error))  # it is asked at every turn
            return False

    def start(self, member: int) -> "_JobScript":
        "Begin a member; the job script is started where none runs that can take it."
        if self.script is None or self.script.process.poll() is not None:
            self.script = _JobScript(self.home, member, self.shares)
        self.script.run(member)
        self.running = member
        return self.script

    def stop_cancelled(self) -> None:
        "Stop the member that runs if somebody has asked for it."
        if self.running is not None and self.cancelled(self.running):
            self.script.send_signal(signal.SIGTERM)

    def run_member(self, member: int) -> None:
        "Run one member; again when it asks for it with exit code 75, but not for ever."
        for restart in range(self.tasks.get("restarts", 0) + 1):
            script = self.start(member)
            self.note([member], state="RUNNING", reason="", restart=restart)
            self.stop_cancelled()
            limit, warn = self.tasks.get("seconds"), self.tasks.get("warn", 0)
            code, stopped = _end_in_time(script, limit, warn)
            if code != 75 or self.cancelled(member):
                break
        self.running, code = None, code if code >= 0 else 128 - code  # as a shell says
        state = "TIMEOUT" if stopped else "FAILED"
        state = "CANCELLED" if self.cancelled(member) else state
        reason = FULL if code and state == "FAILED" and _is_full(self.home) else ""
        state = state if code else "COMPLETED"
        self.note([member], state=state, code=code, reason=reason)

    def unmet(self) -> bool:
        "Whether a run did not succeed without whose success no member may begin."
        return any(Run(path).state not in FINE for path in self.tasks.get("needs", []))

    def wait_behind(self, ahead: str) -> None:
        "Note whose turn it is, and leave when all members are cancelled."
        if all(self.cancelled(m) for m in range(len(self.members))):
            raise SystemExit(0)
        reason = f"behind {ahead}"
        others = [i for i, m in enumerate(self.members) if m["reason"] != reason]
        if others:
            self.note(others, reason=reason)

    def run(self) -> None:
        "Wait for the turn of the submission, then run all its members."
        everyone = list(range(len(self.members)))

        def stop(number, frame):  # all members, not only those that are noted
            write_json(self.home / "cancelled.json", everyone)
            self.stop_cancelled()

        signal.signal(signal.SIGUSR1, lambda number, frame: self.stop_cancelled())
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal
        self.note()
        since = (self.home / "tasks.json").stat().st_mtime_ns
        with records.reserve_disk(self.home):
            try:
                with _first_in_queue(since, self.label, self.wait_behind):
                    unmet = self.unmet()
                    for member in everyone:
                        if not unmet and not self.cancelled(member):
                            self.run_member(member)
            finally:
                if self.script is not None:
                    self.script.close()
                why = NEVER if self.unmet() else ""
                left = [m for m in everyone if self.members[m]["state"] == "PENDING"]
                self.note(left, last=True, state="CANCELLED", reason=why)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rvtutorial.hpc.local_queue SUBMISSION_FOLDER")
    _LocalQueue(sys.argv[1]).run()

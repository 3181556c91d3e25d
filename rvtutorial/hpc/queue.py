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

from rvtutorial.core import records
from rvtutorial.core.commands import clean_env
from rvtutorial.core.files import (
    Busy,
    addresses_gb,
    is_locked,
    lasting_folder,
    locked,
)
from rvtutorial.core.records import (
    RESERVE,
    Unreadable,
    read_json,
    reserve_disk,
    write_json,
)
from rvtutorial.core.renamed import say_once
from rvtutorial.hpc.scheduler import FINE, NEVER, our_word
from rvtutorial.runs import Run

# --- the folder of a submission

QUEUE = {  # queue.json
    "pid": int, "host": str, "script": int, "members": [{"state": str, "reason": str}],
}  # fmt: skip


def submitted(home: str | Path) -> dict:
    "What `job.json` says of a submission; empty where there is none."
    return read_json(Path(home) / "job.json", {}, records.SUBMITTED, ("queue",))


def folders_of(home: str | Path) -> list[str] | None:
    "The run folders of a submission in order; None where it is gone."
    path = Path(home) / "tasks.json"
    found = read_json(path, None, records.TASKS, ("folders",))
    return found and found["folders"]


def cancelled_members(home: str | Path) -> list[int]:
    "The members of a submission that somebody has cancelled."
    return read_json(Path(home) / "cancelled.json", [], records.CANCELLED)


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
    if (
        command == []
    ):  # just being started, or one of the kernel's own: 2 and its children
        with contextlib.suppress(psutil.Error):
            return psutil.Process(int(pid)).ppid() not in (0, 2)
    names = {"rvtutorial.hpc.queue", "rvtutorial.queues"}  # the second until 0.1.0
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
        return lasting_folder("rvtutorial-queue")
    except OSError as err:  # a folder for each process would be a queue for each
        raise OSError(
            f"no private folder for the local queue ({err.filename} is not yours alone): "
            f"set RVTUTORIAL_QUEUE to a folder of yours"
        ) from None


def _ticket_of(since: int, pid: int) -> Path:
    "Where a process that waits in the queue puts its ticket."
    return queue_folder() / f"{since:020}-{pid}.ticket"


@contextlib.contextmanager
def _first_in_queue(
    since: int,  # Time of submission, in nanoseconds
    label: str = "",  # What others are told who wait behind
    waiting=lambda ahead: None,  # Called five times a second with the label in front
):
    "Wait until all jobs queued before `since` are over, then hold the queue."
    mine = _ticket_of(since, os.getpid())
    new = Path(f"{mine}.new")
    with locked(new, 0), contextlib.ExitStack() as stack:
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
            with contextlib.suppress(Busy):
                running = queue_folder() / "running.lock"
                stack.enter_context(locked(running, math.inf, held_up, 0.2))
                break
        yield


def _ahead(mine: Path) -> str | None:
    "The label of the first ticket before ours that is held, or whose owner is starting."
    for path in sorted(mine.parent.glob("*.ticket")):
        if path < mine and (is_locked(path) or _is_queue(path.stem.split("-")[1])):
            with contextlib.suppress(FileNotFoundError):
                return path.read_text().strip() or "another job"
    return None


# --- a full disk

FULL = "the disk is full"


def _is_full(folder: Path) -> bool:  # Not even room for 64 kB
    "Whether the disk of a folder, or somebody's share of it, is full."
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(RESERVE))
    except OSError as err:
        return err.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        probe.unlink(missing_ok=True)
    return False


# --- the process of a submission

DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # CUDA and ROCm do not work after a fork


def _may_share() -> bool:
    "Whether the members of a submission can share their imports; `RVTUTORIAL_FRESH=1`: no."
    fresh = os.environ.get("RVTUTORIAL_FRESH", "") not in ("", "0")
    return not (fresh or addresses_gb() < 8 or any(map(os.path.exists, DRIVERS)))


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

    @property
    def is_over(self) -> bool:
        "Whether it has ended, and takes no other member."
        return self.process.poll() is not None

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


def _end_in_time(
    script,  # A `_JobScript` or a Popen, leader of its group
    seconds: float | None,  # Longest run time
    warn: float,  # Seconds before its end that the job is warned
) -> tuple[int, bool]:  # Exit code, and whether it had to be stopped
    "Wait for a job that may take only so long."
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


class LocalQueue:
    "Runs the members of one submission, one after the other, and notes their states."

    def __init__(self, home: str | Path):  # Folder of the submission
        self.home, self.running, self.script = Path(home), None, None
        self.tasks = read_json(
            self.home / "tasks.json", form=records.TASKS, needed=("folders",)
        )
        folders = self.tasks["folders"]
        self.members = [dict(state="PENDING", reason="") for _ in folders]
        self.shares = len(folders) > 1 and _may_share()
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
            return member in cancelled_members(self.home)
        except Unreadable as error:  # nobody can have meant that
            say_once(str(error))  # it is asked at every turn
            return False

    def start(self, member: int) -> "_JobScript":
        "Begin a member; the job script is started where none runs that can take it."
        if self.script is None or self.script.is_over:
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

    def unmet(self) -> list[str]:
        "Names of the runs without whose success no member may begin."
        needed = map(Run, self.tasks.get("needs", []))
        return [run.name for run in needed if run.state not in FINE]

    def wait_behind(self, ahead: str) -> None:
        "Note whose turn it is, and leave when all members are cancelled."
        if all(self.cancelled(m) for m in range(len(self.members))):
            raise SystemExit(0)
        reason = f"behind {ahead}"
        others = [
            m for m, known in enumerate(self.members) if known["reason"] != reason
        ]
        if others:
            self.note(others, reason=reason)

    def obey_signals(self) -> None:
        "SIGTERM cancels all members, SIGUSR1 those that are noted; a closed terminal none."

        def stop(number, frame):
            write_json(self.home / "cancelled.json", list(range(len(self.members))))
            self.stop_cancelled()

        signal.signal(signal.SIGUSR1, lambda number, frame: self.stop_cancelled())
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(self) -> None:
        "Wait for the turn of the submission, then run all its members."
        everyone = range(len(self.members))
        self.obey_signals()
        self.note()
        since = (self.home / "tasks.json").stat().st_mtime_ns
        with reserve_disk(self.home):
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


def start_local(home: Path) -> str:
    "Start the local queue's process for a submission; its process id."
    command = [sys.executable, "-m", "rvtutorial.hpc.queue", str(home)]
    null, env = subprocess.DEVNULL, clean_env()
    with open(home / "queue.log", "ab") as log:
        process = subprocess.Popen(
            command, stdin=null, stdout=log, stderr=log, cwd=home, env=env,
            start_new_session=True,  # outlives this notebook's kernel
        )  # fmt: skip
    # its place in the queue is that of its submission, however slowly it starts
    _ticket_of((home / "tasks.json").stat().st_mtime_ns, process.pid).touch()
    return str(process.pid)


def ask_local(
    home: Path,  # Folder of a submission
) -> dict[int, tuple[str, str]]:  # Member -> our word, reason
    "States of the members of a local submission, by the processes that are at work."
    doc = read_json(home / "queue.json", None, QUEUE, ("pid", "host", "members"))
    if doc is None:  # its process is just starting, or never did
        job = submitted(home)
        starting = [dict(state="PENDING", reason="starting")]
        starting *= len(folders_of(home) or ())
        doc = dict(pid=job.get("id"), host=job.get("host"), members=starting)
    over = ()  # States that are no longer true
    if doc["host"] == socket.gethostname() and not _is_queue(doc["pid"], home):
        over = ("PENDING", "RUNNING")
        if _is_script(doc.get("script"), home):  # the queue was killed alone
            over = ("PENDING",)
    found = {}
    for index, member in enumerate(doc["members"]):
        word, note = our_word(member.get("state") or "")
        if member.get("state") not in over:
            found[index] = (word, note or member.get("reason") or "")
    return found


def cancel_local(home: Path, members: list[int]) -> None:
    "Tell the local queue of this machine that members were cancelled."
    queue = read_json(home / "queue.json", {}, QUEUE)
    if queue.get("host") != socket.gethostname():
        return
    with contextlib.suppress(ProcessLookupError):
        if _is_queue(queue.get("pid"), home):
            os.kill(queue["pid"], signal.SIGUSR1)
        elif _is_script(queue.get("script"), home):  # the queue was killed alone
            states = [member.get("state") for member in queue.get("members", [])]
            if "RUNNING" in [states[m] for m in members if m < len(states)]:
                os.kill(queue["script"], signal.SIGTERM)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rvtutorial.hpc.queue SUBMISSION_FOLDER")
    LocalQueue(sys.argv[1]).run()

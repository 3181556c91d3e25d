"""Slurm's words: time limits, job ids, and states of jobs.

Of every answer the lines are taken that look as they should: a site may print others.
"""

import getpass
import math
import re
import time

from rvtutorial.core.commands import answer

_SLURM_WORDS = {
    "queued": "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD "
    "SPECIAL_EXIT POWER_UP_NODE EXPEDITING",
    "running": "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING "
    "UPDATE_DB",
    "cancelled": "CANCELLED",
    "timed out": "TIMEOUT DEADLINE",
    "out of memory": "OUT_OF_MEMORY",
    "node lost": "NODE_FAIL BOOT_FAIL",
    "interrupted": "PREEMPTED",
    "failed": "FAILED LAUNCH_FAILED RECONFIG_FAIL",
    "succeeded": "COMPLETED",
}
WORDS = {slurm: ours for ours, words in _SLURM_WORDS.items() for slurm in words.split()}
LIVE = ("queued", "running")  # States that change by themselves
FINE = ("succeeded", "paused", "skipped")  # Over, and as it was meant to be
NEVER = "DependencyNeverSatisfied"  # Slurm's word; the local queue uses it too


class SlurmError(RuntimeError):
    "Slurm refused something, or did not answer."


def _our_word(
    state: str,  # In Slurm's words, such as "CANCELLED by 1000"
) -> tuple[str, str]:  # `unknown` for a word that is not in the list, and that word
    "Our word for a state, and what has to be said about it."
    found = re.match(r"[A-Z_]+", state.strip())
    name = found[0] if found else state.strip()
    if name == "REVOKED":  # of a federation: the same job goes on elsewhere
        return "unknown", "another cluster has taken it (REVOKED)"
    if name not in WORDS:
        return "unknown", f"Slurm calls its state {name!r}, a word not known here"
    return WORDS[name], ""


def minutes(
    text: str | int,  # 150, "02:30:00", "1-12", "30:00" or "infinite", as Slurm has it
) -> float:  # Infinite where there is no limit
    "A time limit in minutes; ValueError for what is none."
    text = str(text)
    if text.lower() in ("infinite", "unlimited", "n/a"):
        return math.inf
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # days-hours[:minutes[:seconds]]
        hours, mins, secs = [*parts, 0, 0][:3]
    else:  # minutes[:seconds] or hours:minutes:seconds
        hours, mins, secs = parts if len(parts) == 3 else [0, *parts, 0][:3]
    return (int(days or 0) * 24 + hours) * 60 + mins + secs / 60


def find_job(
    name: str,  # Of the submission, in squeue's column NAME
    cluster: str = "",  # Its name; empty: the one we are on
    among: tuple = (),  # Numbers that it can have; empty: any
) -> str | None:  # Its job id, "" if Slurm knows none, None if Slurm does not answer
    "Search the queue, then the accounting, for a job by its name."
    form = re.compile(rf"(\d+)(?:[;_+][^|]*)?\|{re.escape(name)}")
    queue = ["squeue", "-h", "-t", "all", "-n", name, "-u", getpass.getuser()]
    old = ["sacct", "-n", "-X", "-P", f"--name={name}", "-o", "JobID,JobName"]
    recent = answer([*queue, "-o", "%F|%j"], cluster)
    lines = [recent or "", answer(old, cluster) or ""]
    for line in "\n".join(lines).splitlines():
        found = form.fullmatch(line.strip())  # a notice may be a number, too
        if found and (not among or found[1] in among):
            return f"{found[1]};{cluster}" if cluster else found[1]
    return None if recent is None else ""


def _read_states(text: str) -> dict[tuple[str, int], tuple[str, str]]:
    "(id, member) -> our word and the reason, from what squeue says of arrays."
    found = {}
    for line in text.splitlines():
        line = re.sub(r"\s*\|\s*", "|", line.strip())
        parts = re.fullmatch(r"(\d+)\|([\d\[][^|]*)\|([^|]+)\|(.*)", line)
        if not parts:  # a notice of the site, or a job that is no array
            continue
        (word, note), reason = _our_word(parts[3]), parts[4]
        for member in _members(parts[2]):
            key = parts[1], member
            if word != "unknown" or key not in found:  # of a federation's two lines one
                found[key] = (word, note or ("" if reason == "None" else reason))
    return found


def _members(text: str) -> list[int]:
    'The numbers in "3", or of those that wait together: "[0-2,7,10-20:5%4]".'
    found = []
    for part in text.strip("[] ").partition("%")[0].split(","):
        if ends := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = (int(n) if n else None for n in ends.groups())
            found += range(first, (first if last is None else last) + 1, step or 1)
    return found


def _accounted(numbers: list[str], cluster: str) -> dict | None:
    "States from the accounting, None where there is none."
    asked = ["sacct", "-n", "-X", "-P", "-j", ",".join(numbers)]
    text = answer([*asked, "-o", "JobID,State"], cluster)
    lines = (text or "").splitlines()
    form = r"(\d+)_([\d\[][^|]*)\|([^|]+)"
    parts = [re.fullmatch(form, line.strip()) for line in lines]
    found = {(p[1], m): _our_word(p[3]) for p in parts if p for m in _members(p[2])}
    return None if text is None else found


def _controlled(number: str, cluster: str) -> dict:
    "States of one job from scontrol."
    told, found = answer(["scontrol", "show", "job", "-o", number], cluster), {}
    for line in (told or "").splitlines():
        said = dict(re.findall(r"(\w+)=(\S+)", line))
        member = said.get("ArrayTaskId", "")
        if member.isdigit() and {"JobState", "ArrayJobId"} <= set(said):
            found[said["ArrayJobId"], int(member)] = _our_word(said["JobState"])
    return found


def _states_on(cluster: str, numbers: list[str]) -> dict:
    "States of the members of some jobs of one cluster."
    asked = ["squeue", "-h", "-r", "-t", "all", "-j", ",".join(numbers)]
    recent = answer([*asked, "-o", "%F|%K|%T|%r"], cluster)
    found = _read_states(recent or "")
    rest = sorted(set(numbers) - {job for job, _ in found})
    if not rest:
        return found
    older = _accounted(rest, cluster)
    if recent is None:  # then nobody knows whether the others wait or are lost
        silent = {(job, None): ("unknown", "Slurm does not answer") for job in rest}
        return silent | (older or {})
    if older is None:  # no accounting
        older = {k: v for job in rest for k, v in _controlled(job, cluster).items()}
    return older | found


def _ask_slurm(ids: list[str]) -> dict[tuple, tuple[str, str]]:
    "States of all members; `SlurmError` if no command of Slurm answers, on no cluster."
    groups, found = {}, {}
    for job in ids:
        number, _, cluster = job.partition(";")
        groups.setdefault(cluster, {})[number] = job
    for cluster, jobs in groups.items():
        reply = _states_on(cluster, sorted(jobs))
        found |= {(jobs[n], m): word for (n, m), word in reply.items() if n in jobs}
    if ids and set(found) == {(job, None) for job in ids}:
        raise SlurmError("Slurm does not answer")
    return found


class _Watcher:
    "Asks Slurm about all jobs of this process together, and not too often."

    def __init__(self, every: float = 5.0):  # Seconds between two questions
        self.every, self.ids, self.reply, self.over = every, set(), {}, {}
        self.at, self.silent, self.since, self.known = -math.inf, 0, None, set()

    def states(
        self,
        ids,  # Job ids
        now: bool = False,  # Ask, even if it was asked a moment ago
    ) -> dict[tuple, tuple[str, str]]:  # (id, member), or (id, None) for all of them
        "What is known of some jobs; `unknown` while Slurm has not been asked or is silent."
        self.ids |= {i for i in ids if i not in self.over}
        pause = min(self.every * 2**self.silent, 60)
        if self.ids & set(ids) and (now or time.monotonic() - self.at >= pause):
            self._ask()
        told = {key: word for key, word in self.reply.items() if key[0] in ids}
        told |= {k: w for i in ids for k, w in self.over.get(i, {}).items()}
        why = "Slurm does not answer" if self.silent else ""
        sure = {*self.over, *(() if self.silent else self.known)}
        return told | {(i, None): ("unknown", why) for i in ids if i not in sure}

    def _ask(self):
        self.at = time.monotonic()
        try:
            self.reply = _ask_slurm(sorted(self.ids))
        except SlurmError:
            self.silent += 1
            self.since = self.since or time.monotonic()
            return
        self.silent, self.since, self.known = 0, None, set(self.ids)
        for job in self.known:
            words = {k: w for k, w in self.reply.items() if k[0] == job}
            going = {*LIVE, "interrupted", "unknown"}
            if words and not {w for w, _ in words.values()} & going:
                self.over[job] = words
        self.ids -= set(self.over)

    @property
    def silence(self) -> float:
        "Seconds since Slurm last answered, 0 if it does."
        return time.monotonic() - self.since if self.since else 0.0

    def forget(self) -> None:
        "Ask anew, about everything."
        self.__init__(self.every)


SLURM = _Watcher()

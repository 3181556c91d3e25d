"""Slurm's commands: what a cluster offers, why it refuses a job, job ids, and states of jobs.

Of every answer the lines are taken that look as they should: a site may print others.
"""

import contextlib
import getpass
import math
import re
import shlex
import subprocess
import time
import warnings

from rvtutorial.core.commands import answer, slurm_says
from rvtutorial.hpc.sites import Site, option

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


class Unheard(SlurmError):
    "Slurm may have taken a job, and nobody knows under which number."


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


def _count(text: str) -> int:
    "A number such as 64+, 1.5K or 16GB; ValueError for what is none."
    found = re.fullmatch(r"([\d.]+)([KMGT]?)B?\+?", text.upper())
    if not found:
        raise ValueError(f"{text!r} is no number of Slurm's")
    return round(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _devices(text: str) -> list[tuple[str, str, int]]:
    "Name, type and count of each in a text such as gpu:2,shard:1 or gpu:a100:4(S:0-1)."
    found = []
    for item in re.sub(r"\(.*?\)", "", text).replace("=", ":").split(","):
        name, *more = item.split(":")
        number = more.pop() if more and more[-1].isdigit() else "1"
        found += [(name, ":".join(more), int(number))] if name else []
    return found


_NODES = "%R|%l|%c|%m|%T|%G"  # partition, time limit, cores, memory, state, devices
_NODE = re.compile(r"([^|\s]+)\|([^|\s]+)\|([^|\s]+)\|([^|\s]+)\|(\w[^|\s]*)\|([^|]*)")


def _read_nodes(text: str) -> list[dict]:
    "The kinds of nodes in what sinfo prints in that form; other lines are skipped."
    rows = []
    for found in filter(None, map(_NODE.fullmatch, map(str.strip, text.splitlines()))):
        with contextlib.suppress(ValueError):  # a notice of the site
            partition, limit, cpus, mem, state, gres = found.groups()
            about = dict(partition=partition, time=minutes(limit), limit=limit)
            about |= dict(cpus=_count(cpus), mem=_count(mem), state=state)
            rows.append(about | {"gres": _devices(gres)})
    return rows


def _fits(node: dict, field: str, asked) -> bool:
    "Whether a node has what a field of a site asks for."
    if field == "gres":
        return all(
            any(name == n and kind in ("", k) and c >= many for n, k, c in node["gres"])
            for name, kind, many in _devices(asked)
        )
    most = node[field]
    if field == "time":
        return minutes(asked) <= most
    return (_count(asked) / 2**20 if field == "mem" else asked) <= most


def _offer(nodes: list[dict], field: str) -> str:
    "The most that nodes have of something, in words."
    best = max(nodes, key=lambda node: node[field])
    if field == "time":
        return f"its partition {best['partition']} allows: {best['limit']}"
    if field == "gres":
        kinds = {kind for node in nodes for kind in node["gres"]}
        words = sorted(":".join(filter(None, map(str, kind))) for kind in kinds)
        return "its nodes have: " + (", ".join(words) or "none")
    return f"its nodes have: {best[field]}{' MB' if field == 'mem' else ''}"


def _fitting(site: Site, nodes: list[dict]) -> tuple[list[dict], str | None]:
    "Which nodes can run what a site asks for, or else why none can, with the field."
    if site.partition and nodes:
        wanted = site.partition.split(",")
        names = sorted({node["partition"] for node in nodes})
        strange = [name for name in wanted if name not in names]
        if strange:
            return [], f"partition {strange[0]!r} is not one of {', '.join(names)}"
        nodes = [node for node in nodes if node["partition"] in wanted]
    for field in ("time", "cpus", "mem", "gres"):
        asked = getattr(site, field)
        left = [node for node in nodes if not asked or _fits(node, field, asked)]
        if nodes and not left:
            return [], f"{field} {asked} is more than {_offer(nodes, field)}"
        nodes = left
    return nodes, None


_AWAY = {"down", "drained", "draining", "fail", "failing", "future", "inval", "error"}


def _absent(nodes: list[dict]) -> str | None:
    """What nodes are, in Slurm's words, when none of them takes jobs.

    Nodes that sleep to save power, restart or are reserved count as taking jobs: they
    will.
    """
    # "down*": it does not answer either
    states = {re.match(r"\w*", node["state"])[0] for node in nodes}
    return ", ".join(sorted(states)) if states and states <= _AWAY else None


def _not_yours(site: Site) -> str | None:
    "Why a site's account or quality of service is not this user's; None: it may be."
    if not (site.account or site.qos):
        return None
    asked = ["sacctmgr", "-nP", "show", "associations", "where"]
    asked += [f"user={getpass.getuser()}", "format=account,partition,qos"]
    asked += [f"cluster={site.cluster}"] if site.cluster else []
    lines = map(str.strip, (answer(asked) or "").splitlines())
    rows = [re.fullmatch(r"([^|\s]+)\|[^|\s]*\|([^|\s]*)", line) for line in lines]
    known = [row.groups() for row in rows if row]
    accounts = sorted({account for account, _ in known})
    if known and site.account and site.account not in accounts:
        return f"account {site.account!r} is not one of yours: {', '.join(accounts)}"
    mine = [levels.split(",") for a, levels in known if site.account in (None, a)]
    levels = sorted({level for row in mine for level in row if level})
    if levels and site.qos and site.qos not in levels:
        return f"qos {site.qos!r} is not one of yours: {', '.join(levels)}"
    return None


def refuse_request(site: Site) -> None:
    """Raise SlurmError for what Slurm would refuse, or keep waiting for ever.

    Only what `sinfo` and `sacctmgr` can say is looked at; where they are silent, nothing
    is refused. Warns when the only nodes that fit are down or drained.
    """
    told = answer(["sinfo", "-h", "-e", "-o", _NODES], site.cluster)
    nodes, misfit = _fitting(site, _read_nodes(told or ""))
    wrong = _not_yours(site) or misfit
    if wrong:
        raise SlurmError(
            f"not queued: {wrong}. Change {wrong.split()[0]} in the file of site "
            f"{site.name}"
        )
    state = _absent(nodes)
    if state:
        warnings.warn(
            f"the job will wait: every node that fits is {state} (sinfo -R says why)",
            stacklevel=2,
        )


_BLAME = {
    "account": "account",
    "partition": "partition",
    r"\bqos\b": "qos",
    r"gres|generic resource|tres": "gres",
    r"time limit|wall": "time",
    "memory": "mem",
    r"cpu|processors": "cpus",
    "node count|more nodes": "nodes",
    "configuration is not available": "gres, mem, cpus or partition",
    r"unrecognized option|invalid option|ambiguous": "extra",
}
_FULL = r"submit ?limit|MaxSubmit|violates accounting|MaxArraySize|array"


def _explain(said: str) -> str:
    "What to change after a refusal; empty where we know no more than Slurm."
    if re.search(_FULL, said, re.I):
        return "So many jobs at one time are not allowed: submit fewer, or wait."
    for words, field in _BLAME.items():
        if re.search(words, said, re.I):
            return f"Change {field} in the site file."
    return ""


_SILENT = r"contact slurm controller|socket timed out|connection|transport|zero bytes"
WAITS = (2, 5, 10, 20)  # Seconds before each further try


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


def _read_id(
    text: str,  # What sbatch --parsable prints, among other lines
    name: str = "",  # Of the submission, by which Slurm is asked where it could be several
) -> str | None:  # Such as "123", or "123;gpu" with the name of the cluster
    "The job id in what sbatch says: a notice may be a number, too; None where there is none."
    form = r"(?:Submitted batch job )?(\d+)(?:[_+]\d+)?(?:(?:;| on cluster )(\S+))?"
    found = [re.fullmatch(form, line.strip()) for line in text.splitlines()]
    ids = [f"{one[1]};{one[2]}" if one[2] else one[1] for one in found if one]
    if len({*ids}) > 1 and name:
        numbers = [job.partition(";")[0] for job in ids]
        known = find_job(name, ids[-1].partition(";")[2], tuple(numbers)) or ""
        ids += [job for job in ids if job.split(";")[0] == known.split(";")[0]]
    return ids[-1] if ids else None


def _sbatch(args: list[str]) -> tuple[str | None, str, bool]:
    "Run sbatch once: job id or None, what it said, and whether it may have been heard."
    try:
        done = slurm_says(args, 60)
    except (FileNotFoundError, PermissionError):
        raise SlurmError(
            "there is no sbatch on this machine: use a terminal or a session of the "
            f'cluster, or site="local". In a terminal: {shlex.join(args)}'
        ) from None
    except subprocess.TimeoutExpired:
        return None, "socket timed out: sbatch did not answer within 60 s", True
    said = done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}"
    if not done.returncode:  # it was taken, number or not
        return _read_id(done.stdout, option(args, "job-name")), said, True
    silent = re.search(_SILENT, said, re.I)
    return None, said, bool(silent) and "connect failure" not in said


def run_sbatch(
    args: list[str],  # The command, with --job-name
) -> str:  # Job id
    """Hand a job to Slurm, once, even if Slurm is silent for a while.

    Raises SlurmError in Slurm's own words, with the field of the site file to change.
    """
    name, cluster = (option(args, key) for key in ("job-name", "clusters"))
    doubt = False  # Whether it may have been taken: then it is looked for, not repeated
    for wait in (*WAITS, None):
        if not doubt:
            found, said, doubt = _sbatch(args)
            silent = bool(re.search(_SILENT, said, re.I))
        if doubt and not found:
            found = find_job(name, cluster) if name else None
            doubt = found is None or not silent
        if found:
            return found
        if not doubt and not silent:
            break
        if wait:
            what = "Slurm does not answer" if silent else "sbatch gave no job id"
            warnings.warn(f"{what}; asked again in {wait} s", stacklevel=2)
            time.sleep(wait)
    if doubt and found == "":
        raise SlurmError(
            f"sbatch gave no job id, and Slurm knows no job {name}. It said: {said}\n"
            f"The command was: {shlex.join(args)}"
        )
    if doubt:
        raise Unheard(
            f"sbatch gave no job id ({said}), and Slurm does not answer: the job may "
            f"well be queued. It is looked for by its name, {name}, whenever states are "
            f"asked for; submit it again only when they say that it is lost"
        )
    again = "Nothing is lost: submit the same again when Slurm answers."
    raise SlurmError(
        f"sbatch refused: {said}\n{again if silent else _explain(said)}\n"
        f"The command was: {shlex.join(args)}"
    )


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

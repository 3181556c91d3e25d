"""Submitting: the batch script, what Slurm would refuse, what is written, and handing it to sbatch."""

import contextlib
import getpass
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path

from rvtutorial.container import Bind, check_image, exec_command
from rvtutorial.core.commands import answer, slurm_says
from rvtutorial.core.files import locked
from rvtutorial.hpc.job import Job, JobNotebook
from rvtutorial.hpc.local_queue import Submission, queue_folder
from rvtutorial.hpc.scheduler import FINE, LIVE, SlurmError, find_job, minutes
from rvtutorial.hpc.sites import Site, option
from rvtutorial.core.records import write_json
from rvtutorial.runs import Run, Workspace

# --- the text for Slurm


def sbatch_args(
    site: Site,  # Where the job runs
    folder: str | Path,  # Folder of the submission: script, list of members, logs
    members: int = 1,  # How many runs it has
    name: str = "rvtutorial",  # Name in squeue
    after: str | None = None,  # Jobs to wait for, such as "afterany:221"
) -> list[str]:  # Ready for subprocess.run; no shell ever reads it
    "The sbatch command of a submission: one array, whatever the number of members."
    asked = {
        n: getattr(site, n) for n in ("account", "partition", "qos", "gres", "mem")
    }
    asked |= {"time": site.time, "cpus-per-task": site.cpus, "nodes": site.nodes}
    asked |= {"ntasks": site.tasks, "array": f"0-{members - 1}%{site.parallel}"}
    asked |= {"signal": f"B:USR1@{site.warn}"} if site.warn else {}
    asked |= {"open-mode": "append", "export": "NONE", "chdir": folder}
    asked |= {"output": f"{folder}/slurm-%A_%a.out", "dependency": after}
    asked |= {"kill-on-invalid-dep": "yes"} if after else {}
    options = [f"--{key}={value}" for key, value in asked.items() if value is not None]
    fixed = ["--parsable", f"--job-name={name}", "--requeue"]
    return ["sbatch", *fixed, *options, *site.extra, f"{folder}/job.sh"]


_JOB_SH = r"""#!/bin/bash@LOGIN@
# Written by rvtutorial. Slurm runs one copy for each member of the job and gives its
# number in SLURM_ARRAY_TASK_ID; the local queue says "serve" and writes to it.
@MODULES@set -u
tasks=@TASKS@
member=${1:-${SLURM_ARRAY_TASK_ID:-0}}
child='' pending=''
# a signal to this script goes on to the runner, which interrupts the notebook's kernel
forward() { if [ -n "$child" ]; then kill -"$1" "$child" 2>/dev/null; else pending=$1; fi; }
trap 'forward USR1' USR1
trap 'forward TERM' TERM INT HUP
scratch=$(mktemp -d @SCRATCH@/rvt.XXXXXX) || exit 1
trap 'rm -rf "$scratch"' EXIT
@SETUP@@COMMAND@ "$tasks" "$member" <&0 &
child=$!
[ -z "$pending" ] || kill -"$pending" "$child"
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || break
done
[ "$code" != 138 ] || code=75  # warned before the runner could listen
# 75: interrupted by the warning before the end of its time; ask for another turn
if [ "$code" = 75 ] && [ -n "${SLURM_JOB_ID-}" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @RESTARTS@ ]; then
  trap '' TERM USR1
  # the last member's own id is the whole array's, so a member is named ARRAY_TASK
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && sleep 60
fi
exit "$code"
"""


def _job_command(site: Site, folders=()) -> str:
    "The shell's words that run one member, in the site's container if it has one."
    run = ["-m", "rvtutorial.hpc.runner", "member"]
    if not site.image:
        python = site.expand("python", site.python) if site.python else sys.executable
        return shlex.join([python, *run])
    words = exec_command(
        site.expand("image", site.image),
        [site.python or "python", *run],
        binds=[*site.expanded_binds(), *map(str, folders)],
        nv=site.nv,
        workdir="/@scratch",
        home="/@scratch/home",
        pwd=str(folders[0]),
    )
    return shlex.join(words).replace("/@scratch", '"$scratch"')


_CONTAINER_SETUP = """mkdir -p "$scratch/home"
for v in SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT \\
  CUDA_VISIBLE_DEVICES OMP_NUM_THREADS RVTUTORIAL_HOME; do
  [ -z "${!v-}" ] || export "APPTAINERENV_$v=${!v}"
done
"""


def batch_script(
    site: Site,  # Where the job runs
    tasks: str | Path,  # The submission's tasks.json
    folders=(),  # Folders that a container must show
    home: str | Path | None = None,  # RVTUTORIAL_HOME of the job
) -> str:  # Text of a bash script
    "The one script that sbatch and the local queue run."
    setup = f"export OMP_NUM_THREADS={site.cpus}\n" if site.cpus else ""
    setup += f"export RVTUTORIAL_HOME={shlex.quote(str(home))}\n" if home else ""
    scratch = (
        shlex.quote(site.expand("scratch", site.scratch)) if site.scratch else None
    )
    parts = {
        "LOGIN": " -l" if site.modules else "",
        "MODULES": site.load_modules,
        "TASKS": shlex.quote(str(tasks)),
        "SCRATCH": scratch or '"${TMPDIR:-/tmp}"',
        "RESTARTS": str(site.restarts),
        "SETUP": setup + (_CONTAINER_SETUP if site.image else ""),
        "COMMAND": _job_command(site, [Path(tasks).parent, *folders]),
    }
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], _JOB_SH)


# --- what Slurm would refuse


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


def why_refused(site: Site) -> tuple[str | None, str | None]:
    """Why Slurm would refuse what a site asks for, and why a job would wait for ever.

    Only what `sinfo` and `sacctmgr` can say is looked at. None: it would not.
    """
    told = answer(["sinfo", "-h", "-e", "-o", _NODES], site.cluster)
    nodes, misfit = _fitting(site, _read_nodes(told or ""))
    return _not_yours(site) or misfit, _absent(nodes)


def _refuse_request(site: Site) -> None:
    """Raise SlurmError for what Slurm would refuse, or keep waiting for ever.

    Where Slurm is silent, nothing is refused. Warns when the only nodes that fit are down
    or drained.
    """
    wrong, state = why_refused(site)
    if wrong:
        raise SlurmError(
            f"not queued: {wrong}. Change {wrong.split()[0]} in the file of site "
            f"{site.name}"
        )
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


# --- handing over to sbatch


class _Unheard(SlurmError):
    "Slurm may have taken a job, and nobody knows under which number."


_SILENT = r"contact slurm controller|socket timed out|connection|transport|zero bytes"
WAITS = (2, 5, 10, 20)  # Seconds before each further try


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


def _run_sbatch(
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
        raise _Unheard(
            f"sbatch gave no job id ({said}), and Slurm does not answer: the job may "
            f"well be queued. It is looked for by its name, {name}, whenever states are "
            f"asked for; submit it again only when they say that it is lost"
        )
    again = "Nothing is lost: submit the same again when Slurm answers."
    raise SlurmError(
        f"sbatch refused: {said}\n{again if silent else _explain(said)}\n"
        f"The command was: {shlex.join(args)}"
    )


# --- what else is refused, and what has to be waited for


def _refuse_missing(site: Site) -> None:
    "Raise OSError or ValueError for an image, a bind or a local queue that is not there."
    if site.queue == "local":
        queue_folder()
    if site.image:
        check_image(site.expand("image", site.image))
        Bind.all_of([site.expand("binds", bind) for bind in site.binds])


def _refuse_pattern(folder: Path, site: Site) -> None:
    "Raise ValueError where Slurm would write its logs somewhere else."
    if site.queue == "slurm" and set(str(folder)) & set("%\\"):
        raise ValueError(
            f"{folder} holds % or \\, which Slurm reads as a pattern; rename it"
        )


def _dependency(after, site: Site, needs: bool) -> dict:
    "What a submission waits for, also for sbatch; ValueError if it could never begin."
    before = [after] if isinstance(after, Job) else list(after or ())
    known = [detail for job in before for detail in job.details(now=True)]
    bad = [d for d in known if needs and d["state"] not in (*LIVE, *FINE)]
    if bad:
        raise ValueError(f"{bad[0]['folder']} has {bad[0]['state']}, and it is needed")
    live = [d["folder"] for d in known if d["state"] in LIVE]
    homes = {job.get("submission") or "" for job in Job(live).recorded().values()}
    docs = {home: Submission(home).job for home in homes}
    slurms = [home for home, doc in docs.items() if doc.get("queue") == "slurm"]
    ids = [(Submission(home).slurm_id() or "").split(";") for home in slurms]
    other = {doc.get("queue") for doc in docs.values()} - {site.queue}
    clusters = {name for _, *names in ids for name in names} - {site.cluster}
    if other or (site.cluster and clusters):
        raise ValueError(
            f"site {site.name} cannot wait for a job of another "
            f"{'queue' if other else 'cluster'}; call wait() of that job first"
        )
    numbers = sorted({number for number, *_ in ids})
    if not all(numbers):
        raise SlurmError("Slurm has not said yet which number the job before has")
    how = ("afterok:" if needs else "afterany:") + ":".join(numbers)
    slurm = how if numbers and site.queue == "slurm" else None
    return dict(folders=[str(d["folder"]) for d in known], needs=needs, slurm=slurm)


# --- what is written


def _submission_folder(folders: list[Path]) -> Path:
    "A new folder `jobs/TIME-NAME` beside the first run folder."
    parent = folders[0].parent
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", folders[0].name)[:30].strip("-.") or "run"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    home = parent / "jobs" / f"{stamp}-{secrets.token_hex(2)}-{label}"
    home.mkdir(parents=True)
    return home


def _write_submission(
    runs: dict[Path, dict], site: Site, book: JobNotebook, needs=(), before=None
) -> Path:
    "Write all that the members of a submission need; returns its folder."
    home = _submission_folder(list(runs))
    # later edits do not matter
    shutil.copyfile(book.path, home / f"{book.path.stem}.ipynb")
    tasks = dict(notebook=f"{book.path.stem}.ipynb", folders=list(map(str, runs)))
    tasks |= dict(params=list(runs.values()), needs=list(needs), before=before)
    tasks |= dict(warn=site.warn, restarts=site.restarts)
    tasks |= dict(seconds=minutes(site.time) * 60 if site.time else None)
    write_json(home / "tasks.json", tasks)
    course = Workspace().home
    values = {v for p in runs.values() for v in p.values() if isinstance(v, str)}
    shown = sorted(v for v in values if v.startswith("/") and os.path.exists(v))
    places = {str(folder.parent) for folder in runs} | set(shown) | {str(course)}
    script = batch_script(site, home / "tasks.json", sorted(places), course)
    (home / "job.sh").write_text(script)
    for index, (folder, params) in enumerate(runs.items()):
        job = dict(submission=str(home), index=index, site=site.name)
        job |= dict(notebook=str(book.path), params=params)
        job |= {"epochs": (book.hyperparams(params) or {}).get("epochs")}
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(folder)
        went = run.manifest.get("went", {})
        if went.get("job") and Job(folder).details()[0]["state"] in LIVE:
            # queued behind itself, perhaps with other values
            run.update("went", job=job | {"earlier": Job.queued_for(went["job"])})
            continue
        write_json(folder / "params.json", params)
        run.update("went", state="queued", why=None, job=job)
    return home


def _hand_over(
    runs: dict[Path, dict], site: Site, book: JobNotebook, first: dict, before=None
) -> str:  # Job id
    "Hand checked runs to Slurm or to the local queue."
    needs = [f for f in first["folders"] if first["needs"]]
    home = _write_submission(runs, site, book, needs, before)
    args = sbatch_args(site, home, len(runs), home.name, first["slurm"])
    doc = dict(queue=site.queue, host=socket.gethostname())
    doc |= dict(site=site.model_dump(), sbatch=args)
    write_json(home / "job.json", doc)
    try:
        if site.queue == "slurm":
            doc["id"] = _run_sbatch(args)
        else:
            doc["id"] = Submission(home).start_local()
    except _Unheard:  # it may be queued: the runs wait, and are looked for
        raise
    except SlurmError as error:
        why = str(error).splitlines()[0]
        for folder in runs:
            Run(folder).update("went", state="failed", why=why)
        if why.startswith("sbatch refused"):  # else the command may be pasted by hand
            write_json(home / "job.json", doc | {"refused": why})
        raise
    write_json(home / "job.json", doc)
    return doc["id"]


def _array_parts(runs: dict[Path, dict], most: int | None) -> list[dict]:
    "More runs than an array may have become several arrays."
    items, size = list(runs.items()), most or len(runs)
    return [dict(items[i : i + size]) for i in range(0, len(items), size)]


def _after_part(first: dict, job: str) -> dict:
    "What a further part has to wait for: the same, and the part before."
    words = [first["slurm"], f"afterany:{job.partition(';')[0]}"]
    return first | {"slurm": ",".join(filter(None, words))}


def submit_many(
    runs: dict,  # {run folder: its parameters}
    site: str | Path | Site = "local",  # Site, its name or its file
    notebook: str | Path = "train_rastervision",  # Job notebook, by name or path
    after=None,  # Job or list of jobs that must be over before these begin
    needs: bool = False,  # Begin only if all runs of `after` have succeeded
    before: str | None = None,  # "module:function", asked by each run when it begins
) -> Job:
    """Queue many runs as one job.

    Where an array of Slurm's may not have so many members, it becomes several, one
    behind the other. A run that has succeeded with these parameters is not run again,
    one that is queued is not queued twice. `before` is called in the job with the run
    folder and its parameters; it returns the parameters to use, or a text that says why
    the run is not needed. Raises ValueError before anything is queued when a parameter is unknown or
    bad, or when a folder holds another run; SlurmError when Slurm refuses, before
    anything is written where that can be known.
    """
    site, book = Site.read(site), JobNotebook(notebook)
    asked, job = {}, Job(runs)
    if not runs:
        raise ValueError("a submission has 1 run at least, got none")
    for folder, params in zip(job.folders, runs.values(), strict=True):
        if folder in asked:
            raise ValueError(f"{folder} is asked for twice in one submission")
        asked[folder] = book.check(params)
        book.refuse_other_run(folder, asked[folder])
    first, parent = _dependency(after, site, needs), job.folders[0].parent
    _refuse_pattern(parent, site)
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent / ".submitting", 300):  # so that nothing is queued twice
        todo = {}  # neither done nor queued, or to run once more behind another
        for detail in job.details(now=True):
            folder, state = detail["folder"], detail["state"]
            if state == "unreadable":
                raise ValueError(f"nobody can tell how {folder} is: {detail['why']}")
            more = state not in ("succeeded", *LIVE)
            if state in LIVE and str(folder) in first["folders"]:
                known = Job.queued_for(Run(folder).manifest["went"]["job"])
                more = asked[folder] not in [params for _, _, params in known]
            if more:
                todo[folder] = asked[folder]
        if todo:
            _refuse_missing(site)
            most = None
            if site.queue == "slurm":
                _refuse_request(site)
                most = site.array_limit() if len(todo) > 1 else None
            order, parts = first, _array_parts(todo, most)
            for place, part in enumerate(parts, 1):
                try:
                    number = _hand_over(part, site, book, order, before)
                except SlurmError as error:
                    left = sum(map(len, parts[place:]))
                    if not left:
                        raise
                    raise type(error)(
                        f"{error}\n{left} runs behind these were not handed over: "
                        f"submit again"
                    ) from error
                order = _after_part(first, number)
    return job

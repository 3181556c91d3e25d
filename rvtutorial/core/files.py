"""Folders that other users cannot prepare for us, locks that say who holds them, names that stay inside a folder, and how much memory a process may take."""

import atexit
import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import re
import resource
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout, lock_descriptor

from rvtutorial.core.commands import answer
from rvtutorial.core.renamed import say_once

# --- folders


def is_private(folder: str | Path) -> bool:
    "Whether a path is a real folder of this user that nobody else can look into or replace."
    try:
        now, above = os.lstat(folder), os.stat(Path(folder).parent)
    except OSError:
        return False
    open_above = above.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    replaced = open_above and not above.st_mode & stat.S_ISVTX
    # whoever owns the folder above may replace it; root is `nobody` in some containers
    replaced = replaced or above.st_uid not in (os.geteuid(), 0, _NOBODY)
    mine = stat.S_ISDIR(now.st_mode) and now.st_uid == os.geteuid()
    return mine and not now.st_mode & 0o077 and not replaced


_NOBODY = 65534


def _private_places(name):
    "Where a private folder may lie: in the temporary folder, else in the user's cache."
    places = [Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")]
    with contextlib.suppress(RuntimeError):  # no home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        places.append(cache / "rvtutorial" / f"{name}-{socket.gethostname()}")
    return places


def lasting_folder(
    name: str,  # Such as rvtutorial: the user is added
) -> Path:
    """A folder of this user alone (mode 0700) that every process finds, made if need be.

    A folder of that name in the temporary folder that is a link, belongs to somebody
    else or is open to others is left alone: another one is taken, and it is said once.
    Raises OSError where every place is taken by others, or cannot be written to.
    """
    first, *others = _private_places(name)
    for place in (first, *others):
        with contextlib.suppress(OSError):  # there already, or no place for it
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir(mode=0o700)
        if is_private(place) and os.access(place, os.W_OK | os.X_OK):
            if place != first:
                say_once(f"{first} is not a private folder of yours: {place} is used")
            return place
    raise OSError(errno.EACCES, "is not a private folder of yours", str(first))


@functools.cache
def _own_scratch() -> Path:
    first = _private_places("rvtutorial")[0]
    made = _own_folder(f"{first.name}-")
    say_once(f"{first} is not a private folder of yours: {made} is used, for this once")
    return made


_OWN: dict = {}  # Folder -> the process that made it


def _own_folder(
    prefix: str,  # Of its name
) -> Path:
    "A new folder for this process alone, deleted at its end or by `remove_own_folders`."
    made = Path(tempfile.mkdtemp(prefix=prefix))
    _OWN[made] = os.getpid()
    return made


@atexit.register
def remove_own_folders() -> None:
    "Delete what `_own_folder` has made; a forked process leaves the folders of its parent."
    for made, process in _OWN.items():
        if process == os.getpid():
            shutil.rmtree(made, ignore_errors=True)


def scratch_folder() -> Path:
    "RVTUTORIAL_SCRATCH as it is, or a private folder in the system's temporary one."
    if named := os.environ.get("RVTUTORIAL_SCRATCH"):
        return Path(named)
    try:
        return lasting_folder("rvtutorial")
    except OSError:
        return _own_scratch()


def scratch_places() -> list[Path]:
    "The folders that `scratch_folder` may have given so far, as far as they are there."
    if named := os.environ.get("RVTUTORIAL_SCRATCH"):
        return [Path(named)] if Path(named).is_dir() else []
    return [place for place in _private_places("rvtutorial") if is_private(place)]


def open_plain(
    path: str | Path,
    write: bool = False,  # To read and to write, made if need be, never emptied
):  # A binary file
    "Open a file itself: OSError for a link, a pipe or anything else under its name."
    flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    how = dict(mode="r+b" if write else "rb", buffering=0)
    file = open(path, **how, opener=lambda name, _: os.open(name, flags, 0o600))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "is no plain file", str(path))


# --- names

LONGEST = 255  # bytes of a name on the usual file systems


def safe_name(
    name: str,
    most: int = 200,  # Bytes, so that something can be put around it
) -> str:  # The same where it is safe, else with eight hex digits behind it
    """A name for one file or folder, whatever the text: it stays inside its folder.

    Slashes and control characters become _; what had to be changed gets a digest, so
    that two names remain two.
    """
    name = str(name)
    plain = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", name)
    plain = plain if plain.strip(". ") else "_"
    if plain == name and len(plain.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return plain.encode()[: most - 9].decode("utf-8", "ignore") + f"-{digest}"


def refuse_name(
    path: str | Path,  # A file that is going to be written
) -> None:
    "Raise OSError for a file name that is too long for its folder, before any work is done."
    path, most = Path(path), LONGEST
    with contextlib.suppress(OSError, ValueError):
        above = next(p for p in path.absolute().parents if p.is_dir())
        most = os.pathconf(above, "PC_NAME_MAX")
    for part in path.parts:
        if (size := len(os.fsencode(part))) > most:
            raise OSError(
                errno.ENAMETOOLONG,
                f"a name may have {most} bytes here, this one has {size}; shorten it",
                part,
            )


# pyogrio reads a path as an address: what stands before `!` is an archive to it, what stands
# behind `;` or `?` a parameter, and line breaks are dropped. Such a file is reached by a link
# in a folder of this process, whose name holds nothing of the kind.
_SPECIAL = re.compile(r"[!;?\x00-\x1f]")


def gdal_name(
    path: str | os.PathLike,  # A file that is read; or a new GeoPackage
) -> str:  # The same file by a name that stays in one piece
    """A path that can be given to pyogrio or geopandas; addresses stay as they are.

    Of a format of several files, such as a shapefile, only what is there can be read: new
    files beside a special name would be written elsewhere.
    """
    text = os.fspath(path)
    if "://" in text or text.startswith("/vsi") or not _SPECIAL.search(text):
        return text
    path = Path(text).parent.resolve() / Path(text).name
    place = _links(os.getpid()) / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    links, stem = {place: path.parent}, path.stem
    if _SPECIAL.search(path.name):  # the file and its companions get other names
        place.mkdir(exist_ok=True)
        stem = _SPECIAL.sub("_", stem)
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        beside = {path, *(p for p in beside if p.name.startswith(f"{path.stem}."))}
        links = {place / (stem + p.name.removeprefix(path.stem)): p for p in beside}
    for link, target in links.items():
        with contextlib.suppress(FileExistsError):  # another thread's
            link.symlink_to(target)
    return str(place / (stem + path.suffix))


@functools.cache
def _links(process: int) -> Path:
    "A folder of this process alone, gone when it ends."
    return _own_folder("rvtutorial-names-")


# --- locks
# They are those of filelock. It keeps no record of who holds one and fails where a file
# system knows no locks, such as some NFS: `held` writes that record, and believes it there.

_NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP


class Busy(RuntimeError):
    "Another live process works in this folder."


def _alive(owner: dict) -> bool:
    "Whether the process that wrote a lock (see `held`) may still be at work."
    job = owner.get("slurm_job_id")
    if owner.get("host") == socket.gethostname():
        now, then = _begun(owner.get("pid")), owner.get("begun")
        if now is None or then is None:
            return now is not None
        # another process may have its number by now; the clock may be set a little
        with contextlib.suppress(TypeError, ValueError):
            return abs(now - float(then)) < 2
        return False
    if job and job == os.environ.get("SLURM_JOB_ID"):
        return False  # the same job, started again on another node

    def names_job(reply: str) -> bool:  # in one of its lines; a site may print others
        start = re.compile(rf"{re.escape(str(job))}(\D|$)")
        return any(start.match(line.strip()) for line in reply.splitlines())

    # %A: of a member of an array %i would be ARRAY_MEMBER, and SLURM_JOB_ID is neither
    asked = ["squeue", "-h", "-j", str(job), "-t", "R,CG,S", "-o", "%A"]
    reply = answer(asked) if job else None
    if reply is not None and not names_job(reply) and owner.get("cluster"):
        # without accounting no cluster can be asked by its name: then the first word counts
        reply = answer(asked, str(owner["cluster"])) or ""
    return reply is None or names_job(reply)


def is_other(
    named: str | None,  # A folder, as a record in another one names it
    folder: Path,
    gone: bool = False,  # What is said of a path that is not there any more
) -> bool:
    """Whether a path names another folder than this one, as in a copied run.

    A path that is not there was moved, or is called so on another machine. To who holds a
    lock it is the same folder then; to a job, which will go on writing to that path, it
    is another one (`gone`).
    """
    if not isinstance(named, str) or named in ("", str(folder)):
        return False
    try:
        return not os.path.samefile(named, folder)
    except OSError:
        return gone or os.path.exists(named)


def _begun(pid) -> float | None:
    "When a process of this machine began, in seconds; None where there is none."
    try:
        return psutil.Process(int(pid)).create_time()
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return None


def _acquire(path: Path, seconds: float, give_up: Callable, every: float) -> FileLock:
    "A lock, held except on a file system that knows none; `filelock.Timeout` otherwise."
    group = stat.S_IRGRP | stat.S_IWGRP
    shared = os.stat(path.parent).st_mode & stat.S_IWGRP
    mode = 0o600 | (group if shared else 0)  # who may not write here cannot hold it

    def check(file: int) -> None:
        now = os.fstat(file).st_mode
        if not stat.S_ISREG(now):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        if stat.S_IMODE(now) != mode:
            with contextlib.suppress(OSError):  # another's, or a disk without modes
                os.fchmod(file, mode)

    lock = FileLock(path, mode=mode, fallback_to_soft=False, on_acquired=check)
    try:
        lock.acquire(seconds, every, cancel_check=give_up)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


@contextlib.contextmanager
def locked(
    path: str | Path,  # The lock, a file that is made if need be and stays
    seconds: float = 60.0,  # How long another process may hold it
    waiting: Callable = lambda: None,  # Called before each further try
    every: float = 0.01,  # Seconds from one try to the next
) -> Iterator[None]:
    """Hold a lock while the context lasts; Busy when it stays locked, or `waiting` says True.

    On a file system without locks the context is entered all the same.
    """
    try:
        lock = _acquire(Path(path), seconds, waiting, every)
    except Timeout:
        raise Busy(
            f"{path} has been locked by another process for {seconds:.0f} "
            f"seconds: end that, or delete the file"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(path: str | Path) -> bool:
    "Whether a process holds a lock; one that is gone holds none. The file is not made."
    try:
        with open_plain(path) as file:  # to be read only: it may be somebody else's
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:  # not there, no file, or no locks
        return False


def _owner(path: Path) -> dict:
    "Who wrote a lock; empty where nobody did, or nothing that can be read."
    with contextlib.suppress(ValueError, OSError), open_plain(path) as file:
        found = json.loads(file.read())
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def held(
    path: str | Path,  # The lock, a file in the folder it is for
    keep: bool = False,  # Leave it afterwards, empty
) -> Iterator[None]:
    """Hold a lock while the context lasts; Busy, with who holds it, when a live process does.

    The operating system frees the lock of a process that was killed. On a file system
    without locks, what stands in the file decides.
    """
    path, pid = Path(path), os.getpid()

    def taken(owner: dict) -> bool:
        return bool(owner) and _alive(owner)

    try:
        lock = _acquire(
            path, 2.0, lambda: taken(_owner(path)), 0.05
        )  # somebody may just be looking at it
    except Timeout:
        raise Busy(_in_use(path, _owner(path))) from None
    try:
        owner = _owner(path)
        left = owner.get("host") == socket.gethostname()  # by a process that is gone
        left = left or is_other(owner.get("folder"), path.parent.absolute())
        owner = {} if lock.is_locked and left else owner
        if taken(owner):
            raise Busy(_in_use(path, owner))
        since = datetime.now(UTC).isoformat(timespec="seconds")
        mine = dict(pid=pid, host=socket.gethostname(), since=since, begun=_begun(pid))
        mine |= {"slurm_job_id": os.environ.get("SLURM_JOB_ID")}
        mine |= {"cluster": os.environ.get("SLURM_CLUSTER_NAME")}
        mine |= {"folder": str(path.parent.absolute())}
        with open_plain(path, write=True) as file:
            file.truncate()
            file.write(json.dumps(mine).encode() + b"\n")
            ours = os.fstat(file.fileno())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                # not in a copy of this process, nor the lock of another that is named so
                if os.getpid() == pid and os.path.samestat(os.lstat(path), ours):
                    os.truncate(path, 0) if keep else path.unlink()
    finally:
        lock.release()


def _in_use(path: Path, owner: dict) -> str:
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    who += f" since {owner['since']}" if owner.get("since") else ""
    who = who if owner else "another process"
    return f"{path.parent} is in use by {who}; if that is gone, delete {path}"


@contextlib.contextmanager
def writing(
    folder: str | Path,  # Made if need be
) -> Iterator[None]:
    "Be the only one who writes into a folder; Busy, with who does, where somebody else does."
    folder = Path(folder).expanduser().absolute()
    there = folder.exists()
    with contextlib.ExitStack() as stack:
        if not there:  # and nothing was written
            stack.callback(_remove_if_empty, folder)
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # removed, being empty
                stack.enter_context(held(folder / ".writing.lock"))
                break
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


# --- limits


class TooLittle(OSError):
    "The limits of this process are too low."


def addresses_gb() -> float:
    "How many GB of addresses a process may have, taken or not."
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if soft == resource.RLIM_INFINITY else soft / 2**30


def need_addresses() -> None:
    "Raise `TooLittle` where importing Raster Vision would fail without a word, or never end."
    if (found := addresses_gb()) < 5:  # torch and RV take 4 before they do anything
        raise TooLittle(
            f"a process may have {found:.1f} GB of addresses here (ulimit -v), and Raster "
            f"Vision needs 5: raise that limit, or limit memory by a control group, "
            f"as Slurm does"
        )


def available_memory(
    root: str | Path = "/",  # Above proc/self/cgroup and sys/; another one for tests
) -> int:  # Bytes
    """What this process may still take: the smallest of all limits that apply.

    The machine's free memory; memory.max and memory.high, or memory.limit_in_bytes, of
    the process's control group and all above it; Slurm's SLURM_MEM_PER_NODE, _CPU and
    _GPU; the limits of address space and data (ulimit -v, -d).
    """
    used = psutil.Process().memory_info()
    found = [psutil.virtual_memory().available]
    found += [*_cgroup_room(Path(root)), *_slurm_room(used.rss)]
    for kind, taken in (
        (resource.RLIMIT_AS, used.vms),
        (resource.RLIMIT_DATA, used.data),
    ):
        soft = resource.getrlimit(kind)[0]
        found += [] if soft == resource.RLIM_INFINITY else [soft - taken]
    return max(0, min(found))


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(errors="surrogateescape").splitlines()
    return []


def _number(path: Path) -> int | None:
    "What a file of the kernel says; None where there is none, or it says max."
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


_V1 = ["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file"
_V2 = ["memory.max", "memory.high"], "memory.current", "inactive_file"


def _cgroup_room(root: Path) -> Iterator[int]:
    "What is left in the control group of this process and in each one above it."
    mounts = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, kinds, group = [*line.split(":", 2), "", ""][:3]
        if "memory" in kinds.split(","):
            places, names = [mounts / "memory"], _V1
        elif number == "0":
            places, names = [mounts, mounts / "unified"], _V2
        else:
            continue
        parts = [p for p in group.split("/") if p not in ("", ".", "..")]
        for place in places:
            for depth in range(len(parts) + 1):
                yield from _room(place.joinpath(*parts[:depth]), *names)
    yield from _room(mounts, *_V2)  # a container that shows only its own group


def _room(group: Path, limits: list[str], usage: str, idle: str) -> Iterator[int]:
    "What one control group leaves; files that are merely cached count as free."
    used = _number(group / usage) or 0
    rows = (re.fullmatch(rf"{idle} (\d+)", r) for r in _lines(group / "memory.stat"))
    cached = sum(int(row[1]) for row in rows if row)
    for name in limits:
        most = _number(group / name)
        if most is not None:
            yield most - max(0, used - cached)


def _slurm_room(used: int) -> Iterator[int]:
    "What Slurm has granted, without what this process has."

    def number(name: str) -> int:
        found = re.match(r"\d+", os.environ.get(f"SLURM_{name}", ""))
        return int(found[0]) if found else 0

    names = "CPUS_ON_NODE", "JOB_CPUS_PER_NODE", "CPUS_PER_TASK"
    cpus = next(filter(None, map(number, names)), 1)
    listed = os.environ.get("SLURM_JOB_GPUS", "")  # such as 0,3 or 0-3
    listed = re.findall(r"(\d+)(?:-(\d+))?(?:,|$)", listed)
    gpus = (
        number("GPUS_ON_NODE") or sum(int(b or a) - int(a) + 1 for a, b in listed) or 1
    )
    for unit, count in (("NODE", 1), ("CPU", cpus), ("GPU", gpus)):
        # megabytes, or with K, M, G or T behind it; N and C: of a node, of a CPU
        text = os.environ.get(f"SLURM_MEM_PER_{unit}", "").strip().upper()
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?[NC]?", text)
        granted = found and float(found[1]) * 1024 ** " KMGT".index(found[2] or "M")
        if granted:  # 0 stands for all memory of the node
            yield int(granted) * count - used


# --- files written whole or not at all


@contextlib.contextmanager
def atomic_path(
    path: str | Path,  # The file to be written
) -> Iterator[Path]:  # Where to write it meanwhile: the same folder, the same suffix
    """Rename a file to `path` when it is whole; leave `path` alone if anything fails.

    Raises OSError when the disk is full, FileNotFoundError when nothing was written.
    """
    path = Path(os.path.realpath(path))
    refuse_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = f".{secrets.token_hex(4)}."
    room = LONGEST - len(begin)  # the end of the name, with its suffix, stays
    partial = path.with_name(
        begin + os.fsencode(path.name)[-room:].decode("utf-8", "ignore")
    )
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except Exception as err:
        number = getattr(err, "errno", None) if isinstance(err, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT)
        if number is None:  # torch and GDAL only say that writing failed
            full = shutil.disk_usage(path.parent).free < 65536
        if not full:
            raise
        raise OSError(
            number or errno.ENOSPC,
            f"no space is left; {path.name} is as it was before. Free some space, or "
            f"choose a folder elsewhere, and run this again",
            str(path.parent),
        ) from err
    finally:
        partial.unlink(missing_ok=True)

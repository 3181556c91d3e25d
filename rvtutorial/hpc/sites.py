"""Site files: one small TOML file for each cluster, checked when it is read, and a check of this machine against it."""

import getpass
import importlib.metadata
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, PlainValidator, ValidationError

from rvtutorial.container import check_image, check_versions
from rvtutorial.core.commands import answer
from rvtutorial.core.names import near_match, own_sites, packaged


_NAME = re.compile(r"[A-Za-z0-9][\w.:,@+=\-\[\]&|()*/]*", re.ASCII)
_MEMORY = re.compile(r"\d+(\.\d+)?[KMGT]B?", re.I | re.ASCII)
_TIME = re.compile(r"\d+|(\d+-)?\d+:\d\d:\d\d|\d+-\d+(:\d\d)?", re.ASCII)
_PATH = re.compile(r"[^\x00-\x1f\x7f]+")
MANAGED = {"--" + word for word in (
    "account partition qos gres mem time cpus-per-task nodes ntasks array output error "
    "chdir export signal requeue no-requeue open-mode parsable job-name wrap dependency"
).split()}  # fmt: skip


def _text(pattern: re.Pattern, example: str):
    "The type of a field that holds a text of this form, or nothing."

    def check(value, field):
        if hasattr(value, "isoformat"):  # TOML reads 02:30:00 as a time of day
            value = value.isoformat()
        number = pattern is _TIME and type(value) is int
        text = str(value) if number else value
        if text is None or (isinstance(text, str) and pattern.fullmatch(text)):
            return value
        raise ValueError(
            f"site field {field.field_name} must be like {example}, got {value!r}"
        )

    return Annotated[str | int | None, PlainValidator(check)]


def _whole(low: int, kind=int):
    "The type of a field that holds a whole number."

    def check(value, field):
        if type(value) is int and value >= low or value is None and kind is not int:
            return value
        raise ValueError(
            f"site field {field.field_name} must be a whole number from {low} up, "
            f"got {value!r}"
        )

    return Annotated[kind, PlainValidator(check)]


def _texts(value, field) -> tuple[str, ...]:
    "A list of texts as a tuple; one text counts as a list of one."
    items = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(item, str) and item.isprintable() for item in items):
        raise ValueError(
            f"site field {field.field_name} must be a list of texts, got {value!r}"
        )
    for option in items if field.field_name == "extra" else ():
        if not option.startswith("--") or option.split("=")[0] in MANAGED:
            raise ValueError(
                f"site field extra takes options such as '--nice=10' that have no field "
                f"of their own, got {option!r}"
            )
    return items


_Name, _Path = _text(_NAME, "'gpu'"), _text(_PATH, "'/a/path'")
_Texts = Annotated[tuple[str, ...], PlainValidator(_texts)]


class Site(BaseModel, frozen=True, extra="forbid", defer_build=True):
    "A cluster, or this machine; ValueError names the field that cannot be right."

    # how a job behaves, and what it finds where it runs
    parallel: _whole(1) = 2  # Members of one submission that run at one time
    warn: _whole(0) = 120  # Seconds between the warning and the end of the time
    restarts: _whole(0) = 10  # How often a job whose time was over is queued again
    modules: _Texts = ()  # For `module load`, in this order
    image: _Path = None  # Container image that jobs run in
    binds: _Texts = ()  # Folders for the container: host:container[:ro]
    nv: bool = True  # Show the GPU inside the container
    python: _Path = None  # Python of the jobs; None: the one that submits
    data: _Path = None  # Folder of the scenes
    scratch: _Path = None  # Folder for temporary files
    # what Slurm is asked for; None: not asked for
    account: _Name = None  # Who is charged
    partition: _Name = None  # Group of nodes
    qos: _Name = None  # Quality of service
    gres: _Name = None  # GPUs, such as "gpu:1"
    mem: _text(_MEMORY, "'16G', with a unit") = None  # Memory of a node
    # Longest run time: minutes, or D-HH:MM:SS
    time: _text(_TIME, "'02:30:00', '1-12:00:00' or 150 (minutes)") = None
    cpus: _whole(1, int | None) = None  # Cores of a job, and its number of threads
    nodes: _whole(1) = 1  # Nodes of a job
    extra: _Texts = ()  # More options of sbatch, such as "--nice=10"

    name: _Name = "local"  # What the site is called
    queue: Literal["slurm", "local"] = "local"  # The default of other names is slurm

    def __init__(self, source: str = "the site", /, **given):  # Where the fields stand
        name, queue = given.get("name", "local"), given.get("queue")
        given["queue"] = queue or ("local" if name == "local" else "slurm")
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ValueError(_said(error.errors()[0], source)) from None

    @classmethod
    def read(cls, name: "str | Path | Site") -> "Site":
        "A site by its name or its file; a Site is passed through."
        if isinstance(name, cls):
            return name
        path = _find_site(name)
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as err:
            raise ValueError(f"site file {path} is not TOML: {err}") from None
        return cls(f"site file {path}", **{"name": path.stem, **given})

    def replace(self, **changes) -> "Site":
        "The same site with some fields changed."
        return type(self)(**self.model_dump() | changes)

    def __repr__(self):
        given = {name: getattr(self, name) for name in ("name", "queue")}
        given |= self.model_dump()
        lists = {n: ", ".join(v) for n, v in given.items() if isinstance(v, tuple)}
        rows = [
            f"{n:<10} {v}" for n, v in (given | lists).items() if v not in (None, "")
        ]
        return "\n".join(rows)

    __str__ = __repr__


def _said(error: dict, source: str) -> str:
    "What pydantic found first, in a sentence."
    field, known = error["loc"][0], list(Site.model_fields)
    if error["type"] == "extra_forbidden":
        hint = f"{near_match(field, known)} (known fields: {', '.join(known)})"
        return f"{source} has an unknown field {field!r}; {hint}"
    own = error.get("ctx", {}).get("error")  # the message of a check above
    wanted = "slurm or local" if field == "queue" else "true or false"
    return str(own or f"site field {field} must be {wanted}, got {error['input']!r}")


def site_files() -> dict[str, Path]:
    "All sites that can be named, the user's own before the package's."
    found = {}
    for folder in (own_sites(), packaged("sites", "local").parent):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def _find_site(
    name: str | Path,  # A name such as "atlas", or the path of a file
) -> Path:  # The file
    "Where a site file is: a path, the user's own folder, the package."
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = site_files()
    if str(name) in known:
        return known[str(name)]
    raise FileNotFoundError(
        f"there is no site {str(name)!r}; {near_match(name, known)}. Your own sites "
        f"belong in ~/.config/rvtutorial/sites, one file NAME.toml for each"
    )


def expand(name: str, path: str) -> str:
    "A path of a site file with ~ and $VARIABLES filled in; an unset one is an error."
    full = os.path.expanduser(os.path.expandvars(path))
    if re.search(r"\$\w|\$\{", full):
        raise ValueError(
            f"site field {name} names a variable that is not set: {path!r}"
        )
    return full


def load_modules(site: Site) -> str:
    "Lines that load the site's modules, and stop the job when one is not there."
    text = ""
    for module in map(shlex.quote, site.modules):
        text += f"module load {module} || {{ echo no module {module} >&2; exit 1; }}\n"
    return text


def cluster_of(
    options,  # Of sbatch, such as a site's `extra`
) -> str:  # Empty: the one we are on
    "The cluster that options of sbatch name, where several share one Slurm."
    named = [o.partition("=")[2] for o in options if o.startswith("--clusters=")]
    return named[-1] if named else ""


def on_cluster(
    cluster: str,  # Its name; empty: the one we are on
    program: str,  # Such as "squeue"
    *args: str,  # Of the program
) -> list[str]:
    "A command of Slurm that speaks of one cluster."
    return [program, *(["-M", cluster] if cluster else []), *args]


def _one_words(
    text: str | None,  # What a command of Slurm printed
) -> list[str]:  # Sorted
    "The names in a list with one in each line; a notice of several words is skipped."
    lines = [line.strip() for line in (text or "").splitlines()]
    return sorted({line for line in lines if re.fullmatch(r"[\w.:@+-]+", line)})


def accounts() -> list[str]:  # Empty where there is no Slurm, or it keeps no accounts
    "The accounts that you may charge."
    asked = ["sacctmgr", "-Pns", "show", "user", "format=account", "where"]
    return _one_words(answer([*asked, f"user={getpass.getuser()}"]))


def _wanted_version(package: str) -> str | None:
    "The version of a package that this one was made for, where it asks for exactly one."
    for line in importlib.metadata.requires("rvtutorial") or []:
        found = re.match(rf"{re.escape(package)}\s*==\s*([\w.]+)", line)
        if found:
            return found[1]
    return None


def _installed(package: str) -> tuple[str, bool, str, str]:
    "One row of the check: is a package here, in the version that is wanted?"
    wanted = _wanted_version(package)
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return (
            package,
            False,
            "missing",
            f"choose another kernel, or install {package}",
        )
    right = wanted in (None, found)
    return (package, right, found, "" if right else f"the text is true for {wanted}")


def _has_folder(what: str, path: str | Path | None, write: bool = False):
    "One row of the check: is a folder or file there, and can it be written to?"
    if path is None:
        return (what, True, "not set", "")
    path = Path(os.path.expanduser(os.path.expandvars(path)))
    if not path.exists():
        return (
            what,
            False,
            f"no {path}",
            f"make it, or correct {what} in the site file",
        )
    right = not write or os.access(path, os.W_OK)
    return (what, right, str(path), "" if right else "it cannot be written to")


def _enough_room(folder: Path, least: float = 2.0) -> tuple[str, bool, str, str]:
    "One row of the check: are there some gigabytes left for runs?"
    free = shutil.disk_usage(folder).free / 1e9
    remedy = "" if free >= least else f"at least {least:.0f} GB are needed for runs"
    return ("free disk", free >= least, f"{free:.0f} GB", remedy)


def _has_program(name: str, remedy: str) -> tuple[str, bool, str, str]:
    "One row of the check: is a program there?"
    path = shutil.which(name)
    return (name, bool(path), path or "missing", "" if path else remedy)


def _fits(image: Path) -> tuple[str, bool, str, str]:
    "One row of the check: is an image whole, and does it hold what is installed here?"
    try:
        path = check_image(image)
        inside = check_versions(path)
    except RuntimeError:  # no Apptainer here: only the file could be looked at
        return ("image", True, str(path), "")
    except (OSError, ValueError) as error:
        return ("image", False, str(image), str(error))
    return ("image", True, f"{path}, rvtutorial {inside.get('rvtutorial')}", "")


def _knows(
    what: str, value: str | None, known: list[str]
) -> tuple[str, bool, str, str]:
    "One row of the check: does Slurm know a name?"
    if value is None or not known:
        return (what, True, value or "not set", "" if known else "Slurm could not say")
    right = value in known
    return (what, right, value, "" if right else f"yours: {', '.join(known)}")


def check_site(
    site: Site,  # Read by `Site.read`
):  # DataFrame: what, ok, found, remedy
    "Look whether this machine has what a site's jobs need."
    import pandas as pd

    rows = [_enough_room(Path.cwd())]
    rows += [_has_folder("data", site.data), _has_folder("scratch", site.scratch, True)]
    if site.image:
        rows += [_fits(Path(os.path.expandvars(site.image)))]
        rows += [_has_program("apptainer", "name its module in the site file")]
        rows += [_has_folder("binds", bind.split(":")[0]) for bind in site.binds]
    else:
        rows += [
            _installed(p) for p in ("rastervision", "torch", "papermill", "ipykernel")
        ]
    if site.queue == "slurm":
        away = "use a terminal or a session of the cluster, or the site local"
        rows += [_has_program(name, away) for name in ("sbatch", "squeue")]
        asked = on_cluster(cluster_of(site.extra), "sinfo", "-h", "-o", "%R")
        rows += [_knows("partition", site.partition, _one_words(answer(asked)))]
        rows += [_knows("account", site.account, accounts())]
    return pd.DataFrame(rows, columns=["what", "ok", "found", "remedy"])

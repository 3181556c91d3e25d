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

from pydantic import BaseModel, Field, PlainValidator, ValidationError

from rvtutorial.container import check_image, check_versions
from rvtutorial.core.commands import answer
from rvtutorial.core.names import near_match, own_sites, packaged

MANAGED = {"--" + word for word in (
    "account partition qos gres mem time cpus-per-task nodes ntasks array output error "
    "chdir export signal requeue no-requeue open-mode parsable job-name wrap dependency"
).split()}  # fmt: skip
MAX_ARRAY = 1001  # Slurm's own MaxArraySize, where a site does not say another


def _text(pattern: str, like: str):
    "The type of a field that holds a text of this form, or nothing."
    return Annotated[str | None, Field(pattern=f"^({pattern})$", examples=[like])]


def _whole(low: int, kind=int):
    "The type of a field that holds a whole number."
    like = f"a whole number from {low} up"
    return Annotated[kind, Field(ge=low, strict=True, examples=[like])]


def _texts(value, field) -> tuple[str, ...]:
    "A list of texts as a tuple; one text counts as a list of one."
    items = (value,) if isinstance(value, str) else value
    texts = isinstance(items, (list, tuple)) and all(isinstance(i, str) for i in items)
    if not texts or not all(item.isprintable() for item in items):
        raise ValueError(
            f"site field {field.field_name} must be a list of texts, got {value!r}"
        )
    for option in items if field.field_name == "extra" else ():
        if not option.startswith("--") or option.split("=")[0] in MANAGED:
            raise ValueError(
                f"site field extra takes options such as '--nice=10' that have no field "
                f"of their own, got {option!r}"
            )
    return tuple(items)


_Name = _text(r"[A-Za-z0-9][A-Za-z0-9_.:,@+=\-\[\]&|()*/]*", "like 'gpu'")
_Path = _text(r"[^\x00-\x1f\x7f]+", "like '/a/path'")
_Memory = _text(r"(?i)[0-9]+(\.[0-9]+)?[KMGT]B?", "like '16G', with a unit")
_TIME = "like '02:30:00', '1-12:00:00' or 150 (minutes)"
_CLOCK = r"[0-9]+|([0-9]+-)?[0-9]+:[0-9]{2}:[0-9]{2}|[0-9]+-[0-9]+(:[0-9]{2})?"
_Time = _text(_CLOCK, _TIME) | _whole(0)
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
    mem: _Memory = None  # Memory of a node
    time: _Time = None  # Longest run time: minutes, or D-HH:MM:SS
    cpus: _whole(1, int | None) = None  # Cores of a job, and its number of threads
    nodes: _whole(1) = 1  # Nodes of a job
    tasks: _whole(1) = 1  # Processes of a job; more for a training on several devices
    extra: _Texts = ()  # More options of sbatch, such as "--nice=10"

    name: _Name = "local"  # What the site is called
    queue: Literal["slurm", "local"] = "local"  # The default of other names is slurm

    def __init__(self, source: str = "the site", /, **given):  # Where the fields stand
        name, queue = given.get("name", "local"), given.get("queue")
        given["queue"] = queue or ("local" if name == "local" else "slurm")
        if hasattr(given.get("time"), "isoformat"):  # TOML's 02:30:00 is a time of day
            given["time"] = given["time"].isoformat()
        try:
            super().__init__(**given)
        except ValidationError as error:
            found, fields = error.errors()[0], type(self).model_fields
            field, own = found["loc"][0], found.get("ctx", {}).get("error")
            if own:  # the message of `_texts`
                raise own from None
            if found["type"] == "extra_forbidden":
                hint = (
                    f"{near_match(field, fields)} (known fields: {', '.join(fields)})"
                )
                text = f"{source} has an unknown field {field!r}; {hint}"
                raise ValueError(text) from None
            known = dict(queue="slurm or local", nv="true or false", time=_TIME)
            wanted = known.get(field) or fields[field].examples[0]
            text = f"site field {field} must be {wanted}, got {found['input']!r}"
            raise ValueError(text) from None

    @classmethod
    def read(cls, name: "str | Path | Site") -> "Site":
        "A site by its name or its file; a Site is passed through."
        if isinstance(name, cls):
            return name
        path, known = Path(name).expanduser(), cls.files()
        if not path.is_file() and str(name) not in known:
            raise FileNotFoundError(
                f"there is no site {str(name)!r}; {near_match(name, known)}. Your own "
                f"sites belong in ~/.config/rvtutorial/sites, one file NAME.toml for each"
            )
        path = path if path.is_file() else known[str(name)]
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as err:
            raise ValueError(f"site file {path} is not TOML: {err}") from None
        return cls(f"site file {path}", **{"name": path.stem, **given})

    @staticmethod
    def files() -> dict[str, Path]:
        "All sites that can be named, the user's own before the package's."
        folders = (packaged("sites", "local").parent, own_sites())
        return {path.stem: path for f in folders for path in sorted(f.glob("*.toml"))}

    def replace(self, **changes) -> "Site":
        "The same site with some fields changed."
        return type(self)(**self.model_dump() | changes)

    @property
    def cluster(self) -> str:
        "The cluster that `extra` names, where several share one Slurm; empty: this one."
        return option(self.extra, "clusters")

    def array_limit(self) -> int:
        "How many members an array may have here, as `scontrol show config` says."
        text = answer(["scontrol", "show", "config"], self.cluster) or ""
        found = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
        return max(1, int(found[1])) if found else MAX_ARRAY

    @property
    def load_modules(self) -> str:
        "Lines of shell that load the modules, and stop the job when one is not there."
        text = ""
        for name in map(shlex.quote, self.modules):
            text += f"module load {name} || {{ echo no module {name} >&2; exit 1; }}\n"
        return text

    @staticmethod
    def expand(name: str, path: str) -> str:
        "A path of a field with ~ and $VARIABLES filled in; an unset one is an error."
        full = os.path.expanduser(os.path.expandvars(path))
        if re.search(r"\$\w|\$\{", full):
            raise ValueError(
                f"site field {name} names a variable that is not set: {path!r}"
            )
        return full

    def expanded_binds(self) -> list[str]:
        "The binds of a container, the folder of the scenes among them, filled in."
        binds = [self.expand("binds", bind) for bind in self.binds]
        return binds + ([self.expand("data", self.data)] if self.data else [])

    def __repr__(self):
        given = {"name": self.name, "queue": self.queue} | self.model_dump()
        lists = {n: ", ".join(v) for n, v in given.items() if isinstance(v, tuple)}
        given = {n: v for n, v in (given | lists).items() if v not in (None, "")}
        return "\n".join(f"{n:<10} {v}" for n, v in given.items())

    __str__ = __repr__


def option(args, key: str) -> str:
    "The last value of an option --key=value among those of sbatch, or an empty text."
    named = [a.partition("=")[2] for a in args if a.startswith(f"--{key}=")]
    return named[-1] if named else ""


def _one_words(text: str | None) -> list[str]:
    "The names in a list with one in each line; a notice of several words is skipped."
    lines = [line.strip() for line in (text or "").splitlines()]
    return sorted({line for line in lines if re.fullmatch(r"[\w.:@+-]+", line)})


def accounts() -> list[str]:  # Empty where there is no Slurm, or it keeps no accounts
    "The accounts that you may charge."
    asked = ["sacctmgr", "-Pns", "show", "user", "format=account", "where"]
    return _one_words(answer([*asked, f"user={getpass.getuser()}"]))


def _installed(package: str) -> tuple[bool, str, str]:
    "Whether a package is here, in the version that this one was made for if it says one."
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False, "missing", f"choose another kernel, or install {package}"
    asked = "\n".join(importlib.metadata.requires("rvtutorial") or [])
    exact = re.search(rf"^{package}\s*==\s*([\w.]+)", asked, re.MULTILINE)
    wanted = exact[1] if exact else found
    return wanted == found, found, f"the text is true for {wanted}"


def _is_there(what: str, path: str | None, write: bool = False) -> tuple:
    "Whether a folder or file is there, and can be written to."
    if path is None:
        return True, "not set", ""
    place = Path(os.path.expanduser(os.path.expandvars(path)))
    if not place.exists():
        return False, f"no {place}", f"make it, or correct {what} in the site file"
    right = not write or os.access(place, os.W_OK)
    return right, str(place), "it cannot be written to"


def _image_fits(image: Path) -> tuple[bool, str, str]:
    "Whether an image is whole, and holds what is installed here."
    try:
        path = check_image(image)
        inside = check_versions(path)
    except RuntimeError:  # no Apptainer here: only the file could be looked at
        return True, str(path), ""
    except (OSError, ValueError) as error:
        return False, str(image), str(error)
    return True, f"{path}, rvtutorial {inside.get('rvtutorial')}", ""


def check_site(
    site: Site,  # Read by `Site.read`
):  # DataFrame: what, ok, found, remedy
    "Look whether this machine has what a site's jobs need."
    import pandas as pd

    rows = []

    def note(what: str, ok: bool, found: str, remedy: str) -> None:
        rows.append((what, ok, found, "" if ok else remedy))

    def program(name: str, remedy: str) -> None:
        path = shutil.which(name)
        note(name, bool(path), path or "missing", remedy)

    def known(what: str, value: str | None, names: list[str]) -> None:
        if names and value is not None:
            return note(what, value in names, value, f"yours: {', '.join(names)}")
        unsure = "" if names else "Slurm could not say"
        rows.append((what, True, value or "not set", unsure))

    free = shutil.disk_usage(Path.cwd()).free / 1e9
    note("free disk", free >= 2, f"{free:.0f} GB", "at least 2 GB are needed for runs")
    note("data", *_is_there("data", site.data))
    note("scratch", *_is_there("scratch", site.scratch, write=True))
    if site.image:
        note("image", *_image_fits(Path(os.path.expandvars(site.image))))
        program("apptainer", "name its module in the site file")
        for bind in site.binds:
            note("binds", *_is_there("binds", bind.split(":")[0]))
    else:
        for package in ("rastervision", "torch", "papermill", "ipykernel"):
            note(package, *_installed(package))
    if site.queue == "slurm":
        away = "use a terminal or a session of the cluster, or the site local"
        program("sbatch", away)
        program("squeue", away)
        named = answer(["sinfo", "-h", "-o", "%R"], site.cluster)
        known("partition", site.partition, _one_words(named))
        known("account", site.account, accounts())
        from rvtutorial.hpc.batch import why_refused  # which needs this module

        wrong, waits = why_refused(site)
        if wrong and not wrong.startswith(("partition", "account")):
            note("request", False, wrong, "correct it in the site file")
        if waits:
            note(
                "nodes", False, f"every node that fits is {waits}", "sinfo -R says why"
            )
    return pd.DataFrame(rows, columns=["what", "ok", "found", "remedy"])

"""Check an Apptainer image, what is bound into it, and the versions of packages inside."""

import contextlib
import csv
import hashlib
import io
import os
import platform
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path, PurePosixPath

from rvtutorial.core.names import packaged


def in_container(
    environ=None,  # Environment to look at; this process's own by default
) -> bool:  # True inside Apptainer or Singularity
    "Whether this very process runs inside an Apptainer image."
    environ = os.environ if environ is None else environ
    names = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")
    return any(environ.get(name) for name in names)


def definition_file() -> Path:  # Path of rastervision.def
    "Where the definition of this project's image lies: checkout first, then package."
    return packaged("definitions", "rastervision")


def read_definition(
    path,  # A definition file
) -> dict[str, str]:  # {"header": ..., "post": ..., ...}
    "The sections of a definition file, by name, without their comments."
    sections, name = {"header": ""}, "header"
    for line in Path(path).read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].split()[0]
            sections[name] = ""
        elif line.strip() and not line.lstrip().startswith("#"):
            sections[name] += line + "\n"
    return sections


# launch line, magic, version, arch, id, ...
SIF_HEADER = struct.Struct("<32s10s3s3s16s8q")


def check_image(
    image,  # Path of a .sif file or of a sandbox folder
) -> Path:  # The same, absolute
    """Make sure that a path is a whole Apptainer image.

    Raises FileNotFoundError when nothing is there and ValueError for a file that is
    no SIF or was cut short, and for a folder that is no sandbox.
    """
    path = Path(image).expanduser().absolute()
    if path.is_dir():
        if not (path / ".singularity.d").is_dir():
            raise ValueError(f"{path} is a folder but not a sandbox image")
        return path
    if not path.is_file():
        raise FileNotFoundError(
            f"no image at {path}; build it once with apptainer/build.sh {path}"
        )
    with open(path, "rb") as file:
        head = file.read(SIF_HEADER.size)
    if len(head) < SIF_HEADER.size or head[32:41] != b"SIF_MAGIC":
        raise ValueError(
            f"{path} is not an Apptainer image (it starts with {head[:16]!r})"
        )
    *_, offset, length = SIF_HEADER.unpack(head)
    size = path.stat().st_size
    if size < offset + length:
        raise ValueError(
            f"{path} was cut short: {size} bytes of {offset + length}; copy it again"
        )
    return path


@dataclass(frozen=True)
class Bind:
    """A folder or file of the host under a path inside the container.

    `source` is made absolute; `target` is the same path when left out. Raises
    ValueError for a target that is not absolute and for control characters.
    """

    source: str  # Path on the host
    target: str = ""  # Absolute path inside; empty: the source's own path
    readonly: bool = False  # True: nothing inside can write there

    def __post_init__(self):
        source = os.path.abspath(os.path.expanduser(plain_path(self.source, "source")))
        target = plain_path(self.target or source, "target")
        inside = PurePosixPath(target)
        if not inside.is_absolute() or ".." in inside.parts or target == "/":
            raise ValueError(
                f"the container side of a bind must be an absolute path below /, "
                f"got {target!r} (for {source!r})"
            )
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "target", target)

    @classmethod
    def of(
        cls,
        bind,  # "source", "source:target", "source:target:ro", or a Bind
    ) -> "Bind":
        "A bind from the text that site files and command lines hold."
        if isinstance(bind, cls):
            return bind
        parts = os.fspath(bind).split(":")
        mode = parts[2] if len(parts) == 3 else "rw"
        if len(parts) > 3 or mode not in ("ro", "rw"):
            raise ValueError(
                f"bind {bind!r} is not source, source:target or source:target:ro; for "
                f"a path that itself holds a colon write Bind(source, target)"
            )
        return cls(parts[0], parts[1] if len(parts) > 1 else "", mode == "ro")

    @classmethod
    def all_of(
        cls,
        binds,  # Texts such as "source:target:ro", or Binds
        exist: bool = True,  # Look on the disk whether each source is there
    ) -> "list[Bind]":  # The same, parsed
        """Read binds and refuse those that would stop the job as it starts.

        Raises FileNotFoundError for a source that is not there (Apptainer ends with 255)
        and ValueError for two binds with one target.
        """
        if isinstance(binds, (str, Path, cls)):
            binds = [binds]
        found, places = [cls.of(bind) for bind in binds], {}
        for bind in found:
            if exist and not os.path.exists(bind.source):
                raise FileNotFoundError(
                    f"nothing at {bind.source}, which was to be bound to {bind.target}; "
                    f"Apptainer stops on a missing source, so make the folder first"
                )
            other = places.setdefault(bind.target, bind)
            if other != bind:
                raise ValueError(
                    f"{other.source} and {bind.source} are both bound to {bind.target}"
                )
        return list(places.values())

    def args(self) -> list[str]:
        "The bind as arguments of `apptainer exec`."
        mode = ["ro"] * self.readonly
        if not set(self.source + self.target) & set(',:\\"'):
            return ["--bind", ":".join([self.source, self.target, *mode])]
        # the longer form takes the characters that `--bind` splits at
        fields = ["type=bind", f"source={self.source}", f"destination={self.target}"]
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([*fields, *mode])
        return ["--mount", text.getvalue()]


def plain_path(
    path,
    name: str,  # What it is, such as "image"
    single: bool = False,  # For a flag that would split it at a colon or comma
) -> str:
    "A path as text; ValueError when it is empty or holds a control character."
    text = os.fspath(path)
    if not text or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(
            f"{name} {text!r} is empty or holds a control character, such as a line "
            f"break, that no command line can carry safely; rename the path"
        )
    text = os.path.expanduser(text) if single else text
    if single and (set(text) & set(",:") or not os.path.isabs(text)):
        raise ValueError(
            f"{name} must be an absolute path without colon or comma, got {text!r}"
        )
    return text


def assignment(name: str, value: str) -> str:
    "NAME=value for `--env`, which splits its argument at commas."
    if not name.isidentifier() or not name.isascii():
        raise ValueError(f"{name!r} cannot be the name of an environment variable")
    if set(value) & set(',"\n\r\0'):
        raise ValueError(
            f"the value of {name} holds a comma, a double quote or a line break, "
            f"which --env cannot carry: {value!r}; put it in a file that is bound"
        )
    if name == "HOME":
        raise ValueError("Apptainer ignores HOME in --env; use home= instead")
    return f"{name}={value}"


_SWITCHES = ("--no-eval", "--cleanenv", "--contain", "--nv")


def readable(
    command: list[str],  # Arguments, as `exec_command` makes them
) -> str:  # The same, quoted, on several lines
    "A command as one would type it: each flag, the image and the program on a line."
    parts, at = [command[:2]], 2
    while at < len(command) and command[at].startswith("--"):
        size = 1 if command[at] in _SWITCHES else 2
        parts.append(command[at : at + size])
        at += size
    parts += [command[at : at + 1], command[at + 1 :]]
    return " \\\n    ".join(shlex.join(part) for part in parts if part)


FREEZE = "/opt/rvtutorial/freeze.txt"  # where an image lists its packages


def _read_freeze(text: str) -> dict[str, str]:
    "Package names and versions from lines such as `numpy==2.4.0`."
    pairs = (line.split("==") for line in text.splitlines() if "==" in line)
    return {name.strip().lower(): version.strip() for name, version in pairs}


def _image_versions(
    image,  # Path of the image
) -> dict[str, str]:  # Package name to version
    "The Python packages inside an image; RuntimeError where Apptainer is not there."
    if shutil.which("apptainer") is None:
        raise RuntimeError(
            "apptainer is not on the PATH of this machine; on a cluster load its "
            "module first, or look at the image from a batch job"
        )
    command = ["apptainer", "exec", "--no-eval", "--cleanenv", "--contain"]
    command += [str(check_image(image)), "cat", FREEZE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return _read_freeze(done.stdout)


DECISIVE = ("rastervision", "torch", "torchvision", "numpy", "rasterio")


def own_versions() -> dict[str, str]:  # As lines of FREEZE name them
    "Python, this library, a digest of its code, and the packages that decide a result."
    code = hashlib.sha256()
    inside = Path(str(resources.files("rvtutorial")))
    for path in sorted(inside.rglob("*.*")):
        if path.suffix in (".py", ".html") and path.name != "_modidx.py":
            code.update(str(path.relative_to(inside)).encode() + path.read_bytes())
    found = {"python": platform.python_version()}
    found |= {"rvtutorial-code": code.hexdigest()[:12]}
    for name in ("rvtutorial", *DECISIVE):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def check_versions(
    image,  # Path of the image
) -> dict[str, str]:  # What the image holds
    """Make sure that jobs in an image run what is installed here.

    Python's own version may differ, and so may the build of a package (2.15.0+cpu);
    a package that is missing here is not compared. Raises ValueError with every
    difference, RuntimeError where Apptainer is not there.
    """
    inside, told = _image_versions(image), []
    for name, version in own_versions().items():
        other = inside.get(name, "missing")
        if name != "python" and other.split("+")[0] != version.split("+")[0]:
            told.append(f"{name} is {other} in the image and {version} here")
    if told:
        raise ValueError(
            f"{image} does not fit this Python: {'; '.join(told)}. Build the image "
            f"anew with apptainer/build.sh, or install here what it holds"
        )
    return inside

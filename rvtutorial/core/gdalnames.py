"""Paths that the readers of vector files would take apart: `!` for archives, `;` and `?` for addresses.

pyogrio reads a path as an address: what stands before `!` is an archive to it, what stands
behind `;` or `?` a parameter, and line breaks are dropped. Such a file is reached by a link
in a folder of this process, whose name holds nothing of the kind.
"""

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from rvtutorial.core.files import own_folder

__all__ = ["gdal_name"]

_SPECIAL = re.compile(r"[!;?\x00-\x1f]")


def gdal_name(
    path: str
    | os.PathLike,  # A file that is read, whatever its name; or a new GeoPackage
) -> str:  # The same file by a name that stays in one piece
    """A path that can be given to pyogrio or geopandas; addresses stay as they are.

    Of a format of several files, such as a shapefile, only what is there can be read: new
    files beside a special name would be written elsewhere.
    """
    text = os.fspath(path)
    if "://" in text or text.startswith("/vsi") or not _SPECIAL.search(text):
        return text
    path = Path(text)
    return _linked(path.parent.resolve() / path.name)


def _linked(path: Path) -> str:
    "A link to the file's folder; to the file and its companions if its name is special."
    place = _links(os.getpid()) / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    if not _SPECIAL.search(path.name):
        _link(place, path.parent)
        return str(place / path.name)
    place.mkdir(exist_ok=True)
    stem = _SPECIAL.sub("_", path.stem)
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    for one in {path, *(p for p in beside if p.name.startswith(f"{path.stem}."))}:
        _link(place / (stem + one.name.removeprefix(path.stem)), one)
    return str(place / (stem + path.suffix))


def _link(at: Path, target: Path) -> None:
    "Make a symbolic link; another thread may have made it meanwhile."
    try:
        at.symlink_to(target)
    except FileExistsError:
        pass


@cache
def _links(process: int) -> Path:
    "A folder of this process alone, gone when it ends."
    return own_folder("rvtutorial-names-")

"""Folders and files at gs://, s3:// and other addresses: fetched if missing, stored without writing over anything.

Written by hand: fsspec does the work, with gcsfs for gs:// and, where s3fs is not
installed, obstore for s3://.
"""

import importlib.util
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from rvtutorial.core.files import atomic_path


def is_remote(place: str | Path) -> bool:
    "Whether a place is an address such as gs://bucket/folder."
    return "://" in str(place)


def _file_system(uri: str):
    "The file system of an address, and the path on it."
    import fsspec

    protocol = uri.partition("://")[0]
    needs = {"gs": ["gcsfs"], "gcs": ["gcsfs"], "s3": ["s3fs", "obstore"]}.get(
        protocol, []
    )
    there = [name for name in needs if importlib.util.find_spec(name)]
    if needs and not there:
        raise ImportError(
            f"{protocol}:// needs one more package: pip install {needs[-1]} (or all of "
            "rvtutorial[cloud])"
        )
    if there == ["obstore"]:
        from obstore.fsspec import register

        register(protocol)
    return fsspec.core.url_to_fs(uri)


def fetch(
    uri: str,  # A folder: gs://bucket/models/a
    folder: str | Path,  # To which its files go
    leave: Sequence[str] = (),  # Patterns of names that are not needed
) -> Path:  # The folder
    """Copy the files of a remote folder that are not here yet, or have another size.

    FileNotFoundError when it holds nothing.
    """
    system, root = _file_system(str(uri).rstrip("/"))
    folder, found = Path(folder), system.find(root, detail=True)
    if not found:
        raise FileNotFoundError(f"{uri} holds nothing, or is not there")
    for path, info in sorted(found.items()):
        name = str(PurePosixPath(path).relative_to(root))
        if any(fnmatch(name, one) for one in leave):
            continue
        if ".." in PurePosixPath(name).parts:
            raise ValueError(f"{uri} holds {name!r}, which leads out of its folder")
        here = folder / name
        if here.is_file() and here.stat().st_size == info["size"]:
            continue
        here.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(here) as partial:
            system.get_file(path, os.fspath(partial))
    return folder


def store(
    path: str | Path,  # A file
    uri: str,  # The folder to which it goes
) -> str:  # Its address
    "Store a file in a remote folder; FileExistsError where there is one of that name."
    system, root = _file_system(str(uri).rstrip("/"))
    target = f"{root}/{Path(path).name}"
    if system.exists(target):
        raise FileExistsError(f"{uri}/{Path(path).name} is there already")
    system.put_file(os.fspath(path), target)
    return f"{str(uri).rstrip('/')}/{Path(path).name}"

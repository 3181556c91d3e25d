"""Folders and files at gs://, s3:// and other addresses: fetched if missing, stored without writing over anything.

Written by hand: fsspec does the work, with gcsfs for gs:// and, where s3fs is not
installed, obstore for s3://.
"""

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from rvtutorial.core.files import atomic_path
from rvtutorial.core.records import Unreadable, read_json, write_json


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


_MARKS = ("ETag", "etag", "e_tag", "generation", "mtime", "updated", "last_modified")
_MARKS += ("LastModified", "created")  # What tells two contents apart, the best first


def _mark(info) -> str:
    "What a listing says of the content of a file: its size, and ETag or time."
    known = next((info[name] for name in _MARKS if info.get(name) is not None), "")
    return f"{info['size']} {known}".strip()


def fetch(
    uri: str,  # A folder, or a file: gs://bucket/models/a
    folder: str | Path,  # To which its files go; of a file, where that goes
    leave: Sequence[str] = (),  # Patterns of names that are not needed
) -> Path:  # The folder, or the file
    """Copy the files of a remote folder that are not here yet, or have changed there.

    What was copied is remembered beside the folder, by size and ETag or time; what is no
    longer there is removed here, if it was copied. FileNotFoundError when it holds
    nothing.
    """
    system, root = _file_system(str(uri).rstrip("/"))
    system.invalidate_cache()
    folder = Path(folder)
    memory = folder.with_name(f".{folder.name}.fetched.json")
    before = {}
    with contextlib.suppress(Unreadable):  # then all is copied anew
        before = read_json(memory, {}, form={})
    listed = {
        str(PurePosixPath(path).relative_to(root)): (path, info)
        for path, info in sorted(system.find(root, detail=True).items())
    }
    for name in listed:
        if ".." in PurePosixPath(name).parts:
            raise ValueError(f"{uri} holds {name!r}, which leads out of its folder")
    for name in before.keys() - listed.keys():
        (folder / name).unlink(missing_ok=True)
    now = {name: mark for name, mark in before.items() if name in listed}
    try:
        for name, (path, info) in listed.items():
            here = folder / name  # of a file "." is that file
            if name != "." and any(fnmatch(name, one) for one in leave):
                continue
            mark = _mark(info)
            same = here.is_file() and here.stat().st_size == info["size"]
            if same and now.get(name) == mark:
                continue
            here.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(here) as partial:
                system.get_file(path, os.fspath(partial))
            now[name] = mark
    finally:
        if now != before:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, now)
    if not listed:
        raise FileNotFoundError(f"{uri} holds nothing, or is not there")
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

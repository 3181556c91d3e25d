"A small file system, where one may be mounted, and programs that fill it."

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path


@contextlib.contextmanager
def small_disk(
    folder,  # Where to mount it; made if need be
    size,  # As mount takes it: 64k, 1m
):
    "A file system in memory; the test is skipped where none may be mounted."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    import pytest

    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as err:
        pytest.skip(f"no small file system can be mounted here: {err}")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file) -> None:
    "Write zeros into an open file until no block is left."
    with contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def eat(disk: Path, stop: Path) -> None:
    "Fill a disk, and whatever is freed on it, until `stop` is there or two minutes are over."
    end = time.monotonic() + 120
    with open(disk / "filler", "wb", buffering=0) as file:
        while not stop.exists() and time.monotonic() < end:
            fill(file)
            time.sleep(0.002)


@contextlib.contextmanager
def hungry(disk: Path, stop: Path):
    "Another process that leaves no room on a disk while the context lasts."
    command = [sys.executable, __file__, str(disk), str(stop)]
    other = subprocess.Popen(command)
    try:
        yield other
    finally:
        other.kill()
        other.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(disk / "filler")


if __name__ == "__main__":
    eat(*map(Path, sys.argv[1:]))

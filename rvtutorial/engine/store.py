"""Pixels of whole scenes that are held in memory up to a budget, and above it in memory-mapped files.

Written by hand: what image sources (`reading`) and label rasters (`polygons`) share.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import torch

from rvtutorial.core import files
from rvtutorial.core.renamed import say_once


class _CannotHold(OSError):
    "There is neither memory nor scratch for the pixels of a scene."


class Held:
    """A raster source whose pixels can be held in memory, or in a file of a store.

    Has `read_all()`, the pixels of its whole extent, and `fingerprint()`, a name and a
    digest of what they are made from (None: unknown): the same name and another digest
    means changed data.
    """

    pixels = None  # (height, width, ...), held; nobody may write into it
    store = None  # A SceneStore that shall be asked for them
    uses = 0  # Windows served before the store was asked

    @staticmethod
    def digest(*what) -> str:
        "32 hex digits."
        return hashlib.sha256(repr(list(what)).encode()).hexdigest()[:32]

    @staticmethod
    def cut(
        pixels: np.ndarray,  # (height, width, ...): a whole scene
        window,  # A Box in pixels of the scene; may hang over
    ) -> np.ndarray:  # (height, width, ...): a view where nothing hangs over
        "A window of an array, with zeros outside it."
        top, left, bottom, right = window
        if min(top, left) >= 0 and bottom <= len(pixels) and right <= pixels.shape[1]:
            return pixels[top:bottom, left:right]
        y, x = max(top, 0), max(left, 0)
        found = pixels[y : max(bottom, 0), x : max(right, 0)]
        out = np.zeros((bottom - top, right - left, *pixels.shape[2:]), pixels.dtype)
        y, x = y - top, x - left
        out[y : y + found.shape[0], x : x + found.shape[1]] = found
        return out

    def hold(self, pixels: np.ndarray) -> None:
        "Serve windows inside the extent from what `read_all` returned."
        self.pixels = pixels.view()
        self.pixels.flags.writeable = False

    def keep_in(self, store: "SceneStore") -> None:
        "Hold the pixels in a store, from the second window on; not those of huge scenes."
        pixel = len(self.channel_order) * self.dtype_raw.itemsize
        if self.bbox.height * self.bbox.width * pixel <= store.largest:
            self.store, self.uses = store, 0

    def ask_store(self, after: int) -> None:
        "Hold the pixels now if so many windows were served; it is tried once."
        store, self.uses = self.store, self.uses + 1
        if store is not None and self.uses > after:
            with contextlib.suppress(_CannotHold):
                self.hold(store.array(self, self.read_all))
            self.store = None


def _mapped(file):
    "The array of an open .npy file, mapped; numpy's own maps keep their files open."
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    size, name = os.fstat(file.fileno()).st_size, f"/proc/self/fd/{file.fileno()}"
    whole = torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
    pixels = np.frombuffer(whole.numpy(), dtype, np.prod(shape), file.tell())
    return pixels.reshape(shape)


class SceneStore:
    """Pixels of scenes, in memory up to a budget and in memory-mapped files above it.

    Each file carries a digest of what it was made from.
    """

    largest = 2**30  # bytes; a larger scene is read window by window from its own file
    keep_days = 14  # a file that nobody opened for so long is deleted

    def __init__(
        self,
        budget_mb: float | None = None,  # None: RVTUTORIAL_CACHE_MB or 1/4 of memory
        scratch: str | Path | None = None,  # None: `scratch_folder()`
        say=say_once,  # Told once when something is slower than it could be
    ):
        named = os.environ.get("RVTUTORIAL_CACHE_MB")
        if budget_mb is None and named:
            budget_mb = float(named)
        self.budget = budget_mb and budget_mb * 2**20
        if budget_mb is None:
            self.budget = files.available_memory() / 4
        self.folder = Path(scratch or files.scratch_folder())
        self.named = bool(scratch or os.environ.get("RVTUTORIAL_SCRATCH"))
        self.say, self.held, self.used, self.told = say, {}, 0, set()
        self.lock = threading.Lock()

    def attach(
        self,
        scene,  # From `build_scene`
    ):  # The same
        "Let the sources of a scene hold their pixels here."
        image, labels = scene.raster_source, scene.label_source
        sources = [*getattr(image, "raster_sources", [image])]
        for source in [*sources, getattr(labels, "raster_source", None)]:
            if isinstance(source, Held):
                source.keep_in(self)
        return scene

    def array(
        self,
        source: Held,  # Its `fingerprint` says which pixels they are
        make,  # Called without arguments for the pixels, when they are not here
    ) -> np.ndarray:  # Must not be changed
        "The pixels of a source's whole extent; OSError when they cannot be held."
        known = source.fingerprint()
        with self.lock:
            if known in self.held:
                return self.held[known]
            pixels = None if known is None else self._from_file(*known)
            if pixels is None:
                pixels = self._keep(known, make())
            if known is not None:
                self.held[known] = pixels
        return pixels

    def _keep(self, known, pixels):
        "In memory while the budget lasts, then in a file, then not at all."
        if self.used + pixels.nbytes <= self.budget:
            self.used += pixels.nbytes
            return pixels
        if known is None:
            raise _CannotHold("a mosaic has no file of its own")
        try:
            return self._to_file(*known, pixels)
        except OSError as err:
            text = f"{self.folder} cannot hold scenes ({err}): they are read again"
            more = "for every chip; set RVTUTORIAL_SCRATCH to another folder"
            self._once("full", f"{text} {more}")
            raise _CannotHold from err

    def _once(self, what, text):
        "Say something, but not for every scene."
        if what not in self.told:
            self.told.add(what)
            self.say(text)

    def _safe(self):
        "Whether nobody else can have put files there; who names a folder answers for it."
        return self.named or files.is_private(self.folder)

    def _to_file(self, name, digest, pixels):
        "Write pixels and the digest behind them, to a temporary name first."
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._safe():
            raise OSError("it is no private folder of yours any more")
        free = shutil.disk_usage(self.folder).free
        if free < pixels.nbytes + 2**28:
            raise OSError(f"{free / 2**30:.1f} GB are free")
        path = self.folder / f"{name}.npy"
        if path.is_symlink():
            path.unlink()  # else what it leads to would be replaced
        with files.atomic_path(path) as partial, open(partial, "wb") as file:
            np.save(file, np.ascontiguousarray(pixels))
            file.write(digest.encode())
        return self._from_file(name, digest)

    def _from_file(self, name, digest):
        "Pixels of a file, None where there is none of this digest."
        if not self._safe():
            return None
        try:
            with files.open_plain(self.folder / f"{name}.npy") as file:
                file.seek(-len(digest), os.SEEK_END)
                if file.read() == digest.encode():
                    os.utime(file.fileno())
                    return _mapped(file)
        except (OSError, ValueError):
            return None
        text = f"scenes in {self.folder} have changed since: they are read anew"
        self._once("changed", text)
        return None

    def prune(self) -> int:  # Files deleted
        "Delete the files that nobody has opened for a while."
        limit = time.time() - self.keep_days * 86_400
        ours = self.folder.glob("[0-9a-f]" * 32 + ".npy")  # others may write here too
        old = [path for path in ours if path.stat().st_mtime < limit]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

"""Read and write the JSON records of runs and submissions, or say of a file why it cannot be read.

A record may be cut short, empty, of a newer version, closed to this user, binary, or hold
a list where a dictionary belongs. All of these raise `Unreadable`, which knows the file.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rvtutorial.core.files import atomic_path


class Unreadable(ValueError):
    "A record that cannot be used; `path` is the file, `why` the reason."

    def __init__(
        self,
        path: str | Path,  # The file
        why: str,  # The reason, in words
        text: str | None = None,  # The whole message, where it is another
    ):
        super().__init__(text or f"{path}: {why}")
        self.path, self.why = Path(path), why


def _moment(value) -> bool:
    "Whether a value is a time with its zone, as `datetime.isoformat` writes it."
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _turn(value) -> bool:
    "Whether a value is a run's place in a queue: submission, number in it, parameters."
    kinds = ((str, type(None)), (int, type(None)), (dict, type(None)))
    whole = isinstance(value, list) and len(value) == len(kinds)
    return whole and all(map(isinstance, value, kinds))


SCHEMA = 1  # The newest version of a record that is known here
NUMBER = (int, float)
_ATTEMPT = {
    "started": _moment, "ended": _moment, "state": str, "why": str, "host": str,
    "pid": int, "submission": str, "index": int, "slurm": dict, 
}  # fmt: skip
_TURN = {"submission": str, "index": int, "params": dict}
_JOB = {**_TURN, "notebook": str, "site": str, "epochs": NUMBER, "earlier": [_turn]}
_WENT = {
    "state": str, "why": str, "paused": int, "job": _JOB, "attempts": [_ATTEMPT],
    "stages": [{"name": str, "seconds": NUMBER}], "trained": {"bundle": str},
}  # fmt: skip
_SCORES = dict.fromkeys("f1 iou precision recall accuracy".split(), NUMBER)
RUN = {  # run.json
    "schema": int, "went": _WENT, "made_with": {"device": str},
    "asked": {"hyperparams": {"epochs": NUMBER}, "data": {"digest": str}},
    "results": {"validation": _SCORES, "test": _SCORES},
}  # fmt: skip
TASKS = {  # tasks.json
    "folders": [str], "notebook": str, "params": [dict], "needs": [str], "before": str,
    "warn": NUMBER, "restarts": int, "seconds": NUMBER,
}  # fmt: skip
SUBMITTED = {  # job.json
    "queue": ("slurm", "local"), "host": str, "id": (str, int), "refused": str,
    "sbatch": [str], "site": {"queue": str, "gres": str, "parallel": int, "name": str},
}  # fmt: skip
CANCELLED = [int]  # cancelled.json
OWNER = dict.fromkeys("host slurm_job_id folder cluster".split(), str)  # job.lock
OWNER["pid"] = int
RUNGS = {...: {"scores": {...: NUMBER}, "go on": [str]}}  # rungs.json
_SPLIT = [{"id": str, "raster_source": dict, "label_source": dict}]
CONFIG = {  # pipeline-config.json
    "dataset": {
        "train_scenes": _SPLIT, "validation_scenes": _SPLIT, "test_scenes": _SPLIT,
        "class_config": {"names": [str], "null_class": str},
    },
    "backend": {"data": dict, "solver": dict, "model": dict},
    "predict_options": dict,
}  # fmt: skip


def _misfit(
    value,  # Read from JSON
    form,  # A type, several, a test, words, or a dictionary or list of forms
    place: str = "it",  # What to call the value
) -> str | None:  # None: it fits
    """What is wrong with a value: the place, what belongs there and what is there.

    Every key of a dictionary may be missing, and it may have other keys; the key `...`
    stands for all. A list holds any number of items of its one form. Anything but a
    dictionary or a list of forms may be null.
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return _instead(place, "a dictionary", value)
        each = {key: form[...] for key in value} if ... in form else form
        inside = [(value[k], kind, f"{k!r}") for k, kind in each.items() if k in value]
    elif isinstance(form, list):
        if not isinstance(value, list):
            return _instead(place, "a list", value)
        inside = [(v, form[0], f"item {n} of {place}") for n, v in enumerate(value)]
    elif value is None:
        return None
    elif not isinstance(form, type | tuple):  # a test
        return None if form(value) else _instead(place, _WORDS[form], value)
    elif isinstance(form, tuple) and isinstance(form[0], str):
        one = "one of " + ", ".join(form)
        return None if value in form else _instead(place, one, value)
    else:
        fits = isinstance(value, form) and not isinstance(value, bool)
        return None if fits else _instead(place, _WORDS[form], value)
    return next((bad for item in inside if (bad := _misfit(*item))), None)


_WORDS = {dict: "a dictionary", list: "a list", str: "a text", int: "a whole number"}
_WORDS |= {NUMBER: "a number", (str, int): "a text", _moment: "a time with its zone"}
_WORDS[_turn] = "a submission, a number and parameters"


def _instead(place: str, wanted: str, value) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{place} must be {wanted}, got {shown}"


def read_json(
    path: str | Path,  # The file to read
    default=...,  # Returned when there is no such file; without it that is an error
    form=None,  # As `_misfit` takes it; None: whatever is there
    needed: tuple = (),  # Keys that must not be missing
):  # What the file holds
    "Read JSON; raises `Unreadable` for a file that is broken, closed, or of another form."
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe that never ends
            raise Unreadable(path, "it is no file")
        found = json.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError):
        if default is not ...:
            return default
        raise
    except OSError as err:
        raise Unreadable(path, err.strerror or str(err)) from None
    except Unreadable:
        raise
    except (ValueError, RecursionError) as err:
        why = f"not whole JSON: {err}"
        raise Unreadable(path, why, f"{path} is {why}") from None
    if form is None:
        return found
    schema = found.get("schema") if isinstance(found, dict) else None
    if type(schema) is int and schema > SCHEMA:
        why = "of a newer rvtutorial; update it"
        raise Unreadable(path, why, f"{path} is {why}")
    wrong = _misfit(found, form)
    lacks = [] if wrong else [key for key in needed if found.get(key) is None]
    if wrong or lacks:
        raise Unreadable(path, wrong or f"it has no {lacks[0]!r}")
    return found


def jsonable(value):
    "Texts, numbers, lists and dicts only: NaN becomes null, as in Raster Vision's files."
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())  # numpy
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(
    path: str | Path,  # The file to write
    obj,  # Made of dicts, lists, numbers, texts, paths, numpy values
    last: bool = False,  # On a full disk, into the room of `reserve_disk`, which is used up
) -> None:
    "Write JSON in one step: a reader finds the old file or the new one."
    text = json.dumps(jsonable(obj), indent=1) + "\n"
    try:
        with atomic_path(path) as partial:
            partial.write_text(text)
    except OSError:
        if not last:
            raise
        try:  # over blocks that the reserve has: they are never free meanwhile
            reserve = Path(path).with_name(".reserve")
            with open(reserve, "rb+") as file:
                if os.fstat(file.fileno()).st_size < len(text.encode()):
                    raise OSError("the reserve is too small")
                file.write(text.encode())
                file.truncate()
                os.fsync(file.fileno())
            os.replace(reserve, path)
            return
        except OSError:
            pass
        raise


RESERVE = 65536  # Bytes kept, so that the last states can be written


@contextlib.contextmanager
def reserve_disk(folder: Path):
    "Keep 64 kB on a disk while the context lasts: no other program can take them."
    reserve = folder / ".reserve"
    with contextlib.suppress(OSError):  # full already: what follows will say so
        reserve.write_bytes(os.urandom(RESERVE))
    try:
        yield
    finally:
        reserve.unlink(missing_ok=True)


def attempt(
    read: Callable,  # Reads something of a file that is whole JSON
    path: str | Path,  # That file
    what: str,  # What it should be, such as "evaluation"
    but: type[Exception] = Unreadable,  # Errors that say enough by themselves
):  # What `read()` returns
    "Turn what goes wrong with an unexpected content into `Unreadable`."
    try:
        return read()
    except (Unreadable, but):
        raise
    except OSError as err:
        raise Unreadable(path, err.strerror or str(err)) from None
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as err:
        why = f"it is no {what} ({type(err).__name__}: {err})"
        raise Unreadable(path, why) from None

"""The folder of a run: what was asked, how it went, what came out, and the files of Raster Vision in it."""

import io
import os
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

from rvtutorial.core import records
from rvtutorial.core.files import atomic_path, locked
from rvtutorial.core.formulas import fractions
from rvtutorial.core.hyperparams import Hyperparams, differences
from rvtutorial.core.names import as_text, natural_key, near_match
from rvtutorial.core.records import Unreadable, read_json, write_json

_SPLITS = {"train": "train_scenes", "val": "validation_scenes"}
_SPLITS |= {"validation": "validation_scenes", "test": "test_scenes"}


def _group(split: str) -> str:
    "Raster Vision's name of a split."
    if split not in _SPLITS:
        raise ValueError(f"there is no split {split!r}; {near_match(split, _SPLITS)}")
    return _SPLITS[split]


def _first_uri(node) -> str | None:
    "The first file named anywhere below a raster source or a label source."
    if isinstance(node, dict):
        uris = node.get("uris") or node.get("uri")
        if uris:
            return uris if isinstance(uris, str) else uris[0]
        node = list(node.values())
    if isinstance(node, list):
        return next((uri for item in node if (uri := _first_uri(item))), None)
    return None


def _located(uri: str, data, what: str) -> Path:
    "A file named by a run, or the file of that name in the folder it was moved to."
    path = Path(uri)
    if data is None:
        if path.is_file():
            return path
        text = f"the {what} was {path} when the run was made and is not there now"
        raise FileNotFoundError(f"{text}; say where it is with data=FOLDER")
    folders = [Path(data) / sub for sub in ("", "train", "val", "validation", "test")]
    found = [f / path.name for f in folders if (f / path.name).is_file()]
    found = found or sorted(Path(data).rglob(path.name))
    if not found:
        raise FileNotFoundError(f"the {what}, {path.name}, is not below {data}")
    return found[0]


_WRITES = {
    "pipeline-config.json": "Raster Vision writes it when a run starts",
    "train": "the train stage adds a line to it after each epoch",
    "predict": "the predict stage writes it for the validation and test scenes",
    "eval": "the eval stage writes it, if all scenes of the split have labels",
}


class Run:
    "A run folder, made by this package or by plain Raster Vision."

    def __init__(self, path: str | Path):
        if re.match(r"[a-z][a-z0-9]+:/", str(path)):
            raise ValueError(
                f"a run needs a folder of this machine, got {path}; run it in a local "
                "folder and copy that when it is done"
            )
        self.path = Path(path).expanduser().absolute()

    @property
    def name(self) -> str:
        "Name of the folder."
        return self.path.name

    @property
    def manifest(self) -> dict:
        "What `run.json` holds now; empty for a run of plain Raster Vision."
        return read_json(self.path / "run.json", {}, records.RUN)

    @property
    def trouble(self) -> str | None:
        "Why `run.json` cannot be read; None if it can."
        try:
            _ = self.manifest
        except Unreadable as error:
            return str(error)
        return None

    @property
    def state(self) -> str:
        "queued, running, succeeded, ...; `unfinished` if unknown; `unreadable`: `trouble` says why."
        try:
            said = self.manifest.get("went", {}).get("state")
        except Unreadable:
            return "unreadable"
        whole = os.path.exists(self.path / "bundle" / "model-bundle.zip")
        return said or ("succeeded" if whole else "unfinished")

    @property
    def paused(self) -> int | None:
        "Epochs after which the training paused, None if it did not."
        return self.manifest.get("went", {}).get("paused")

    def update(self, section: str, **values) -> None:
        "Merge values into a section of `run.json`; dots lead deeper: `results.test`."
        self._change(section, lambda place: place.update(values))

    def update_last(self, section: str, **values) -> None:
        "The same as what ends a job: on a full disk into the room that was kept for it."
        self._change(section, lambda place: place.update(values), last=True)

    def append(self, section: str, key: str, item) -> None:
        "Add an item to a list in a section of `run.json`, such as a stage."
        self._change(section, lambda place: place.setdefault(key, []).append(item))

    def _change(self, section, change, last=False) -> None:
        with locked(self.path / ".run.lock"):  # one writer at a time
            manifest = {"schema": 1} | self.manifest
            place = manifest
            for key in section.split("."):
                place = place.setdefault(key, {})
            change(place)
            write_json(self.path / "run.json", manifest, last)

    def _file(self, name: str) -> Path:
        "A file of the run; FileNotFoundError says which stage writes it."
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no run folder {self.path}")
        if not os.path.exists(self.path / name):
            when = _WRITES[name.split("/")[0]]
            raise FileNotFoundError(f"run {self.name} has no {name} yet: {when}")
        return self.path / name

    @cached_property
    def config(self) -> dict:
        "Raster Vision's record of the configuration."
        path = self._file("pipeline-config.json")
        return read_json(path, form=records.CONFIG, needed=("dataset",))

    def scene_ids(self, split: str = "validation") -> list[str]:
        "Ids of the scenes of a split, img9 before img10."
        scenes = self.config["dataset"].get(_group(split)) or []
        return sorted((scene["id"] for scene in scenes), key=natural_key)

    def _source(self, scene_id: str, kind: str) -> str | None:
        "The file a scene's raster source or label source names."
        groups = [self.config["dataset"].get(g) or [] for g in set(_SPLITS.values())]
        known = {scene["id"]: scene for group in groups for scene in group}
        if str(scene_id) not in known:
            hint = near_match(scene_id, sorted(known, key=natural_key)[:20])
            raise ValueError(f"run {self.name} has no scene {scene_id!r}; {hint}")
        return _first_uri(known[str(scene_id)].get(kind))

    def image(self, scene_id: str, data: str | Path | None = None) -> Path:
        "Image of a scene; `data` is the folder to which images were moved."
        uri = self._source(scene_id, "raster_source")
        what, own = f"image of scene {scene_id}", self._own(uri)
        if own is None:
            return _located(uri, data, what)
        if own.suffix.lower() != ".vrt":
            return own
        # a view of an image that was moved since names its new place from now on
        tree, found = ET.parse(own), {}
        for source in tree.iter("SourceFilename"):
            there = source.text or ""
            if not (own.parent / there).is_file():  # an absolute path stays one
                found[there] = (
                    found.get(there) or _located(there, data, what).absolute()
                )
                source.text = str(found[there])
                source.set("relativeToVRT", "0")
        if found:
            with atomic_path(own) as partial:
                tree.write(partial)
        return own

    def label(self, scene_id: str, data: str | Path | None = None) -> Path | None:
        "Labels of a scene, None if the run has none; its own copy comes first."
        uri = self._source(scene_id, "label_source")
        if uri is None:
            return None
        own, where = self._own(uri), f"label file of scene {scene_id}"
        named = self.path / "labels" / Path(uri).name
        if own is None and not Path(uri).is_file() and named.is_file():
            own = named
        return own or _located(uri, data, where)

    def _own(self, uri: str) -> Path | None:
        "A file that the run itself wrote, wherever its folder lies now."
        root = Path(self.config.get("root_uri") or self.path)
        if not Path(uri).is_relative_to(root):
            return None
        own = self.path / Path(uri).relative_to(root)
        return own if own.is_file() else None

    @property
    def hyperparams(self) -> dict:
        "The values the run was asked for, or what its config or its job says of them."
        asked = self.manifest.get("asked", {}).get("hyperparams")
        if not asked and not (self.path / "pipeline-config.json").is_file():
            job = self.manifest.get("went", {}).get("job") or {}
            asked = job.get("params")  # of a job that asks nothing of Raster Vision
        asked = asked or _hyperparams_in(self.config)
        return Hyperparams.under_new_names(asked, says=False)

    def log(self):
        "DataFrame of the epochs so far, with Raster Vision's column names."
        import pandas as pd

        path = self._file("train/log.csv")
        # whole lines: one that a running job is still writing is left out
        *lines, _ = path.read_text(errors="replace").split("\n")
        lines = [n for n in lines if n.count(",") == lines[0].count(",")]
        if not lines:
            return pd.DataFrame()
        read = partial(pd.read_csv, io.StringIO("\n".join(lines)))
        table = records.attempt(read, path, "table of epochs")
        if "epoch" in table:
            table = table.drop_duplicates("epoch", keep="last", ignore_index=True)
        return table

    def evaluation(self, split: str = "validation") -> dict:
        "What `eval.json` of a split holds."
        path = self._file(f"eval/{_group(split)}/eval.json")
        found = read_json(path)
        if not isinstance(found, dict | list) or not found:
            raise Unreadable(path, f"it is no evaluation: {found!r:.40}")
        return found

    def prediction(self, scene_id: str) -> Path:
        "Predicted labels of a scene: a GeoTIFF of class ids."
        return self._file(f"predict/{scene_id}/labels.tif")

    def scores(self, scene_id: str) -> Path:
        "Predicted scores of a scene: a GeoTIFF with one band for each class."
        return self._file(f"predict/{scene_id}/scores.tif")

    @property
    def results(self) -> dict:
        "Headline scores of each split: those in `run.json`, else from `eval.json`."
        found = dict(self.manifest.get("results", {}))
        for split in ("validation", "test"):
            path = self.path / "eval" / _group(split) / "eval.json"
            if split not in found and os.path.exists(path):
                read = partial(self.headline, self.evaluation(split))
                found[split] = records.attempt(read, path, "evaluation")
        return found

    @staticmethod
    def headline(
        evaluation: dict | list,  # What an `eval.json` holds
        class_name: str | None = None,  # None: the first class but background and null
    ) -> dict:  # class, f1, iou, precision, recall, accuracy; None where undefined
        "Scene-level scores of one class, from the counts of pixels in `eval.json`."
        items = evaluation["overall"] if isinstance(evaluation, dict) else evaluation
        items = {i["class_name"]: i for i in items if "conf_mat_dict" in i}
        sought = [n for n in items if n not in ("background", "null")] or list(items)
        counts = items[class_name or sought[0]]["conf_mat_dict"]
        tp, fp, fn, tn = (counts[key] for key in ("TP", "FP", "FN", "TN"))
        found, scores = fractions(tp, fp, fn, tn), {}
        for name in ("f1", "iou", "precision", "recall", "accuracy"):
            above, below = found[name]
            scores[name] = above / below if below else None
        return {"class": class_name or sought[0], **scores}

    @property
    def worked(self) -> float:
        "Seconds that a run was at work, all its attempts together, the present one too."
        total, state = 0.0, self.state
        for attempt in self.manifest.get("went", {}).get("attempts") or []:
            begun = end = datetime.fromisoformat(attempt["started"])
            if attempt.get("ended"):
                end = datetime.fromisoformat(attempt["ended"])
            elif state == "running":
                end = datetime.now(UTC)
            total += max(0.0, (end - begun).total_seconds())
        return total

    @classmethod
    def of(cls, run):
        "A path as a Run; everything else as it is."
        return cls(run) if isinstance(run, (str, Path)) else run

    @classmethod
    def open_for(cls, path: str | Path, asked: dict, differ: str = "refuse") -> "Run":
        """Begin a run in an empty folder, or go on with the same run.

        Raises ValueError when the folder holds anything else: a run with other
        settings (they are listed), a run of plain Raster Vision, or other files.
        `differ="continue"` goes on all the same, as stock Raster Vision does.
        """
        run = cls(path)
        _refuse(run, asked, differ)
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.manifest.get("asked") or differ == "continue":

            def ask(place):  # unless another process has done so meanwhile
                if not place or differ == "continue":
                    place.update(asked)

            run._change("asked", ask)
        elif _unplanned(run, asked):  # one that was too short, perhaps
            run.update("asked.hyperparams", budget=asked["hyperparams"]["budget"])
        _refuse(run, asked, differ)  # somebody else may have been faster
        if not run.manifest.get("went"):
            run.update("went", state="queued", attempts=[], stages=[])
        return run

    def __repr__(self):
        try:
            f1 = self.results.get("validation", {}).get("f1")
        except Unreadable as error:
            return f"Run({self.name}: unreadable: {error})"
        text = "" if f1 is None else f", validation F1 {f1:.3f}"
        return f"Run({self.name}: {self.state}{text})"


_OURS = (
    "run.json", "notebook*.ipynb", "params*.json", "job*", "*.log", "*.out", "*.err",
    "*.sh", "tasks.json", "queue.json", "cancelled.json", "checkpoint*.pt", ".*",
)  # fmt: skip


def _unplanned(run: Run, asked: dict) -> bool:
    "Whether a run has a budget that is not yet turned into epochs, and may have another."
    known = run.manifest.get("asked") or {}
    budgets = [one.get("hyperparams", {}).get("budget") for one in (known, asked)]
    return all(budgets) and not run.manifest.get("went", {}).get("budget")


def _refuse(run: Run, asked: dict, differ: str) -> None:
    "Raise ValueError when a folder holds something other than the run asked for."
    if differ not in ("refuse", "continue"):
        raise ValueError(f"differ must be refuse or continue, got {differ!r}")
    if run.path.exists() and not run.path.is_dir():
        raise ValueError(f"{run.path} is a file, and a run needs a folder of its own")
    if differ == "continue" or not run.path.is_dir():
        return
    names = {p.name for p in run.path.iterdir()}
    others = [n for n in names if not any(Path(n).match(own) for own in _OURS)]
    text = ""
    if run.manifest.get("asked"):
        found = differences(run.manifest["asked"], asked)
        if _unplanned(run, asked):
            found.pop("hyperparams.budget", None)
        listed = [f"{k}: {as_text(a)} -> {as_text(b)}" for k, (a, b) in found.items()]
        text = "a run with other settings: " + "; ".join(listed) if listed else ""
    elif "pipeline-config.json" in names:
        text = "a run without run.json (pipeline-config.json is there), made elsewhere"
    elif others:
        text = "files that belong to no run: " + ", ".join(sorted(others)[:5])
    if text:
        hint = "Give the new run a folder of its own"
        hint += "" if others else ", or delete this one"
        raise ValueError(f"folder {run.path} holds {text}. {hint}")


def _hyperparams_in(config: dict) -> dict:
    "What a config of plain Raster Vision says about our hyperparameters."
    backend, predict = config.get("backend", {}), config.get("predict_options") or {}
    data, solver = backend.get("data") or {}, backend.get("solver") or {}
    model, windows = backend.get("model") or {}, data.get("sampling") or {}
    if "size" not in windows:  # one entry for each scene
        ids = [scene["id"] for scene in config["dataset"]["train_scenes"]]
        windows = next((windows[i] for i in ids if i in windows), {})
    found = {"chip_sz": windows.get("size"), "stride_length": predict.get("stride")}
    found |= {k: windows.get(k) for k in ("max_windows", "padding")}
    found |= {k: solver.get(k) for k in ("lr", "batch_sz", "one_cycle")}
    found |= {k: model.get(k) for k in ("backbone", "pretrained")}
    found |= {"epochs": solver.get("num_epochs"), "img_sz": data.get("img_sz")}
    found["class_weights"] = solver.get("class_loss_weights")
    return {k: v for k, v in found.items() if v is not None or k == "padding"}


def find_runs(
    folder: str | Path,  # Where to look
) -> list[Run]:  # In natural order of their paths
    "All runs in a folder and below, whoever made them."
    marks = ("run.json", "pipeline-config.json")
    found = {path.parent for mark in marks for path in Path(folder).rglob(mark)}
    return [Run(path) for path in sorted(found, key=natural_key)]

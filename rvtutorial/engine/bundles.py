"""Open a trained model (a run folder or a bundle): its files, the code it carries, and what its network was shown.

Written by hand: the plumbing of `engine.predict`.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError, RasterioError
from rasterio.windows import Window

from rvtutorial.engine.learner import INPUTS, FastLearner, quiet
from rvtutorial.data.validity import colour_bands
from rvtutorial.data.places import Grid, unplaced_allowed
from rvtutorial.core.records import read_json

with quiet():
    from rastervision.core.data import MinMaxTransformerConfig, MultiRasterSourceConfig
    from rastervision.core.rv_pipeline import WindowSamplingMethod
    from rastervision.core.rv_pipeline import (
        SemanticSegmentationConfig,
        SemanticSegmentationPredictOptions,
    )
    from rastervision.pipeline import registry_ as registry
    from rastervision.pipeline.config import build_config, upgrade_config
    from rastervision.pytorch_learner import SemanticSegmentationLearnerConfig
    from rastervision.pytorch_learner.utils.torch_hub import get_hubconf_dir_from_cfg


OUR_CODE = {  # SHA-256 of every version of unet, course, encoders and losses in `models`
    "ea76b23f43a13302d0d8b656439b5ff33e92af6440ba57647969e7d973210ead",
    "47fefd8362d2c38f9965f2a6ac788512ede34e63cc45d2b44c451258c6e2348d",
    "f335d3a4ccd4fd3d19dd1147a60e995e45385771243bf82d20b8571c22bb8ee5",
    "3475ce87ba3107ae57e30d53ae205a055adb0100f94744f5aed5502818cb3bbb",
    "2ace2995c4d84eaa83dbc689cc8738fd6fb3465a14003d7020bcb49131001db4",
    "913f82104cccc2b3a92c7bc7e92101f6a3e6dd9749f66e604e06f0084faf4e35",
    "3c6356939b19a2aabdaed9f6ec39c12c6b008c0c0664a778a094941126879abb",
    "63f0d5518cb83152e3bd83bc68cd2b1da41292bf1dfeafb2c90acfeff7df4c39",
    "8d3917fad6e64fcce88342ec59a60bbccbe6ebb118361fec16d2f11e9f81fd61",
    "c74339027ee8e8ee55cc14e441c0fb64435f8c898be28155736d2323d06bbd45",
    "90fb906cda0d98bb3f33b8ad588399f11f99358f55b4338fb00c66de457a2f60",
    "59e516e34fc08a6d3e964a415d5ef5312eef53a70b39c41cb5872ea83c96e095",
    "44882e80dc70e21ade674075ca82c8c0268017be566611cdf8c1206e6fd80b64",
    "0cbc20224eb0df5509ec8821be7bf08ea5b446725bcba53629ded0736bf96b57",
}


# --- code


def _code_in(folder, trees, known) -> list[str]:
    "The code of others that loading an unpacked model would run, by its files and configurations."
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        code = name.parts[0] == "modules" or path.suffix in (".py", ".so", ".pyd")
        if code and digest not in OUR_CODE | {*known}:
            found.append(f"{name} (SHA-256 {digest[:16]}...)")
    for tree in trees:
        found += [f"transforms in {path}" for path in _transform_files(tree)]
        network = ((tree.get("learner") or tree).get("model") or {}).get("external_def")
        if network and not network.get("name") and network.get("github_repo"):
            found.append(f"the network of {network['github_repo']}")
        elif network:
            modules = folder / "modules"
            place = get_hubconf_dir_from_cfg(build_config(network), parent=str(modules))
            if Path(place).resolve().parent != modules.resolve():
                found.append(f"the network in {place}")
    return found


def _transform_files(tree):
    "Python files that albumentations would import, however deep they are named."
    if isinstance(tree, list):
        return [path for item in tree for path in _transform_files(item)]
    if not isinstance(tree, dict):
        return []
    own = [tree["lambda_transforms_path"]] if tree.get("lambda_transforms_path") else []
    return own + _transform_files(list(tree.values()))


# --- a model


@dataclass
class Model:
    "A trained model, unpacked and checked."

    bundle: Path  # The bundle of its training: what a learner loads
    config: dict  # Its pipeline's configuration, upgraded; empty where there is none
    learner: dict  # Its learner's configuration, upgraded
    root: Path | None  # Where `analyze` and its statistics lie
    inputs: dict | None  # What `inputs_of` said when it was trained; None: unknown

    @classmethod
    def open(
        cls,
        model: Path,  # A run folder, its bundle, or the bundle of its training
        tmp: Path,  # An empty folder
        trust: bool = False,  # Run the code of others that it carries?
        known: Iterable[str] = (),  # SHA-256 of files of others that may run
    ) -> "Model":
        """Unpack a model and look at it; no code of it runs here.

        Raises FileNotFoundError if there is none, ValueError when it is for another task,
        and when it carries code that is not ours and is not trusted.
        """
        path, root = _find(model)
        tree = {} if root is None else read_json(root / "pipeline-config.json", {})
        _unpack(path, tmp / "model")
        inner = tmp / "model/model-bundle.zip"
        if inner.exists():  # the bundle of a run, with that of its training inside
            tree, root = read_json(tmp / "model/pipeline-config.json"), tmp / "model"
            _unpack(inner, tmp / "training")
        else:
            os.rename(tmp / "model", tmp / "training")
        training = tmp / "training"
        names = ("learner-config.json", "pipeline-config.json")
        trees = [read_json(p) for n in names if (p := training / n).exists()]
        if not trees:
            raise ValueError(
                f"{path} says nothing of its network ({names[0]} is missing)"
            )
        # what Python has compiled would be run in place of the files beside it
        for path in [*training.rglob("__pycache__")]:
            shutil.rmtree(path)
        for path in [*training.rglob("*.pyc")]:
            path.unlink()
        code = _code_in(training, trees, known)
        if code and not trust:
            raise ValueError(
                f"{model} carries code that would run here: {', '.join(code[:5])}. Code "
                f"of others can do all that you can; if you know where it comes from, "
                f"allow it with trust=True (in a terminal: --trust)"
            )
        if tree:
            cls.refuse_other_task(tree.get("type_hint"), model)
        learner = trees[0]
        if "learner" in learner:  # early bundles have that of a pipeline around it
            learner = trees[0]["learner"]
            learner |= {"plugin_versions": trees[0].get("plugin_versions")}
        learner = _upgraded(learner, names[0])
        task = SemanticSegmentationLearnerConfig
        cls.refuse_other_task(learner.get("type_hint"), model, task)
        FastLearner.pack(training, tmp / "training.zip")
        inputs = read_json(training / INPUTS, None)
        if not inputs:
            inputs = read_json(model / "run.json", {}).get("went", {}).get("inputs")
        tree = _upgraded(tree, path)
        return cls(tmp / "training.zip", tree, learner, root, inputs)

    @staticmethod
    def refuse_other_task(
        type_hint: str | None,  # Of a serialized configuration
        what,  # In the message: what the configuration is of
        known: type = SemanticSegmentationConfig,  # What it has to be
    ) -> None:
        "ValueError unless a configuration is for semantic segmentation."
        try:
            kind = registry.get_config(type_hint)
        except Exception as err:  # whatever the registry raises for an unknown name
            text = f"{what}: {type_hint!r} is no configuration that Raster Vision knows here"
            raise ValueError(text) from err
        if not issubclass(kind, known):
            raise ValueError(
                f"{what} is for another task ({type_hint}): this package trains, predicts "
                f"and evaluates semantic segmentation; use `rastervision run` for this one"
            )

    @property
    def predicts(self) -> dict:  # chip_sz, stride, crop_sz, batch_sz; empty: not said
        "How Raster Vision would predict with it."
        asked = self.config.get("predict_options")
        if not asked:
            return {}
        known = SemanticSegmentationPredictOptions.model_fields
        return SemanticSegmentationPredictOptions(
            **{k: v for k, v in asked.items() if k in known and k != "type_hint"}
        ).dict()

    @staticmethod
    def scale(
        data,  # A DataConfig of Raster Vision
    ) -> float | None:  # None where it is not said, or not one number
        "How large a pixel of an image was in training, in pixels that the network saw."
        how, found = getattr(data, "sampling", None), set()
        if isinstance(how, dict):
            trained = getattr(data.scene_dataset, "train_scenes", [])
            how = {s.id: how[s.id] for s in trained if s.id in how} or how
        for one in how.values() if isinstance(how, dict) else [how]:
            size = getattr(one, "size", None)
            if not isinstance(size, int) or one.h_lims:
                return None
            if one.size_lims and tuple(one.size_lims) != (size, size + 1):
                return None
            # random windows are resized back to their size in training
            random = one.method == WindowSamplingMethod.random
            found.add(1.0 if random else data.img_sz / size)
        return found.pop() if len(found) == 1 else None

    @property
    def classes(self) -> list[str]:  # Empty where there is no pipeline's configuration
        "Names of the classes, `null` among them, in order of their ids."
        known = (self.config.get("dataset") or {}).get("class_config")
        if not known:
            return []
        found = build_config(known)
        found.ensure_null_class()
        return list(found.names)

    def source(self) -> "_Source | None":  # None where nothing is said about it
        "How the images of its first validation scene are read, as `Predictor` does it."
        data = self.config.get("dataset") or {}
        if not data:
            data = (self.learner.get("data") or {}).get("scene_dataset") or {}
        names = ("validation_scenes", "test_scenes", "train_scenes")
        scenes = [scene for name in names for scene in data.get(name) or []]
        if not scenes:
            return None
        return _Source(build_config(scenes[0]["raster_source"]), self.root)

    @staticmethod
    def inputs_of(
        configs: list,  # Raster sources of training scenes
    ) -> dict | None:  # None where none can be read
        """What images hold before any transformer: dtype, bands, and the range of each band.

        Also `names`, what all scenes call the bands that are read, if they do, and
        `pixel_m`, the middle of the sizes of their pixels. `dtype` is None when scenes differ in it, or the files of a scene.
        `low` and `high` hold, for each band that is read, the least and the largest 2 % and
        98 % quantile of a scene.
        """
        chosen = configs[:: max(1, len(configs) // SCENES)][:SCENES]
        found = [one for one in map(_values_of, chosen) if one]
        if not found:
            return None
        dtypes, counts, ranges, names, sizes = zip(*found, strict=True)
        one = dtypes[0] if len(set(dtypes)) == 1 else None
        about = {"dtype": one, "bands": counts[0]}
        if names[0] and len({*names}) == 1:
            about["names"] = list(names[0])
        if placed := [size for size in sizes if np.isfinite(size)]:
            about["pixel_m"] = round(float(np.median(placed)), 4)
        seen = np.array([r for r in ranges if r is not None and len(r) == counts[0]])
        if len(seen):  # (scenes, bands, low and high)
            about["low"], about["high"] = (
                np.stack([seen[..., i].min(0), seen[..., i].max(0)], -1).tolist()
                for i in (0, 1)
            )
        return about

    def named_bands(
        self,
        image: str,  # A path or URI
    ) -> list[int] | None:  # Counted from 0; None: image or model does not name them
        "Where an image has the bands that the network was trained on, by their names."
        names = (self.inputs or {}).get("names")
        if not names:
            return None
        try:
            with unplaced_allowed(), rasterio.open(image) as file:
                there = [(text or "").strip().lower() for text in file.descriptions]
        except RasterioError:
            return None  # whoever maps it says what is wrong
        known = all(there.count(name) == 1 for name in names)
        return [there.index(name) for name in names] if known else None

    def other_sizes(
        self,
        images: Iterable[str],  # Paths or URIs
    ) -> list[str]:  # One line for each
        "Images whose pixels are more than 1.5 times larger or smaller than in training."
        trained, found = (self.inputs or {}).get("pixel_m"), []
        for uri in images if trained else ():
            try:
                with unplaced_allowed(), rasterio.open(uri) as file:
                    size = _pixel_size(file)
            except RasterioError:
                continue  # whoever maps it says what is wrong
            if not 1 / UNLIKE <= size / trained <= UNLIKE and np.isfinite(size):
                found.append(f"{uri}: {size:.3g} m, in training {trained:.3g} m")
        return found

    def odd_ranges(
        self,
        images: Iterable[str],  # Paths or URIs
        bands: list[int] | None,  # That are read, counted from 0; None: all colours
        named: bool = True,  # Unless an image names those of the training
    ) -> list[str]:  # One line for each that looks otherwise
        "Images whose values lie far from those that the network was trained on."
        if "high" not in self.inputs:
            return []
        low, high = (np.array(self.inputs[k]) for k in ("low", "high"))
        found = []
        for uri in images:
            try:
                with unplaced_allowed(), rasterio.open(uri) as file:
                    chosen = (self.named_bands(uri) if named else None) or bands
                    chosen = colour_bands(file) if chosen is None else chosen
                    known = self.inputs["dtype"]  # None: training images differ in it
                    if known and any(file.dtypes[i] != known for i in chosen):
                        continue  # refused for its type
                    here = _value_ranges(file, chosen)
            except (RasterioError, IndexError):
                continue  # whoever maps it says what is wrong
            if here is None or len(here) != len(low):
                continue
            for i, (least, most) in enumerate(here):
                if _odd(least, most, low[i], high[i]):
                    found.append(
                        f"{uri}: band {chosen[i] + 1} has values of {least:g} to {most:g}, "
                        f"in training it had {low[i][0]:g} to {high[i][1]:g}"
                    )
                    break
        return found


def _find(model):
    "The zip file of a model, and the folder of its run, None if it lies elsewhere."
    if not model.is_dir():
        if not zipfile.is_zipfile(model):
            raise FileNotFoundError(
                f"{model} is neither a run folder nor a model bundle"
            )
        above = model.resolve().parent.parent
        return model, above if (above / "pipeline-config.json").exists() else None
    config = read_json(model / "pipeline-config.json", {})
    places = [model / "train", model / "bundle"]
    for name in ("train_uri", "bundle_uri"):
        uri, root = config.get(name) or "", config.get("root_uri") or ""
        if root and Path(uri).is_relative_to(root):  # here, even if the run was moved
            places.append(model / Path(uri).relative_to(root))
        elif uri:
            places.append(Path(uri))
    files = [p / "model-bundle.zip" for p in places]
    found = next((p for p in files if zipfile.is_zipfile(p)), None)
    if found is None:
        raise FileNotFoundError(f"{model} holds no trained model: train it first")
    return found, model


def _unpack(path, folder):
    "Unpack a zip file; ValueError when it is damaged."
    try:
        with zipfile.ZipFile(path) as bundle:
            bundle.extractall(folder)
    except zipfile.BadZipFile as err:
        raise ValueError(f"{path} is damaged: {err}") from err


def _upgraded(tree, path):
    "A configuration of any version of Raster Vision in the words of this one."
    with quiet():
        try:
            return upgrade_config(tree) if tree else {}
        except Exception as err:
            raise ValueError(
                f"{path}: its configuration cannot be read: {err}"
            ) from err


# --- what a network is shown


class _Source:
    """How the images of a model are read, from Raster Vision's configuration of one of them.

    `root` is where `analyze` and its statistics lie; `several` files may make a scene,
    whose bands are joined.
    """

    def __init__(self, config, root):
        if getattr(config, "temporal", False):
            raise ValueError(
                "the model was trained on time series: map scenes with engine.run(config, "
                '["predict"]), for single images do not suit it'
            )
        self.config, self.root = config, root
        self.several = isinstance(config, MultiRasterSourceConfig)
        self.parts = config.raster_sources if self.several else [config]

    @property
    def bands(self) -> list[int] | None:  # Counted from 0; None: all colours
        "Which bands of an image are read; of several files: of all bands together."
        if not self.several:
            return self.config.channel_order
        orders = [part.channel_order for part in self.parts]
        if any(order not in (None, list(range(len(order or ())))) for order in orders):
            raise ValueError(
                f"the model was trained on {len(orders)} files a scene, with the bands "
                f"{orders} (counted from 0) of them: say with bands=... which bands of "
                f"these images the network should see, in that order"
            )
        return None

    def prepare(
        self,
        bands: list[int] | None = None,  # Bands that were asked for instead
    ) -> Callable | None:  # chip (rows, columns, bands) -> chip; None: nothing to do
        "The raster transformers of the model, and the order of bands of several files."
        order = self.config.channel_order
        if not self.several:
            steps = self._steps(self.config, order if bands is None else bands)
            return partial(_changed, steps=steps) if steps else None
        each = [self._steps(part, part.channel_order) for part in self.parts]
        joined = self._steps(self.config, order)
        if bands is not None:
            if any(each):
                raise ValueError(
                    "the model changes the values of each of its files by itself: bands "
                    "cannot be chosen for it"
                )
            return partial(_changed, steps=joined) if joined else None
        ends = np.cumsum(
            [_channels_of(part) for part in self.parts] if any(each) else []
        )

        def prepare(chip):
            if len(ends):
                pieces = np.split(chip, ends[:-1], axis=-1)
                chip = np.concatenate(list(map(_changed, pieces, each)), axis=-1)
            return _changed(chip[..., order] if order else chip, joined)

        return prepare

    def _steps(self, config, order):
        "The transformers of a source, with statistics of where the model lies."
        found = []
        with quiet():
            for step in config.transformers:
                moved = step.copy()
                if self.root is not None:
                    moved.update_root(str(self.root))
                uri = getattr(moved, "stats_uri", None)
                lost = uri and not Path(uri).exists()
                found.append((step if lost else moved).build(channel_order=order))
        return found

    @property
    def stretched(self) -> bool:
        "Whether each chip is stretched by itself, so that ranges of values do not matter."
        every = [t for part in [self.config, *self.parts] for t in part.transformers]
        return any(isinstance(t, MinMaxTransformerConfig) for t in every)


def _changed(chip, steps):
    for step in steps:
        chip = step.transform(chip)
    return chip


def _channels_of(config):
    "How many bands of a file are read."
    if config.channel_order is not None:
        return len(config.channel_order)
    try:
        with rasterio.open(_paths(config)[0]) as file:
            return len(colour_bands(file))
    except (RasterioError, IndexError) as err:
        raise ValueError(
            f"how many bands the model takes from each of its files is not said, and they "
            f"cannot be opened ({err}): map its scenes with engine.run"
        ) from err


def _paths(config):
    "The files of one source."
    uris = getattr(config, "uris", None) or []
    return [uris] if isinstance(uris, str) else list(uris)


# --- what values look like

SCENES = 8  # as many training scenes are looked at
MOST = 4.0  # times brighter or darker than any training scene: worth a warning
UNLIKE = 1.5  # times larger or smaller pixels: worth one, too


def _pixel_size(file):
    "Metres along a side of a pixel; nan without a place."
    try:
        return float(np.mean(Grid(file.crs, file.transform, file.shape).pixel_size()))
    except (ProjError, CRSError):
        return float("nan")


def _values_of(config):
    """dtype (None: several), number of bands, their ranges, names and the size of pixels.

    Of a source; None: unreadable. Of several files, bands have no names.
    """
    parts = getattr(config, "raster_sources", [config])
    kinds, ranges, names, sizes = [], [], [], []
    for part in parts:
        order, paths = part.channel_order, _paths(part)
        if not paths:
            return None
        try:
            with unplaced_allowed(), rasterio.open(paths[0]) as file:
                bands = colour_bands(file) if order is None else order
                kinds += [file.dtypes[i] for i in bands]
                ranges.append(_value_ranges(file, bands))
                names += [(file.descriptions[i] or "").strip().lower() for i in bands]
                sizes.append(_pixel_size(file))
        except (RasterioError, IndexError):
            return None
    whole = None if any(r is None for r in ranges) else np.concatenate(ranges)
    told = len(parts) == 1 and all(names) and len({*names}) == len(names)
    one = kinds[0] if len(set(kinds)) == 1 else None
    return one, len(kinds), whole, tuple(names) if told else (), sizes[0]


def _value_ranges(file, bands, places=4, size=128) -> np.ndarray | None:
    "Quantiles 2 % and 98 % of each band in `places` windows along each side; None: no data."
    rows, columns = (
        sorted({int(at) for at in np.linspace(0, max(side - size, 0), places)})
        for side in (file.height, file.width)
    )
    found = []
    for y in rows:
        for x in columns:
            at = Window(x, y, min(size, file.width - x), min(size, file.height - y))
            read = file.read([i + 1 for i in bands], window=at, masked=True)
            flat = np.ma.filled(read.astype(float), np.nan).reshape(len(bands), -1)
            found.append(flat[:, np.isfinite(flat).all(0) & (flat != 0).any(0)])
    values = np.concatenate(found, axis=1)
    return np.quantile(values, (0.02, 0.98), axis=1).T if values.size else None


def _odd(bottom, top, low, high):
    "Whether a band is far brighter or darker than it was in any training scene."
    beside = bottom > high[1] + (high[1] - low[0]) or top < low[0]
    reach = max(abs(bottom), abs(top))
    least, most = (max(abs(low[i]), abs(high[i])) for i in (0, 1))
    return beside or reach > MOST * most or reach * MOST < least

"""The preset for one's own data: values from the data, a budget of time, windows with labels."""

import json
import time

import numpy as np
import pytest
import rasterio
import torch

from rvtutorial import engine
from rvtutorial.config import get_config
from rvtutorial.core.hyperparams import Hyperparams, seconds
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.engine import budget
from rvtutorial.engine.sampling import LEAST, LabelledWindows
from rvtutorial.runs import Run

SMALL = dict(encoder=None, model="unet", pretrained=False)  # of no encoder: quick


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return make_sample_scenes(folder, n_train=3, n_val=1, n_test=1, size=150)


def own(scenes, out, **changes):
    given = {k: "none" if v is None else v for k, v in {**SMALL, **changes}.items()}
    return get_config("inprocess", out, "own", scenes, **given)


# --- values


@pytest.mark.parametrize(
    "given, kept, many",
    [("3 min", "3 min", 180), ("90s", "90 s", 90), ("1.5 hours", "1.5 h", 5400)],
)
def test_a_budget_has_one_spelling(given, kept, many):
    assert Hyperparams(budget=given).budget == kept
    assert seconds(kept) == many


@pytest.mark.parametrize("given", ["3", "0 min", "-1 h", "soon", "3 parsecs", 180])
def test_what_is_no_budget(given):
    with pytest.raises(ValueError, match="such as 90 s, 3 min or 1 h"):
        Hyperparams(budget=given)


def test_stock_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="knows nothing of cosine, sampling. Use"):
        Hyperparams(engine="stock", cosine=True, sampling="labels")
    Hyperparams.of("version2", stock=True, engine="stock")


def test_a_call_does_not_ask_stock_for_what_a_run_wants(scenes, tmp_path):
    cfg = own(scenes, tmp_path / "run")
    with pytest.raises(
        ValueError, match="nothing of optimizer, .*budget.* engine='fast'"
    ):
        engine.run(cfg, engine="stock", progress=False)
    assert not (tmp_path / "run" / "train").exists()
    cfg = get_config("inprocess", tmp_path / "b", "smoke", scenes)
    with pytest.raises(ValueError, match="knows nothing of patience"):
        engine.run(cfg, engine="stock", patience=1, progress=False)


def test_chips_fit_the_smallest_scene():
    hp = Hyperparams.of("own")
    for side, chip in ((650, 192), (191, 160), (64, 64), (50, 32), (20, 20)):
        found = hp.fitted(side, {})
        assert (found.chip_sz, found.stride_length) == (chip, 2 * chip // 3)
    kept = hp.replace(chip_sz=100, stride_length=50)
    assert kept.fitted(20, {}) == kept


def test_chips_are_drawn_by_area():
    hp = Hyperparams.of("own", chip_sz=100)
    assert hp.chips_of([(1000, 2000, 3)]) == [200]
    assert hp.chips_of([(100, 100), (300, 100)]) == [40, 120]
    assert sum(hp.chips_of([(5000, 5000)] * 10)) == 320
    assert min(hp.chips_of([(5000, 5000)] * 900)) == 1
    assert hp.replace(max_windows=3).chips_of([(9, 9)] * 2) == [3, 3]


def test_what_the_preset_asks_for_is_in_the_config_and_in_run_json(scenes, tmp_path):
    cfg = own(scenes, tmp_path / "run")
    data, solver = cfg.backend.data, cfg.backend.solver
    assert data.img_sz == cfg.predict_options.chip_sz == 128
    assert cfg.predict_options.stride == 22  # two windows end with a scene of 150
    windows = {data.sampling[s.id].max_windows for s in cfg.dataset.train_scenes}
    assert windows == {53}  # 160 in all
    loss = solver.external_loss_def.entrypoint_kwargs
    assert loss["terms"] == ["cross_entropy", "dice"]
    assert loss["weights"] is None  # buildings are 20 % of these scenes
    asked = Run(tmp_path / "run").manifest["asked"]["hyperparams"]
    assert asked["chip_sz"] == 128 and asked["class_weights"] == "balanced"


def test_a_rare_class_weighs_more_and_an_absent_one_is_refused(tmp_path):
    for split, many in (("train", 2), ("val", 1)):
        for number in range(many):
            labels = np.zeros((80, 80), np.uint8)
            labels[:8, :8] = 1  # 1 % of the pixels
            labels[40:] = 2
            image = np.random.default_rng(number).integers(1, 255, (3, 80, 80))
            for kind, values in (("image", image), ("label", labels[None])):
                path = tmp_path / split / f"{kind}{split}{number}.tif"
                path.parent.mkdir(exist_ok=True)
                with rasterio.open(
                    path, "w", "GTiff", 80, 80, len(values), dtype="uint8"
                ) as file:
                    file.write(values.astype("uint8"))
    how = dict(image_pattern="image{id}.tif", label_pattern="label{id}.tif")
    how |= dict(classes="tank,water,land", label_values="1:tank,2:water,0:land")
    cfg = own(tmp_path, tmp_path / "run", **how)
    weights = cfg.backend.solver.external_loss_def.entrypoint_kwargs["weights"]
    assert weights == [pytest.approx((0.05 / 0.01) ** 0.5, abs=1e-3), 1, 1, 0]
    how["classes"] += ",road"
    with pytest.raises(ValueError, match="no pixel of the training scenes is road"):
        own(tmp_path, tmp_path / "other", **how)
    assert not (tmp_path / "other").exists()


def test_a_folder_without_splits_is_split_by_chance(tmp_path, capsys):
    "A stranger's folder of images needs nothing else; the same call is the same run."
    made = make_sample_scenes(tmp_path / "made", n_train=7, n_val=1, n_test=1, size=100)
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in made.rglob("*.*"):
        if path.suffix in (".tif", ".geojson"):
            path.rename(folder / path.name)
    cfg = own(folder, tmp_path / "run")
    sizes = len(cfg.dataset.train_scenes), len(cfg.dataset.validation_scenes)
    assert sizes == (7, 2) and not cfg.dataset.test_scenes
    assert "of its 9 scenes 2 were set aside by chance" in capsys.readouterr().err
    assert own(folder, tmp_path / "run").json() == cfg.json()
    (folder / "one").mkdir()
    for path in sorted(folder.glob("*img*1.*")):
        path.rename(folder / "one" / path.name)
    with pytest.raises(ValueError, match="has one scene, .*split_by_area"):
        own(folder / "one", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="has no folder train/"):
        get_config("inprocess", tmp_path / "other", "smoke", folder)


# --- windows


class Part:
    "A window data set over one scene, as far as drawing needs it."

    min_size = (32, 32)

    def __init__(self, labels):
        from types import SimpleNamespace

        from rastervision.core.box import Box

        self.box = Box
        source = SimpleNamespace(bbox=Box(0, 0, *labels.shape))
        source.get_label_arr = lambda w: labels[w.ymin : w.ymax, w.xmin : w.xmax]
        self.scene = SimpleNamespace(label_source=source)
        self.limits = np.array(labels.shape) - 31

    def sample_window(self):
        top, left = (int(np.random.randint(limit)) for limit in self.limits)
        return self.box(top, left, top + 32, left + 32)


def test_windows_have_labels_and_show_each_class():
    labels = np.full((300, 300), 9)  # null
    labels[:, 100:] = 1
    labels[290:, 290:] = 0  # 0.1 % of the scene, in a corner
    np.random.seed(0)
    choose, part = LabelledWindows(null=9), Part(labels)
    drawn = [
        labels[w.ymin : w.ymax, w.xmin : w.xmax] for w in map(choose, [part] * 400)
    ]
    assert all((window != 9).mean() >= LEAST - 0.1 for window in drawn)
    rare = np.mean([(window == 0).any() for window in drawn])
    by_chance = np.mean(
        [
            (labels[w.ymin : w.ymax, w.xmin : w.xmax] == 0).any()
            for w in (part.sample_window() for _ in range(4000))
        ]
    )
    assert rare > 5 * by_chance


def test_a_scene_without_labels_gives_windows_all_the_same():
    choose = LabelledWindows(null=9)
    assert choose(Part(np.full((64, 64), 9))).height == 32


def test_windows_do_not_depend_on_what_was_drawn_before(scenes, tmp_path):
    "The order of a run that is continued is that of a run that never stopped."
    from rvtutorial.engine.learner import FastLearner, Options

    cfg = own(scenes, tmp_path / "run")

    def items(before):
        learner = cfg.backend.get_learner_config(cfg)
        learner.output_uri = str(tmp_path / "out")
        made = FastLearner(learner, options=Options(sampling="labels"), training=True)
        for epoch in before:
            made.train_dl.items(epoch)
        return [[i.window for i in batch] for batch in made.train_dl.items(2)]

    assert items([]) == items([0, 1])


@pytest.mark.parametrize("narrow, said", [(40, True), (200, False)])
def test_a_narrow_scene_that_makes_all_chips_small_is_named(capsys, narrow, said):
    import pandas as pd

    from rvtutorial.core import renamed
    from rvtutorial.data.checks import _say_if_one_is_narrow

    sides = dict(height=[300, 300, 310], width=[300, narrow, 300])
    table = pd.DataFrame({"id": ["a", "edge", "c"], **sides})
    renamed.say_once.cache_clear()
    _say_if_one_is_narrow(Hyperparams.of("own"), table, narrow)
    text = capsys.readouterr().err
    assert ("scene edge is 40 pixels wide" in text) == said
    _say_if_one_is_narrow(Hyperparams.of("own", chip_sz=32), table, narrow)
    assert capsys.readouterr().err == ""


# --- a budget of time


def test_a_budget_becomes_epochs_which_a_run_keeps(scenes, tmp_path, capsys):
    out, begun = tmp_path / "run", time.perf_counter()
    small = dict(chip_sz=64, max_windows=2)  # one step an epoch: there is always time
    engine.run(own(scenes, out, budget="12 s", **small), ["train"], pause=1)
    asked, went = (Run(out).manifest[k] for k in ("asked", "went"))
    planned = went["budget"]["epochs"]
    assert planned > 1 and asked["hyperparams"]["epochs"] == planned
    assert f"train: {planned} epochs of" in capsys.readouterr().out
    saved = json.loads((out / "pipeline-config.json").read_text())
    assert saved["backend"]["solver"]["num_epochs"] == planned
    old = own(scenes, out, budget="12 s", **small)  # the call of before: the same run
    assert old.backend.solver.num_epochs == planned
    engine.run(old, ["train"], progress=False)
    assert len(Run(out).log()) == planned
    assert Run(out).manifest["went"]["budget"] == went["budget"]  # measured once
    assert time.perf_counter() - begun < 60
    with pytest.raises(ValueError, match="budget"):
        own(scenes, out, budget="13 s", **small)


def test_a_budget_that_is_too_short(scenes, tmp_path):
    cfg = own(scenes, tmp_path / "run", budget="0.01 s")
    with pytest.raises(ValueError, match="too short for one epoch: 20 steps of"):
        engine.run(cfg, ["train"], progress=False)
    assert not (tmp_path / "run" / "train").exists()
    assert "budget" not in Run(tmp_path / "run").manifest["went"]
    own(scenes, tmp_path / "run", budget="1 h")  # a longer one, in the same folder
    assert Run(tmp_path / "run").manifest["asked"]["hyperparams"]["budget"] == "1 h"
    with pytest.raises(ValueError, match="lr: 0.002 -> 0.001"):
        own(scenes, tmp_path / "run", budget="1 h", lr=1e-3)


# --- a network and weights of one's own


def test_a_network_of_ones_own(scenes, tmp_path):
    "Its file travels with the bundle; who predicts with it says that it is trusted."
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def network(num_classes, in_channels):\n"
        "    return nn.Conv2d(in_channels, num_classes, 3, padding=1)\n"
    )
    how = dict(hubconf=str(file), epochs=1, max_windows=2, chip_sz=64, budget=None)
    run = engine.run(own(scenes, tmp_path / "run", **how), progress=False)
    image = Run(run).image(Run(run).scene_ids("test")[0])
    with pytest.raises(ValueError, match="trust=True"):
        engine.predict(run, [image], tmp_path / "maps", progress=False)
    engine.predict(run, [image], tmp_path / "maps", progress=False, trust=True)
    file.write_text(file.read_text().replace("3, padding=1", "1"))
    with pytest.raises(ValueError, match="not the network with which this run began"):
        own(scenes, tmp_path / "run", **how)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        own(scenes, tmp_path / "b", hubconf=str(tmp_path / "no.py"))
    with pytest.raises(ValueError, match="encoder=none and pretrained=false"):
        own(scenes, tmp_path / "b", **how, encoder="resnet18")


def test_training_goes_on_from_the_weights_of_another_run(scenes, tmp_path):
    how = dict(epochs=1, max_windows=2, chip_sz=64, budget=None, cosine=False)
    first = engine.run(own(scenes, tmp_path / "a", **how), ["train"], progress=False)
    again = own(scenes, tmp_path / "b", init_weights=str(first), lr=1e-9, **how)
    second = engine.run(again, ["train"], progress=False)
    one, other = (
        torch.load(run / "train" / "last-model.pth", weights_only=True)
        for run in (first, second)
    )
    names = [n for n in one if n.endswith("weight")]
    assert all(torch.allclose(one[n], other[n], atol=1e-6) for n in names)
    with pytest.raises(FileNotFoundError, match="run that has been trained"):
        own(scenes, tmp_path / "c", init_weights=str(tmp_path))
    assert not (tmp_path / "c").exists()
    other = own(scenes, tmp_path / "d", init_weights=str(first), bands="1", **how)
    with pytest.raises(
        ValueError,
        match="last-model.pth holds the weights of another network than the UNet",
    ):
        engine.run(other, ["train"], progress=False)


def test_a_budget_counts_on_the_usual_step():
    "The first scenes are read from disk: a few slow steps are not what an epoch takes."
    times = [9.0, 9.0, 1.0, 6.0, 1.0, 1.0, 7.0, 1.0, 1.0]
    assert budget._usual(iter(times), 1000) == 1.0
    assert budget._usual(iter([3.0]), 100) == 3.0 and budget._usual(iter([]), 100) == 0

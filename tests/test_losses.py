"""Losses and sums of them: their values, what does not count, and life in a run."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from rvtutorial import engine
from rvtutorial.config import get_config
from rvtutorial.core.hyperparams import Hyperparams
from rvtutorial.data.synthetic import make_sample_scenes
from rvtutorial.models.losses import Loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(2, 4, 16, 16, generator=generator)
    return out, torch.randint(0, 4, (2, 16, 16), generator=generator)


def test_values_are_those_of_segmentation_models_pytorch(batch):
    out, labels = batch
    lovasz = smp.losses.LovaszLoss("multiclass", per_image=False)(out, labels)
    assert torch.isclose(Loss(["lovasz"])(out, labels), lovasz, atol=1e-6)
    dice = smp.losses.DiceLoss("multiclass", smooth=0.5)(out, labels)
    assert torch.isclose(Loss(["dice"])(out, labels), dice, atol=1e-6)
    plain = torch.nn.functional.cross_entropy(out, labels)
    assert torch.isclose(Loss(["cross_entropy"])(out, labels), plain)
    p = out.softmax(1).gather(1, labels[:, None])
    assert torch.isclose(
        Loss(["focal"])(out, labels), (-((1 - p) ** 2) * p.log()).mean(), atol=1e-6
    )


def test_a_sum_is_the_sum(batch):
    parts = [Loss([term])(*batch) for term in ("cross_entropy", "dice", "lovasz")]
    assert torch.isclose(Loss(["cross_entropy", "dice", "lovasz"])(*batch), sum(parts))


@pytest.mark.parametrize("term", ["cross_entropy", "dice", "focal", "lovasz"])
def test_pixels_and_classes_that_do_not_count(batch, term):
    out, labels = batch
    out.requires_grad_()
    hidden = torch.where(labels == 3, 1, labels).clone()
    hidden[0] = 3
    found = Loss([term], ignored=3)(out, hidden)
    assert torch.isclose(found, Loss([term])(out[1:], hidden[1:]))
    found.backward()
    assert (out.grad[0] == 0).all() and out.grad[1].abs().sum() > 0
    nothing = Loss([term], ignored=3)(out, torch.full_like(labels, 3))
    assert nothing == 0 and nothing.requires_grad
    light = Loss([term], weights=[1, 1, 0, 0])(out, torch.full_like(labels, 2))
    assert light == 0


@pytest.mark.parametrize("term", ["cross_entropy", "dice", "focal", "lovasz"])
def test_a_perfect_answer_costs_nothing_and_weights_shift_the_rest(batch, term):
    _, labels = batch
    perfect = 60.0 * torch.nn.functional.one_hot(labels, 4).movedim(3, 1)
    assert Loss([term])(perfect, labels) < 1e-4
    wrong = perfect.clone()
    wrong[:, [0, 1]] = perfect[:, [1, 0]]  # the two first classes are mixed up
    heavy, light = Loss([term], [5, 5, 1, 1]), Loss([term], [1, 1, 5, 5])
    assert heavy(wrong, labels) > light(wrong, labels)


@pytest.mark.parametrize(
    "given, kept",
    [("Dice + cross-entropy", "cross_entropy+dice"), ("lovasz", "lovasz")],
)
def test_a_sum_has_one_spelling(given, kept):
    assert Hyperparams(loss=given).loss == kept


@pytest.mark.parametrize("given", ["jaccard", "dice+dice", "", "dice,focal"])
def test_a_loss_that_is_not_known_is_refused(given):
    with pytest.raises(ValueError, match="cross_entropy, dice, focal, lovasz"):
        Hyperparams(loss=given)


def test_a_run_with_a_sum_of_losses(tmp_path):
    "It trains and predicts, in our engine and in plain Raster Vision; null never counts."
    from rastervision.core.predictor import Predictor

    data = make_sample_scenes(tmp_path / "data", n_train=2, n_val=1, n_test=1, size=150)
    how = dict(preset="smoke", data=data, epochs=1, class_weights="2,1")
    cfg = get_config("inprocess", tmp_path / "a", loss="dice+cross_entropy", **how)
    given = cfg.backend.solver.external_loss_def.entrypoint_kwargs
    assert given == dict(
        terms=["cross_entropy", "dice"], weights=[2.0, 1.0, 0.0], ignored=2
    )
    run = engine.run(cfg, progress=False)
    image = cfg.dataset.test_scenes[0].raster_source.uris
    image = image if isinstance(image, str) else image[0]
    bundle = str(run / "bundle" / "model-bundle.zip")
    Predictor(bundle, str(tmp_path / "tmp")).predict([image], str(tmp_path / "map"))
    engine.predict(run, [image], tmp_path / "maps", progress=False)  # needs no trust
    stock = get_config("inprocess", tmp_path / "b", loss="dice", engine="stock", **how)
    run = engine.run(stock, ["train"], progress=False)
    log = np.genfromtxt(run / "train" / "log.csv", delimiter=",", names=True)
    assert 0 < float(log["train_loss"]) <= 1

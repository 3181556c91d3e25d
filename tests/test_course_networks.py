"""The course's networks: sizes, labels that are coarser than images, weights, whole runs."""

import shutil
import subprocess
import sys
from math import prod

import pytest
import torch
from torch.nn import functional as F

from rvtutorial.core.hyperparams import Hyperparams
from rvtutorial.engine.inputs import network_options
from rvtutorial.engine.optimizer import Recipe
from rvtutorial.models import course
from rvtutorial.models.course import course_unet, fcn, segmentation_cnn


def small_cnn(classes, bands=3, **more):
    return segmentation_cnn(classes, bands, embedding_size=4, **more)


def small_unet(classes, bands=3, **more):
    return course_unet(classes, bands, embedding_size=4, **more)


def small_fcn(classes, bands=3, **more):
    return fcn(classes, bands, "resnet50", **more)


EVERY = [small_cnn, small_unet, small_fcn]
QUICK = [small_cnn, small_unet]


# --- sizes


@pytest.mark.parametrize("make", EVERY)
def test_a_subtile_gives_one_score_for_each_label(make):
    net = make(4, 99, scale_factor=50, out="coarse").eval()
    with torch.inference_mode():
        assert net(torch.zeros(2, 99, 200, 200)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    "make", [*QUICK, pytest.param(small_fcn, marks=pytest.mark.slow)]
)
def test_a_parent_tile_gives_16_by_16(make):
    net = make(4, 99, scale_factor=50, out="coarse").eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 99, 800, 800)).shape == (1, 4, 16, 16)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (220, 220), (300, 300), (333, 650)])
@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize("make", QUICK)
def test_any_size_comes_back_at_full_resolution(make, scale, size):
    if make is small_cnn:
        net = make(3, pool_sizes=(5, 5, 2) if scale == 50 else (1,), null_id=2).eval()
    else:
        net = make(3, scale_factor=scale, n_encoders=4, null_id=2).eval()
    with torch.inference_mode():
        scores = net(torch.randn(1, 3, *size)).softmax(1)
    assert scores.shape == (1, 3, *size)
    assert (scores[:, 2] == 0).all()


@pytest.mark.parametrize("size", [(31, 97), (220, 220)])
@pytest.mark.parametrize("bands", [1, 3, 8])
def test_an_fcn_takes_any_size_and_any_number_of_bands(bands, size):
    net = small_fcn(3, bands, null_id=2).eval()
    with torch.inference_mode():
        assert net(torch.randn(1, bands, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("make", QUICK)
def test_an_image_of_no_whole_squares_has_no_coarse_scores(make):
    net = make(3, scale_factor=50, out="coarse")
    with pytest.raises(ValueError, match="220 x 200 pixels are no whole squares of 50"):
        net(torch.zeros(1, 3, 220, 200))


@pytest.mark.parametrize("make", QUICK)
def test_the_loss_of_squares_is_that_of_their_pixels(make):
    "So that a run of the engine learns what a loss on the label grid does."
    torch.manual_seed(0)
    net, x = make(4, 5, scale_factor=50), torch.randn(2, 5, 100, 150)
    labels = torch.randint(0, 4, (2, 2, 3))
    fine = labels.repeat_interleave(50, 1).repeat_interleave(50, 2)
    full = F.cross_entropy(net.eval()(x), fine)
    net.out = "coarse"
    assert F.cross_entropy(net(x), labels).item() == pytest.approx(
        full.item(), rel=1e-6
    )


def test_coarse_scores_are_the_mean_of_a_square():
    net = small_unet(2, scale_factor=10, out="coarse").eval()
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        fine = net.net(x)
        assert torch.allclose(
            net(x)[0, 1, 2, 3], fine[0, 1, 20:30, 30:40].mean(), atol=1e-5
        )


# --- weights


@pytest.mark.parametrize("make", EVERY)
def test_every_weight_learns_and_is_saved(make, tmp_path):
    torch.manual_seed(0)
    net, x = make(4, 7, scale_factor=50), torch.randn(2, 7, 100, 100)
    F.cross_entropy(net(x), torch.randint(0, 4, (2, 100, 100))).backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    torch.save(net.state_dict(), tmp_path / "net.pth")
    again = make(4, 7, scale_factor=50)
    count = len(again.state_dict())
    again.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    assert len(again.state_dict()) == count == len(net.state_dict())
    with torch.inference_mode():
        assert torch.equal(net.eval()(x), again.eval()(x))


def test_the_unet_registers_all_of_its_levels():
    "94 % of the weights were lost where levels stood in a plain list."
    net = course_unet(4, 99, n_encoders=2, embedding_size=32)

    def double(a, b):
        return 9 * a * b + 9 * b * b + 4 * b

    up = [2 * a * a * 4 + a + double(2 * a, a) for a in (64, 32)]
    whole = double(99, 32) + double(32, 64) + double(64, 128) + sum(up) + 4 * 32 + 4
    assert sum(p.numel() for p in net.parameters()) == whole


@pytest.mark.parametrize("pools", [(5, 5, 2), (2,), (3, 4)])
def test_widths_double_and_the_last_layer_is_a_plain_convolution(pools):
    net = segmentation_cnn(6, 5, depth=3, embedding_size=8, pool_sizes=pools)
    layers = list(net.net)
    convs = [m for m in layers if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs[:-1]] == [
        8 * 2**i for i in range(len(pools)) for _ in range(3)
    ]
    assert layers[-1] is convs[-1] and convs[-1].kernel_size == (1, 1)
    assert convs[-1].out_channels == 6 and net.cell == prod(pools)


def test_stem_and_head_of_the_transfer():
    net = fcn(4, 99, "resnet101", weights=None, stem="new").net
    stem, head = net.backbone.conv1, net.classifier[4]
    assert (stem.in_channels, stem.out_channels) == (99, 64)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((7, 7), (2, 2), (3, 3))
    assert stem.bias is None
    assert (head.in_channels, head.out_channels, head.kernel_size) == (512, 4, (1, 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Files of weights as torchvision publishes them, with random numbers."
    from torchvision.models import resnet18, resnet50, resnet101, resnet152
    from torchvision.models.segmentation import fcn_resnet50

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    nothing = dict(weights=None, weights_backbone=None)
    made = {
        "imagenet50": resnet50(),
        "imagenet101": resnet101(),
        "imagenet18": resnet18(),
        "imagenet152": resnet152(),
        "coco50": fcn_resnet50(num_classes=21, aux_loss=True, **nothing),
    }
    for name, net in made.items():
        torch.save(net.state_dict(), folder / f"{name}.pth")
    return folder


def test_imagenet_weights_come_from_a_file(files):
    given = torch.load(files / "imagenet50.pth", weights_only=True)
    own = small_fcn(4, weights=str(files / "imagenet50.pth")).net.backbone.state_dict()
    assert own and all(torch.equal(value, given[name]) for name, value in own.items())


@pytest.mark.parametrize("classes", [4, 21])
def test_coco_weights_fill_all_but_the_last_layer(files, classes):
    given = torch.load(files / "coco50.pth", weights_only=True)
    net = small_fcn(classes, weights=str(files / "coco50.pth"))
    own = net.net.state_dict()
    assert not any(name.startswith("aux") for name in own)
    for name, value in own.items():
        last = name.startswith("classifier.4.")
        assert (
            value.shape == given[name].shape and torch.equal(value, given[name])
        ) != last


def test_weights_come_from_the_cache_of_torch(files, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    net = small_fcn(4, weights="coco").eval()
    with pytest.raises(FileNotFoundError, match="fcn_resnet50_coco.*curl"):
        net(torch.zeros(1, 3, 32, 32))
    net.load_state_dict(small_fcn(4).state_dict())  # as a bundle does
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)
    shutil.copy(
        files / "coco50.pth", tmp_path / "checkpoints/fcn_resnet50_coco-1167a1af.pth"
    )
    given = torch.load(files / "coco50.pth", weights_only=True)
    found = small_fcn(4, weights="coco").net.state_dict()
    assert torch.equal(found["classifier.0.weight"], given["classifier.0.weight"])


@pytest.mark.parametrize(
    "name, says",
    [
        ("imagenet101", "fit fcn on resnet50: it holds the weights of resnet101"),
        ("imagenet18", "fit fcn on resnet50: it holds the weights of another network"),
    ],
)
def test_weights_of_another_network_are_refused_and_both_named(files, name, says):
    with pytest.raises(ValueError, match=says):
        small_fcn(4, weights=str(files / f"{name}.pth"))


def test_the_weights_of_a_larger_network_are_refused(files):
    with pytest.raises(ValueError, match="fcn on resnet101: it holds .* resnet152"):
        fcn(4, weights=str(files / "imagenet152.pth"))
    fcn(4, weights=str(files / "imagenet101.pth"))


@pytest.mark.parametrize(("stem", "learns"), [("new", True), ("inflate", False)])
def test_a_new_stem_learns_though_layers_are_frozen(stem, learns, files):
    net = small_fcn(2, weights=str(files / "imagenet50.pth"), stem=stem)
    Recipe(frozen_layers=3).freeze(net, 0)
    assert net.net.backbone.conv1.weight.requires_grad == learns
    assert not net.net.backbone.layer1[0].conv1.weight.requires_grad


@pytest.mark.parametrize("bands", [1, 2, 4, 99])
def test_an_inflated_stem_sees_a_grey_picture_as_before(files, bands):
    weights, grey = str(files / "imagenet50.pth"), torch.randn(1, 1, 64, 64)
    three = small_fcn(2, 3, weights=weights).net.backbone.conv1
    many = small_fcn(2, bands, weights=weights).net.backbone.conv1
    old, new = three(grey.expand(-1, 3, -1, -1)), many(grey.expand(-1, bands, -1, -1))
    assert torch.allclose(old, new, atol=1e-4)
    fresh = small_fcn(2, bands, weights=weights, stem="new").net.backbone.conv1
    assert not torch.equal(fresh.weight, many.weight)


@pytest.mark.parametrize(
    "make, values, says",
    [
        (segmentation_cnn, dict(kernel_size=4), "kernel_size must be odd"),
        (segmentation_cnn, dict(scale_factor=40), "multiple of 50"),
        (course_unet, dict(out="both"), "out must be full or coarse"),
        (fcn, dict(backbone="resnet18"), "backbone must be resnet50 or resnet101"),
        (fcn, dict(stem="old"), "stem inflate or new"),
    ],
)
def test_what_a_network_cannot_be_is_refused(make, values, says):
    with pytest.raises(ValueError, match=says):
        make(3, **values)


def test_the_file_stands_alone_as_a_hubconf(tmp_path):
    shutil.copy(course.__file__, tmp_path / "hubconf.py")
    code = (
        "import sys, torch\n"
        "sys.modules['rvtutorial'] = sys.modules['rastervision'] = None\n"
        f"how = dict(repo_or_dir={str(tmp_path)!r}, source='local', num_classes=3)\n"
        "for name in ('segmentation_cnn', 'course_unet', 'fcn'):\n"
        "    net = torch.hub.load(model=name, **how).eval()\n"
        "    assert net(torch.zeros(1, 3, 60, 60)).shape == (1, 3, 60, 60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- values of a run


@pytest.mark.parametrize(
    "values, says",
    [
        (
            dict(model="fcn", depth=3),
            "depth 3 is for model segmentationcnn, and model fcn",
        ),
        (
            dict(model="unet", embedding_size=8),
            "for model segmentationcnn or courseunet",
        ),
        (
            dict(model="courseunet", pool_sizes="5,5"),
            "Leave it out, or use pool_sizes=none",
        ),
        (dict(model="segmentationcnn", kernel_size=4), "is even.* Use 3 or 5"),
        (dict(model="segmentationcnn", scale_factor=40), "no multiple of 50"),
        (dict(model="segmentationcnn", pool_sizes="5,0"), "pool_sizes must be whole"),
        (dict(model="courseunet", pretrained=True), "no ImageNet weights.*model=fcn"),
        (dict(model="courseunet", encoder="resnet18"), "trained from nothing"),
        (dict(model="fcn", encoder="resnet18"), "does not go with model fcn"),
        (dict(model="fcn", pretrained_on="coco"), "needs pretrained=true"),
        (dict(model="fcn", stem="inflated"), "did you mean 'inflate'"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Hyperparams.of("sample", **values)


def test_options_reach_the_network_and_nothing_else_does():
    hp = Hyperparams.of(
        "sample", model="SegmentationCNN", pool_sizes="2,2", depth="1", batch_norm="no"
    )
    found = network_options(hp)
    assert found == {"pool_sizes": [2, 2], "depth": 1, "batch_norm": False}
    net = segmentation_cnn(3, **found)
    assert net.cell == 4 and len(net.net) == 7
    hp = Hyperparams.of("sample", model="fcn", pretrained=True, pretrained_on="coco")
    assert network_options(hp) == {"backbone": "resnet50", "weights": "coco"}
    assert network_options(Hyperparams.of("sample")) == {}


def test_a_file_of_weights_has_an_effect_on_fcn():
    hp = Hyperparams.of(
        "sample", model="fcn", pretrained=True, encoder_weights="/a.pth"
    )
    assert "encoder_weights" not in hp.unused
    assert network_options(hp)["weights"] == "/a.pth"


def test_chips_beside_the_label_grid_are_noted():
    hp = Hyperparams.of("sample", model="courseunet", scale_factor=50)
    assert "chips of 220 pixels are no whole squares of 50" in hp.notes


# --- whole runs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from rvtutorial.data.synthetic import make_sample_scenes

    folder = tmp_path_factory.mktemp("scenes")
    return make_sample_scenes(folder, n_train=2, n_val=1, n_test=1, size=128)


RUNS = {
    "segmentationcnn": dict(pool_sizes="2,2", embedding_size=8),
    "courseunet": dict(n_encoders=3, embedding_size=8),
    "fcn": dict(stem="new", chip_sz=64, stride_length=60, epochs=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", RUNS)
def test_a_run_trains_and_its_bundle_opens_without_our_package(
    scenes, tmp_path, model, predicts_without
):
    from rvtutorial import engine
    from rvtutorial.config import get_config
    from rvtutorial.runs import Run

    asked = dict(model=model, pretrained=False, scores="none", **RUNS[model])
    engine.run(
        get_config("inprocess", tmp_path / "run", "smoke", scenes, **asked),
        progress=False,
    )
    run = Run(tmp_path / "run")
    image = run.image(run.scene_ids("test")[0])
    predicts_without(run, image, tmp_path, "rvtutorial")
    engine.predict(run.path, [image], tmp_path / "maps", progress=False)  # no trust


@pytest.mark.parametrize(
    "on, says", [("coco", "no such file"), ("imagenet", "no such")]
)
def test_weights_that_are_not_there(scenes, tmp_path, on, says):
    from rvtutorial.config import get_config

    asked = dict(model="fcn", pretrained=True, pretrained_on=on)
    asked["encoder_weights"] = str(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match=says):
        get_config("inprocess", tmp_path / "run", "smoke", scenes, **asked)
    assert not (tmp_path / "run").exists()

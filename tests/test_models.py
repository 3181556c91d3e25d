"""The small network: sizes, null, and life as a lone file."""

import shutil
import subprocess
import sys

import pytest
import torch

from rvtutorial.models import unet as models
from rvtutorial.models.unet import unet


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (31, 97), (220, 220), (256, 130)])
def test_any_size_comes_back_at_full_resolution(size):
    net = unet(3, null_id=2).eval()
    with torch.inference_mode():
        assert net(torch.randn(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("bands", [1, 4, 8])
@pytest.mark.parametrize("classes", [3, 6])
def test_bands_and_classes(bands, classes):
    net = unet(classes, in_channels=bands).eval()
    assert net(torch.randn(1, bands, 40, 40)).shape == (1, classes, 40, 40)


def test_about_half_a_million_weights():
    assert 400_000 < sum(p.numel() for p in unet(3).parameters()) < 600_000


@pytest.mark.parametrize("null_id", [0, 2])
def test_null_never_wins_and_has_no_score(null_id):
    scores = unet(3, null_id=null_id).eval()(torch.randn(2, 3, 64, 64)).softmax(1)
    assert (scores[:, null_id] == 0).all()
    assert (scores.argmax(1) != null_id).all()


def test_without_null_id_every_class_can_win():
    torch.manual_seed(0)
    scores = unet(3).eval()(torch.randn(2, 3, 64, 64)).softmax(1)
    assert (scores > 0).all()


def test_null_gets_no_gradient():
    net = unet(3, null_id=2)
    labels = torch.randint(0, 2, (2, 32, 32))
    torch.nn.functional.cross_entropy(net(torch.randn(2, 3, 32, 32)), labels).backward()
    weight = net.head.weight.grad
    assert weight[:2].abs().sum() > 0
    assert weight[2].abs().sum() == 0


def test_padding_does_not_shift_the_picture():
    torch.manual_seed(0)
    net = unet(3).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        whole, part = net(x), net(x[..., :90, :90])
    assert torch.allclose(whole[..., :16, :16], part[..., :16, :16], atol=1e-4)


def fitted(steps, net, x, labels):
    "The network after so many steps, and its loss."
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
    return net.eval(), loss


def blobs(size, seed=0):
    "An image whose first band says the class, and the classes: squares of 8 pixels."
    torch.manual_seed(seed)
    labels = torch.randint(0, 2, (2, size // 8, size // 8))
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    x = torch.randn(2, 3, size, size)
    x[:, 0] += labels
    return x, labels


def test_it_can_learn():
    x, labels = blobs(32)
    net, loss = fitted(60, unet(3, width=8, depth=2, null_id=2), x, labels)
    assert loss < 0.2


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_a_class_has_the_same_share_at_even_and_odd_pixels(steps):
    "Else roofs fall into dots: each place of a square of pixels had a classifier."
    net, _ = fitted(steps, unet(3, width=8, depth=3, null_id=2), *blobs(64))
    x, _ = blobs(512, seed=1)
    with torch.inference_mode():
        scores = net(x)
    margin = scores[:, 0] - scores[:, 1]
    found = (margin > margin.median()).float()
    shares = torch.stack([found[:, y::2, z::2].mean() for y in (0, 1) for z in (0, 1)])
    assert shares.max() - shares.min() < 0.02


def test_the_file_stands_alone_as_a_hubconf(tmp_path):
    shutil.copy(models.__file__, tmp_path / "hubconf.py")
    code = (
        "import sys, torch\n"
        "sys.modules['rvtutorial'] = sys.modules['rastervision'] = None\n"
        f"net = torch.hub.load({str(tmp_path)!r}, 'unet', source='local', num_classes=3).eval()\n"
        "assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

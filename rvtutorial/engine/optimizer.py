"""AdamW and SGD, warm-up and cosine, and a slower or frozen encoder: how a pre-trained network is trained on.

Raster Vision's solver knows Adam and one schedule; nothing of this has a field there.
"""

import math
from dataclasses import dataclass

import torch


WARM_UP = 0.1  # Share of all steps in which the rate rises
MOMENTUM = 0.9  # Of sgd, with Nesterov's step: the usual value


@dataclass(frozen=True)
class Recipe:
    "How weights change in a step; the defaults are Raster Vision's."

    optimizer: str = "adam"  # adam, adamw or sgd
    weight_decay: float = (
        0.0  # Not of adam: share of a weight that goes, times the rate
    )
    cosine: bool = False  # Warm up over a tenth of the steps, then fall along a cosine
    encoder_lr: float = 1.0  # Rate of a pre-trained encoder, as a share of the others'
    freeze_epochs: int = 0  # Epochs in which the encoder stays as it is
    frozen_layers: int = (
        0  # Its first convolutions that stay as they are in all of them
    )

    @classmethod
    def of(cls, asked: dict) -> "Recipe":  # Hyperparameters of a run
        "The recipe of a run; one that was made before these existed has the defaults."
        known = {k: v for k, v in asked.items() if k in cls.__dataclass_fields__}
        return cls(**known)

    @property
    def is_stock(self) -> bool:
        "Whether Raster Vision's own solver does all of it."
        return self == Recipe()

    def build(self, network: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        "The optimizer: one group of weights, or the encoder's and the others."
        every = dict(network.named_parameters())
        slow = [v for k, v in every.items() if _is_encoder(k)] if self.splits else []
        chosen = {id(v) for v in slow}
        rest = [v for v in every.values() if id(v) not in chosen]
        groups = [{"params": rest, "lr": lr}]
        if slow:
            groups.append({"params": slow, "lr": lr * self.encoder_lr})
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, fused=True)
        if self.optimizer == "sgd":
            how = dict(momentum=MOMENTUM, nesterov=True, fused=True)
            return torch.optim.SGD(groups, weight_decay=self.weight_decay, **how)
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)

    @property
    def splits(self) -> bool:
        "Whether the encoder has a rate of its own."
        return self.encoder_lr != 1.0

    def schedule(self, optimizer, steps: int, done: int):
        "The schedule over all steps of a training, of which some are done; None: stock's."
        if not self.cosine:
            return None
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _rate(step, steps), last_epoch=done - 1
        )

    def freeze(self, network: torch.nn.Module, epoch: int) -> None:
        """Hold the encoder in the first epochs, or its first layers in all of them.

        Its normalisation keeps the statistics that it came with in both cases. The very
        first layer learns nevertheless where an image has not the three bands of ImageNet,
        or where it is new (`is_new`).
        """
        if not (self.freeze_epochs or self.frozen_layers):
            return
        whole, layers = epoch < self.freeze_epochs, 0
        for name, module in network.named_modules():
            if not _is_encoder(f"{name}."):
                continue
            layers += isinstance(module, torch.nn.Conv2d)
            early = 0 < layers <= self.frozen_layers
            new = getattr(module, "is_new", False)
            if layers == 1 and (new or getattr(module, "in_channels", 3) != 3):
                early = False
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(not (whole or early))
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train(not (whole or self.frozen_layers))
            else:
                module.training = not whole


def _is_encoder(name: str) -> bool:  # Of a weight, such as net.encoder.model.bn1.weight
    "Whether a weight belongs to the part that is pre-trained."
    return bool({"encoder", "backbone"} & {*name.split(".")[:-1]})


def _rate(
    step: int,  # From 0
    steps: int,  # Of the whole training
) -> float:  # Share of the peak, above 0
    "Linear warm-up over a tenth of all steps, then half a cosine."
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1, (step - warm) / max(1, steps - warm))))

"""Losses for segmentation, and sums of them, in a form that Raster Vision loads from a run or a bundle.

A copy of this file is the `hubconf.py` of a loss: it imports torch and nothing of this
package. Raster Vision takes no class weights and no ignored class beside a loss from
outside, so that both are the loss's own; those of segmentation-models-pytorch take no
weights.
"""

import torch
from torch import nn
from torch.nn import functional as F

FOCUS = 2.0  # gamma of the focal loss, as its authors recommend (arXiv 1708.02002)
SMOOTH = 1.0  # pixels added to both sides of a Dice score: none is 0 / 0


class Loss(nn.Module):
    """The sum of one or more losses over the pixels whose class counts.

    Terms: cross_entropy; focal, cross-entropy times (1 - p)**2 of the true class (Lin and
    others, arXiv 1708.02002); dice, 1 - 2 TP / (2 TP + FP + FN) with scores for pixels,
    mean of the classes that are there (Milletari and others, arXiv 1606.04797); lovasz,
    the Lovasz extension of 1 - IoU, mean likewise (Berman and others, arXiv 1705.08790).
    """

    def __init__(
        self,
        terms: list,  # Of cross_entropy, dice, focal and lovasz
        weights: list | None = None,  # One for each class, 0 or more; None: all alike
        ignored: int
        | None = None,  # Class id that does not count, such as that of null
    ):
        super().__init__()
        self.terms, self.ignored = (
            [getattr(self, f"_{term}") for term in terms],
            ignored,
        )
        self.weights = None if weights is None else torch.tensor(weights).float()

    def forward(
        self,
        out: torch.Tensor,  # (n, classes, height, width) of any numbers
        labels: torch.Tensor,  # (n, height, width) of class ids
    ) -> torch.Tensor:  # One number, 0 or more; 0 where no pixel counts
        classes = out.shape[1]
        out, labels = (
            out.movedim(1, -1).reshape(-1, classes).float(),
            labels.reshape(-1),
        )
        if self.ignored is not None:
            seen = labels != self.ignored % classes
            out, labels = out[seen], labels[seen]
        if not len(labels):
            return out.sum() * 0.0
        weights = None if self.weights is None else self.weights.to(out.device)
        if weights is not None and not weights[labels].any():
            return out.sum() * 0.0
        return sum(term(out, labels, weights) for term in self.terms)

    def _cross_entropy(self, out, labels, weights):
        return F.cross_entropy(out, labels, weight=weights)

    def _focal(self, out, labels, weights):
        each = F.cross_entropy(out, labels, reduction="none")
        share = torch.ones_like(each) if weights is None else weights[labels]
        return (share * (1 - torch.exp(-each)) ** FOCUS * each).sum() / share.sum()

    def _present(self, labels, weights, classes):
        "Classes with a pixel and a weight, and how much each counts."
        share = torch.bincount(labels, minlength=classes).gt(0).float()
        share = share if weights is None else share * weights
        return share / share.sum().clamp(min=1e-12)

    def _dice(self, out, labels, weights):
        scores, truth = out.softmax(1), F.one_hot(labels, out.shape[1]).float()
        both, every = (scores * truth).sum(0), (scores + truth).sum(0)
        lost = 1 - (2 * both + SMOOTH) / (every + SMOOTH)
        return (lost * self._present(labels, weights, out.shape[1])).sum()

    def _lovasz(self, out, labels, weights):
        scores, share = out.softmax(1), self._present(labels, weights, out.shape[1])
        found = 0.0
        for number in share.nonzero().flatten().tolist():
            truth = (labels == number).float()
            errors, order = (truth - scores[:, number]).abs().sort(descending=True)
            truth = truth[order]
            both = truth.sum() - truth.cumsum(0)
            either = truth.sum() + (1 - truth).cumsum(0)
            steps = 1 - both / either
            steps = torch.cat([steps[:1], steps.diff()])
            found = found + share[number] * (errors * steps).sum()
        return found

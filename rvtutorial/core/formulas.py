"""Precision, recall, F1, IoU, specificity and accuracy from counts of pixels."""


def fractions(
    tp,  # True positives: numbers or arrays of one shape, in pixels
    fp,  # False positives
    fn,  # False negatives
    tn,  # True negatives
    right=None,  # Pixels of the right class, whichever it is; None: tp + tn
) -> dict[str, tuple]:  # Numerator and denominator of each score
    "The scores of one class against the others; a score has no value where it is x / 0."
    right = tp + tn if right is None else right
    return {
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "specificity": (tn, tn + fp),
        "accuracy": (right, tp + fp + fn + tn),
    }

"""Accuracy: how often the highest score is the target's, per example. A metric: it has no gradient."""

from torch import Tensor

from velodrome.losses._common import check_classes, positions


def accuracy(outputs: Tensor, targets: Tensor, *, ignore: int = -100) -> Tensor:
    """The fraction of an example's positions at which argmax of the scores is the target.

    `outputs` are scores (B, C) or (B, L, V), `targets` int64 classes (B,) or (B, L); the result is (B,) in float32, between 0 and 1.
    Positions whose target is `ignore` do not count; an example without any other has no accuracy and gives nan. Among equal highest scores one
    counts, as in `torch.argmax`. ValueError for shapes or types that do not fit.
    """
    check_classes(outputs, targets)
    total, count = positions(outputs.argmax(-1).eq(targets).float(), targets, ignore)
    return total / count

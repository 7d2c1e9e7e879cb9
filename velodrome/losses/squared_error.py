"""Squared error, per example: the mean over an example's numbers."""

from torch import Tensor


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""$\frac1n\sum_i (\hat y_i - y_i)^2$ over the $n$ numbers of an example, in the targets' unit squared.

    `outputs` and `targets` share one shape (B, ...) and are floating point; the result is (B,). There is no factor 1/2.
    ValueError for shapes that differ (nothing is broadcast) or whole-number types.
    """
    if outputs.shape != targets.shape or outputs.ndim == 0:
        raise ValueError(f"outputs and targets must share one shape (batch, ...), got {tuple(outputs.shape)} and {tuple(targets.shape)}.")
    if not (outputs.is_floating_point() and targets.is_floating_point()):
        raise ValueError(f"outputs and targets must be floating point, got {outputs.dtype} and {targets.dtype}: write targets.float().")
    return (outputs - targets).square().reshape(outputs.shape[0], -1).mean(1)

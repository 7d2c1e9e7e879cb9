"""Gradient: what the loop asks for. A callable that takes a batch, adds to the parameters' `.grad` and returns the mean loss."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from velodrome.data.stream import Batch


@runtime_checkable
class Gradient(Protocol):
    """Adds `weight` times the gradient of the batch's mean loss to every `.grad` (like torch: they accumulate) and returns that mean loss.

    The returned loss is a detached 0-d tensor and is not weighted. `weight` is what lets one gradient be built from another: the parts of a batch
    with weights n_i/n give the gradient of the whole. `model` is the network whose parameters are filled; its mode is the caller's affair.
    """

    model: nn.Module

    def __call__(self, batch: Batch, *, weight: float = 1.0) -> Tensor:
        """Fill `.grad` from one batch; its mean loss."""
        ...

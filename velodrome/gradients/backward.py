"""Back-propagation of the mean loss, with bf16 autocast and torch.compile as switches."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from velodrome.data.stream import Batch

Loss = Callable[[Tensor, Tensor], Tensor]


class Backward:
    """See `backward`, which builds it; a `Gradient`."""

    def __init__(self, model: nn.Module, loss: Loss, autocast: torch.dtype | None, compiled: bool) -> None:
        self.model, self.loss, self.autocast, self.compiled = model, loss, autocast, compiled
        self._mean: Callable[[Tensor, Tensor], Tensor] | None = None

    def mean_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss that is differentiated, with its graph: the mean over the examples, a 0-d tensor."""
        with nullcontext() if self.autocast is None else torch.autocast(inputs.device.type, self.autocast):
            outputs = self.model(inputs)
        if self.autocast is not None:
            outputs = outputs.float()  # a log-softmax over many classes loses too much in bf16
        losses = self.loss(outputs, targets)
        if losses.shape != inputs.shape[:1]:
            want = f"one value per example, shape {tuple(inputs.shape[:1])}"
            raise ValueError(f"loss must return {want}, got shape {tuple(losses.shape)}: leave the mean over examples to backward.")
        return losses.mean()

    def __call__(self, batch: Batch, *, weight: float = 1.0) -> Tensor:
        """Add `weight` times the gradient of the batch's mean loss to `.grad`; the mean loss, detached."""
        if not self.compiled or _get_current_dispatch_mode() is not None:  # under a counter, dynamo would give up on the function for ever
            return step(self.mean_loss, batch, weight)
        try:
            self._mean = self._mean or torch.compile(self.mean_loss)
            return step(self._mean, batch, weight)
        except torch.OutOfMemoryError:
            raise  # no failure of the compiler, and gradients may be half written
        except Exception as error:  # compilers fail in many ways; if the eager pass fails too, its error is the user's
            mean = step(self.mean_loss, batch, weight)
            self.compiled, self._mean = False, None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"torch.compile failed, going on without it: {reason}", RuntimeWarning, stacklevel=2)
            return mean


def step(mean_loss: Callable[[Tensor, Tensor], Tensor], batch: Batch, weight: float) -> Tensor:
    """One forward and backward pass. The weight enters as the gradient of the loss, so that it is no part of a compiled graph."""
    mean = mean_loss(batch.inputs, batch.targets)
    mean.backward(None if weight == 1.0 else torch.full_like(mean, weight))
    return mean.detach()


def backward(model: nn.Module, loss: Loss, *, autocast: torch.dtype | None = None, compile: bool = False) -> Backward:
    r"""A gradient that adds $\nabla \frac1B \sum_b \ell(f(x_b), y_b)$ to `.grad` and returns the mean loss as a detached 0-d tensor.

    `loss` maps (outputs, targets) to one value per example. The model runs in the mode it is in. Gradients accumulate as in torch: clear them between
    updates. `autocast=torch.bfloat16` runs the model's forward pass in mixed precision; weights, gradients and loss keep their type.
    `compile=True` compiles model and loss with torch.compile at the first batch; if that fails there is one warning and the eager pass from then on.
    A failure between the forward and the backward pass would update BatchNorm's running statistics twice for that batch.

    ValueError for another autocast type (float16 would need loss scaling) or a loss that is already reduced.
    """
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast must be None or torch.bfloat16, got {autocast!r}: float16 would need loss scaling.")
    return Backward(model, loss, autocast, compile)

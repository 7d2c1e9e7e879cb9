"""Binary cross-entropy of independent numbers in [0, 1], per example: the reconstruction loss of auto-encoders."""

import torch.nn.functional as F
from torch import Tensor


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""$-\frac1n\sum_i [y_i \log \sigma(z_i) + (1-y_i) \log(1-\sigma(z_i))]$ in nats, over the $n$ numbers of an example.

    `outputs` are logits (B, ...), `targets` numbers in [0, 1] of the same count per example; both floating point. The result is (B,). With targets strictly
    between 0 and 1 its minimum is their entropy, not zero. ValueError for sizes that differ or whole-number types.
    """
    if outputs.shape[:1] != targets.shape[:1] or outputs.numel() != targets.numel() or outputs.ndim == 0:
        raise ValueError(f"outputs and targets must have as many numbers, got {tuple(outputs.shape)} and {tuple(targets.shape)}.")
    if not (outputs.is_floating_point() and targets.is_floating_point()):
        raise ValueError(f"outputs and targets must be floating point, got {outputs.dtype} and {targets.dtype}: write targets.float().")
    flat = F.binary_cross_entropy_with_logits(outputs.flatten(1), targets.flatten(1).to(outputs.dtype), reduction="none")
    return flat.mean(1)

r"""Softmax collapse and naive loss minimisation (Prieto et al. 2025, https://arxiv.org/abs/2501.04697): why a fitted network stops learning.

    found = softmax_collapse(logits, targets)
    print(found.collapsed, found.zero_loss)
    print(naive_minimisation(model).whole)               # after backward

Collapse: the largest logit is so far above the rest that $\sum_j e^{z_j - z_{\max}}$ is exactly 1 in the working dtype; where it is the target's, loss and
gradient are exactly 0. Before that, gradients align with $-w$: the loss falls by scaling the weights, without any prediction changing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, exact
from velodrome.probes.failures.log_z import partition
from velodrome.probes.updates.alignment import Cosines, cosine

SHARE = "share of the rows, 0 to 1"


@dataclass(frozen=True)
class Collapse:
    """Of a batch's rows: the share `collapsed` (softmax exactly one-hot) and the share with `zero_loss` (and at the target: no gradient at all)."""

    collapsed: Estimate
    zero_loss: Estimate


@torch.no_grad()
def softmax_collapse(logits: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Collapse:
    """Counted on logits (…, C) and target classes (…) in the dtype in which the loss is computed, by default the logits' own.

    Under autocast torch's cross_entropy works in float32: write dtype=torch.float32. Targets below 0 (ignored) count as rows without loss and are left out.
    """
    if targets.shape != logits.shape[:-1] or targets.is_floating_point():
        want = f"class numbers of shape {tuple(logits.shape[:-1])}"
        raise ValueError(f"targets must be {want}, got {targets.dtype} of shape {tuple(targets.shape)}.")
    there = targets.flatten() >= 0
    z = logits.detach().to(dtype or logits.dtype).flatten(0, -2)[there]
    top, total = partition(z)
    one = total == 1
    zero = one & (z.gather(-1, targets.flatten()[there].unsqueeze(-1)).squeeze(-1) == top)
    n = len(z)
    shares = torch.stack([one.sum(), zero.sum()]).tolist() if n else [0, 0]
    return Collapse(*(exact(x / n if n else 0.0, SHARE, n=n) for x in shares))


def naive_minimisation(source: nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Cosines:
    r"""$\cos(-g, w)$ of every parameter and of all as one vector, from the gradients at hand: 1 when a step only scales the weights up, -1 down.

    For a network whose layers are each homogeneous (no biases, no normalisation) a positive value is loss that falls by scale alone.
    """
    named = source.named_parameters() if isinstance(source, nn.Module) else source.items() if isinstance(source, Mapping) else source
    held = {n: p for n, p in named if p.grad is not None}
    if not held:
        raise ValueError("no parameter has a gradient: ask between backward and step.")
    found = cosine({n: p for n, p in held.items()}, {n: p.grad for n, p in held.items() if p.grad is not None})
    return Cosines({n: -c for n, c in found.numbers.items()}, -found.whole)

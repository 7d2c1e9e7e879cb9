r"""Output logits running away: their mean, their largest, $\log Z = \log\sum_j e^{z_j}$ and its drift (Chowdhery et al. 2022; Wortsman et al. 2023).

    found = output_logits(logits)          # a batch's logits, (examples, classes) or (examples, positions, classes)
    print(found.log_z.value, found.log_z.low, found.log_z.high)
    print(drift(steps, log_zs))            # nats per step

A softmax does not see a constant added to all logits, so nothing but a z-loss keeps log Z near 0 (https://arxiv.org/abs/2204.02311, section 5, adds
$10^{-4}\log^2 Z$); where it drifts, the logits leave the range in which their format is fine (https://arxiv.org/abs/2309.14322).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, exact, sampled, unidentified
from velodrome.probes.updates.series import line


@dataclass(frozen=True)
class OutputLogits:
    """`log_z` in nats, its square (what a z-loss weighs) and the `mean` logit: means over the examples with 95 % intervals; `largest` and `smallest` logit.

    `collapsed`: share of the rows whose softmax is exactly one-hot in the dtype of the logits (`failures.collapse`).
    """

    log_z: Estimate
    log_z_squared: Estimate
    mean: Estimate
    largest: Estimate
    smallest: Estimate
    collapsed: Estimate


@torch.no_grad()
def partition(logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Per row $\max_j z_j$ and $\sum_j e^{z_j - \max}$, in the dtype of the logits: one pass for log Z and the collapse alike."""
    z = logits.detach()
    top = z.amax(-1, keepdim=True)
    return top.squeeze(-1), (z - top).exp_().sum(-1)


@torch.no_grad()
def output_logits(logits: Tensor) -> OutputLogits:
    """Of logits (B, C) or (B, …, C): positions of one example are not independent, so that errors are those of B means over positions."""
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.is_floating_point() or not logits.numel():
        got = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits must be floating-point of shape (examples, …, classes), got {got}.")
    top, total = partition(logits)
    log_z = top.float() + total.float().log()
    n, wide = len(logits), torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
    each = [x.reshape(n, -1).mean(1) for x in (log_z, log_z.square(), logits.detach().mean(-1, dtype=wide).float())]
    table = torch.stack([torch.stack([x.mean(), x.std() if n > 1 else x.mean() * torch.nan]) for x in each])
    extremes = torch.stack([top.amax().float(), logits.detach().amin().float(), (total == 1).float().mean()])
    values = torch.cat([table.flatten(), extremes]).tolist()
    z, square, mean = (_mean(values[2 * i], values[2 * i + 1], n, unit) for i, unit in enumerate(("nats", "nats²", "logit, no unit")))
    top_, low, share = values[6:]
    return OutputLogits(
        z,
        square,
        mean,
        exact(top_, "logit, no unit"),
        exact(low, "logit, no unit"),
        exact(share, "share of the rows, 0 to 1", n=total.numel()),
    )


def _mean(mean: float, deviation: float, n: int, unit: str) -> Estimate:
    return sampled(mean, deviation / n**0.5 if n > 1 else 0.0, unit, n)


def drift(steps: Sequence[float], values: Sequence[float]) -> Estimate:
    """How fast a recorded series moves, in its units per step, with a 95 % interval that knows that neighbours resemble each other."""
    if len(steps) != len(values) or len(steps) < 4:
        return unidentified("per step", f"a drift needs four recorded values, got {len(values)}", n=len(values))
    return line(steps, values).rate("per step")

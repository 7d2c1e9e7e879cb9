"""Drift and diffusion: whether the gradients of an epoch's batches agree or only scatter (Shwartz-Ziv and Tishby 2017, https://arxiv.org/abs/1703.00810)."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, sampled
from velodrome.probes.objective import Objective


@dataclass(frozen=True)
class Phase:
    r"""`mean` $\|E g\|$ and `deviation` $\sqrt{E\|g - E g\|^2}$ of the batches' gradients over the weights' norm (1/parameter of loss), `ratio` of the two,
    with 95 % intervals; `phase`: "drift" where the ratio's interval is above 1, "diffusion" where it is below, else "undecided"."""

    mean: float
    deviation: float
    ratio: Estimate
    phase: str


def gradient_phases(objective: Objective) -> dict[str, Phase]:
    """By parameter, over the objective's batches (three or more, of one size): give it an epoch's. No estimate of information enters. Memory: one
    gradient for each batch."""
    if len(objective.batches) < 3:
        raise ValueError(f"phases need three batches or more to tell scatter, got {len(objective.batches)}.")
    params = list(objective.params.values())
    found = []
    with objective.ready():
        for batch in objective.batches:
            grads = torch.autograd.grad(objective.mean_of(batch), params, materialize_grads=True)
            found.append([g.detach().double().flatten() for g in grads])
    sizes = {name: float(p.detach().double().norm()) for name, p in objective.params.items()}
    return {name: phase(torch.stack([g[i] for g in found]), sizes[name] or 1.0) for i, name in enumerate(objective.params)}


def phase(gradients: Tensor, scale: float = 1.0) -> Phase:
    r"""Of gradients (batches, parameters). The square of the mean's norm is unbiased, $\|\bar g\|^2 - s^2/m$ with the deviation's square $s^2$; where it is
    not positive the ratio is 0. The interval is the jackknife's over batches, of the ratio's square, which is nearly linear in the data."""
    m = len(gradients)
    inner = gradients @ gradients.T

    def squares(total: Tensor, own: Tensor, k: int) -> tuple[Tensor, Tensor]:
        mean = total / k**2
        spread = (own / k - mean) * k / (k - 1)
        return mean - spread / k, spread

    total, own = inner.sum(), inner.diagonal().sum()
    signal, noise = (float(x) for x in squares(total, own, m))
    if not noise > 0:
        return Phase(sqrt(max(signal, 0.0)) / scale, 0.0, sampled(float("inf"), 0.0, "ratio", m, note="all batches agree"), "drift")
    above, below = squares(total - 2 * inner.sum(0) + inner.diagonal(), own - inner.diagonal(), m - 1)  # without each batch in turn
    ratios = above / below
    variance = (m - 1) / m * float((ratios - ratios.mean()).square().sum())
    pairs = inner - inner.mean(0) - inner.mean(1, keepdim=True) + inner.mean()
    pairs = (
        pairs[~torch.eye(m, dtype=torch.bool)].square().mean() / noise**2
    )  # what only pairs explain; the jackknife counts it twice (Efron and Stein 1981)
    error = sqrt(max(variance / 2, variance - 2 * float(pairs) / (m * (m - 1))))
    square = sampled(signal / noise, error, "ratio²", m)
    root = lambda x: sqrt(max(x, 0.0))  # noqa: E731
    low, high = root(square.low), root(square.high)
    ratio = Estimate(root(square.value), "ratio", (high - low) / 4, low, high, "interval", m)
    return Phase(root(signal) / scale, sqrt(noise) / scale, ratio, "drift" if low > 1 else "diffusion" if high < 1 else "undecided")

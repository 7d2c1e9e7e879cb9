r"""The Hessian of a batch against that of all data (Granziol, Zohren & Roberts 2020, https://arxiv.org/abs/2006.09092): how much sharper a small
batch is.

    found = batch_inflation(model, loss, data, sizes=(8, 32, 128))
    print(found.constant, found.critical_batch, found.verdict)
    found.max_lr(64)

$E\,\lambda_1(B) \approx \lambda_1 + c\,(\frac1B - \frac1N)$ for batches of B of N examples without replacement. The paper predicts c from the
variance of the Hessian's entries; that under-predicts here by orders, because the noise lies in few directions: c is fitted, and the fit is
tested against the measured means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import nn

from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.estimate import Estimate, between, bounded, sampled, unidentified
from velodrome.probes.objective import Loss, Objective, as_batch, examples, is_one, joined, pick
from velodrome.probes.spectra.top import top_eigenpairs

UNIT = "loss/parameter²"


@dataclass(frozen=True)
class Inflation:
    r"""`full` $\lambda_1$ of all N examples; `each` the mean $\lambda_1(B)$ of each of `sizes` with its interval over batches; `constant` c in
    loss·examples/parameter².

    `critical_batch`: the B at which noise has doubled $\lambda_1$, $c/\lambda_1$ for large N: below it the largest stable rate grows with B, well
    above it has saturated. `p_value`: how often means are this far from the fitted line where it holds; `verdict` says what follows.
    """

    full: Estimate
    sizes: tuple[int, ...]
    each: tuple[Estimate, ...]
    constant: Estimate
    critical_batch: Estimate
    p_value: float
    examples: int
    verdict: str

    def sharpness(self, size: int) -> Estimate:
        r"""The fitted $\lambda_1(B)$."""
        share = max(1 / size - 1 / self.examples, 0.0)
        ends = [self.full.value + c * share for c in (self.constant.value, self.constant.low, self.constant.high)]
        return between(ends[0], ends[1], ends[2], UNIT, self.constant.n)

    def max_lr(self, size: int) -> Estimate:
        r"""$2/\lambda_1(B)$: gradient descent on such a batch alone is stable below it. For ratios between batch sizes; SGD averages over batches
        and may go higher."""
        at = self.sharpness(size)
        return between(2 / at.value, 2 / at.high, 2 / at.low if at.low > 0 else float("inf"), "learning rate", at.n)


def batch_inflation(
    model: nn.Module,
    loss: Loss,
    data: Any,
    sizes: Sequence[int] = (8, 32, 128),
    repeats: int = 8,
    *,
    params: Sequence[str] | None = None,
    mode: Literal["train", "eval"] | None = None,
    tol: float = 1e-2,
    seed: int = 0,
) -> Inflation:
    """`repeats` random batches of each size out of `data` (one batch or several, joined), each to the relative error `tol`, warm-started from the
    full one.

    Costs one graph and some ten products on every batch, and twenty or so on all data.
    """
    whole = reduce(joined, [as_batch(b) for b in ([data] if is_one(data) else data)])
    n, generator = examples(whole), torch.Generator().manual_seed(seed)
    sizes = tuple(sizes)
    if len(set(sizes)) < 2 or min(sizes) < 1 or max(sizes) > n // 2:
        raise ValueError(f"sizes must be two or more batch sizes, at most half of the {n} examples, got {sizes}.")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 3:
        raise ValueError(f"repeats must be a whole number, three or more, got {repeats!r}.")
    every = Objective(model, loss, whole, params=params, mode=mode)
    top = top_eigenpairs(hessian(every), 1, tol / 10, largest="algebraic", seed=seed)
    found = []
    for size in sizes:
        mine = []
        for i in range(repeats):
            chosen = torch.randperm(n, generator=generator)[:size]
            batch = Objective(model, loss, pick(whole, chosen), params=params, mode=mode, check=False)
            mine.append(float(top_eigenpairs(hessian(batch), 1, tol, start=top, largest="algebraic", seed=i).values[0]))
        found.append(mine)
    full = bounded(float(top.values[0]), float(top.residuals[0]), UNIT, cost={"products": top.products})
    return fit_inflation(full, sizes, np.array(found), n)


def fit_inflation(full: Estimate, sizes: Sequence[int], found: np.ndarray, n: int) -> Inflation:
    r"""The fit to $\lambda_1$ of batches, (sizes, repeats): c by least squares weighted with the variance of each mean, through the full matrix's
    value."""
    repeats = found.shape[1]
    means, errors = found.mean(1), found.std(1, ddof=1) / repeats**0.5
    each = tuple(sampled(m, e, UNIT, repeats) for m, e in zip(means, errors, strict=True))
    share = 1 / np.array(sizes, dtype=float) - 1 / n
    # The spread over few batches is a poor weight by itself: variances are taken as proportional to 1/B, which they nearly are, with a pooled factor.
    variance = np.mean(errors**2 / share) * share
    weight = share / variance / np.sum(share**2 / variance)
    c, error = float(weight @ (means - full.value)), float(np.sqrt(weight**2 @ errors**2))
    dof = float((weight**2 @ errors**2) ** 2 / np.sum(weight**4 * errors**4 / (repeats - 1)))  # Welch & Satterthwaite
    half = float(stats.t.ppf(0.975, dof)) * error
    constant = between(c, c - half, c + half, "loss·examples/parameter²", len(sizes) * repeats)
    apart = (means - full.value - c * share) / errors
    k = len(sizes) - 1
    p = float(stats.f.sf(np.mean(apart**2) * len(sizes) / k, k, repeats - 1))
    critical = critical_batch(full.value, constant, n)
    return Inflation(full, tuple(sizes), each, constant, critical, p, n, judged(constant, critical, p, sizes))


def critical_batch(full: float, constant: Estimate, n: int) -> Estimate:
    """B where c (1/B - 1/N) is the full value."""
    if constant.low <= 0 or full <= 0:
        return unidentified("examples", "no noise was found in the sharpness: try smaller batches, or more of them", constant.n)
    ends = [1 / (full / c + 1 / n) for c in (constant.value, constant.low, constant.high)]
    return between(ends[0], ends[1], ends[2], "examples", constant.n)


def judged(constant: Estimate, critical: Estimate, p: float, sizes: Sequence[int]) -> str:
    """What the fit says, in words."""
    if not critical.identified:
        return "the batches measured are no sharper than all data: the largest stable learning rate does not depend on the batch size here"
    at = f"the largest stable learning rate grows in proportion to the batch size well below {critical.value:.3g} examples, and no more well above"
    if p < 0.01:
        return f"{at}; but the measured means do not lie on λ + c/B (p = {p:.2g}), so read it between {min(sizes)} and {max(sizes)} only"
    return at

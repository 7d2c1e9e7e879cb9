"""The information plane: what a layer's activity T tells of the input X and of the label Y, with the estimator and its bias said.

Shwartz-Ziv and Tishby 2017 (https://arxiv.org/abs/1703.00810); why this is disputed: Saxe et al. 2018 (https://doi.org/10.1088/1742-5468/ab3985). A
deterministic network's I(X;T) is infinite, or for finitely many inputs their entropy as long as T is injective: what is measured is the coarseness of
the bins or the noise that an estimator assumes. Two estimators are here because they may disagree; a trend that only one shows is the estimator's.
"""

# Shapes: n examples, d units of a layer.

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, bounded, exact
from velodrome.probes.functions.entropy import BITS, entropy, information, symbols
from velodrome.probes.functions.features import captured
from velodrome.probes.objective import Objective


@dataclass(frozen=True)
class Point:
    """A layer in the information plane: I(X;T) and I(T;Y) in bits, and how they were estimated."""

    input: Estimate
    label: Estimate
    estimator: str


def information_plane(
    objective: Objective,
    layers: Sequence[str],
    labels: Tensor | None = None,
    *,
    estimator: str = "binning",
    bins: int = 30,
    low: float | None = -1.0,
    high: float | None = 1.0,
    noise: float = 0.1,
    sample: bool = False,
) -> dict[str, Point]:
    r"""I(X;T) and I(T;Y) of the layers' outputs on the objective's examples. Name activations ("1" of a Sequential), not what comes before them.

    `estimator` "binning": each unit's output falls into one of `bins` equal bins between `low` and `high` (tanh's range by default; None takes the range
    seen, per layer: for ReLU), what lies outside into the outer ones. The network is a function, so with all inputs different I(X;T) is the entropy of the
    binned T. "noise": Gaussian noise of variance `noise` is assumed on every unit, and the two bounds of Kolchinsky and Tracey 2017 hold the value.

    By default the examples are all there is (Tishby's 4,096 inputs) and nothing is sampled; with `sample=True` I(X;T) and I(T;Y) by binning are corrected
    for bias and have intervals (`entropy`, `information`). `labels` default to the objective's targets, which must be classes (n,).
    """
    if estimator not in ("binning", "noise"):
        raise ValueError(f"estimator must be 'binning' or 'noise', got {estimator!r}.")
    y = torch.cat([b.targets for b in objective.batches]) if labels is None else labels
    if y.ndim != 1 or len(y) != objective.examples or y.is_floating_point():
        raise ValueError(f"labels must be {objective.examples} classes, got {y.dtype} of shape {tuple(y.shape)}: give labels=.")
    classes = y.cpu().numpy()
    found = {}
    for name, t in captured(objective, layers).items():
        if estimator == "binning":
            cells = symbols(binned(t, bins, low, high))
            x = entropy(cells, sample=sample)
            found[name] = Point(x, information(cells, classes, sample=sample), f"{bins} bins" + (", corrected for bias" if sample else ""))
        else:
            found[name] = Point(*noisy_information(t, y, noise), f"noise of variance {noise:g}")
    return found


def binned(values: Tensor, bins: int = 30, low: float | None = -1.0, high: float | None = 1.0) -> np.ndarray:
    """The number of the bin of every value, (n, d) whole numbers from 0 to bins - 1. (The authors' code cuts [-1, 1] at `bins` points instead.)"""
    if bins < 2:
        raise ValueError(f"bins must be two or more, got {bins!r}.")
    x = values.detach().double().cpu().numpy()
    bottom, top = float(x.min()) if low is None else low, float(x.max()) if high is None else high
    if not top > bottom:
        return np.zeros(x.shape, dtype=np.int64)
    return np.clip(np.floor((x - bottom) / (top - bottom) * bins), 0, bins - 1).astype(np.int64)


def noisy_information(features: Tensor, labels: Tensor, noise: float) -> tuple[Estimate, Estimate]:
    r"""I(X;T) and I(T;Y) in bits for $T = f(x) + N(0, \sigma^2 I)$, $\sigma^2$ = `noise`, of these n examples, each between two proven bounds.

    Entropies of a mixture by pairwise distances (Kolchinsky and Tracey 2017, https://doi.org/10.3390/e19070361): with
    $H_s = -\frac1n \sum_i \log \frac1n \sum_j e^{-\|f_i - f_j\|^2/(s\sigma^2)}$ above that of the
    noise, s = 2 is too high and s = 8 too low. The value is the middle.
    """
    if not noise > 0:
        raise ValueError(f"noise must be a variance above 0, got {noise!r}.")
    t = features.detach().double().flatten(1)
    square = torch.cdist(t, t, compute_mode="donot_use_mm_for_euclid_dist").square() / noise
    groups = [labels == c for c in labels.unique()]
    shares = [float(g.double().mean()) for g in groups]
    lower, upper = _mixture(square, 8.0), _mixture(square, 2.0)
    within = [sum(p * _mixture(square[g][:, g], s) for p, g in zip(shares, groups, strict=True)) for s in (8.0, 2.0)]
    most = -sum(p * np.log2(p) for p in shares)
    low, high = max(0.0, lower - within[1]), min(most, upper - within[0])
    n = len(t)
    note = f"saturated: within 5 % of log2({n})" if n > 1 and lower > 0.95 * np.log2(n) else ""
    first = bounded((lower + upper) / 2, (upper - lower) / 2, BITS, n=n, note=note)
    return first, bounded((low + high) / 2, (high - low) / 2, BITS, n=n)


def _mixture(square: Tensor, s: float) -> float:
    n = len(square)
    return float(-(torch.logsumexp(-square / s, 1) - log(n)).mean()) / log(2)


def gaussian_information(means: Tensor, variances: Tensor, labels: Tensor | None = None) -> Estimate:
    r"""An upper bound on I(X;Z), or with labels on I(X;Z|Y), in bits, for a layer that draws $Z \sim N(\mu(x), \mathrm{diag}\,\sigma^2(x))$.

    $I \le \frac12 \log\det(\mathrm{Cov}(\mu) + E\,\mathrm{diag}\,\sigma^2) - \frac12 E \sum \log \sigma^2$, for no density of that covariance has
    more entropy than the Gaussian; equal where $\mu$ is Gaussian and $\sigma$ constant. `means`, `variances` (n, d). A plug-in over these
    examples: with few of them the covariance is too small along some directions, and the number is no bound for the population.
    """
    if means.shape != variances.shape or means.ndim != 2 or not bool((variances > 0).all()):
        raise ValueError(
            f"means and variances must both be (n, d), variances above 0, got {tuple(means.shape)} and {tuple(variances.shape)}."
        )
    m, v = means.detach().double(), variances.detach().double()
    groups = [torch.ones(len(m), dtype=torch.bool)] if labels is None else [labels.cpu() == c for c in labels.cpu().unique()]
    total = sum(float(g.double().mean()) * _gaussian(m[g], v[g]) for g in groups)
    return exact(total / log(2), BITS, n=len(m), note="an upper bound for these examples")


def _gaussian(m: Tensor, v: Tensor) -> float:
    away = m - m.mean(0)
    covariance = away.T @ away / len(m) + torch.diag(v.mean(0))
    return 0.5 * float(torch.linalg.slogdet(covariance).logabsdet - v.log().sum(1).mean())


def generalisation_bound(conditional: float, weights: float, n: int) -> Estimate:
    r"""$\sqrt{(I(X;Z|Y) + I(\phi;S))/n}$, informations in bits, the order of the gap between training and test loss for n training examples.

    Kawaguchi et al. 2023 (https://arxiv.org/abs/2305.18887): the smallest over layers Z, $\phi$ the weights below. Their theorem has constants and
    logarithmic terms that could not be checked here and are left out, so this ranks networks and bounds none.
    """
    if conditional < 0 or weights < 0 or n < 1:
        raise ValueError(f"informations must be 0 or more and n one or more, got {conditional!r}, {weights!r} and {n!r}.")
    return exact(
        sqrt((conditional + weights) * log(2) / n), "loss, up to a factor", n=n, note="constants of the theorem left out: for ranking only"
    )

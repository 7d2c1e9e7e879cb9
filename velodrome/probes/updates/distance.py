r"""Distance from the start and its law: $\|w_t - w_0\| \sim \log t$ (Hoffer, Hubara & Soudry 2017, https://arxiv.org/abs/1705.08741), and how to tell.

    start = Start(model)
    for step in train(...): distances.append(start.distance(model))
    law = distance_law(steps, distances)
    print(law.better, law.exponent.low, law.exponent.high, law.rate)

Three laws of two numbers each are fitted by least squares: $a + b\log t$ (a walk in a random potential, "ultra-slow"), $a + b\sqrt t$ (ordinary
diffusion) and $a\,t^c$ (a power). Measure at steps spaced evenly in log t, or the last decade alone decides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, between, unidentified
from velodrome.probes.updates.motion import WIDE, parameters, part
from velodrome.probes.updates.series import effective, line

Law = Literal["log t", "sqrt t", "power of t"]
EXPONENTS = np.linspace(-2, 3, 1001)
ODDS = 20.0  # likelihood ratio from which on one law is called better


class Start:
    """The weights as they are now, to measure from. `every` k keeps each k-th row of matrices and filters; distances are then scaled up."""

    def __init__(self, source: nn.Module | torch.optim.Optimizer | Mapping[str, Tensor], every: int = 1) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number, one or more, got {every!r}.")
        self.every, self.params = every, parameters(source)
        self.kept = {n: self._part(p).clone() for n, p in self.params.items()}

    def _part(self, p: Tensor) -> Tensor:
        rows = part(p, self.every)
        return rows.contiguous() if rows.dtype in WIDE else rows.float()

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """Euclidean distance of every parameter from its start, in units of the parameter."""
        now = [self._part(p) for p in self.params.values()]
        norms = torch._foreach_norm(torch._foreach_sub(now, list(self.kept.values())))
        shares = [math.sqrt(p.numel() / x.numel()) for p, x in zip(self.params.values(), now, strict=True)]
        same = len({(x.dtype, x.device) for x in norms}) == 1
        lengths = torch.stack(list(norms)).tolist() if same else [float(x) for x in norms]
        return {n: length * share for n, length, share in zip(self.params, lengths, shares, strict=True)}

    def distance(self) -> float:
        """Of all parameters together."""
        return math.sqrt(sum(d**2 for d in self.distances().values()))


@dataclass(frozen=True)
class DistanceLaw:
    r"""`rate`: b of $a + b\log t$, parameter units per e-fold of steps, and `offset` a, with 95 % intervals.

    `exponent`: c of $a + b\,(t^c-1)/c$, which is log t at 0 and sqrt t at 1/2, by likelihood; `scatter`: root mean square of each law's
    residuals over the mean distance. `better`: the law whose likelihood is 20 times that of each other, counting the effective number of values.
    """

    rate: Estimate
    offset: Estimate
    exponent: Estimate
    scatter: dict[Law, float]
    better: Law | Literal["not separable"]


def distance_law(steps: Sequence[float], distances: Sequence[float]) -> DistanceLaw:
    """Which law recorded distances follow; ValueError for fewer than eight, or steps or distances that are not above 0."""
    t, d = np.asarray(steps, dtype=float), np.asarray(distances, dtype=float)
    if (
        t.shape != d.shape
        or t.ndim != 1
        or len(t) < 8
        or not (np.isfinite(t) & np.isfinite(d) & (t > 0) & (d > 0)).all()
        or (np.diff(t) <= 0).any()
    ):
        raise ValueError(f"a law needs eight rising steps and distances above 0, got {len(t)} steps and {len(d)} distances.")
    fitted = line(np.log(t), d)
    half = fitted.quantile * float(fitted.covariance[0, 0]) ** 0.5
    offset = between(fitted.intercept, fitted.intercept - half, fitted.intercept + half, "distance at step 1, parameter units", len(t))
    residuals: dict[Law, np.ndarray] = {
        "log t": fitted.residuals,
        "sqrt t": line(np.sqrt(t), d).residuals,
        "power of t": power(t, d),
    }
    scatter: dict[Law, float] = {law: float(np.sqrt(np.mean(r**2)) / d.mean()) for law, r in residuals.items()}
    return DistanceLaw(fitted.rate("distance per e-fold of steps, parameter units"), offset, exponent(t, d), scatter, better(residuals))


def power(t: np.ndarray, d: np.ndarray) -> np.ndarray:
    r"""Residuals of the best $a\,t^c$ by least squares on d itself."""
    best, among = t, EXPONENTS
    for finer in (1e-5, 0.0):
        x = (t / t[-1]) ** among[:, None]
        i = int(np.argmax(np.square(x @ d) / np.square(x).sum(1)))
        best, among = x[i], np.arange(among[i] - 0.005, among[i] + 0.005, finer) if finer else among
    rest: np.ndarray = d - best * float(best @ d) / float(best @ best)
    return rest


def exponent(t: np.ndarray, d: np.ndarray) -> Estimate:
    r"""c of $a + b(t^c-1)/c$ with its profile-likelihood interval, the number of values replaced by the effective one."""
    unit, x = "exponent of t, no unit; 0 is log t, 1/2 sqrt t", np.log(t / t[0])
    bent = np.where(abs(EXPONENTS[:, None]) > 1e-9, np.expm1(EXPONENTS[:, None] * x) / np.where(EXPONENTS == 0, 1, EXPONENTS)[:, None], x)
    bent = bent - bent.mean(1, keepdims=True)
    y = d - d.mean()
    squares = float(y @ y) - np.square(bent @ y) / np.square(bent).sum(1)
    best = int(np.argmin(squares))
    n = effective(line(bent[best], d).residuals, 3)
    if n <= 4 or best in (0, len(EXPONENTS) - 1):
        return unidentified(unit, "the distances do not say how they bend", n=len(t))
    limit = max(float(squares[best]), 1e-12 * float(y @ y)) * (1 + float(stats.f.ppf(0.95, 1, n - 3)) / (n - 3))
    inside = np.flatnonzero(squares <= limit)
    first, last = int(inside[0]), int(inside[-1])
    low = -math.inf if first == 0 else float(np.interp(-limit, -squares[first - 1 : first + 1], EXPONENTS[first - 1 : first + 1]))
    high = math.inf if last == len(EXPONENTS) - 1 else float(np.interp(limit, squares[last : last + 2], EXPONENTS[last : last + 2]))
    return between(float(EXPONENTS[best]), low, high, unit, len(t))


def better(residuals: dict[Law, np.ndarray]) -> Law | Literal["not separable"]:
    """The law with the least squares, if its likelihood is `ODDS` times that of each other."""
    squares = {law: float(r @ r) for law, r in residuals.items()}
    order = sorted(squares, key=lambda law: squares[law])
    first, second = max(squares[order[0]], 1e-300), squares[order[1]]
    return order[0] if effective(residuals[order[0]], 2) / 2 * math.log(second / first) > math.log(ODDS) else "not separable"

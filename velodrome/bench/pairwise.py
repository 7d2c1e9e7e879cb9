"""Every algorithm against every other: speed-ups and p-values adjusted for how many comparisons were made (Holm 1979, https://www.jstor.org/stable/4615733)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp

import numpy as np

from velodrome.bench.interval import resample
from velodrome.bench.score import Pairs, Trial, indexed


@dataclass(frozen=True)
class Duel:
    """How many times faster `a` is than `b`, geometric mean over workloads with an informative pair; `bound` as in `Speedup`.

    `p` is the two-sided p-value that the speed-up is 1, `adjusted` that of Holm's procedure over all duels: if every difference with `adjusted` < 0.05 is
    called one, the chance of any false call is at most 5 %. Where only one of the two missed somewhere, a difference in its disfavour alone can be
    called, as if it had reached its target at the budget, and `p` is at most too large; None where both did, or pairs are too few.
    """

    a: str
    b: str
    speedup: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    bound: str
    pairs: int
    workloads: int

    @property
    def verdict(self) -> str:
        """Who is faster, after adjustment."""
        if self.adjusted is None or self.speedup is None:
            return "not known"
        if self.adjusted >= 0.05:
            return "not separable at this scale"
        return f"{self.a if self.speedup > 1 else self.b} is faster"


def duels(trials: Iterable[Trial], axis: str = "seconds", *, level: float = 0.95, resamples: int = 20_000, seed: int = 0) -> list[Duel]:
    """All pairs of algorithms, in order of first appearance; the interval is that of `speedups`, and the p-value is read off the same draws.

    A p-value is at least one over the draws. ValueError for fewer than two algorithms.
    """
    trials = list(trials)
    algorithms = list(dict.fromkeys(t.algorithm for t in trials))
    if len(algorithms) < 2:
        raise ValueError(f"a comparison needs two algorithms, got {algorithms}.")
    table = indexed(trials, algorithms[0], axis)
    workloads = sorted({t.workload for t in trials})
    found = []
    for a, b in combinations(algorithms, 2):
        pairs = [Pairs.of(table[w, a], table[w, b], axis) for w in workloads]
        found.append(_duel(a, b, pairs, level, resamples, seed))
    known = [d.p for d in found if d.p is not None]
    adjusted = iter(holm(known))
    return [Duel(**{**d.__dict__, "adjusted": None if d.p is None else next(adjusted)}) for d in found]


def _duel(a: str, b: str, pairs: Sequence[Pairs], level: float, resamples: int, seed: int) -> Duel:
    groups = [np.array(p.logs) for p in pairs if p.logs]
    upper, lower = any(p.upper for p in pairs), any(p.lower for p in pairs)
    bound = "?" if upper and lower else "<" if upper else ">" if lower else ""
    draws = resample(groups, resamples, np.random.default_rng(seed))
    low = high = p = None
    if draws is not None:
        ends = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        low, high = None if upper else exp(ends[0]), None if lower else exp(ends[1])
        against = {"<": [(draws >= 0).mean()], ">": [(draws <= 0).mean()], "": [(draws <= 0).mean(), (draws >= 0).mean()], "?": []}[bound]
        p = float(min(1.0, max(2 * min(against), 1 / resamples))) if against else None
    mean = exp(float(np.mean([g.mean() for g in groups]))) if groups else None
    return Duel(a, b, mean, low, high, p, None, bound, sum(map(len, groups)), len(groups))


def holm(p: Sequence[float]) -> list[float]:
    r"""Adjusted p-values: the i-th smallest of m is $\max_{j \le i} \min(1, (m - j + 1)\,p_{(j)})$, in the order given."""
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1.0, np.array(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(scaled) if len(p) else scaled
    return [float(x) for x in adjusted]

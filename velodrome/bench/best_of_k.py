r"""What tuning buys and costs: the expected best of k trials, from N that were run (Dodge et al. 2019, https://arxiv.org/abs/1909.03004; Tang et al. 2021,
https://arxiv.org/abs/2012.04474, whose unbiased estimator this is)."""

from collections.abc import Sequence
from math import comb, inf, isfinite
from typing import NamedTuple

import numpy as np


class Best(NamedTuple):
    """The best of `k` trials: expected cost (misses at the budget), chance that one reaches the target, and what all k cost together."""

    k: int
    cost: float
    low: float
    high: float
    hit: float
    total: float


def weights(n: int, k: int) -> np.ndarray:
    r"""[n]: the chance $\binom{n-i}{k-1} / \binom{n}{k}$ that the i-th smallest of n values is the smallest of k drawn without replacement."""
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and the {n} trials there are, got {k}.")
    return np.array([comb(n - i, k - 1) / comb(n, k) for i in range(1, n + 1)])


def best_of_k(
    costs: Sequence[float], budget: float, most: int = 20, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Best]:
    r"""The curve for k = 1 … min(`most`, N), from the costs to target of N trials; a miss is infinite and counts as `budget`.

    Trials are exchangeable draws from a search space, so the estimate is unbiased for k up to N: for larger k nothing is known. The interval is the
    percentile bootstrap over trials; for k near N it rests on the one best trial and is too narrow. Every trial costs the time to its target, or the
    budget: `total` is k times their mean. ValueError without trials, for a budget that is not positive, or a cost beyond it.
    """
    x = np.array([budget if c == inf else c for c in costs], dtype=np.float64)
    if not len(x) or not (isfinite(budget) and budget > 0) or not ((x > 0) & (x <= budget)).all():
        raise ValueError(f"costs must be positive and at most the budget {budget:g}, or infinite for a miss, got {list(costs)[:5]}.")
    n, hits = len(x), sum(c < inf for c in costs)
    draws = np.sort(x[np.random.default_rng(seed).integers(0, n, (resamples, n))], axis=1)
    found = []
    for k in range(1, min(most, n) + 1):
        w = weights(n, k)
        low, high = np.quantile(draws @ w, [(1 - level) / 2, (1 + level) / 2])
        missed = comb(n - hits, k) / comb(n, k)
        found.append(Best(k, float(np.sort(x) @ w), float(low), float(high), 1 - missed, k * float(x.mean())))
    return found

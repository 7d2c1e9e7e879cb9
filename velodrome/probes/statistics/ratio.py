r"""95 % intervals for a ratio of two means measured together (Fieller 1954, J. R. Stat. Soc. B 16, 175-185), and the delete-one jackknife."""

from collections.abc import Sequence
from math import inf, isfinite, nan, sqrt

import numpy as np
from scipy import stats

LEVEL = 0.95


def means(pairs: Sequence[tuple[float, float]] | np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (2,) of n independent pairs, its covariance (2, 2) and n - 1."""
    rows = np.asarray(pairs, dtype=float).reshape(-1, 2)
    n = len(rows)
    return rows.mean(0), np.cov(rows.T) / n if n > 1 else np.full((2, 2), nan), n - 1


def jackknife(whole: Sequence[float], without: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The same from a pair of statistics and what they are without each of n examples, (n, 2)."""
    n = len(without)
    apart = without - without.mean(0)
    return np.asarray(whole, dtype=float), (n - 1) / n * apart.T @ apart, n - 1


def fieller(mean: np.ndarray, covariance: np.ndarray, freedom: int, level: float = LEVEL) -> tuple[float, float]:
    r"""(low, high) of $\mu_x/\mu_y$: all R at which $\bar x - R \bar y$ does not differ from 0.

    (-inf, inf) where the measurements exclude nothing, (low, inf) where $\bar y$ does not differ from zero but $\bar x$ does, being positive:
    then all ratios from `low` up to infinity, and beyond it the negative ones, are possible.
    """
    (x, y), t = mean, float(stats.t.ppf((1 + level) / 2, freedom)) if freedom > 0 else inf
    if not (isfinite(t) and np.isfinite(covariance).all()):
        return -inf, inf
    a, b, c = y * y - t * t * covariance[1, 1], x * y - t * t * covariance[0, 1], x * x - t * t * covariance[0, 0]
    root = b * b - a * c
    if a > 0:
        root = sqrt(max(root, 0.0))
        return float((b - root) / a), float((b + root) / a)
    if a == 0 or root < 0 or c <= 0 or x <= 0:
        return -inf, inf
    return float((b - sqrt(root)) / a), inf

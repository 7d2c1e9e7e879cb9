r"""Means and lines through recorded series, whose neighbours resemble each other: intervals by the effective number of values.

Residuals are taken as AR(1): with lag-one correlation $\rho$ (the bias of short series corrected, Kendall 1954, and never below 0) a series of n values
tells as much as $n\frac{1-\rho}{1+\rho}$ independent ones. Right for noise around a mean or a trend that is slow against $1/(1-\rho)$ values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from velodrome.probes.estimate import Estimate, between, sampled, unidentified

FEWEST = 3


def correlation(residuals: np.ndarray, fitted: int = 1) -> float:
    """Lag-one correlation of residuals after `fitted` parameters, between 0 and 0.99."""
    n, r = len(residuals), residuals - residuals.mean()
    power = float(r @ r)
    if n <= fitted + 2 or power <= 0:
        return 0.0
    rho = float(r[1:] @ r[:-1]) / power
    return min(max(rho + (fitted + 3 * rho) / n, 0.0), 0.99)


def effective(residuals: np.ndarray, fitted: int = 1) -> float:
    """How many independent values would tell as much; never below what leaves one degree of freedom."""
    rho = correlation(residuals, fitted)
    return max(len(residuals) * (1 - rho) / (1 + rho), fitted + 1.0)


def mean_of(values: Sequence[float], unit: str, note: str = "") -> Estimate:
    """The mean of a stationary series with a 95 % interval."""
    y = np.asarray(values, dtype=float)
    y = y[np.isfinite(y)]
    if len(y) < FEWEST:
        return unidentified(unit, f"a mean with an interval needs {FEWEST} values, got {len(y)}", n=len(y))
    n = effective(y - y.mean())
    error = float(y.std(ddof=1)) / n**0.5
    if n >= len(y):
        return sampled(float(y.mean()), error, unit, len(y), note=note)
    half = float(stats.t.ppf(0.975, max(n - 1, 1.0))) * error
    return between(float(y.mean()), float(y.mean()) - half, float(y.mean()) + half, unit, len(y), note=note)


@dataclass(frozen=True)
class Line:
    """$y = a + b x$ by least squares: `intercept` and `slope` with their covariance, `scatter` of the residuals, `dof` effective degrees of freedom."""

    intercept: float
    slope: float
    covariance: np.ndarray
    scatter: float
    dof: float
    n: int
    residuals: np.ndarray

    @property
    def quantile(self) -> float:
        """Student's, for a two-sided 95 % interval."""
        return float(stats.t.ppf(0.975, self.dof))

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """The line at x."""
        return self.intercept + self.slope * np.asarray(x, dtype=float)

    def error(self, x: np.ndarray | float) -> np.ndarray:
        """Standard error of the line at x."""
        x = np.asarray(x, dtype=float)
        c = self.covariance
        variance: np.ndarray = np.maximum(c[0, 0] + 2 * x * c[0, 1] + x**2 * c[1, 1], 0.0)
        return np.sqrt(variance)

    def rate(self, unit: str, note: str = "") -> Estimate:
        """The slope with its 95 % interval."""
        half = self.quantile * float(self.covariance[1, 1]) ** 0.5
        return between(self.slope, self.slope - half, self.slope + half, unit, self.n, note=note)


def line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Line:
    """The line through four points or more in the order in which they were recorded; ValueError for fewer, or for one x alone."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < FEWEST + 1 or not np.ptp(x) > 0:
        raise ValueError(f"a line needs four points at two places or more, got {len(x)} places and {len(y)} values.")
    middle, spread = float(x.mean()), float(np.square(x - x.mean()).sum())
    slope = float((x - middle) @ (y - y.mean())) / spread
    intercept = float(y.mean()) - slope * middle
    residuals = y - intercept - slope * x
    n = effective(residuals, 2)
    variance = float(residuals @ residuals) / (len(x) - 2)
    grown = variance * len(x) / n
    across = -grown * middle / spread
    covariance = np.array([[grown * (1 / len(x) + middle**2 / spread), across], [across, grown / spread]])
    return Line(intercept, slope, covariance, variance**0.5, max(n - 2, 1.0), len(x), residuals)

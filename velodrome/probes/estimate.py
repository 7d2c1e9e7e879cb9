"""Estimate: a number with its unit and how far it can be trusted; what the probes return."""

from dataclasses import dataclass, field
from functools import cache
from math import inf, isfinite, nan
from typing import Any, Literal

from scipy import stats

Kind = Literal["exact", "interval", "bound"]


@dataclass(frozen=True)
class Estimate:
    """`value` in `unit`, between `low` and `high`.

    kind "exact": rounding alone, low = value = high. "interval": a 95 % confidence interval; `error` is one standard error. "bound": the truth is no
    farther than `error`, by a proof (a Lanczos residual). An estimate that the data do not identify has the value NaN and a `note` that says why.
    `n` counts what the error was estimated from: draws, examples, batches. `cost` counts what was spent: products, passes.
    """

    value: float
    unit: str
    error: float = 0.0
    low: float = nan
    high: float = nan
    kind: Kind = "exact"
    n: int = 1
    note: str = ""
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def identified(self) -> bool:
        """Whether there is a number at all."""
        return isfinite(self.value)

    def __float__(self) -> float:
        return self.value

    def plain(self) -> dict[str, Any]:
        """For JSON; what is not a finite number is None."""
        numbers = {k: v if isfinite(v := float(getattr(self, k))) else None for k in ("value", "error", "low", "high")}
        return {**numbers, "unit": self.unit, "kind": self.kind, "n": self.n, "note": self.note, "cost": dict(self.cost)}


def exact(value: float, unit: str, **more: Any) -> Estimate:
    """A number without an error but rounding."""
    return Estimate(float(value), unit, 0.0, float(value), float(value), "exact", **more)


def bounded(value: float, error: float, unit: str, **more: Any) -> Estimate:
    """A number that is proven to be within `error` of the truth."""
    return Estimate(float(value), unit, float(error), float(value - error), float(value + error), "bound", **more)


@cache
def _quantile(dof: int) -> float:
    """Student's, for a two-sided 95 % interval; scipy takes longer for it than a small probe does for its number."""
    return float(stats.t.ppf(0.975, dof))


def sampled(value: float, error: float, unit: str, n: int, **more: Any) -> Estimate:
    """A mean of `n` independent draws with the standard error `error`: Student's 95 % interval; with one draw it is unbounded."""
    half = _quantile(n - 1) * error if n > 1 else inf
    return Estimate(float(value), unit, float(error), float(value - half), float(value + half), "interval", n, **more)


def between(value: float, low: float, high: float, unit: str, n: int, **more: Any) -> Estimate:
    """A number with a 95 % interval of its own making (bootstrap, likelihood); the error is a quarter of its width."""
    return Estimate(float(value), unit, float(high - low) / 4, float(low), float(high), "interval", n, **more)


def unidentified(unit: str, note: str, n: int = 0, **more: Any) -> Estimate:
    """No number, and why."""
    return Estimate(nan, unit, nan, nan, nan, "interval", n, note, **more)

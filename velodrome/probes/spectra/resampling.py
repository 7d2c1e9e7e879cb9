"""Jackknife: the error of a function of means over independent draws (Quenouille 1956; Tukey 1958)."""

from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from velodrome.probes.estimate import Estimate, between, unidentified


def jackknife(
    function: Callable[[np.ndarray], float], draws: np.ndarray, unit: str, *, log: bool = False, cost: dict[str, float] | None = None
) -> Estimate:
    """`function` of the mean over the rows of `draws` (d, q), less its bias of first order, with Student's 95 % interval; `log`: on the
    logarithm's scale.

    Needs three draws. `log` is for what cannot be below 0, and keeps it there.
    """
    d = len(draws)
    if d < 3:
        return unidentified(unit, f"three draws at least are needed for an error, got {d}", d)
    change = np.log if log else np.asarray
    total = draws.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = float(change(function(total / d)))
        without = np.array([float(change(function((total - row) / (d - 1)))) for row in draws])
    if not (np.isfinite(whole) and np.isfinite(without).all()):
        return unidentified(unit, "the draws leave no value: a mean is 0 or has the wrong sign", d)
    value = d * whole - (d - 1) * float(without.mean())
    error = float(((d - 1) / d * np.square(without - without.mean()).sum()) ** 0.5)
    half = float(student.ppf(0.975, d - 1)) * error
    ends = [float(np.exp(x)) if log else x for x in (value, value - half, value + half)]
    found = between(ends[0], ends[1], ends[2], unit, d, cost=cost or {})
    return Estimate(found.value, unit, ends[0] * error if log else error, found.low, found.high, "interval", d, "", found.cost)

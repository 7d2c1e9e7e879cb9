r"""Misses without a bound: the share of runs that have not reached the target yet (Kaplan and Meier 1958, https://doi.org/10.1080/01621459.1958.10501452)
and the mean cost up to a horizon (restricted mean: Royston and Parmar 2013, https://doi.org/10.1186/1471-2288-13-152), beside the speed-up of pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np

from velodrome.bench.score import Trial


@dataclass(frozen=True)
class Reached:
    """How often and after what cost: `rate` with its 95 % interval (Wilson), and the mean cost spent within `horizon` until the hit."""

    workload: str
    algorithm: str
    hits: int
    trials: int
    rate: float
    low: float
    high: float
    restricted: float
    horizon: float


def survival(costs: Sequence[float], reached: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    r"""(times, shares): after each distinct cost of a hit the share $\prod (1 - d_i / n_i)$ still on its way; a miss leaves at its cost."""
    cost, hit = np.asarray(costs, dtype=np.float64), np.asarray(reached, dtype=bool)
    if not len(cost) or cost.shape != hit.shape or not np.isfinite(cost).all() or (cost < 0).any():
        raise ValueError(f"costs must be non-negative numbers, one for each run, got {list(costs)[:5]}.")
    times = np.unique(cost[hit])
    at_risk = (cost[None, :] >= times[:, None]).sum(1)
    hits = ((cost[None, :] == times[:, None]) & hit[None, :]).sum(1)
    return times, np.cumprod(1 - hits / np.maximum(at_risk, 1))


def restricted_mean(costs: Sequence[float], reached: Sequence[bool], horizon: float) -> float:
    r"""$\int_0^h S(c)\,dc$: with one budget and $h$ at it the mean of min(cost, budget). ValueError for a horizon that is not positive."""
    if not horizon > 0:
        raise ValueError(f"the horizon must be positive, got {horizon}.")
    times, shares = survival(costs, reached)
    inside = times < horizon
    ends = np.concatenate([[0.0], times[inside], [horizon]])
    return float((np.diff(ends) * np.concatenate([[1.0], shares[inside]])).sum())


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953): not empty at 0 and at all."""
    share, spread = hits / trials, z * z / trials
    half = z * sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = ((share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    return (0.0 if hits == 0 else low), (1.0 if hits == trials else high)


def table(trials: Iterable[Trial], axis: str) -> list[Reached]:
    """One entry for each workload and algorithm with that cost; the horizon, one for each workload, is as far as all of its algorithms are known."""
    cells = _cells(trials, axis)
    found = []
    for (w, a), ts in cells.items():
        h = _horizon([other for (x, _), other in cells.items() if x == w], axis)
        if h > 0:
            hits = sum(t.reached for t in ts)
            found.append(Reached(w, a, hits, len(ts), hits / len(ts), *wilson(hits, len(ts)), _mean(ts, axis, h), h))
    return found


def ratios(trials: Iterable[Trial], axis: str, reference: str) -> dict[str, float]:
    """Geometric mean over workloads of the reference's restricted mean over the algorithm's: a speed-up in which misses count as the horizon, which is
    as far as both are known."""
    cells = _cells(trials, axis)
    logs: dict[str, list[float]] = {}
    for (w, a), ts in cells.items():
        theirs = cells.get((w, reference))
        if theirs and (h := _horizon([ts, theirs], axis)) > 0:
            logs.setdefault(a, []).append(log(_mean(theirs, axis, h) / _mean(ts, axis, h)))
    return {a: exp(float(np.mean(x))) for a, x in logs.items()}


def _cells(trials: Iterable[Trial], axis: str) -> dict[tuple[str, str], list[Trial]]:
    cells: dict[tuple[str, str], list[Trial]] = {}
    for t in trials:
        if t.cost.get(axis, 0.0) > 0 and not t.at_start:
            cells.setdefault((t.workload, t.algorithm), []).append(t)
    return cells


def _mean(trials: Sequence[Trial], axis: str, horizon: float) -> float:
    return restricted_mean([t.cost[axis] for t in trials], [t.reached for t in trials], horizon)


def _horizon(sides: Sequence[Sequence[Trial]], axis: str) -> float:
    """Beyond its longest run an algorithm is known only if all of its runs had reached the target."""
    longest = [max((t.cost[axis], not t.reached) for t in side) for side in sides]
    return min((c for c, missed in longest if missed), default=max(c for c, _ in longest))

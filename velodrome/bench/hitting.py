"""Time to target: at which cost does a run first reach its target, and how far can the evaluation grid mislead about it?

A run is evaluated on a fixed grid (at least 50 points, the first before any update), so the true crossing lies between two evaluations.
Taking the later one quantises the result: on AlgoPerf's grids that error has a median of 7 % and a maximum of 30 %, enough to change who
wins. Hence linear interpolation between the two, on the running best value, with both grid costs reported as the interpolation's range.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np


@dataclass(frozen=True)
class Hit:
    """Cost to the target on every axis, or the budget (a censored value) where `reached` is False.

    `low` and `high` are the costs of the two evaluations around the crossing; for a miss both equal `cost`. `at_start` says that the first
    evaluation already met the target, before any update: the workload's target is too easy and the hit says nothing about the algorithm.
    `diverged` says that an evaluation before the crossing was NaN or infinite; everything from there on counts as a miss. An axis whose
    budget cannot be known (a run that diverged at its first evaluation spent nothing) is absent from the three dictionaries.
    """

    cost: dict[str, float]
    reached: bool
    low: dict[str, float]
    high: dict[str, float]
    at_start: bool = False
    diverged: bool = False


def time_to_target(
    costs: Mapping[str, Sequence[float]],
    values: Sequence[float],
    target: float,
    budget: Mapping[str, float],
    lower_is_better: bool = True,
) -> Hit:
    r"""First crossing of `target` by the running best of `values`, interpolated: $c = c_{i-1} + f\,(c_i - c_{i-1})$.

    With $b_{i-1}$ the best value up to evaluation $i-1$ and $v_i$ the first value at or beyond the target, $f = (b_{i-1} - \text{target}) /
    (b_{i-1} - v_i)$ is one fraction for all cost axes, so that steps, examples, FLOPs and seconds speak of the same instant.

    `costs` maps an axis ("steps", "examples", "flops", "seconds", …) to its non-decreasing cost at each evaluation. `budget` gives the limit
    on at least one axis, normally `{"steps": …}`; a hit beyond any limit is a miss. On axes without a limit a miss is censored at the cost
    the run would have had at its first limit, at its own mean rate (exact for a run that used its whole budget).

    ValueError when lengths differ, a cost decreases or is not finite, the target is not finite, or no axis has a budget.
    """
    return times_to_targets(costs, values, [target], budget, lower_is_better)[0]


def times_to_targets(
    costs: Mapping[str, Sequence[float]],
    values: Sequence[float],
    targets: Sequence[float],
    budget: Mapping[str, float],
    lower_is_better: bool = True,
) -> list[Hit]:
    """`time_to_target` for several targets of one run, which is checked once."""
    grid = {axis: np.asarray(cost, dtype=np.float64) for axis, cost in costs.items()}
    value = np.asarray(values, dtype=np.float64) * (1.0 if lower_is_better else -1.0)
    _check(grid, value, targets, budget)
    bad = np.flatnonzero(~np.isfinite(value))
    end = int(bad[0]) if len(bad) else len(value)
    return [_hit(grid, value, end, goal if lower_is_better else -goal, budget) for goal in targets]


def _hit(grid: dict[str, np.ndarray], value: np.ndarray, end: int, goal: float, budget: Mapping[str, float]) -> Hit:
    """The first crossing among the first `end` evaluations, which are finite."""
    met = np.flatnonzero(value[:end] <= goal)
    if not len(met):
        return _miss(grid, budget, diverged=end < len(value))
    i = int(met[0])
    if i == 0:
        start = {axis: float(cost[0]) for axis, cost in grid.items()}
        return Hit(start, True, dict(start), dict(start), at_start=True)

    best = float(value[:i].min())
    fraction = (best - goal) / (best - float(value[i]))
    low = {axis: float(cost[i - 1]) for axis, cost in grid.items()}
    high = {axis: float(cost[i]) for axis, cost in grid.items()}
    cost = {axis: low[axis] + fraction * (high[axis] - low[axis]) for axis in grid}
    if any(cost[axis] > limit for axis, limit in budget.items() if axis in cost):
        return _miss(grid, budget, diverged=False)
    return Hit(cost, True, low, high)


def _miss(grid: dict[str, np.ndarray], budget: Mapping[str, float], diverged: bool) -> Hit:
    first = next(axis for axis in budget if axis in grid)
    spent = float(grid[first][-1])
    cost = {axis: float(limit) for axis, limit in budget.items() if axis in grid}
    if spent > 0:
        cost |= {axis: float(total[-1]) * budget[first] / spent for axis, total in grid.items() if axis not in cost}
    return Hit(cost, False, dict(cost), dict(cost), diverged=diverged)


def _check(grid: dict[str, np.ndarray], value: np.ndarray, targets: Sequence[float], budget: Mapping[str, float]) -> None:
    if value.ndim != 1 or not len(value):
        raise ValueError(
            f"values must be a list of at least one evaluation, got shape {value.shape}: evaluate once before the first update."
        )
    for axis, cost in grid.items():
        if cost.shape != value.shape:
            raise ValueError(f"costs[{axis!r}] has {cost.size} entries and values has {value.size}: give one cost per evaluation.")
        if not np.isfinite(cost).all() or (np.diff(cost) < 0).any():
            raise ValueError(f"costs[{axis!r}] must be finite and never decrease: give the cumulative cost at each evaluation.")
    for target in targets:
        if not isfinite(target):
            raise ValueError(f"target must be a finite number, got {target}.")
    if not any(axis in grid for axis in budget):
        raise ValueError(f"budget names {sorted(budget)} but costs has {sorted(grid)}: give a budget on at least one of these axes.")

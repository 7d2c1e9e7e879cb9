r"""Performance profile over workloads (Dolan and Moré 2002, https://doi.org/10.1007/s101070100263): $\rho_a(\tau)$, the share of workloads on which
algorithm a needs at most $\tau$ times the cost of the reference, or of the best there. A picture, never the score: relative to the best it
depends on who else entered, as AlgoPerf's does (`algoperf.leave_one_out`)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from velodrome.bench.score import Trial

Relative = Literal["reference", "best"]


@dataclass(frozen=True)
class Step:
    """One line of a profile: from the ratio `tau[i]` on, the share `rho[i]` of the workloads is solved."""

    algorithm: str
    tau: tuple[float, ...]
    rho: tuple[float, ...]

    def at(self, tau: float) -> float:
        """The share at one ratio."""
        known = [r for t, r in zip(self.tau, self.rho, strict=True) if t <= tau]
        return known[-1] if known else 0.0


def costs(trials: Iterable[Trial], axis: str) -> tuple[list[str], list[str], np.ndarray]:
    """(algorithms, workloads, median cost [a, w] over seeds): infinite where the median run missed, or the algorithm was not raced."""
    cells: dict[tuple[str, str], list[float]] = {}
    for t in trials:
        if axis in t.cost and not t.at_start:
            cells.setdefault((t.algorithm, t.workload), []).append(t.cost[axis] if t.reached else inf)
    algorithms, workloads = list(dict.fromkeys(a for a, _ in cells)), sorted({w for _, w in cells})
    table = np.full((len(algorithms), len(workloads)), inf)
    for (a, w), values in cells.items():
        table[algorithms.index(a), workloads.index(w)] = _median(values)
    return algorithms, workloads, table


def profile(trials: Iterable[Trial], axis: str, relative: Relative = "best", reference: str = "adamw") -> list[Step]:
    """A line for each algorithm; workloads that the reference (or everybody) missed give infinite ratios and so are solved by nobody.

    ValueError for an absent reference.
    """
    algorithms, workloads, table = costs(trials, axis)
    if relative == "reference" and reference not in algorithms:
        raise ValueError(f"the reference {reference!r} is not among the algorithms {algorithms}: name another.")
    base = table[algorithms.index(reference)] if relative == "reference" else table.min(0)
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(table) & np.isfinite(base), table / base, inf)
    return [Step(a, *_steps(row, len(workloads))) for a, row in zip(algorithms, ratio, strict=True)]


def _steps(ratio: np.ndarray, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    tau, solved = np.unique(ratio[np.isfinite(ratio)], return_counts=True)
    return tuple(tau.tolist()), tuple((np.cumsum(solved) / count).tolist())


def _median(values: Sequence[float]) -> float:
    order = sorted(values)
    low, high = order[(len(order) - 1) // 2], order[len(order) // 2]
    return (low + high) / 2

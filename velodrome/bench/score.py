"""Score: rows of trials -> speed-up over a reference, with an interval that covers, and a summary per algorithm and workload.

The score depends on the reference and the algorithm alone, never on who else entered (unlike performance profiles relative to the fastest
entrant, Dahl et al. 2023, https://arxiv.org/abs/2306.07179). How the interval is computed, and how well it covers: `interval.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import exp, isfinite, log
from typing import Any

import numpy as np

from velodrome.bench.interval import RESAMPLE_WORKLOADS_FROM, resample


@dataclass(frozen=True)
class Trial:
    """One run: cost on every axis at the hit, or the budget where it missed (`reached` False); `final` is the last validation metric.

    `at_start` marks a target met before any update (see `hitting.Hit`): such a trial carries no information about speed. `trial` is its number where
    several were run for one seed (`rules/studies.py`).
    """

    workload: str
    algorithm: str
    seed: int
    reached: bool
    cost: Mapping[str, float]
    final: float | None = None
    at_start: bool = False
    trial: int | None = None


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the reference, on one workload or (`workload` None) as the geometric mean over all of them.

    `bound` is "" for a plain number, "<" for an upper bound (the algorithm missed in some pair: its cost is at least the budget), ">" for a
    lower bound (the reference missed), "?" for both. The end of the interval that censoring leaves open is None, and so is `p_faster`,
    the probability that the speed-up exceeds 1. `pairs` were used; `both_missed`, `unpaired` (a seed without partner) and `unusable`
    (no cost on this axis, or target met before training) were left out and are counted here. `scope` says whom the interval speaks about:
    "this workload", "these workloads" (only seeds were resampled), or "workloads like these" (five or more, and workloads were resampled).
    """

    algorithm: str
    workload: str | None
    speedup: float | None
    low: float | None
    high: float | None
    p_faster: float | None
    bound: str
    verdict: str
    scope: str
    pairs: int
    hits: int
    trials: int
    reference_hits: int
    reference_trials: int
    both_missed: int
    unpaired: int
    unusable: int


@dataclass(frozen=True)
class Score:
    """Speed-ups per algorithm and workload (`cells`) and over workloads (`overall`), and how they were computed.

    `silent` lists, per algorithm, the workloads without a single informative pair: `overall` does not speak about them.
    """

    reference: str
    axis: str
    level: float
    resamples: int
    seed: int
    cells: tuple[Speedup, ...]
    overall: tuple[Speedup, ...]
    silent: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The score as dictionaries, lists, strings and numbers; a missing number is None."""
        return asdict(self)


def speedups(
    trials: Iterable[Trial],
    reference: str = "adamw",
    axis: str = "seconds",
    *,
    level: float = 0.95,
    resamples: int = 20_000,
    seed: int = 0,
    each: bool = True,
) -> Score:
    r"""Paired speed-ups $\exp \overline{\log(c_\mathrm{ref} / c_\mathrm{alg})}$ on one cost axis, with `level` intervals from `resample`.

    Runs are paired by workload and seed (same initial weights and data order); `each` False leaves out the workloads by themselves. A miss
    enters at its budget, which makes the ratio a bound; a pair in which both missed says nothing and is left out. Overall: the unweighted
    geometric mean over workloads; their variants (NAME+VARIANT) have cells, and count overall only where no base workload was raced.

    ValueError for an absent reference, a repeated (workload, algorithm, seed), an axis that no trial has, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}: write 0.95 for 95 %.")
    trials = list(trials)
    table = indexed(trials, reference, axis)
    workloads = sorted({t.workload for t in trials})
    algorithms = [a for a in dict.fromkeys(t.algorithm for t in trials) if a != reference]
    cells: list[Speedup] = []
    overall: list[Speedup] = []
    silent: dict[str, list[str]] = {}
    for algorithm in algorithms:
        pairs = {w: Pairs.of(table[w, algorithm], table[w, reference], axis) for w in workloads}
        counted = {w: pairs[w] for w in bases(workloads)}
        told = {w: p for w, p in counted.items() if p.logs}
        if len(told) < len(counted):
            silent[algorithm] = [w for w in counted if w not in told]
        for w, p in pairs.items() if each else ():
            cells.append(_estimate(algorithm, w, [p], [p], level, resamples, seed))
        overall.append(_estimate(algorithm, None, list(told.values()), list(counted.values()), level, resamples, seed))
    return Score(reference, axis, level, resamples, seed, tuple(cells), tuple(overall), silent)


def bases(workloads: Iterable[str]) -> list[str]:
    """The workloads that count overall: those that are no variant, or all where every one is."""
    names = sorted(set(workloads))
    return [w for w in names if "+" not in w] or names


@dataclass
class Pairs:
    """Informative pairs of one cell, and what was left out."""

    logs: list[float]
    hits: int = 0
    trials: int = 0
    reference_hits: int = 0
    reference_trials: int = 0
    both_missed: int = 0
    unpaired: int = 0
    unusable: int = 0
    upper: bool = False  # some pair is only an upper bound
    lower: bool = False

    @classmethod
    def of(cls, ours: dict[int, Trial], theirs: dict[int, Trial], axis: str) -> "Pairs":
        """The pairs of two algorithms' trials by seed."""
        p = cls([], sum(t.reached for t in ours.values()), len(ours), sum(t.reached for t in theirs.values()), len(theirs))
        p.unpaired = len(ours.keys() ^ theirs.keys())
        for seed in sorted(ours.keys() & theirs.keys()):
            a, b = ours[seed], theirs[seed]
            if not (a.reached or b.reached):
                p.both_missed += 1
                continue
            # A miss without a usable cost still forbids the claim that its algorithm was faster.
            p.upper |= not a.reached
            p.lower |= not b.reached
            cost_a, cost_b = a.cost.get(axis, 0.0), b.cost.get(axis, 0.0)
            if a.at_start or b.at_start or not (0 < cost_a < np.inf and 0 < cost_b < np.inf):
                p.unusable += 1
            else:
                p.logs.append(log(cost_b / cost_a))
        return p


def _estimate(
    algorithm: str, workload: str | None, told: list[Pairs], every: list[Pairs], level: float, resamples: int, seed: int
) -> Speedup:
    groups = [np.array(p.logs) for p in told if p.logs]
    upper, lower = any(p.upper for p in every), any(p.lower for p in every)
    bound = "?" if upper and lower else "<" if upper else ">" if lower else ""
    draws = resample(groups, resamples, np.random.default_rng(seed))  # the same for every cell: no entrant changes another's interval
    low = high = p_faster = None
    if draws is not None:
        ends = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        low = None if upper else exp(ends[0])
        high = None if lower else exp(ends[1])
        p_faster = None if bound else float((draws > 0).mean() + (draws == 0).mean() / 2)
    counts = {
        name: sum(getattr(p, name) for p in every)
        for name in ("hits", "trials", "reference_hits", "reference_trials", "both_missed", "unpaired", "unusable")
    }
    return Speedup(
        algorithm=algorithm,
        workload=workload,
        speedup=exp(float(np.mean([g.mean() for g in groups]))) if groups else None,
        low=low,
        high=high,
        p_faster=p_faster,
        bound=bound,
        verdict=verdict(low, high, known=draws is not None, pairs=sum(map(len, groups))),
        scope="this workload" if workload else "workloads like these" if len(groups) >= RESAMPLE_WORKLOADS_FROM else "these workloads",
        pairs=sum(map(len, groups)),
        **counts,
    )


def verdict(low: float | None, high: float | None, known: bool, pairs: int) -> str:
    """In words: which side of 1 the interval lies on, or why nothing is said."""
    if not known:
        return "needs ≥ 2 informative pairs" if pairs else "no pair reached the target"
    if low is not None and low > 1:
        return "faster"
    if high is not None and high < 1:
        return "slower"
    return "not separable at this scale"


def indexed(trials: list[Trial], reference: str, axis: str) -> dict[tuple[str, str], dict[int, Trial]]:
    """{(workload, algorithm): {seed: trial}}; ValueError for a repeated seed, an absent reference or an unknown axis."""
    table: dict[tuple[str, str], dict[int, Trial]] = defaultdict(dict)
    for t in trials:
        cell = table[t.workload, t.algorithm]
        if t.seed in cell:
            raise ValueError(f"{t.algorithm} on {t.workload} has seed {t.seed} twice: give every (workload, algorithm, seed) once.")
        cell[t.seed] = t
    algorithms = sorted({t.algorithm for t in trials})
    if reference not in algorithms:
        raise ValueError(f"the reference {reference!r} is not among the algorithms {algorithms}: race it too, or name another reference.")
    if not any(axis in t.cost for t in trials):
        raise ValueError(f"no trial has a cost {axis!r}; known axes: {sorted({a for t in trials for a in t.cost})}.")
    return table


@dataclass(frozen=True)
class Range:
    """Median and extremes of a cost to target over seeds; a miss counts as larger than every hit.

    `median_is_bound` and `high_is_bound` say that the number is the budget of a miss, so that the true value is at least that.
    """

    median: float
    low: float
    high: float
    median_is_bound: bool = False
    high_is_bound: bool = False


@dataclass(frozen=True)
class Row:
    """One algorithm on one workload: hits out of trials, costs to target by axis, and the final metric's mean and standard deviation (n - 1).

    None means missing: no seed ended with a finite metric, or there is one only and so no standard deviation.
    """

    workload: str
    algorithm: str
    hits: int
    trials: int
    cost: dict[str, Range]
    final_mean: float | None
    final_sd: float | None

    def to_json(self) -> dict[str, Any]:
        """The row as dictionaries, strings and numbers; a missing number is None."""
        return asdict(self)


def summary(trials: Iterable[Trial]) -> list[Row]:
    """One row per algorithm and workload, in order of first appearance: what each needed to reach the target, and where it ended."""
    cells: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for t in trials:
        cells[t.workload, t.algorithm].append(t)
    return [_row(cell) for cell in cells.values()]


def _row(cell: list[Trial]) -> Row:
    finals = np.array([t.final for t in cell if t.final is not None and isfinite(t.final)])
    known = {axis: max(t.cost[axis] for t in cell if axis in t.cost) for axis in dict.fromkeys(a for t in cell for a in t.cost)}
    return Row(
        workload=cell[0].workload,
        algorithm=cell[0].algorithm,
        hits=sum(t.reached for t in cell),
        trials=len(cell),
        cost={axis: _range([(not t.reached, t.cost.get(axis, most)) for t in cell]) for axis, most in known.items()},
        final_mean=float(finals.mean()) if len(finals) else None,
        final_sd=float(finals.std(ddof=1)) if len(finals) > 1 else None,
    )


def _range(costs: list[tuple[bool, float]]) -> Range:
    order = sorted(costs)
    middle = order[(len(order) - 1) // 2], order[len(order) // 2]
    missed = any(m for m, _ in middle)
    return Range((middle[0][1] + middle[1][1]) / 2, order[0][1], max(c for _, c in order), missed, order[-1][0])

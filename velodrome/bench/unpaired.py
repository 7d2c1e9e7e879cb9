"""Speed-ups between runs that share no seeds: the difference of two mean log costs on each workload, with an interval (Welch 1947,
https://doi.org/10.1093/biomet/34.1-2.28, for the problem; solved here by the same corrected bootstrap as that of pairs)."""

from collections import defaultdict
from collections.abc import Iterable
from math import exp, log

import numpy as np

from velodrome.bench.interval import RESAMPLE_WORKLOADS_FROM, resample
from velodrome.bench.score import Score, Speedup, Trial, verdict


def speedups(trials: Iterable[Trial], reference: str, axis: str, *, level: float = 0.95, resamples: int = 20_000, seed: int = 0) -> Score:
    r"""As `score.speedups`, $\exp(\overline{\log c_\mathrm{ref}} - \overline{\log c_\mathrm{alg}})$ on each workload; `pairs` counts the algorithm's runs.

    Both spreads count in full, so that it needs more runs than pairs would. A miss enters at its budget and leaves that end of the interval open.

    95 % intervals that held the truth in 2,000 simulated comparisons with spreads of 2 % and 6 % (standard error 0.5 %): 97.6 % for 3 runs against 3,
    98.2 % for 3 against 5, 94.5 % for 10 against 4, 95.7 % for 10 against 10; with 5 % and 5 %, 5 against 20: 96.0 %.

    ValueError for an absent reference or an axis that no trial has.
    """
    cells: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for t in trials:
        cells[t.workload, t.algorithm].append(t)
    algorithms = list(dict.fromkeys(a for _, a in cells))
    workloads = sorted({w for w, _ in cells})
    if reference not in algorithms:
        raise ValueError(f"the reference {reference!r} is not among the algorithms {algorithms[:12]}: name one of them with --reference.")
    if not any(axis in t.cost for ts in cells.values() for t in ts):
        raise ValueError(f"no trial has a cost {axis!r}; known axes: {sorted({a for ts in cells.values() for t in ts for a in t.cost})}.")
    found, overall = [], []
    silent: dict[str, list[str]] = {}
    for algorithm in (a for a in algorithms if a != reference):
        sides = {w: _Sides(cells.get((w, algorithm), []), cells.get((w, reference), []), axis) for w in workloads}
        told = {w: s for w, s in sides.items() if s.useful}
        if len(told) < len(sides):
            silent[algorithm] = [w for w in sides if w not in told]
        for w, s in sides.items():
            found.append(_estimate(algorithm, w, [s], level, resamples, seed))
        overall.append(_estimate(algorithm, None, list(sides.values()), level, resamples, seed))
    return Score(reference, axis, level, resamples, seed, tuple(found), tuple(overall), silent)


class _Sides:
    """Log costs of both algorithms on one workload."""

    def __init__(self, ours: list[Trial], theirs: list[Trial], axis: str):
        self.ours, self.theirs = ours, theirs
        self.a, self.b = (
            np.array([log(c) for t in side if not t.at_start and (c := t.cost.get(axis, 0.0)) > 0]) for side in (ours, theirs)
        )
        self.upper, self.lower = any(not t.reached for t in ours), any(not t.reached for t in theirs)
        self.useful = bool(len(self.a) and len(self.b)) and any(t.reached for t in (*ours, *theirs))

    @property
    def mean(self) -> float:
        return float(self.b.mean() - self.a.mean())


def _estimate(algorithm: str, workload: str | None, sides: list[_Sides], level: float, resamples: int, seed: int) -> Speedup:
    told = [s for s in sides if s.useful]
    upper, lower = any(s.upper for s in sides), any(s.lower for s in sides)
    bound = "?" if upper and lower else "<" if upper else ">" if lower else ""
    draws = _draws(told, resamples, seed)
    low = high = p_faster = None
    if draws is not None:
        ends = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        low, high = None if upper else exp(ends[0]), None if lower else exp(ends[1])
        p_faster = None if bound else float((draws > 0).mean() + (draws == 0).mean() / 2)
    used = sum(len(s.a) for s in told)
    wide = len(told) >= RESAMPLE_WORKLOADS_FROM
    return Speedup(
        algorithm=algorithm,
        workload=workload,
        speedup=exp(float(np.mean([s.mean for s in told]))) if told else None,
        low=low,
        high=high,
        p_faster=p_faster,
        bound=bound,
        verdict=verdict(low, high, known=draws is not None, pairs=used),
        scope="this workload" if workload else "workloads like these" if wide else "these workloads",
        pairs=used,
        hits=sum(t.reached for s in sides for t in s.ours),
        trials=sum(len(s.ours) for s in sides),
        reference_hits=sum(t.reached for s in sides for t in s.theirs),
        reference_trials=sum(len(s.theirs) for s in sides),
        both_missed=0,
        unpaired=0,
        unusable=sum(len(s.ours) + len(s.theirs) - len(s.a) - len(s.b) for s in sides),
    )


def _draws(told: list[_Sides], resamples: int, seed: int) -> np.ndarray | None:
    rng = np.random.default_rng(seed)
    if len(told) >= RESAMPLE_WORKLOADS_FROM:
        return resample([np.array([s.mean]) for s in told], resamples, rng)
    ours, theirs = resample([s.a for s in told], resamples, rng), resample([s.b for s in told], resamples, rng)
    return None if ours is None or theirs is None else theirs - ours

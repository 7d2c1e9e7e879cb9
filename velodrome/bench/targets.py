"""Three targets instead of one: the same curves read at an easy, a medium and a hard level, so that a result that hangs on one level is seen.

And the rule by which targets are set: from whole runs of the reference, on seeds that are not raced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log10
from typing import Any

from velodrome.bench.hitting import times_to_targets
from velodrome.bench.score import Score, Trial, speedups

LEVELS = ("easy", "medium", "hard")
REFERENCE = "adamw"
PLACES, SHARE = (0.35, 0.5, 0.65), 0.9  # easy, medium and hard: shares of the budget; of the seeds
FIRST_SEED, SEEDS = 1000, 5  # of the runs that set targets: races begin at 0 and never come so far
FOLDER = "targets"  # of those runs, in the folder of a race's


@dataclass(frozen=True)
class Watched:
    """One run as it was evaluated: cumulative `costs` by axis, `values` of its metric (lower is better), `targets` from easy to hard, `budget` in steps.
    `trial` is its number where several were run for one seed; `early` says why it ended before its target and its budget ("failed", "hopeless")."""

    workload: str
    algorithm: str
    seed: int
    targets: Sequence[float]
    costs: Mapping[str, Sequence[float]]
    values: Sequence[float]
    budget: float
    trial: int | None = None
    early: str = ""

    def trials(self) -> dict[str, Trial]:
        """The hits by level, of the levels that the workload has."""
        goals = {level: goal for level in LEVELS if (goal := target(self.targets, level)) is not None}
        hits = times_to_targets(self.costs, self.values, list(goals.values()), {"steps": self.budget})
        last = float(self.values[-1])
        final = last if isfinite(last) else None
        return {
            level: Trial(self.workload, self.algorithm, self.seed, hit.reached, hit.cost, final, hit.at_start, self.trial)
            for level, hit in zip(goals, hits, strict=True)
        }


def target(targets: Sequence[float], level: str) -> float | None:
    """The value at a level: the last is hard, the first of several easy, the middle of three or more medium."""
    if level not in LEVELS:
        raise ValueError(f"a target is easy, medium or hard, got {level!r}.")
    if level == "hard":
        return targets[-1]
    if level == "easy":
        return targets[0] if len(targets) > 1 else None
    return targets[len(targets) // 2] if len(targets) > 2 else None


def trials(runs: Iterable[Watched]) -> dict[str, list[Trial]]:
    """Hits by level, of the workloads that have it; levels that none has are left out."""
    found: dict[str, list[Trial]] = {level: [] for level in LEVELS}
    for run in runs:
        for level, t in run.trials().items():
            found[level].append(t)
    return {level: ts for level, ts in found.items() if ts}


def scores(by_level: Mapping[str, Sequence[Trial]], reference: str, axis: str, resamples: int = 20_000) -> dict[str, Score]:
    """Speed-ups at every level at which the reference was raced; only the hardest has its workloads by themselves."""
    return {
        level: speedups(ts, reference, axis, resamples=resamples, each=level == LEVELS[-1])
        for level, ts in by_level.items()
        if any(t.algorithm == reference for t in ts) and any(axis in t.cost for t in ts)
    }


def hangs_on(found: Mapping[str, Score]) -> list[str]:
    """The algorithms that are faster at one level and slower at another, over all workloads."""
    verdicts: dict[str, set[str]] = {}
    for score in found.values():
        for s in score.overall:
            verdicts.setdefault(s.algorithm, set()).add(s.verdict)
    return [a for a, said in verdicts.items() if {"faster", "slower"} <= said]


def proposed(curves: Sequence[tuple[Sequence[float], Sequence[float]]], budget: float) -> tuple[float, ...]:
    r"""Targets from easy to hard, from whole runs of the reference, each (steps, values of the metric): for each of `PLACES` the lowest value, rounded
    up to three digits, that at least the share `SHARE` of the runs has reached by that part of the budget.

    Of n runs the $\lceil 0.9\,n \rceil$-th best decides, so that a fresh seed is expected to be as fast with probability $\lceil 0.9\,n \rceil / (n + 1)$
    (five runs: 83 %) and slower, but within the budget, otherwise. ValueError without runs, or where too few of them stayed finite that long.
    """
    if not curves:
        raise ValueError("targets are set from whole runs of the reference, and there are none: give at least one.")
    found = []
    for place in PLACES:
        reached = sorted(min((v for t, v in zip(*c, strict=True) if t <= place * budget and isfinite(v)), default=inf) for c in curves)
        value = reached[ceil(SHARE * len(curves)) - 1]
        if not isfinite(value):
            raise ValueError(f"no target can be set: fewer than {SHARE:.0%} of {len(curves)} runs of the reference have a finite metric.")
        found.append(round_up(value))
    return tuple(found)


def set_from(how: Mapping[str, Any]) -> str:
    """Which runs set a target, in words: what a workload's `targets_from` says."""
    seeds, places = list(how["seeds"]), [f"{place:.0%}" for place in how["places"]]
    return (
        f"whole runs of {how['reference']} on the seeds {seeds[0]} to {seeds[-1]}, which are not raced; each target is the lowest value that at least "
        f"{how['share']:.0%} of them had reached within {', '.join(places[:-1])} and {places[-1]} of the budget."
    )


def round_up(value: float) -> float:
    """Up to three significant digits: a target that was reached stays reached."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (floor(log10(abs(value))) - 2)
    return float(f"{ceil(value / unit) * unit:.3g}")

"""Three targets instead of one: the same curves read at an easy, a medium and a hard level, so that a result that hangs on one level is seen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from velodrome.bench.hitting import times_to_targets
from velodrome.bench.score import Score, Trial, speedups

LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Watched:
    """One run as it was evaluated: cumulative `costs` by axis, `values` of its metric (lower is better), `targets` from easy to hard, `budget` in steps."""

    workload: str
    algorithm: str
    seed: int
    targets: Sequence[float]
    costs: Mapping[str, Sequence[float]]
    values: Sequence[float]
    budget: float

    def trials(self) -> dict[str, Trial]:
        """The hits by level, of the levels that the workload has."""
        goals = {level: goal for level in LEVELS if (goal := target(self.targets, level)) is not None}
        hits = times_to_targets(self.costs, self.values, list(goals.values()), {"steps": self.budget})
        last = float(self.values[-1])
        final = last if isfinite(last) else None
        return {
            level: Trial(self.workload, self.algorithm, self.seed, hit.reached, hit.cost, final, hit.at_start)
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

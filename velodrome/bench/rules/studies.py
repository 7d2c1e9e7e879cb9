"""Studies: what several trials of one algorithm on one workload with one seed come to: the fastest counts, and all are paid. Imports no torch."""

from collections.abc import Iterable
from dataclasses import replace

from velodrome.bench.score import Trial

Key = tuple[str, str, int]


def studies(trials: Iterable[Trial]) -> dict[Key, list[Trial]]:
    """Trials by workload, algorithm and seed."""
    found: dict[Key, list[Trial]] = {}
    for t in trials:
        found.setdefault((t.workload, t.algorithm, t.seed), []).append(t)
    return found


def fastest(trials: Iterable[Trial], axis: str) -> list[Trial]:
    """Of each study the trial that reached the target at the lowest cost on this axis, or one that missed where all did; runs of no study stay."""
    return [
        t for study in studies(trials).values() for t in (study if study[0].trial is None else [min(study, key=lambda t: _rank(t, axis))])
    ]


def paid(trials: Iterable[Trial]) -> list[Trial]:
    """Each study as one trial that cost what all its trials cost together: each until its target, or until its budget where it missed."""
    return [
        study[0]
        if len(study) == 1
        else replace(
            study[0],
            reached=any(t.reached for t in study),
            cost={axis: sum(t.cost[axis] for t in study) for axis in study[0].cost if all(axis in t.cost for t in study)},
            at_start=any(t.at_start for t in study),
        )
        for study in studies(trials).values()
    ]


def _rank(t: Trial, axis: str) -> tuple[bool, float, int]:
    return not t.reached, t.cost.get(axis, float("inf")), t.trial or 0

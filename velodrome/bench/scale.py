"""Does a speed-up survive scale? Workloads are raced at several scales, as NAME, NAME+4x and NAME+16x, and the speed-ups stand beside each other."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import exp
from typing import Any

import numpy as np

from velodrome.bench.robustness import base_of, change_interval, scale_of
from velodrome.bench.score import Pairs, Speedup, Trial, indexed, speedups


@dataclass(frozen=True)
class Rung:
    """The speed-up of an algorithm at one scale, on one workload or (`base` None) over all that were raced at every scale."""

    base: str | None
    scale: int
    parameters: int | None
    speedup: Speedup


@dataclass(frozen=True)
class Change:
    """The speed-up at the `last` scale over that at the `first`, geometric mean over `bases`, and its interval: None where a miss or too few pairs leave
    it open."""

    algorithm: str
    first: int
    last: int
    bases: tuple[str, ...]
    change: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """In words: "grows", "fades", or why nothing is said."""
        if self.low is None or self.high is None:
            return "open, because of misses or too few pairs"
        return "grows" if self.low > 1 else "fades" if self.high < 1 else "no change that is separable"


@dataclass(frozen=True)
class Ladder:
    """Speed-ups at every scale, and how they change from the first to the last."""

    rungs: tuple[Rung, ...]
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers; a missing number is None."""
        return {"rungs": [asdict(r) for r in self.rungs], "changes": [asdict(c) | {"verdict": c.verdict} for c in self.changes]}


def ladder(
    trials: Iterable[Trial],
    reference: str,
    axis: str,
    parameters: Mapping[str, int] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 20_000,
    seed: int = 0,
) -> Ladder | None:
    """The workloads that were raced at two scales or more; None where none was. `parameters` of the models by workload, as far as they are known.

    ValueError as `score.speedups`.
    """
    names: dict[str, dict[int, str]] = {}
    trials = list(trials)
    for name in sorted({t.workload for t in trials}):
        if name == base_of(name) or scale_of(name) > 1:
            names.setdefault(base_of(name), {})[scale_of(name)] = name
    names = {base: dict(sorted(at.items())) for base, at in names.items() if len(at) > 1}
    if not names:
        return None
    scales = sorted({s for at in names.values() for s in at})
    whole = {base: at for base, at in names.items() if list(at) == scales}
    known = parameters or {}
    kept = [t for t in trials if t.workload in {n for at in names.values() for n in at.values()}]
    cells = speedups(kept, reference, axis, level=level, resamples=resamples, seed=seed).cells
    rungs = [Rung(b, s, known.get(n), c) for b, at in names.items() for s, n in at.items() for c in cells if c.workload == n]
    for scale in scales if len(whole) > 1 else ():
        own = [t for t in kept if t.workload in {at[scale] for at in whole.values()}]
        found = speedups(own, reference, axis, level=level, resamples=resamples, seed=seed, each=False)
        rungs += [Rung(None, scale, None, s) for s in found.overall]
    algorithms = [a for a in dict.fromkeys(t.algorithm for t in kept) if a != reference]
    table = indexed(kept, reference, axis)
    return Ladder(tuple(rungs), tuple(_change(a, whole or names, table, reference, axis, level, resamples, seed) for a in algorithms))


def _change(
    algorithm: str,
    names: Mapping[str, Mapping[int, str]],
    table: Mapping[tuple[str, str], dict[int, Trial]],
    reference: str,
    axis: str,
    level: float,
    resamples: int,
    seed: int,
) -> Change:
    """From the smallest to the largest scale of every workload."""
    ends = {base: (at[min(at)], at[max(at)]) for base, at in names.items()}
    pairs = {n: Pairs.of(table.get((n, algorithm), {}), table.get((n, reference), {}), axis) for both in ends.values() for n in both}
    told = {base: both for base, both in ends.items() if all(pairs[n].logs for n in both)}
    first, last = min(min(at) for at in names.values()), max(max(at) for at in names.values())
    if not told:
        return Change(algorithm, first, last, (), None, None, None)
    change = float(np.mean([np.mean(pairs[b].logs) - np.mean(pairs[a].logs) for a, b in told.values()]))
    open_ = any(pairs[n].upper or pairs[n].lower for both in told.values() for n in both)
    found = None if open_ else change_interval([(a, [b]) for a, b in told.values()], pairs, level, resamples, seed)
    low, high = (None, None) if found is None else (exp(found[0]), exp(found[1]))
    return Change(algorithm, first, last, tuple(told), exp(change), low, high)

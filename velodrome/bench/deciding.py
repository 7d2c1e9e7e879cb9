"""Racing: pairs are added until each algorithm is decided, and no longer. Which algorithm needs another seed, and what that has saved. Imports no torch.

The interval is that of `racing.py`, which may be looked at after every pair. A seed is one pair: the mean over workloads of the log speed-ups of that seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, isfinite
from typing import Any

import numpy as np

from velodrome.bench.racing import decision as of_logs
from velodrome.bench.racing import interval
from velodrome.bench.score import Pairs, Trial, bases, indexed

START = 3  # pairs before the first look


@dataclass(frozen=True)
class Decision:
    """What the pairs say of one algorithm: "faster", "slower", "equal" (within 2 %), or None while undecided; the speed-up with an interval that is valid
    at any time (an end that misses leave open is None), and how many seeds counted. `bound` as in `score.Speedup`."""

    algorithm: str
    verdict: str | None
    speedup: float | None
    low: float | None
    high: float | None
    pairs: int
    left_out: int
    bound: str = ""


def decide(trials: Sequence[Trial], reference: str, axis: str) -> list[Decision]:
    """One decision for each algorithm other than the reference.

    A workload on which no pair says anything is left out, and so is a seed in which one of the others says nothing (both missed). A miss of the algorithm
    counts at its budget, which makes the speed-up an upper bound: then only "slower" can be decided, and with a miss of the reference only "faster".
    """
    table = indexed(list(trials), reference, axis)
    workloads = bases(t.workload for t in trials)
    found = []
    for algorithm in dict.fromkeys(t.algorithm for t in trials if t.algorithm != reference):
        seeds = sorted({seed for w in workloads for seed in table[w, algorithm]})
        cells = {(w, s): _pair(table[w, algorithm], table[w, reference], s, axis) for w in workloads for s in seeds}
        told = [w for w in workloads if any(cells[w, s].logs for s in seeds)]
        whole = [s for s in seeds if told and all(cells[w, s].logs for w in told)]
        logs = [float(np.mean([cells[w, s].logs[0] for w in told])) for s in whole]
        used = [cells[w, s] for w in told for s in whole]
        found.append(_decision(algorithm, logs, any(p.upper for p in used), any(p.lower for p in used), len(seeds) - len(whole)))
    return found


def _pair(ours: Mapping[int, Trial], theirs: Mapping[int, Trial], seed: int, axis: str) -> Pairs:
    def one(trials: Mapping[int, Trial]) -> dict[int, Trial]:
        return {seed: trials[seed]} if seed in trials else {}

    return Pairs.of(one(ours), one(theirs), axis)


def _decision(algorithm: str, logs: list[float], upper: bool, lower: bool, left_out: int) -> Decision:
    low, high = interval(logs)
    verdict: str | None = of_logs(logs)
    if (upper and verdict != "slower") or (lower and verdict != "faster"):
        verdict = None
    ends = (None if upper or not isfinite(low) else exp(low), None if lower or not isfinite(high) else exp(high))
    bound = "?" if upper and lower else "<" if upper else ">" if lower else ""
    return Decision(algorithm, verdict, exp(float(np.mean(logs))) if logs else None, *ends, len(logs), left_out, bound)


@dataclass(frozen=True)
class Saved:
    """What racing has saved against racing every algorithm over the maximum of seeds: runs, and FLOPs at the mean of those that were raced."""

    runs: int
    of: int
    flops: float
    of_flops: float


def saved(flops: Mapping[str, Sequence[float]], most: int, each: int) -> Saved:
    """`flops` of the runs of each algorithm; `each` is the number of runs of an algorithm for one seed (workloads, times trials)."""
    runs = sum(len(f) for f in flops.values())
    total, spent = most * each * len(flops), sum(sum(f) for f in flops.values())
    full = sum(float(np.mean(f)) * most * each for f in flops.values() if f)
    return Saved(total - runs, total, full - spent, full)


def to_json(decisions: Sequence[Decision], gain: Saved) -> dict[str, Any]:
    """As it is printed for machines."""
    return {"decisions": [asdict(d) for d in decisions], "saved": asdict(gain)}

"""Does a speed-up survive where the workload changes? Variants (width, activation, norm, initial scale, noisy labels) are raced as NAME+VARIANT."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from velodrome.bench.interval import resample
from velodrome.bench.score import Pairs, Trial, indexed


@dataclass(frozen=True)
class Robust:
    """Speed-ups over the reference on base workloads and on their variants, geometric means.

    `change` is the second over the first, of the bases with variants, with its interval (None where censoring or too few pairs leave it open);
    `worst` is the variant with the smallest speed-up, `missed` those on which the algorithm reached the target with no seed and the reference with some.
    """

    algorithm: str
    base: float | None
    variants: float | None
    change: float | None
    low: float | None
    high: float | None
    worst: str | None
    worst_speedup: float | None
    missed: tuple[str, ...]


def base_of(workload: str) -> str:
    """NAME of NAME+VARIANT."""
    return workload.partition("+")[0]


def scale_of(workload: str) -> int:
    """4 of NAME+4x, a rung of a ladder of scales; 1 of every other name."""
    found = re.fullmatch(r".*\+([1-9][0-9]*)x", workload)
    return int(found[1]) if found else 1


def robustness(
    trials: Iterable[Trial], reference: str, axis: str, *, level: float = 0.95, resamples: int = 20_000, seed: int = 0
) -> list[Robust]:
    """One entry for each algorithm other than the reference; empty where no variant was raced. Rungs of scale are none. ValueError as `score.speedups`."""
    trials = [t for t in trials if scale_of(t.workload) == 1]
    variants = sorted({t.workload for t in trials if "+" in t.workload})
    if not variants:
        return []
    table = indexed(trials, reference, axis)
    bases = sorted({t.workload for t in trials} - set(variants))
    found = []
    for algorithm in (a for a in dict.fromkeys(t.algorithm for t in trials) if a != reference):
        pairs = {w: Pairs.of(table[w, algorithm], table[w, reference], axis) for w in (*bases, *variants)}
        found.append(_robust(algorithm, pairs, bases, variants, level, resamples, seed))
    return found


def _robust(
    algorithm: str, pairs: dict[str, Pairs], bases: list[str], variants: list[str], level: float, resamples: int, seed: int
) -> Robust:
    means = {w: float(np.mean(p.logs)) for w, p in pairs.items() if p.logs}
    told = [v for v in variants if v in means]
    both = [(b, [v for v in told if base_of(v) == b]) for b in bases if b in means]
    both = [(b, vs) for b, vs in both if vs]
    change = low = high = None
    if both:
        change = float(np.mean([np.mean([means[v] for v in vs]) - means[b] for b, vs in both]))
        ends = (
            None
            if any(pairs[w].upper or pairs[w].lower for b, vs in both for w in (b, *vs))
            else change_interval(both, pairs, level, resamples, seed)
        )
        low, high = ends or (None, None)
    worst = min(told, key=lambda v: means[v]) if told else None
    return Robust(
        algorithm,
        exp(float(np.mean([means[b] for b in bases if b in means]))) if any(b in means for b in bases) else None,
        exp(float(np.mean([means[v] for v in told]))) if told else None,
        None if change is None else exp(change),
        None if low is None else exp(low),
        None if high is None else exp(high),
        worst,
        None if worst is None else exp(means[worst]),
        tuple(v for v in variants if not pairs[v].hits and pairs[v].trials and pairs[v].reference_hits),
    )


def change_interval(
    both: Sequence[tuple[str, Sequence[str]]], pairs: Mapping[str, Pairs], level: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    """The interval of the mean log change over (base, its variants): they are different runs, so their spreads add; None where one has too few pairs."""
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for base, variants in both:
        drawn = [resample([np.array(pairs[w].logs)], resamples, rng) for w in (base, *variants)]
        if any(d is None for d in drawn):
            return None
        own, *others = [d for d in drawn if d is not None]
        total += (np.mean(others, axis=0) - own) / len(both)
    low, high = np.quantile(total, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

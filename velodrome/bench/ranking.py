"""How sure a place on a board is: the order of the algorithms in joint redraws of what the speed-ups rest on. Descriptive; the score is the speed-up.

A rank depends on who else entered, which no speed-up does, so it is told beside the score and never instead of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from velodrome.bench.interval import resample
from velodrome.bench.score import Pairs, Trial, indexed


@dataclass(frozen=True)
class Rank:
    """`rank` by speed-up (1 is the fastest, the reference takes part with 1×), its 95 % range over the draws, and the share of them that it is first in."""

    algorithm: str
    rank: int
    low: int
    high: int
    first: float


def ranking(trials: Iterable[Trial], reference: str, axis: str, *, resamples: int = 20_000, seed: int = 0) -> list[Rank]:
    """The algorithms, fastest first, from the draws of `interval.resample`, which are the same for all of them: workloads (or the seeds of fewer than
    five) are redrawn for everybody at once.

    Misses enter at their budget, as in the speed-up, which flatters who missed; a workload on which every pair of one algorithm missed counts as equally
    fast, one that says nothing of anybody is left out. Empty where some workload has a single pair and there are fewer than five, because nothing is
    known of the spread.
    """
    trials = list(trials)
    table = indexed(trials, reference, axis)
    workloads = sorted({t.workload for t in trials})
    names = list(dict.fromkeys(t.algorithm for t in trials))
    told = [w for w in workloads if any(Pairs.of(table[w, n], table[w, reference], axis).logs for n in names if n != reference)]
    means, drawn = [], []
    for name in names:
        groups = [np.array(Pairs.of(table[w, name], table[w, reference], axis).logs or [0.0, 0.0]) for w in told]
        draws = np.zeros(resamples) if name == reference else resample(groups, resamples, np.random.default_rng(seed))
        if draws is None:
            return []
        means.append(float(np.mean([g.mean() for g in groups])))
        drawn.append(draws)
    return _ranks(names, means, np.array(drawn))


def _ranks(names: Sequence[str], means: Sequence[float], draws: np.ndarray) -> list[Rank]:
    """Ranks of each row of `draws` [algorithms, resamples] in its column; equal values share the better rank."""
    places = 1 + np.array([(draws > row).sum(0) for row in draws])
    own = [1 + sum(m > mine for m in means) for mine in means]
    ends = np.quantile(places, [0.025, 0.975], axis=1, method="nearest")
    found = [Rank(n, own[i], int(ends[0, i]), int(ends[1, i]), float((places[i] == 1).mean())) for i, n in enumerate(names)]
    return sorted(found, key=lambda r: r.rank)

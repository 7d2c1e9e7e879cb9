"""What a score says beyond the speed-ups: three targets, all pairs, misses, variants, tuning; made from trials alone, shown as table, JSON and page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from velodrome.bench import censored, targets, unpaired
from velodrome.bench.best_of_k import Best, best_of_k
from velodrome.bench.pairwise import Duel, duels
from velodrome.bench.profile import Step, profile
from velodrome.bench.robustness import Robust, robustness
from velodrome.bench.score import Score, Trial, speedups

PAIRS_UP_TO = 40  # algorithms: 780 comparisons; beyond, Holm's procedure finds nothing and nobody reads the table
TRIALS_FROM = 3  # of one algorithm on one workload, for a curve of the best of k


@dataclass(frozen=True)
class Standing:
    """`score` is that of the hard target (or the only one); `levels` those of all three. `best` are curves by (workload, algorithm)."""

    score: Score
    levels: Mapping[str, Score]
    duels: Sequence[Duel]
    reached: Sequence[censored.Reached]
    restricted: Mapping[str, float]
    over_reference: Sequence[Step]
    over_best: Sequence[Step]
    robust: Sequence[Robust] = ()
    best: Mapping[tuple[str, str], Sequence[Best]] = field(default_factory=dict)
    paired: bool = True
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers."""
        return {
            "score": self.score.to_json(),
            "paired": self.paired,
            "targets": {level: [asdict(s) for s in score.overall] for level, score in self.levels.items()},
            "pairwise": [asdict(d) | {"verdict": d.verdict} for d in self.duels],
            "reached": [asdict(r) for r in self.reached],
            "restricted_speedup": dict(self.restricted),
            "profile": {"over_reference": [asdict(s) for s in self.over_reference], "over_best": [asdict(s) for s in self.over_best]},
            "robustness": [asdict(r) for r in self.robust],
            "best_of_k": [{"workload": w, "algorithm": a, "curve": [b._asdict() for b in curve]} for (w, a), curve in self.best.items()],
            "notes": list(self.notes),
        }


def standing(
    by_level: Mapping[str, Sequence[Trial]],
    reference: str,
    axis: str,
    *,
    paired: bool = True,
    pools: Mapping[tuple[str, str], Mapping[str, Sequence[float]]] | None = None,
    budget: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
    score: Score | None = None,
) -> Standing:
    """From the hits at each level (`targets.trials`; {"hard": trials} where there is one target). `score` is that of the hard target, if it is there
    already; `pools` and `budget` as in `trial_table.Reading`. ValueError as `score.speedups`."""
    hard = list(by_level["hard"])
    if score is None:
        score = speedups(hard, reference, axis) if paired else unpaired.speedups(hard, reference, axis)
    easier = {level: ts for level, ts in by_level.items() if level != "hard"}
    levels = (targets.scores(easier, reference, axis) if paired else {}) | {"hard": score}
    algorithms = {t.algorithm for t in hard}
    against = duels(hard, axis) if paired and 1 < len(algorithms) <= PAIRS_UP_TO else []
    reached = censored.table(hard, axis)
    more = [f"{a} is faster at one target and slower at another: its result hangs on the target." for a in targets.hangs_on(levels)]
    if paired and len(algorithms) > PAIRS_UP_TO:
        more.append(f"{len(algorithms)} algorithms are too many for a table of all pairs: name up to {PAIRS_UP_TO} with --algorithms.")
    return Standing(
        score=score,
        levels=levels,
        duels=against,
        reached=reached,
        restricted=censored.ratios(hard, axis, reference),
        over_reference=profile(hard, axis, "reference", reference),
        over_best=profile(hard, axis, "best"),
        robust=robustness(hard, reference, axis) if paired else (),
        best=_best(pools or {}, budget or {}, axis),
        paired=paired,
        notes=[*notes, *more],
    )


def _best(
    pools: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], budget: Mapping[str, Mapping[str, float]], axis: str
) -> dict[tuple[str, str], list[Best]]:
    """Curves where several trials were run and the budget is known; a hit beyond the budget is a miss."""
    found = {}
    for (workload, algorithm), costs in pools.items():
        limit, own = budget.get(workload, {}).get(axis, inf), costs.get(axis, ())
        kept = [inf if c > limit else c for c in own if c > 0]
        if len(kept) >= TRIALS_FROM and 0 < limit < inf:
            found[workload, algorithm] = best_of_k(kept, limit, resamples=1000)
    return found

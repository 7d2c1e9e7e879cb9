"""AlgoPerf's score of a competition with what it rests on: ranks that five studies leave open, entrants and workloads left out, the tie rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from velodrome.bench.algoperf import REFERENCE, Attempt, Suite, Times, leave_one_out, ratios, resampled, scores, times
from velodrome.bench.score import Trial
from velodrome.bench.unpaired import speedups
from velodrome.reports.words import MISSING, ratio
from velodrome.reports.words import times as speedup_text

RULESETS = {"external": "external tuning", "self": "self-tuning"}
Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Competition:
    """One ruleset. `low`, `high` and `first` (the chance of being first) come from redrawn studies; `over` is our speed-up over the baseline."""

    ruleset: str
    order: list[str]
    score: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    ranks: dict[str, list[float]]
    above_next: dict[str, float]
    ratio: dict[str, float]
    over: dict[str, str]
    speedup: dict[str, tuple[float | None, float | None, float | None]]
    by_time: dict[str, float]
    left_out: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers."""
        return dict(self.__dict__)

    @property
    def winners(self) -> dict[str, str]:
        """Who wins when something is left out, where that is not the winner of the whole (nor the winner left out)."""
        first = self.order[0]
        best = {what: max(found, key=lambda a: found[a]) for what, found in self.left_out.items()}
        return {what: w for what, w in best.items() if w != first and what != f"without {first}"}


def competition(attempts: Sequence[Attempt], suite: Suite, ruleset: str, resamples: int = 2000) -> Competition:
    """Scores of all entrants of a ruleset."""
    t = times(attempts, suite)
    value = dict(zip(t.algorithms, scores(suite, t.median()).tolist(), strict=True))
    order = sorted(value, key=lambda a: -value[a])
    drawn = resampled(t, resamples)[:, [t.algorithms.index(a) for a in order]]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    rank = (-drawn).argsort(1, kind="stable").argsort(1)
    above = [float((drawn[:, i] > drawn[:, i + 1]).mean() + (drawn[:, i] == drawn[:, i + 1]).mean() / 2) for i in range(len(order) - 1)]
    quick = times(attempts, suite, "seconds")
    over = _over(t)
    return Competition(
        ruleset,
        order,
        {a: value[a] for a in order},
        dict(zip(order, low.tolist(), strict=True)),
        dict(zip(order, high.tolist(), strict=True)),
        {a: [float((rank[:, i] == r).mean()) for r in range(len(order))] for i, a in enumerate(order)},
        dict(zip(order, above, strict=False)),
        ratios(t) if REFERENCE in t.algorithms else {},
        {a: speedup_text(s) for a, s in over.items()},
        {a: (s.speedup, s.low, s.high) for a, s in over.items()},
        dict(zip(quick.algorithms, scores(suite, quick.median()).tolist(), strict=True)),
        leave_one_out(t),
    )


def _over(t: Times) -> dict[str, Any]:
    """Our speed-up over the baseline on the base workloads: every study a run, no pairs, and every cost cut at the budget, or the many misses on
    both sides would leave no end of any interval."""
    if REFERENCE not in t.algorithms:
        return {}
    trials = []
    for i, a in enumerate(t.algorithms):
        for j, w in enumerate(t.suite.base):
            limit = (t.suite.budget or {}).get(w)
            for k, s in enumerate(t.seconds[i, j]):
                cost = float(s) if np.isfinite(s) else limit
                if not np.isnan(s) and cost is not None:
                    trials.append(Trial(w, a, k, True, {"seconds": cost}))
    return {s.algorithm: s for s in speedups(trials, REFERENCE, "seconds").overall}


def score_rows(c: Competition) -> Rows:
    """The table of a ruleset, best first; the published score is the first number."""
    rows = []
    for a in c.order:
        faster = 1 - c.ratio[a] if a in c.ratio else None
        rows.append(
            [
                a,
                f"{c.score[a]:.4f}",
                f"[{c.low[a]:.2f}, {c.high[a]:.2f}]",
                f"{c.ranks[a][0]:.0%}",
                f"{c.above_next[a]:.2f}" if a in c.above_next else "",
                MISSING if faster is None else f"{100 * faster:+.1f} %",
                c.over.get(a, "1 (reference)" if a == REFERENCE else MISSING),
            ]
        )
    return ("entrant", "score", "95 %", "first", "P(> next)", "time saved", "speed-up (ours)"), rows


def remarks(c: Competition) -> list[str]:
    """What the ranking hangs on, in sentences."""
    found = [
        f"{what}, {w} is first instead of {c.order[0]} ({c.left_out[what][w]:.4f} against {c.left_out[what][c.order[0]]:.4f})."
        for what, w in c.winners.items()
    ]
    found = [f"{text[0].upper()}{text[1:]}" for text in found] or [f"{c.order[0]} stays first whichever entrant or workload is left out."]
    for a in c.order:
        if round(c.by_time[a], 4) != round(c.score[a], 4):
            found.append(f"Tie rule: with the trial of least time instead of fewest evaluations, {a} has {c.by_time[a]:.4f}.")
    return found


def targets_beside(path: Path) -> Path:
    """The one file of targets in the table's folder; ValueError where there is none or several."""
    found = sorted(path.parent.glob("*targets*.json"))
    if len(found) != 1:
        what = ", ".join(p.name for p in found) or "none"
        raise ValueError(
            f"the file of targets (base_workloads, held_out_workloads) is not known beside {path.name} (found: {what}): name it with --targets."
        )
    return found[0]


def summary(c: Competition) -> str:
    """A ruleset in one sentence."""
    first, second = (*c.order, "")[:2]
    saved = f", {ratio(1 / c.ratio[first])}× the baseline's speed" if first in c.ratio else ""
    sure = f"; above {second} with probability {c.above_next[first]:.2f}" if second else ""
    return f"{RULESETS.get(c.ruleset, c.ruleset)}: {first} is first with {c.score[first]:.4f}{saved}{sure}"

"""The tables of a standing as text, for terminal and page: (headings, rows)."""

from collections.abc import Sequence

from velodrome.bench.pairwise import Duel
from velodrome.bench.score import Speedup
from velodrome.reports.standing import Standing
from velodrome.reports.words import MISSING, SHORT, cost, digits, ratio, times, unit

Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


def speedup_rows(s: Standing) -> Rows:
    """One row for each algorithm, fastest first: speed-up, verdict, hits, and the speed-up in restricted means."""
    ranked = sorted(s.score.overall, key=lambda x: -(x.speedup or 0))
    rows = [[x.algorithm, times(x), verdict(x, s.paired), f"{x.hits}/{x.trials}", optional(s.restricted.get(x.algorithm))] for x in ranked]
    first = ranked[0] if ranked else None
    hits = f"{first.reference_hits}/{first.reference_trials}" if first else ""
    return ("algorithm", f"speed-up ({unit(s.score.axis)})", "verdict", "hits", "restricted"), [
        [s.score.reference, "1", "reference", hits, "1"],
        *rows,
    ]


def verdict(x: Speedup, paired: bool) -> str:
    """Short, and about runs where there are no pairs."""
    told = SHORT.get(x.verdict, x.verdict)
    return told if paired else told.replace("pairs", "runs")


def level_rows(s: Standing) -> Rows:
    """Speed-ups at each target."""
    by = {level: {x.algorithm: x for x in score.overall} for level, score in s.levels.items()}
    rows = [[a, *(times(by[level][a]) if a in by[level] else MISSING for level in by)] for a in by["hard"]]
    return ("algorithm", *by), rows


def reached_rows(s: Standing) -> Rows:
    """Hit rates and restricted means of each workload."""
    rows = [
        [
            r.workload,
            r.algorithm,
            f"{r.hits}/{r.trials}",
            f"{r.low:.0%} to {r.high:.0%}",
            amount(s.score.axis, r.restricted),
            amount(s.score.axis, r.horizon),
        ]
        for r in sorted(s.reached, key=lambda r: (r.workload, r.restricted))
    ]
    return ("workload", "algorithm", "hits", "hit rate", "restricted mean", "horizon"), rows


def duel_rows(s: Standing) -> Rows:
    """Every pair, the clearest first."""
    order = sorted(s.duels, key=lambda d: (d.p is None, d.p or 0))
    rows = [[d.a, d.b, versus(d), probability(d.p), probability(d.adjusted), d.verdict] for d in order]
    return ("a", "b", "a over b", "p", "adjusted", "verdict"), rows


def robust_rows(s: Standing) -> Rows:
    """Base, variants, change, worst variant."""
    rows = []
    for r in s.robust:
        change = optional(r.change) + (f" [{ratio(r.low)}, {ratio(r.high)}]" if r.low is not None and r.high is not None else "")
        worst = MISSING if r.worst is None else f"{r.worst} ({optional(r.worst_speedup)})"
        rows.append([r.algorithm, optional(r.base), optional(r.variants), change, worst, ", ".join(r.missed) or "none"])
    return ("algorithm", "base", "variants", "change", "worst variant", "missed"), rows


def best_rows(s: Standing, counts: Sequence[int] = (1, 2, 5, 10, 20)) -> Rows:
    """The expected best of k for some k, and what all k cost together."""
    rows = [
        [
            w,
            a,
            str(b.k),
            f"{amount(s.score.axis, b.cost)} [{amount(s.score.axis, b.low)}, {amount(s.score.axis, b.high)}]",
            f"{b.hit:.0%}",
            amount(s.score.axis, b.total),
        ]
        for (w, a), curve in s.best.items()
        for b in curve
        if b.k in counts
    ]
    return ("workload", "algorithm", "k", f"expected {unit(s.score.axis)} of the best", "hit", "paid"), rows


def versus(d: Duel) -> str:
    """A duel's speed-up with its interval."""
    if d.speedup is None:
        return MISSING
    sign = {"<": "≤ ", ">": "≥ ", "?": "≈ ", "": ""}[d.bound]
    ends = "" if d.low is None and d.high is None else f" [{', '.join(optional(e) for e in (d.low, d.high))}]"
    return f"{sign}{ratio(d.speedup)}×{ends}"


def probability(p: float | None) -> str:
    """Three decimals, or "< 0.001"."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def optional(x: float | None) -> str:
    """A ratio, or that it is missing."""
    return MISSING if x is None else ratio(x)


def amount(axis: str, x: float) -> str:
    """A cost in its unit; one of a stranger's axis as it is."""
    return digits(x) if axis == "cost" else cost(axis, x)

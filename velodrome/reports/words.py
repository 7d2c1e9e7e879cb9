"""Numbers and results in words: human units, speed-ups with their intervals, and the answer of a race in one sentence."""

import re
from collections.abc import Sequence
from math import isfinite

from velodrome.bench.score import Range, Score, Speedup

MISSING = "—"
SHORT = {  # verdicts in a narrow column
    "not separable at this scale": "not separable",
    "no pair reached the target": "no hits",
    "needs ≥ 2 informative pairs": "needs ≥ 2 pairs",
}
PREFIXES = ["", "k", "M", "G", "T", "P", "E", "Z"]


def quantity(x: float | None, unit: str = "") -> str:
    """Three significant digits with an SI prefix: 1234567 -> "1.23 M", 3.4e9 with unit "FLOP" -> "3.40 GFLOP", None -> "—"."""
    if x is None or not isfinite(x):
        return MISSING
    power = 0
    while abs(x) >= 999.5 and power < len(PREFIXES) - 1:
        x, power = x / 1000, power + 1
    text = f"{x:.0f}" if power == 0 and float(x).is_integer() else digits(x)
    return f"{text} {PREFIXES[power]}{unit}".strip()


def digits(x: float) -> str:
    """Three significant digits without an exponent for ordinary sizes: 0.0123, 1.23, 12.3, 123."""
    if x != 0 and not 1e-4 <= abs(x) < 1e6:
        return f"{x:.2e}"
    if abs(x) < 0.9995:
        return f"{x:.3g}"
    return f"{x:.2f}" if abs(x) < 9.995 else f"{x:.1f}" if abs(x) < 99.95 else f"{x:.0f}"


def seconds(x: float | None) -> str:
    """A duration: 0.0123 -> "12.3 ms", 12.3 -> "12.3 s", 192 -> "3 min 12 s", 7500 -> "2 h 05 min", None -> "—"."""
    if x is None or not isfinite(x):
        return MISSING
    if x == 0:
        return "0 s"
    if x < 0.9995:
        return f"{digits(x * 1e3)} ms"
    if x < 99.95:
        return f"{digits(x)} s"
    minutes, rest = divmod(round(x), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def cost(axis: str, x: float | None) -> str:
    """A cost in the unit of its axis."""
    if axis in ("seconds", "unit_seconds"):
        return seconds(x)
    return quantity(x, "FLOP" if axis == "flops" else "")


def unit(axis: str) -> str:
    """The name of a cost as it is read: unit_seconds -> "unit seconds"."""
    return axis.replace("_", " ")


def median(axis: str, r: Range | None) -> str:
    """The median of a cost to target, with "≥" where it rests on a run that missed; "—" where it is unknown."""
    return MISSING if r is None else ("≥ " if r.median_is_bound else "") + cost(axis, r.median)


def times(s: Speedup) -> str:
    """A speed-up with its interval: "1.31× [1.12, 1.53]"; "≤ 0.62× [—, 0.81]" where censoring leaves an end open."""
    if s.speedup is None:
        return MISSING
    sign = {"<": "≤ ", ">": "≥ ", "?": "≈ ", "": ""}[s.bound]
    if s.low is None and s.high is None:
        return f"{sign}{ratio(s.speedup)}×"
    low, high = (MISSING if end is None else ratio(end) for end in (s.low, s.high))
    return f"{sign}{ratio(s.speedup)}× [{low}, {high}]"


def ratio(x: float) -> str:
    """A ratio with two decimals, or two significant digits where those would not tell: 1.31, 0.69, 0.0042, 12.3."""
    return f"{x:.2f}" if 0.095 <= x < 9.995 else digits(x) if x >= 9.995 else f"{x:.2g}"


def joined(names: Sequence[str]) -> str:
    """Names as English joins them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def labels(names: Sequence[str]) -> dict[str, str]:
    """Short names for narrow columns: of FILE.py:CLASS what stands behind the colon, as long as nobody else is called so."""
    short = {name: re.sub(r"^[^(]*:", "", name) for name in dict.fromkeys(names)}
    return {name: label if list(short.values()).count(label) == 1 else name for name, label in short.items()}


def answer(score: Score) -> str:
    """The race in one sentence: who is faster than the reference, by how much; who is slower or not separable, and where it is after all."""
    if not score.overall:
        return f"Only {score.reference} was raced: name another algorithm to compare it with."
    where = joined(list(dict.fromkeys(c.workload for c in score.cells if c.workload)))
    parts = []
    for s in sorted((s for s in score.overall if s.verdict == "faster"), key=lambda s: -(s.speedup or 0)):
        parts.append(f"{s.algorithm} reaches the target {times(s)} faster than {score.reference}")
    for s in (s for s in score.overall if s.verdict == "slower"):
        parts.append(f"{s.algorithm} is slower ({times(s)} the speed of {score.reference})")
    groups = {
        "not separable at this scale": "not separable from {} at this scale",
        "needs ≥ 2 informative pairs": "not decided against {}, for an interval needs 2 pairs of runs of each workload in which one reached the target",
        "no pair reached the target": "not comparable with {}, because no pair of runs reached the target",
    }
    for verdict, phrase in groups.items():
        names = [s.algorithm for s in score.overall if s.verdict == verdict]
        if names:
            parts.append(f"{joined(names)} {'is' if len(names) == 1 else 'are'} {phrase.format(score.reference)}")
    for s in score.overall:
        if s.both_missed and s.verdict != "no pair reached the target":
            pairs = s.pairs + s.both_missed + s.unusable
            parts.append(f"in {s.both_missed} of {pairs} pairs both {s.algorithm} and {score.reference} missed the target")
    undecided = {s.algorithm for s in score.overall if s.verdict == "not separable at this scale"}
    for c in score.cells:
        if c.algorithm in undecided and c.verdict in ("faster", "slower"):
            verdict = f"{times(c)} faster" if c.verdict == "faster" else f"slower ({times(c)})"
            parts.append(f"on {c.workload} alone {c.algorithm} is {verdict}")
    return f"On {where}, {'; '.join(parts)}."

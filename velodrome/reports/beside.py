"""One race in several costs beside each other: FLOPs, seconds at the machine's calibrated speed, and the seconds that were measured."""

from collections.abc import Mapping, Sequence
from html import escape

from velodrome.bench.score import Speedup, Trial, speedups
from velodrome.reports.cards import table
from velodrome.reports.words import MISSING, times

COSTS = {"flops": "FLOPs", "unit_seconds": "calibrated seconds", "seconds": "measured seconds"}
SAID = (
    "Calibrated seconds: what the counted work takes on this machine when it does nothing else, so that they do not depend on how busy it was; "
    "measured seconds do."
)

Beside = Mapping[str, Sequence[Speedup]]


def beside(trials: Sequence[Trial], reference: str) -> dict[str, tuple[Speedup, ...]]:
    """Overall speed-ups by cost, of those costs that every run has."""
    known = [axis for axis in COSTS if trials and all(axis in t.cost for t in trials)]
    return {axis: speedups(trials, reference, axis, each=False).overall for axis in known}


def rows(costs: Beside) -> tuple[Sequence[str], list[list[str]]]:
    """(headings, rows): one row for each algorithm."""
    by = {axis: {s.algorithm: s for s in found} for axis, found in costs.items()}
    algorithms = list(dict.fromkeys(a for found in by.values() for a in found))
    body = [[a, *(times(by[axis][a]) if axis in by and a in by[axis] else MISSING for axis in COSTS)] for a in algorithms]
    return ("speed-up in", *COSTS.values()), body


def section(costs: Beside) -> str:
    """The part of a page; nothing where there is only the reference."""
    if not any(costs.values()):
        return ""
    return f'<h2>In three costs</h2>{table(*rows(costs))}<p class="soft">{escape(SAID)}</p>'

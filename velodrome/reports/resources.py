"""What runs took beside their costs: peak memory of a step, energy, seconds of evaluation that no clock counted. Not available is said, never 0."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from statistics import median
from typing import Any

from velodrome.records.read import Record
from velodrome.reports.cards import table
from velodrome.reports.words import quantity, seconds

NONE = "not available"
HEAD = ("workload", "algorithm", "peak memory of a step", "on the GPU", "energy of a run", "evaluation, off the clock")


@dataclass(frozen=True)
class Resources:
    """Medians over the runs of an algorithm on a workload; None where no run can tell (`docs/racing.md`, "Costs that no neighbour lengthens")."""

    workload: str
    algorithm: str
    bytes: float | None
    device_bytes: float | None
    joules: float | None
    evaluation_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Numbers, or null."""
        return asdict(self)


def resources(runs: Iterable[tuple[str, Record]]) -> list[Resources]:
    """Of (algorithm, run) pairs, in their order."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for algorithm, r in runs:
        groups.setdefault((r.recipe["workload"], algorithm), []).append(r)
    return [
        Resources(w, a, *(_median(own, name) for name in ("bytes", "device_bytes", "joules", "evaluation_seconds")))
        for (w, a), own in groups.items()
    ]


def section(found: Sequence[Resources]) -> str:
    """The part of a page; empty where no run tells anything."""
    if not any((r.bytes, r.device_bytes, r.joules, r.evaluation_seconds) != (None,) * 4 for r in found):
        return ""
    rows = [
        [
            r.workload,
            r.algorithm,
            _of(r.bytes, "B"),
            _of(r.device_bytes, "B"),
            _of(r.joules, "J"),
            NONE if (s := r.evaluation_seconds) is None else seconds(s),
        ]
        for r in found
    ]
    note = "Medians over runs. Energy is that of the processor's or the GPU's own counter, whoever else used it meanwhile."
    return f'<h2>Memory and energy</h2>{table(HEAD, rows)}<p class="soft">{escape(note)}</p>'


def _of(x: float | None, unit: str) -> str:
    return NONE if x is None else quantity(x, unit)


def _median(runs: Sequence[Record], name: str) -> float | None:
    known = [float(x) for r in runs if isinstance(x := (r.result or {}).get(name), int | float)]
    return median(known) if known else None

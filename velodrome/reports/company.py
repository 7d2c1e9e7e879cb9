"""Beside whom seconds were measured: one sentence from what the sessions of runs recorded (`bench/crews/cores.py`)."""

from collections.abc import Iterable
from typing import Any

from velodrome.records.read import Record


def company(records: Iterable[Record]) -> list[str]:
    """The sentence, or none for runs that no crew has trained."""
    crews: list[dict[str, Any]] = [
        s["crew"] for r in records for s in r.environment if isinstance(s, dict) and isinstance(s.get("crew"), dict)
    ]
    if not crews:
        return []
    others, pinned = max(c["others"] for c in crews), sum(bool(c["pinned"]) for c in crews)
    if all(c["alone"] for c in crews) and not others:
        who = "alone"
    else:
        fewest, most = min(c["workers"] for c in crews) - 1, max(c["workers"] for c in crews) - 1
        count = f"{most}" if fewest == most else f"{fewest} to {most}"
        who = f"beside {count} other process{'' if most == 1 and fewest == most else 'es'} of the race"
        if any(c.get("cluster") for c in crews):
            who += " on the machines of a cluster"
        if others:
            who += f", while workers of other races held up to {others} cores"
    where = (
        "pinned to cores of their own"
        if pinned == len(crews)
        else f"pinned in {pinned} of {len(crews)} sessions"
        if pinned
        else "not pinned"
    )
    return [f"Seconds were measured {who}, {where}; steps, examples and FLOPs do not depend on it."]

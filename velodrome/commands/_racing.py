"""The rounds of a race that goes on until it is decided: seeds are added for the algorithms that still need them. Imports no torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from velodrome.bench.deciding import Decision, Saved, decide, saved
from velodrome.commands.options import say
from velodrome.records.read import Record, read
from velodrome.reports import collect
from velodrome.reports.words import quantity, ratio

States = dict[str, dict[str, Any]]
Fetch = Callable[[States], Path]


def rounds(
    plan: dict[str, Any], most: int, axis: str, run: Callable[[dict[str, Any]], States], fetch: Fetch
) -> tuple[States, list[Decision], Saved]:
    """(states of all runs, decisions, what was saved): the seeds of the plan for all, then one more at a time for those not decided, up to `most`."""
    states = run(plan)
    n = len(plan["seeds"])
    while True:
        records = found(states, fetch)
        trials = collect.trials(records, axis)
        decisions = decide(trials, collect.REFERENCE, axis) if any(t.algorithm == collect.REFERENCE for t in trials) else []
        open_ = [d.algorithm for d in decisions if d.verdict is None]
        if not open_ or n >= most:
            break
        say(f"{n} seeds: {', '.join(line(d) for d in decisions)}.")
        states |= run({**plan, "seeds": [n], "algorithms": [collect.REFERENCE, *open_]})
        n += 1
    flops: dict[str, list[float]] = {}
    for r in records:
        flops.setdefault(collect.named(r), []).append(float((r.result or {}).get("flops") or 0))
    each = len({r.recipe["workload"] for r in records}) * plan.get("trials", 1)
    return states, decisions, saved(flops, most, each)


def found(states: Mapping[str, Mapping[str, Any]], fetch: Fetch) -> list[Record]:
    """The finished runs among them."""
    out = fetch(dict(states))  # type: ignore[arg-type]
    return [r for f in states if (out / f / "recipe.json").exists() and (r := read(out / f)).finished]


def line(d: Decision) -> str:
    """An algorithm's decision in a few words."""
    if d.speedup is None:
        return f"{d.algorithm} says nothing yet"
    low, high = ("—" if end is None else ratio(end) for end in (d.low, d.high))
    sign = {"<": "≤ ", ">": "≥ ", "?": "≈ ", "": ""}[d.bound]
    return f"{d.algorithm} {d.verdict or 'undecided'} ({sign}{ratio(d.speedup)}× [{low}, {high}] after {d.pairs} pairs)"


def notes(decisions: list[Decision], gain: Saved) -> list[str]:
    """What a person must know of such a race."""
    share = gain.flops / gain.of_flops if gain.of_flops else 0.0
    return [
        f"Raced until decided: {'; '.join(line(d) for d in decisions)}. These intervals are valid however often one looks; those of the table are for "
        "a number of seeds that was fixed beforehand, which this one was not.",
        f"Racing saved {gain.runs:,} of {gain.of:,} runs and {quantity(gain.flops, 'FLOP')} ({share:.0%}) against all over the maximum of seeds.",
    ]

"""Run folders -> Race: hits, curves, time splits, score. Reads records and nothing else, so a race can be reported again at any time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from velodrome.bench.hitting import time_to_target
from velodrome.bench.score import Trial, speedups, summary
from velodrome.records.read import Record, columns
from velodrome.reports.race import AXES, Curve, Race, Split, Task

REFERENCE = "adamw"


def race(
    records: Iterable[Record], *, reference: str = REFERENCE, axis: str = "seconds", command: str = "", notes: Sequence[str] = ()
) -> Race:
    """The comparison that the finished runs among `records` make; ValueError when there is none, or none of the reference.

    A workload that was recorded in several versions (its code, data or budget changed) is reported in the one with most runs, and a note says so.
    """
    chosen, dropped = newest_of_each(
        [r for r in records if r.finished and r.result is not None and {"workload", "algorithm"} <= r.recipe.keys()]
    )
    if not chosen:
        raise ValueError("there are no finished runs to report: run `velodrome race` first, or name the folder that holds them.")
    curves = [curve(r) for r in chosen]
    trials = [trial(r, c) for r, c in zip(chosen, curves, strict=True)]
    notes = [*notes, *dropped, *inexact(chosen)]
    return Race(
        algorithms=list(dict.fromkeys(t.algorithm for t in trials)),
        workloads=list({r.recipe["workload"]: task(r) for r in chosen}.values()),
        curves=curves,
        splits=splits(chosen),
        trials=trials,
        score=speedups(trials, reference, axis),
        summary=summary(trials),
        environment=environment(chosen),
        command=command,
        notes=notes,
    )


def newest_of_each(records: list[Record]) -> tuple[list[Record], list[str]]:
    """One record per workload, algorithm and seed, all of a workload from the same code, data and budget; and a note on what was left out."""
    versions: dict[str, dict[tuple[Any, ...], list[Record]]] = {}
    for r in records:
        key = tuple(str(r.recipe.get(k)) for k in ("code", "data", "steps", "targets", "device", "bf16"))
        versions.setdefault(r.recipe["workload"], {}).setdefault(key, []).append(r)
    chosen: dict[tuple[Any, ...], Record] = {}
    notes = []
    for workload, groups in versions.items():
        best = max(groups.values(), key=lambda g: (len(g), max(r.path.stat().st_mtime for r in g)))
        if len(groups) > 1:
            left = sum(map(len, groups.values())) - len(best)
            notes.append(
                f"{workload} was recorded in {len(groups)} versions of code, data or budget; {left} runs of the others are left out."
            )
        for r in best:
            chosen[workload, r.recipe["algorithm"], r.recipe["seed"]] = r
    return list(chosen.values()), notes


def task(r: Record) -> Task:
    """The workload as its recipe tells it."""
    w = r.recipe
    return Task(w["workload"], w.get("metric", "validation loss"), w["targets"][-1], w["steps"], summary=w.get("summary", ""))


def curve(r: Record) -> Curve:
    """Validation against every cost."""
    c = columns(r, "t", "examples", "flops", "seconds", "valid")
    steps, examples, flops, seconds, valid = (c[name].astype(float).tolist() for name in ("t", "examples", "flops", "seconds", "valid"))
    return Curve(r.recipe["workload"], r.recipe["algorithm"], r.recipe["seed"], steps, examples, flops, seconds, valid)


def trial(r: Record, c: Curve) -> Trial:
    """The hit of one run on its workload's last target, or its budget."""
    costs = {axis: getattr(c, axis) for axis in AXES}
    hit = time_to_target(costs, c.valid, r.recipe["targets"][-1], {"steps": r.recipe["steps"]})
    final = c.valid[-1] if np.isfinite(c.valid[-1]) else None
    return Trial(c.workload, c.algorithm, c.seed, hit.reached, hit.cost, final, hit.at_start)


def splits(records: Iterable[Record]) -> list[Split]:
    """Where the clock went, summed over seeds."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    for r in records:
        c = columns(r, "data_seconds", "gradient_seconds", "optimizer_seconds", "t")
        last = np.array([float(c[name][-1]) for name in ("data_seconds", "gradient_seconds", "optimizer_seconds", "t")])
        key = r.recipe["workload"], r.recipe["algorithm"]
        sums[key] = sums.get(key, np.zeros(4)) + last
    return [Split(w, a, float(data), float(gradient), float(update), int(t)) for (w, a), (data, gradient, update, t) in sums.items()]


def environment(records: Sequence[Record]) -> dict[str, str]:
    """Where it ran, in words; several answers where the runs come from several machines."""
    found: dict[str, dict[str, None]] = {}
    for r in records:
        for session in r.environment:
            for name, value in _words(session).items():
                found.setdefault(name, {})[value] = None
    return {name: "; ".join(values) for name, values in found.items()}


def _words(session: Mapping[str, Any]) -> dict[str, str]:
    versions = session.get("versions") or {}
    git = session.get("git") or {}
    words = {
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "machine": f"{session.get('cpu')}, {session.get('cpus')} cores; {session.get('platform')}",
        "computed on": f"{session.get('device')}, {session.get('threads')} thread(s) a run",
    }
    if git:
        words["commit"] = f"{git.get('commit')}{' with uncommitted changes' if git.get('dirty') else ''}"
    return words


def inexact(records: Iterable[Record]) -> list[str]:
    """Which runs went on elsewhere than they began, and so are not bit-identical to uninterrupted ones."""
    return [
        f"{r.path.name} was resumed with {', '.join(r.result['inexact'])}: not bit-identical to an uninterrupted run."
        for r in records
        if r.result and r.result.get("inexact")
    ]

"""Run folders -> Race: hits, curves, time splits, score. Reads records and nothing else, so a race can be reported again at any time."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any

import numpy as np

from velodrome.bench import targets
from velodrome.bench.failure import of as failed
from velodrome.bench.hitting import time_to_target
from velodrome.bench.rules.studies import fastest
from velodrome.bench.scale import Ladder, ladder
from velodrome.bench.score import Score, Trial, speedups, summary
from velodrome.bench.targets import Watched
from velodrome.bench.unit_seconds import COLUMNS as UNIT_COLUMNS
from velodrome.bench.unit_seconds import unit_seconds
from velodrome.records.read import Record, columns
from velodrome.reports.beside import beside
from velodrome.reports.company import company
from velodrome.reports.race import Curve, Race, Split, Task
from velodrome.reports.resources import resources
from velodrome.reports.scale import notes as of_scale
from velodrome.reports.standing import Standing, standing
from velodrome.reports.tuned import tuning
from velodrome.reports.words import joined

REFERENCE = "adamw"
# What must be equal between runs of different algorithms; what a recipe lacks (an older one) counts as one more value of it.
SHARED = (
    *("code", "data", "workload_source", "steps", "batch_size", "evaluations", "targets", "metric"),
    *("device", "bf16", "compile", "threads", "population", "rules"),
)
OWN = ("settings", "source")  # what must be equal between the seeds of one algorithm
TUNED = ("space", "source")  # the same where each seed has its own trials
SHOWN = 3  # names in a note
SPLIT = ("data_seconds", "gradient_seconds", "optimizer_seconds", "t")


def race(
    records: Iterable[Record], *, reference: str = REFERENCE, axis: str = "seconds", command: str = "", notes: Sequence[str] = ()
) -> Race:
    """The comparison that the finished runs among `records` make; ValueError when there is none, or none of the reference.

    Its notes say what was left out (folders that are no runs of a race, damaged runs, other versions of a workload or an algorithm) and
    which runs diverged or are not exact.
    """
    fit, passed_over = usable(records)
    chosen, dropped = one_version(fit)
    if not chosen:
        reasons = " ".join(["", *passed_over])
        raise ValueError(f"there are no finished runs to report: run `velodrome race` first, or name the folder that holds them.{reasons}")
    curves = [curve(r) for r in chosen]
    runs = [watched(r, c) for r, c in zip(chosen, curves, strict=True)]
    every = charged([trial(r, c) for r, c in zip(chosen, curves, strict=True)], runs)
    trials = fastest(every, axis)
    score = speedups(trials, reference, axis)
    more = place(runs, reference, axis, score=score)
    climbed = ladder(trials, reference, axis, parameters(chosen))
    counted = set(map(id, trials))
    recipes = {id(t): str(r.recipe["algorithm"]) for r, t in zip(chosen, every, strict=True)}
    return Race(
        algorithms=list(dict.fromkeys(t.algorithm for t in trials)),
        workloads=list({r.recipe["workload"]: task(r) for r in chosen}.values()),
        curves=[c for c, t in zip(curves, every, strict=True) if id(t) in counted],
        splits=splits(chosen),
        resources=resources((named(r), r) for r in chosen),
        trials=trials,
        score=score,
        summary=summary(trials),
        environment=environment(chosen),
        command=command,
        notes=[
            *notes,
            *passed_over,
            *dropped,
            *diverged(chosen),
            *broken(chosen),
            *told(chosen),
            *inexact(chosen),
            *company(chosen),
            *more.notes,
            *found_out(chosen, climbed),
        ],
        standing=more,
        scale=climbed,
        tuning=tuning(every, recipes, reference, axis),
        beside=beside(trials, reference),
    )


def named(r: Record) -> str:
    """The algorithm that a run is scored as: under external tuning the one that it is a trial of."""
    return str(r.recipe.get("entrant") or r.recipe["algorithm"])


def trials(records: Iterable[Record], axis: str) -> list[Trial]:
    """What the finished runs among `records` measured at the hard target, of each study the fastest; nothing is scored."""
    chosen, _ = one_version(usable(records)[0])
    curves = [curve(r) for r in chosen]
    return fastest(charged(list(map(trial, chosen, curves)), list(map(watched, chosen, curves))), axis)


def parameters(records: Iterable[Record]) -> dict[str, int]:
    """How many the model of each workload has, where the runs say so."""
    return {r.recipe["workload"]: r.result["parameters"] for r in records if r.result and isinstance(r.result.get("parameters"), int)}


def found_out(records: Sequence[Record], climbed: Ladder | None) -> list[str]:
    """How the race set targets, and how speed-ups change with scale."""
    set_here: dict[str, list[str]] = {}
    for r in records:
        if how := r.recipe.get("targets_from"):
            names = set_here.setdefault(targets.set_from(how), [])
            names += [r.recipe["workload"]] if r.recipe["workload"] not in names else []
    return [f"The targets of {joined(names)} were set by this race: {how}" for how, names in set_here.items()] + (
        of_scale(climbed) if climbed else []
    )


def watched(r: Record, c: Curve) -> Watched:
    """One run as it is read at several targets."""
    return Watched(c.workload, named(r), c.seed, r.recipe["targets"], c.costs, c.valid, r.recipe["steps"], r.recipe.get("trial"), early(r))


def early(r: Record) -> str:
    """Why a run did not go on to its target or its budget: "failed", "hopeless", or "" for one that did."""
    stopped = (r.result or {}).get("stopped")
    return "failed" if failed(r.result) is not None else "hopeless" if stopped == "hopeless" else ""


def place(runs: Sequence[Watched], reference: str, axis: str, notes: Sequence[str] = (), score: Score | None = None) -> Standing:
    """What these runs say: speed-ups, other targets, all pairs, misses, variants, and tuning where one algorithm was raced with several options; no
    best of k where trials were ended as hopeless, because nobody knows when they would have come."""
    every = {level: charged(ts, runs) for level, ts in targets.trials(runs).items()}
    pools, budget = settings(every["hard"])
    cut = {(run.workload, run.algorithm) for run in runs if run.early == "hopeless"}
    pools = {cell: pool for cell, pool in pools.items() if cell not in cut}
    by_level = {level: fastest(trials, axis) for level, trials in every.items()}
    return standing(by_level, reference, axis, pools=pools, budget=budget, notes=notes, score=score)


def settings(trials: Sequence[Trial]) -> tuple[dict[tuple[str, str], dict[str, list[float]]], dict[str, dict[str, float]]]:
    """(costs by (workload, algorithm without options) and axis, budgets by workload): each set of options is one trial, its median seed counts; a
    trial of a study counts by itself, because every study has its own points."""
    cells: dict[tuple[str, ...], list[Trial]] = {}
    budget: dict[str, dict[str, float]] = {}
    for t in trials:
        own = (t.algorithm,) if t.trial is None else (t.algorithm, str(t.seed), str(t.trial))
        cells.setdefault((t.workload, re.split(r"[(]", t.algorithm)[0] if t.trial is None else t.algorithm, *own), []).append(t)
        limits = budget.setdefault(t.workload, {})
        for axis, c in t.cost.items():
            limits[axis] = max(limits.get(axis, 0.0), c)
    pools: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (workload, name, *_), seeds in cells.items():
        for axis in {a for t in seeds for a in t.cost}:
            costs = sorted(t.cost[axis] if t.reached else inf for t in seeds if axis in t.cost)
            pools.setdefault((workload, name), {}).setdefault(axis, []).append(costs[len(costs) // 2])
    return pools, budget


def usable(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The finished runs from which a time to target can be read, and a note on every other one; unfinished ones are passed over silently."""
    fit: list[Record] = []
    unfit: dict[str, list[str]] = {}
    for r in records:
        reason = flaw(replace(r))  # a copy, because a record keeps the rows it has read
        if reason is None and r.finished:
            fit.append(r)
        elif reason is not None:
            unfit.setdefault(reason, []).append(r.path.name)
    return fit, [f"{listed(names)} {'is' if len(names) == 1 else 'are'} left out: {reason}" for reason, names in unfit.items()]


def flaw(r: Record) -> str | None:
    """Why nothing can be measured on this run, as a sentence; None for a sound run and for one that is not finished."""
    if not r.finished:
        damaged = (r.path / "result.json").exists()
        return f"{r.path / 'result.json'} is damaged." if damaged else None
    recipe, goals = r.recipe, r.recipe.get("targets")
    sound = {
        "workload": isinstance(recipe.get("workload"), str),
        "algorithm": isinstance(recipe.get("algorithm"), str),
        "seed": isinstance(recipe.get("seed"), int),
        "targets": isinstance(goals, list) and goals and all(isinstance(g, int | float) and isfinite(g) for g in goals),
        "steps": isinstance(recipe.get("steps"), int) and recipe["steps"] > 0,
    }
    if not all(sound.values()) or not isinstance(r.result, dict):
        lacking = [name for name, there in sound.items() if not there]
        return f"no run of a race ({f'its recipe lacks {joined(lacking)}' if lacking else 'its result is no object'})."
    if r.damaged:
        return " ".join(r.problems)
    try:
        trial(r, curve(r))
    except (ValueError, TypeError) as error:
        return f"no run of a race ({str(error).rstrip('.')})."
    return None


def one_version(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Runs that can be compared, and notes on what was left out.

    Of each workload the version (code, data, budget, setting) with most runs, of equally many the newest; in it of each algorithm the
    newest version (settings, source), so that no mean is over two of them; of a repeated seed the newest run.
    """
    kept: list[Record] = []
    notes: list[str] = []
    for name, runs in grouped(records, "workload").items():
        versions = grouped(runs, *SHARED)
        best = max(versions.values(), key=lambda v: (len(v), newest(v)))
        if len(versions) > 1:
            differ = joined([key for key in SHARED if len(grouped(runs, key)) > 1])
            notes.append(f"{name} was recorded in {len(versions)} versions ({differ} differ): {left_out(runs, best)} of the others.")
        for algorithm, ours in by_name(best).items():
            own = grouped(ours, *(TUNED if "entrant" in ours[0].recipe else OWN))
            last = max(own.values(), key=newest)
            if len(own) > 1:
                what = "space" if "entrant" in ours[0].recipe else "settings"
                text = f"{algorithm} on {name} was recorded in {len(own)} versions of its {what} or source"
                notes.append(f"{text}: {left_out(ours, last)} of the older.")
            for same in grouped(last, "seed", "trial").values():
                kept.append(max(same, key=written))
                if len(same) > 1:
                    seed, where = same[0].recipe.get("seed"), joined([r.path.name for r in same])
                    notes.append(
                        f"{algorithm} on {name}, seed {seed}, was recorded {len(same)} times ({where}): {kept[-1].path.name}, the newest, counts."
                    )
    order = {id(r): i for i, r in enumerate(records)}
    return sorted(kept, key=lambda r: order[id(r)]), notes


def by_name(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs by the algorithm that they are scored as."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        groups.setdefault(named(r), []).append(r)
    return groups


def grouped(records: Sequence[Record], *names: str) -> dict[str, list[Record]]:
    """Runs by the values that their recipes give to these names."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        values = [r.recipe.get(name) for name in names]
        key = str(values[0]) if len(names) == 1 else json.dumps(values, sort_keys=True, default=str)
        groups.setdefault(key, []).append(r)
    return groups


def written(r: Record) -> tuple[float, str]:
    """When the run was finished; the name decides between two of the same instant."""
    try:
        return (r.path / "result.json").stat().st_mtime, r.path.name
    except OSError:
        return 0.0, r.path.name


def newest(records: Sequence[Record]) -> tuple[float, str]:
    """When the last of these runs was finished."""
    return max(map(written, records))


def left_out(runs: Sequence[Record], kept: Sequence[Record]) -> str:
    """How many of `runs` are not in `kept`, as a clause without its end."""
    count = len(runs) - len(kept)
    return f"left out {'is' if count == 1 else 'are'} {count} run{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return joined([*names[:SHOWN], f"{more} more"] if more > 0 else names)


def task(r: Record) -> Task:
    """The workload as its recipe tells it."""
    w = r.recipe
    return Task(
        w["workload"],
        w.get("metric", "validation loss"),
        w["targets"][-1],
        w["steps"],
        summary=w.get("summary", ""),
        targets_from=w.get("targets_from"),
    )


def curve(r: Record) -> Curve:
    """Validation against every cost."""
    c = columns(r, "t", "examples", "flops", "seconds", "valid")
    steps, examples, flops, seconds, valid = (c[name].astype(float).tolist() for name in ("t", "examples", "flops", "seconds", "valid"))
    return Curve(r.recipe["workload"], named(r), r.recipe["seed"], steps, examples, flops, seconds, valid, calibrated(r))


def calibrated(r: Record) -> list[float]:
    """Seconds at the calibrated speed of its machine; empty where that is not known."""
    try:
        return unit_seconds(r.result, columns(r, *UNIT_COLUMNS))
    except (ValueError, TypeError, AttributeError):  # not our loop's rows
        return []


def trial(r: Record, c: Curve) -> Trial:
    """The hit of one run on its workload's last target, or its budget, or what it had spent when it was ended as hopeless."""
    ended = (r.result or {}).get("stopped") == "hopeless"
    hit = time_to_target(c.costs, c.valid, r.recipe["targets"][-1], {"steps": c.steps[-1] if ended else r.recipe["steps"]})
    final = c.valid[-1] if np.isfinite(c.valid[-1]) else None
    return Trial(c.workload, named(r), c.seed, hit.reached, hit.cost, final, hit.at_start, r.recipe.get("trial"))


def charged(trials: Sequence[Trial], runs: Sequence[Watched]) -> list[Trial]:
    """The same, where a failed run costs at least the whole budget at the reference's price of a step on that workload and seed: it may have spent
    nothing before it failed, and a miss without a cost would count for nothing. Nobody else's runs matter."""
    bad = {(r.workload, r.algorithm, r.seed, r.trial) for r in runs if r.early == "failed"}
    lost = [not t.reached and (t.workload, t.algorithm, t.seed, t.trial) in bad for t in trials]
    reference = {
        (t.workload, t.seed): t for t, no in zip(trials, lost, strict=True) if t.algorithm == REFERENCE and t.cost.get("steps") and not no
    }

    def whole(t: Trial) -> dict[str, float]:
        other = reference.get((t.workload, t.seed))
        if other is None:
            return dict(t.cost)
        budget = t.cost["steps"] / other.cost["steps"]
        return {**t.cost, **{axis: max(t.cost.get(axis, 0.0), budget * c) for axis, c in other.cost.items()}}

    return [replace(t, cost=whole(t)) if no else t for t, no in zip(trials, lost, strict=True)]


def broken(records: Iterable[Record]) -> list[str]:
    """Which algorithms have failed on which workload, how often, and how the first one did."""
    cells: dict[tuple[str, str], list[str | None]] = {}
    for r in records:
        bad = failed(r.result)
        cells.setdefault((named(r), r.recipe["workload"]), []).append(None if bad is None else f"{bad.kind}: {bad.note}")
    return [
        f"{len(how)} of {len(runs)} runs of {a} on {w} failed and count{'s' if len(how) == 1 else ''} as a miss ({how[0].rstrip('.')})."
        for (a, w), runs in cells.items()
        if (how := [x for x in runs if x])
    ]


def told(records: Iterable[Record]) -> list[str]:
    """What runs changed in the process that they shared, or left behind there."""
    counts: dict[tuple[str, str], int] = {}
    for r in records:
        for note in (r.result or {}).get("notes") or []:
            counts[named(r), str(note)] = counts.get((named(r), str(note)), 0) + 1
    return [f"{a} {note} (in {n} run{'' if n == 1 else 's'})." for (a, note), n in counts.items()]


def splits(records: Iterable[Record]) -> list[Split]:
    """Where the clock went, summed over seeds, of the runs whose rows tell."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    for r in records:
        try:
            last = np.array([float(column[-1]) for column in columns(r, *SPLIT).values()])
        except (ValueError, TypeError):  # not our loop's rows: their costs count, where the clock went is unknown
            continue
        key = r.recipe["workload"], named(r)
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


def diverged(records: Iterable[Record]) -> list[str]:
    """How many runs of an algorithm on a workload diverged; one that had reached its target before has reached it."""
    counts: dict[tuple[str, str], list[bool]] = {}
    for r in records:
        counts.setdefault((named(r), r.recipe["workload"]), []).append(bool(r.result and r.result.get("diverged")))
    return [f"{sum(who)} of {len(who)} runs of {a} on {w} diverged." for (a, w), who in counts.items() if any(who)]


def inexact(records: Iterable[Record]) -> list[str]:
    """Which runs went on elsewhere than they began, and so are not bit-identical to uninterrupted ones."""
    return [
        f"{r.path.name} was resumed with {', '.join(r.result['inexact'])}: not bit-identical to an uninterrupted run."
        for r in records
        if r.result and r.result.get("inexact")
    ]

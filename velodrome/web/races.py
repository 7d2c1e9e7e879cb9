"""Races of a folder as they go: versions, leaderboard, speed-ups with intervals and how these narrow, curves with ribbons over seeds.

Scores are those of `velodrome report`: the same choice of runs, the same bootstrap. Only finished runs count: one that is still going may be
about to miss its target, and to count those that already hit it would flatter whoever is fast or lost.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2s
from math import isfinite
from threading import Lock
from typing import Any

import numpy as np

from velodrome.bench.rules.studies import fastest
from velodrome.bench.score import Score, Trial, speedups, summary
from velodrome.records.read import Record
from velodrome.reports import collect
from velodrome.reports.race import Curve
from velodrome.reports.words import answer, times
from velodrome.web.folder import Folder
from velodrome.web.series import POINTS, Series, short, thinned

COLUMNS = {"steps": "t", "examples": "examples", "flops": "flops", "seconds": "seconds"}
SMALL = 2000  # draws of the intervals that show how they narrowed: their ends then vary by 3 %; the last ones have the report's 20,000
SEEDS = (2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)  # numbers of seeds at which the narrowing is shown
THIN = 8  # seeds of an algorithm that are drawn as lines of their own; the ribbon is over all
REST = 4  # times what a score took before it is computed again: at most a fifth of a core, however many runs finish
SHOWN = 40  # versions of a workload that are listed
ANSWERS = 64  # races kept in memory
BANDS = 512  # algorithms' curves kept in memory


def key(text: str) -> str:
    """A short name for an address: of a workload, of a version."""
    return blake2s(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


class Races:
    """The races in a folder. Every method may be called by any thread."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._trials: dict[str, tuple[Record, Trial | None]] = {}
        self._keys: dict[str, tuple[Record, str]] = {}
        self._chosen: dict[tuple[str, str], tuple[Any, list[str]]] = {}
        self._bands: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
        self._answers: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
        self._lock = Lock()  # one score at a time: two would only wait for each other

    def workloads(self) -> list[dict[str, Any]]:
        """Every workload with its number of runs, of those that are finished, running and diverged, and of algorithms."""
        found: dict[str, dict[str, Any]] = {}
        for s in list(self.folder.runs.values()):
            if not s.workload or not s.algorithm:
                continue
            w = found.setdefault(
                s.workload,
                {"id": key(s.workload), "name": s.workload, "runs": 0, "finished": 0, "running": 0, "algorithms": set(), "changed": 0.0},
            )
            w["runs"] += 1
            w["running"] += s.state == "running"
            w["finished"] += s.state not in ("running", "quiet")
            w["algorithms"].add(s.algorithm)
            w["changed"] = max(w["changed"], s.changed)
        return [{**w, "algorithms": len(w["algorithms"])} for _, w in sorted(found.items())]

    def race(self, workload: str, axis: str, reference: str, version: str) -> dict[str, Any] | None:
        """The race on the workload with this id, or over all of them ("all"); None if there is none. `version` and `reference` may be empty."""
        records, versions = self._records(workload, version)
        if records is None:
            return None
        state = self._state(records)
        asked = (workload, axis, reference, version)
        with self._lock:
            kept = self._answers.get(asked)
            now = time.monotonic()
            if kept is None or (kept["state"] != state and now > kept["until"]):
                kept = {"state": state, **self._race(records, axis, reference), "versions": versions}
                kept["until"] = time.monotonic() + REST * (time.monotonic() - now)
                self._answers[asked] = kept
                while len(self._answers) > ANSWERS:
                    self._answers.popitem(last=False)
        running = sum(not r.finished for r in records.values())
        told = {name: value for name, value in kept.items() if name not in ("state", "until")}
        return told | {"unfinished": running, "axis": axis, "stale": kept["state"] != state}

    def curves(self, workload: str, axis: str, version: str) -> dict[str, Any] | None:
        """Median over seeds with its range for each algorithm, of at most 300 points, and each seed's own curve, all over one cost."""
        records, _ = self._records(workload, version)
        if records is None or workload == "all":
            return None
        groups: dict[str, list[str]] = {}
        chosen = [records[id_] for id_ in self._drawn(workload, version, records)]
        ids = {id(r): id_ for id_, r in records.items()}
        for r in chosen:
            groups.setdefault(collect.named(r), []).append(ids[id(r)])
        first = chosen[0].recipe if chosen else {}
        goals = first.get("targets")
        return {
            "metric": str(first.get("metric", "validation loss")),
            "target": goals[-1] if isinstance(goals, list) and goals else None,
            "axis": axis,
            "algorithms": [{"algorithm": a, **self._band(members, axis)} for a, members in groups.items()],
        }

    def _records(self, workload: str, version: str) -> tuple[dict[str, Record] | None, list[dict[str, Any]]]:
        """Runs of a race, finished or not, by id, and the versions that there are of its workload."""
        summaries = [s for s in list(self.folder.runs.values()) if s.algorithm and s.workload]
        summaries.sort(key=lambda s: s.name)  # as the reports read them, whenever each was found
        chosen = [s for s in summaries if workload == "all" or key(s.workload) == workload]
        if not chosen:
            return None, []
        found = {s.id: r for s in chosen if (r := self.folder.known(s.id)) is not None}
        if workload == "all":
            return found, []
        groups: dict[str, list[Record]] = {}
        for id_, r in found.items():
            groups.setdefault(self._version(id_, r), []).append(r)
        order = sorted(groups, key=lambda v: (sum(r.finished for r in groups[v]), len(groups[v])), reverse=True)
        versions = [
            {
                "id": v,
                "runs": len(groups[v]),
                "finished": sum(r.finished for r in groups[v]),
                "code": str(groups[v][0].recipe.get("code"))[:7],
            }
            for v in order[:SHOWN]
        ]
        wanted = version if version in groups else order[0]
        members = set(map(id, groups[wanted]))
        return {id_: r for id_, r in found.items() if id(r) in members}, versions

    def _race(self, records: dict[str, Record], axis: str, reference: str) -> dict[str, Any]:
        fit = [r for id_, r in records.items() if r.finished and self._trial(id_, r) is not None]
        flawed = sum(r.finished for r in records.values()) - len(fit)
        notes = [f"{flawed} finished runs are left out: no time to target can be read from them."] if flawed else []
        chosen, dropped = collect.one_version(fit)
        ids = {id(r): id_ for id_, r in records.items()}
        trials = fastest([t for r in chosen if (t := self._trial(ids[id(r)], r)) is not None], axis)
        entrants = list(dict.fromkeys(t.algorithm for t in trials))
        notes += dropped + collect.diverged(chosen) + collect.inexact(chosen)
        base: dict[str, Any] = {"algorithms": entrants, "notes": notes[:20], "rows": [asdict(row) for row in summary(trials)]}
        if not entrants:
            return {**base, "reference": "", "answer": "No run has finished yet.", "cells": [], "overall": [], "narrowing": []}
        over = reference if reference in entrants else collect.REFERENCE if collect.REFERENCE in entrants else entrants[0]
        try:
            score = speedups(trials, over, axis)
        except ValueError as error:
            return {**base, "reference": over, "answer": str(error), "cells": [], "overall": [], "narrowing": []}
        return {
            **base,
            "reference": over,
            "answer": answer(score),
            "scope": score.overall[0].scope if score.overall else "",
            "cells": [asdict(s) | {"text": times(s)} for s in score.cells],
            "overall": [asdict(s) | {"text": times(s)} for s in score.overall],
            "narrowing": narrowing(trials, over, axis, score),
        }

    def _version(self, id_: str, record: Record) -> str:
        """What must be equal between runs that are compared, as a short name."""
        kept = self._keys.get(id_)
        if kept is None or kept[0] is not record:
            kept = record, key(next(iter(collect.grouped([record], *collect.SHARED))))
            self._keys[id_] = kept
        return kept[1]

    def _state(self, records: dict[str, Record]) -> tuple[Any, ...]:
        """What must change for a score to change: which runs there are, and when those that are finished were."""
        runs = self.folder.runs
        return tuple(sorted((id_, r.finished and id_ in runs and runs[id_].changed) for id_, r in records.items()))

    def _drawn(self, workload: str, version: str, records: dict[str, Record]) -> list[str]:
        """Ids of the runs that are drawn: of each algorithm its newest version, of each seed one run, finished or not."""
        state = self._state(records)
        kept = self._chosen.get((workload, version))
        if kept is None or kept[0] != state:
            sound = {id(r): id_ for id_, r in records.items() if isinstance(r.recipe.get("seed"), int)}
            chosen, _ = collect.one_version([r for id_, r in records.items() if id(r) in sound])
            kept = state, [sound[id(r)] for r in chosen]
            self._chosen[workload, version] = kept
        return kept[1]

    def _trial(self, id_: str, record: Record) -> Trial | None:
        """What a finished run measured, or None where nothing can be measured on it (as `collect.flaw` says why); read once."""
        kept = self._trials.get(id_)
        if kept is None or kept[0] is not record:
            kept = record, _measured(record, self.folder.series(id_))
            self._trials[id_] = kept
        return kept[1]

    def _band(self, members: Sequence[str], axis: str) -> dict[str, Any]:
        series = {id_: self.folder.series(id_) for id_ in members}
        state = {id_: self.folder.runs[id_] for id_ in members if id_ in self.folder.runs}
        asked = axis, tuple((id_, s.serial, s.n, state[id_].state if id_ in state else "") for id_, s in series.items())
        if (kept := self._bands.get(asked)) is not None:
            return kept
        drawn = {id_: (s.column(COLUMNS[axis]), s.column("valid")) for id_, s in series.items()}
        seeds = []
        for id_, (x, y) in list(drawn.items())[:THIN]:
            at = thinned(x, y, POINTS // 2)
            if id_ in state:
                seeds.append({"run": id_, "seed": state[id_].seed, "state": state[id_].state, "x": short(x[at]), "y": short(y[at])})
        over = {id_ for id_, s in state.items() if s.state not in ("running", "quiet")}
        found = {"seeds": seeds} | band([(x, y, id_ in over) for id_, (x, y) in drawn.items()])
        self._bands[asked] = found
        while len(self._bands) > BANDS:
            self._bands.popitem(last=False)
        return found


def _measured(record: Record, series: Series) -> Trial | None:
    recipe, goals = record.recipe, record.recipe.get("targets")
    named = isinstance(recipe.get("workload"), str) and isinstance(recipe.get("algorithm"), str) and isinstance(recipe.get("seed"), int)
    aimed = isinstance(goals, list) and goals and all(isinstance(g, int | float) and isfinite(g) for g in goals)
    steps = recipe.get("steps")
    if not (named and aimed and isinstance(steps, int) and steps > 0 and isinstance(record.result, dict) and series.whole):
        return None
    at, examples, flops, seconds, valid = (series.column(name).tolist() for name in (*COLUMNS.values(), "valid"))
    try:
        return collect.trial(record, Curve(recipe["workload"], recipe["algorithm"], recipe["seed"], at, examples, flops, seconds, valid))
    except (ValueError, TypeError, IndexError):
        return None


def band(curves: Sequence[tuple[np.ndarray, np.ndarray, bool]]) -> dict[str, list[Any]]:
    """Median, lowest and highest over seeds at each evaluation, of those that have come so far; `n` says how many.

    A seed that is over before the others, or whose value is not finite, ends the band: a median over the survivors would flatter.
    """
    length = min([len(y) for _, y, over in curves if over] or [max((len(y) for _, y, _ in curves), default=0)])
    xs, ys = (np.full((len(curves), length), np.nan) for _ in range(2))
    for k, (x, y, _) in enumerate(curves):
        m = min(length, len(y))
        xs[k, :m], ys[k, :m] = x[:m], y[:m]
        ys[k, m:] = np.nan
        if m and (bad := np.flatnonzero(~np.isfinite(y[:m]))).size:
            length = min(length, int(bad[0]))
    if not length or not len(curves):
        return {"x": [], "y": [], "low": [], "high": [], "n": []}
    xs, ys = xs[:, :length], ys[:, :length]
    middle, low, high, x = np.nanmedian(ys, 0), np.nanmin(ys, 0), np.nanmax(ys, 0), np.nanmedian(xs, 0)
    at = thinned(x, middle)
    n = np.isfinite(ys).sum(0)[at].tolist()
    return {"x": short(x[at]), "y": short(middle[at]), "low": short(low[at]), "high": short(high[at]), "n": n}


def narrowing(trials: Sequence[Trial], reference: str, axis: str, last: Score) -> list[dict[str, Any]]:
    """The overall speed-up of each algorithm from its first 2, 3, 4, … seeds, in the order of their numbers, which no result has chosen."""
    seeds = sorted({t.seed for t in trials})
    found = []
    for k in [k for k in SEEDS if k < len(seeds)]:
        part = [t for t in trials if t.seed in seeds[:k]]
        if any(t.algorithm == reference for t in part):
            found.append((k, speedups(part, reference, axis, resamples=SMALL)))
    found.append((len(seeds), last))
    return [
        {"algorithm": s.algorithm, "seeds": k, "speedup": s.speedup, "low": s.low, "high": s.high}
        for k, score in found
        for s in score.overall
        if s.speedup is not None and s.low is not None and s.high is not None
    ]

"""What the page asks for, as JSON-ready values: the table of runs, one run, curves of some, what differs between recipes, readings of a watch."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any

import numpy as np

from velodrome.records.encoding import compact
from velodrome.records.read import Record
from velodrome.records.tail import Tail, lines
from velodrome.web.folder import Folder, Summary
from velodrome.web.series import Series, finite, short, thinned

PAGE = 100  # runs of the table sent at once
TOGETHER = 24  # runs in one chart or one comparison
SORTS = ("name", "workload", "algorithm", "seed", "state", "step", "valid", "best", "seconds", "changed")
WATCHED = 40  # runs whose readings are kept in memory


def table(folder: Folder, asked: Mapping[str, str]) -> dict[str, Any]:
    """One page of the runs: `q` (words that name, workload or algorithm must hold), `state`, `workload`, `sort`, `order`, `offset`.

    Runs without a value come last in both orders.
    """
    everything = list(folder.runs.values())
    words = asked.get("q", "").lower().split()
    state, workload = asked.get("state", ""), asked.get("workload", "")
    chosen = [s for s in everything if _fits(s, words, state, workload)]
    sort = asked["sort"] if asked.get("sort") in SORTS else "changed"
    down = asked.get("order", "desc" if sort == "changed" else "asc") == "desc"
    known = [s for s in chosen if getattr(s, sort) is not None]
    known.sort(key=lambda s: s.name)
    known.sort(key=lambda s: getattr(s, sort), reverse=down)
    chosen = known + [s for s in chosen if getattr(s, sort) is None]
    start = max(0, min(_whole(asked.get("offset")), len(chosen) - 1)) // PAGE * PAGE
    states: dict[str, int] = {}
    for s in everything:
        states[s.state] = states.get(s.state, 0) + 1
    return {
        "runs": [vars(s) for s in chosen[start : start + PAGE]],
        "offset": start,
        "page": PAGE,
        "matching": len(chosen),
        "total": len(everything),
        "states": dict(sorted(states.items())),
        "workloads": sorted({s.workload for s in everything if s.workload}),
        "sort": sort,
        "order": "desc" if down else "asc",
        **progress(folder),
    }


def progress(folder: Folder) -> dict[str, Any]:
    """How much of the folder has been read."""
    return {"folder": folder.root.name or str(folder.root), "listed": folder.listed, "read": folder.read, "error": folder.error}


def run(folder: Folder, id_: str) -> dict[str, Any] | None:
    """Everything about one run but its curves; None for an unknown id."""
    record, about = folder.record(id_), folder.runs.get(id_)
    if record is None or about is None:
        return None
    damaged = folder.damaged(id_)
    problems = record.problems if record.finished else [f"{damaged} lines of its log are damaged."] if damaged else []
    columns = folder.series(id_).names
    return {
        "run": asdict(about),
        "recipe": flat(record.recipe),
        "result": flat(record.result or {}),
        "sessions": [flat(session) for session in record.environment],
        "problems": [text.replace(str(folder.root), folder.root.name or ".") for text in problems],
        "columns": columns,
        "watched": (record.path / "watch.jsonl").exists(),
    }


def curves(folder: Folder, ids: Sequence[str], x: str, y: str) -> dict[str, Any]:
    """Column `y` over column `x` of some runs, of at most 300 points each, and the numeric columns that they have; unknown ids are passed over."""
    found, columns = [], dict[str, None]()
    for id_ in list(dict.fromkeys(ids))[:TOGETHER]:
        about = folder.runs.get(id_)
        if about is None:
            continue
        series = folder.series(id_)
        columns.update(dict.fromkeys(series.names))
        found.append({"run": asdict(about), **_points(series, x, y)})
    return {"curves": found, "columns": list(columns), "x": x, "y": y}


def difference(folder: Folder, ids: Sequence[str]) -> dict[str, Any]:
    """The recipes of some runs beside each other: every key with the value of each run, and whether they differ."""
    known = [(id_, r) for id_ in list(dict.fromkeys(ids))[:TOGETHER] if (r := folder.known(id_)) is not None]
    recipes = [flat(r.recipe) for _, r in known]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    rows = [{"name": name, "values": [recipe.get(name) for recipe in recipes]} for name in names]
    return {
        "runs": [asdict(folder.runs[id_]) for id_, _ in known if id_ in folder.runs],
        "rows": [row | {"same": len(set(row["values"])) == 1} for row in rows],
    }


def flat(value: Any, name: str = "") -> dict[str, str]:
    """A tree as one level, keys joined by dots, values as text: {"settings.lr": "0.01"}. Lists stay together."""
    if isinstance(value, Mapping) and value:
        return {key: text for part, item in value.items() for key, text in flat(item, f"{name}.{part}" if name else str(part)).items()}
    if isinstance(value, Mapping):
        return {name: "{}"} if name else {}
    return {name: value if isinstance(value, str) else compact(finite(value))}


class Readings:
    """watch.jsonl of the runs that somebody looks at, read as it grows. Any thread may ask."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._kept: OrderedDict[str, tuple[Record, Tail, dict[str, list[dict[str, Any]]]]] = OrderedDict()
        self._lock = Lock()

    def of(self, id_: str, name: str) -> dict[str, Any] | None:
        """The last value of every reading with its unit, and the history of the one called `name` (the first, if it is none)."""
        record = self.folder.known(id_)
        if record is None:
            return None
        with self._lock:
            by_name = self._read(id_, record)
            names = sorted(by_name)
            chosen = name if name in by_name else names[0] if names else ""
            rows = by_name.get(chosen, [])
            last = [{"name": n, **{k: by_name[n][-1].get(k) for k in ("step", "value", "low", "high", "unit", "note")}} for n in names]
        steps, values = (np.array([_float(r.get(k)) for r in rows]) for k in ("step", "value"))
        at = thinned(steps, values)
        ends = {end: short(np.array([_float(rows[i].get(end)) for i in at])) for end in ("low", "high")}
        unit = str(rows[-1].get("unit") or "") if rows else ""
        return {"last": last, "name": chosen, "unit": unit, "x": short(steps[at]), "y": short(values[at]), **ends}

    def _read(self, id_: str, record: Record) -> dict[str, list[dict[str, Any]]]:
        kept = self._kept.pop(id_, None)
        if kept is None or kept[0].path != record.path:
            kept = record, Tail(str(record.path / "watch.jsonl"), lines), {}
        _, tail, by_name = kept
        more = True
        while more:
            rows, anew = tail.read()
            if anew:
                by_name.clear()
            for row in rows:
                if isinstance(row.get("name"), str) and isinstance(row.get("step"), int):
                    by_name.setdefault(row["name"], []).append(row)
            more = tail.behind
        self._kept[id_] = kept
        while len(self._kept) > WATCHED:
            self._kept.popitem(last=False)
        return by_name


def _points(series: Series, x: str, y: str) -> dict[str, Any]:
    across, up = series.column(x), series.column(y)
    at = thinned(across, up)
    return {"x": short(across[at]), "y": short(up[at]), "rows": series.n}


def _fits(s: Summary, words: Sequence[str], state: str, workload: str) -> bool:
    if (state and s.state != state) or (workload and s.workload != workload):
        return False
    if not words:
        return True
    text = f"{s.name} {s.workload} {s.algorithm} s{s.seed}".lower()
    return all(word in text for word in words)


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else 0


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")

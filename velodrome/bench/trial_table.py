"""Anybody's table of (algorithm, workload, seed, trial, cost, metric) as trials: which column is which is guessed, said, and overruled by name.

A row is a trial and its cost to the target (empty, infinite or negative: missed), or one evaluation of a run, whose hit is then interpolated
(`hitting.py`). Of several trials of one (algorithm, workload, seed) the cheapest counts, as in AlgoPerf's external tuning; all of them stay in `pools`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, isfinite
from typing import Any

from velodrome.bench.hitting import time_to_target
from velodrome.bench.score import Trial

Table = Mapping[str, Sequence[Any]]

NAMES = {
    "algorithm": ("algorithm", "optimizer", "submission", "method", "recipe", "solver", "entrant", "record", "name", "description"),
    "workload": ("workload", "task", "problem", "testproblem", "objective", "dataset", "benchmark", "track"),
    "seed": ("seed", "random_seed", "rng_seed", "study", "replica", "repeat", "repetition", "run", "run_id", "id"),
    "trial": ("trial", "config", "configuration", "config_id", "point"),
    "metric": ("valid", "val_loss", "valid_loss", "validation_loss", "validation", "val", "metric", "value", "loss"),
    "reached": ("reached", "hit", "solved", "success", "target_reached"),
    "target": ("target", "goal", "validation_target"),
    "budget": ("budget", "limit", "max_steps", "total_steps"),
}
PAIRED = ("seed", "random_seed", "rng_seed")  # names under which one number means the same start for every algorithm
COSTS = {
    "steps": ("steps", "step", "hit_step", "global_step", "iteration", "iterations", "updates", "t"),
    "examples": ("examples", "samples", "hit_examples"),
    "flops": ("flops", "flop", "hit_flops"),
    "seconds": ("seconds", "hit_seconds", "hit_score_s", "train_time_s", "time", "time_s", "runtime", "duration"),
    "cost": ("cost",),
}
TO = re.compile(r"^(steps|examples|flops|seconds|time|cost)_to_.+$")


@dataclass(frozen=True)
class Columns:
    """Which column is what; "" for one that is not there. `cost` may name several columns by the axis they are."""

    algorithm: str = ""
    workload: str = ""
    seed: str = ""
    trial: str = ""
    metric: str = ""
    reached: str = ""
    target: str = ""
    budget: str = ""
    cost: Mapping[str, str] = field(default_factory=dict)

    def told(self) -> str:
        """In words, for the person to check."""
        one = [f"{what}: {name}" for what in NAMES if (name := getattr(self, what))]
        return ", ".join([*one, *(f"{axis}: {name}" for axis, name in self.cost.items())])


@dataclass(frozen=True)
class Reading:
    """`trials` one for each (workload, algorithm, seed); `pools` the costs of all trials of (workload, algorithm), infinite for a miss; the `budget` of
    each workload, by axis; `paired` whether a seed means the same start for every algorithm; `columns` as read, and notes on what was assumed."""

    trials: list[Trial]
    pools: dict[tuple[str, str], dict[str, list[float]]]
    budget: dict[str, dict[str, float]]
    paired: bool
    columns: Columns
    notes: list[str]


def guess(table: Table, chosen: Columns | None = None) -> Columns:
    """The columns that were `chosen`, the others by their names; ValueError that lists the columns where the algorithm or a cost is missing."""
    chosen = chosen or Columns()
    for name in (*(getattr(chosen, what) for what in NAMES), *chosen.cost.values()):
        if name and name not in table:
            raise ValueError(f"there is no column {name!r}: there are {', '.join(table)}.")
    low = {name.lower().strip(): name for name in table}
    taken = set(chosen.cost.values())
    found = {}
    for what, names in NAMES.items():
        fit = (low[n] for n in names if n in low and low[n] not in taken)
        if what in ("algorithm", "workload"):
            fit = (name for name in fit if not all(_truth(v) is not None and not isinstance(v, float) for v in table[name]))  # yes or no
        found[what] = getattr(chosen, what) or next(fit, "")
        taken.add(found[what])
    cost = dict(chosen.cost)
    for axis, names in {} if cost else COSTS.items():
        named = next((name for n, name in low.items() if (m := TO.match(n)) and m[1].replace("time", "seconds") == axis), None)
        named = named or next((low[n] for n in names if n in low and low[n] not in taken), None)
        if named:
            cost[axis] = named
    if not found["algorithm"] or not cost:
        lack = "algorithm" if not found["algorithm"] else "cost"
        raise ValueError(f"no column is known as the {lack} among {', '.join(table)}: name it with --{lack}-column.")
    return Columns(**found, cost=cost)


def read(
    table: Table, chosen: Columns | None = None, target: float | None = None, budget: float | None = None, rising: bool = False
) -> Reading:
    """The trials of a table {column: values}. `target` overrules the table's, `budget` is in the first cost, `rising`: higher metrics are better.

    ValueError for columns that cannot be told, several rows for what should be one trial, or curves without a target.
    """
    columns = guess(table, chosen)
    notes = [f"Read as {columns.told()}."]
    groups: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    size = len(next(iter(table.values())))
    cells: dict[tuple[str, str], int] = defaultdict(int)
    for i in range(size):
        algorithm, workload = _text(table, columns.algorithm, i), _text(table, columns.workload, i) or "all"
        seed = _text(table, columns.seed, i)
        if not columns.seed and not columns.trial and not columns.metric:
            seed = str(cells[algorithm, workload])  # every row a run of its own
            cells[algorithm, workload] += 1
        groups[algorithm, workload, seed, _text(table, columns.trial, i)].append(i)
    curves = bool(columns.metric) and any(len(rows) > 1 for rows in groups.values())
    if not curves and (several := next((key for key, rows in groups.items() if len(rows) > 1), None)):
        raise ValueError(
            f"{' '.join(filter(None, several))} has several rows: name what tells them apart with --seed-column or --trial-column."
        )
    limits = _limits(table, columns, groups, budget)
    made = _Maker(table, columns, target, rising, limits)
    found: dict[tuple[str, str, str], list[Trial]] = defaultdict(list)
    for (algorithm, workload, seed, _), rows in groups.items():
        found[workload, algorithm, seed].append(made.curve(workload, algorithm, rows) if curves else made.row(workload, algorithm, rows[0]))
    if not columns.budget and budget is None and any(not t.reached for ts in found.values() for t in ts):
        notes.append("No budget is told: a miss counts as the largest cost seen on its workload.")
    trials, pools = _cheapest(found, next(iter(columns.cost)))
    if len(trials) < sum(map(len, found.values())):
        notes.append(
            f"Of several trials of a seed the cheapest counts: {sum(map(len, found.values())):,} trials, {len(trials):,} of them used."
        )
    paired = columns.seed.lower() in PAIRED
    if not paired:
        notes.append("Runs are not paired: no column is a seed that algorithms share.")
    return Reading(trials, pools, limits, paired, columns, notes)


@dataclass(frozen=True)
class _Maker:
    """Rows to trials."""

    table: Table
    columns: Columns
    target: float | None
    rising: bool
    limits: dict[str, dict[str, float]]

    def row(self, workload: str, algorithm: str, i: int) -> Trial:
        costs = {axis: number(self.table[name][i]) for axis, name in self.columns.cost.items()}
        told = _truth(self.table[self.columns.reached][i]) if self.columns.reached else None
        metric, goal = self._metric(i), self._goal(i)
        reached = told if told is not None else True
        if told is None and metric is not None and goal is not None:
            reached = metric >= goal if self.rising else metric <= goal
        reached = reached and any(0 <= c < inf for c in costs.values())
        own = self._own(workload, i)
        spent = {a: c if 0 <= c < inf and reached else own.get(a, self.limits[workload].get(a, inf)) for a, c in costs.items()}
        return Trial(workload, algorithm, 0, reached, {a: c for a, c in spent.items() if isfinite(c)}, metric)

    def curve(self, workload: str, algorithm: str, rows: Sequence[int]) -> Trial:
        first = next(iter(self.columns.cost))
        rows = sorted(
            (i for i in rows if self.table[self.columns.metric][i] is not None),
            key=lambda i: number(self.table[self.columns.cost[first]][i]),
        )
        goal = self._goal(rows[-1]) if rows else None
        if goal is None:
            raise ValueError(f"{algorithm} on {workload} is a curve: say what it is to reach with --target, or in a column target.")
        costs = {axis: [number(self.table[name][i]) for i in rows] for axis, name in self.columns.cost.items()}
        whole = {
            axis: c for axis, c in costs.items() if axis == first or (all(0 <= x < inf for x in c) and all(a <= b for a, b in pairwise(c)))
        }
        values = [number(self.table[self.columns.metric][i], inf) for i in rows]
        hit = time_to_target(whole, values, goal, {first: self._own(workload, rows[-1])[first]}, not self.rising)
        return Trial(workload, algorithm, 0, hit.reached, hit.cost, values[-1] if isfinite(values[-1]) else None, hit.at_start)

    def _own(self, workload: str, i: int) -> dict[str, float]:
        """The budget of the row itself, in the first cost; that of its workload where it has none."""
        first = next(iter(self.columns.cost))
        told = number(self.table[self.columns.budget][i]) if self.columns.budget else inf
        return self.limits[workload] | ({first: told} if isfinite(told) else {})

    def _metric(self, i: int) -> float | None:
        x = number(self.table[self.columns.metric][i]) if self.columns.metric else inf
        return x if isfinite(x) else None

    def _goal(self, i: int) -> float | None:
        if self.target is not None or not self.columns.target:
            return self.target
        x = number(self.table[self.columns.target][i])
        return x if isfinite(x) else None


def _limits(
    table: Table, columns: Columns, groups: Mapping[tuple[str, str, str, str], list[int]], budget: float | None
) -> dict[str, dict[str, float]]:
    """The largest cost of each workload by axis; in the first one the budget, where it is told."""
    limits: dict[str, dict[str, float]] = defaultdict(dict)
    first = next(iter(columns.cost))
    for (_, workload, _, _), rows in groups.items():
        own = limits[workload]
        for axis, name in columns.cost.items():
            own[axis] = max([own.get(axis, 0.0), *(c for i in rows if isfinite(c := number(table[name][i])))])
        if columns.budget and (told := [x for i in rows if isfinite(x := number(table[columns.budget][i]))]):
            own[first] = max(own[first], *told)
    return {w: own | ({first: budget} if budget is not None else {}) for w, own in limits.items()}


def _cheapest(
    found: Mapping[tuple[str, str, str], list[Trial]], axis: str
) -> tuple[list[Trial], dict[tuple[str, str], dict[str, list[float]]]]:
    """The cheapest trial of each seed, seeds as numbers, and all costs."""
    trials: list[Trial] = []
    pools: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seeds: dict[str, int] = {}
    for (workload, algorithm, seed), several in found.items():
        number_ = seeds.setdefault(seed, len(seeds))
        best = min(several, key=lambda t: (not t.reached, t.cost.get(axis, inf)))
        trials.append(replace(best, seed=number_))
        for t in several:
            for a, c in t.cost.items():
                pools[workload, algorithm][a].append(c if t.reached else inf)
    return trials, {key: dict(costs) for key, costs in pools.items()}


def number(x: Any, missing: float = inf) -> float:
    """A cell as a number; `missing` for what is empty, text or NaN."""
    try:
        value = float(x)
    except (TypeError, ValueError):
        return missing
    return value if value == value else missing


def _truth(x: Any) -> bool | None:
    """A cell as yes or no; None if it is neither."""
    if isinstance(x, bool):
        return x
    if isinstance(x, float) and x in (0.0, 1.0):
        return bool(x)
    return {"true": True, "yes": True, "false": False, "no": False}.get(str(x).lower())


def _text(table: Table, name: str, i: int) -> str:
    """A cell as a name: whole numbers without their decimals."""
    x = table[name][i] if name else ""
    return f"{x:g}" if isinstance(x, float) else "" if x is None else str(x)

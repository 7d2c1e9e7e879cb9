"""A ladder: a workload's model at several sizes, each trained to several horizons at several learning rates, as populations.

What a law of size and data is fitted to. Sizes are those of `Workload.sizes`; horizons double from the shortest to the longest, the same for all
sizes; the learning rate of the recipe is tried at a half, once, twice and four times its value, and a parabola in its logarithm through the best
and its neighbours gives the loss at the best rate. How long the horizons are follows from the budget and from what a gradient costs here; it
is written down once, so that the same command goes on where it was stopped.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from velodrome.bench.protocol import Entry, Interrupted, Live, Setting
from velodrome.bench.protocol import drive as alone
from velodrome.bench.workload import Data, Workload
from velodrome.population.members import Alone, folder, identity
from velodrome.population.train import drive
from velodrome.recipes.parse import parse, split
from velodrome.recipes.space import spelled
from velodrome.records.disk import replace as write
from velodrome.records.read import read

RATES = (0.5, 1.0, 2.0, 4.0)  # of the recipe's learning rate: smaller models and shorter runs than it was set for take larger ones
HORIZONS = (1, 2, 4)
EVALUATIONS = 50


@dataclass(frozen=True)
class Rung:
    """One size at one horizon: the entries of its population, one for each rate and seed."""

    width: int
    params: int
    steps: int
    seconds: float  # expected
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Row:
    """What a rung found: the loss at the best rate, in the metric's unit; `edge` says that the best rate tried was the lowest or highest one.

    `params` counts all weights but the embedding's, which costs no FLOPs; `flops` is one run's.
    """

    width: int
    params: int
    tokens: float
    flops: float
    steps: int
    batch: int
    loss: float
    lr: float
    edge: bool
    losses: tuple[tuple[float, float], ...]  # (rate, loss), mean over seeds; a rate at which a seed diverged is left out
    seconds: float


def ladder(task: Workload, data: Data, algorithm: str, budget: float, root: Path, setting: Setting, seeds: int = 1) -> list[Rung]:
    """The rungs, cheapest first, that fit into `budget` seconds; ValueError for a workload without sizes, or a budget that is too short."""
    if len(task.sizes) < 3:
        raise ValueError(f"workload {task.name!r} has {len(task.sizes)} sizes and a ladder needs 3: give it sizes={{width: model, …}}.")
    name, options = split(algorithm)
    rate = dict(parse(algorithm).settings).get("lr")
    if not isinstance(rate, float) or rate <= 0:
        raise ValueError(f"{algorithm!r} has no learning rate to vary: take one that has, such as adamw.")
    recipes = [parse(spelled(name, {**options, "lr": float(f"{rate * factor:.3g}")})) for factor in RATES]
    known = root / "ladder.json"
    asked = {"workload": task.name, "algorithm": algorithm, "budget": budget, "seeds": seeds, "sizes": sorted(task.sizes)}
    kept = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    if kept and kept["asked"] != asked:
        raise ValueError(f"{root} holds the ladder of another command ({kept['asked']}): give another --out folder.")
    if not kept:
        prices = {width: price(task, data, width, recipes[0], setting) for width in sorted(task.sizes)}
        widths, steps = horizon(prices, budget, len(recipes) * seeds)
        kept = {"asked": asked, "prices": {str(w): prices[w] for w in widths}, "steps": steps}
        root.mkdir(parents=True, exist_ok=True)
        write(known, json.dumps(kept, indent=1).encode())
    rungs = []
    for width, (params, seconds) in ((int(w), p) for w, p in kept["prices"].items()):
        for multiple in HORIZONS:
            steps = kept["steps"] * multiple
            w = replace(task, name=f"{task.name}-w{width}", model=task.sizes[width], steps=steps, evaluations=EVALUATIONS)
            entries = tuple(Entry(w, data, recipe, seed, setting) for recipe in recipes for seed in range(seeds))
            rungs.append(Rung(width, params, steps, seconds * steps * len(entries), entries))
    return sorted(rungs, key=lambda r: r.params * r.steps)


def price(task: Workload, data: Data, width: int, recipe: Any, setting: Setting) -> tuple[int, float]:
    """(parameters without embeddings, seconds of a step alone): the median of seven steps after two.

    Wall clock or the process's own, whichever is less: on a busy machine the ladder of a budget is that of an idle one, and takes longer.
    """
    live = Live(Entry(replace(task, model=task.sizes[width]), data, recipe, 0, setting))
    embeddings = sum(p.numel() for m in live.model.modules() if type(m).__name__ == "Embedding" for p in m.parameters())
    taken, began = [], (time.perf_counter(), time.process_time())
    for step in live.steps():
        now = time.perf_counter(), time.process_time()
        taken.append(min(now[0] - began[0], now[1] - began[1]))
        began = now
        if step.t >= 9:
            break
    return sum(p.numel() for p in live.model.parameters()) - embeddings, statistics.median(taken[2:])


def horizon(prices: Mapping[int, tuple[int, float]], budget: float, members: int) -> tuple[list[int], int]:
    """(widths, steps of the shortest horizon) that the budget pays for: all widths if they can have 100 steps, else fewer, the smallest three at least.

    Steps come in multiples of the evaluations, which are priced at a sixth of the steps.
    """
    widths = sorted(prices)
    for count in range(len(widths), 2, -1):
        one = sum(prices[w][1] for w in widths[:count]) * sum(HORIZONS) * members * 7 / 6
        steps = int(budget / one / EVALUATIONS) * EVALUATIONS
        if steps >= 2 * EVALUATIONS or (count == 3 and steps):
            return widths[:count], steps
    raise ValueError(f"the budget of {budget:.0f} s is too short for a ladder here: it needs at least {one * EVALUATIONS:.0f} s.")


def climb(
    rungs: Sequence[Rung], root: Path, environment: dict[str, Any], stop: Callable[[], bool]
) -> Iterator[tuple[Rung, str, dict[str, Any]]]:
    """Train every rung, what is finished is not repeated; yields (rung, folder, state) as it goes. Raises Interrupted (saved) once `stop()`."""
    for rung in rungs:
        try:
            for news in drive(rung.entries, root, environment, stop):
                for name, state in news:
                    yield rung, name, state
        except Alone:
            for entry in rung.entries:
                for state in alone(entry, root, environment, stop):
                    yield rung, entry.folder, state
        if stop():
            raise Interrupted


def row(rung: Rung, root: Path) -> Row:
    """What the finished runs of a rung say. ValueError where all of them diverged."""
    found: dict[float, list[float]] = {}
    results = []
    for entry in rung.entries:
        home = root / folder(entry, identity(entry, None, rung.entries))
        result = read(home if home.exists() else root / entry.folder).result or {}
        results.append(result)
        loss = float("nan") if result.get("diverged") else float(result["valid"])
        found.setdefault(float(dict(entry.recipe.settings)["lr"]), []).append(loss)
    points = [(rate, float(np.mean(losses))) for rate, losses in sorted(found.items()) if np.isfinite(losses).all()]
    if not points:
        raise ValueError(f"every run of width {rung.width} over {rung.steps} steps diverged: give the algorithm a smaller learning rate.")
    rate, loss, edge = best(points)
    whole = max(results, key=lambda r: r["steps"])
    tokens = float(whole["tokens"] or whole["examples"])
    seconds = sum(r["seconds"] for r in results)
    batch = rung.entries[0].workload.batch_size
    return Row(rung.width, rung.params, tokens, float(whole["flops"]), rung.steps, batch, loss, rate, edge, tuple(points), seconds)


def best(points: Sequence[tuple[float, float]]) -> tuple[float, float, bool]:
    """(rate, loss, whether it is at the edge): the vertex of the parabola through the best point and its neighbours, over the logarithm of the rate."""
    x, y = np.log([p[0] for p in points]), np.array([p[1] for p in points])
    k = int(np.argmin(y))
    if k in (0, len(y) - 1):
        return float(points[k][0]), float(y[k]), True
    a, b, c = np.polyfit(x[k - 1 : k + 2] - x[k], y[k - 1 : k + 2], 2)
    return float(np.exp(x[k] - b / (2 * a))), float(c - b * b / (4 * a)), False

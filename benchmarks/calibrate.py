"""One learning rate per algorithm, the same on all workloads, and targets by a rule: how the numbers in recipes/ and workloads/ were chosen.

    python -m benchmarks.calibrate adamw nadamw muon lion sgd adam --on digits stdlib-gpt
    python -m benchmarks.calibrate --targets --on digits stdlib-gpt --seeds 5

Every algorithm gets as many rates (a geometric grid around its centre), seeds and steps as every other. A trial costs the steps to the hard
target, interpolated as in a race; the best rate has the fewest misses and then the lowest geometric mean, over workloads and seeds, of that
cost divided by AdamW's at its own best rate there. A trial that is past 1.5 times the best cost of its own algorithm on the workload is
stopped, and counts as a miss at the step where it was stopped: a lower bound. Evaluation order is from the middle of the grid outwards.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from velodrome.bench.catalog import workload
from velodrome.bench.hitting import time_to_target
from velodrome.bench.protocol import evaluate, seed_everything
from velodrome.bench.targets import REFERENCE, proposed
from velodrome.bench.workload import Data, Workload
from velodrome.gradients.backward import backward
from velodrome.recipes.parse import parse
from velodrome.train import train

CENTRES = {
    **{"adamw": 1.2e-2, "nadamw": 1.2e-2, "adam": 1.2e-2, "muon": 1.2e-2, "lion": 2.4e-3, "sgd": 0.2},  # of a pilot on digits
    **{
        "soap": 1.2e-2,
        "shampoo": 1.2e-2,
        "ademamix": 1.2e-2,
        "adamp": 1.2e-2,
        "stable_spam": 1.2e-2,
        "rotational_adamw": 1.2e-2,
    },  # AdamW's
    **{"lamb": 2.4e-2, "novograd": 2.4e-2, "schedule_free": 2e-2, "prodigy": 1.0},
}
PATIENCE = 1.5  # times the algorithm's best cost on the workload


@dataclass(frozen=True)
class Trial:
    """One run: `steps` to the hard target, or where it ended without (`hit` is False). `seconds` are the training's alone, `total` all."""

    workload: str
    algorithm: str
    lr: float
    seed: int
    steps: float
    hit: bool
    best: float
    seconds: float
    total: float
    curve: tuple[tuple[int, float], ...]


def run(w: Workload, data: Data, algorithm: str, lr: float | None, seed: int, limit: float = math.inf, to_target: bool = True) -> Trial:
    """Train until the hard target (if `to_target`), until `limit` steps, or to the end of the budget; the schedule is always the budget's."""
    recipe = parse(algorithm if lr is None else f"{algorithm}(lr={lr})")
    started = time.process_time()
    seed_everything(seed)
    model = w.model()
    optimizer = recipe.optimizer(model)
    rate = float(optimizer.param_groups[0]["lr"])
    assert recipe.schedule is not None
    schedule = recipe.schedule(rate, w.steps)
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    steps = train(
        backward(model, w.loss), optimizer, data.stream(seed), lambda t: schedule(min(t, w.steps - 1)), guard=False, clock=time.process_time
    )
    for step in steps:
        seconds = step.seconds
        if step.t % w.every == 0 or step.diverged:
            curve.append((step.t, evaluate(model, {"valid": w.metric}, data.valid, optimizer)["valid"]))
            if step.diverged or step.t >= min(limit, w.steps) or (to_target and w.targets and curve[-1][1] <= w.targets[-1]):
                break
    steps_at, values = zip(*curve, strict=True)
    hit = time_to_target({"steps": steps_at}, values, w.targets[-1], {"steps": w.steps}) if w.targets else None
    finite = [v for v in values if math.isfinite(v)]
    cost = hit.cost["steps"] if hit and hit.reached else float(steps_at[-1])
    return Trial(
        w.name,
        algorithm,
        rate,
        seed,
        cost,
        bool(hit and hit.reached),
        min(finite),
        seconds,
        time.process_time() - started,
        tuple(curve) if not to_target else (),
    )


def grid(centre: float, points: int, factor: float) -> list[float]:
    """`points` rates, the middle one `centre`, to two digits; in the order of their distance from it."""
    powers = sorted(range(-(points // 2), points - points // 2), key=lambda k: (abs(k), k))
    return [float(f"{centre * factor**k:.2g}") for k in powers]


def search(w: Workload, algorithm: str, rates: Iterable[float], seeds: int) -> Iterator[Trial]:
    """All trials of one algorithm on one workload."""
    data, best = w.load(), math.inf
    for lr, seed in itertools.product(rates, range(seeds)):
        trial = run(w, data, algorithm, lr, seed, PATIENCE * best)
        best = min(best, trial.steps if trial.hit else math.inf)
        print(
            f"{w.name:16}{algorithm:8} lr {lr:<8g} seed {seed}  {trial.steps:6.1f} steps"
            + ("" if trial.hit else f"  missed ({trial.best:.3f})")
            + f"  {trial.total:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        yield trial


def mean(values: Iterable[float]) -> float:
    """Geometric mean."""
    return statistics.geometric_mean(list(values))


def table(trials: list[Trial]) -> list[dict[str, Any]]:
    """A row per algorithm and rate: geometric means of the cost relative to the reference at its best rate on each workload, and misses."""
    names = list(dict.fromkeys(t.workload for t in trials))
    cells: dict[tuple[str, float], dict[str, list[Trial]]] = {}
    for t in trials:
        cells.setdefault((t.algorithm, t.lr), {}).setdefault(t.workload, []).append(t)
    known = [key for key in cells if key[0] == REFERENCE] or list(cells)
    scale = {
        name: min((sum(not t.hit for t in cells[key][name]), mean(max(t.steps, 1) for t in cells[key][name])) for key in known)[1]
        for name in names
    }
    rows: list[dict[str, Any]] = []
    for (algorithm, lr), cell in cells.items():
        relative = {name: mean(max(t.steps, 1) / scale[name] for t in cell[name]) for name in names}
        missed = sum(not t.hit for found in cell.values() for t in found)
        rows.append({"algorithm": algorithm, "lr": lr, **relative, "mean": mean(relative.values()), "missed": missed})
    rows.sort(key=lambda row: (row["algorithm"], row["lr"]))
    for algorithm in {a for a, _ in cells}:
        own = [row for row in rows if row["algorithm"] == algorithm]
        best = min(own, key=lambda row: (row["missed"], row["mean"]))
        for row in own:
            row["chosen"] = row is best
            row["edge"] = row is best and row in (own[0], own[-1])
    return rows


def targets(w: Workload, seeds: int) -> dict[str, Any]:
    """Proposed targets of one workload from whole runs of the reference (`bench.targets.proposed`), and how far its seeds lie apart at the hard one."""
    data = w.load()
    trials = []
    for seed in range(seeds):
        trials.append(run(w, data, REFERENCE, None, seed, to_target=False))
        last = trials[-1]
        print(
            f"{w.name} seed {seed}: best {last.best:.4f}, {last.seconds:.1f} s + {last.total - last.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )

    found = proposed([([t for t, _ in trial.curve], [v for _, v in trial.curve]) for trial in trials], w.steps)
    hits = [_steps(trial, found[-1], w.steps) for trial in trials]
    reached = [h for h in hits if h is not None]
    return {
        "workload": w.name,
        "targets": found,
        "present": w.targets,
        "seeds": seeds,
        "reached": len(reached),
        "steps": w.steps,
        "steps_to_target": reached,
        "median_share": statistics.median(reached) / w.steps,
        "spread": statistics.stdev(map(math.log, reached)) if len(reached) > 1 else None,
        "final": [trial.best for trial in trials],
        "cpu_seconds": statistics.median(t.seconds for t in trials),
        "cpu_seconds_evaluation": statistics.median(t.total - t.seconds for t in trials),
    }


def _steps(trial: Trial, target: float, budget: int) -> float | None:
    steps, values = zip(*trial.curve, strict=True)
    hit = time_to_target({"steps": steps}, values, target, {"steps": budget})
    return hit.cost["steps"] if hit.reached else None


def show_rates(rows: list[dict[str, Any]]) -> None:
    names = [key for key in rows[0] if key not in ("algorithm", "lr", "mean", "missed", "chosen", "edge")]
    print(f"| algorithm | lr | {' | '.join(names)} | mean | missed | |\n|---|---:|{'---:|' * len(names)}---:|---:|---|")
    for row in rows:
        note = ("chosen, at the edge of the grid" if row["edge"] else "chosen") if row["chosen"] else ""
        bound = ">" if row["missed"] else ""
        values = " | ".join(f"{row[name]:.3f}" for name in names)
        print(f"| {row['algorithm']} | {row['lr']:g} | {values} | {bound}{row['mean']:.3f} | {row['missed']} | {note} |")


def show_targets(found: list[dict[str, Any]]) -> None:
    print(
        "| workload | easy | medium | hard | reached | median share of the budget | seed-to-seed SD of log steps | CPU s training + evaluation |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for f in found:
        spread = "" if f["spread"] is None else f"{100 * f['spread']:.0f} %"
        print(
            f"| {f['workload']} | {' | '.join(f'{t:g}' for t in f['targets'])} | {f['reached']}/{f['seeds']} | {100 * f['median_share']:.0f} % "
            f"| {spread} | {f['cpu_seconds']:.1f} + {f['cpu_seconds_evaluation']:.1f} |"
        )


def main() -> int:
    """Print the table on stdout, progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", help=f"any of {', '.join(CENTRES)}, or any algorithm with --lrs")
    parser.add_argument("--on", nargs="+", default=["digits", "stdlib-gpt"], help="workloads")
    parser.add_argument("--lrs", nargs="+", type=float, help="these rates for every algorithm, instead of a grid around its centre")
    parser.add_argument("--points", type=int, default=4, help="rates per algorithm")
    parser.add_argument("--factor", type=float, default=2.0, help="between two rates")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--targets", action="store_true", help="propose targets instead, from the reference recipe as it ships")
    parser.add_argument("--json", action="store_true", help="print JSON with every trial instead of the table")
    parser.add_argument("--read", nargs="+", default=[], metavar="FILE", help="trials of earlier --json outputs, which enter the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workloads = [workload(name) for name in args.on]
    if args.targets:
        found = [targets(w, args.seeds) for w in workloads]
        print(json.dumps(found, indent=1)) if args.json else show_targets(found)
        return 0
    trials = [Trial(**t) for file in args.read for t in json.loads(Path(file).read_text(encoding="utf-8"))["trials"]]
    if args.read and not args.algorithms:
        workloads = []
    rates = {a: args.lrs or grid(CENTRES.get(parse(a).name, 0), args.points, args.factor) for a in args.algorithms or CENTRES}
    trials += [t for w in workloads for a in rates for t in search(w, a, rates[a], args.seeds)]
    rows = table(trials)
    print(json.dumps({"rows": rows, "trials": [asdict(t) for t in trials]}, indent=1)) if args.json else show_rates(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The work of `velodrome targets`: whole runs of the reference, and what they propose."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from velodrome.bench.catalog import workloads
from velodrome.bench.device import check_device
from velodrome.bench.fanout import stopping
from velodrome.bench.hitting import Hit, times_to_targets
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.bench.targets import FIRST_SEED, LEVELS, PLACES, REFERENCE, SEEDS, proposed
from velodrome.bench.workload import Workload
from velodrome.commands.options import print_json, say
from velodrome.commands.targets import Options
from velodrome.recipes.parse import parse
from velodrome.records.environment import environment
from velodrome.records.lock import Busy
from velodrome.records.read import Record, read
from velodrome.reports.collect import curve
from velodrome.reports.progress import Progress
from velodrome.reports.words import digits, joined, seconds

UNTOLD = 3  # exit code where the runs of some workload propose nothing


@dataclass(frozen=True)
class Proposal:
    """Targets from easy to hard; of `runs` runs how many reached each (`reached`) after how many `steps` (medians), all steps to the hard target (`hard`),
    the standard deviation of their logarithms (`spread`), the best values, and median seconds of a run. `problem` says why there are no targets."""

    workload: str
    metric: str
    runs: int
    budget: int
    targets: tuple[float, ...]
    reached: tuple[int, ...]
    steps: tuple[float, ...]
    hard: tuple[float, ...]
    spread: float | None
    best: tuple[float | None, ...]
    seconds: float
    evaluation_seconds: float
    notes: tuple[str, ...]
    problem: str | None = None


def run(o: Options, typed: str) -> int:
    """Measure every workload, tell, and return the exit code; `typed` is the command, for the person who goes on with it."""
    torch.set_num_threads(o.threads)
    check_device(o.device)
    tasks, found = workloads(o.workloads), list[Proposal]()
    with stopping() as asked:
        for task in tasks:
            entries = _entries(task, o)
            try:
                _train(entries, o, lambda: bool(asked))
            except Interrupted:
                say(f"Stopped; saved. The same command goes on: {typed}")
                return asked[0]
            except (ValueError, OSError, Busy):
                raise
            except (Exception, SystemExit) as error:
                say(f"{task.name}: {REFERENCE} failed: {type(error).__name__}: {error} (traceback in error.txt of its folder in {o.out})")
                return 1
            found.append(propose(task, [read(o.out / e.folder) for e in entries]))
            if not o.json:
                tell(found[-1], o)
    if o.json:
        print_json([asdict(p) for p in found])
    return UNTOLD if any(p.problem for p in found) else 0


def _entries(task: Workload, o: Options) -> list[Entry]:
    data, recipe = task.load(), parse(REFERENCE)
    setting = Setting(device=o.device, bf16=o.bf16, threads=o.threads)
    return [Entry(task, data, recipe, FIRST_SEED + i, setting) for i in range(o.seeds)]


def _train(entries: Sequence[Entry], o: Options, stop: Callable[[], bool]) -> None:
    """Train all runs to their ends, with progress on stderr."""
    session = environment(threads=o.threads, device=o.device)
    with Progress(len(entries), quiet=o.quiet) as progress:
        for e in entries:
            progress.update(e.folder, workload=e.workload.name, algorithm=e.recipe.name, seed=e.seed, total=e.end)
            for state in drive(e, o.out, session, stop):
                progress.update(e.folder, state=state["state"], step=state["t"], **({"value": state["valid"]} if "valid" in state else {}))


def propose(task: Workload, records: Sequence[Record]) -> Proposal:
    """What whole runs of the reference say about a workload."""
    curves, results = [curve(r) for r in records], [r.result or {} for r in records]
    points = [(c.steps, c.valid) for c in curves]
    targets: tuple[float, ...] = ()
    hits, problem = list[list[Hit]](), None
    try:
        targets = proposed(points, task.steps)
        hits = [times_to_targets({"steps": t}, v, targets, {"steps": task.steps}) for t, v in points]
    except ValueError as error:
        problem = str(error)
    by_level = [[run[i].cost["steps"] for run in hits if run[i].reached] for i in range(len(targets))]
    hard = tuple(by_level[-1]) if by_level else ()
    logs = [math.log(max(s, 1.0)) for s in hard]
    return Proposal(
        workload=task.name,
        metric=task.metric_name,
        runs=len(records),
        budget=task.steps,
        targets=targets,
        reached=tuple(map(len, by_level)),
        steps=tuple(statistics.median(s) for s in by_level if s),
        hard=hard,
        spread=float(f"{statistics.stdev(logs):.2g}") if len(logs) > 1 else None,
        best=tuple(r.get("best") for r in results),
        seconds=statistics.median(float(r.get("seconds", 0.0)) for r in results),
        evaluation_seconds=statistics.median(float(r.get("evaluation_seconds", 0.0)) for r in results),
        notes=tuple(_notes(targets, hits, task.steps)),
        problem=problem,
    )


def _notes(targets: Sequence[float], hits: Sequence[Sequence[Hit]], budget: int) -> list[str]:
    """What makes these targets poor ones."""
    notes = []
    if len(set(targets)) < len(targets):
        notes.append(
            f"{REFERENCE} gains too little between {PLACES[0]:.0%} and {PLACES[-1]:.0%} of the budget to tell the targets apart: write fewer steps, "
            "or more data, so that it still improves at the end."
        )
    if any(hit.at_start for run in hits for hit in run):
        notes.append("a model that is not trained yet reaches a target: the task is too easy, or its metric does not fall.")
    if len(hits) < SEEDS:
        notes.append(f"with fewer than {SEEDS} seeds the targets rest on the luck of a few runs.")
    return notes


def tell(p: Proposal, o: Options) -> None:
    """The proposal on stdout, its caveats on stderr."""
    last = FIRST_SEED + p.runs - 1
    print(f"{p.workload}: {p.runs} runs of {REFERENCE} over {p.budget:,} steps, seeds {FIRST_SEED} to {last}, which no race uses")
    if p.problem:
        say(f"{p.workload}: {p.problem} Is its loss right, and does {REFERENCE} learn it?")
        return
    print(f"{p.metric}\n")
    print(f"{'target':>14} {'reached':>9} {'median step':>12}")
    for level, target, reached, step in zip(LEVELS, p.targets, p.reached, p.steps, strict=True):
        print(f"{level:6} {target:>7g} {f'{reached}/{p.runs}':>9} {digits(step):>12}")
    apart = "one seed says nothing about others" if p.spread is None else f"seeds differ by {p.spread:.0%} in their steps to it"
    print(f"\nOn hard {apart}. A run takes {seconds(p.seconds)} of training and {seconds(p.evaluation_seconds)} of evaluation,")
    print("on this machine with whatever else it did.")
    print("Write into the workload:\n")
    print("\n".join(f"    {line}" for line in lines(p, o)))
    for note in p.notes:
        say(f"{p.workload}: {note}")


def lines(p: Proposal, o: Options) -> list[str]:
    """The fields of the workload, ready to paste."""
    where = joined([*([o.device] if o.device != "cpu" else []), "one core" if o.threads == 1 else f"{o.threads} cores"])
    spent = float(f"{max(p.seconds, 0.1):.2g}")
    return [
        f"targets=({', '.join(f'{t:g}' for t in p.targets)}),",
        *([f"spread={p.spread:g},"] if p.spread is not None else []),
        f'cost="{spent:g} s for {p.budget:,} steps on {where}",',
        f"seconds={spent:g},",
    ]

"""The work of `velodrome look`: effective steps of a run, equivalence of two algorithms, conversion of a learning rate."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from velodrome.bench.catalog import workload
from velodrome.bench.protocol import seed_everything
from velodrome.bench.replay import entry_of, find, replay
from velodrome.bench.workload import Workload
from velodrome.commands.look import Convert, Equal, Steps
from velodrome.commands.options import nearest, print_json, write_page
from velodrome.discover import entries, recipe_names
from velodrome.probes.conversion import Conversion, convert_lr, first_rate
from velodrome.probes.equivalence import Equivalence, Factory, Training, equivalence, train_both
from velodrome.probes.findings.steps import findings, remarks
from velodrome.probes.updates.steps import UNITS, effective_steps, medians
from velodrome.recipes.parse import parse, split
from velodrome.recipes.recipe import Recipe
from velodrome.reports import look
from velodrome.reports.words import digits


def steps(o: Steps, typed: str) -> int:
    """`velodrome look steps`."""
    record = find(o.run)
    torch.set_num_threads(record.recipe.get("threads", 1))
    entry, notes = entry_of(record, o.on)
    live, run, first, origin = replay(entry, record.path, o.at)
    reports = []
    for _ in range(o.steps):
        with effective_steps(live.optimizer, live.model) as report:
            step = next(run)
        reports.append(report)
        if step.diverged is not None:
            notes.append(f"the run diverges at step {step.t:,}: {step.diverged}")
            break
    middle = medians(reports)
    seen = look.Steps(
        run=record.path.name,
        origin=origin,
        first=first,
        count=len(reports),
        parameters=middle.parameters,
        about=middle.about,
        groups=middle.groups,
        series=[r.parameters for r in reports],
        findings=findings(middle),
        notes=[*remarks(middle), *(f"Note: {note}." for note in notes)],
        units=UNITS,
        command=typed,
    )
    if o.json:
        print_json({k: v for k, v in asdict(seen).items() if k != "series"})
    else:
        look.show(seen)
    write_page(look.write, o.report, seen)
    return 0


def equal(o: Equal, typed: str) -> int:
    """`velodrome look equal`."""
    task, start = prepared(o.on, o.seed)
    a, b = algorithm(o.a), algorithm(o.b)
    lr = o.lr or first_rate(a.optimizer, start())
    schedule = a.schedule(lr, o.steps) if a.schedule else (lambda t: lr)
    data = task.load()
    model = start()
    batches = partial(data.stream, o.seed)
    found = equivalence(model, task.loss, batches(), a.optimizer, b.optimizer, o.steps, lr=schedule)
    runs = train_both(model, task.loss, batches, a.optimizer, b.optimizer, found.scale, o.steps, lr=schedule)
    if o.json:
        body = {
            "a": a.name,
            "b": b.name,
            "workload": task.name,
            "lr": lr,
            "steps": found.steps,
            "scale": found.scale,
            "residual": found.residual,
        }
        body["by_parameter"] = {name: asdict(fit) for name, fit in found.by_parameter.items()}
        body["training"] = {
            "a": runs.a[-1],
            "b": runs.b[-1],
            "scaled": runs.scaled[-1],
            "apart": runs.apart,
            "apart_unscaled": runs.apart_unscaled,
        }
        print_json(body)
    else:
        tell_equal(a.name, b.name, task, lr, found, runs)
    return 0


def tell_equal(a: str, b: str, task: Workload, lr: float, found: Equivalence, runs: Training) -> None:
    """The relation in words."""
    rest = f"{found.residual:.1%}" if found.residual >= 1e-3 else f"{found.residual:.0e}" if found.residual > 1e-7 else "nothing"
    tail = f"what remains is {rest} of the update" if rest != "nothing" else "and nothing remains"
    verb = "is" if found.residual < 0.1 else "is hardly" if found.residual < 0.5 else "is not"
    print(
        f"{a} {verb} {b} at {digits(found.scale)} times its learning rate on {task.name} (lr {digits(lr)}, {found.steps:,} steps): {tail}."
    )
    scales = torch.tensor([fit.scale for fit in found.by_step if fit.scale == fit.scale], dtype=torch.float64)
    low, high = (float(x) for x in scales.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)))
    print(f"Step by step the factor is {digits(low)} to {digits(high)} (5 % to 95 % of the steps).")
    ends = [sum(losses[-10:]) / len(losses[-10:]) for losses in (runs.a, runs.scaled, runs.b)]
    at = digits(lr * found.scale)
    trained = f"{digits(ends[0])} with {a}; {digits(ends[1])} with {b} at {at}; {digits(ends[2])} with {b} at {digits(lr)}"
    print(f"Each trained by itself ends with a loss of {trained} (mean of the last 10 steps).")
    print(f"The weights end {runs.apart:.1%} of the way apart with the scaled rate, {runs.apart_unscaled:.0%} with the same rate.")


def convert(o: Convert, typed: str) -> int:
    """`velodrome look convert`."""
    task, start = prepared(o.on, o.seed)
    source, target = algorithm(o.source), algorithm(o.target)
    lr = o.lr or first_rate(source.optimizer, start())
    schedule = source.schedule(lr, o.steps) if source.schedule else (lambda t: lr)
    data = task.load()
    skip = min(10, o.steps // 2)
    found = convert_lr(
        start(),
        task.loss,
        data.stream(o.seed),
        at_rate(source.optimizer, lr),
        target.optimizer,
        o.steps,
        match=o.match,
        skip=skip,
        lr=schedule,
    )
    if o.json:
        print_json({"source": source.name, "target": target.name, "workload": task.name, "source_lr": lr, **asdict(found)})
        return 0
    tell_conversion(source.name, target.name, task, lr, found)
    return 0


def tell_conversion(source: str, target: str, task: Workload, lr: float, found: Conversion) -> None:
    """The rate in words."""
    what = "RMS of the update" if found.match == "rms" else "rotation of a neuron per step"
    unit = "" if found.match == "rms" else " radians"
    print(
        f"{target} at lr {digits(found.lr)} makes steps as large as {source} at lr {digits(lr)} on {task.name}: {digits(found.ratio)} times the rate."
    )
    print(f"Matched: {what}, {digits(found.size)}{unit}; half of the {found.steps} steps say {digits(found.low)} to {digits(found.high)}.")


def prepared(on: str, seed: int) -> tuple[Workload, Callable[[], nn.Module]]:
    """The workload, and a function that builds its network with the weights of the seed."""
    torch.set_num_threads(1)
    task = workload(on)

    def start() -> nn.Module:
        seed_everything(seed)
        return task.model()

    return task, start


def at_rate(factory: Factory, lr: float) -> Factory:
    """The factory with all rates scaled so that the first one that is not 0 is `lr`."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = factory(model)
        first = next(float(g["lr"]) for g in optimizer.param_groups if float(g["lr"]))
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"]) * lr / first
        return optimizer

    return make


def algorithm(text: str) -> Recipe:
    """A recipe by its name, or else a rule's factory in `velodrome/optim` or `velodrome/averages` by its own."""
    name, _ = split(text)
    if ":" in name or name in recipe_names():
        return parse(text)
    places: dict[str, Any] = {e.name: e.module for room in ("optim", "averages") for e in entries(room) if e.returns == "Chain"}
    if name not in places:
        raise nearest("algorithm", name, sorted({*recipe_names(), *places}))
    recipe = parse(f"{places[name]}:{text.strip()}")
    return Recipe(text.strip(), recipe.optimizer, recipe.schedule, recipe.settings, recipe.source)

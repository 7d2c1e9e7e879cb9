"""The edge of stability: what a reading costs, how near it is along a real run, and the critical sharpness against the curvature it stands for."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, tasks
from benchmarks.probes.timing import gradient, side_by_side
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.probes.edge.batch_sharpness import batch_sharpness
from velodrome.probes.edge.critical import critical_sharpness
from velodrome.probes.edge.directional import directional_sharpness
from velodrome.probes.edge.gauge import Edge, edge
from velodrome.probes.edge.update import coming_update
from velodrome.probes.objective import Objective

FAMILY = "edge"


def rows(quick: bool = False) -> list[Bar]:
    """Costs on the three networks, accuracy along three runs on digits, coverage of batch sharpness."""
    found = [bar for task in tasks()[: 1 if quick else 3] for bar in costs(task, 3 if quick else 7)]
    runs = {
        "GD": lambda p: torch.optim.SGD(p, 0.5),
        "Adam": lambda p: torch.optim.Adam(p, 2e-3),
        "RMSprop": lambda p: torch.optim.RMSprop(p, 5e-4),
    }
    for name, make in list(runs.items())[: 1 if quick else 3]:
        found += accuracy(name, make, 300 if quick else 2000)
    return [*found, coverage(50 if quick else 200)]


def costs(task: Task, rounds: int) -> Iterator[Bar]:
    """One reading in gradients, cold and warm, and the critical sharpness cold and warm."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-3)
    objective = Objective(task.model, cross_entropy, task.batch)
    for _ in range(5):
        optimizer.zero_grad()
        objective.mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    first, critical = edge(objective, optimizer), critical_sharpness(objective, optimizer)
    with torch.no_grad():  # a step further, as along a run
        for p, d in zip(objective.params.values(), coming_update(optimizer, *updating(objective)), strict=True):
            p.add_(d)
    methods: dict[str, Callable[[], Any]] = {
        "gradient": gradient(task, criterion),
        "cold": lambda: edge(objective, optimizer),
        "warm": lambda: edge(objective, optimizer, last=first),
        "critical": lambda: critical_sharpness(objective, optimizer),
        "critical warm": lambda: critical_sharpness(objective, optimizer, last=critical),
    }
    times = side_by_side(methods, rounds)
    spent = {"cold": edge(objective, optimizer), "warm": edge(objective, optimizer, last=first)}
    for name, reading in spent.items():
        note = f"{reading.ratio.cost['products']:.0f} products, bounds {reading.ratio.error / abs(reading.ratio.value):.1%} apart"
        yield Bar(FAMILY, f"{task.name}: a reading, {name}", times[name].ratio, "gradients", None, "", note)
    for name, last in {"critical": None, "critical warm": critical}.items():
        passes = critical_sharpness(objective, optimizer, last=last).passes
        note = "with the gradient and the update on a copy"
        yield Bar(FAMILY, f"{task.name}: {name}", times[name].ratio, "gradients", None, "", note)
        yield Bar(FAMILY, f"{task.name}: {name}, passes", passes, "", 10, "5-6, <10 (Kalra 2026), to 1/16 too")


def updating(objective: Objective) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """The parameters and the objective's gradients for them."""
    params = list(objective.params.values())
    with objective.ready():
        return params, list(torch.autograd.grad(objective.mean(), params))


def accuracy(name: str, make: Callable[[Any], torch.optim.Optimizer], steps: int) -> Iterator[Bar]:
    """Readings every 50 steps of a run on all of 1,000 digits in float64, warm-started, against converged ones; critical against directional sharpness."""
    data = load_digits()
    x, y = torch.tensor(data.data[:1000] / 16), nn.functional.one_hot(torch.tensor(data.target[:1000]), 10).double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10)).double()
    optimizer, objective = make(model.parameters()), Objective(model, squared_error, (x, y))
    last: Edge | None = None
    errors, held, products, widths, parabola, within = [], [], [], [], [], []
    for t in range(steps):
        optimizer.zero_grad()
        squared_error(model(x), y).mean().backward()
        if t % 50 == 0:
            cold, last = last is None, edge(objective, optimizer, last=last, before_step=True)
            truth = edge(objective, optimizer, tol=1e-6, products=200, before_step=True)
            if not cold:
                errors.append(abs(last.ratio.value / truth.ratio.value - 1))
                held.append(last.ratio.low <= truth.ratio.high and truth.ratio.value <= last.ratio.high * (1 + 1e-6))
                products.append(last.ratio.cost["products"])
                widths.append(last.ratio.error / last.ratio.value)
            found = critical_sharpness(objective, optimizer, own_gradients=True)
            if found.step.identified:
                params, own = list(model.parameters()), [p.grad for p in model.parameters()]
                line = directional_sharpness(objective, coming_update(optimizer, params, own), lr=float(optimizer.param_groups[0]["lr"]))
                parabola.append(abs(found.sharpness.value / line.sharpness.value - 1))
                within.append(found.passes)
        optimizer.step()
    share = f"{len(errors)} readings, median {np.median(errors):.2g}, bounds {np.median(widths):.1%} apart"
    yield Bar(FAMILY, f"{name}: error of tracked readings, 95th percentile", 100 * float(np.quantile(errors, 0.95)), "%", 3, "", share)
    yield Bar(FAMILY, f"{name}: products a tracked reading", float(np.mean(products)), "", 5)
    yield Bar(FAMILY, f"{name}: bounds that hold the truth", 100 * float(np.mean(held)), "%", 90, better="high")
    note = f"{len(parabola)} readings; third derivatives are in it, {np.mean(within):.1f} passes on average"
    yield Bar(
        FAMILY, f"{name}: critical against directional sharpness, median distance", 100 * float(np.median(parabola)), "%", None, "", note
    )


def coverage(repetitions: int) -> Bar:
    """How often the interval of batch sharpness holds the truth: 16 batches of 4 with replacement from 64 inputs, on a parabola of one output."""

    class Parabola(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.5 * (x @ self.w).square()

    g = torch.Generator().manual_seed(1)
    data = torch.randn(64, 5, dtype=torch.float64, generator=g) * torch.tensor([2.0, 1.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    model, draw = Parabola(), lambda n: data[torch.randint(64, (n, 4), generator=g)]
    many = draw(40_000)
    grads = (many * (many @ model.w.detach())[..., None]).mean(1)
    truth = float(((many @ grads[..., None]).squeeze(-1).square().mean(1) / grads.square().sum(1)).mean())
    held = 0
    for _ in range(repetitions):
        batches = [(x, torch.zeros(4)) for x in draw(16)]
        value = batch_sharpness(Objective(model, lambda o, t: o, batches, check=False), 0.1).value
        held += value.low <= truth <= value.high
    return Bar(
        FAMILY, "batch sharpness: intervals that hold the truth", 100 * held / repetitions, "%", (90, 98), "", f"{repetitions} repetitions"
    )

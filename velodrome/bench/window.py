"""A window of training: some steps made in memory and watched, so that what changes from step to step can be told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from velodrome.bench.subject import Subject
from velodrome.data.stream import Batch
from velodrome.probes.updates.steps import Report, effective_steps
from velodrome.train import Step

Reader = Callable[[Step], Any]
POINTS = 12  # of the window at which the readers are asked
TAIL = 16  # last steps, each of which some readers see
KEPT = 8  # batches, for naming one that hurt


@dataclass
class Window:
    """`steps` numbers what was made; losses, rates and gradient norms by parameter are of these steps, `reports` of the updates between.

    `batches` are those of the steps at which the loss rose most, `readings` by reader what it said at which step. `diverged` is None, "nan",
    "inf" or "exploded".
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gradients: dict[str, list[float]] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    batches: dict[int, Batch] = field(default_factory=dict)
    readings: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    diverged: str | None = None

    @property
    def updates(self) -> dict[str, list[float]]:
        """Norm of the change over norm of the weights by parameter, for every update; 0 where a parameter stood still."""
        names = dict.fromkeys(name for report in self.reports for name in report.parameters)
        return {n: [(r.parameters[n]["relative_update"] or 0.0) if n in r.parameters else 0.0 for r in self.reports] for n in names}


def walked(
    subject: Subject,
    count: int,
    readers: Mapping[str, Reader] | None = None,
    *,
    tail: Mapping[str, Reader] | None = None,
    points: int = POINTS,
    seconds: float = float("inf"),
    seen: Callable[[int], None] = lambda done: None,
) -> Window:
    """Make `count` steps; `readers` are asked at the first, at the last and at evenly spread ones between, as long as `seconds` last for them; those
    of `tail` at each of the last steps.

    Weights, gradient and loss belong together when a reader is asked: it is after the gradient and before the update. A reader must change nothing.
    The window ends early where the loss diverges or the batches end.
    """
    window = Window()
    if subject.steps is None or subject.optimizer is None:
        return window
    total = count if subject.begun else count + 1  # the gradient of the first step may be there already
    asked = chosen(total, points)
    spent = dict.fromkeys(readers or {}, 0.0)
    longest = dict.fromkeys(readers or {}, 0.0)
    for i in range(total):
        with effective_steps(subject.optimizer, subject.model) as report:
            step = next(subject.steps, None)
        if step is None:
            break
        if subject.begun:
            window.reports.append(report)
        subject.begun = True
        record(window, subject, step)
        seen(i)
        if step.diverged is not None:
            window.diverged = step.diverged
            break
        for name, reader in (tail or {}).items():
            if i >= total - TAIL:
                window.readings.setdefault(name, []).append((step.t, reader(step)))
        for name, reader in (readers or {}).items():
            if i in asked and (i == total - 1 or sum(spent.values()) + longest[name] <= seconds):
                tick = perf_counter()
                window.readings.setdefault(name, []).append((step.t, reader(step)))
                took = perf_counter() - tick
                spent[name], longest[name] = spent[name] + took, max(longest[name], took)
    return window


def chosen(total: int, points: int) -> set[int]:
    """The first of `total` steps, the last, and evenly spread ones between."""
    if total <= points:
        return set(range(total))
    return {round(i * (total - 1) / (points - 1)) for i in range(points)}


def record(window: Window, subject: Subject, step: Step) -> None:
    """The row of one step."""
    window.steps.append(step.t)
    window.losses.append(step.loss)
    window.batches[step.t] = step.batch
    if len(window.batches) > KEPT:
        rises = dict(zip(window.steps[1:], (b - a for a, b in pairwise(window.losses)), strict=True))
        del window.batches[min(list(window.batches)[:-1], key=lambda t: rises.get(t, 0.0))]
    assert subject.optimizer is not None
    window.rates.append(float(subject.optimizer.param_groups[0].get("lr", float("nan"))))
    named = [(n, p.grad) for n, p in subject.model.named_parameters() if p.grad is not None and not p.grad.is_sparse]
    norms: Sequence[Tensor] = torch._foreach_norm([g for _, g in named]) if named else []
    for (name, _), norm in zip(named, norms, strict=True):
        window.gradients.setdefault(name, [float("nan")] * (len(window.steps) - 1)).append(float(norm))
    for values in window.gradients.values():
        values += [float("nan")] * (len(window.steps) - len(values))

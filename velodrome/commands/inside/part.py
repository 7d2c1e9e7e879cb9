"""What every topic is given (Scene) and what it gives back (Part)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from velodrome.bench.subject import Subject
from velodrome.bench.window import Window
from velodrome.commands.inside.options import Inside as Options
from velodrome.data.stream import Batch
from velodrome.probes.estimate import Estimate
from velodrome.probes.findings.finding import Finding
from velodrome.probes.objective import Objective, examples, pick
from velodrome.reports.inside import Chart, Gallery, Reading, Said

SIZE = 2048  # numbers of examples times positions that curvature is measured on by default
MOST = 256  # examples
FITTED = 0.98  # of the examples right: what is left to learn is confidence


@dataclass
class Part:
    """One topic's share of the page."""

    readings: list[Reading] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Part") -> "Part":
        for name in ("readings", "findings", "charts", "galleries", "notes"):
            getattr(self, name).extend(getattr(other, name))
        return self

    def __add__(self, other: "Part") -> "Part":
        whole = Part()
        whole += self
        whole += other
        return whole


@dataclass
class Scene:
    """The subject after its window; `left` says how many seconds of the budget remain, `shared` holds what several topics read."""

    subject: Subject
    options: Options
    window: Window
    left: Callable[[], float]
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def whole(self) -> Objective:
        """All batches held still; for statistics of examples and batches."""
        return self.objective(self.subject.batches)

    @cached_property
    def few(self) -> Objective:
        """As many of their examples as curvature can be afforded on."""
        return self.objective(
            first(self.subject.batches, self.options.examples or affordable(self.subject.batches[0])), self.options.micro_batch
        )

    def objective(self, batches: list[Batch], micro_batch: int | None = None) -> Objective:
        """An objective with the options' mode and randomness."""
        o = self.options
        sound = self.window.diverged is None  # a run that has diverged is told as that, not refused
        return Objective(
            self.subject.model, self.subject.loss, batches, mode=o.mode, fix_random=o.fix_random, micro_batch=micro_batch, check=sound
        )

    @cached_property
    def right(self) -> float | None:
        """The share of the first batch's examples (or positions) whose largest output is the target's; None where there are no classes."""
        batch = self.whole.batches[0]
        with self.whole.ready(), torch.no_grad():
            outputs = self.whole.outputs(batch)
        logits, targets = getattr(outputs, "logits", outputs), batch.targets
        if not isinstance(logits, torch.Tensor) or not isinstance(targets, torch.Tensor) or targets.is_floating_point():
            return None
        return float((logits.argmax(-1) == targets).float().mean()) if targets.shape == logits.shape[:-1] else None

    @property
    def step(self) -> int:
        """The step at which the subject stands."""
        return self.window.steps[-1] if self.window.steps else self.subject.first


def affordable(batch: Batch) -> int:
    """Examples for curvature: fewer where each is a long sequence of tokens."""
    positions = batch.tokens // examples(batch) if batch.tokens else 1
    if batch.tokens is None:
        targets = [x for x in tree_leaves(batch.targets) if isinstance(x, torch.Tensor) and not x.is_floating_point()]
        positions = max((x.shape[1] for x in targets if x.ndim == 2), default=1)
    return max(8, min(MOST, SIZE // max(positions, 1)))


def first(batches: list[Batch], count: int) -> list[Batch]:
    """The first `count` examples, in the batches that they are in; a rest of less than half a batch is left out."""
    kept: list[Batch] = []
    for batch in batches:
        n = examples(batch)
        if not kept and n >= count:
            spread = torch.arange(count) * n // count  # data may be sorted
            return [pick(batch, spread) if n > count else batch]
        if n > count:
            break
        kept.append(batch)
        count -= n
    return kept


def reading(
    topic: str, what: str, e: Estimate, *, where: str = "", step: int | None = None, verdict: str = "", level: Any = "remark"
) -> Reading:
    """A row of the table from an estimate."""
    value, low, high = (x if isfinite(x) else None for x in (e.value, e.low, e.high))
    return Reading(topic, what, value, e.unit, low, high, e.kind, e.n, where, step, verdict, level, e.note)


def said(finding: Finding) -> Said:
    """A finding for the report."""
    return Said(**asdict(finding))

"""Workload: data + model + loss + metric + targets + budget. Everything an algorithm may not change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor, nn

from velodrome.bench.robustness import scale_of
from velodrome.data.stream import Batch, Stream

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Data:
    """Loaded data: `stream(seed)` gives the training stream, `valid` is what every evaluation reads; digest and version go into the record."""

    stream: Callable[[int], Stream]
    valid: list[Batch]
    digest: str
    version: str | None = None


@dataclass(frozen=True)
class Variant:
    """A workload with something else: `what` in words, its own targets, and another model, data or budget where that is what differs.

    `scale` is how many times the parameters and the examples of the workload it has; a variant of scale 4 is named "4x", is a rung of a ladder of
    scales, and no test of robustness. `spread` and `reached` as for a workload.
    """

    what: str
    targets: tuple[float, ...] = ()
    model: Callable[[], nn.Module] | None = None
    load: Callable[[], Data] | None = None
    seconds: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    scale: int = 1
    spread: float | None = None
    reached: tuple[int, int] | None = None


def rungs(steps: int, batch: int, at: Mapping[int, tuple[Callable[[], nn.Module], Callable[..., Data]]]) -> dict[str, Variant]:
    r"""The rungs of a ladder of scales, {scale s: (model, load)}: s times the parameters and examples of a workload of that many `steps` and that `batch`.

    There are $\sqrt s$ times the steps, of $\sqrt s$ times the batch, which `load(batch=…)` is told. No targets: a race sets them.
    """
    found = {}
    for scale, (model, load) in at.items():
        root = isqrt(scale)
        assert root**2 == scale
        what = f"with {scale} times the parameters and examples"
        loaded = partial(load, batch=batch * root)
        found[f"{scale}x"] = Variant(what, model=model, load=loaded, steps=steps * root, batch_size=batch * root, scale=scale)
    return found


@dataclass(frozen=True)
class Workload:
    """What is raced on. `targets` from easy to hard: the last is the one that counts; without any, a race sets them from runs of the reference on seeds
    that it does not race (`bench/settling.py`), and `targets_from` then says from which. Lower values of the metric are better.

    `load` reads the data, `model` builds the network with the weights that the global generator draws at that moment. `steps` is the budget,
    in updates of `batch_size` examples; it is evaluated `evaluations` times on an even grid, and once before the first step. `cost` says in
    words what the reference costs, `seconds` as a rough number for planning. `accuracies` are further metrics that are only shown. `sizes` are
    the model at other widths, {width: model}, for a ladder of sizes (`velodrome plan --calibrate`); `at_width` builds it at any width (`velodrome
    look coords`). `variants` are the workload with another width, activation, norm, initial scale or noisy labels, raced as NAME+VARIANT, for robustness,
    or at another `scale`. `spread` is the measured standard deviation over seeds of the reference's log steps to the hard target, `reached` how many of how
    many of its runs reached that target within the budget. `source` is the digest of a workload's own file, filled in for those from outside the package.
    """

    name: str
    summary: str
    load: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss: Loss
    metric: Loss
    metric_name: str
    targets: tuple[float, ...]
    steps: int
    batch_size: int
    cost: str
    seconds: float
    evaluations: int = 50
    accuracies: Mapping[str, Loss] = field(default_factory=dict)
    sizes: Mapping[int, Callable[[], nn.Module]] = field(default_factory=dict)
    at_width: Callable[[int], nn.Module] | None = None
    source: str | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    spread: float | None = None
    reached: tuple[int, int] | None = None
    scale: int = 1
    targets_from: Mapping[str, Any] | None = None

    def __post_init__(self):
        steps, evaluations, name = self.steps, self.evaluations, f"workload {self.name!r}"
        if steps < 1:
            raise ValueError(f"{name} needs steps to train for, got steps={steps}: write at least steps=50.")
        if evaluations < 50:
            raise ValueError(f"{name} needs at least 50 evaluations to time a target, got evaluations={evaluations}: write evaluations=50.")
        if steps % evaluations:
            near = max(1, round(steps / evaluations)) * evaluations
            raise ValueError(f"{name}: {steps} steps do not divide into {evaluations} evaluations: write steps={near}.")
        if list(self.targets) != sorted(self.targets, reverse=True):
            right = tuple(sorted(self.targets, reverse=True))
            raise ValueError(f"{name} needs its targets from easy to hard, got {self.targets}: write targets={right}.")
        for key, v in self.variants.items():
            if scale_of(f"+{key}") != v.scale:
                raise ValueError(
                    f"{name}: a variant named {key!r} has scale {scale_of(f'+{key}')}, got scale={v.scale}: name it '{v.scale}x'."
                )

    @property
    def target(self) -> float | None:
        """The target that counts; None where there is none yet."""
        return self.targets[-1] if self.targets else None

    @property
    def every(self) -> int:
        """Steps between two evaluations."""
        return self.steps // self.evaluations

    def variant(self, name: str) -> "Workload":
        """The workload NAME+`name`; ValueError if there is none."""
        if name not in self.variants:
            near = get_close_matches(name, self.variants, 1, 0.5)
            known = f"there are {', '.join(self.variants)}" if self.variants else "it has none"
            raise ValueError(f"{self.name} has no variant {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"{known}."))
        v = self.variants[name]
        steps, batch_size = v.steps or self.steps, v.batch_size or self.batch_size
        seconds = v.seconds or self.seconds * v.scale**2
        measured = f"{seconds:g} s for {steps:,} steps on one core" if v.seconds or v.scale == 1 else ""
        return replace(
            self,
            name=f"{self.name}+{name}",
            summary=f"{self.name} {v.what}",
            model=v.model or self.model,
            load=v.load or self.load,
            targets=v.targets,
            steps=steps,
            batch_size=batch_size,
            seconds=seconds,
            cost=measured or f"about {float(f'{seconds:.2g}'):,g} s for {steps:,} steps on one core, not measured",
            sizes={},
            at_width=None,
            variants={},
            spread=v.spread,
            reached=v.reached,
            scale=v.scale,
        )

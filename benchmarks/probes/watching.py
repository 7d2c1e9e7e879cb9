"""What watching costs a training, end to end, seen from outside: one training that is watched and left alone in turns, on one model.

Segments of some steps alternate (watched, alone, alone, watched, …) on the same weights: two models of one kind at different places in memory differ by
several percent, which is more than what is looked for. While it is left alone the watch is told nothing and its clock stands. What it says it spends is
taken as it says; what else a watched segment takes longer is the mean of the paired differences, a fifth of them trimmed (another process that disturbs
one segment must not decide), with its 95 % interval. Overhead is both together, so that what is missing in the watch's own account shows.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, cnn, gpt, mlp
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.watch import watch

SETS = {"cheap 2 %": ("cheap", 0.02), "full 5 %": ("full", 0.05), "full 10 %": ("full", 0.10)}
SEGMENT = 6  # steps: shorter than what a busy machine needs to change its speed
TRIM = 0.1  # of the differences, at either end
COCKPIT = "Cockpit x149 to x930 on a tracked step (MLP)"


@dataclass
class Loop:
    """A training with AdamW on batches drawn anew; `watched` and `alone` are CPU seconds of segments, `said` what the watch spent by its own account."""

    task: Task
    probes: str
    budget: float
    watched: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    said: list[float] = field(default_factory=list)
    away: float = 0.0  # seconds that the watch does not see

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.task.model.parameters(), 1e-3)
        self.batches = drawn(self.task)
        for _ in range(3):
            self.step(False)
        self.seen = watch(self.task.model, self.optimizer, self.budget, loss=cross_entropy, probes=self.probes, clock=self.clock)
        self.seen.step()

    def clock(self) -> float:
        """CPU time of the watched segments."""
        return time.process_time() - self.away

    def step(self, watched: bool) -> None:
        """One."""
        x, y = next(self.batches)
        loss = torch_cross_entropy(self.task.model(x).flatten(0, -2), y.flatten())
        loss.backward()
        if watched:
            self.seen.step(loss=loss, batch=(x, y))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def segment(self, watched: bool) -> None:
        """Some steps."""
        said, began = self.seen.spent.seconds, time.process_time()
        for _ in range(SEGMENT):
            self.step(watched)
        seconds = time.process_time() - began
        if watched:
            self.watched.append(seconds)
            self.said.append(self.seen.spent.seconds - said)
        else:
            self.alone.append(seconds)
            self.away += seconds

    def pair(self) -> None:
        """One segment of each kind, in the other order than the last."""
        first = len(self.alone) % 2 == 0
        self.segment(first)
        self.segment(not first)


def drawn(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """Eight batches like the task's, again and again."""
    g = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(8):
        order = torch.randperm(task.batch.examples, generator=g)
        x = task.batch.inputs[order]
        x = x + 0.1 * torch.randn(x.shape, generator=g) if x.is_floating_point() else torch.randint(512, x.shape, generator=g)
        kept.append((x, task.batch.targets[order]))
    while True:
        yield from kept


def trimmed(values: list[float]) -> tuple[float, float]:
    """(trimmed mean, half of its 95 % interval), the error by the winsorised variance (Tukey and McLaughlin 1963)."""
    ordered, cut = sorted(values), int(TRIM * len(values))
    kept = ordered[cut : len(ordered) - cut]
    held = [min(max(v, kept[0]), kept[-1]) for v in values]
    middle, n = fmean(held), len(values)
    variance = sum((v - middle) ** 2 for v in held) / max(1, n - 1)
    return fmean(kept), 1.96 * sqrt(variance) / ((1 - 2 * TRIM) * sqrt(n))


def overhead(watched: list[float], alone: list[float], said: list[float]) -> tuple[float, float, float]:
    """(relative overhead, half of its 95 % interval, the part of it that the watch does not say)."""
    base = fmean(alone) if len(alone) < 5 else trimmed(alone)[0]
    unsaid, half = trimmed([(w - s - a) / base for w, a, s in zip(watched, alone, said, strict=True)])
    return fmean(said) / base + unsaid, half, unsaid


def measured(name: str, make: Callable[[], Task], seconds: float, sets: dict[str, tuple[str, float]] = SETS) -> list[Bar]:
    """All sets on one task, so many CPU seconds each."""
    bars = []
    for key, (probes, budget) in sets.items():
        loop = Loop(make(), probes, budget)
        while sum(loop.watched) + sum(loop.alone) < seconds or len(loop.alone) < 30:
            loop.pair()
        loop.seen.close()
        cost, half, unsaid = overhead(loop.watched, loop.alone, loop.said)
        spent = loop.seen.spent
        looks = ", ".join(f"{n} {c}" for n, c in spent.counts.items())
        note = f"+- {100 * half:.2f}; says {100 * (cost - unsaid):.2f}, unsaid {100 * unsaid:.2f}; {len(loop.alone)} pairs of {SEGMENT} steps; "
        note += f"deepest debt {1e3 * spent.overdrawn:.1f} ms; {looks}"
        bars.append(Bar("watching", f"{name}, {key}: overhead", 100 * cost, "%", 100 * budget, COCKPIT if name == "MLP" else "", note))
    return bars


def idle(seconds: float) -> Bar:
    """The smallest net there is, where hooks and deciding weigh most: what a step pays while nothing is measured."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    x, times = torch.randn(4, 2), []
    for watched in (False, True, True, False) * 10:
        seen = watch(model, optimizer, 1e-4, clock=time.process_time) if watched else None
        for i in range(int(1000 * seconds)):
            if i == 100:
                began = time.process_time()
            model(x).sum().backward()
            optimizer.step()
        times.append((watched, (time.process_time() - began) / (int(1000 * seconds) - 100)))
        if seen is not None:
            seen.close()
    pairs = [(a if w else b) - (b if w else a) for (w, a), (_, b) in zip(times[::2], times[1::2], strict=True)]
    cost, half = trimmed(pairs)
    return Bar(
        "watching",
        "hooks, nothing measured",
        1e6 * cost,
        "us a step",
        None,
        note=f"+- {1e6 * half:.1f}; of {1e6 * min(t for _, t in times):.0f} us",
    )


def rows(quick: bool = False) -> list[Bar]:
    """Three networks and three sets."""
    torch.set_num_threads(1)
    seconds = 8.0 if quick else 80.0
    found = [bar for name, make in (("MLP", mlp), ("CNN", cnn), ("GPT", gpt)) for bar in measured(name, make, seconds)]
    return [*found, idle(0.5 if quick else 2.0)]

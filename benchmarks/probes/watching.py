"""What watching costs a training, end to end: the same training watched and unwatched in turns, and what the watch itself says it has spent.

Blocks of some steps of each run alternate, so that a machine that is busy for a while is busy for all; the overhead is that of the mean CPU times, with
a 95 % interval from the blocks. The watch is given the same clock.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, cnn, gpt, mlp
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.watch import Watch, watch

SETS = {"cheap 2 %": ("cheap", 0.02), "full 2 %": ("full", 0.02), "full 5 %": ("full", 0.05), "full 10 %": ("full", 0.10)}
BLOCK = 10  # steps
COCKPIT = "Cockpit x149 to x930 on a tracked step (MLP)"


@dataclass
class Loop:
    """A training that is advanced in blocks; `times` are those of the blocks."""

    step: Callable[[], None]
    seen: Watch | None
    times: list[float] = field(default_factory=list)

    def advance(self, steps: int) -> None:
        """One block."""
        began = time.process_time()
        for _ in range(steps):
            self.step()
        self.times.append(time.process_time() - began)


def loop(make: Callable[[], Task], watched: tuple[str, float] | None) -> Loop:
    """A training of a task with AdamW on batches drawn anew."""
    task = make()
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-3)
    seen = None
    if watched is not None:
        seen = watch(task.model, optimizer, watched[1], loss=cross_entropy, probes=watched[0], clock=time.process_time)
    batches = drawn(task)

    def step() -> None:
        x, y = next(batches)
        loss = torch_cross_entropy(task.model(x).flatten(0, -2), y.flatten())
        loss.backward()
        if seen is not None:
            seen.step(loss=loss, batch=(x, y))
        optimizer.step()
        optimizer.zero_grad()

    return Loop(step, seen)


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


def overhead(watched: list[float], plain: list[float]) -> tuple[float, float]:
    """(relative overhead, half of its 95 % interval), of means of paired blocks."""
    base = fmean(plain)
    differences = [(a - b) / base for a, b in zip(watched, plain, strict=True)]
    return fmean(differences), 1.96 * stdev(differences) / sqrt(len(differences))


def measured(name: str, make: Callable[[], Task], seconds: float) -> list[Bar]:
    """All sets on one task, so many CPU seconds each."""
    loops = {"plain": loop(make, None), **{key: loop(make, how) for key, how in SETS.items()}}
    for one in loops.values():
        one.advance(BLOCK)
        one.times.clear()
    while sum(loops["plain"].times) < seconds:
        for one in loops.values():
            one.advance(BLOCK)
    bars = []
    for key, (_, budget) in SETS.items():
        one = loops[key]
        assert one.seen is not None
        cost, half = overhead(one.times, loops["plain"].times)
        one.seen.close()
        spent = one.seen.spent
        looks = ", ".join(f"{n} {c}" for n, c in spent.counts.items())
        note = f"+- {100 * half:.1f}; says {100 * spent.share:.2f} % of {spent.trained:.0f} s, deepest debt {1e3 * spent.overdrawn:.1f} ms; {looks}"
        bars.append(Bar("watching", f"{name}, {key}: overhead", 100 * cost, "%", 100 * budget, COCKPIT if name == "MLP" else "", note))
    return bars


def idle(seconds: float) -> Bar:
    """The smallest net there is, where hooks and deciding weigh most: what a step pays while nothing is measured."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    x, times = torch.randn(4, 2), []
    for watched in (False, True) * 10:
        seen = watch(model, optimizer, 1e-4, clock=time.process_time) if watched else None
        for i in range(int(2000 * seconds)):
            if i == 100:
                began = time.process_time()
            model(x).sum().backward()
            optimizer.step()
        times.append((time.process_time() - began) / (int(2000 * seconds) - 100))
        if seen is not None:
            seen.close()
    return Bar("watching", "hooks, nothing measured", 1e6 * (fmean(times[1::2]) - fmean(times[::2])), "us a step", None)


def rows(quick: bool = False) -> list[Bar]:
    """Three networks and four sets."""
    torch.set_num_threads(1)
    seconds = 4.0 if quick else 40.0
    found = [bar for name, make in (("MLP", mlp), ("CNN", cnn), ("GPT", gpt)) for bar in measured(name, make, seconds)]
    return [*found, idle(0.5 if quick else 2.0)]

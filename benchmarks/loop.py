"""The loop's own cost: `train` beside a hand-written PyTorch loop, interleaved in one process (`python -m benchmarks.loop`, 1 minute).

Bars: at most 3 % on stdlib-gpt, at most 25 µs per step on a model that does nothing. CPU time of one thread, which other processes disturb least;
blocks of the two loops alternate, and the medians are over pairs of neighbours.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from statistics import quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from velodrome.bench.catalog import workload
from velodrome.data.stream import Batch
from velodrome.gradients.backward import backward
from velodrome.train import train

BLOCKS = 30


def by_hand(gradient: Callable[[Batch], torch.Tensor], optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> Iterator[float]:
    """The loop that everybody writes, with the loss read once a step; a generator only so that it can be stopped and gone on with."""
    for batch in batches:
        loss = gradient(batch)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


class Still(torch.optim.Optimizer):
    """An optimizer that does nothing."""

    def step(self, closure: Any = None) -> None:
        """Nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing."""


def gpt() -> tuple[Any, ...]:
    """(gradient, optimizer, stream, model): stdlib-gpt with torch's fused AdamW, so that only the loops differ."""
    work = workload("stdlib-gpt")
    data = work.load()
    torch.manual_seed(0)
    model = work.model()
    return backward(model, work.loss), torch.optim.AdamW(model.parameters(), fused=True), data.stream(0), model


def nothing() -> tuple[Any, ...]:
    """The same for a model of one number whose gradient is always there and whose update does nothing."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    model[0].grad = torch.zeros(1)
    batch, loss = Batch(torch.zeros(1), torch.zeros(1)), torch.zeros(())
    return (lambda _: loss), Still(model.parameters(), {"lr": 0.1}), repeat(batch), model


def measure(make: Callable[[], tuple[Any, ...]], steps: int) -> dict[str, list[float]]:
    """CPU seconds per step of each loop, block by block, the order turned round each time."""
    one, two, three = make(), make(), make()  # a model each: the guard would see the others train
    loops: dict[str, Iterator[Any]] = {
        "by hand": by_hand(*one[:3]),
        "train, guard off": train(*two[:3], model=two[3], guard=False),
        "train": train(*three[:3], model=three[3]),
    }
    found: dict[str, list[float]] = {name: [] for name in loops}
    for block in range(BLOCKS + 2):
        for name in list(loops)[:: 1 if block % 2 else -1]:
            before = time.process_time()
            for _ in islice(loops[name], steps):
                pass
            if block >= 2:  # the first blocks count FLOPs and fill caches
                found[name].append((time.process_time() - before) / steps)
    return found


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    table = Table(title=f"CPU time per step, one thread, median [quartiles] of {BLOCKS} interleaved blocks")
    for column in ("model", "loop", "per step, µs", "more than by hand, µs", "ratio", "bar"):
        table.add_column(column, justify="left" if column in ("model", "loop") else "right")
    for name, make, steps, bar in (("stdlib-gpt", gpt, 10, "≤ 1.03"), ("nothing", nothing, 2000, "≤ 25 µs")):
        found = measure(make, steps)
        base = found["by hand"]
        for loop, values in found.items():
            extra = [(v - b) * 1e6 for v, b in zip(values, base, strict=True)]
            ratios = [v / b for v, b in zip(values, base, strict=True)]
            cells = ("", "", "") if loop == "by hand" else (spread(extra, 1), spread(ratios, 3), bar if loop == "train" else "")
            table.add_row(name, loop, spread([v * 1e6 for v in values], 1), *cells)
    Console().print(table)


def spread(values: list[float], digits: int) -> str:
    """Median [quartiles]."""
    low, middle, high = quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    main()

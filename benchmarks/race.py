"""What a race adds to the training it runs (`python -m benchmarks.race`, about 4 minutes on 2 idle cores). Bar: 5 %.

Races 3 algorithms on 2 workloads over 3 seeds from the shell, as `make race` does, and does the same trainings and evaluations by hand, one after
the other in two processes side by side (two busy cores are slower than one each), without the guard, records, progress, statistics and page.
CPU time of all processes, because wall time also counts what other work on the machine takes. The start of Python and torch is told apart: it is
the same seconds for a race of a minute and for one of a day.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from velodrome.bench.catalog import workload
from velodrome.bench.protocol import evaluate, seed_everything
from velodrome.data.stream import Batch, Stream
from velodrome.gradients.backward import backward
from velodrome.recipes.parse import parse
from velodrome.records.read import scan
from velodrome.train import set_lr

ALGORITHMS, WORKLOADS, SEEDS = ("adamw", "muon", "nadamw"), ("digits", "stdlib-gpt"), 3


def train_step(optimizer: torch.optim.Optimizer, lr: float, gradient: Callable[[Batch], torch.Tensor], stream: Stream) -> None:
    """Learning rate, batch, forward and backward."""
    set_lr(optimizer, lr)
    gradient(next(stream)).item()


def update(optimizer: torch.optim.Optimizer) -> None:
    """Step and clear."""
    optimizer.step()
    optimizer.zero_grad()


def by_hand(first: int) -> dict[str, float]:
    """CPU seconds of starting, training and evaluating one half of the runs in plain loops."""
    torch.set_num_threads(1)
    workloads = [workload(name) for name in WORKLOADS]
    loaded = [work.load() for work in workloads]
    recipes = [parse(name) for name in ALGORITHMS]
    spent = {"training": 0.0, "evaluation": 0.0}

    def clocked(part: str, function: Callable[[], Any]) -> None:
        tick = time.process_time()
        function()
        spent[part] += time.process_time() - tick

    runs = [(w, d, r, s) for w, d in zip(workloads, loaded, strict=True) for s in range(SEEDS) for r in recipes]
    for work, data, recipe, seed in runs[first::2]:
        seed_everything(seed)
        model = work.model()
        optimizer, gradient, stream = recipe.optimizer(model), backward(model, work.loss), data.stream(seed)
        assert recipe.schedule is not None
        lr = recipe.schedule(float(optimizer.param_groups[0]["lr"]), work.steps)
        metrics = {"valid": work.metric, **work.accuracies}

        for t in range(work.steps + 1):
            clocked("training", partial(train_step, optimizer, lr(min(t, work.steps - 1)), gradient, stream))
            if t % work.every == 0:
                clocked("evaluation", partial(evaluate, model, metrics, data.valid))
            clocked("training", partial(update, optimizer))
    spent["start"] = time.process_time() - spent["training"] - spent["evaluation"]  # of Python and torch, data, models, optimizers
    return spent


def raced(folder: str) -> tuple[float, float]:
    """(CPU seconds of all processes, wall seconds) of the race from the shell."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "velodrome", "race", *ALGORITHMS, "--on", *WORKLOADS, "--seeds", str(SEEDS)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = sum(record.finished for record in scan(Path(folder) / "runs"))
    assert finished == len(ALGORITHMS) * len(WORKLOADS) * SEEDS, f"{finished} runs finished"
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Race in a temporary folder, train by hand, and print where the time went."""
    if len(sys.argv) == 2:
        print(json.dumps(by_hand(int(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = raced(folder)
    command = [sys.executable, "-m", "benchmarks.race"]
    halves = [subprocess.Popen([*command, str(first)], stdout=subprocess.PIPE, text=True) for first in (0, 1)]
    hand = [json.loads(half.communicate()[0]) for half in halves]
    start, training, evaluation = (sum(h[part] for h in hand) for part in ("start", "training", "evaluation"))
    added = cpu - start - training - evaluation
    table = Table(title=f"3 algorithms × 2 workloads × 3 seeds on {os.cpu_count()} cores: {wall:.0f} s by the clock on the wall")
    for column in ("CPU time", "seconds", "of training"):
        table.add_column(column, justify="left" if column == "CPU time" else "right")
    for part, value in (
        ("by hand: start of 2 processes, data, models", start),
        ("by hand: training", training),
        ("by hand: evaluation, 51 a run", evaluation),
        ("the race adds (bar 5 %)", added),
    ):
        table.add_row(part, f"{value:.1f}", f"{value / training:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()

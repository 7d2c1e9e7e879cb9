"""What a race adds to the training it runs (`python -m benchmarks.race`, about 4 minutes on 2 idle cores). Bar: 5 %.

Races 3 algorithms on 2 workloads over 3 seeds from the shell, as `make race` does, and then does the same trainings and evaluations by hand, one
after the other in one process, without the guard, records, progress, statistics and page. CPU time of all processes, because wall time also
counts what other work on the machine takes.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from velodrome.bench.catalog import workload
from velodrome.bench.protocol import evaluate, seed_everything
from velodrome.gradients.backward import backward
from velodrome.recipes.parse import parse
from velodrome.records.read import scan

ALGORITHMS, WORKLOADS, SEEDS = ("adamw", "muon", "nadamw"), ("digits", "stdlib-gpt"), 3


def by_hand() -> tuple[float, float]:
    """CPU seconds of (training, evaluation) in plain loops over the same runs."""
    spent = [0.0, 0.0]
    for name in WORKLOADS:
        work = workload(name)
        data = work.load()
        for recipe in map(parse, ALGORITHMS):
            for seed in range(SEEDS):
                seed_everything(seed)
                model = work.model()
                optimizer, gradient, stream = recipe.optimizer(model), backward(model, work.loss), data.stream(seed)
                assert recipe.schedule is not None
                lr = recipe.schedule(float(optimizer.param_groups[0]["lr"]), work.steps)
                ratios = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
                for t in range(work.steps + 1):
                    tick = time.process_time()
                    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                        group["lr"] = lr(min(t, work.steps - 1)) * ratio
                    gradient(next(stream)).item()
                    spent[0] += time.process_time() - tick
                    if t % work.every == 0:
                        tick = time.process_time()
                        evaluate(model, {"valid": work.metric, **work.accuracies}, data.valid)
                        spent[1] += time.process_time() - tick
                    tick = time.process_time()
                    optimizer.step()
                    optimizer.zero_grad()
                    spent[0] += time.process_time() - tick
    return spent[0], spent[1]


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
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = raced(folder)
    training, evaluation = by_hand()
    table = Table(title=f"3 algorithms × 2 workloads × 3 seeds on {os.cpu_count()} cores: {wall:.0f} s by the clock on the wall")
    for column in ("CPU time", "seconds", "of training", "of training and evaluation"):
        table.add_column(column, justify="left" if column == "CPU time" else "right")
    whole = training + evaluation
    for part, value in (
        ("training by hand", training),
        ("evaluation by hand, 51 a run", evaluation),
        ("the race adds (bar 5 %)", cpu - whole),
    ):
        table.add_row(part, f"{value:.1f}", f"{value / training:.1%}", f"{value / whole:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()

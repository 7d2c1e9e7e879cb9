"""CPU time of methods side by side: round-robin, so that a machine that is busy for a while is busy for all of them."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.probes.models import Task

# glibc gives memory of large temporaries back to the system after each use, and page faults then weigh more than the arithmetic.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "268435456"}
THREADS = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def settled() -> bool:
    """Whether this process was started with the settings above; they act at start only."""
    return all(os.environ.get(name) == value for name, value in {**MEMORY, **THREADS}.items())


def restart(module: str) -> int:
    """Run a module again with the settings and this process's arguments; its exit status."""
    return subprocess.run([sys.executable, "-m", module, *sys.argv[1:]], env={**os.environ, **MEMORY, **THREADS}).returncode


@dataclass(frozen=True)
class Timing:
    """Process CPU seconds of one call: median over the rounds, the quartiles' distance, and the median divided by the reference's.

    `ratio` is the median over rounds of the ratio within a round, which a change of the machine's speed leaves alone.
    """

    seconds: float
    spread: float
    ratio: float


def side_by_side(
    methods: dict[str, Callable[[], Any]], rounds: int = 9, reference: str = "gradient", per: dict[str, int] | None = None
) -> dict[str, Timing]:
    """Each method once per round, in turns, after one unmeasured call; seconds are divided by `per[name]`, the number of units that one call does.

    `methods` must hold the reference, else ratios are to the first method. One thread.
    """
    torch.set_num_threads(1)
    for call in methods.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, call in methods.items():
            began = time.process_time()
            call()
            taken[name].append((time.process_time() - began) / (per or {}).get(name, 1))
    base = taken.get(reference, next(iter(taken.values())))
    found = {}
    for name, times in taken.items():
        low, _, high = quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
        found[name] = Timing(median(times), high - low, median(t / b for t, b in zip(times, base, strict=True)))
    return found


def gradient(task: Task, criterion: Callable[[Any, Any], Any] | None = None) -> Callable[[], Any]:
    """The unit of all ratios: one gradient of the mean cross-entropy, forward and backward, nothing kept."""
    model, x, y = task.rows()
    params = [p for p in model.parameters() if p.requires_grad]
    loss = criterion or torch.nn.CrossEntropyLoss()
    return lambda: torch.autograd.grad(loss(model(x), y), params)


def peak_memory(module: str, *arguments: str) -> float:
    """MiB at the peak of a fresh process that runs `python -m module arguments`; subtract that of a process that only sets up."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False); "
        "from benchmarks.probes.timing import own_peak; print(own_peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, module, *arguments], env={**os.environ, **THREADS}, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def own_peak() -> float:
    """MiB at the peak of this process so far. On Linux getrusage would count what the parent had when it forked."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM:"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

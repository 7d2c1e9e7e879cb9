"""`velodrome targets`: what a workload's targets should be. This file reads the options; `_targets.py` does the work and needs torch."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from velodrome.bench.targets import FOLDER, SEEDS
from velodrome.commands.options import command, parse

HELP = """Propose a workload's three targets from whole runs of the reference, adamw.

  velodrome targets ./my_task.py:task
  velodrome targets ./my_task.py:task --seeds 10 --json

Easy, medium and hard are the values of the metric, rounded up to three digits,
that at least 90 % of the seeds reach by 35, 50 and 65 % of the budget; how far
the seeds lie apart is measured with them. The seeds begin at 1000, where no
race's do, and the lines to write into the workload are printed. A race on a
workload without targets does the same by itself, with the same runs.

Interrupt it with Ctrl-C and give the same command again to go on; finished runs
are not repeated. Exit codes: 0 done, 1 a run failed, 2 a mistake in the command
or the workload, 3 no target can be set, 130 and 143 stopped (saved)."""


@dataclass
class Options:
    """Options of the measurement."""

    workloads: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="WORKLOAD …")]
    """FILE.py:NAME, or names of the package's workloads."""
    seeds: int = SEEDS
    """Number of whole runs."""
    out: Path = field(default_factory=lambda: Path("runs") / FOLDER)
    """Folder of the run records, apart from those of races."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    threads: int = 1
    """Threads of the CPU."""
    bf16: bool = False
    """Forward passes in bfloat16 (autocast)."""
    json: bool = False
    """Print one JSON list instead of text."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress on stderr."""


def main(arguments: list[str]) -> int:
    """0 done, 1 a run failed, 3 no target can be set, 130 or 143 stopped; a mistake is a ValueError."""
    o = parse(Options, "targets", arguments, HELP)
    if o.seeds < 1 or o.threads < 1:
        raise ValueError(f"seeds and threads must be at least 1, got {o.seeds} and {o.threads}.")
    if not o.workloads:
        raise ValueError("name a workload to measure: FILE.py:NAME, or one of `velodrome list workloads`.")
    if o.out.exists() and not o.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {o.out}.")
    work: Any = importlib.import_module("velodrome.commands._targets")  # by name, and only now: it brings torch in
    return work.run(o, command("targets", arguments))

"""`velodrome train`: one algorithm on one workload, in this process. This file reads the options; `_train.py` does the work and needs torch."""

import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from velodrome.commands.options import command, parse

HELP = """Train one algorithm on one workload.

  velodrome train adamw --on digits
  velodrome train "muon(lr=0.01)" --on stdlib-gpt --seed 3 --device cuda --bf16
  velodrome train ./my_optimizer.py:MyOptimizer --on ./my_task.py:task --json
  velodrome train "adamw(schedule='wsd:0.2:sqrt')" --on digits
  velodrome train adamw --on digits --branch-at 200 400 --cooldown 0.2
  velodrome train adamw --on digits --watch 2%

With --branch-at one trunk runs at a constant rate, and at each STEP a run leaves
it to cool down over the last part of its own length; each is, bit by bit, the
run that it would be alone, and the FLOPs saved are told.

Interrupt it with Ctrl-C and give the same command again to go on; a finished
run is not repeated, and a race in the same folder takes it over.
Exit codes: 0 target reached, 3 missed or diverged, 130 and 143 stopped (saved),
2 a mistake in the command, 1 a failure."""


@dataclass
class Options:
    """Options of one run."""

    algorithm: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALGORITHM")]
    """A name, a name with options as "muon(lr=0.01)", or FILE.py:CLASS."""
    on: Annotated[str, tyro.conf.arg(metavar="WORKLOAD")]
    """A workload's name, or FILE.py:NAME."""
    branch_at: Annotated[tuple[int, ...], tyro.conf.arg(metavar="STEP [STEP …]")] = ()
    """Steps of a constant-rate trunk at which runs leave it and cool down."""
    cooldown: float = 0.2
    """With --branch-at: the fraction of each branch that cools down."""
    shape: str = "linear"
    """With --branch-at: linear, sqrt, cosine, mirror-cosine or square."""
    seed: int = 0
    """Initial weights and order of the data."""
    out: Path = field(default_factory=lambda: Path("runs"))
    """Folder of the run records."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    threads: int = 1
    """Threads of the CPU; another number is another run, because it changes the last bits, and a race uses 1."""
    bf16: bool = False
    """Forward passes in bfloat16 (autocast)."""
    compile: bool = False
    """Compile the model with torch.compile; compilation is on the clock."""
    watch: str = ""
    """Look inside while it trains, for at most this share of its time ("2%"
    where none is given); the numbers go to watch.jsonl in its folder."""
    tensorboard: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write TensorBoard events to DIR/RUN as it goes, outside the clock."""
    json: bool = False
    """Print the result as one JSON object."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress on stderr."""


def spelled_out(arguments: list[str]) -> list[str]:
    """`--watch` alone means 2 %."""
    found = []
    for i, word in enumerate(arguments):
        found.append(word)
        if word == "--watch" and not re.match(r"[0-9.]", arguments[i + 1] if i + 1 < len(arguments) else ""):
            found.append("2%")
    return found


def main(arguments: list[str]) -> int:
    """0 target reached, 3 missed or diverged, 1 failed, 130 or 143 stopped; a mistake is a ValueError."""
    o = parse(Options, "train", spelled_out(arguments), HELP)
    if o.seed < 0 or o.threads < 1:
        raise ValueError(f"seed must be at least 0 and threads at least 1, got {o.seed} and {o.threads}.")
    if o.out.exists() and not o.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {o.out}.")
    if not o.branch_at and (o.cooldown, o.shape) != (Options.cooldown, Options.shape):
        raise ValueError(
            f"--cooldown and --shape are about --branch-at, got {o.cooldown:g} and {o.shape} without it: "
            f"write \"{o.algorithm}(schedule='wsd:{o.cooldown:g}:{o.shape}')\" for one run that cools down."
        )
    if o.branch_at and o.watch:
        raise ValueError("--watch looks at one run, and --branch-at makes several: train the one to look at without it.")
    place = "velodrome.commands._branch" if o.branch_at else "velodrome.commands._train"
    work: Any = importlib.import_module(place)  # by name, and only now: it brings torch in
    return work.run(o, command("train", arguments))

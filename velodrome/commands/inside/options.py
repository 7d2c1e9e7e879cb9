"""Options of `velodrome look RUN`: what is opened, what is looked at, and what it may cost. Needs no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from velodrome.commands.race import check_file

Topic = Literal["edge", "spectrum", "noise", "coherence", "updates", "failures", "ntk", "landscape", "examples"]
TOPICS = {
    "updates": "what steps do: sizes, rotation, eps, what bf16 loses",
    "failures": "attention and output logits, collapse, dead units, spikes",
    "edge": "sharpness against the stability threshold of the optimizer",
    "noise": "gradient noise scale: would a larger batch help?",
    "coherence": "whether examples agree, by layer and by class",
    "examples": "easy and hard examples, groups that pull apart",
    "spectrum": "eigenvalues and density of the Hessian",
    "landscape": "the loss along the gradient and the sharpest direction",
    "ntk": "the tangent kernel, its spectrum, its fit to the labels",
}
DEFAULT = ("updates", "failures", "edge", "noise", "coherence", "examples", "spectrum", "landscape")

HELP = """What is inside: numbers with their uncertainty, charts on one HTML page, and what
looks sick in words. Nothing is changed or recorded.

  velodrome look runs/stdlib-gpt-adamw-s0
  velodrome look runs/stdlib-gpt-adamw-s0 --at 100 --steps 100 --what edge updates
  velodrome look runs/digits-adamw-s0/checkpoints/step-150
  velodrome look my_code.py:training --steps 200
  velodrome look weights.safetensors --on my_code.py:training
  velodrome look digits --algorithm "sgd(lr=0.5)" --steps 300

A function returns (model, loss, batches) or (model, loss, batches, optimizer).
From the step opened (--at, the last checkpoint, or the middle of a run) --steps
are made on a copy in memory and watched; what stands still is measured after them.

""" + "\n".join(f"  {name:10} {what}" for name, what in TOPICS.items())


@dataclass
class Inside:
    """Options of `look`."""

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|CHECKPOINT|FILE.py:FUNCTION")]
    """What to open."""
    what: tuple[Topic, ...] = ()
    """What to look at; all but ntk by default."""
    at: int | None = None
    """The step of a run to begin at."""
    steps: int | None = None
    """Steps to watch: 50, or 0 without an optimizer."""
    batches: int = 8
    """Batches of training data to measure on."""
    examples: int | None = None
    """At most so many examples for curvature and kernel; 256, or fewer long ones."""
    micro_batch: int | None = None
    """Cut batches for curvature into parts, for memory."""
    mode: Literal["train", "eval"] | None = None
    """The model's mode; as it trains by default."""
    fix_random: bool = False
    """Accept dropout, and measure one draw of it."""
    on: str | None = None
    """FILE.py:FUNCTION for weights; FILE.py:NAME for a run's own workload."""
    algorithm: str = "adamw"
    """What trains a workload given by its name."""
    budget: float = 60.0
    """Seconds to spend; what does not fit is left out and said."""
    seed: int = 0
    """Initial weights and order of the data of a function; all draws."""
    report: Path = field(default_factory=lambda: Path("look.html"))
    """The HTML file to write."""
    json: bool = False
    """Print one JSON object instead of tables."""


def check(o: Inside) -> None:
    """Refuse numbers that mean nothing, before anything is loaded."""
    least = {"steps": (o.steps, 0), "at": (o.at, 0), "seed": (o.seed, 0), "batches": (o.batches, 1), "examples": (o.examples, 1)}
    for name, (value, low) in {**least, "micro-batch": (o.micro_batch, 1)}.items():
        if value is not None and value < low:
            raise ValueError(f"--{name} must be at least {low}, got {value}.")
    if not 0 < o.budget < float("inf"):
        raise ValueError(f"--budget must be a number of seconds above 0, got {o.budget}.")
    check_file("report", o.report)

"""`velodrome look`: probes of runs and of rules, one sub-command each. This file reads the options; `_look.py` does the work and needs torch."""

import importlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from velodrome.commands.inside.options import HELP as INSIDE
from velodrome.commands.inside.options import Inside
from velodrome.commands.inside.options import check as check_inside
from velodrome.commands.options import command, parse
from velodrome.commands.race import check_file
from velodrome.discover import workload_names

LOOKS = {
    "steps": "what the optimizer's steps do to every parameter of a run",
    "equal": "whether one algorithm is another at another learning rate",
    "convert": "a learning rate for one algorithm from another's",
    "coords": "whether activations keep their size over widths",
    "sharpness": "whether the curvature does, while training",
}
WIDTHS = ("coords", "sharpness")  # looks over widths have a file of their own

HELP = (
    """Look inside a run, a checkpoint or your own training: readings with their
uncertainty, charts, and what looks sick in words. Nothing is changed or recorded.

  velodrome look runs/digits-adamw-s0
  velodrome look my_code.py:training --steps 200

or at one thing:

  velodrome look steps runs/digits-adamw-s0
  velodrome look equal diffgrad adam --on digits
  velodrome look convert adamw lion --on digits --lr 1e-3
  velodrome look coords digits --widths 64 128 256 --parametrisation mup standard

"""
    + "\n".join(f"  {name:9} {what}" for name, what in LOOKS.items())
    + "\n\n`velodrome look RUN --help` and `velodrome look steps --help` tell more."
)

STEPS = """What the next steps of a run do to every parameter: RMS and relative update,
rotation against its equilibrium, trust ratio, share of eps, weights that do not
move; what looks sick is said in words, and an HTML page shows it.

  velodrome look steps runs/digits-adamw-s0
  velodrome look steps runs/digits-adamw-s0 --at 250 --steps 50 --json

From the last checkpoint, or from a step trained again in memory (--at; by default
the middle of a run without checkpoints). The run's folder is not written to."""

EQUAL = """How A relates to B: the factor of the learning rate that makes B's updates A's,
and what remains, on the very same gradients; then both are trained.

  velodrome look equal diffgrad adam --on digits
  velodrome look equal "adamw(lr=0.02)" "adamw(lr=0.01)" --on digits --steps 50

A and B are algorithms of `velodrome list`, rules of the package as diffgrad, or
FILE.py:CLASS. Without --lr both run at A's own learning rate, with A's schedule."""

CONVERT = """The learning rate at which TARGET makes steps as large as SOURCE's, measured on
a short run of SOURCE. A first guess that saves most of a search, not a tuned rate.

  velodrome look convert adamw lion --on digits --lr 1e-3
  velodrome look convert adamw sgd --on digits --lr 1e-3 --match rotation"""

COORDS = """Size of every layer's activations, and of their change, in the first steps against
the width: what a learning rate needs if it is to be carried over. One batch.

  velodrome look coords digits
  velodrome look coords stdlib-gpt --widths 64 128 256 --parametrisation mup standard

The workload needs a model at each width (Workload.at_width, or its sizes)."""

SHARPNESS = """The largest eigenvalue of the Hessian while gradient descent trains, at several
widths: under muP the curves of all widths are one, in the standard
parametrisation they are not (Noci et al. 2024).

  velodrome look sharpness digits --widths 32 128 512"""


@dataclass
class Steps:
    """Options of `look steps`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run; the hash at its end may be left out."""
    steps: int = 20
    """How many steps to look at."""
    at: int | None = None
    """The first step."""
    on: str | None = None
    """The workload as FILE.py:NAME, where the run's was not the package's."""
    report: Path = field(default_factory=lambda: Path("look.html"))
    """The HTML file to write."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass
class Equal:
    """Options of `look equal`."""

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """The algorithm in question."""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """The one it may be."""
    on: Annotated[str, tyro.conf.arg(metavar="WORKLOAD")]
    """A workload's name, or FILE.py:NAME."""
    steps: int = 200
    """Steps to compare, and to train."""
    lr: float | None = None
    """Learning rate of both; A's own by default."""
    seed: int = 0
    """Initial weights and order of the data."""
    json: bool = False
    """Print one JSON object."""


@dataclass
class Convert:
    """Options of `look convert`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The algorithm whose rate is known."""
    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """The algorithm that needs one."""
    on: Annotated[str, tyro.conf.arg(metavar="WORKLOAD")]
    """A workload's name, or FILE.py:NAME."""
    lr: float | None = None
    """SOURCE's rate; its own by default."""
    match: Literal["rms", "rotation"] = "rms"
    """What is made equal: the RMS of the update, or how far the neurons turn."""
    steps: int = 100
    """Length of the short run."""
    seed: int = 0
    """Initial weights and order of the data."""
    json: bool = False
    """Print one JSON object."""


@dataclass
class Coords:
    """Options of `look coords`."""

    on: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WORKLOAD")]
    """A workload's name, or FILE.py:NAME."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Widths to compare."""
    parametrisation: tuple[Literal["mup", "standard"], ...] = ("mup",)
    """One of them, or both."""
    base: int | None = None
    """Width at which both are the same; the smallest by default."""
    algorithm: Literal["sgd", "adamw", "muon"] = "adamw"
    """What trains."""
    lr: float | None = None
    """Its learning rate at the base."""
    steps: int = 5
    """Updates before the sizes are compared."""
    seeds: int = 3
    """Initial weights and batches; an interval needs two."""
    report: Path = field(default_factory=lambda: Path("coords.html"))
    """The HTML file to write."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass
class Sharpness:
    """Options of `look sharpness`."""

    on: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WORKLOAD")]
    """A workload's name, or FILE.py:NAME."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Widths to compare; the smallest is muP's base."""
    parametrisation: tuple[Literal["mup", "standard"], ...] = ("mup", "standard")
    """One of them, or both."""
    lr: float | None = None
    """Learning rate of gradient descent."""
    steps: int = 100
    """Updates to train for."""
    points: int = 6
    """How many times to look on the way."""
    seeds: int = 3
    """Initial weights and order of the data."""
    report: Path = field(default_factory=lambda: Path("sharpness.html"))
    """The HTML file to write."""
    json: bool = False
    """Print one JSON object instead of tables."""


KINDS: dict[str, tuple[Any, str]] = {
    "steps": (Steps, STEPS),
    "equal": (Equal, EQUAL),
    "convert": (Convert, CONVERT),
    "coords": (Coords, COORDS),
    "sharpness": (Sharpness, SHARPNESS),
}


def main(arguments: list[str]) -> int:
    """0 when there was something to see; a mistake is a ValueError."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0 if arguments else 2
    name = arguments[0]
    if name not in LOOKS:
        return _inside(arguments)
    kind, text = KINDS[name]
    o = parse(kind, f"look {name}", arguments[1:], text)
    check(o)
    work: Any = importlib.import_module(
        f"velodrome.commands.{'_widths' if name in WIDTHS else '_look'}"
    )  # by name, and only now: it brings torch in
    return int(getattr(work, name)(o, command("look", arguments)))


def _inside(arguments: list[str]) -> int:
    """A look at whatever the words name."""
    o = parse(Inside, "look", arguments, INSIDE)
    name, path = o.subject, Path(o.subject)
    if ":" not in name and not path.suffix and len(path.parts) == 1 and not path.exists() and name not in workload_names():
        near = get_close_matches(name, [*LOOKS, *workload_names(), *_runs(Path("runs"))], 1, 0.5)
        told = f"did you mean {near[0]!r}?" if near else "give a run's folder, a checkpoint, FILE.py:FUNCTION or a workload."
        raise ValueError(f"unknown look {name!r}: {told}")
    check_inside(o)
    work: Any = importlib.import_module("velodrome.commands.inside.work")
    return int(work.inside(o, command("look", arguments)))


def _runs(folder: Path) -> list[str]:
    return [str(folder / p.name) for p in folder.iterdir()] if folder.is_dir() else []


def check(o: Steps | Equal | Convert | Coords | Sharpness) -> None:
    """Refuse numbers that mean nothing, before anything is loaded."""
    if o.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {o.steps}.")
    if isinstance(o, Steps | Coords | Sharpness):
        check_file("report", o.report)
    if isinstance(o, Steps):
        return
    if isinstance(o, Coords | Sharpness):
        check_widths(o)
    elif o.seed < 0 or (o.lr is not None and not 0 < o.lr < float("inf")):
        raise ValueError(f"--seed must be at least 0 and --lr a finite number above 0, got {o.seed} and {o.lr}.")


def check_widths(o: Coords | Sharpness) -> None:
    """What the looks over widths have beside."""
    if len(set(o.widths)) < 2 or min(o.widths) < 1:
        raise ValueError(f"--widths needs two different widths at least, got {' '.join(map(str, o.widths))}.")
    if o.seeds < 2:
        raise ValueError(f"--seeds must be at least 2, for an interval, got {o.seeds}.")
    if o.lr is not None and not 0 < o.lr < float("inf"):
        raise ValueError(f"--lr must be a finite number above 0, got {o.lr}.")
    if isinstance(o, Sharpness) and o.points < 2:
        raise ValueError(f"--points must be at least 2, got {o.points}.")
    if isinstance(o, Coords) and o.base is not None and o.base < 1:
        raise ValueError(f"--base must be at least 1, got {o.base}.")

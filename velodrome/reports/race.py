"""Race: everything a report shows, as plain values; filled from run folders, read by the table, the charts and the HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from velodrome.bench.scale import Ladder
from velodrome.bench.score import Row, Score, Trial
from velodrome.reports.beside import Beside
from velodrome.reports.resources import Resources
from velodrome.reports.standing import Standing
from velodrome.reports.tuned import Tuning

AXES = {"steps": "Steps", "examples": "Examples", "flops": "FLOPs", "seconds": "Seconds"}
COSTS = (*AXES, "unit_seconds")  # what a speed-up can be about; seconds at the calibrated speed are drawn nowhere (`bench/unit_seconds.py`)


@dataclass(frozen=True)
class Task:
    """A workload as the report needs it: its metric, target, budget in steps, and one sentence about it. `targets_from` says from which runs of the
    reference its targets were set, where it has none of its own (`bench/settling.py`)."""

    name: str
    metric: str
    target: float
    budget: int
    lower_is_better: bool = True
    summary: str = ""
    targets_from: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Curve:
    """Validation of one run: `valid[i]` at cumulative `steps[i]`, `examples[i]`, `flops[i]`, `seconds[i]` (training seconds, evaluation excluded) and
    `unit_seconds[i]` (the same at the machine's calibrated speed).

    A cost that was not measured is an empty sequence; a validation value that is not finite ends the drawn line.
    """

    workload: str
    algorithm: str
    seed: int
    steps: Sequence[float]
    examples: Sequence[float]
    flops: Sequence[float]
    seconds: Sequence[float]
    valid: Sequence[float]
    unit_seconds: Sequence[float] = ()

    @property
    def costs(self) -> dict[str, Sequence[float]]:
        """Those that were measured, by axis."""
        return {axis: values for axis in COSTS if len(values := getattr(self, axis))}


@dataclass(frozen=True)
class Split:
    """Where the training clock went: seconds waiting for data, computing gradients and updating, summed over `steps` steps of all seeds."""

    workload: str
    algorithm: str
    data: float
    gradient: float
    optimizer: float
    steps: int


@dataclass(frozen=True)
class Race:
    """One comparison. `summary` and `score` come from `bench.score`; `trials` mark the hits in the curves; `standing` is what
    else the score says; everything else is shown as given."""

    algorithms: Sequence[str]
    workloads: Sequence[Task]
    curves: Sequence[Curve]
    splits: Sequence[Split]
    trials: Sequence[Trial]
    score: Score
    summary: Sequence[Row]
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()
    title: str = "Velodrome race"
    standing: Standing | None = None
    scale: Ladder | None = None
    tuning: Tuning | None = None
    beside: Beside = field(default_factory=dict)
    resources: Sequence[Resources] = ()

"""Recipe: a whole training algorithm. It is given the model and the horizon, and never learns the name of the workload."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from velodrome.schedules.linear import linear

Schedule = Callable[[int], float]

WARMUP = 0.05  # of the horizon; AlgoPerf's baselines use 2 to 10 %


@dataclass(frozen=True)
class Recipe:
    """How to train: `optimizer(model)` makes the optimizer, `schedule(lr, steps)` the learning rate of its first group.

    `settings` are the numbers that define it, as they go into the record; `source` is the digest of code outside the package, if any.
    `steps` is the recipe's own horizon, where a run ends before the workload's budget. `space` is what a tuned race searches, as `recipes/space.py`
    reads it: "lr=1e-4..1e-1:log,weight_decay=0|0.1".
    """

    name: str
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[float, int], Schedule] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    steps: int | None = None
    space: str = ""


def warm(steps: int) -> int:
    """The warm-up of all recipes here, in steps."""
    return max(1, round(WARMUP * steps))


def warm_linear(lr: float, steps: int) -> Schedule:
    """Linear warm-up over the first 5 % of the horizon, then linearly to zero: the schedule of all recipes here, so that rules are compared."""
    return linear(lr, steps, warmup=warm(steps))

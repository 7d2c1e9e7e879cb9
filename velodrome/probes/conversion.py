r"""From one rule's learning rate to another's: the rate at which the other makes steps of the same size, or of the same rotation.

The same gradients at the same weights go through both rules on a short run of the first (`equivalence.shared`). `rms` matches the root mean square
of the whole update; `rotation` the median angle by which the rows of the weight matrices turn in a step (their own effective rate where a network
does not see the norm of its weights: Kosson et al. 2024, https://arxiv.org/abs/2305.17212). Each step gives a ratio, the answer is their
median. What no such match can know: the noise that a rule averages away, and how stable it is at that rate.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.probes.equivalence import Factory, Loss, Schedule, Update, shared
from velodrome.probes.updates.steps import neuron_rotation

Match = Literal["rms", "rotation"]


@dataclass(frozen=True)
class Conversion:
    """`lr` for the target, with the quartiles `low` and `high` over the steps; `ratio` is `lr` over the source's rate.

    `size` is what was matched, the median over the steps: an RMS in units of the parameters, or an angle in radians.
    """

    lr: float
    ratio: float
    low: float
    high: float
    size: float
    match: Match
    steps: int


def convert_lr(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    source: Factory,
    target: Factory,
    steps: int = 100,
    *,
    match: Match = "rms",
    skip: int = 10,
    lr: Schedule | None = None,
) -> Conversion:
    """The learning rate (of the first group) for `target` that matches the steps of `source` at its own rate.

    `source` and `target` make an optimizer for a model; the rate at which `target` is made only has to be above 0. The first `skip` steps are not
    counted: there momentum and bias corrections are still on their way. `lr(t)` is a schedule of `source`'s rate; the answer is in its units.
    """
    if match not in ("rms", "rotation"):
        raise ValueError(f"match must be 'rms' or 'rotation', got {match!r}.")
    if steps <= skip:
        raise ValueError(f"steps must be more than skip={skip}, got {steps}: write steps={skip + 100}.")
    base, other = first_rate(source, model), first_rate(target, model)
    ratios, sizes = [], []
    for t, updates in enumerate(shared(model, loss, batches, source, target, steps, lr)):
        if t >= skip and (found := matched(updates, match)) is not None:
            ratios.append(found[0])
            sizes.append(found[1])
    if not ratios:
        why = "one of the rules never moved" + (", or the model has no weight matrix" if match == "rotation" else "")
        raise ValueError(f"no step could be matched by {match}: {why}.")
    # With a schedule both ran at lr(t), so that the factor is one of updates per unit of rate; without, at the rates they were made with.
    low, ratio, high = (x * (1.0 if lr is not None else other / base) for x in quartiles(ratios))
    return Conversion(base * ratio, ratio, base * low, base * high, median(sizes), match, len(ratios))


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return [float(x) for x in torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))]


def first_rate(factory: Factory, model: nn.Module) -> float:
    """The rate of the first group that has one above 0; ValueError if there is none."""
    rates = [float(group["lr"]) for group in factory(model).param_groups if "lr" in group]
    rate = next((r for r in rates if r > 0), None)
    if rate is None:
        raise ValueError("both algorithms need a learning rate above 0 to be compared.")
    return rate


def matched(updates: list[Update], match: Match) -> tuple[float, float] | None:
    """(the factor that makes the target's update of one step as large as the source's, that size); None where one of them did not move."""
    goal, size = measured(updates, "a", 1.0, match), measured(updates, "b", 1.0, match)
    if not goal or not size:
        return None
    factor = goal / size
    for _ in range(20 if match == "rotation" else 0):  # an angle is proportional to its step only while both are small
        size = measured(updates, "b", factor, match) or goal
        factor *= goal / size
    return factor, goal


def measured(updates: list[Update], whose: Literal["a", "b"], factor: float, match: Match) -> float | None:
    """RMS of the whole update times the factor, or the median over the matrices of their rows' median angle."""
    changes: list[Tensor] = [factor * getattr(u, whose) for u in updates]
    if match == "rms":
        return (sum(float(x.square().sum()) for x in changes) / sum(x.numel() for x in changes)) ** 0.5
    angles = [a for u, x in zip(updates, changes, strict=True) if (a := neuron_rotation(u.before, u.before + x)) is not None]
    return median(angles) if angles else None

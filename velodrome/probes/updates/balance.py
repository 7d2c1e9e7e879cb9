"""Equilibrium against prediction: how fast the neurons of a run turn, over how fast they would where decay and updates balance (Kosson et al. 2024).

    reports = [...]                                  # of `steps.effective_steps`, one for each observed step
    for name, found in against_balance(reports).items():
        print(name, found.angle.value, found.angle.low, found.angle.high, found.settled)

https://arxiv.org/abs/2305.17212; the predictions and what they take for granted are in `updates.equilibrium`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from velodrome.probes.estimate import Estimate
from velodrome.probes.updates.series import mean_of
from velodrome.probes.updates.steps import Report

RATIO = "measured over predicted, no unit"


@dataclass(frozen=True)
class Balance:
    """Measured over predicted `angle` per step and `norm` of the median row, means over the steps with 95 % intervals.

    `settled`: whether the parameter has had two time constants of updates, None where the optimizer does not count them; before that a ratio off 1 says
    nothing but that it is early.
    """

    angle: Estimate
    norm: Estimate
    settled: bool | None

    @property
    def balanced(self) -> bool:
        """Whether the interval of the angle's ratio holds 1."""
        return self.angle.low <= 1 <= self.angle.high


def against_balance(reports: Sequence[Report]) -> dict[str, Balance]:
    """The ratios of every matrix and filter with a known balance, over the steps of the reports; with fewer than three steps they are not identified."""
    found = {}
    for name in dict.fromkeys(n for r in reports for n, x in r.parameters.items() if x["equilibrium"]):
        rows = [r.parameters[name] for r in reports if name in r.parameters]
        last = next(r for r in reversed(reports) if name in r.parameters)
        t, needed = last.about[name]["t"], last.parameters[name]["balance_steps"]
        settled = None if t is None or needed is None else t >= 2 * needed
        note = "" if settled is not False else f"early: {t} updates made, balance takes some {needed:.0f}"
        angles = [a / e for x in rows if (a := x["neuron_rotation"]) is not None and (e := x["equilibrium"])]
        norms = [a / e for x in rows if (a := x["neuron_norm"]) is not None and (e := x["equilibrium_norm"])]
        found[name] = Balance(mean_of(angles, RATIO, note), mean_of(norms, RATIO, note), settled)
    return found

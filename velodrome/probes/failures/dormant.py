r"""Units that have gone silent: the dormant share (Sokar et al. 2023, https://arxiv.org/abs/2302.12902) and dead units.

    with dormant(model, tau=0.025) as seen:
        model(x)
    print(seen.share, seen.layers["0"].units)

The score of unit i is $s_i = \mathrm{E}|h_i|$ over the mean of $\mathrm{E}|h_k|$ over the units k of its layer. Sokar et al.: $h$ behind the activation
function, dormant where $s_i \le \tau$. DrM (Xu et al. 2023, https://arxiv.org/abs/2310.19668, and its code): $h$ the output of every nn.Linear, the last
included, dormant where $s_i < \tau = 0.025$. The two disagree: a ReLU unit whose inputs are all far below zero is dormant to the first alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, exact, unidentified
from velodrome.probes.failures.watcher import Watcher, numbers, rows

NAMES = (
    *("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "celu", "mish", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "prelu", "glu", "rrelu", "softsign", "logsigmoid"),
)
ACTIVATIONS = [f for name in NAMES for place in (F, torch, Tensor) if (f := getattr(place, name, None)) is not None]
ACTIVATIONS += [f for name in NAMES for place in (F, torch, Tensor) if (f := getattr(place, name + "_", None)) is not None]
SHARE = "share of the units, 0 to 1"


@dataclass(frozen=True)
class Layer:
    """`dormant` and `dead` (silent on every example seen) of `units`; `lowest` is the smallest score."""

    units: int
    dormant: int
    dead: int
    lowest: float


@dataclass
class Dormant:
    """`layers` by name, filled on leaving; `seen` counts the examples and positions that the least looked at layer saw."""

    layers: dict[str, Layer] = field(default_factory=dict)
    seen: int = 0

    @property
    def share(self) -> Estimate:
        """Dormant units over units, of all layers."""
        return self._over("dormant")

    @property
    def dead(self) -> Estimate:
        """Dead units over units; what fires more rarely than 3 times in the positions seen may be among them."""
        return self._over("dead")

    def _over(self, what: Literal["dormant", "dead"]) -> Estimate:
        units = sum(x.units for x in self.layers.values())
        if not units:
            return unidentified(SHARE, "no activation function was called inside")
        note = f"a unit that fires for fewer than {3 / self.seen:.1g} of the positions may pass for silent"
        return exact(sum(getattr(x, what) for x in self.layers.values()) / units, SHARE, n=self.seen, note=note)


class Scores:
    """Collects the mean absolute value of every unit; one line of a watcher."""

    def __init__(self, watcher: Watcher, tau: float, definition: Literal["sokar", "drm"], most: int | None) -> None:
        if not isinstance(tau, int | float) or isinstance(tau, bool) or not 0 <= tau < 1:
            raise ValueError(f"tau must be in [0, 1), got {tau!r}: write tau=0.025.")
        if definition not in ("sokar", "drm"):
            raise ValueError(f"definition must be 'sokar' or 'drm', got {definition!r}.")
        self.tau, self.definition, self.most = tau, definition, most
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.watcher = watcher
        if definition == "drm":
            watcher.on_module(lambda m: isinstance(m, nn.Linear), lambda name, m, args, kwargs, y: self.note(name, y))
        else:
            watcher.on_function(ACTIVATIONS, lambda name, args, kwargs, y: self.note(name, y))

    def note(self, name: str, output: Any) -> None:
        """Add one call."""
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
            return
        x = rows(output, self.most, unit=1 if output.ndim >= 4 else -1)  # four dimensions are images: a unit is a channel
        total = x.abs().sum(0, dtype=torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype)
        if (before := self.sums.get(name)) is None:
            self.sums[name] = total, len(x)
        elif before[0].shape == total.shape:
            self.sums[name] = before[0] + total, before[1] + len(x)

    def fill(self, seen: Dormant) -> None:
        """Bring the numbers to the host."""
        counts = []
        for total, _ in self.sums.values():
            score = total / total.mean()  # a layer that is silent altogether is 0/0, and dormant
            silent = (score <= self.tau if self.definition == "sokar" else score < self.tau) | ~torch.isfinite(score)
            counts.append(torch.stack([silent.sum(), (total == 0).sum(), score.min()]))
        for (name, (total, count)), (dormant_, dead, lowest) in zip(self.sums.items(), numbers(counts), strict=True):
            seen.layers[name] = Layer(total.numel(), int(dormant_), int(dead), 0.0 if math.isnan(lowest) else lowest)
            seen.seen = min(seen.seen or count, count)


@contextmanager
def dormant(
    model: nn.Module, tau: float = 0.025, *, definition: Literal["sokar", "drm"] = "sokar", most: int | None = None
) -> Iterator[Dormant]:
    """Dormant and dead units over the forward passes made inside, of every activation function (or, for "drm", every nn.Linear) that is called.

    Called as a module or as a function (`F.relu` in somebody's forward); a unit is the last dimension, for images a channel. `most` looks at so many
    evenly spaced examples and positions. The model computes what it computes anyway, bit for bit.
    """
    seen, watcher = Dormant(), Watcher(model)
    scores = Scores(watcher, tau, definition, most)
    with watcher.watching():
        yield seen
    scores.fill(seen)

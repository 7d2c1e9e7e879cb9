"""Lazy or rich: how far the tangent kernel, the weights and the features have moved since a snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, exact
from velodrome.probes.functions.features import features
from velodrome.probes.functions.kernel import distance
from velodrome.probes.functions.ntk import Kernel, Outputs, ntk
from velodrome.probes.objective import Objective

LAZY, RICH = 0.1, 0.5  # relative changes of the kernel; a convention of ours, there is none in the literature


@dataclass(frozen=True)
class Snapshot:
    """A kernel, the weights and some layers' features (n, d) at one moment."""

    kernel: Kernel
    weights: dict[str, Tensor]
    features: dict[str, Tensor]


@dataclass(frozen=True)
class Drift:
    r"""`distance` 1 - cosine of the kernels, blind to a factor; `kernel` $\|K_t - K_0\|/\|K_0\|$; `weights` $\|\theta_t - \theta_0\|/\|\theta_0\|$ and by
    parameter; `features` $\|\Phi_t - \Phi_0\|/\|\Phi_0\|$ by layer. All are ratios, 0 without a change.

    `verdict`: "lazy" where the kernel changed by less than a tenth, "rich" by more than a half, else "between"; a convention. The weights' relative change
    does not tell the two apart: wide networks in the rich regime move their weights little too.
    """

    distance: Estimate
    kernel: Estimate
    weights: Estimate
    parameters: dict[str, Estimate]
    features: dict[str, Estimate]
    verdict: str


def snapshot(objective: Objective, layers: Sequence[str] = (), outputs: Outputs = "trace") -> Snapshot:
    """What `drift` compares: the exact kernel on the objective's examples, a copy of the weights, and the outputs of the `layers` named."""
    weights = {name: p.detach().clone() for name, p in objective.params.items()}
    return Snapshot(ntk(objective, outputs), weights, {name: features(objective, name) for name in layers})


def drift(before: Snapshot, after: Snapshot) -> Drift:
    """What has changed between two snapshots of one network on the same examples."""
    if before.weights.keys() != after.weights.keys() or before.features.keys() != after.features.keys():
        raise ValueError("the snapshots must be of one network and the same layers.")
    change = _relative([before.kernel.matrix], [after.kernel.matrix])
    verdict = "lazy" if change.value < LAZY else "rich" if change.value > RICH else "between"
    return Drift(
        distance(before.kernel, after.kernel),
        change,
        _relative(list(before.weights.values()), list(after.weights.values())),
        {name: _relative([w], [after.weights[name]]) for name, w in before.weights.items()},
        {name: _relative([f], [after.features[name]]) for name, f in before.features.items()},
        verdict,
    )


def _relative(old: list[Tensor], new: list[Tensor]) -> Estimate:
    size = torch.stack([x.double().norm() for x in old]).norm()
    gap = torch.stack([(y.double() - x.double()).norm() for x, y in zip(old, new, strict=True)]).norm()
    return exact(float(gap / size) if size > 0 else float("nan"), "ratio", note="" if size > 0 else "was zero")

r"""Directional sharpness: the curvature along one direction, by one Hessian-vector product; what critical sharpness is on a parabola."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.estimate import Estimate, exact, unidentified
from velodrome.probes.objective import Objective


@dataclass(frozen=True)
class Directional:
    r"""Along $u$: `curvature` $u^T H u/\|u\|^2$ in loss/parameter², `slope` $g^T u/\|u\|$ in loss/parameter, and `sharpness`
    $-u^T H u/(\eta\,g^T u)$ in loss/(parameter · update), the critical sharpness of a parabola (Kalra et al. 2026); $\eta u$ is then the
    update itself. Not identified where u does not point downhill."""

    curvature: Estimate
    slope: Estimate
    sharpness: Estimate


def directional_sharpness(objective: Objective, direction: Sequence[Tensor], lr: float = 1.0) -> Directional:
    """Along `direction`, one tensor for each of `objective.params`; for an update pass the rate it was made with as `lr`."""
    H = hessian(objective)
    u = torch.cat([d.detach().flatten() for d in direction]).to(H.dtype)
    if u.numel() != H.n:
        raise ValueError(f"direction must have one tensor for each of objective.params, {H.n} numbers together, got {u.numel()}.")
    size = u.double().norm()
    if not float(size) > 0:
        raise ValueError("direction must not be zero: there is no curvature along nothing.")
    unit = (u.double() / size).to(H.dtype)
    curvature, slope = float(unit.double() @ (H @ unit).double()), float(H.gradient.double() @ unit.double())
    cost = {"products": 1.0}
    units = "loss/(parameter · update)"
    sharpness = (
        exact(-curvature * float(size) / (slope * lr), units, cost=cost)
        if slope < 0
        else unidentified(units, "the direction does not point downhill", cost=cost)
    )
    return Directional(exact(curvature, "loss/parameter²", cost=cost), exact(slope, "loss/parameter", cost=cost), sharpness)

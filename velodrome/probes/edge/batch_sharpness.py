r"""Batch sharpness: what stays at $2/\eta$ where SGD trains by batches (Andreyev & Beneventano, https://arxiv.org/abs/2412.20553).

$$S_B = \mathbb{E}_B\left[\frac{g_B^T H_B\, g_B}{\|g_B\|^2}\right]$$

is the curvature of a batch's loss along that batch's own gradient, on average. By it SGD is at its edge while the largest eigenvalue of the whole
Hessian is still below $2/\eta$. With momentum $\mu$ there are two plateaus (https://arxiv.org/abs/2604.14108): $2(1-\mu)/\eta$ for small batches and
$2(1+\mu)/\eta$ for large ones.
"""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from velodrome.probes.edge.gauge import Verdict, verdict
from velodrome.probes.estimate import Estimate, sampled, unidentified
from velodrome.probes.objective import Objective, examples

FEWEST = 8  # batches for an interval


@dataclass(frozen=True)
class BatchSharpness:
    r"""`value`: $S_B$ in loss/parameter², its interval Student's over the batches. `ratio`: $S_B\,\eta/2$, no unit, 1 is the edge of plain SGD.

    `verdict`: of the ratio, as in `gauge.py`; with momentum against both plateaus: "below the edge" under the lower, "above" over the upper one, between
    them "not separable", for which one holds depends on the batch size. `plateaus`: those in units of $2/\eta$, equal without momentum.
    """

    value: Estimate
    ratio: Estimate
    plateaus: tuple[float, float]
    verdict: Verdict


def batch_sharpness(objective: Objective, lr: float, *, momentum: float = 0.0, tolerance: float = 0.1) -> BatchSharpness:
    """Over the batches of the objective: 8 or more independent ones, of the size that trains. SGD with the rate `lr`.

    One gradient and one Hessian-vector product a batch. A batch whose gradient is zero tells nothing and is left out. Heavy tails over batches make an
    interval of few of them too short: with 8 to 32 batches of a small network it held what it promises. ValueError for fewer than 8 batches, for other
    sizes.
    """
    sizes = {examples(b) for b in objective.batches}
    if len(objective.batches) < FEWEST or len(sizes) > 1:
        raise ValueError(
            f"batch sharpness needs {FEWEST} or more batches of one size, got {len(objective.batches)} of sizes {sorted(sizes)}: "
            "write Objective(model, loss, list_of_batches) without micro_batch."
        )
    if not lr > 0 or not 0 <= momentum < 1:
        raise ValueError(f"lr must be above 0 and momentum in [0, 1), got lr={lr!r}, momentum={momentum!r}.")
    values = along_gradients(objective)
    cost = {"products": float(len(objective.batches))}
    plateaus = (1 - momentum, 1 + momentum)
    if len(values) < FEWEST:
        why = "most batches have no gradient"
        none = unidentified("loss/parameter²", why, len(values), cost=cost), unidentified("", why, len(values), cost=cost)
        return BatchSharpness(*none, plateaus, "not separable")
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    value = sampled(mean, error, "loss/parameter²", len(values), cost=cost)
    ratio = sampled(mean * lr / 2, error * lr / 2, "", len(values), cost=cost)
    where = verdict(ratio, tolerance)
    if momentum and not ratio.high < plateaus[0] * (1 - tolerance):
        where = "above" if ratio.low > plateaus[1] * (1 + tolerance) else "not separable"
    return BatchSharpness(value, ratio, plateaus, where)


def along_gradients(objective: Objective) -> torch.Tensor:
    r"""$g_B^T H_B g_B/\|g_B\|^2$ of each batch that has a gradient, float64, in loss/parameter²."""
    params, found = list(objective.params.values()), list[torch.Tensor]()
    for batch in objective.batches:
        with objective.ready(), sdpa_kernel(SDPBackend.MATH):
            grads = torch.autograd.grad(objective.mean_of(batch), params, create_graph=True, materialize_grads=True)
            directions = [g.detach() for g in grads]
            size = torch.stack([g.double().square().sum() for g in directions]).sum()
            if not float(size) > 0:
                continue
            unit = [(g / size.sqrt()).to(g.dtype) for g in directions]
            products = torch.autograd.grad(grads, params, unit, materialize_grads=True)
        found.append(torch.stack([(h.double() * u.double()).sum() for h, u in zip(products, unit, strict=True)]).sum())
    return torch.stack(found).cpu() if found else torch.empty(0, dtype=torch.float64)

r"""Nuclear norms of the layers' gradients, and how much they differ from layer to layer (Li et al. 2024, https://arxiv.org/abs/2410.23743)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, exact, unidentified
from velodrome.probes.objective import Objective


@dataclass(frozen=True)
class Spectrum:
    r"""Of one matrix of gradients: the sum of its singular values, the root of the sum of their squares (loss/parameter), and the first one's share.

    `first` is $\sigma_1 / \sum_i \sigma_i$: 1 for rank one, where `nuclear` equals `frobenius`; NaN for a gradient of zeros.
    """

    nuclear: Estimate
    frobenius: Estimate
    first: Estimate


def spectra(gradients: Mapping[str, Tensor]) -> dict[str, Spectrum]:
    """Of every gradient with two dimensions or more, by name; convolutions as (outputs, everything else). In float64 on the gradient's device."""
    found = {}
    for name, g in gradients.items():
        if g.ndim < 2:
            continue
        if not bool(g.isfinite().all()):
            raise ValueError(f"the gradient of {name} is not finite: look before the run diverges.")
        s = torch.linalg.svdvals(g.detach().flatten(1).double())
        total, unit = float(s.sum()), "loss/parameter"
        first = exact(float(s[0]) / total, "1") if total > 0 else unidentified("1", "the gradient is zero")
        found[name] = Spectrum(exact(total, unit), exact(float(s.square().sum().sqrt()), unit), first)
    return found


def gradient_spectra(objective: Objective) -> dict[str, Spectrum]:
    """Of the objective's mean gradient. ValueError if no parameter looked at is a matrix."""
    if all(p.ndim < 2 for p in objective.params.values()):
        raise ValueError(f"none of {', '.join(list(objective.params)[:4])} is a matrix: choose other params.")
    with objective.ready():
        grads = torch.autograd.grad(objective.mean(), list(objective.params.values()), materialize_grads=True)
    return spectra(dict(zip(objective.params, grads, strict=True)))


def unevenness(found: Mapping[str, Spectrum], pattern: str = "*") -> Estimate:
    r"""$\mathrm{MAD} = \frac{1}{L-1}\sum_l |s_l - s_{l+1}|$ of nuclear norms s, layers that match in the model's order; loss/parameter."""
    values = [s.nuclear.value for name, s in found.items() if fnmatchcase(name, pattern)]
    if len(values) < 2:
        return unidentified("loss/parameter", f"needs two layers that match {pattern!r}, got {len(values)}", len(values))
    return exact(mean_step(values), "loss/parameter", n=len(values))


def mean_step(values: Sequence[float]) -> float:
    """The mean absolute difference of neighbours."""
    return sum(abs(a - b) for a, b in pairwise(values)) / (len(values) - 1)

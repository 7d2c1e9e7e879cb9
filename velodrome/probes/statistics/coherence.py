r"""Coherence: how far the examples of a batch agree on where to go (Chatterjee and Zielinski 2020, https://arxiv.org/abs/2008.01217).

$\alpha = \lVert\mathrm{E}\,g\rVert^2 / \mathrm{E}\lVert g\rVert^2$, 0 for gradients that cancel and 1 for identical ones. A sample of m has
$\alpha_m \ge$ about 1/m even where there is no agreement; m-coherence is $m\,\alpha_m$: 1 for mutually orthogonal gradients, m for identical ones: how many
examples one example's gradient serves. It is the noise scale in another unit: $B_{simple} = 1/\alpha - 1$.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from velodrome.data.stream import Batch
from velodrome.probes.estimate import Estimate, between, exact, sampled, unidentified
from velodrome.probes.objective import Objective, joined, pick
from velodrome.probes.statistics.ghost import ExampleNorms, gradient_norms
from velodrome.probes.statistics.noise_scale import one_sample
from velodrome.probes.statistics.ratio import fieller


@dataclass(frozen=True)
class Coherence:
    r"""`alpha` is the sample's $\alpha_m$; `unbiased` estimates the population's $\alpha$ and may be negative; `m_coherence` is
    $m\,\alpha_m = 1 + (m-1)\hat\alpha$.

    The last two have 95 % intervals where the norms have inner products (delete-one jackknife, Fieller's ratio), which are about other samples of m
    examples from the same source. All are ratios; m-coherence counts examples.
    """

    alpha: Estimate
    unbiased: Estimate
    m_coherence: Estimate
    m: int


def coherence(norms: ExampleNorms) -> Coherence:
    """Of the examples of one pass, two or more, over all parameters in `norms` (`norms.only(names)` for some)."""
    mean, covariance, freedom = one_sample(norms)
    m, (trace, squared) = norms.n, mean
    size = trace + squared  # the mean squared norm
    if not size > 0:
        none = unidentified("1", "all gradients are zero", m)
        return Coherence(none, none, unidentified("examples", "all gradients are zero", m), m)
    alpha, value = norms.total / size, squared / size
    if freedom < 1:
        note = "one pass without inner products has no interval"
        return Coherence(
            exact(alpha, "1", n=m), sampled(value, 0.0, "1", 1, note=note), sampled(m * alpha, 0.0, "examples", 1, note=note), m
        )
    # of (|G|², tr Σ + |G|²) instead of (tr Σ, |G|²)
    turn = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64).numpy()
    low, high = fieller(turn @ mean, turn @ covariance @ turn.T, freedom)
    if not (isfinite(low) and isfinite(high)):
        few = unidentified("1", "the gradients' size itself is not known well enough: more examples", m)
        return Coherence(exact(alpha, "1", n=m), few, unidentified("examples", few.note, m), m)
    return Coherence(
        exact(alpha, "1", n=m),
        between(value, low, high, "1", m),
        between(m * alpha, 1 + (m - 1) * low, 1 + (m - 1) * high, "examples", m),
        m,
    )


def by_layer(norms: ExampleNorms) -> dict[str, Coherence]:
    """Of each module that owns parameters."""
    return {name: coherence(layer) for name, layer in norms.layers().items()}


def by_class(objective: Objective, labels: Tensor | None = None, *, inner: bool = True) -> dict[int, Coherence]:
    """Of the examples of each class among themselves: one pass a class, as dear as one over all examples. Classes with fewer than three are left out.

    `labels` (n,) are the targets by default, which must then be one whole number for each example (ValueError).
    """
    whole = objective.batches[0]
    for part in objective.batches[1:]:
        whole = joined(whole, part)
    labels = whole.targets if labels is None else labels
    if not isinstance(labels, Tensor) or labels.shape != (objective.examples,) or labels.is_floating_point():
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be one whole number for each of {objective.examples} examples, got {shape}: give labels=….")
    found: dict[int, Coherence] = {}
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        if len(places) >= 3:
            found[int(label)] = coherence(gradient_norms(among(objective, pick(whole, places)), inner=inner)[0])
    return found


def among(objective: Objective, batch: Batch) -> Objective:
    """The same question about other examples."""
    options: Mapping[str, Any] = {
        "params": list(objective.params),
        "mode": objective.mode,
        "fix_random": objective.fix_random,
        "check": False,
    }
    return Objective(objective.model, objective.loss, batch, **options)

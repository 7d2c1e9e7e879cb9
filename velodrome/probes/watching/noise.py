"""The gradient noise scale while a run trains: from the loop's own backward pass where hooks see it, else from a pass of its own."""

from contextlib import AbstractContextManager, ExitStack
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, between, unidentified
from velodrome.probes.statistics.ghost import ExampleNorms, Seen, example_norms, gradient_norms
from velodrome.probes.statistics.noise_scale import GradientNoise
from velodrome.probes.watching.passes import noted
from velodrome.probes.watching.probe import Probe, View


class Noise(Probe):
    r"""`scale`: $B_{simple} = \mathrm{tr}\,\Sigma/|G|^2$ in examples over the last 100 looks, `smoothed` that of moving averages; `coherence`: $1/(1+B)$,
    the share of the gradients that all examples have in common.

    Where the watch sees the steps by itself, the squared norms of single examples are read off the loop's own backward pass; where steps are told, off
    another pass over the batch or a part of it. Under DDP that pass is over the batches of all processes, the loop's own is over this one's.
    """

    name, needs, prior, every = "noise", "examples", 2.0, 10

    def __init__(self) -> None:
        self.noise = GradientNoise()
        self.seen: Seen | None = None
        self.checked = False

    def around(self, view: View) -> AbstractContextManager[Any] | None:
        """The hooks of `example_norms` for one step."""
        if view.told:
            return None
        stack = ExitStack()
        self.seen = stack.enter_context(example_norms(view.model))
        return stack

    def measure(self, view: View) -> dict[str, Estimate]:
        """Add this step's, and tell what all looks so far come to."""
        if view.told or self.seen is None:
            self.own(view)
        else:
            norms, self.seen = self.seen.norms, None
            self.noise.add(norms)
        found = self.noise.estimate()
        label = view.label() if view.told else ""
        out = {"scale": found.value, "coherence": coherence(found.value)}
        if found.smoothed is not None:
            out["smoothed"] = found.smoothed
        return {name: noted(e, label) for name, e in out.items()}

    def own(self, view: View) -> None:
        """Another pass; with several processes all of them learn of an error in one, or they would wait for it."""
        norms: ExampleNorms | None = None
        grads: dict[str, Tensor] = {}
        error: Exception | None = None
        try:
            norms, grads = gradient_norms(view.objective(check=not self.checked))
            self.checked = True
        except Exception as failure:
            error = failure
        failures = float(view.ranks.sum(torch.tensor([float(error is not None)], dtype=torch.float64)))
        if error is not None:
            raise error
        if failures or norms is None:
            raise RuntimeError("another process could not measure it")
        if not view.ranks.parallel:
            self.noise.add(norms)
            return
        mean = view.ranks.sum(torch.cat([g.flatten() for g in grads.values()])) / view.ranks.size
        squares = view.ranks.sum(torch.tensor([float(norms.squared.sum()), float(norms.n)], dtype=torch.float64)).tolist()
        self.noise.add_batches(1, squares[1], squares[0] / squares[1], float(torch.linalg.vector_norm(mean, dtype=torch.float64)) ** 2)


def coherence(scale: Estimate) -> Estimate:
    """1/(1 + B) of a noise scale B with its interval; it falls where B rises."""
    if not scale.identified:
        return unidentified("share of the gradient, 0 to 1", scale.note, scale.n)
    low, high = (1 / (1 + max(x, 0.0)) if not isfinite(x) or x > -1 else 1.0 for x in (scale.high, scale.low))
    return between(1 / (1 + scale.value), low, high, "share of the gradient, 0 to 1", scale.n)

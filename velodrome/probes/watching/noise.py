"""The gradient noise scale while a run trains: from the loop's own backward pass where hooks see it, else from a pass of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, between, unidentified
from velodrome.probes.objective import chosen
from velodrome.probes.statistics.ghost import ExampleNorms, gathered, gradient_norms
from velodrome.probes.statistics.noise_scale import GradientNoise
from velodrome.probes.statistics.observer import Observer
from velodrome.probes.watching.passes import noted
from velodrome.probes.watching.probe import Probe, View

TELL = "tell the steps, seen.step(loss=loss, batch=(inputs, targets))"


class Forgiving(Observer):
    """Put around the loop's own passes, which an error of ours must not end: the first one is kept for later, and nothing more is seen."""

    error: Exception | None = None

    def _try(self, see: Callable[..., None], *given: Any) -> None:
        if self.error is None:
            try:
                see(*given)
            except Exception as error:
                self.error = error

    def _enter(self, *given: Any) -> None:
        self._try(super()._enter, *given)

    def _called(self, *given: Any) -> None:
        self._try(super()._called, *given)

    def _called_whole(self, *given: Any) -> None:
        self._try(super()._called_whole, *given)

    def _leave(self, *given: Any) -> None:
        self._try(super()._leave, *given)

    def _delta(self, *given: Any) -> None:
        self._try(super()._delta, *given)

    def _table(self, *given: Any) -> None:
        self._try(super()._table, *given)

    def _placed(self, *given: Any) -> None:
        self._try(super()._placed, *given)

    def _arrived(self, *given: Any) -> None:
        self._try(super()._arrived, *given)

    def norms(self) -> ExampleNorms:
        """Of the one pass that was seen."""
        if self.error is not None:
            raise self.error
        if not self.arrivals:
            raise RuntimeError("no gradient passed through the model")
        if len(self.arrivals) > 1 or len([p for p in self.passes if p.squared]) > 1:
            raise ValueError(f"the gradient of a step comes from several passes: {TELL}.")
        self.finish()
        return gathered(self, float(self.passes[-1].examples))


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """The hooks are on inside."""
    observer.start()
    try:
        yield
    finally:
        observer.stop()


class Noise(Probe):
    r"""`scale`: $B_{simple} = \mathrm{tr}\,\Sigma/|G|^2$ in examples over the last 100 looks, `smoothed` that of moving averages; `coherence`: $1/(1+B)$,
    the share of the gradients that all examples have in common.

    Where the watch sees the steps by itself, the squared norms of single examples are read off the loop's own backward pass; where steps are told, off
    another pass over the batch or a part of it. Under DDP that pass is over the batches of all processes, the loop's own is over this one's.
    """

    name, needs, prior, every = "noise", "examples", 2.0, 10

    def __init__(self) -> None:
        self.noise = GradientNoise()
        self.seen: Forgiving | None = None
        self.checked = False

    def around(self, view: View) -> AbstractContextManager[Any] | None:
        """The hooks of `statistics.ghost`, for one step."""
        if view.told:
            return None
        if view.compiled:
            raise ValueError(f"the model is compiled, and its layers are not seen: {TELL}.")
        self.seen = Forgiving(view.model, chosen(view.model, None), inner=False)
        return observing(self.seen)

    def measure(self, view: View) -> dict[str, Estimate]:
        """Add this step's, and tell what all looks so far come to."""
        if view.told or self.seen is None:
            self.own(view)
        else:
            seen, self.seen = self.seen, None
            self.noise.add(seen.norms())
        found = self.noise.estimate()
        label = view.label() if view.told else view.whose()
        if view.told and view.ranks.parallel:
            label = f"{view.size} of {view.examples} examples of each of {view.ranks.size} processes"
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

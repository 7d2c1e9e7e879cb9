r"""Squared norms of the gradients of single examples, from the one backward pass that gives the batch's gradient.

Goodfellow 2015 (https://arxiv.org/abs/1510.01799) for layers that see an example once, Li et al. 2022 (https://arxiv.org/abs/2110.05679) for sequences;
`uses.py` has the layers, `paths.py` bare parameters that are added or expanded, and what neither covers is run again under vmap (`whole.py`). A parameter
that none of them accounts for is an error that names it, so no norm is silently too small.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.probes.objective import Objective, chosen, examples
from velodrome.probes.statistics.observer import Observer, wide
from velodrome.probes.statistics.uses import squared_norm


@dataclass(frozen=True)
class ExampleNorms:
    r"""What n examples' gradients $g_i$ and their mean $\bar g$ are like. Tensors (n,) in float64, in (loss/parameter)², in the order of the examples.

    `squared` is $\lVert g_i\rVert^2$ over all parameters looked at and `parameters` the same for each; `mean_squared` is $\lVert\bar g\rVert^2$ of each
    parameter. `inner` and `inner_parameters` are $\langle g_i, \bar g\rangle$ where they were asked for. `losses` (n,) where the loss gives them.
    `batches` lists (examples, squared norm of their mean gradient) of every backward pass, for the noise scale from two batch sizes.
    """

    parameters: dict[str, Tensor]
    mean_squared: dict[str, float]
    inner_parameters: dict[str, Tensor] | None = None
    losses: Tensor | None = None
    batches: tuple[tuple[int, float], ...] = ()

    @property
    def squared(self) -> Tensor:
        """Over all parameters (n,)."""
        return torch.stack(list(self.parameters.values())).sum(0)

    @property
    def inner(self) -> Tensor | None:
        """Over all parameters (n,), or None."""
        return None if self.inner_parameters is None else torch.stack(list(self.inner_parameters.values())).sum(0)

    @property
    def total(self) -> float:
        r"""$\lVert\bar g\rVert^2$ over all parameters."""
        return sum(self.mean_squared.values())

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(next(iter(self.parameters.values())))

    def only(self, names: Sequence[str]) -> "ExampleNorms":
        """The same for some of the parameters."""
        inner = None if self.inner_parameters is None else {k: self.inner_parameters[k] for k in names}
        return ExampleNorms({k: self.parameters[k] for k in names}, {k: self.mean_squared[k] for k in names}, inner, self.losses)

    def layers(self) -> dict[str, "ExampleNorms"]:
        """One for each module that owns parameters, by its name; the model's own are under the empty name."""
        groups: dict[str, list[str]] = {}
        for name in self.parameters:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        return {layer: self.only(names) for layer, names in groups.items()}


class Seen:
    """What `example_norms` yields; `norms` is there after the block."""

    def __init__(self) -> None:
        self.found: ExampleNorms | None = None

    @property
    def norms(self) -> ExampleNorms:
        """ValueError before the block has ended, or where no gradient passed."""
        if self.found is None:
            raise ValueError("there are no norms yet: run the model, loss.backward() inside the block, and ask after it.")
        return self.found


@contextmanager
def example_norms(
    model: nn.Module, *, params: Sequence[str] | None = None, examples: int | None = None, scale: float = 1.0, inner: bool = False
) -> Iterator[Seen]:
    r"""Watch the caller's own forward and backward passes; the gradients come out as they would without, bit for bit.

        with example_norms(model) as seen:
            loss(model(x), y).mean().backward()
        seen.norms.squared                      # (n,), in the order of the examples

    The first dimension of the model's first input is the examples, and the loss of each forward pass is the mean over them. With `examples`, it is
    a mean over so many instead: accumulate a batch of 256 as `(losses.sum() / 256).backward()` four times and write examples=256. `scale` is what
    else the loss was multiplied by (a GradScaler's). `inner=True` also gives $\langle g_i, \bar g\rangle$, for one backward pass: a product more a layer.

    ValueError, before anything runs, for BatchNorm in training mode, compiled and sharded models; at the end for parameters whose gradients came
    past the model's forward pass, by name. What no rule covers is run again for each example (`whole.py`), which is refused if it draws random numbers.
    """
    watched = chosen(model, params)
    fresh = {name for name, p in watched.items() if p.grad is None}
    observer, seen = Observer(model, watched, inner), Seen()
    observer.start()
    try:
        yield seen
    finally:
        observer.stop()
    if not observer.arrivals:
        return
    if inner and len(observer.arrivals) > 1:
        raise ValueError(
            f"inner=True is for one backward pass, got {len(observer.arrivals)}: use `gradient_norms` on an Objective of all batches."
        )
    observer.finish()
    sizes = [p.examples for p in observer.passes if p.squared]
    if examples is None and len(set(sizes)) > 1:
        raise ValueError(
            f"forward passes of {sorted(set(sizes))} examples need a common mean: divide the sums by all examples and say examples=…."
        )
    share = (sizes[0] if examples is None else examples) / scale
    found = gathered(observer, share)
    squares = {name: found.mean_squared[name] for name in watched}
    if len(observer.arrivals) > 1:
        squares = {name: _accumulated(name, p, fresh, share / sum(sizes)) for name, p in watched.items()}
    seen.found = replace(found, mean_squared=squares)


def _accumulated(name: str, p: nn.Parameter, fresh: set[str], factor: float) -> float:
    if name not in fresh:
        raise ValueError(f"{name} had a gradient before the block: write optimizer.zero_grad() before, or go back once a block.")
    return 0.0 if p.grad is None else factor**2 * float(squared_norm(wide(p.grad)))


def gathered(observer: Observer, share: float) -> ExampleNorms:
    """The norms of all passes, where the loss counts every example 1/`share`; the mean's norms are those of the last backward pass."""
    passes = [p for p in observer.passes if p.squared]
    n = sum(p.examples for p in passes)

    def column(which: str, name: str, factor: float) -> Tensor:
        parts = [getattr(p, which).get(name) for p in passes]
        return torch.cat([torch.zeros(p.examples) if x is None else x.cpu() for p, x in zip(passes, parts, strict=True)]).double() * factor

    names = list(observer.params)
    own = {name: column("squared", name, share**2) for name in names}
    mean = share / n * len(observer.arrivals)  # of one backward pass, as the mean of its own examples where all are alike
    norms = [{name: float(x) * mean**2 for name, x in arrived.items()} for arrived in observer.arrivals]
    inner = (
        {name: column("inner", name, share * (share / n if observer.toward is None else 1.0)) for name in names} if observer.inner else None
    )
    batches = tuple((n // len(norms), sum(one.values())) for one in norms)
    return ExampleNorms(own, {name: norms[-1].get(name, 0.0) for name in names}, inner, None, batches)


def gradient_norms(objective: Objective, *, inner: bool = False) -> tuple[ExampleNorms, dict[str, Tensor]]:
    r"""The norms of all examples of an objective and its gradient $\bar g$ by parameter; nothing of the model is changed.

    Parts of the objective (`micro_batch`) go one after the other. `inner=True` adds $\langle g_i, \bar g\rangle$; with more than one part that
    takes a second round. Costs 1.0 to 1.4 gradients (`benchmarks/probes/statistics.py`).
    """
    parts = [_part(objective, batch, inner and len(objective.batches) == 1, None) for batch in objective.batches]
    if len(parts) == 1:
        return parts[0]
    shares = [examples(b) / objective.examples for b in objective.batches]
    grads = {name: _mean([g[name] for _, g in parts], shares) for name in objective.params}
    found = [norms for norms, _ in parts]
    again = [_part(objective, b, True, grads)[0].inner_parameters or {} for b in objective.batches] if inner else []
    return (
        ExampleNorms(
            {name: torch.cat([p.parameters[name] for p in found]) for name in grads},
            {name: float(squared_norm(wide(g))) for name, g in grads.items()},
            {name: torch.cat([p[name] for p in again]) for name in grads} if inner else None,
            None if found[0].losses is None else torch.cat([p.losses for p in found if p.losses is not None]),
            tuple(b for p in found for b in p.batches),
        ),
        grads,
    )


def _mean(parts: list[Tensor], shares: list[float]) -> Tensor:
    total = parts[0] * shares[0]
    for g, share in zip(parts[1:], shares[1:], strict=True):
        total += g * share
    return total


def _part(objective: Objective, batch: Batch, inner: bool, toward: Mapping[str, Tensor] | None) -> tuple[ExampleNorms, dict[str, Tensor]]:
    with objective.ready():
        observer = Observer(objective.model, objective.params, inner, toward)
        observer.start()
        try:
            losses = objective.loss(objective.outputs(batch), batch.targets)
            grads = torch.autograd.grad(losses.mean(), list(objective.params.values()), materialize_grads=True)
        finally:
            observer.stop()
        observer.finish()
    found = gathered(observer, float(examples(batch)))
    known = losses.detach().double().cpu() if losses.shape == (examples(batch),) else None
    return replace(found, losses=known), dict(zip(objective.params, grads, strict=True))

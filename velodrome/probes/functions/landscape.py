"""Slices of the loss: along directions from the weights, and between two sets of weights, with the error that comes from the examples.

Filter-normalised directions: Li et al. 2018 (https://arxiv.org/abs/1712.09913); linear mode connectivity: Frankle et al. 2020 (https://arxiv.org/abs/1912.05671).
"""

# Shapes: k directions (one or two), p points along each, u units (examples, or batches where the loss has no values of examples).

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from velodrome.data.stream import Batch
from velodrome.probes.estimate import Estimate, sampled, unidentified
from velodrome.probes.functions.jacobian import arguments
from velodrome.probes.objective import Objective, examples

Weights = Mapping[str, Tensor]
BatchNorm = Literal["as is", "re-estimated"]


@dataclass(frozen=True)
class Slice:
    """`loss` at `coordinates` (p, k) of a grid, with `error`, one standard error over the examples (they are the same at every point, so differences
    between points are known better than this); `batch_norm` says which statistics were used. `rows()` is for charts."""

    coordinates: Tensor
    loss: Tensor
    error: Tensor
    batch_norm: str

    def rows(self) -> list[dict[str, float]]:
        """One dict for each point: x (and y), loss, error."""
        names = ("x", "y")[: self.coordinates.shape[1]]
        numbers = zip(self.coordinates.tolist(), self.loss.tolist(), self.error.tolist(), strict=True)
        return [{**dict(zip(names, at, strict=True)), "loss": loss, "error": error} for at, loss, error in numbers]


@dataclass(frozen=True)
class Path:
    """The loss on the straight line between two sets of weights, at `slice.coordinates` from 0 (first) to 1 (second); `barrier`: the largest height above
    the chord, in units of the loss, and `where` on the line it was found."""

    slice: Slice
    barrier: Estimate
    where: float


def random_direction(objective: Objective, seed: int = 0, normalise: Literal["filter", "layer", "none"] = "filter") -> dict[str, Tensor]:
    r"""A Gaussian direction by parameter; "filter": each row of a weight (its output unit's or channel's) gets the norm of the weights' row,
    $d_i \gets d_i \|w_i\|/\|d_i\|$, and parameters with one dimension (biases, norms' gains) stay where they are, as Li et al.'s code does; "layer":
    each parameter as a whole gets its norm. So that networks which compute the same at another scale show the same slice."""
    if normalise not in ("filter", "layer", "none"):
        raise ValueError(f"normalise must be 'filter', 'layer' or 'none', got {normalise!r}.")
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, p in objective.params.items():
        d = torch.randn(p.shape, generator=draw, dtype=p.dtype).to(p.device)
        w = p.detach()
        if normalise == "filter":
            flat = d.flatten(1) if d.ndim > 1 else torch.zeros_like(d).unsqueeze(1)
            size = w.flatten(1).norm(dim=1, keepdim=True) if d.ndim > 1 else torch.ones_like(flat)
            d = (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30) * size).view_as(d)
        found[name] = d * (w.norm() / d.norm().clamp(min=1e-30)) if normalise == "layer" else d
    return found


def loss_slice(
    objective: Objective,
    directions: Weights | Sequence[Weights],
    *,
    span: float = 1.0,
    points: int = 21,
    batch_norm: BatchNorm = "as is",
) -> Slice:
    r"""$L(\theta + x d)$, or $L(\theta + x d_1 + y d_2)$, on a grid of `points` (per direction) from -span to span times the directions.

    Directions map names of parameters to tensors (what is not named stays): `random_direction`, an eigenvector's `operator.split(v)`, an update. Take
    an odd number of points to have the weights themselves in the middle. A forward pass for each point; the weights are never written.
    """
    several = [directions] if isinstance(directions, Mapping) else list(directions)
    if len(several) not in (1, 2) or points < 2:
        raise ValueError(f"a slice has one or two directions and two points or more, got {len(several)} and {points}.")
    for d in several:
        _fits(objective, d)
    line = torch.linspace(-span, span, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * len(several)).view(-1, len(several))

    def at(x: Tensor) -> dict[str, Tensor]:
        moved = {name: p.detach() for name, p in objective.params.items()}
        for amount, d in zip(x.tolist(), several, strict=True):
            moved |= {name: moved[name] + amount * v for name, v in d.items()}
        return moved

    values, sizes = _along(objective, [at(x) for x in grid], batch_norm)
    return _slice(grid, values, sizes, batch_norm)


def interpolation(
    objective: Objective,
    first: Weights,
    second: Weights,
    *,
    points: int = 25,
    batch_norm: BatchNorm = "as is",
    buffers: tuple[Weights, Weights] | None = None,
) -> Path:
    r"""$L((1-x)\,\theta_1 + x\,\theta_2)$ for x from 0 to 1, and the barrier $\max_x L(x) - [(1-x) L(0) + x L(1)]$ with a 95 % interval.

    `first`, `second` are parameters by name (a state_dict will do: other entries are left out). Buffers are the model's as they are; with
    `buffers` those of the two ends are interpolated; with batch_norm="re-estimated" running statistics are taken anew at each point from the
    objective's inputs, without which networks with BatchNorm show barriers that are only stale statistics.

    A maximum over noisy points is too high. So the point is chosen on one half of the examples and measured on the other, both ways round, and the mean is
    what is given: not above the true barrier but for sampling, and below it where halves disagree.
    """
    for weights in (first, second):
        missing = [name for name in objective.params if name not in weights]
        if missing:
            raise ValueError(f"weights must name every parameter, {missing[0]} is missing.")
        _fits(objective, {name: weights[name] for name in objective.params})
    line = torch.linspace(0, 1, points, dtype=torch.float64)
    mix = lambda a, b, x: torch.lerp(a.detach(), b.detach(), float(x)) if a.is_floating_point() else a  # noqa: E731
    mixed = [{name: mix(first[name], second[name], x) for name in objective.params} for x in line]
    others = None if buffers is None else [{name: mix(buffers[0][name], buffers[1][name], x) for name in buffers[0]} for x in line]
    values, sizes = _along(objective, mixed, batch_norm, others)
    height = values - (values[:1] * (1 - line).unsqueeze(1) + values[-1:] * line.unsqueeze(1))
    barrier, where = _barrier(height, sizes)
    return Path(_slice(line.unsqueeze(1), values, sizes, batch_norm), barrier, float(line[where]))


def _barrier(height: Tensor, sizes: Tensor) -> tuple[Estimate, int]:
    mean = lambda h, s: (h * s).sum(-1) / s.sum()  # noqa: E731
    place = int(mean(height, sizes).argmax())
    units = height.shape[1]
    if units < 4:
        return unidentified("loss", "a barrier needs four examples or more to have an error", units), place
    halves = [torch.arange(units) % 2 == k for k in (0, 1)]
    chosen = [int(mean(height[:, h], sizes[h]).argmax()) for h in halves]
    kept = torch.empty_like(height[0])
    for half, point in zip(halves, reversed(chosen), strict=True):
        kept[half] = height[point, half]
    value = float(mean(kept, sizes))
    spread = (sizes / sizes.mean() * (kept - value)).square().sum() / (units - 1)
    return sampled(value, sqrt(float(spread) / units), "loss", units), place


def _slice(grid: Tensor, values: Tensor, sizes: Tensor, batch_norm: str) -> Slice:
    share = sizes / sizes.sum()
    loss = (values * share).sum(1)
    units = values.shape[1]
    spread = ((values - loss.unsqueeze(1)) * share * units).square().sum(1) / max(1, units - 1) / units
    return Slice(grid, loss, spread.sqrt() if units > 1 else torch.full_like(loss, float("nan")), batch_norm)


def _along(
    objective: Objective, weights: Sequence[Weights], batch_norm: str, buffers: Sequence[Weights] | None = None
) -> tuple[Tensor, Tensor]:
    """Losses (points, units) in float64 and the examples in each unit."""
    if batch_norm not in ("as is", "re-estimated"):
        raise ValueError(f"batch_norm must be 'as is' or 're-estimated', got {batch_norm!r}.")
    if batch_norm == "re-estimated" and objective.mixes():
        raise ValueError("re-estimated statistics are for BatchNorm in evaluation: look with mode='eval'.")
    found, sizes = [], torch.empty(0)
    with objective.ready(), torch.no_grad():
        for i, w in enumerate(weights):
            own = {name: b.detach().clone() for name, b in objective.model.named_buffers()} | dict(buffers[i] if buffers else {})
            state = {**w, **own}
            if batch_norm == "re-estimated":
                _restate(objective, state)
            if objective.fix_random:
                torch.manual_seed(0)
            values = [_values(objective, batch, state) for batch in objective.batches]
            found.append(torch.cat([v for v, _ in values]))
            sizes = torch.cat([s for _, s in values])
    return torch.stack(found), sizes


def _values(objective: Objective, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    args, kwargs = arguments(batch.inputs)
    losses = objective.loss(functional_call(objective.model, state, args, kwargs), batch.targets)
    n = examples(batch)
    size = torch.ones(n, dtype=torch.float64) if losses.ndim else torch.tensor([float(n)], dtype=torch.float64)
    return losses.detach().double().cpu().flatten(), size


def _restate(objective: Objective, state: dict[str, Tensor]) -> None:
    """Writes into `state` (and nowhere else) the running statistics of the objective's inputs at these weights: plain means over the batches."""
    with _averaging(objective.model):
        for name in state:
            if name.endswith("num_batches_tracked"):
                state[name].zero_()
        for batch in objective.batches:
            args, kwargs = arguments(batch.inputs)
            functional_call(objective.model, state, args, kwargs)


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(m.training, m.momentum) for m in norms]
    for m in norms:
        m.training, m.momentum = True, None
    try:
        yield
    finally:
        for m, (training, momentum) in zip(norms, before, strict=True):
            m.training, m.momentum = training, momentum


def _fits(objective: Objective, tensors: Weights) -> None:
    for name, v in tensors.items():
        p = objective.params.get(name)
        if p is None or p.shape != v.shape:
            raise ValueError(
                f"{name} of shape {tuple(v.shape)} is no parameter of the objective: there are {', '.join(list(objective.params)[:6])}."
            )

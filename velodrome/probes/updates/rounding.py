r"""How much of a step narrow weights swallow: the update that was asked for against the one that was made.

    with rounding(optimizer, model) as lost:         # bfloat16 weights: the same step is made once more on a float32 shadow
        optimizer.step()
    print(lost.numbers["0.weight"]["norm_lost"])

    lost_to_rounding(before, asked, after)           # where a master copy tells what was asked for

bfloat16 keeps 8 bits: next to w the nearest numbers are up to $2^{-7}|w|$ away, so a relative change below 1/512 to 1/256 rounds to nothing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from velodrome.probes.twin import twin_of
from velodrome.probes.updates.motion import parameters

UNITS = {
    "norm_lost": "1 minus the made update's product with the asked one over the asked one's square: 0 nothing lost, 1 all; below 0 where rounding added",
    "elements_lost": "share of the elements asked to move that stayed bit for bit, 0 to 1",
    "error": "norm of (made minus asked) over norm of asked, no unit",
    "cosine": "of the asked and the made update, no unit",
}


@dataclass
class Rounding:
    """`numbers` by parameter and of the `whole`, in `UNITS`; NaN where nothing was asked for."""

    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def lost_to_rounding(before: Tensor, asked: Tensor, after: Tensor) -> dict[str, float]:
    """The numbers of `UNITS` for one tensor: weights before and after in their format, and the change that was asked for, in a wider one."""
    return _numbers(_sums(before, asked, after))


@contextmanager
def rounding(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> Iterator[Rounding]:
    """What the one step made inside loses to the format of the weights; parameters in float32 or float64 are left out as having lost nothing.

    What was asked for is the step of a deep copy of the optimizer with weights, gradients and state in float32. Nothing of the optimizer or the model is
    changed; costs a second step and four copies of the narrow weights.
    """
    params = {n: p for n, p in parameters(optimizer, model).items() if p.dtype in (torch.bfloat16, torch.float16)}
    lost = Rounding()
    before = {n: p.detach().clone() for n, p in params.items()}
    asked = _shadow(optimizer, params) if params else {}
    yield lost
    with torch.no_grad():
        sums = {n: _sums(before[n], asked[n], p.detach()) for n, p in params.items()}
    lost.numbers.update({n: _numbers(s) for n, s in sums.items()})
    lost.whole.update(_numbers([sum(column) for column in zip(*sums.values(), strict=True)] or [0.0] * 6))


def _shadow(optimizer: torch.optim.Optimizer, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The change that the same step makes in float32."""
    grads = {id(p): p.grad for p in params.values()}
    twin, copies = twin_of(optimizer)
    changes = {}
    with torch.no_grad():
        for p in params.values():
            q = copies[id(p)]
            g = grads[id(p)]
            q.grad = None
            q.data = q.data.float()
            q.grad = None if g is None else g.detach().float()
            for key, value in twin.state.get(q, {}).items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point():
                    twin.state[q][key] = value.float()
    with torch.random.fork_rng(devices=sorted({p.device.index or 0 for p in params.values() if p.is_cuda})):
        type(optimizer).step(twin)
    with torch.no_grad():
        for name, p in params.items():
            q = copies[id(p)]
            changes[name] = q.detach() - p.detach().float()
    return changes


def _sums(before: Tensor, asked: Tensor, after: Tensor) -> list[float]:
    """Squares and product of asked and made, square of their difference, elements asked and those that stayed."""
    made = after.double() - before.double()
    wanted = asked.double()
    told = wanted != 0
    parts = [
        wanted.square().sum(),
        made.square().sum(),
        (wanted * made).sum(),
        (made - wanted).square().sum(),
        told.sum(),
        (told & (made == 0)).sum(),
    ]
    return [float(x) for x in parts]


def _numbers(sums: list[float]) -> dict[str, float]:
    asked, made, product, difference, told, stayed = sums
    if asked <= 0:
        return dict.fromkeys(UNITS, math.nan)
    return {
        "norm_lost": 1 - product / asked,
        "elements_lost": stayed / told,
        "error": math.sqrt(difference / asked),
        "cosine": product / math.sqrt(asked * made) if made > 0 else math.nan,
    }

r"""Does the gradient still point where the optimizer is going? The cosine of the gradient and the velocity, with an interval over steps.

    cosines.append(velocity_cosine(optimizer, model).whole)      # between backward and step
    print(mean_of(cosines, "no unit"))                           # updates.series

Near 1 the steps go straight down a slope, near 0 the gradients are noise to what is carried, below 0 each gradient takes back what the last steps made: the
oscillation of an optimizer at the edge of stability, before the loss shows it.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from velodrome.probes.updates.motion import WIDE, parameters, part
from velodrome.probes.updates.steps import MOMENTA


@dataclass(frozen=True)
class Cosines:
    """`numbers` by parameter, and of the `whole`, the vector of all that have both; no unit, NaN where one of the two is zero or missing."""

    numbers: dict[str, float] = field(default_factory=dict)
    whole: float = math.nan


def velocity_cosine(optimizer: torch.optim.Optimizer, model: nn.Module | None = None, *, every: int = 1) -> Cosines:
    r"""$\cos(g_t, m_{t-1})$ of each parameter's gradient at hand and the average of the earlier ones that the optimizer keeps.

    To be asked between the gradient and the update: afterwards the gradient is a part of the average. ValueError for an optimizer without a
    momentum; use `cosine` on two successive gradients there. `every` k looks at each k-th row of matrices and filters.
    """
    params = parameters(optimizer, model)
    pairs = {
        name: (p.grad, m) for name, p in params.items() if p.grad is not None and (m := velocity(optimizer.state.get(p, {}), p)) is not None
    }
    if not pairs and any(optimizer.state.get(p) for p in params.values()):
        raise ValueError(f"{type(optimizer).__name__} keeps no momentum: compare two successive gradients with cosine(before, now).")
    return cosine({n: part(m, every) for n, (_, m) in pairs.items()}, {n: part(g, every) for n, (g, _) in pairs.items()})


def velocity(state: dict[str, object], p: Tensor) -> Tensor | None:
    """The momentum of one parameter."""
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == p.shape and str(key).rpartition(".")[2] in MOMENTA:
            return value
    return None


@torch.no_grad()
def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> Cosines:
    """Cosines of tensors of the same names, and of all of them as one vector."""
    names = [n for n in a if n in b]
    if not names:
        return Cosines()
    left, right = ([x[n].detach().reshape(-1) for n in names] for x in (a, b))
    left = [x if x.dtype in WIDE else x.float() for x in left]
    right = [y.to(x.dtype) for x, y in zip(left, right, strict=True)]
    dots = torch.stack([torch.dot(x, y) for x, y in zip(left, right, strict=True)]).double()
    norms = [torch.stack(torch._foreach_norm(x)).double() for x in (left, right)]
    length = float(norms[0].norm() * norms[1].norm())
    each = (dots / (norms[0] * norms[1])).tolist()  # 0/0 is NaN, as told
    return Cosines(dict(zip(names, each, strict=True)), float(dots.sum()) / length if length > 0 else math.nan)

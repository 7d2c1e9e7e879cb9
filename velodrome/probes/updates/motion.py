r"""How far one step turned and moved every tensor: three passes over the weights and one copy, cheap enough to run along (angles: Kahan's form).

    with motion(optimizer, model) as moved:
        optimizer.step()
    print(moved.numbers["0.weight"]["angle"], moved.whole["relative"])

With w before, w' after and $\Delta = w' - w$, $r = \|w'\| - \|w\| = (2\langle w',\Delta\rangle - \|\Delta\|^2)/(\|w\|+\|w'\|)$ and
$\|\hat w - \hat w'\|^2 = (\|\Delta\|^2 - r^2)/(\|w\|\|w'\|)$, so that $2\,\mathrm{atan2}(\|\hat w-\hat w'\|, \|\hat w+\hat w'\|)$ comes from sums
over the small difference, which is exact, and never from an arc cosine. `updates.steps` has more numbers of a step, in float64, at many times the cost.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, exact

UNITS = {
    "norm": "Euclidean norm of the weights after the step, in units of the parameter",
    "rms": "root mean square of the change, in units of the parameter",
    "relative": "norm of the change over norm of the weights before, no unit",
    "angle": "between the tensor before and after, radians; sure to 1e-3 of the change where that is nearly all along the weights",
    "outward": "change of the norm over norm of the change, -1 (pure decay) to 1, no unit",
}
WIDE = (torch.float32, torch.float64)


@dataclass
class Motion:
    """`numbers` by parameter and of the `whole`, one vector of all, in `UNITS`; NaN where there is no norm to compare with. Filled after the step."""

    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)

    def estimate(self, number: str, name: str | None = None) -> Estimate:
        """One number with its unit, of a parameter or of the whole."""
        return exact((self.whole if name is None else self.numbers[name])[number], UNITS[number])


@contextmanager
def motion(
    optimizer: torch.optim.Optimizer | nn.Module | Mapping[str, Tensor], model: nn.Module | None = None, *, every: int = 1
) -> Iterator[Motion]:
    r"""The motion of the one step made inside, of an optimizer's parameters, a model's, or of named tensors; `model` only gives names.

    Nothing is changed. Keeps one copy of the weights (float32 for narrower formats) while the step is made. `every` k looks at each k-th row of matrices
    and filters, in time and memory by k less, and scales the norms up: where rows are alike, that is off by some $1/\sqrt{2 n}$ for n numbers looked at.
    """
    params = parameters(optimizer, model)
    moved = Motion()
    with torch.no_grad():
        kept = [part(p, every).clone() if p.dtype in WIDE else part(p, every).float() for p in params.values()]
    yield moved
    with torch.no_grad():
        now = [part(p, every) if p.dtype in WIDE else part(p, every).float() for p in params.values()]
        now = [x.contiguous() for x in now]
        torch._foreach_sub_(kept, now)  # minus the change, in the memory of the copy
        sums = table(now, kept)
    scales = [p.numel() / x.numel() for p, x in zip(params.values(), now, strict=True)]
    sums = [[norm * k**0.5, dot * k, change * k**0.5] for (norm, dot, change), k in zip(sums, scales, strict=True)]
    rows = [numbers(norm, -dot, change, p.numel()) for (norm, dot, change), p in zip(sums, params.values(), strict=True)]
    moved.numbers.update(zip(params, rows, strict=True))
    norm, change = (math.sqrt(sum(s[i] ** 2 for s in sums)) for i in (0, 2))
    moved.whole.update(numbers(norm, -sum(s[1] for s in sums), change, sum(p.numel() for p in params.values())))


def part(p: Tensor, every: int) -> Tensor:
    """Each k-th row of a matrix or filter, a view; vectors whole."""
    return p.detach()[::every] if every > 1 and p.ndim > 1 else p.detach()


def parameters(source: torch.optim.Optimizer | nn.Module | Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Trained floating-point tensors by name; ValueError if there is none."""
    if isinstance(source, nn.Module):
        found: Iterable[tuple[str, Tensor]] = source.named_parameters()
    elif isinstance(source, torch.optim.Optimizer):
        names = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
        groups = enumerate(source.param_groups)
        found = [(names.get(id(p), f"parameter {j} of group {i}"), p) for i, group in groups for j, p in enumerate(group["params"])]
    else:
        found = source.items()
    kept = {name: p for name, p in found if p.is_floating_point() and p.numel() and (p.requires_grad or not isinstance(p, nn.Parameter))}
    if not kept:
        raise ValueError("there is no trained parameter to follow: give an optimizer, a model, or a dict of tensors.")
    return kept


def table(weights: list[Tensor], changes: list[Tensor]) -> list[list[float]]:
    """(norm of the weights, their product with the change, norm of the change) of each tensor; the host waits once for each dtype and device."""
    dots = [torch.dot(w.reshape(-1), d.reshape(-1)) for w, d in zip(weights, changes, strict=True)]
    columns = list(torch._foreach_norm(weights)), dots, list(torch._foreach_norm(changes))
    if len({(x.dtype, x.device) for x in dots}) == 1:
        return torch.stack([torch.stack(c) for c in columns], 1).tolist()
    return [[float(x) for x in row] for row in zip(*columns, strict=True)]


def numbers(norm: float, dot: float, change: float, size: int) -> dict[str, float]:
    """The numbers of a tensor from its norm after the step, the product of that with the change, and the norm of the change."""
    before = math.sqrt(max(norm**2 - 2 * dot + change**2, 0.0)) if math.isfinite(norm) else math.nan
    grown = (2 * dot - change**2) / (norm + before) if norm + before > 0 else 0.0
    there = norm > 0 and before > 1e-6 * change  # from zero, a change has no direction to turn from
    return {
        "norm": norm,
        "rms": change / size**0.5,
        "relative": change / before if there else math.nan,
        "angle": angle(max(change**2 - grown**2, 0.0) / (norm * before)) if there else math.nan,
        "outward": grown / change if change > 0 else math.nan,
    }


def angle(square: float) -> float:
    r"""Radians, from $\|\hat a - \hat b\|^2$ of two unit vectors."""
    return 2 * math.atan2(math.sqrt(min(square, 4.0)), math.sqrt(max(4.0 - square, 0.0)))

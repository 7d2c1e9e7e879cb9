r"""How large activations and gradients are, layer by layer, and how near to what their format can hold.

    with activations(model) as seen:
        loss(model(x), y).backward()
    print(seen.numbers["blocks.3.expand"]["rms"], seen.by_type()["Linear"]["largest"])
    print(gradient_rms(model, optimizer)["head.weight"].over_eps)

A gradient whose root mean square comes near AdamW's eps is no longer normalised by it: the second of the instabilities that Wortsman et al. 2023
(https://arxiv.org/abs/2309.14322) predict before they emerge. `failures.blow_up` extrapolates either series.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from velodrome.probes.failures.watcher import Watcher, host, numbers, rows
from velodrome.probes.updates.motion import parameters

UNITS = {
    "rms": "root mean square of the outputs, in their units",
    "largest": "largest absolute value of the outputs, in their units",
    "headroom": "largest finite number of the format over the largest value, no unit; 1 and less is overflow",
    "near_limit": "share of the outputs above half of the largest finite number of the format, 0 to 1",
}


@dataclass
class Activations:
    """`numbers` of every layer without children that was reached, in `UNITS`; `kinds` names their classes. Filled on leaving."""

    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def by_type(self) -> dict[str, dict[str, float]]:
        """The same over all layers of a class: the root of the mean of their mean squares, the largest of their largest."""
        groups: dict[str, list[dict[str, float]]] = defaultdict(list)
        for name, found in self.numbers.items():
            groups[self.kinds[name]].append(found)
        return {
            kind: {
                "rms": math.sqrt(sum(x["rms"] ** 2 for x in of) / len(of)),
                "largest": max(x["largest"] for x in of),
                "headroom": min(x["headroom"] for x in of),
                "near_limit": sum(x["near_limit"] for x in of) / len(of),
            }
            for kind, of in groups.items()
        }


class Sizes:
    """Collects the sizes of outputs; one line of a watcher."""

    def __init__(self, watcher: Watcher, form: torch.dtype | None, most: int | None) -> None:
        self.form, self.most = form, most
        self.calls: list[tuple[str, str, float, int]] = []
        self.squares: list[Tensor] = []
        self.extremes: list[Tensor] = []
        self.near: list[Tensor | None] = []
        watcher.on_module(lambda m: not any(True for _ in m.children()), self.see)

    def see(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note one call, in as few operations as there can be: on small layers it is their number that costs."""
        if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
            return
        limit = torch.finfo(self.form or output.dtype).max
        x = rows(output, self.most).reshape(-1)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        self.calls.append((name, type(module).__name__, limit, x.numel()))
        self.squares.append(torch.dot(x, x))
        self.extremes += torch.aminmax(x)  # a tenth of the time of the norm of infinite order
        self.near.append((x.abs() > limit / 2).float().mean() if limit < 1e6 else None)

    def fill(self, seen: Activations) -> None:
        """Bring the numbers to the host."""
        found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        limits = {}
        squares, extremes = host(self.squares), host(self.extremes)
        for i, ((name, kind, limit, size), near) in enumerate(zip(self.calls, self.near, strict=True)):
            ends = [abs(x) for x in extremes[2 * i : 2 * i + 2]]
            largest = math.nan if any(math.isnan(x) for x in ends) else max(ends)
            found[name].append((squares[i] / size, largest, math.nan if near is None else float(near)))
            seen.kinds[name], limits[name] = kind, limit
        for name, calls in found.items():
            largest = max((c[1] for c in calls), key=lambda x: math.inf if math.isnan(x) else x)
            seen.numbers[name] = {
                "rms": math.sqrt(sum(c[0] for c in calls) / len(calls)),
                "largest": largest,
                "headroom": limits[name] / largest if largest else math.inf,
                "near_limit": 0.0 if largest <= limits[name] / 2 else sum(c[2] for c in calls) / len(calls),
            }


@contextmanager
def activations(model: nn.Module, *, form: torch.dtype | None = None, most: int | None = None) -> Iterator[Activations]:
    """The activations of the forward passes made inside, over all calls of a layer; the model computes what it computes anyway.

    `form` is the format whose limit counts, by default the outputs' own (for a run that is to move to float16: torch.float16). `most` looks at so many
    evenly spaced examples and positions, and the largest value is then that of those. `near_limit` of a wide format is NaN where its limit is near.
    """
    seen, watcher = Activations(), Watcher(model)
    sizes = Sizes(watcher, form, most)
    with watcher.watching():
        yield seen
    sizes.fill(seen)


@dataclass(frozen=True)
class GradientSize:
    """`rms` of a parameter's gradient in loss/parameter, and `over_eps`, that over the optimizer's eps (NaN without one): below 1 eps sets the step."""

    rms: float
    over_eps: float


@torch.no_grad()
def gradient_rms(source: nn.Module | torch.optim.Optimizer, optimizer: torch.optim.Optimizer | None = None) -> dict[str, GradientSize]:
    """Of every parameter with a gradient at hand, between backward and step."""
    chosen = optimizer or (source if isinstance(source, torch.optim.Optimizer) else None)
    groups = chosen.param_groups if chosen is not None else []
    eps = {id(p): next((float(v) for k, v in g.items() if k.rpartition(".")[2] == "eps"), math.nan) for g in groups for p in g["params"]}
    held = {n: p for n, p in parameters(source).items() if p.grad is not None}
    norms = numbers(torch._foreach_norm([p.grad for p in held.values() if p.grad is not None])) if held else []
    sizes = {n: norm[0] / p.numel() ** 0.5 for (n, p), norm in zip(held.items(), norms, strict=True)}
    return {n: GradientSize(x, x / e if (e := eps.get(id(held[n]), math.nan)) else math.inf) for n, x in sizes.items()}

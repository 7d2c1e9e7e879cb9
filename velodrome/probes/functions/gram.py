"""What linear layers add to a tangent kernel, from their inputs and backward signals alone: no gradient of an example is ever made."""

# Shapes: n examples, q combinations of outputs, I inputs and O outputs of a layer.

from typing import Any

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.probes.functions.jacobian import math_attention, tensor
from velodrome.probes.objective import Objective

Seen = list[tuple[nn.Linear, Tensor, Tensor]]  # layer, its inputs (n, I), its backward signals (n, q, O)


def signals(objective: Objective, batch: Batch, combinations: Tensor) -> tuple[Seen, set[str]]:
    r"""Every call of a linear layer with 2-d inputs, and the names of the parameters that nothing else uses. Inside `ready`.

    One forward and q backward passes that stop short of the weights. Whether a parameter is fully seen is measured, not read off the model: a random
    combination of all rows, once by autograd and once from what was seen, must agree; so weights shared with an embedding or used by hand are left out.
    """
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
        if args[0].ndim == 2:
            calls.append((layer, args[0].detach(), output))

    layers = [m for m in objective.model.modules() if type(m) is nn.Linear]
    handles = [m.register_forward_hook(note) for m in layers]
    try:
        with math_attention():
            outputs = tensor(objective.outputs(batch)).flatten(1)
    finally:
        for handle in handles:
            handle.remove()
    calls = [call for call in calls if call[2].requires_grad]
    if not calls:
        return [], set()
    asked = [z for *_, z in calls]
    found: list[list[Tensor]] = [[] for _ in asked]
    for w in combinations:
        for mine, g in zip(found, torch.autograd.grad(outputs, asked, w.expand_as(outputs), True, materialize_grads=True), strict=True):
            mine.append(g)
    seen = [(layer, a, torch.stack(g, 1)) for (layer, a, _), g in zip(calls, found, strict=True)]
    return seen, _fully_seen(objective, outputs, combinations, seen)


def _fully_seen(objective: Objective, outputs: Tensor, combinations: Tensor, seen: Seen) -> set[str]:
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(len(outputs), len(combinations), generator=draw, dtype=torch.float64).to(outputs)
    layers = {id(p): name for name, p in objective.params.items()}
    ours = [p for layer, *_ in seen for p in (layer.weight, layer.bias) if p is not None and id(p) in layers]
    params = list({id(p): p for p in ours}.values())
    truth = torch.autograd.grad(outputs, params, mix @ combinations, materialize_grads=True) if params else ()
    total = {id(p): torch.zeros_like(p) for p in params}
    for layer, a, g in seen:
        mixed = torch.einsum("nq,nqo->no", mix, g)
        if id(layer.weight) in total:
            total[id(layer.weight)] += mixed.T @ a
        if layer.bias is not None and id(layer.bias) in total:
            total[id(layer.bias)] += mixed.sum(0)
    tolerance = 1e-9 if outputs.dtype == torch.float64 else 1e-3
    same = lambda p, t: float((total[id(p)] - t).norm()) <= tolerance * float(t.norm())  # noqa: E731
    return {layers[id(p)] for p, t in zip(params, truth, strict=True) if same(p, t)}


def gram(objective: Objective, seen: Seen, names: set[str], across: bool) -> Tensor:
    r"""$\sum (A_u A_v^\top) \odot (\Delta_u \Delta_v^\top)$ over all pairs of calls u, v that share a weight; a bias adds $\Delta_u \Delta_v^\top$.

    (n·q, n·q) with `across`, else the sum over combinations q of the (n, n) kernels.
    """
    wanted = {id(objective.params[name]) for name in names}
    n, q = seen[0][2].shape[:2]
    total = seen[0][2].new_zeros((n, q, n, q) if across else (n, n))
    for i, (first, a, g) in enumerate(seen):
        for second, b, h in seen[i:]:
            weight = first.weight is second.weight and id(first.weight) in wanted
            bias = first.bias is not None and first.bias is second.bias and id(first.bias) in wanted
            if not (weight or bias):
                continue
            inner = torch.zeros_like(a @ b.T) if not weight else a @ b.T
            inner = inner + 1 if bias else inner
            outer = (g.flatten(0, 1) @ h.flatten(0, 1).T).view(n, q, n, q) if across else g.flatten(1) @ h.flatten(1).T
            part = inner[:, None, :, None] * outer if across else inner * outer
            total += part if a is b else part + (part.permute(2, 3, 0, 1) if across else part.T)
    return total.reshape(n * q, n * q) if across else total

"""The update that an optimizer is about to make, found on a copy: nothing of the model or of the optimizer is touched."""

from collections.abc import Sequence

import torch
from torch import Tensor

from velodrome.optim.chain import Chain
from velodrome.probes.twin import twin_of


@torch.no_grad()
def coming_update(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], gradients: Sequence[Tensor | None] | None = None, loss: float | None = None
) -> list[Tensor]:
    r"""$\Delta$ of the next `optimizer.step()` for each of `params`, decay, momentum and clipping included; zeros where it does not move.

    `gradients`: those to step with, one for each parameter (None for one without); by default those in `.grad`. `loss`: for rules that ask for
    it. Costs a copy of the parameters, gradients and states for the time of the call. Rules that draw noise draw it from a generator that is put back.
    ValueError for a parameter that is not in the optimizer, and where none has a gradient.
    """
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) not in own for p in params):
        raise ValueError("a parameter looked at is not in the optimizer: look at the parameters that it trains (params=…).")
    given = {id(p): g for p, g in zip(params, [p.grad for p in params] if gradients is None else gradients, strict=True)}
    if all(g is None for g in given.values()):
        raise ValueError("there are no gradients to step with: call it between backward and step.")
    twin, copies = twin_of(optimizer)
    for group in optimizer.param_groups:
        for p in group["params"]:
            g = given.get(id(p), p.grad)
            copies[id(p)].grad = None if g is None else g.detach().clone()
    with torch.random.fork_rng(sorted({p.device.index or 0 for p in params if p.is_cuda})):
        if isinstance(twin, Chain):
            twin.step(loss=loss)
        else:
            type(optimizer).step(twin)  # torch's schedulers hang a `step` on the instance, which would step the original
    return [copies[id(p)].detach() - p.detach() for p in params]

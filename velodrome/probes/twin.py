"""A copy of an optimizer that can make steps of its own: what it will do is found on the copy, and nothing of the original is touched."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor


def twin_of(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, Mapping[int, Tensor]]:
    """A copy of the optimizer over copies of its parameters, without hooks and without gradients; and the copies by the id of their originals.

    A class of the user's own keeps its own attributes. Its step is `type(optimizer).step(twin)`: torch's schedulers hang a `step` on the instance,
    which would step the original. ValueError, with the attribute's name, for one that cannot be copied.
    """
    everyone = [p for group in optimizer.param_groups for p in group["params"]]
    copies = {id(p): p.detach().clone().requires_grad_(p.requires_grad) for p in everyone}
    memo = dict(copies)  # whoever points to a parameter points to its copy
    twin: torch.optim.Optimizer = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():  # torch copies state and groups only
        if name in vars(twin) or name == "step":
            continue
        try:
            setattr(twin, name, copy.deepcopy(value, memo))
        except Exception as error:
            raise ValueError(
                f"{type(optimizer).__name__}.{name} cannot be copied ({type(error).__name__}), so the coming step cannot be found without making it."
            ) from error
    twin._optimizer_step_pre_hooks.clear()
    twin._optimizer_step_post_hooks.clear()
    return twin, copies

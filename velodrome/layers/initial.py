"""Models that start badly: the same network with all its weights scaled, a workload's variant."""

from collections.abc import Callable

import torch
from torch import nn


def scaled(model: Callable[[], nn.Module], factor: float) -> nn.Module:
    """The model with its matrices and kernels (two dimensions or more) times `factor` at the start; vectors as they are."""
    made = model()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(factor)
    return made

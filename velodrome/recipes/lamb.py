"""LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962)."""

from functools import partial

from velodrome.optim.lamb import lamb as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def lamb(lr: float = 1.2e-2, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1) -> Recipe:
    """LAMB, version 3 of the paper."""
    settings = dict(locals())
    return Recipe("lamb", partial(optimizer, **settings), warm_linear, settings)

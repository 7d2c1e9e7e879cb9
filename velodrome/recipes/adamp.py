"""AdamP (Heo et al. 2021, https://arxiv.org/abs/2006.08217)."""

from functools import partial

from velodrome.optim.adamp import adamp as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def adamp(lr: float = 1.2e-2, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1) -> Recipe:
    """AdamP."""
    settings = dict(locals())
    return Recipe("adamp", partial(optimizer, **settings), warm_linear, settings)

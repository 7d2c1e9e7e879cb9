"""Rotational AdamW (Kosson et al. 2024, https://arxiv.org/abs/2305.17212)."""

from functools import partial

from velodrome.optim.rotational import rotational_adamw as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def rotational_adamw(lr: float = 2.4e-2, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1) -> Recipe:
    """AdamW whose neurons turn by the equilibrium's angle from the first step on."""
    settings = dict(locals())
    return Recipe("rotational_adamw", partial(optimizer, **settings), warm_linear, settings)

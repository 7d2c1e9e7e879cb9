"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

from functools import partial

from velodrome.optim.muon import muon as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def muon(lr: float = 1.2e-2, momentum: float = 0.95, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)) -> Recipe:
    """Muon on hidden matrices with AdamW on the rest."""
    settings = dict(locals())
    return Recipe("muon", partial(optimizer, **settings), warm_linear, settings)

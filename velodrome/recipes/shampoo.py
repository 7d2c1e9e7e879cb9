"""Shampoo (Gupta et al. 2018, https://arxiv.org/abs/1802.09568; distributed form: Shi et al. 2023, https://arxiv.org/abs/2309.06497)."""

from functools import partial

from velodrome.optim.shampoo import shampoo as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def shampoo(
    lr: float = 1.2e-2, momentum: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.1, precondition_frequency: int = 10
) -> Recipe:
    """Shampoo grafted onto Adam on hidden matrices with AdamW on the rest."""
    settings = dict(locals())
    return Recipe("shampoo", partial(optimizer, **settings), warm_linear, settings)

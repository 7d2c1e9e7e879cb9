"""AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""

from functools import partial

from velodrome.optim.adam import adamw as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def adamw(lr: float = 1.2e-2, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.1) -> Recipe:
    """AdamW, the reference of every race: calibrated once over all embedded workloads, the same numbers everywhere (LOG.md)."""
    settings = dict(locals())
    return Recipe("adamw", partial(optimizer, **settings), warm_linear, settings)

"""Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980)."""

from functools import partial

from velodrome.optim.adam import adam as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def adam(lr: float = 1.2e-2, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.0) -> Recipe:
    """Adam with L2 regularisation."""
    settings = dict(locals())
    return Recipe("adam", partial(optimizer, **settings), warm_linear, settings)

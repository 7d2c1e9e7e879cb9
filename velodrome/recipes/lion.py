"""Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675)."""

from functools import partial

from velodrome.optim.lion import lion as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def lion(lr: float = 4.8e-3, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 1.0) -> Recipe:
    """Lion."""
    settings = dict(locals())
    return Recipe("lion", partial(optimizer, **settings), warm_linear, settings)

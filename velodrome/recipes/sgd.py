"""SGD (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html)."""

from functools import partial

from velodrome.optim.sgd import sgd as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def sgd(lr: float = 0.2, momentum: float = 0.9, weight_decay: float = 5e-4, nesterov: bool = True) -> Recipe:
    """SGD with Nesterov momentum."""
    settings = dict(locals())
    return Recipe("sgd", partial(optimizer, **settings), warm_linear, settings)

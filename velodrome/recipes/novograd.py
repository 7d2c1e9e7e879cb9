"""NovoGrad (Ginsburg et al. 2019, https://arxiv.org/abs/1905.11286)."""

from functools import partial

from velodrome.optim.novograd import novograd as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def novograd(lr: float = 9.6e-2, betas: tuple[float, float] = (0.95, 0.98), weight_decay: float = 0.001) -> Recipe:
    """NovoGrad; its decay enters the momentum, so that it is small."""
    settings = dict(locals())
    return Recipe("novograd", partial(optimizer, **settings), warm_linear, settings)

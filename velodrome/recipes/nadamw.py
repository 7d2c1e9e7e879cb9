"""NAdamW (Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""

from functools import partial

from velodrome.optim.nadam import nadamw as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def nadamw(lr: float = 1.2e-2, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.1) -> Recipe:
    """NAdamW in torch's variant."""
    settings = dict(locals())
    return Recipe("nadamw", partial(optimizer, **settings), warm_linear, settings)

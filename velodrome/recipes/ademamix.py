"""AdEMAMix (Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137)."""

from functools import partial

from velodrome.optim.ademamix import ademamix as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def ademamix(
    lr: float = 1.2e-2, betas: tuple[float, float, float] = (0.9, 0.99, 0.999), weight_decay: float = 0.1, alpha: float = 2.0
) -> Recipe:
    """AdEMAMix with a slow average of a thousand steps: the authors' 0.9999 is longer than these runs."""
    settings = dict(locals())
    return Recipe("ademamix", partial(optimizer, **settings), warm_linear, settings)

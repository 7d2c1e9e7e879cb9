"""SOAP (Vyas et al. 2024, https://arxiv.org/abs/2409.11321)."""

from functools import partial

from velodrome.optim.soap import soap as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def soap(
    lr: float = 1.2e-2, betas: tuple[float, float] = (0.95, 0.95), weight_decay: float = 0.1, precondition_frequency: int = 10
) -> Recipe:
    """SOAP on hidden matrices with AdamW on the rest."""
    settings = dict(locals())
    return Recipe("soap", partial(optimizer, **settings), warm_linear, settings)

"""Stable-SPAM (Huang et al. 2025, https://arxiv.org/abs/2502.17055)."""

from functools import partial

from velodrome.optim.stable_spam import stable_spam as optimizer
from velodrome.recipes.recipe import Recipe, warm_linear


def stable_spam(lr: float = 2.4e-2, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1) -> Recipe:
    """Stable-SPAM with the authors' clipping and resets."""
    settings = dict(locals())
    return Recipe("stable_spam", partial(optimizer, **settings), warm_linear, settings)

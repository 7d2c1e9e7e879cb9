"""Schedule-Free AdamW (Defazio et al. 2024, https://arxiv.org/abs/2405.15682)."""

from functools import partial

from velodrome.averages.schedule_free import schedule_free_adamw as optimizer
from velodrome.recipes.recipe import Recipe, Schedule
from velodrome.schedules.constant import constant
from velodrome.schedules.warmup import warmup

WARMUP = 0.02  # of the horizon, as the submission that won AlgoPerf's self-tuning track


def warm_constant(lr: float, steps: int) -> Schedule:
    """Linear warm-up over the first 2 % of the horizon, then constant: nothing decays, the average does its work."""
    return warmup(constant(lr), max(1, round(WARMUP * steps)))


def schedule_free(
    lr: float = 4e-2,
    betas: tuple[float, float] = (0.9, 0.9955159689799007),
    eps: float = 1e-8,
    weight_decay: float = 0.08121616522670176,
    r: float = 0.75,
) -> Recipe:
    """Schedule-Free AdamW, evaluated at its average: the numbers of its AlgoPerf submission, with the learning rate calibrated here (LOG.md)."""
    settings = dict(locals())
    return Recipe("schedule_free", partial(optimizer, **settings), warm_constant, settings)

"""Linear warm-up around any schedule (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 2.2), as a factor of it."""

from collections.abc import Callable
from dataclasses import dataclass

from velodrome.schedules._common import check_count, check_step, ramp


@dataclass(frozen=True)
class Warmup:
    r"""$\eta(t) = \min(1, (t+1)/W)\,\eta_0(t)$."""

    schedule: Callable[[int], float]
    steps: int

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise ValueError(f"schedule must be a function of the step, got {self.schedule!r}: write warmup(constant(1e-3), steps=100).")
        check_count("steps", self.steps, 0)

    def __call__(self, t: int) -> float:
        """The rate at step t, counted from 0."""
        check_step(t)
        return ramp(t, self.steps) * self.schedule(t)


def warmup(schedule: Callable[[int], float], steps: int) -> Warmup:
    """`schedule` multiplied by a ramp from 1/steps at t = 0 to 1 at t = steps - 1; from then on it is `schedule`, whose length does not change.

    The schedule below is not delayed: a decay that begins at t = 0 has come a little way when the ramp ends. Where it should begin at the
    end of the warm-up, give `linear`, `cosine` or `wsd` their own `warmup`. ValueError for a negative number of steps.
    """
    return Warmup(schedule, steps)

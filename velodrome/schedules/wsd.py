"""WSD: warm up, hold, cool down (Hägele et al. 2024, https://arxiv.org/abs/2405.18392; the name is Hu et al.'s, https://arxiv.org/abs/2404.06395).

The cool-down shapes are those of the paper's appendix and of its code, github.com/epfml/schedules-and-scaling, src/optim/utils.py. Differences:
its warm-up starts at a hundredth of the rate instead of 1/W, and it truncates the number of cool-down steps, so that 0.29 of 100 steps is 28 there.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

from velodrome.schedules._common import check_count, check_fraction, check_rate, check_step, progress, ramp


def _half_cosine(u: float) -> float:
    return (1 + math.cos(math.pi * u)) / 2


# From 1 at u = 0 to 0 at u = 1; the floor is added afterwards. The exponential is floor**u and has no such form.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1 - u,
    "sqrt": lambda u: 1 - math.sqrt(u),
    "cosine": _half_cosine,
    "mirror-cosine": lambda u: 2 * (1 - u) - _half_cosine(u),
    "square": lambda u: 1 - u * u,
}


@dataclass(frozen=True)
class Wsd:
    r"""$\eta(t) = \eta\,(t+1)/W$ for $t < W$, then $\eta$, then $\eta\,(f + (1-f)\,g(u))$ with $u = (t-(T-n))/n$ over the last $n$ steps.

    $g$ is the shape: linear $1-u$, sqrt $1-\sqrt u$, cosine $(1+\cos\pi u)/2$, mirror-cosine $2(1-u)-(1+\cos\pi u)/2$, square $1-u^2$;
    exponential is $\eta f^u$.
    """

    lr: float
    steps: int
    warmup: int
    cooldown: float
    shape: str
    floor: float

    def __post_init__(self) -> None:
        check_rate("lr", self.lr)
        check_count("steps", self.steps, 1)
        check_count("warmup", self.warmup, 0)
        check_fraction("cooldown", self.cooldown)
        check_fraction("floor", self.floor)
        names = [*SHAPES, "exponential"]
        if self.shape not in names:
            near = difflib.get_close_matches(str(self.shape), names, 1, cutoff=0.0)[0]
            raise ValueError(f"shape must be one of {', '.join(names)}, got {self.shape!r}: did you mean {near!r}?")
        if self.shape == "exponential" and self.floor == 0 and self.cooldown > 0:
            raise ValueError(
                "floor must be more than 0 for the exponential shape, got 0: floor**u would be zero at once, write floor=0.01."
            )
        if self.warmup + self.cooldown_steps > self.steps:
            asked = f"warmup={self.warmup} and cooldown={self.cooldown} ({self.cooldown_steps} steps) of steps={self.steps}"
            raise ValueError(f"warmup and cooldown must fit into the run, got {asked}: shorten one of them.")

    @property
    def cooldown_steps(self) -> int:
        """How many steps the cool-down lasts: the fraction of the run, rounded, and at least one unless it is zero."""
        return max(1, round(self.cooldown * self.steps)) if self.cooldown > 0 else 0

    def __call__(self, t: int) -> float:
        """The rate at step t, counted from 0."""
        check_step(t)
        hold = self.steps - self.cooldown_steps
        if t <= hold or self.cooldown == 0:
            return self.lr * ramp(t, self.warmup)
        u = progress(t, hold, self.steps)
        if self.shape == "exponential":
            return float(self.lr * self.floor**u)
        return self.lr * (self.floor + (1 - self.floor) * SHAPES[self.shape](u))


def wsd(lr: float, steps: int, *, warmup: int | None = None, cooldown: float = 0.2, shape: str = "linear", floor: float = 0.0) -> Wsd:
    """Rise to `lr` over `warmup` steps, hold it, and fall to `floor * lr` over the last `cooldown` fraction of the `steps`.

    `warmup` counts steps (default: a twentieth of the run, less where the cool-down leaves less). `cooldown` is a fraction of the run, 0 for none;
    the paper finds 0.1 to 0.2 enough, and sqrt at least as good as linear. `shape` is linear, sqrt, cosine, mirror-cosine, square or
    exponential (which needs a floor). `floor` is a fraction of `lr`.

    t = 0 gives lr/warmup (lr without warm-up), the first cool-down step still gives lr, and t = steps - 1 gives the shape at u = 1 - 1/n, with n
    cool-down steps: lr/n for linear, with floor 0. The floor is reached at t = steps, after the run.
    ValueError for a negative or non-finite lr, fractions outside [0, 1], an unknown shape, or parts longer than the run.
    """
    if warmup is not None:
        return Wsd(lr, steps, warmup, cooldown, shape, floor)
    plain = Wsd(lr, steps, 0, cooldown, shape, floor)
    return Wsd(lr, steps, min(round(steps / 20), steps - plain.cooldown_steps), cooldown, shape, floor)

"""What the schedules share: the checks of their fields, the warm-up ramp and the progress of a decay.

One convention for all of them. t counts from 0 and `steps` is the number of updates of the run. A warm-up of W steps gives
(t + 1)/W of the rate at step t: the first step is not wasted on a rate of zero and step W - 1 has the full rate. A decay over the last n steps has
progress u = (t - (steps - n))/n: its first step has the full rate, and its end (u = 1) would be step t = `steps`, the first one that the
run does not take, so the last update is small but never zero. From t = `steps` on a schedule stays at its end value.
"""

import math


def check_rate(name: str, value: object) -> None:
    """A finite number, zero or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number, zero or more, got {value!r}: write for example {name}=1e-3.")


def check_count(name: str, value: object, least: int) -> None:
    """A whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of steps, {least} or more, got {value!r}.")


def check_fraction(name: str, value: object) -> None:
    """A number between 0 and 1, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a fraction between 0 and 1, got {value!r}.")


def check_decay(lr: float, steps: int, warmup: int, floor: float) -> None:
    """The fields of a schedule that decays from the end of its warm-up to its last step."""
    check_rate("lr", lr)
    check_count("steps", steps, 1)
    check_count("warmup", warmup, 0)
    check_fraction("floor", floor)
    if warmup >= steps:
        raise ValueError(
            f"warmup must leave at least one step of decay, got warmup={warmup} of steps={steps}: write warmup={steps - 1} or less."
        )


def check_step(t: int) -> None:
    """Steps count from 0."""
    if t < 0:
        raise ValueError(f"t must be zero or more, got {t!r}: steps count from 0.")


def ramp(t: int, warmup: int) -> float:
    """Linear warm-up: (t + 1)/warmup, at most 1."""
    return (t + 1) / warmup if t < warmup else 1.0


def progress(t: int, start: int, stop: int) -> float:
    """How far a decay from `start` to `stop` has come at step t, between 0 and 1."""
    return min(1.0, max(0.0, (t - start) / (stop - start)))

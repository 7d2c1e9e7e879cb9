"""Loss spikes, found while they happen: the step, the batch, and the layer whose gradient or update jumped first.

    spikes = Spikes()
    for step in train(...):
        spike = spikes.add(step.t, step.loss, norms={name: ...}, position=step.t)
        if spike: print(spike.step, spike.layer, spike.layer_step, spike.position)

A value is a spike where it lies more than `threshold` robust standard deviations (1.4826 times the median absolute deviation) above the median of the
last `window` values that were none: a spike does not move its own scale. Gaussian noise passes 6 once in 10^9 steps, heavy tails oftener.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spike:
    """A loss at `step` (`loss`, `height` in robust standard deviations) far above what was usual, `usual`.

    `layer` is the one whose norm left its own range first, at `layer_step`, by `layer_height` robust standard deviations; None where none did. `position`
    is that of the batch at `layer_step`, else at the spike: the batch to look at.
    """

    step: int
    loss: float
    usual: float
    height: float
    layer: str | None
    layer_step: int | None
    layer_height: float
    position: int | None


class Spikes:
    """Add every step's loss, and norms by layer (logarithms are compared) where they are known; a Spike comes back at its first step.

    `before` is how many steps before the spike a layer's jump is looked for. Costs the median of a window a step; the layers are compared at a spike only.
    """

    def __init__(self, window: int = 100, threshold: float = 6.0, before: int = 10) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 10:
            raise ValueError(f"window must be a whole number, ten or more, got {window!r}.")
        if not threshold > 0 or not before >= 0:
            raise ValueError(f"threshold must be above 0 and before 0 or more, got {threshold!r} and {before!r}.")
        self.window, self.threshold, self.before = window, threshold, before
        self.found: list[Spike] = []
        self._usual: deque[float] = deque(maxlen=window)
        self._past: deque[tuple[int, int | None, dict[str, float]]] = deque(maxlen=window + before + 1)
        self._up = False

    def add(self, step: int, loss: float, norms: Mapping[str, float] | None = None, position: int | None = None) -> Spike | None:
        """The spike that begins at this step, or None; the first tenth of a window is for learning what is usual."""
        self._past.append((step, position, dict(norms or {})))
        if len(self._usual) < max(10, self.window // 10):
            if math.isfinite(loss):
                self._usual.append(loss)
            return None
        middle, height = score(self._usual, loss)
        if not height > self.threshold:
            self._usual.append(loss)
            self._up = False
            return None
        if self._up:
            return None  # the same spike goes on
        self._up = True
        layer, at, how = self._first()
        positions = {s: p for s, p, _ in self._past}
        spike = Spike(step, loss, middle, height, layer, at, how, positions[at] if at is not None else position)
        self.found.append(spike)
        return spike

    def _first(self) -> tuple[str | None, int | None, float]:
        """(layer, step, height) of the earliest jump in the last steps; of several at one step, the highest."""
        past = list(self._past)
        calm, late = past[: -self.before - 1], past[-self.before - 1 :]
        jumps = []
        for name in past[-1][2]:
            usual = np.array([n[name] for _, _, n in calm if name in n and n[name] > 0])
            if len(usual) < 5:
                continue
            for place, (step, _, norms) in enumerate(late):
                value = norms.get(name, math.nan)
                height = math.inf if not math.isfinite(value) else score(np.log(usual), math.log(value))[1] if value > 0 else 0.0
                if height > self.threshold:
                    jumps.append((place, -height, name, step))
                    break
        return (jumps[0][2], jumps[0][3], -jumps[0][1]) if jumps and jumps.sort() is None else (None, None, math.nan)


def score(usual: Collection[float], value: float) -> tuple[float, float]:
    """(median, how many robust standard deviations the value lies above it); what is not finite lies infinitely above.

    Sorted lists: at a hundred numbers NumPy's medians take eight times as long, and `watch` asks at every step.
    """
    middle = half(usual)
    if not math.isfinite(value):
        return middle, math.inf
    deviation = 1.4826 * half([abs(x - middle) for x in usual])
    floor = 1e-6 * abs(middle) + 1e-12  # a series that stands still has no scale of its own
    return middle, (value - middle) / max(deviation, floor)


def half(values: Collection[float]) -> float:
    """The median."""
    ordered, n = sorted(values), len(values)
    return float(ordered[n // 2]) if n % 2 else float(ordered[n // 2 - 1] + ordered[n // 2]) / 2

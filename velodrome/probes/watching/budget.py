"""What may be spent on looking: a share of the training time, paid out to the probes as it is earned."""

import re
from collections import deque
from dataclasses import dataclass, field
from math import ceil, inf
from statistics import median

KEPT = 20  # costs remembered for each probe: the largest of 20 is about their 95 % quantile
FIXED = 0.5  # of a first measurement's cost, what is believed not to depend on the examples
MARGIN = 1.5  # what is put by before a measurement, over the largest cost remembered
PAUSE = 3.0  # a stretch this many times slower than the median one held an evaluation or a checkpoint, and is not credited in full
BOOKS = 0.1  # of the budget, that deciding may cost


def share_of(budget: str | float) -> float:
    """A share of the training time from "2%", 0.02, or seconds per minute as "1.2 s/min"; ValueError for anything else."""
    wrong = ValueError(f'budget must be a share of the training time, got {budget!r}: write "2%", 0.02 or "1.2 s/min".')
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*(%|s/min|)\s*", budget)
        try:
            share = float(found[1]) / {"%": 100.0, "s/min": 60.0, "": 1.0}[found[2]] if found else 0.0
        except ValueError:
            raise wrong from None
    elif isinstance(budget, bool) or not isinstance(budget, int | float):
        raise wrong
    else:
        share = float(budget)
    if not 0 < share <= 1:
        raise wrong
    return share


@dataclass
class Cost:
    """What one measurement costs, in step times: `prior` until it has been measured, then what was seen.

    A measurement may be made on a fraction of the batch. One on more of it is taken to cost in proportion, one on less to cost the same: both are too
    much, and become right with the first measurement at that fraction. The first measurement also wakes libraries up, and leaves with the second.
    """

    prior: float
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    mean: float = 0.0  # exponentially weighted
    fraction: float = 0.0  # of the last measurement
    count: int = 0
    known: dict[float, float] = field(default_factory=dict)  # reserves, until the next measurement

    def add(self, steps: float, fraction: float = 1.0) -> None:
        """A measurement cost so many step times."""
        if self.count == 1:
            self.recent.clear()
        fresh = self.count < 2 or fraction != self.fraction
        self.mean = steps if fresh else self.mean + 0.2 * (steps - self.mean)
        self.recent.append((steps, fraction))
        self.known.clear()
        self.count, self.fraction = self.count + 1, fraction

    def reserve(self, fraction: float = 1.0) -> float:
        """What must be put by before a measurement: more than it has cost so far, nineteen times in twenty."""
        if fraction not in self.known:
            seen = (MARGIN * cost * max(1.0, fraction / f) for cost, f in self.recent)
            self.known[fraction] = max(seen, default=self.believed(fraction))
        return self.known[fraction]

    def typical(self, fraction: float = 1.0) -> float:
        """What a measurement is expected to cost."""
        return self.mean * max(1.0, fraction / self.fraction) if self.count else self.believed(fraction)

    def believed(self, fraction: float) -> float:
        """Before the first measurement: a fixed part, and one in proportion to the examples."""
        return self.prior * (FIXED + (1 - FIXED) * fraction)


class Account:
    """Credit is earned by training, `share` seconds each second, and each probe saves up for its next measurement.

    What is earned goes in equal parts to the probes that have not saved enough yet, so a cheap probe is soon content and a dear one gets the rest. The sum
    of all that was ever spent stays below `share` times the training time as long as no measurement costs more than all that is saved; if one
    does, the probes wait until the debt is paid, and `overdrawn` tells the deepest one, in seconds.
    """

    def __init__(self, share: float, priors: dict[str, float], every: dict[str, int]):
        self.share, self.every = share, every
        self.costs = {name: Cost(prior) for name, prior in priors.items()}
        self.saved = dict.fromkeys(priors, 0.0)
        self.last = dict.fromkeys(priors, -(10**9))
        self.fractions = dict.fromkeys(priors, 1.0)
        self.income = dict.fromkeys(priors, share / max(1, len(priors)))  # seconds earned per second, lately
        self.pool = 0.0  # what nobody saves; negative: a debt
        self.trained = self.spent = self.overdrawn = self.books = 0.0
        self.deepest = ""  # the measurement that made the deepest debt
        self.rates: deque[float] = deque(maxlen=9)
        self.step = 0.0  # seconds that a training step takes, the median lately

    @property
    def credit(self) -> float:
        """All that may be spent now, in seconds."""
        return self.share * self.trained - self.spent

    def earn(self, seconds: float, steps: int, quiet: bool = True) -> None:
        """Training took so long for so many steps, looking not counted; not `quiet`: they say nothing about how long a step takes."""
        rate = seconds / steps
        if self.rates:
            seconds = min(seconds, PAUSE * self.step * steps)
        if quiet:
            self.rates.append(rate)
            self.step = median(self.rates)
        self.trained += seconds
        self.pool += self.share * seconds
        self._deal(seconds)

    def _deal(self, seconds: float) -> None:
        rooms = sorted((room, n) for n in self.saved if (room := self.need(n) - self.saved[n]) > 0)
        for i, (room, name) in enumerate(rooms):
            amount = min(room, max(0.0, self.pool) / (len(rooms) - i))
            self.pool -= amount
            self.saved[name] += amount
            if seconds > 0 and amount < room:
                self.income[name] += 0.2 * (amount / seconds - self.income[name])

    def need(self, name: str) -> float:
        """Seconds that a probe must have saved before its next measurement."""
        return self.costs[name].reserve(self.fractions[name]) * self.step

    def may(self, name: str) -> bool:
        """Whether a measurement can be paid, now, also if it costs what is put by for it."""
        return bool(self.rates) and self.saved[name] >= self.need(name) - 1e-12 and self.credit >= self.need(name)

    def due(self, t: int) -> list[str]:
        """The probes that are measured at step t; of those that never were, and may cost more than is believed, one at a time."""
        found = [name for name in self.saved if t - self.last[name] >= self.every[name] and self.may(name)]
        new = [name for name in found if not self.costs[name].count]
        return [name for name in found if name not in new[1:]]

    def wait(self, t: int, longest: int) -> int:
        """Steps to let pass before asking again: until something can be due, and so many that asking is a small part of the budget."""
        if not self.rates or self.step <= 0:
            return 1
        least = ceil(self.books / (BOOKS * self.share * self.step)) if self.books else 1
        soonest: float = inf
        for name in self.saved:
            income = max(self.income[name], 1e-3 * self.share) * self.step
            soonest = min(soonest, max((self.need(name) - self.saved[name]) / income, self.last[name] + self.every[name] - t))
        return max(1, min(max(least, ceil(soonest)), max(longest, least))) if self.saved else longest

    def charge(self, seconds: float) -> None:
        """Looking cost so much that no measurement is to blame for: hooks at every step, slower steps after a look, getting ready."""
        self.spent += seconds
        self.pool -= seconds

    def spend(self, name: str | None, seconds: float, t: int = 0, fraction: float = 1.0) -> None:
        """A measurement of a probe at step t, or (None) deciding, took so long."""
        self.spent += seconds
        if name is not None and -self.credit > self.overdrawn:
            which = "first measurement" if name in self.costs and not self.costs[name].count else "measurement"
            self.overdrawn, self.deepest = -self.credit, f"{which} of {name} at step {t}"
        if name is None:
            self.pool -= seconds
            self.books = seconds if not self.books else self.books + 0.2 * (seconds - self.books)
            return
        if name not in self.saved:  # given up on this process, and another one decides
            self.pool -= seconds
            return
        self.saved[name] -= seconds
        if self.saved[name] < 0:  # everybody pays for it, later
            self.pool, self.saved[name] = self.pool + self.saved[name], 0.0
        self.last[name] = t
        if self.step > 0:
            self.costs[name].add(seconds / self.step, fraction)

    def close(self, name: str) -> None:
        """A probe is given up: what it saved goes to the others."""
        self.pool += self.saved.pop(name, 0.0)

    def resize(self, name: str, sizes: list[float], patience: int) -> float:
        """The largest fraction of the batch with which a probe is measured every `patience` steps or oftener; the smallest first, one size up at a time."""
        cost, income = self.costs[name], max(self.income[name], 1e-9)
        if not cost.count:
            self.fractions[name] = min(sizes)
            return self.fractions[name]
        allowed = [f for f in sizes if f <= 2 * cost.fraction * 1.0001]
        good = [f for f in allowed if cost.typical(f) / income <= patience]
        self.fractions[name] = max(good, default=min(sizes))
        return self.fractions[name]

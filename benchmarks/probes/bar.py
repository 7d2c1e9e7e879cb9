"""One line of the table: what was measured, what it must be, and today's best beside it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """`bar` is what `value` must be: at most that, at least that where `better` is "high", a pair for a range, None for a line of comparison.

    `best_today` is the best that others reach, a text: a figure and whose. A `value` of None could not be measured, and `note` says why.
    """

    family: str
    task: str
    value: float | None
    unit: str
    bar: float | tuple[float, float] | None = None
    best_today: str = ""
    note: str = ""
    better: str = "low"

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is nothing to judge. What must be met and could not be measured is not met."""
        if self.bar is None:
            return None
        if self.value is None:
            return False
        if isinstance(self.bar, tuple):
            return bool(self.bar[0] <= self.value <= self.bar[1])
        return bool(self.value <= self.bar if self.better == "low" else self.value >= self.bar)

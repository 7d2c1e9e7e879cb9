"""What was spent on looking, and on what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds of looking and of training, both by the watch's own clock, and the parts. `share` is their ratio and `budget` what it may be.

    `overdrawn` is the deepest debt there was, in seconds: 0 unless a measurement cost more than all that was saved.
    """

    seconds: float
    trained: float
    budget: float
    overdrawn: float
    deciding: float
    probes: dict[str, float]
    counts: dict[str, int]

    @property
    def share(self) -> float:
        """Of the training time."""
        return self.seconds / self.trained if self.trained > 0 else 0.0

    def __str__(self) -> str:
        lines = [
            f"looked {sum(self.counts.values())} times, {self.seconds:.3g} s or {self.share:.2%} of {self.trained:.3g} s of training "
            f"(budget {self.budget:.2%})"
        ]
        for name, seconds in sorted(self.probes.items(), key=lambda item: -item[1]):
            lines.append(f"  {name}: {self.counts[name]} times, {seconds / self.trained if self.trained else 0:.2%}")
        return "\n".join([*lines, f"  deciding: {self.deciding / self.trained if self.trained else 0:.2%}"])

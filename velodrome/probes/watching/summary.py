"""What was spent on looking, and on what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds of looking and of training, both by the watch's own clock, and the parts. `share` is their ratio and `budget` what it may be.

    `deciding` when to look, `hooks` at every step and `after`, what steps take longer after a look, are parts that no probe is charged with.
    `overdrawn` is the deepest debt a measurement made, in seconds, and `deepest` which one: 0 unless one cost more than all that was saved.
    """

    seconds: float
    trained: float
    budget: float
    overdrawn: float
    deepest: str
    deciding: float
    hooks: float
    after: float
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
        parts = [(f"{name}: {self.counts[name]} times", s) for name, s in sorted(self.probes.items(), key=lambda item: -item[1])]
        parts += [("deciding", self.deciding), ("hooks", self.hooks), ("slower steps after a look", self.after)]
        lines += [f"  {what}, {seconds / self.trained if self.trained else 0:.2%}" for what, seconds in parts]
        if self.overdrawn > 0:
            lines.append(
                f"  the {self.deepest} cost {1e3 * self.overdrawn:.3g} ms more than was saved, and nothing was looked at until they were earned"
            )
        return "\n".join(lines)

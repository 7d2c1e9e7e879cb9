"""Finding: what a reading means, in one sentence with its numbers, and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from velodrome.probes.estimate import Estimate

Level = Literal["sick", "watch", "remark", "fine"]


@dataclass(frozen=True)
class Finding:
    """`sentence` says what was seen, where and since when, with its uncertainty; `advice` what to do about it.

    level "sick": training suffers or will fail. "watch": it may, and the numbers do not decide. "remark": worth knowing, no fault; that a question
    could not be answered is a remark, too. `kind` is its name for programs, `evidence` the numbers.
    """

    kind: str
    level: Level
    sentence: str
    advice: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


def number(x: float) -> str:
    """Three significant digits; whole numbers from a thousand on, with commas."""
    if x != 0 and not 1e-4 <= abs(x) < 1e6:
        return f"{x:.2e}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def told(e: Estimate, unit: bool = False) -> str:
    """A value with its interval or bound in words: "1.02 (1.00 to 1.04)"."""
    after = f" {e.unit}" if unit and e.unit else ""
    if e.kind == "exact":
        return number(e.value) + after
    return f"{number(e.value)}{after} ({number(e.low)} to {number(e.high)})"


def listed(names: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""The cells that every table of bars has: what was measured, what it must be, met or missed."""

from rich.text import Text


def measured(value: float | None, unit: str) -> str:
    """The figure with its unit."""
    return "not measured" if value is None else f"{value:.4g} {unit}".strip()


def goal(limit: float | tuple[float, float] | None, better: str) -> str:
    """At most that, at least that, or between; empty for a line that is shown for comparison only."""
    if limit is None:
        return ""
    if isinstance(limit, tuple):
        return f"{limit[0]:g}-{limit[1]:g}"
    return f"{'<=' if better == 'low' else '>='} {limit:g}"


def verdict(met: bool | None) -> Text:
    """Met or missed."""
    return Text("") if met is None else Text("met", style="green") if met else Text("missed", style="red")

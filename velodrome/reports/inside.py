"""What a look inside found: readings, findings, charts and examples as plain values, and the table on the terminal. Never imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import isfinite
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from velodrome.reports.console import Terminal
from velodrome.reports.words import MISSING, digits

SHOWN = 12  # readings of one topic on the terminal; the page has all
LEVELS = {"sick": "red", "watch": "yellow", "remark": "", "fine": "green"}
STYLES = {"sick": "bold red", "watch": "bold yellow", "remark": "bold", "fine": ""}


@dataclass(frozen=True)
class Reading:
    """One number: `what` was measured and `where` (a layer, a class), its value with a 95 % interval or a proven bound, and what that means.

    `kind` is exact, interval or bound; a value that the data do not identify is None, and `note` says why. `level` colours the verdict.
    """

    topic: str
    what: str
    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    kind: str = "exact"
    n: int = 1
    where: str = ""
    step: int | None = None
    verdict: str = ""
    level: Literal["sick", "watch", "remark", "fine"] = "remark"
    note: str = ""


@dataclass(frozen=True)
class Said:
    """A finding in words: the sentence with its numbers, what to do about it, and the numbers themselves."""

    kind: str
    level: Literal["sick", "watch", "remark", "fine"]
    sentence: str
    advice: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A picture as data. kind "lines": rows of x, y, optionally low, high and series; "dots": rows of name, y, low, high; "heat": rows of name,
    column, value and text; "points": rows of x, y, series. `rules` are horizontal lines {"y", "label"}.
    """

    name: str
    kind: Literal["lines", "dots", "heat", "points"]
    title: str
    caption: str
    x: str
    y: str
    rows: Sequence[Mapping[str, Any]]
    log_x: bool = False
    log_y: bool = False
    rules: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Shown:
    """One training example: its number, what is said about it, and a picture (a data URI) or a text."""

    label: str
    caption: str = ""
    picture: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Examples that belong together."""

    title: str
    caption: str
    examples: Sequence[Shown]


@dataclass(frozen=True)
class Inside:
    """Everything that one look found; `command` repeats it, `about` says what was looked at in pairs for the page's foot."""

    name: str
    origin: str
    title: str
    readings: Sequence[Reading]
    findings: Sequence[Said]
    charts: Sequence[Chart]
    galleries: Sequence[Gallery]
    notes: Sequence[str]
    about: Mapping[str, str]
    command: str

    @property
    def sick(self) -> list[Said]:
        """The findings that ask for something to be done."""
        return [f for f in self.findings if f.level in ("sick", "watch")]

    @property
    def answer(self) -> str:
        """The page's heading."""
        if not self.sick:
            return "Nothing looks sick."
        return self.sick[0].sentence if len(self.sick) == 1 else f"{len(self.sick)} things to look at. {self.sick[0].sentence}"

    def plain(self) -> dict[str, Any]:
        """For JSON; pictures are left to the page."""
        return {
            "name": self.name,
            "origin": self.origin,
            "title": self.title,
            "findings": [asdict(f) for f in self.findings],
            "readings": [asdict(r) for r in self.readings],
            "charts": {c.name: {"x": c.x, "y": c.y, "rows": list(c.rows)} for c in self.charts},
            "examples": [
                {"title": g.title, "examples": [{"label": s.label, "caption": s.caption, "text": s.text} for s in g.examples]}
                for g in self.galleries
            ],
            "notes": list(self.notes),
            "about": dict(self.about),
        }


def number(value: float | None) -> str:
    """A value for a cell; a dash where there is none."""
    return (
        MISSING if value is None or not isfinite(value) else f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e6 else digits(value)
    )


def interval(r: Reading) -> str:
    """[low, high]; ± for a proven bound, nothing for an exact number, an open end where one side is unknown."""
    if r.value is None or r.kind == "exact" or (r.low is None and r.high is None):
        return ""
    if r.kind == "bound" and r.high is not None and r.low is not None:
        return f"± {digits((r.high - r.low) / 2)}"
    ends = [MISSING if end is None or not isfinite(end) else number(end) for end in (r.low, r.high)]
    return f"[{ends[0]}, {ends[1]}]"


def show(inside: Inside) -> None:
    """The readings by topic, then the findings in words."""
    console = Terminal()
    console.print(Text(inside.title, style="bold"))
    console.print(Text(f"from {inside.origin}", style="dim"))
    for topic, group in groupby(inside.readings, key=lambda r: r.topic):
        rows = list(group)
        console.print()
        console.print(Text(topic, style="bold"))
        console.print(grid(rows[:SHOWN]))
        if len(rows) > SHOWN:
            console.print(Text(f"and {len(rows) - SHOWN} more, on the page and with --json", style="dim"))
    console.print()
    for note in inside.notes:
        console.print(Text(f"Note: {note}.", style="dim"))
    for finding in reversed(inside.findings):  # the worst stands where the eye ends
        console.print(Text.assemble((f"{finding.sentence} ", STYLES[finding.level]), (finding.advice, "")))
    if not inside.sick:
        console.print(Text(inside.answer, style="bold green"))


def grid(rows: Sequence[Reading]) -> Table:
    """One topic's readings as a table; notes and whole units are left to the page, but for why there is no number."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold", width=36)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for r in rows:
        label = Text(f"  {r.what}")
        if r.where:
            label.append(f" {r.where}", style="dim")
        told = Text(r.verdict, style=LEVELS[r.level]) if r.verdict else Text(brief(r.unit), style="dim")
        if r.value is None:
            told = Text(r.note.partition(";")[0], style="dim")
        table.add_row(label, number(r.value), Text(interval(r), style="dim"), told)
    return table


def brief(unit: str) -> str:
    """A unit without its explanation: "share of the rows, 0 to 1" is a share of the rows, and a number without a unit has none."""
    return "" if unit in ("1", "ratio", "cosine") else unit.partition(",")[0]

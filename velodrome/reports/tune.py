"""A search as a table on the terminal and as one HTML page: best recipe, loss over learning rate, what tuning costs. Reads plain values only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from velodrome.bench.tuning import Configuration, cost_curve, ranked, sensitivity
from velodrome.reports import charts
from velodrome.reports.console import Terminal
from velodrome.reports.html import figure, page
from velodrome.reports.words import MISSING, digits, seconds

SHOWN = 8  # configurations in the table of the terminal


@dataclass(frozen=True)
class Search:
    """One algorithm on one workload: every configuration tried, the space as text, and the untuned recipe's configuration if it was trained too."""

    algorithm: str
    workload: str
    metric: str
    space: Sequence[str]
    found: Sequence[Configuration]
    seeds: int
    steps: int
    seconds: float
    command: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def best(self) -> Configuration:
        """The configuration with the smallest loss."""
        return ranked(self.found)[0]

    def answer(self) -> str:
        """The search in a sentence."""
        b = self.best
        return f"Of {len(self.found)} configurations of {self.algorithm} on {self.workload}, {b.recipe} ended best: {self.metric} {digits(b.loss)}."

    def caution(self) -> str:
        """What the number of the winner is not."""
        return (
            "The winner's loss is flattered: it is the smallest of many, on the validation data that chose it. To compare the recipe, "
            "race it with other seeds."
        )


def to_json(search: Search) -> dict[str, Any]:
    """The result for machines."""
    curve = cost_curve(search.found)
    return {
        "answer": search.answer(),
        "best": search.best.recipe,
        "loss": search.best.loss,
        "algorithm": search.algorithm,
        "workload": search.workload,
        "metric": search.metric,
        "space": list(search.space),
        "sensitivity": sensitivity(search.found),
        "cost_curve": [{"configurations": b.count, "expected": b.expected, "low": b.low, "high": b.high} for b in curve],
        "configurations": [
            {
                "recipe": c.recipe,
                "options": dict(c.options),
                "loss": c.loss,
                "losses": list(c.losses),
                "diverged": c.diverged,
                "dropped": c.dropped,
            }
            for c in ranked(search.found)
        ],
        "seeds": search.seeds,
        "steps": search.steps,
        "seconds": search.seconds,
        "notes": list(search.notes),
    }


def print_search(search: Search, console: Console | None = None) -> None:
    """The answer, the best configurations, sensitivity and price of tuning, on `console` (default: stdout)."""
    console = console or Terminal()
    console.print(Text(search.answer(), style="bold"))
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("configuration", overflow="fold")
    table.add_column(search.metric, justify="right")
    for c in ranked(search.found)[:SHOWN]:
        table.add_row(Text(c.recipe), digits(c.loss))
    console.print(table)
    if len(search.found) > SHOWN:
        console.print(Text(f"… and {len(search.found) - SHOWN} more: --json tells all.", style="dim"))
    console.print()
    prices = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("tried", "expected best", "95% interval"):
        prices.add_column(name, justify="right")
    curve = cost_curve(search.found)
    for b in [b for b in curve if b.count & (b.count - 1) == 0 or b.count == len(curve)]:
        prices.add_row(str(b.count), digits(b.expected), f"[{digits(b.low)}, {digits(b.high)}]")
    if curve:
        console.print(prices)
        console.print()
    for line in (facts(search), search.caution(), *search.notes):
        console.print(Text(line, style="dim"))


def facts(search: Search) -> str:
    """Sensitivity, what diverged, what it cost."""
    found, value = search.found, sensitivity(search.found)
    wild, dropped = sum(c.diverged > 0 for c in found), sum(c.dropped for c in found)
    told = MISSING if value is None else digits(value)
    lost = f" {wild} diverged." if wild else ""
    lost += f" {dropped} were dropped on the way, so sensitivity and price of tuning are unknown." if dropped else ""
    return f"Learning-rate sensitivity over the space: {told}.{lost} Training took {seconds(search.seconds)} for all together."


def rates(search: Search) -> Any:
    """Final loss over the learning rate, a dot for each configuration; the best one is marked."""
    alt = charts.altair()
    rows = [
        {
            "lr": c.options["lr"],
            "loss": c.loss,
            "recipe": c.recipe,
            "end": "dropped" if c.dropped else "diverged" if c.diverged else "finished",
        }
        for c in search.found
    ]
    ends = {"finished": charts.PALETTE[0], "diverged": charts.PALETTE[1], "dropped": charts.REFERENCE}
    seen = [end for end in ends if any(r["end"] == end for r in rows)]
    positive = min(r["loss"] for r in rows) > 0
    scale = alt.Scale(type="log", nice=False, padding=12) if positive else alt.Scale(zero=False, padding=12)
    x = alt.X(
        "lr:Q",
        title="learning rate",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format="~g", values=ticks([r["lr"] for r in rows])),
    )
    y = alt.Y("loss:Q", title=search.metric, scale=scale, axis=alt.Axis(tickCount=6, format="~r"))
    color = alt.Color(
        "end:N",
        scale=alt.Scale(domain=seen, range=[ends[end] for end in seen]),
        legend=alt.Legend(orient="top", title=None, symbolType="circle"),
    )
    tips = [alt.Tooltip("recipe:N", title="configuration"), alt.Tooltip("loss:Q", title=search.metric, format=".4g"), alt.Tooltip("end:N")]
    dots = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=70, opacity=0.85).encode(x, y, color, tooltip=tips)
    best = [{"lr": search.best.options["lr"], "loss": search.best.loss, "text": f"best {digits(search.best.loss)}"}]
    ring = alt.Chart(alt.Data(values=best)).mark_point(size=220, strokeWidth=2, color=charts.PALETTE[2]).encode(x, y)
    label = alt.Chart(alt.Data(values=best)).mark_text(dy=-20, color=charts.PALETTE[2], fontWeight="bold").encode(x, y, text="text:N")
    return alt.layer(dots, ring, label).properties(width=520, height=300)


def prices(search: Search) -> Any:
    """Expected best of k configurations over k, with its interval."""
    alt = charts.altair()
    rows = [{"count": b.count, "expected": b.expected, "low": b.low, "high": b.high} for b in cost_curve(search.found)]
    positive = min(r["low"] for r in rows) > 0
    scale = alt.Scale(type="log", nice=False, padding=8) if positive else alt.Scale(zero=False, padding=8)
    x = alt.X(
        "count:Q",
        title="configurations tried",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format="d", values=powers(len(rows))),
    )
    y = alt.Y("expected:Q", title=f"expected best {search.metric}", scale=scale, axis=alt.Axis(tickCount=6, format="~r"))
    tips = [alt.Tooltip("count:Q", title="tried"), *(alt.Tooltip(f"{n}:Q", format=".4g") for n in ("expected", "low", "high"))]
    base = alt.Chart(alt.Data(values=rows))
    ribbon = base.mark_area(opacity=0.18, color=charts.PALETTE[0]).encode(x, alt.Y("low:Q", scale=scale), alt.Y2("high:Q"))
    line = base.mark_line(strokeWidth=2.4, color=charts.PALETTE[0]).encode(x, y)
    hover = base.mark_point(filled=True, size=140, opacity=0).encode(x, y, tooltip=tips)
    return alt.layer(ribbon, line, hover).properties(width=520, height=300)


def ticks(values: Sequence[float]) -> list[float]:
    """1 and 3 of every decade that the values reach into."""
    exponents = range(floor(log10(min(values))), ceil(log10(max(values))) + 1)
    return [x * 10.0**e for e in exponents for x in (1, 3) if min(values) / 1.5 <= x * 10.0**e <= max(values) * 1.5]


def powers(n: int) -> list[int]:
    """1, 2, 4, … and n."""
    return [*(2**i for i in range(n.bit_length()) if 2**i * 1.5 < n), n]


def write(path: Path, search: Search) -> Path:
    """The page; ValueError without Altair and vl-convert, naming the extra to install."""
    specs, cards = {}, []
    if all("lr" in c.options for c in search.found):
        value = sensitivity(search.found)
        caption = "Every dot is a configuration; its other options vary too." + ("" if value is None else f" Sensitivity {digits(value)}.")
        specs["rates"] = {"spec": rates(search).to_dict()}
        cards.append(figure("rates", "Loss over learning rate", caption))
    if cost_curve(search.found):
        specs["prices"] = {"spec": prices(search).to_dict()}
        caption = "Expected loss of the best of so many random configurations, with its 95% interval."
        cards.append(figure("prices", "What tuning costs", caption))
    return page(path, f"Velodrome tune: {search.algorithm} on {search.workload}", body(search, "".join(cards)), specs)


def body(search: Search, cards: str) -> str:
    """The page between its frame."""
    seeds = f"{search.seeds} seed{'s' if search.seeds != 1 else ''}"
    kicker = (
        f"Velodrome tune · {search.algorithm} on {search.workload} · {len(search.found)} configurations · {seeds} · {search.steps:,} steps"
    )
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in (facts(search), search.caution(), *search.notes))
    lines = "".join(map(row, ranked(search.found)))
    style = 'style="text-align:right"'
    head = f'<th scope="col">configuration</th><th scope="col">{escape(search.metric)}</th><th scope="col" {style}>end</th>'
    space = "".join(f"<dd>{escape(text)}</dd>" if i else f"<dt>Space</dt><dd>{escape(text)}</dd>" for i, text in enumerate(search.space))
    return "\n".join(
        [
            f'<p class="kicker">{escape(kicker)}</p>',
            f"<h1>{escape(search.answer())}</h1>",
            notes,
            f'<div class="grid">{cards}</div>',
            f'<h2>Every configuration</h2><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>',
            "<h2>How to read this</h2>",
            "<p>A loss is the mean over seeds of the validation loss at the end of the budget; a configuration that diverged, or ended above where it "
            "began, counts as the loss before the first update. Sensitivity is the expected distance from the smallest loss found when the learning rate "
            "is drawn from the space (Wortsman et al. 2023), with the other options drawn too. The price of tuning is the mean over all subsets "
            "of the configurations; its interval resamples them, and is too narrow towards the right end.</p>",
            f"<h2>Do it again</h2><pre>{escape(search.command)}</pre><dl>{space}</dl>",
        ]
    )


def row(c: Configuration) -> str:
    """A row of the table."""
    end = "dropped" if c.dropped else f"{c.diverged} diverged" if c.diverged else "finished"
    name = f'<td title="{escape(c.recipe)}" style="max-width:none">{escape(c.recipe)}</td>'
    return f'<tr>{name}<td>{digits(c.loss)}</td><td style="text-align:right">{end}</td></tr>'

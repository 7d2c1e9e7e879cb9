"""The result of a race as a table on the terminal; rich honours NO_COLOR, TERM=dumb and COLUMNS, and writes plain text into a pipe."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from velodrome.bench.score import Row, Score, Speedup
from velodrome.reports.beside import SAID, Beside
from velodrome.reports.beside import rows as rows_beside
from velodrome.reports.console import Terminal
from velodrome.reports.tuned import Tuning, rows_of, said
from velodrome.reports.words import MISSING, SHORT, answer, labels, median, times, unit

STYLES = {"faster": "bold green", "slower": "red"}


def race_table(score: Score, summary: Sequence[Row]) -> Table:
    """One row per workload and algorithm, readable at 80 columns: hits, median cost to target on every axis, speed-up and verdict.

    "≥" and "≤" mark numbers that rest on runs that missed their target, "—" what is missing; a last section gives the overall speed-up.
    """
    cells = {(c.workload, c.algorithm): c for c in score.cells}
    label = labels([score.reference, *(row.algorithm for row in summary)])
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", collapse_padding=True)
    table.add_column("", overflow="fold", min_width=9)
    table.add_column("hits", justify="right", no_wrap=True)
    for name in ("steps", "examples", "FLOP", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"speed-up ({unit(score.axis)})", overflow="fold", min_width=13)
    table.add_column("verdict", overflow="fold", min_width=9)
    for workload, rows in groupby(sorted(summary, key=lambda r: r.workload), key=lambda r: r.workload):
        table.add_row(Text(workload, style="bold"))
        for row in rows:
            costs = [median(a, row.cost.get(a)).removesuffix("FLOP") for a in ("steps", "examples", "flops", "seconds")]
            table.add_row(
                Text(f"  {label[row.algorithm]}"),
                f"{row.hits}/{row.trials}",
                *costs,
                *_result(cells.get((workload, row.algorithm)), score, row),
            )
    if score.overall:
        table.add_section()
        table.add_row(Text("overall", style="bold"))
        for s in score.overall:
            table.add_row(Text(f"  {label[s.algorithm]}"), f"{s.hits}/{s.trials}", "", "", "", "", *_result(s, score, None))
    return table


def print_race(
    score: Score,
    summary: Sequence[Row],
    console: Console | None = None,
    notes: Sequence[str] = (),
    tuning: Tuning | None = None,
    costs: Beside | None = None,
) -> None:
    """The answer in one sentence, the table, what tuning cost, how to read it, and a line for every note, on `console` (default: stdout)."""
    console = console or Terminal()
    console.print(Text(answer(score), style="bold"))
    console.print()
    console.print(race_table(score, summary))
    if costs and any(costs.values()):
        console.print()
        console.print(small(*rows_beside(costs)))
    if tuning is not None:
        console.print()
        console.print(small(*rows_of(tuning), right=(1, 2)))
    for line in (legend(score), *([SAID] if costs and any(costs.values()) else []), *([said(tuning)] if tuning else []), *notes):
        console.print(Text(line, style="dim"))


def small(head: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Table:
    """A plain table; the columns `right` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, overflow="fold", justify="right" if i in right else "left")
    for row in body:
        table.add_row(*map(Text, row))
    return table


def legend(score: Score) -> str:
    """What the numbers of the table mean, in two sentences."""
    scope = score.overall[0].scope if score.overall else "these workloads"
    return (
        f"Medians over seeds of the cost to the target. Speed-up: {score.reference} / algorithm in {unit(score.axis)}, geometric mean over paired seeds "
        f"and workloads, {score.level:.0%} interval for {scope}. ≥ and ≤: some run missed its target within the budget."
    )


def _result(cell: Speedup | None, score: Score, row: Row | None) -> tuple[Text, Text]:
    if cell is None:
        return Text("1 (reference)" if row and row.algorithm == score.reference else MISSING, style="dim"), Text("")
    return Text(times(cell)), Text(SHORT.get(cell.verdict, cell.verdict), style=STYLES.get(cell.verdict, ""))

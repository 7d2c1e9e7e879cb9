"""`velodrome report board`: the board that comes with the package, or another one, drawn again from its records without training anything."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.text import Text

from velodrome.commands.options import command, nearest, parse, print_json, say, write_page
from velodrome.commands.race import check_file
from velodrome.commands.score import grid
from velodrome.records.packed import unpack
from velodrome.reports import board_page, charts, collect
from velodrome.reports.board import Board, board, board_rows, cell_rows, found, restricted_rows, shipped, target_rows
from velodrome.reports.board_charts import overall
from velodrome.reports.board_words import leader, reading
from velodrome.reports.console import Terminal
from velodrome.reports.standing_words import Rows
from velodrome.reports.tuned import rows_of, said

HELP = """Draw the board again: a table, and one HTML file.

  velodrome report board
  velodrome report board --by seconds --on digits stdlib-gpt
  velodrome report board FOLDER --rules external --svg board.svg

Without FOLDER it is the board that comes with the package. Nothing is trained."""

WIDE = 110  # columns of a terminal, for all columns of the table
MORE = {"workloads": cell_rows, "targets": target_rows, "restricted": restricted_rows}


@dataclass
class Options:
    """Options of the board's report."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[BOARD]")] = ()
    """Folder or file that `python -m benchmarks.board pack` wrote; the package's own by default."""
    rules: str = ""
    """self (one run per seed) or external (the best of several trials); the first there is by default."""
    by: Literal["flops", "seconds", "unit_seconds", "steps", "examples"] = "flops"
    """The cost that the first speed-up is about; unit_seconds are those at the machine's calibrated speed."""
    reference: str = collect.REFERENCE
    """The algorithm that speed-ups are over."""
    on: tuple[str, ...] = ()
    """Only these workloads; all by default."""
    more: tuple[str, ...] = field(default_factory=tuple)
    """Tables to print too: workloads, targets, restricted."""
    report: Path = field(default_factory=lambda: Path("board.html"))
    """The HTML file to write."""
    svg: Path | None = None
    """Also write the chart as this SVG file."""
    json: bool = False
    """Print the result as one JSON object instead of a table."""


def main(arguments: list[str]) -> int:
    """0 when there is a board; everything else is a ValueError of one sentence."""
    o = parse(Options, "report board", arguments, HELP)
    check(o)
    rules, path = choose(o)
    runs = unpack(path)
    known = sorted({str(r.recipe["workload"]) for r in runs})
    for name in o.on:
        if name not in known:
            raise nearest("workload", name, known)
    chosen = [r for r in runs if not o.on or r.recipe["workload"] in o.on]
    b = board(chosen, o.reference, o.by, rules, command("report", ["board", *arguments]))
    if o.json:
        print_json({"answer": leader(b), **b.to_json(), "report": str(o.report)})
    else:
        show(b, o.more)
    if o.svg is not None:
        say(f"Chart: {charts.save(overall(b), o.svg)}")
    write_page(board_page.write, o.report, b)
    return 0


def check(o: Options) -> None:
    """Refuse what cannot be done before anything is read."""
    if len(o.what) > 1:
        raise ValueError(f"name one folder or file of a board, got {' '.join(o.what)}: write velodrome report board FOLDER.")
    for name in o.more:
        if name not in MORE:
            raise nearest("table", name, list(MORE))
    if o.svg is not None:
        if o.svg.suffix != ".svg":
            raise ValueError(f"--svg needs a name that ends in .svg, got {o.svg}.")
        check_file("svg", o.svg)
    check_file("report", o.report)


def choose(o: Options) -> tuple[str, Path]:
    """Rules and file of the board that was asked for."""
    there = found(Path(o.what[0])) if o.what else shipped()
    if not there:
        raise ValueError(
            "this installation has no board: run `python -m benchmarks.board run` in a checkout, and name the folder it packs."
        )
    if o.rules and o.rules not in there:
        raise nearest("rules", o.rules, list(there))
    rules = o.rules or next(iter(there))
    return rules, there[rules]


def show(b: Board, more: tuple[str, ...]) -> None:
    """The answer, the table, those that were asked for, and how to read them."""
    console = Terminal()
    console.print(Text(leader(b), style="bold"))
    console.print()
    first = board_rows(b) if console.width >= WIDE else without(board_rows(b), "verdict", "place")
    tuning = b.race.tuning
    for title, rows in [("", first), *([("", rows_of(tuning))] if tuning else []), *((name, MORE[name](b)) for name in more)]:
        grid(console, title, rows)
    for line in (*reading(b), *([said(tuning)] if tuning else []), *b.race.notes):
        console.print(Text(line, style="dim"))


def without(rows: Rows, *names: str) -> Rows:
    """A table without these columns."""
    head, body = rows
    kept = [i for i, name in enumerate(head) if name not in names]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in body]

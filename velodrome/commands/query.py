"""`velodrome query`: one SELECT over all runs of a folder, through DuckDB."""

import csv
import sys
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from velodrome.commands.options import parse, print_json
from velodrome.records import query as records
from velodrome.reports.console import Terminal
from velodrome.reports.words import MISSING

EXAMPLES = """  velodrome query "SELECT workload, algorithm, count(*) AS runs, min(best) AS best FROM runs GROUP BY ALL ORDER BY ALL"
  velodrome query "SELECT algorithm, seed, min(t) AS step FROM rows JOIN runs USING (folder) WHERE rows.valid < 0.2 GROUP BY ALL"
  velodrome query "SELECT * FROM rows WHERE folder LIKE 'digits-muon%' ORDER BY seq" --csv > muon.csv"""

HELP = f"""SQL over all runs of a folder (DuckDB). Tables: runs, one row per run; rows, one
row per evaluation; joined by folder.

{EXAMPLES}

Without SQL it shows the columns of both tables."""


@dataclass
class Options:
    """Options of the query."""

    sql: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SQL")] = ""
    """One SELECT; without it the columns are shown."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = field(default_factory=lambda: Path("runs"))
    """Folder of the run records."""
    json: bool = False
    """Print a JSON array of objects; NaN and infinities are null."""
    csv: bool = False
    """Print comma-separated values with a header; a missing number is empty."""


def main(arguments: list[str]) -> int:
    """0 when the query was answered; a mistake in the SQL is a ValueError of one line."""
    o = parse(Options, "query", arguments, HELP)
    if o.json and o.csv:
        raise ValueError("give --json or --csv, not both.")
    if o.sql and not any(c.isspace() for c in o.sql) and Path(o.sql).is_dir():
        o = Options("", Path(o.sql), o.json, o.csv)
    if not o.sql.strip():
        return columns(o)
    names, rows = records.query(o.folder, o.sql)
    if o.json:
        doubled = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if doubled is not None:
            raise ValueError(f"two columns are named {doubled!r}: name one of them with AS.")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif o.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([names, *rows])
    else:
        show(names, rows)
    return 0


def columns(o: Options) -> int:
    """The columns of both tables as DuckDB describes them, and what one can ask."""
    found = {table: [(str(row[0]), str(row[1])) for row in records.query(o.folder, f"DESCRIBE {table}")[1]] for table in ("runs", "rows")}
    if o.json:
        print_json({table: dict(pairs) for table, pairs in found.items()})
        return 0
    if o.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(
            [("table", "column", "type"), *((table, *pair) for table, pairs in found.items() for pair in pairs)]
        )
        return 0
    console = Terminal()
    for table, pairs in found.items():
        listed = ", ".join(f"{name} {kind.lower()}" for name, kind in pairs)
        console.print(Text.assemble((table, "bold"), f": {listed}\n"))
    print(f"Examples:\n{EXAMPLES}")
    return 0


def show(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """A table; wide ones are folded on a terminal and left as they are in a pipe."""
    numeric = [all(isinstance(row[i], int | float | Decimal | None) for row in rows) for i in range(len(names))]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in zip(names, numeric, strict=True):
        table.add_column(Text(name), justify="right" if right and rows else "left", overflow="fold")
    cells = [[text(value) for value in row] for row in rows]
    for row in cells:
        table.add_row(*map(Text, row))
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    console = Terminal()
    if not console.is_terminal:
        console.width = max(80, sum(widths) + 2 * len(widths))
    console.print(table)
    console.print(Text(f"{len(rows):,} row{'' if len(rows) == 1 else 's'}", style="dim"))


def text(value: Any) -> str:
    """A value for a person: six significant digits, and "—" for a missing number."""
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)

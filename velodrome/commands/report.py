"""`velodrome report`: the race that the finished runs of a folder make, again, without training anything."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from velodrome.commands import _board
from velodrome.commands.options import command, nearest, parse, print_json, say, write_page
from velodrome.commands.race import check_file, to_json
from velodrome.records.read import Record, scan
from velodrome.reports import charts, collect, html
from velodrome.reports.race import Race
from velodrome.reports.table import print_race

HELP = """Report the finished runs in a folder: a table, and one HTML file.

  velodrome report
  velodrome report runs --by steps --on digits --report digits.html
  velodrome report runs --reference muon --json
  velodrome report runs --svg picture.svg --png picture.png
  velodrome report board

Nothing is trained. --svg and --png write one picture per chart: picture-digits.svg, …, picture-speedup.svg.
`board` is the one that comes with the package: velodrome report board --help."""


@dataclass
class Options:
    """Options of the report."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = field(default_factory=lambda: Path("runs"))
    """Folder of the run records."""
    report: Path = field(default_factory=lambda: Path("race.html"))
    """The HTML file to write."""
    by: Literal["seconds", "unit_seconds", "steps", "examples", "flops"] = "seconds"
    """The cost that the speed-up is about."""
    reference: str = collect.REFERENCE
    """The algorithm that speed-ups are over."""
    on: tuple[str, ...] = ()
    """Only these workloads; all by default."""
    svg: Path | None = None
    """Also write the charts as SVG files with this name."""
    png: Path | None = None
    """Also write the charts as PNG files with this name."""
    json: bool = False
    """Print the result as one JSON object instead of a table."""


def main(arguments: list[str]) -> int:
    """0 when there is something to report; a folder without finished runs is a ValueError."""
    if arguments[:1] == ["board"]:
        return _board.main(arguments[1:])
    o = parse(Options, "report", arguments, HELP)
    for name, path in (("svg", o.svg), ("png", o.png)):
        if path is not None and path.suffix != f".{name}":
            raise ValueError(f"--{name} needs a name that ends in .{name}, got {path}.")
    check_file("report", o.report)
    race = collect.race(chosen(o), reference=o.reference, axis=o.by, command=command("report", arguments))
    if o.json:
        print_json(to_json(race, o.report))
    else:
        print_race(race.score, race.summary, notes=race.notes, tuning=race.tuning, costs=race.beside)
    for path in (o.svg, o.png):
        if path is not None:
            for file in export(race, path, o.by):
                say(f"Chart: {file}")
    write_page(html.write, o.report, race)
    return 0


def chosen(o: Options) -> list[Record]:
    """The runs of the folder, of the workloads that were asked for; unfinished runs are counted on stderr and left out."""
    records = scan(o.folder)
    known = sorted({str(r.recipe.get("workload")) for r in records})
    for name in o.on:
        if known and name not in known:
            raise nearest("workload", name, known)
    records = [r for r in records if not o.on or r.recipe.get("workload") in o.on]
    unfinished = sum(not r.finished for r in records)
    if unfinished:
        say(f"{unfinished} unfinished run{'s are' if unfinished > 1 else ' is'} left out.")
    return records


def export(race: Race, path: Path, axis: str) -> list[Path]:
    """The validation curves of each workload and the speed-ups, each beside `path` with its subject in the name."""
    pictures = {re.sub(r"[^\w.-]", "-", task.name): charts.curves(race, task, axis) for task in race.workloads}
    if any(s.speedup is not None for s in race.score.cells):
        pictures["speedup"] = charts.intervals(race)
    return [charts.save(picture, path.with_stem(f"{path.stem}-{name}")) for name, picture in pictures.items()]

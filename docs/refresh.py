"""What the pages show that the code or a race knows: `python docs/refresh.py workloads`, `… optimizers`, `… board` and `… race RUNS`.

The first writes the table of docs/workloads.md from the workloads; the second docs/optimizers.md (`optimizer_page.py`); the third docs/board.md, its
picture and the table in README.md from the boards in the package (`board_tables.py`); the fourth the race of README.md and docs/race.svg from the
records of `make race`, together with the options, targets and budgets they were run with, so that a test can tell when these have changed.
"""

import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import board_tables
import torch
from optimizer_page import costs, page
from rich.console import Console

from velodrome.bench.catalog import workload
from velodrome.bench.workload import Workload
from velodrome.discover import workload_names
from velodrome.recipes.parse import parse
from velodrome.records.read import Record, scan
from velodrome.reports import board, charts, collect
from velodrome.reports.board_charts import overall
from velodrome.reports.race import Race
from velodrome.reports.table import print_race

ROOT = Path(__file__).parent.parent
RACED, TASKS = ("adamw", "muon", "nadamw"), ("digits", "stdlib-gpt")
DRAWN = "stdlib-gpt"


def workloads_table() -> str:
    """The workloads as a Markdown table, the quick ones first, and another of their variants."""
    known = sorted(map(workload, workload_names()), key=lambda w: w.seconds)
    head = ("workload", "what", "metric", "targets", "reached", "spread", "steps x batch", "cost of the reference")
    rows = [[f"`{w.name}`", w.summary, w.metric_name, *measured(w), f"{w.steps:,} x {w.batch_size}", w.cost] for w in known]
    more = ("variant", "what", "parameters", "targets", "reached", "spread", "steps x batch")
    variants = [w.variant(name) for w in known for name in w.variants]
    told = [
        [f"`{v.name}`", v.summary.partition(" ")[2], f"{parameters(v):,}", *measured(v), f"{v.steps:,} x {v.batch_size}"] for v in variants
    ]
    return markdown(head, rows) + "\n" + markdown(more, told)


def measured(w: Workload) -> tuple[str, str, str]:
    """Its targets, how many runs of the reference reached the hard one, and how far their steps to it lie apart."""
    targets = ", ".join(f"{t:g}" for t in w.targets) or "set by the race"
    reached = f"{w.reached[0]} of {w.reached[1]}" if w.reached else ""
    return targets, reached, "" if w.spread is None else f"{100 * w.spread:.0f} %"


def parameters(w: Workload) -> int:
    """How many the model has; it is not filled."""
    with torch.device("meta"):
        return sum(p.numel() for p in w.model().parameters())


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def said(recipes: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, tuple[float, int, int]]) -> str:
    """The options of the recipes, and target, steps and batch size of the workloads, in a sentence."""
    algorithms = [f"`{name}({', '.join(f'{k}={v}' for k, v in recipes[name].items())})`" for name in sorted(recipes)]
    goals = [f"{name} to {tasks[name][0]:g} within {tasks[name][1]} steps of {tasks[name][2]}" for name in sorted(tasks)]
    return f"Raced: {', '.join(algorithms)}; {'; '.join(goals)}.\n"


def raced(records: Iterable[Record]) -> str:
    """What the runs were trained with."""
    recipes = {r.recipe["algorithm"]: r.recipe["settings"] for r in records}
    return said(recipes, {r.recipe["workload"]: (r.recipe["targets"][-1], r.recipe["steps"], r.recipe["batch_size"]) for r in records})


def today() -> str:
    """What `make race` would train with now, as its records would say it."""
    recipes = {name: json.loads(json.dumps(dict(parse(name).settings))) for name in RACED}
    return said(recipes, {w.name: (w.targets[-1], w.steps, w.batch_size) for w in map(workload, TASKS)})


def race_table(race: Race) -> str:
    """What the race printed, as a Markdown block."""
    out = io.StringIO()
    print_race(race.score, race.summary, Console(file=out, width=100, color_system=None))
    return "```text\n" + "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n```\n"


def between(page: str, command: str, text: str) -> str:
    """`page` with `text` between the comment that names the command and the next end."""
    pattern = re.compile(rf"(<!-- {re.escape(command)} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert len(pattern.findall(page)) == 1, f"the page must hold one <!-- {command} -->"
    return pattern.sub(lambda found: found[1] + text + found[2], page)


def main(arguments: list[str]) -> int:
    """Refresh what was asked for; 2 for anything else."""
    match arguments:
        case ["workloads"]:
            file = ROOT / "docs" / "workloads.md"
            file.write_text(
                between(file.read_text(encoding="utf-8"), "python docs/refresh.py workloads", workloads_table()), encoding="utf-8"
            )
        case ["optimizers"]:
            (ROOT / "docs" / "optimizers.md").write_text(page(costs()), encoding="utf-8")
        case ["board"]:
            for name, text in (("docs/board.md", board_tables.page_part()), ("README.md", board_tables.short())):
                file = ROOT / name
                file.write_text(between(file.read_text(encoding="utf-8"), "python docs/refresh.py board", text), encoding="utf-8")
            if "self" in board.shipped():
                charts.save(overall(board.read(board.shipped()["self"])), ROOT / "docs" / "board.svg")
        case ["race", runs]:
            records = scan(runs)
            race = collect.race(records, axis="steps")
            file = ROOT / "README.md"
            file.write_text(
                between(file.read_text(encoding="utf-8"), "python docs/refresh.py race runs", race_table(race) + "\n" + raced(records)),
                encoding="utf-8",
            )
            charts.save(charts.curves(race, next(t for t in race.workloads if t.name == DRAWN)), ROOT / "docs" / "race.svg")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`velodrome score`: speed-ups with intervals from run folders, anybody's table, or the logs of AlgoPerf's competition."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.table import Table
from rich.text import Text

from velodrome.bench.algoperf import read_hits, read_suite
from velodrome.bench.trial_table import NAMES, Columns, read
from velodrome.commands.options import command, nearest, parse, print_json, say, write_page
from velodrome.commands.race import check_file
from velodrome.records.read import scan
from velodrome.reports import algoperf, collect, html, standing_page
from velodrome.reports.console import Terminal
from velodrome.reports.measured import measured
from velodrome.reports.standing import Standing, standing
from velodrome.reports.standing_words import Rows, best_rows, duel_rows, level_rows, reached_rows, robust_rows, speedup_rows
from velodrome.reports.words import answer
from velodrome.scaling.columns import filtered
from velodrome.scaling.tables import load

HELP = """Speed-ups with intervals, from runs or from anybody's table of times to target.

  velodrome score runs --by flops
  velodrome score results.csv --reference adamw --budget 5000
  velodrome score curves.csv.gz --target 3.28 --where track=3 --reference muon
  velodrome score algoperf hits_v05.csv.gz

A table has a row per run (algorithm, workload, seed, cost; empty: missed), or a
row per evaluation (and a metric, with --target). Columns are guessed and told."""

MOST_ROWS = 15  # of a long table on the terminal; --json has all


@dataclass
class Options:
    """Options of the score."""

    what: tyro.conf.Positional[tuple[str, ...]]
    """Folder of runs, a table, or `algoperf` and a table of hits."""
    by: str = ""
    """The cost that speed-ups are about; the first there is by default."""
    reference: str = ""
    """The algorithm that speed-ups are over; adamw by default."""
    target: float | None = None
    """Value of the metric that a curve has to reach."""
    budget: float | None = None
    """The first cost at which a run was a miss."""
    where: tuple[str, ...] = ()
    """Only rows with COLUMN=VALUE."""
    on: tuple[str, ...] = ()
    """Only these workloads."""
    algorithms: tuple[str, ...] = ()
    """Only these algorithms, and the reference."""
    rising: bool = False
    """Higher values of the metric are better."""
    unpaired: bool = False
    """Equal seeds do not mean equal starts."""
    algorithm_column: str = ""
    """Column of the algorithm."""
    workload_column: str = ""
    """Column of the workload."""
    seed_column: str = ""
    """Column of the seed or run."""
    trial_column: str = ""
    """Column of the tuning trial."""
    metric_column: str = ""
    """Column of the metric."""
    reached_column: str = ""
    """Column that says whether the target was reached."""
    target_column: str = ""
    """Column of the target."""
    budget_column: str = ""
    """Column of the budget."""
    cost_column: tuple[str, ...] = ()
    """Columns of costs, as COLUMN or AXIS=COLUMN (steps, examples, flops, seconds)."""
    targets: Path | None = None
    """AlgoPerf's file of targets; the one beside the table by default."""
    report: Path | None = None
    """An HTML file to write."""
    json: bool = False
    """Print the result as one JSON object."""
    more: tuple[str, ...] = field(default_factory=tuple)
    """Tables to print too: targets, hits, pairs, variants, tuning."""


def main(arguments: list[str]) -> int:
    """0 when something was scored; everything else is a ValueError of one sentence."""
    o = parse(Options, "score", arguments, HELP)
    for name in o.more:
        if name not in MORE:
            raise nearest("table", name, list(MORE))
    if o.report:
        check_file("report", o.report)
    if o.what[:1] == ("algoperf",):
        return competitions(o)
    if len(o.what) != 1:
        raise ValueError(f"name one folder of runs or one table, got {' '.join(o.what) or 'nothing'}: write velodrome score runs.")
    place = Path(o.what[0])
    if not place.exists():
        raise ValueError(
            f"{place} does not exist: give a folder of runs, a table (.csv, .parquet, .json, .jsonl), or algoperf and a table."
        )
    s = of_runs(place, o) if place.is_dir() else of_table(place, o)
    told = answer(s.score) if len(s.score.overall) <= 6 else leader(s)
    if o.json:
        print_json({"answer": told, **s.to_json(), "report": None if o.report is None else str(o.report)})
    else:
        show(s, told, o.more)
    if o.report:
        write_page(lambda path, x: html.page(path, "Velodrome score", page(x, place, told, arguments), standing_page.specs(x)), o.report, s)
    return 0


def page(s: Standing, place: Path, told: str, arguments: list[str]) -> str:
    """The page's text."""
    return standing_page.body(s, standing_page.place(place), told, speedup_rows(s), command("score", arguments))


def of_runs(root: Path, o: Options) -> Standing:
    """The standing of the finished runs of a folder."""
    found, notes = measured(root, scan(root))
    reference = o.reference or collect.REFERENCE
    runs = [m.watched() for m in found]
    runs = [r for r in runs if keep(r.workload, r.algorithm, o, reference)]
    if not runs:
        raise ValueError(
            f"no run is of {' '.join(o.on or o.algorithms)}: there are {', '.join(sorted({m.record.recipe['workload'] for m in found}))}."
        )
    return collect.place(runs, reference, o.by or "seconds", notes)


def of_table(path: Path, o: Options) -> Standing:
    """The standing of a table's rows."""
    table = filtered(path, load(path), o.where)
    costs = [text.partition("=")[::2] if "=" in text else ("cost", text) for text in o.cost_column]
    chosen = Columns(**{what: getattr(o, f"{what}_column") for what in NAMES}, cost=dict(costs))
    reading = read(table, chosen, o.target, o.budget, o.rising)
    algorithms = list(dict.fromkeys(t.algorithm for t in reading.trials))
    reference = o.reference or next((a for a in (collect.REFERENCE, "baseline", "AdamW") if a in algorithms), "")
    if reference not in algorithms:
        known = ", ".join(algorithms[:12]) + (f" and {len(algorithms) - 12} more" if len(algorithms) > 12 else "")
        raise ValueError(
            f"speed-ups are over a reference, {f'got {o.reference!r}' if o.reference else 'and none is named'}: give --reference one of {known}."
        )
    axis = o.by or next(iter(reading.columns.cost))
    if axis not in reading.columns.cost:
        raise nearest("cost", axis, list(reading.columns.cost))
    trials = [t for t in reading.trials if keep(t.workload, t.algorithm, o, reference)]
    paired = reading.paired and not o.unpaired
    tuned = {key: pool for key, pool in reading.pools.items() if reading.columns.trial and keep(*key, o, reference)}
    return standing({"hard": trials}, reference, axis, paired=paired, pools=tuned, budget=reading.budget, notes=reading.notes)


def keep(workload: str, algorithm: str, o: Options, reference: str) -> bool:
    """Whether it was asked for."""
    return (not o.on or workload in o.on) and (not o.algorithms or algorithm in (*o.algorithms, reference))


def leader(s: Standing) -> str:
    """The fastest of many, in one sentence."""
    sure = sorted((x for x in s.score.overall if x.verdict == "faster"), key=lambda x: -(x.speedup or 0))
    if not sure:
        return f"None of {len(s.score.overall)} algorithms is separable from {s.score.reference} as the faster one."
    first = speedup_rows(s)[1]
    text = next(row[1] for row in first if row[0] == sure[0].algorithm)
    return f"{len(sure)} of {len(s.score.overall)} algorithms are faster than {s.score.reference}; the fastest of them is {sure[0].algorithm}, {text}."


MORE = {"targets": level_rows, "hits": reached_rows, "pairs": duel_rows, "variants": robust_rows, "tuning": best_rows}


def show(s: Standing, told: str, more: Sequence[str]) -> None:
    """The answer, the speed-ups, and the tables that were asked for (or are short and say something)."""
    console = Terminal()
    console.print(Text(told, style="bold"))
    console.print()
    wanted = list(dict.fromkeys([*(["targets"] if len(s.levels) > 1 else []), *(["variants"] if s.robust else []), *more]))
    for title, rows in [("", speedup_rows(s)), *((name, MORE[name](s)) for name in wanted)]:
        grid(console, title, rows, None if title in more else MOST_ROWS)
    for line in s.notes:
        console.print(Text(line, style="dim"))
    restricted = "ratio of mean costs cut at the budget"
    how = "paired seeds" if s.paired else "unpaired runs"
    console.print(
        Text(
            f"Speed-up over {s.score.reference} in {s.score.axis}: {how}, {s.score.level:.0%} intervals; restricted: {restricted}.",
            style="dim",
        )
    )


def grid(console: Terminal, title: str, rows: Rows, most: int | None = None) -> None:
    """A table, cut after `most` rows."""
    head, body = rows
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title=title or None, title_justify="left", title_style="bold"
    )
    for name in head:
        table.add_column(name, overflow="fold")
    for row in body[:most]:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if most is not None and len(body) > most:
        console.print(Text(f"… and {len(body) - most} more; --json has all.", style="dim"))
    console.print()


def competitions(o: Options) -> int:
    """AlgoPerf's own score of each ruleset in the table."""
    if len(o.what) != 2:
        raise ValueError("write velodrome score algoperf FILE: a table of first hits, such as hits_v05.csv.gz.")
    path = Path(o.what[1])
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a table of AlgoPerf hits.")
    targets = o.targets or algoperf.targets_beside(path)
    found = [algoperf.competition(a, read_suite(targets, ruleset), ruleset) for ruleset, a in read_hits(path).items()]
    if o.json:
        print_json({"targets": str(targets), "rulesets": {c.ruleset: c.to_json() | {"remarks": algoperf.remarks(c)} for c in found}})
        return 0
    console = Terminal()
    for c in found:
        console.print(Text(algoperf.summary(c), style="bold"))
        console.print()
        grid(console, "", algoperf.score_rows(c))
        for line in algoperf.remarks(c):
            console.print(Text(line))
        console.print()
    console.print(
        Text(
            "Score, first and P(> next): AlgoPerf's definition, studies redrawn 2,000 times. Time saved: its geometric mean ratio.",
            style="dim",
        )
    )
    console.print(
        Text(
            "Ours: geometric mean over base workloads, studies as unpaired runs, costs cut at the budget; whoever else entered.",
            style="dim",
        )
    )
    if o.report:
        say("An HTML file is written for runs and tables, not for algoperf.")
    return 0

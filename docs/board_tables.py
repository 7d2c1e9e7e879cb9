"""What docs/board.md and README.md say of the boards that come with the package: tables, what was run, and what has changed since."""

import json

from velodrome.bench.catalog import workload
from velodrome.discover import recipe_names, workload_names
from velodrome.recipes.parse import parse
from velodrome.records.packed import Packed, unpack
from velodrome.reports.board import RULES, Board, board, board_rows, cell_rows, markdown, restricted_rows, shipped, target_rows
from velodrome.reports.board_words import counted, leader, reading
from velodrome.reports.tuned import rows_of, said
from velodrome.reports.words import joined

TITLES = {"self": "Self-tuning", "external": "External tuning"}


def page_part() -> str:
    """Every shipped board as a section."""
    return "\n".join(section(rules, unpack(path)) for rules, path in shipped().items()) or "No board has been raced yet.\n"


def section(rules: str, runs: list[Packed]) -> str:
    """One board: the answer, the tables, what was run and with what."""
    b = board(runs, rules=rules)
    notes = [f"* {line}" for line in b.race.notes]
    parts = [
        f"## {TITLES.get(rules, rules)}\n",
        f"{RULES[rules][0].upper()}{RULES[rules][1:]}. {leader(b)}\n",
        *(["![Speed-ups with intervals](board.svg)\n"] if rules == "self" else []),
        markdown(board_rows(b)),
        "\n\n".join(reading(b)) + "\n",
        "### Workload by workload\n",
        "Speed-up in FLOPs; ≤ and ≥ where a run missed its target, which makes it a bound; — where all missed, or a workload has no cost in FLOPs.\n",
        markdown(cell_rows(b)),
        "### Three targets, and misses as the horizon\n",
        markdown(joined_rows(b)),
        *(["### What tuning cost\n", markdown(rows_of(tuning)), f"{said(tuning)}\n"] if (tuning := b.race.tuning) else []),
        "### What was run\n",
        what(b, runs) + "\n",
        *(["\n".join(notes) + "\n"] if notes else []),
    ]
    return "\n".join(parts)


def joined_rows(b: Board) -> tuple[tuple[str, ...], list[list[str]]]:
    """The targets' columns, then the restricted speed-up."""
    (head, levels), (_, restricted) = target_rows(b), restricted_rows(b)
    last = {row[0]: row[-1] for row in restricted}
    return (*head, "restricted means"), [[*row, last[row[0]]] for row in levels]


def what(b: Board, runs: list[Packed]) -> str:
    """Size, machine, options and targets in sentences."""
    seeds = sorted({r.recipe["seed"] for r in runs})
    environment = "; ".join(f"{name} {value}" for name, value in b.race.environment.items())
    lines = [
        f"{len(runs):,} runs: {len(b.race.algorithms)} algorithms, {counted(len(b.race.workloads), 'workload')}, seeds {seeds[0]} to {seeds[-1]}, "
        f"on {environment or 'an unknown machine'}. Training alone took {sum(r.result['seconds'] for r in runs if r.result) / 3600:.1f} hours.",
        f"Targets: {joined([f'{w.name} {w.target:g} within {w.budget:,} steps' for w in b.race.workloads])}.",
    ]
    if b.rules == "self":
        lines.append(f"Options: {joined([f'`{a}({options})`' for a, options in sorted(settings(runs).items())])}.")
    if since := changed(runs, b.rules):
        lines.append(f"Changed since: {joined(since)}.")
    return "\n\n".join(lines)


def settings(runs: list[Packed]) -> dict[str, str]:
    """The options of each algorithm, as they were recorded."""
    return {r.recipe["algorithm"]: ", ".join(f"{k}={v}" for k, v in r.recipe["settings"].items()) for r in runs}


def changed(runs: list[Packed], rules: str) -> list[str]:
    """What a board raced today would be raced with otherwise: options of the package's algorithms, targets and budgets of its workloads."""
    found, own = [], {r.recipe["algorithm"]: r.recipe["settings"] for r in runs}
    for name in sorted(own.keys() & set(recipe_names())) if rules == "self" else ():
        if json.loads(json.dumps(dict(parse(name).settings))) != own[name]:
            found.append(f"options of {name}")
    tasks = {r.recipe["workload"]: (r.recipe["targets"], r.recipe["steps"], r.recipe["batch_size"]) for r in runs}
    for name in sorted(tasks.keys() & set(workload_names())):
        w = workload(name)
        if (list(w.targets), w.steps, w.batch_size) != tasks[name]:
            found.append(f"targets or budget of {name}")
    return found


def short() -> str:
    """The table of README.md: a row per algorithm, its speed-ups under each set of rules."""
    parts = []
    for rules, path in shipped().items():
        b = board(unpack(path), rules=rules)
        head, body = board_rows(b)
        kept = [i for i, name in enumerate(head) if name not in ("verdict", "place")]
        rows = tuple(head[i] for i in kept), [[row[i] for i in kept] for row in body]
        parts.append(f"{TITLES.get(rules, rules)}, {counted(len(b.race.workloads), 'workload')}:\n\n{markdown(rows)}")
    return "\n".join(parts) or "No board has been raced yet.\n"

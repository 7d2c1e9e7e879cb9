"""One long table of all rows of all runs, a line per evaluation; `velodrome score TABLE` reads it, and so does everything else."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from velodrome.records.disk import replace
from velodrome.records.encoding import restore
from velodrome.records.read import Record, stored
from velodrome.reports.exports import _facts as facts
from velodrome.reports.exports._facts import Exported

HINT = "velodrome score {place}"
ABOUT = ("run", "workload", "algorithm", "seed", "state", "target", "budget")


def check(place: Path) -> None:
    """ValueError for a name that is not a table's."""
    if not place.name.lower().endswith((".csv", ".csv.gz")):
        raise ValueError(f"a table's name ends in .csv or .csv.gz, got {place}: write {place / 'runs.csv'}.")
    if place.is_dir():
        raise ValueError(f"{place} is a folder: name a file.")


def export(records: Sequence[Record], place: Path, overwrite: bool) -> Iterator[Exported]:
    """All runs into the file `place`; another file of this name is a ValueError unless `overwrite`.

    Columns: run, workload, algorithm, seed, state, target (the last one of the workload), budget (in steps), then those of the rows; one that has a name
    of these is row_NAME. Numbers have all their digits, a missing one is empty, NaN and infinities are nan, inf and -inf, lists are JSON.
    """
    counts, columns = [], dict[str, None]()
    for record in records:
        log = stored(record)
        counts.append((len(log.rows), len(log.damaged)))
        for layout in dict.fromkeys(map(tuple, log.rows)):
            columns |= dict.fromkeys(layout)
    columns.pop("seq", None)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*ABOUT, *(f"row_{name}" if name in ABOUT else name for name in columns)])
    for record in records:
        head = _about(record)
        writer.writerows([*head, *_cells(row, columns)] for row in stored(record).rows)
    data = table.getvalue().encode()
    data = gzip.compress(data, mtime=0) if place.suffix == ".gz" else data
    was = place.exists()
    same = was and place.read_bytes() == data
    if was and not same and not overwrite:
        raise ValueError(f"{place} is there already and differs: add --overwrite, or name another file.")
    if not same:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace(place, data)
    for record, (rows, damaged) in zip(records, counts, strict=True):
        yield Exported(record.path.name, place, rows, damaged, "there already" if same else "replaced" if was else "written")


def _about(record: Record) -> list[Any]:
    recipe = record.recipe
    goals = recipe.get("targets")
    goal = goals[-1] if isinstance(goals, list) and goals else None
    told = [
        record.path.name,
        recipe.get("workload"),
        recipe.get("algorithm"),
        recipe.get("seed"),
        facts.state(record),
        goal,
        recipe.get("steps"),
    ]
    return ["" if x is None else x for x in told]


def _cells(row: Mapping[str, Any], columns: Iterable[str]) -> list[Any]:
    values = [restore(row.get(name)) for name in columns]
    return ["" if x is None else json.dumps(x) if isinstance(x, list | bool) else x for x in values]

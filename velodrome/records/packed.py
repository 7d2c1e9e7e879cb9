"""Many finished runs in one small file: JSON lines under gzip, a run per line, its rows as columns.

A line holds {"name", "recipe", "result", "environment", "rows": {column: values}}: the identity, what the run ended with, its sessions, and what it cost
and reached at every evaluation. Measured numbers are kept to six significant digits (clocks to five), counters as they are, NaN and infinities too;
training losses, checkpoints and the rest stay in the folders. The same runs give the same bytes: lines are sorted, the header has no time and no name.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

from velodrome.records.disk import replace
from velodrome.records.encoding import compact, plain, restore
from velodrome.records.log import Log
from velodrome.records.read import Record

COLUMNS = ("t", "examples", "flops", "seconds", "data_seconds", "gradient_seconds", "optimizer_seconds", "valid")
DIGITS, CLOCK_DIGITS = 6, 5
PLACE = re.compile(r"(?:^|[\s'\"(=])((?:/|[A-Z]:\\)\w[^\s'\"]*)")  # an absolute path, which a file that others read must not hold
VOLATILE = ("load",)  # of a session: what says nothing about the run's numbers


@dataclass(frozen=True)
class Packed(Record):
    """A run out of such a file; it reads as one from a folder does, and `path` is the file with the run's name behind it."""

    columns: dict[str, list[Any]]
    sessions: list[dict[str, Any]]

    @cached_property
    def environment(self) -> list[dict[str, Any]]:
        """The sessions that trained this run."""
        return self.sessions

    @cached_property
    def log(self) -> Log:
        """The rows that were kept."""
        names = ("seq", *self.columns)
        count = len(next(iter(self.columns.values()), []))
        return Log([dict(zip(names, values, strict=True)) for values in zip(range(count), *self.columns.values(), strict=True)])


def pack(path: Path, records: Iterable[Record]) -> int:
    """Write the runs to `path` and return its size in bytes; ValueError for a run that is not finished, or that names a place on this machine."""
    lines = sorted(map(line, records))
    sink = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=sink, mtime=0) as file:
        file.writelines(text for _, text in lines)
    replace(path, sink.getvalue())
    return len(sink.getvalue())


def line(record: Record) -> tuple[tuple[str, str, int, str], bytes]:
    """Where a run stands in the file, and its line."""
    r, name = record.recipe, record.path.name
    if not record.finished or record.problems:
        raise ValueError(f"{record.path} cannot be packed: {' '.join(record.problems) or 'it is not finished.'}")
    rows = record.rows
    there = [c for c in COLUMNS if rows and c in rows[0]]
    sessions = [{k: v for k, v in s.items() if k not in VOLATILE} for s in record.environment]
    body = {
        "name": name,
        "recipe": r,
        "result": short(record.result, DIGITS),
        "environment": sessions,
        "rows": {c: [short(row[c], CLOCK_DIGITS if c.endswith("seconds") else DIGITS) for row in rows] for c in there},
    }
    text = compact(plain(body, name))
    if private := [found[1] for word in _words(body) if (found := PLACE.search(word))]:
        raise ValueError(f"{record.path} names a place on this machine ({private[0]}): race the algorithm by a relative path.")
    key = str(r.get("workload")), str(r.get("algorithm")), int(r.get("seed", 0)), name
    return key, text.encode("ascii") + b"\n"


def unpack(path: Path) -> list[Packed]:
    """The runs in a file that `pack` wrote; a ValueError of one sentence where it is none, or damaged."""
    try:
        lines = gzip.decompress(path.read_bytes()).splitlines()
        return [_packed(path, json.loads(text)) for text in lines]
    except OSError as error:
        reason = error.strerror or "it is no gzip file"
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error):
        reason = "it is damaged, or was not written by `python -m benchmarks.board pack`"
    raise ValueError(f"{path} cannot be read as a board: {reason}.")


def short(value: Any, digits: int) -> Any:
    """Floats in a tree to so many significant digits; everything else as it is."""
    if type(value) is float:
        return float(f"{value:.{digits}g}")
    if type(value) is dict:
        return {k: short(v, digits) for k, v in value.items()}
    if type(value) is list:
        return list(map(short, value, repeat(digits)))
    return value


def _packed(path: Path, body: dict[str, Any]) -> Packed:
    columns = dict(body["rows"])
    if len({len(values) for values in columns.values()}) != 1:
        raise ValueError("columns of different lengths")
    sessions: Sequence[dict[str, Any]] = restore(body["environment"])
    return Packed(path / body["name"], restore(body["recipe"]), restore(body["result"]), True, None, None, columns, list(sessions))


def _words(value: Any) -> list[str]:
    if type(value) is str:
        return [value]
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return [word for item in inner for word in _words(item)]

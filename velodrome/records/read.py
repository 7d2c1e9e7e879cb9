"""Runs as their readers see them: one folder, or all folders under a root, whatever a crash, a bad disk or a stranger left there."""

import difflib
import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from velodrome.records import parquet
from velodrome.records.encoding import restore, unseal
from velodrome.records.log import Log, parse

_KEPT = {int, float, bool, type(None)}  # types that JSON stores as they are


@dataclass(frozen=True)
class Record:
    """One run. `result` is None and `finished` False until it is finished; rows and environment are read when they are asked for.

    `recorded` is how many rows the result says there are, `digest` the SHA-256 of rows.parquet, both None for an unfinished run or a log.
    """

    path: Path
    recipe: dict[str, Any]
    result: dict[str, Any] | None
    finished: bool
    recorded: int | None
    digest: str | None

    @cached_property
    def environment(self) -> list[dict[str, Any]]:
        """The sessions that trained this run, oldest first; empty if unknown."""
        try:
            sessions = restore(json.loads((self.path / "environment.json").read_bytes()))
        except (OSError, ValueError):
            return []
        return sessions if isinstance(sessions, list) else []

    @cached_property
    def log(self) -> Log:
        """The verified rows as they are stored, and what is wrong with the others."""
        return stored(self)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The good rows in order. Every row has every column, None where nothing was recorded; NaN and infinities are floats."""
        rows = self.log.rows
        layouts = dict.fromkeys(map(tuple, rows))
        names = dict.fromkeys(chain.from_iterable(layouts))
        if len(layouts) > 1:
            rows = [{name: row.get(name) for name in names} for row in rows]
        columns_ = zip(*map(dict.values, rows), strict=True)
        coded = [name for name, values in zip(names, columns_, strict=False) if not _KEPT.issuperset(map(type, values))]
        if not coded:
            return rows
        return [{**row, **{name: restore(row[name]) for name in coded}} for row in rows]

    @property
    def damaged(self) -> tuple[int, ...]:
        """Sequence numbers of the rows that were recorded and can no longer be read."""
        return self.log.damaged

    @property
    def problems(self) -> list[str]:
        """What is wrong with the run's files, one sentence each; empty for a sound run."""
        found = []
        if not self.finished and (self.path / "result.json").exists():
            found.append(f"{self.path / 'result.json'} is damaged.")
        if self.digest is not None and self.parquet() is None:
            found.append(f"{self.path / 'rows.parquet'} is missing or damaged: its SHA-256 is not {self.digest}.")
        if self.damaged:
            found.append(f"{len(self.damaged)} rows of {self.path} are damaged: {_ranges(self.damaged)}.")
        if self.log.torn:
            found.append(f"the last row of {self.path} was cut short ({self.log.torn} bytes); it is cut off when the run is resumed.")
        return found

    def parquet(self) -> bytes | None:
        """The bytes of rows.parquet if they are those that `finish` wrote."""
        try:
            data = (self.path / "rows.parquet").read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == self.digest else None


def stored(record: Record) -> Log:
    """What `record.log` is, read anew and not kept."""
    if record.digest is not None and (data := record.parquet()) is not None:
        return Log(parquet.load(data))
    try:
        log = parse((record.path / "rows.jsonl").read_bytes())
    except FileNotFoundError:
        log = Log()
    if record.recorded is not None and log.next < record.recorded:
        log = replace(log, damaged=tuple(sorted({*log.damaged, *range(log.next, record.recorded)})))
    return log


def read(folder: Path | str) -> Record:
    """The run in `folder`; a ValueError if there is none. Damage is not an error: see `Record.damaged` and `Record.problems`."""
    folder = Path(folder)
    record = _read(os.fspath(folder))
    if record is None:
        raise ValueError(f"{folder} is not a run: it has no readable recipe.json. Give the folder of one run.")
    return record


def scan(root: Path | str) -> list[Record]:
    """All runs directly under `root`, by name; folders that are not runs are passed over. Reads two small files per run, rows later."""
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{root} cannot be listed ({error.strerror}): give the folder that holds the runs.") from error
    return [record for record in map(_read, folders) if record is not None]


def columns(record: Record, *names: str) -> dict[str, np.ndarray]:
    """Columns of the rows as arrays of one length: all of them, or those named.

    Whole numbers are int64 and others float64, a missing number is NaN; bools, strings and lists stay Python objects where NumPy has no
    exact type. An unknown name is a ValueError.
    """
    have = list(record.rows[0]) if record.rows else []
    for name in names:
        if name not in have:
            near = difflib.get_close_matches(name, have, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(have) or 'no rows'}."
            raise ValueError(f"{record.path} has no column {name!r}: {hint}")
    return {name: _array([row[name] for row in record.rows]) for name in names or have}


def _read(folder: str) -> Record | None:
    try:
        with open(folder + "/recipe.json", "rb") as file:
            recipe = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(recipe, dict):
        return None
    try:
        with open(folder + "/result.json", "rb") as file:
            body = unseal(file.read().rstrip(b"\n"))
    except OSError:
        body = None
    if body is None:
        return Record(Path(folder), restore(recipe), None, False, None, None)
    return Record(Path(folder), restore(recipe), restore(body.get("result")), True, body.get("rows"), body.get("parquet"))


def _array(values: list[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds == {int} and max(map(abs, values)) < 2**63:
        return np.array(values, np.int64)
    if kinds == {bool}:
        return np.array(values, np.bool_)
    if kinds <= {int, float, type(None)}:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.fromiter(values, object, len(values))


def _ranges(numbers: tuple[int, ...]) -> str:
    """(1, 2, 3, 7) as "1-3, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)

"""SQL over all runs of a root, through DuckDB (Raasveldt & Mühleisen 2019, https://doi.org/10.1145/3299869.3320212).

Only verified numbers enter the tables, whether they lie in a log or in parquet, and the query itself can reach no file.
"""

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from velodrome.records.encoding import NONFINITE, compact, plain
from velodrome.records.log import Log
from velodrome.records.read import Record, scan, stored

_KINDS: dict[type, str] = {bool: "BOOLEAN", float: "DOUBLE"}


def query(root: Path | str, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of one SELECT over two tables, joined by `folder`; NaN and infinities are DOUBLE, a missing number is NULL.

    `runs`: one row per run: folder, finished, then recipe and result with nested keys joined by "_" (options_lr); a key that both have
    is "key_2" for the result, one that differs from another only in case is "key_1". `rows`: folder, seq and the columns of all rows of
    all runs; a column that is a number in some runs and text in others is VARCHAR.

    Raises:
        ValueError: DuckDB is missing, `root` is no folder, or the SQL is wrong; one line says what.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError('queries need DuckDB: pip install "velodrome[query]".') from error

    records = scan(root)
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(":memory:") as connection:
        runs = _Table(Path(scratch), "runs", {"folder": "VARCHAR", "finished": "BOOLEAN"})
        for record in records:
            runs.add(_flat(record))
        runs.create(connection)
        if re.search(r"\brows\b", sql, re.IGNORECASE):  # reading all rows is the expensive part
            _load_rows(connection, Path(scratch), records)
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        try:
            result = connection.execute(sql)
            return [column[0] for column in result.description or []], result.fetchall()
        except duckdb.Error as error:
            raise ValueError(_one_line(str(error))) from error


def _load_rows(connection: Any, scratch: Path, records: list[Record]) -> None:
    packed = [record for record in records if record.digest is not None and record.parquet() is not None]
    names = {record.path.name for record in packed}
    table = _Table(scratch, "logs" if packed else "rows", {"folder": "VARCHAR", "seq": "BIGINT"})
    for record in records:
        if record.path.name not in names:
            table.add_log(record.path.name, stored(record))
    table.create(connection)
    if not packed:
        return
    files = _Table(scratch, "files", {"filename": "VARCHAR", "folder": "VARCHAR"})
    for record in packed:
        files.add({"filename": str(record.path / "rows.parquet"), "folder": record.path.name})
    files.create(connection)
    paths = ", ".join(_quoted(str(record.path / "rows.parquet")) for record in packed)
    connection.execute(
        "CREATE TABLE rows AS SELECT * FROM logs UNION ALL BY NAME SELECT * EXCLUDE (filename) FROM files JOIN "
        f"read_parquet([{paths}], union_by_name = true, filename = true) USING (filename)"
    )
    connection.execute("DROP TABLE logs; DROP TABLE files")


class _Table:
    """A table on its way into DuckDB through one file of JSON lines.

    Types come from all values, since a guess from the first ones would fail on the first NaN.
    """

    def __init__(self, scratch: Path, name: str, kinds: dict[str, str]):
        self.path, self.name, self.kinds = scratch / f"{name}.jsonl", name, kinds
        self.spelled = {column: column for column in kinds}
        self.found: dict[str, set[str]] = {}
        self.file = self.path.open("wb")

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            self._note(name, [value])
        self.file.write(compact({self.spelled[name]: value for name, value in row.items()}).encode("ascii") + b"\n")

    def add_log(self, folder: str, log: Log) -> None:
        """The rows of one run: their lines are verified JSON already, and are taken as they are."""
        layouts: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in log.rows:
            layouts.setdefault(tuple(row), []).append(row)
        for layout, rows in layouts.items():
            for name, values in zip(layout, zip(*map(dict.values, rows), strict=True), strict=True):
                self._note(name, values)
        if log.lines and all(self.spelled[name] == name for layout in layouts for name in layout):
            head = b'{"folder":' + compact(folder).encode("ascii") + b","
            self.file.write(b"".join(head + line[1:] + b"\n" for line in log.lines))
        else:
            for row in log.rows:
                self.add({"folder": folder, **row})

    def create(self, connection: Any) -> None:
        """Read the file into the table; columns that were only ever null are DOUBLE."""
        self.file.close()
        types = {**{column: _merged(self.found.get(column, set())) for column in self.spelled.values()}, **self.kinds}
        struct = ", ".join(f"{_quoted(column)}: {_quoted(kind)}" for column, kind in types.items())
        source = (
            f"read_json({_quoted(str(self.path))}, format = 'newline_delimited', columns = {{{struct}}}, maximum_object_size = {1 << 28})"
        )
        connection.execute(f"CREATE TABLE {self.name} AS SELECT * FROM {source}")

    def _note(self, name: str, values: Sequence[Any]) -> None:
        column = self.spelled.get(name)
        if column is None:
            column = self.spelled[name] = _free(name, self.spelled.values())
        found = self.found.setdefault(column, set())
        types = set(map(type, values))
        if types == {int}:
            found |= {_kind(min(values)), _kind(max(values))}
        elif types <= {float, bool}:
            found.update(_KINDS[kind] for kind in types)
        else:
            found.update(_kind(value) for value in values if value is not None)


def _flat(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"folder": record.path.name, "finished": record.finished}
    for part in (record.recipe, record.result or {}):
        leaves: dict[str, Any] = {}
        _leaves(plain(part, "run"), "", leaves)
        for name, value in leaves.items():
            row[f"{name}_2" if name in row else name] = value
    return row


def _leaves(value: Any, name: str, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _leaves(item, f"{name}_{key}" if name else key, into)
    else:
        into[name or "value"] = value


def _kind(value: Any) -> str:
    kind = type(value)
    if kind is int:
        size = abs(value)
        return "BIGINT" if size < 2**63 else "HUGEINT" if size < 2**127 else "DOUBLE"
    if kind is str:
        return "DOUBLE" if value in NONFINITE else "VARCHAR"
    if kind is list:
        return _merged({_kind(item) for item in value if item is not None}) + "[]"
    return _KINDS.get(kind, "JSON")


def _merged(kinds: set[str]) -> str:
    """The narrowest type of DuckDB that holds all of them."""
    if len(kinds) <= 1:
        return next(iter(kinds), "DOUBLE")
    if kinds <= {"BIGINT", "HUGEINT", "DOUBLE"}:
        return "DOUBLE" if "DOUBLE" in kinds else "HUGEINT"
    if kinds <= {"BIGINT[]", "HUGEINT[]", "DOUBLE[]"}:
        return "DOUBLE[]"
    return "JSON" if any(kind.endswith("[]") or kind == "JSON" for kind in kinds) else "VARCHAR"


def _free(name: str, taken: Iterable[str]) -> str:
    """`name`, or with DuckDB's own suffix if another one is the same to SQL, which does not see case."""
    lower = {other.lower() for other in taken}
    return next(free for n in range(len(lower) + 1) if (free := f"{name}_{n}" if n else name).lower() not in lower)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_line(message: str) -> str:
    """DuckDB's first sentences without the excerpt of the query."""
    line = re.sub(r"^[\w ]+ Error: ", "", " ".join(re.split(r"\n\s*LINE \d|Traceback \(", message)[0].split()))
    return f"the query cannot be answered: {line}" + ("" if line.endswith((".", "!")) else ".")

"""The compact form of a finished log: rows.parquet (Apache Parquet, through pyarrow), with the types DuckDB and others expect."""

import hashlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

from velodrome.records.disk import replace
from velodrome.records.encoding import NONFINITE, compact

_JSON = {b"velodrome": b"json"}  # marks a column of JSON text: its values had no common type


def available() -> bool:
    """Whether pyarrow is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON-ready rows as parquet, atomically, and return the file's SHA-256 (hex)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, fields = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        kind, values = _column([row.get(name) for row in rows])
        if kind == "json":
            values = [None if value is None else compact(value) for value in values]
        type_ = {
            "bool": pa.bool_(),
            "int": pa.int64(),
            "big": pa.decimal128(38),
            "float": pa.float64(),
            "text": pa.string(),
            "ints": pa.list_(pa.int64()),
            "floats": pa.list_(pa.float64()),
            "json": pa.string(),
        }[kind]
        arrays.append(pa.array(values, type_))
        fields.append(pa.field(name, type_, metadata=_JSON if kind == "json" else None))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), sink, compression="zstd")
    data = sink.getvalue()
    replace(path, data)
    return hashlib.sha256(data).hexdigest()


def load(data: bytes) -> list[dict[str, Any]]:
    """The rows in the bytes of such a file, NaN and infinities as floats, missing values as None."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError('this run is stored as parquet, which needs pyarrow: pip install "velodrome[data]".') from error

    table = pq.ParquetFile(pa.BufferReader(data)).read()
    columns = {}
    for field in table.schema:
        values = table.column(field.name).to_pylist()
        if (field.metadata or {}).get(b"velodrome") == b"json":
            values = [None if value is None else json.loads(value) for value in values]
        elif pa.types.is_decimal(field.type):
            values = [None if value is None else int(value) for value in values]
        columns[field.name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _column(values: list[Any]) -> tuple[str, list[Any]]:
    """The narrowest type that holds every value exactly, and the values in it."""
    present = [value for value in values if value is not None]
    lists = [value for value in present if type(value) is list]
    if lists and len(lists) == len(present):
        kind, _ = _column([item for value in lists for item in value])
        if kind in ("int", "float"):
            return kind + "s", [None if value is None else [_number(item, kind) for item in value] for value in values]
        return "json", values
    numbers = [_number(value, "float") if type(value) is str else value for value in present]
    kinds = {type(value) for value in numbers}
    if kinds == {int}:
        largest = max(map(abs, numbers))
        return ("int" if largest < 2**63 else "big" if largest < 10**38 else "json"), values
    if kinds <= {int, float} and all(abs(value) <= 2**53 for value in numbers if type(value) is int):  # exact in float64
        return "float", [_number(value, "float") for value in values]
    if kinds == {bool}:
        return "bool", values
    return ("text" if kinds == {str} else "json"), values


def _number(value: Any, kind: str) -> Any:
    if type(value) is str:
        return NONFINITE.get(value, value)
    return float(value) if kind == "float" and type(value) is int else value

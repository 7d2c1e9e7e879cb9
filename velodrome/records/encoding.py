"""Values to JSON and back, without losing NaN, and lines that carry their own checksum.

JSON (RFC 8259) has no NaN and no infinity, so they are written as the strings "NaN", "Infinity" and "-Infinity", which every JSON reader
accepts and DuckDB casts to DOUBLE; as text these three are refused, so that reading is never ambiguous. A missing number is null.
A sealed line ends in the CRC-32 (ISO 3309, as in zlib) of what precedes it: any single flipped bit is detected.
"""

import json
import math
import zlib
from typing import Any

NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
SEAL = 18  # bytes of ,"crc":"xxxxxxxx"}
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_sorted = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def cell(value: Any, name: str) -> Any:
    """One value of a row as JSON: a number, string, bool or None, or a flat list of numbers; tensors and arrays through `.tolist()`."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else _nonfinite(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is str:
        return _text(value, name)
    if kind is list or kind is tuple:
        if not all(isinstance(item, int | float) or (callable(getattr(item, "tolist", None)) and item.shape == ()) for item in value):
            raise ValueError(f"{name} must be a flat list of numbers, got {str(value)[:80]}: write one column per part.")
        return [cell(item, name) for item in value]
    return cell(_listed(value, name, "a number, string, bool, None or list of numbers"), name)


def plain(value: Any, name: str) -> Any:
    """Any tree of dict (string keys), list, tuple, number, string, bool and None as JSON; a ValueError names what is something else."""
    kind = type(value)
    if kind is dict:
        if wrong := [key for key in value if type(key) is not str]:
            raise ValueError(f"{name} has the key {wrong[0]!r}, which is not a string: write {str(wrong[0])!r}.")
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if kind is list or kind is tuple:
        return [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if kind is float or kind is int or kind is bool or kind is str or value is None:
        return cell(value, name)
    return plain(_listed(value, name, "a dict, list, number, string, bool or None"), name)


def restore(value: Any) -> Any:
    """What `plain` or `cell` was given, tuples as lists."""
    if type(value) is str:
        return NONFINITE.get(value, value)
    if type(value) is list:
        return [restore(item) for item in value]
    if type(value) is dict:
        return {key: restore(item) for key, item in value.items()}
    return value


def compact(value: Any, ordered: bool = True) -> str:
    """JSON-ready `value` as ASCII text without spaces and with shortest round-trip floats; keys in their order, or sorted."""
    return _encode(value) if ordered else _sorted(value)


def seal(body: dict[str, Any]) -> bytes:
    """`body` (JSON-ready, not empty) as one line ending in its checksum and a newline."""
    assert body
    core = _encode(body).encode("ascii")[:-1]
    return core + b',"crc":"%08x"}\n' % zlib.crc32(core)


def sealed(line: bytes) -> bool:
    """Whether every bit of the line (without its newline) is as `seal` wrote it."""
    return line[-SEAL:] == b',"crc":"%08x"}' % zlib.crc32(line[:-SEAL])


def unseal(line: bytes) -> dict[str, Any] | None:
    """The body of a sealed line (without its newline), or None if one bit of it is not as it was written."""
    if not sealed(line):
        return None
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if type(body) is not dict:
        return None
    body.pop("crc", None)
    return body


def _nonfinite(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _text(value: str, name: str) -> str:
    if value in NONFINITE:
        raise ValueError(f"{name} is the text {value!r}, which stands for the number: write float({value!r}), or another word.")
    return value


def _listed(value: Any, name: str, wanted: str) -> Any:
    listed = getattr(value, "tolist", None)
    if not callable(listed):
        raise ValueError(f"{name} must be {wanted}, got {type(value).__name__}: convert it first.")
    result = listed()
    if type(result) not in (int, float, bool, str, list):
        raise ValueError(f"{name} must be {wanted}, got {type(value).__name__} of {type(result).__name__}: convert it first.")
    return result

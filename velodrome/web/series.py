"""The numbers of a run's rows in memory, column by column, and few points that look like many."""

import json
from array import array
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np

from velodrome.records.encoding import NONFINITE

POINTS = 300  # of one curve: more than a chart on a screen has pixels between two of them
NAN = float("nan")
_serial = count()


class Series:
    """Columns of numbers of one length, NaN where a row has none. One thread extends, others read: `n` is raised last.

    `whole` is False where rows that were recorded can no longer be read.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), whole: bool = True):
        self.columns: dict[str, array[float]] = {}
        self.whole = whole
        self.serial = next(_serial)  # never used twice, as `id` is
        self.n = 0
        self.extend(rows)

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; what is no number (text, lists, null) is NaN, and a column without any number is none."""
        n = self.n
        for row in rows:
            for name, value in row.items():
                number = _number(value)
                column = self.columns.get(name)
                if column is None:
                    if number is None:
                        continue
                    column = array("d", [NAN]) * n
                    self.columns = {**self.columns, name: column}  # a reader never sees a dict that changes
                column.append(NAN if number is None else number)
            n += 1
            for column in self.columns.values():
                if len(column) < n:
                    column.append(NAN)
        self.n = n

    @property
    def names(self) -> list[str]:
        """Columns that hold at least one number, in order of appearance."""
        return [name for name in self.columns if name != "seq"]

    @property
    def size(self) -> int:
        """Numbers held."""
        return self.n * len(self.columns)

    def column(self, name: str) -> np.ndarray:
        """A copy of a column; all NaN if there is none of that name."""
        n, column = self.n, self.columns.get(name)
        return np.full(n, NAN) if column is None else np.array(column[:n], np.float64)


def thinned(x: np.ndarray, y: np.ndarray, most: int = POINTS) -> np.ndarray:
    """Indices of at most `most` points that keep the first, the last, and of each of equally many stretches the lowest and highest.

    Points where x or y is not finite are left out. Spikes survive, which a moving average or every tenth point would hide.
    """
    good = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(good) <= most:
        return good
    stretches = np.array_split(good[1:-1], (most - 2) // 2)
    ends = [(s[np.argmin(y[s])], s[np.argmax(y[s])]) for s in stretches if len(s)]
    return np.unique(np.concatenate([[good[0], good[-1]], np.ravel(ends)])).astype(int)


def short(values: np.ndarray) -> list[float | None]:
    """Six significant digits, and None for what is not finite: JSON has neither, and a chart shows no more."""
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values.tolist()]


def finite(value: Any) -> Any:
    """Any tree as JSON can hold it: what is not a finite number is None, keys are text, and strange objects are their text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value)


def encoded(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(finite(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _number(value: Any) -> float | None:
    kind = type(value)
    if kind is float or kind is int:
        try:
            return float(value)
        except OverflowError:
            return None
    return NONFINITE.get(value) if kind is str else None

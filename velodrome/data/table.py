"""Rows of numbers from parquet: one column is the target, the others are the inputs.

train = table.load("measurements/", split="train", target="quality")              # every .parquet in the folder, or train-*.parquet
valid = table.load("measurements/", split="validation", target="quality")         # of its own, or the tenth that is cut here
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velodrome.data import parquet
from velodrome.data.hashing import check_fraction, digest, held_out

HELD_OUT = ("validation", "valid", "val", "test")


@dataclass(frozen=True)
class Table:
    """`inputs` float32 (N, columns) as they stand in the files; `targets` int64 (N,) with the names of the `classes`, or float32 (N, 1) and None."""

    inputs: Tensor
    targets: Tensor
    columns: tuple[str, ...]
    classes: tuple[str, ...] | None
    digest: str
    source: str


def load(path: str | Path, split: str | None = None, *, target: str, columns: Sequence[str] | None = None, holdout: float = 0.1) -> Table:
    """Read one .parquet file, or all of a folder.

    `target` is a column of strings, booleans or whole numbers, whose sorted values are the classes, or of floating-point numbers. `columns` are the inputs:
    by default all other numbers, in the order of the file. Where the files are named train-… and validation-… (valid, val, test), those are the splits;
    otherwise split="validation" is a fixed share `holdout` of the rows (of each class), "train" the rest, None everything. ValueError for anything missing,
    empty, damaged, null or not finite, with file and column.
    """
    path = Path(path).expanduser()
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}.')
    check_fraction("holdout", holdout)
    files, own = _files(path)
    names = _columns(files[0], target, columns)
    read = [_read(file, target, names) for file in files]
    inputs = torch.from_numpy(np.concatenate([x for x, _ in read]))
    targets, classes = _targets(np.concatenate([y for _, y in read]), f"{path}: column {target!r}")
    if split is not None:
        if own:
            held = torch.from_numpy(np.repeat([name != "train" for name in own], [len(y) for _, y in read]))
        else:
            held = held_out(targets.tolist() if classes else [0] * len(targets), holdout)
        chosen = held == (split == "validation")
        inputs, targets = inputs[chosen], targets[chosen]
        if not len(inputs):
            raise ValueError(f"{path} has too few rows to hold some out: leave split out to use them all.")
    return Table(inputs, targets, names, classes, digest(inputs, targets), f"table {path.name}" + (f", {split}" if split else ""))


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """The parquet files of a path, and the split that each is named after; no splits where the names do not say what is held out."""
    if path.is_file() and path.suffix == ".parquet":
        return [path], []
    if not path.is_dir():
        there = "is no .parquet file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {there}: give a .parquet file or a folder of them.")
    splits = parquet.splits(path)
    if not splits:
        raise ValueError(f"{path} holds no .parquet file: give a .parquet file or a folder of them.")
    second = next((name for name in HELD_OUT if name in splits), None)
    chosen = ("train", second) if "train" in splits and second else tuple(splits)
    found = [(file, name) for name in chosen for file in splits[name]]
    return [file for file, _ in found], [name for _, name in found] if second and "train" in splits else []


def _columns(file: Path, target: str, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The inputs' names, after checking that they and the target are there and are numbers."""
    pa, schema = parquet.pyarrow(), parquet.schema(file)
    kinds = {column.name: column.type for column in schema}
    numbers = [n for n, t in kinds.items() if pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t)]
    for name in (target, *(columns or ())):
        if name not in kinds:
            raise ValueError(f"{file} has no column {name!r}: it has {', '.join(f'{n} ({t})' for n, t in kinds.items())}.")
    found = tuple(columns) if columns is not None else tuple(n for n in numbers if n != target)
    if target in found or not found:
        raise ValueError(f"{file}: the inputs must be columns of numbers other than the target {target!r}, got {list(found)}.")
    for name in found:
        if name not in numbers:
            raise ValueError(f"{file}: column {name!r} holds {kinds[name]}, not numbers: leave it out of columns.")
    return found


def _read(file: Path, target: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, columns) float32 and the target's values of one file."""
    pa = parquet.pyarrow()
    parquet.count(file)
    _columns(file, target, names)
    try:
        with pa.parquet.ParquetFile(file) as opened:
            found = opened.read(columns=[*names, target])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise parquet.damaged(file, error) from None
    return np.stack([_values(file, found, name).astype(np.float32) for name in names], axis=1), _values(file, found, target)


def _values(file: Path, found: Any, name: str) -> np.ndarray:
    column = found.column(name)
    if column.null_count:
        raise ValueError(f"{file}: column {name!r} has {column.null_count} nulls: fill them, or drop the rows.")
    values: np.ndarray = column.to_numpy()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(
            f"{file}: column {name!r} has {int((~np.isfinite(values)).sum())} values that are not finite: mend or drop the rows."
        )
    return values


def _targets(values: np.ndarray, what: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Numbers as (N, 1) float32; anything else as class numbers, and the classes."""
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32)[:, None]), None
    if values.dtype.kind not in "iubOUS" or (values.dtype.kind == "O" and not all(isinstance(v, str) for v in values)):
        raise ValueError(f"{what} must hold strings, booleans or numbers, got {values.dtype}.")
    classes, numbers = np.unique(values, return_inverse=True)
    if not 2 <= len(classes) <= max(2, len(values) // 2):
        raise ValueError(
            f"{what} has {len(classes)} different values in {len(values)} rows: classes need two at least, and a number to predict a float."
        )
    return torch.from_numpy(numbers.astype(np.int64)), tuple(map(str, classes))

"""Parquet in the Hugging Face hub's layout: a folder of `SPLIT-00000-of-00002.parquet` shards (or the same under `data/`), or one file.

A damaged, empty or incomplete file is a ValueError that names it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARD = re.compile(r"(?P<split>.+?)-(?P<index>\d+)-of-(?P<count>\d+)")


def pyarrow() -> Any:
    """The module pyarrow with pyarrow.parquet loaded, or a ValueError that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError('Reading parquet needs pyarrow: pip install "velodrome[data]".') from None
    return pyarrow


def splits(folder: Path) -> dict[str, list[Path]]:
    """Split name -> its shards in order; empty if there is no parquet file. A shard that is missing from its series is a ValueError."""
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    found: dict[str, list[Path]] = {}
    for file in files:
        shard = SHARD.fullmatch(file.stem)
        found.setdefault(shard["split"] if shard else file.stem.split("-")[0], []).append(file)
    for split, shards in found.items():
        counts = {int(shard["count"]) for file in shards if (shard := SHARD.fullmatch(file.stem))}
        if counts and counts != {len(shards)}:
            raise ValueError(f"Split {split!r} in {folder} has {len(shards)} shards where their names say {max(counts)}: fetch it again.")
    return found


def shards(path: Path, split: str | None) -> list[Path]:
    """The parquet files that make up `split` of `path`: the file itself, or the shards in a folder; [] if there is no parquet at all."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    found = splits(path)
    if not found:
        return []
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(f"{path} has the splits {', '.join(sorted(found))}, got split={split!r}: write split={sorted(found)[-1]!r}.")
    return found[split]


def schema(file: Path) -> Any:
    """The Arrow schema of one parquet file."""
    return _opened(file)[0]


def count(file: Path) -> int:
    """Number of rows of one parquet file, at least one."""
    return _opened(file)[1]


def _opened(file: Path) -> tuple[Any, int]:
    pa = pyarrow()
    try:
        with pa.parquet.ParquetFile(file) as opened:
            rows, found = opened.metadata.num_rows, opened.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from None
    if rows == 0:
        raise ValueError(f"{file} is a parquet file without a row: fetch it again or leave it out.")
    return found, rows


def pieces(file: Path, names: list[str]) -> Iterator[tuple[int, Any]]:
    """(number of the first row, table of the columns `names` in that order), one row group after the other."""
    pa = pyarrow()
    row = 0
    try:
        with pa.parquet.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                piece = opened.read_row_group(group, columns=names).select(names)
                yield row, piece
                row += piece.num_rows
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from None


def damaged(file: Path, error: BaseException) -> ValueError:
    """The error for a file that cannot be read, with the library's own first line."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{file} cannot be read and is damaged or incomplete ({reason}): fetch it again.")

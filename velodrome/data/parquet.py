"""What lies in a folder: parquet in the Hugging Face hub's layout, `SPLIT-00000-of-00002.parquet` (also under `data/`), or `train/` and `test/`.

A damaged, empty or incomplete file is a ValueError that names it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARD = re.compile(r"(?P<split>.+?)-(?P<index>\d+)-of-(?P<count>\d+)")
SPLITS = {"train", "test", "validation", "valid", "val"}


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


def own_splits(path: Path) -> set[str]:
    """Names of the splits that the data brings along, as shards or as sub-folders; empty for one file and for anything else."""
    if path.is_file():
        return set()
    folders = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    return set(splits(path)) or (folders if folders <= SPLITS else set())


def check_split(path: Path, split: str | None) -> None:
    """`split` must be one of the data's own (None will do if there is one only), or, where it has none, a part of what is cut here."""
    own = own_splits(path)
    if own and split not in own and not (split is None and len(own) == 1):
        raise ValueError(f"{path} has the splits {', '.join(sorted(own))}, got split={split!r}: write split={sorted(own)[-1]!r}.")
    if not own and split not in (None, "train", "validation"):
        raise ValueError(f'{path} has no splits of its own and is cut into "train" and "validation", got split={split!r}.')


def shards(path: Path, split: str | None) -> list[Path]:
    """The parquet files of a split that was checked (None: the only one), or the one file; [] if there is no parquet."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    found = splits(path)
    return found[split or min(found)] if found else []


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
            assert found.names is not None  # decodes them, which fails in a damaged file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(file, error) from None
    if rows == 0:
        raise ValueError(f"{file} is a parquet file without a row: fetch it again or leave it out.")
    return found, rows


def pieces(file: Path, names: list[str]) -> Iterator[tuple[int, list[list[Any]]]]:
    """(number of the first row, values of each of the columns `names`), one row group after the other."""
    pa = pyarrow()
    row = 0
    try:
        with pa.parquet.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                piece = opened.read_row_group(group, columns=names).select(names)
                yield row, [column.to_pylist() for column in piece.columns]
                row += piece.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(file, error) from None


def content(file: Path) -> bytes:
    """All bytes of a file; one that cannot be read is a ValueError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise damaged(file, error) from None


def damaged(file: Path, error: BaseException) -> ValueError:
    """The error for a file that cannot be read, with the library's own first line."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{file} cannot be read and is damaged or incomplete ({reason}): fetch it again.")

"""What a run depends on, as hashes: the code that trains it and the values it was given (SHA-256, FIPS 180-4)."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from velodrome.records.encoding import compact, plain

# The rooms whose code can change the weights a run ends with; reports, records and the command line cannot.
ROOMS = (
    "data",
    "models",
    "layers",
    "losses",
    "growth",
    "precision",
    "gradients",
    "parallel",
    "optim",
    "averages",
    "schedules",
    "recipes",
    "bench/workloads",
    "bench/workload.py",
    "bench/protocol.py",
    "train.py",
    "guard.py",
    "flops.py",
)


def code_digest(files: Iterable[Path], root: Path | None = None) -> str:
    """SHA-256 (hex) over the files' names and contents, whatever their order; names relative to `root`, or bare without one."""
    digest = hashlib.sha256()
    named = sorted((path.relative_to(root).as_posix() if root else path.name, path.read_bytes()) for path in map(Path, files))
    for name, content in named:
        digest.update(f"{len(name.encode())}:{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


@cache
def package_digest() -> str:
    """`code_digest` of the package's own sources that influence training; the same wherever the package is installed."""
    root = Path(__file__).parents[1]
    rooms = [root / room for room in ROOMS]
    files = [path for path in rooms if path.is_file()] + [path for room in rooms if room.is_dir() for path in room.rglob("*.py")]
    assert files
    return code_digest(files, root)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a tree of dict, list, number, string, bool and None; key order does not matter."""
    return hashlib.sha256(compact(plain(value, "value"), ordered=False).encode("ascii")).hexdigest()

"""The Python standard library's own source files as a byte corpus: real text, some 9 MB, on every machine.

    train, valid = stdlib.load("train", limit=2_000_000), stdlib.load("validation", limit=200_000)

The corpus is that of one Python version: `version` and `digest` say which, and numbers from different versions do not compare.
"""

import hashlib
import os
import platform
import sysconfig
from pathlib import Path

from velodrome.data.hashing import check_count, digest
from velodrome.data.text import Text
from velodrome.data.tokens import Bytes

HOLDOUT = 0.05  # share of the files, not of the bytes
END = b"\0"  # between files: no Python source holds this byte
TESTS = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
# Present, absent or patched according to how Python was built or which of a distribution's packages are installed.
UNSTEADY = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle.py", "turtledemo", "venv"}
UNSTEADY |= {"site.py", "sitecustomize.py", "sysconfig", "sysconfig.py", "usercustomize.py"}


def load(split: str | None = "train", *, limit: int | None = None, root: str | Path | None = None) -> Text:
    """Bytes of the files of one split, sorted by path and separated by a zero byte; uint8 tokens, vocabulary 256.

    "validation" is whole files, about 5 % of them, chosen by the hash of their path; "train" the others; None all. `limit` (bytes) keeps
    that many, spread over the library: files in the order of their path's hash, of a long file only the head. `root` is another library's
    folder; by default that of the running Python.
    """
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}.')
    top = Path(root if root is not None else sysconfig.get_path("stdlib"))
    chosen = {path: size for path, size in _files(top).items() if split is None or (_place(path) < HOLDOUT) == (split == "validation")}
    if not chosen:
        raise ValueError(f"{top} holds no .py files for split {split!r}: this needs a Python whose standard library lies there as source.")
    pieces = [(top / path).read_bytes()[:length] for path, length in sorted(_lengths(chosen, limit).items())]
    content = END.join(pieces)[:limit]
    tokens = Bytes().encode(content)
    version = platform.python_version()
    return Text(tokens, Bytes(), len(content), digest(tokens), f"Python standard library, {split or 'all'}", version)


def _files(top: Path) -> dict[str, int]:
    """Relative path, with forward slashes, -> size in bytes."""
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(top):
        inside = Path(folder).relative_to(top)
        folders[:] = [name for name in folders if name not in TESTS and (inside.parts or not _unsteady(name))]
        for name in files:
            if name.endswith(".py") and (inside.parts or not _unsteady(name)):
                found[(inside / name).as_posix()] = os.path.getsize(os.path.join(folder, name))
    return {path: size for path, size in found.items() if size}


def _unsteady(name: str) -> bool:
    """Whether a top-level name differs between installations of one Python version."""
    return name in UNSTEADY or name.startswith(("_sysconfigdata", "_sysconfig_vars", "config-"))


def _place(path: str) -> float:
    """A number in [0, 1) that is a pure function of the path and uniform over paths."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64


def _lengths(files: dict[str, int], limit: int | None) -> dict[str, int]:
    """Path -> how many bytes of its head to take, in all (with separators) at least `limit` where the files hold as much."""
    if limit is None or check_count("limit", limit) >= sum(files.values()) + len(files) - 1:
        return files
    head = max(4096, limit // 64)  # no single file may fill more than a small part of the corpus
    while sum(min(size, head) + 1 for size in files.values()) <= limit:
        head *= 2
    taken: dict[str, int] = {}
    left = limit
    for path in sorted(files, key=lambda path: hashlib.sha256(f"order {path}".encode()).digest()):
        taken[path] = min(files[path], head, left)
        left -= taken[path] + len(END)
        if left <= 0:
            break
    return taken

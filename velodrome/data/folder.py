"""Where data lies: `VELODROME_DATA`, then `../shared/data` beside a checkout, then the user's cache folder.

Expected inside: one entry per data set, in the Hugging Face hub's layout (`mnist/train-00000-of-00001.parquet`) or as text
(`shakespeare/input.txt`). This file imports no torch, so that `velodrome doctor` can say quickly what is there.
"""

import os
from pathlib import Path


def cache() -> Path:
    """The user's cache folder for Velodrome: `$XDG_CACHE_HOME/velodrome`, or `~/.cache/velodrome`. It need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "velodrome"


def places() -> list[Path]:
    """Folders where data is looked for, first wins. `VELODROME_DATA`, when set, is the only one: a typing error in it must not go unseen."""
    named = os.environ.get("VELODROME_DATA")
    if named:
        return [Path(named).expanduser()]
    root = Path(__file__).resolve().parents[2]
    return [root.parent / "shared" / "data", cache() / "data"]


def folder() -> Path | None:
    """The data folder in use: the first of `places()` that is a folder; None if there is none."""
    return next((place for place in places() if place.is_dir()), None)


def find(name: str) -> Path:
    """Path of the data set `name` inside the data folder, such as `find("mnist")`.

    Raises ValueError, saying where it looked and what is expected there, if it is missing.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"A data set's name is a path inside the data folder, got {name!r}: write find('mnist').")
    for place in places():
        if (place / name).exists():
            return place / name
    looked = ", ".join(str(place / name) for place in places())
    here = folder()
    found = sorted(entry.name for entry in here.iterdir() if entry.is_dir()) if here else []
    raise ValueError(
        f"Data set {name!r} is missing: looked for {looked}"
        + (f" (found there: {', '.join(found)})" if found else "")
        + f". Set VELODROME_DATA to a folder that contains {name}/SPLIT-00000-of-00001.parquet (the Hugging Face hub's layout) or {name}/*.txt."
    )

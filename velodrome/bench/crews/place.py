"""Where the runs of a race are kept: a folder that every worker sees, or object storage (`bench/crews/storage.py`)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from velodrome.bench.crews.storage import Storage, url
from velodrome.records.lock import Busy, Lock

States = Iterator[dict[str, Any]]


class Place(Protocol):
    """What fan-out and workers ask of it; runs are named by their folders."""

    root: Path  # where this process's runs are written
    pause: float  # seconds between two looks at what others do

    def kept(self, folder: str, drive: Callable[[], States]) -> States:
        """The run's states while it is claimed and kept here; Busy if another worker has it."""

    def failed(self, folder: str) -> bool:
        """Whether its last attempt ended with a mistake."""

    def finished(self, folder: str) -> bool:
        """Whether it has a result."""

    def free(self, folder: str) -> bool:
        """Whether it is unfinished and nobody trains it."""

    def local(self, folder: str) -> Path:
        """A folder of this machine that holds the run as it is kept now."""

    def close(self) -> None:
        """Nothing more will be kept by this process."""


class Folder:
    """A folder of this machine, or one that several share; the claim is a lock of the kernel (`records/lock.py`)."""

    pause = 0.5

    def __init__(self, root: Path):
        self.root = root

    def kept(self, folder: str, drive: Callable[[], States]) -> States:
        """As the run is: `drive` writes to the folder itself and holds its lock."""
        return drive()

    def failed(self, folder: str) -> bool:
        """Whether there is an error.txt."""
        return (self.root / folder / "error.txt").exists()

    def finished(self, folder: str) -> bool:
        """Whether there is a result.json."""
        return (self.root / folder / "result.json").exists()

    def free(self, folder: str) -> bool:
        """Whether the lock can be had."""
        path = self.root / folder
        if self.finished(folder):
            return False
        try:
            Lock(path).release()
        except Busy:
            return False
        return True

    def local(self, folder: str) -> Path:
        """The folder itself."""
        return self.root / folder

    def close(self) -> None:
        """Nothing is left to do."""


def place(root: str | Path) -> Place:
    """The place that `--out` names: a URL such as s3://bucket/runs, or a folder."""
    found = url(root)
    return Folder(Path(root)) if found is None else Storage(found)

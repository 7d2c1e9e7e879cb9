"""Cores for workers: claimed by flock(2), so that no two workers of this user are pinned to one core, whichever race started them.

Pinned with sched_setaffinity(2), which Linux has; elsewhere, and where no core is free, a worker runs wherever the system puts it and the record says so.
A core counts as free as long as no worker of ours holds it: what other programs do with it shows in the load that the record holds.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass
class Cores:
    """`numbers` of the cores that are held until `release`, and where there are none the reason why; `others` are held by other workers."""

    numbers: tuple[int, ...] = ()
    reason: str = ""
    others: int = 0
    files: list[int] = field(default_factory=list)

    def release(self) -> None:
        """Give them back; the death of the process does the same."""
        while self.files:
            os.close(self.files.pop())

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """What this thread starts inside runs on these cores; a process inherits its affinity from the thread that makes it."""
        if not self.numbers:
            yield
            return
        before = os.sched_getaffinity(0)
        with contextlib.suppress(OSError):  # a core that went offline
            os.sched_setaffinity(0, self.numbers)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def claim(count: int, alone: bool = False) -> Cores:
    """`count` cores that no other worker has, or none of them; `alone` also keeps all other workers from being pinned while this one runs."""
    if not hasattr(os, "sched_setaffinity") or fcntl is None:
        return Cores(reason="this system cannot pin a process to a core")
    for _ in range(3):  # another worker may just be looking which cores are free
        cores = _claim(count, alone)
        if cores.numbers:
            break
        time.sleep(0.01)
    return cores


def _claim(count: int, alone: bool) -> Cores:
    mine = ordered(os.sched_getaffinity(0))
    held: list[tuple[int, int]] = []
    others = 0
    try:
        folder = Path(tempfile.gettempdir()) / f"velodrome-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        for number in mine:
            if len(held) == count and not alone:
                others += _taken(folder / str(number))
            elif (fd := _locked(folder / str(number))) is None:
                others += 1
            else:
                held.append((number, fd))
    except OSError as error:
        return Cores(reason=f"cores cannot be claimed ({error.strerror})", others=others, files=[fd for _, fd in held])
    numbers, files = tuple(n for n, _ in held[:count]), [fd for _, fd in held]
    if len(numbers) == count:
        return Cores(numbers, "", others, files)
    cores = Cores(reason=f"{len(numbers)} of its {count} cores were free", others=others, files=files)
    cores.release()
    return cores


def ordered(numbers: set[int], siblings: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Cores first, then the second hardware threads of the same cores, which share their arithmetic units."""

    def rank(number: int) -> tuple[int, int]:
        try:
            text = (siblings / f"cpu{number}/topology/thread_siblings_list").read_text()
        except OSError:
            return 0, number
        return _listed(text).index(number), number

    return sorted(numbers, key=rank)


def _listed(text: str) -> list[int]:
    """The numbers in a list of the kernel's, "0-2,8"."""
    spans = [part.partition("-") for part in text.strip().split(",")]
    return [n for first, _, last in spans for n in range(int(first), int(last or first) + 1)]


def _locked(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _taken(path: Path) -> bool:
    fd = _locked(path)
    if fd is not None:
        os.close(fd)
    return fd is None


def told(cores: Cores, workers: int, alone: bool, cluster: bool = False) -> dict[str, Any]:
    """What the record of a session says about its company: workers of the race, pinned cores or why there are none, cores of others."""
    return {
        "workers": workers,
        "cluster": cluster,
        "alone": alone,
        "pinned": list(cores.numbers),
        "unpinned": cores.reason or None,
        "others": cores.others,
    }

"""The claim on a run folder: flock(2), which the kernel frees when its holder dies, however it dies.

On Windows, msvcrt.locking does the same with one byte of the file. Over NFS the lock holds between machines from version 4 on.
"""

import contextlib
import os
import socket
import sys
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path

from velodrome.records.disk import alive

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        os.lseek(fd, 1 << 20, os.SEEK_SET)  # beyond the holder's name, which others read
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Busy(ValueError):
    """Another live process trains this run: `folder` and `holder` ("pid 4711 on host since …") say which."""

    def __init__(self, folder: Path, holder: str):
        self.folder, self.holder = folder, holder
        super().__init__(f"{folder} is being trained by {holder}: wait for it, or give this run another folder.")


class Lock:
    """Holds `folder/lock` from construction until `release`; Busy if another process (or another Lock of this one) holds it."""

    def __init__(self, folder: Path):
        self.fd: int | None = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(self.fd)
        except OSError as error:
            holder = _holder(self.fd)
            self.release()
            raise Busy(folder, holder) from error
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        # A full disk must not keep anybody from reading or resuming: the name is a courtesy, the lock is the kernel's.
        with contextlib.suppress(OSError):
            os.write(self.fd, f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode())
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process still holds the folder; a forked child does not."""
        return self.fd is not None

    def release(self) -> None:
        """Let the next process in."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def _holder(fd: int) -> str:
    """Who wrote its name into the lock; one who has just taken it is given a moment to do so."""
    holder = ""
    for _ in range(20):
        os.lseek(fd, 0, os.SEEK_SET)
        holder = os.read(fd, 300).decode(errors="replace").strip()
        words = holder.split()
        if len(words) > 1 and words[1].isdigit() and alive(int(words[1])):
            break
        time.sleep(0.005)
    return holder or "another process"


# A child made by fork shares the parent's open file, and with it the lock: it would keep a run claimed after its parent's death.
_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _abandon() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)

"""What a run prints, from Python or from anything else in its process: into output.txt of its folder, the first bytes of it. Imports no torch."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.platform == "linux":
    import fcntl

LIMIT = 1 << 16  # bytes that are kept of a run


class _Bounded(io.RawIOBase):
    """A stream that writes up to `room` bytes to a file descriptor and drops the rest."""

    def __init__(self, fd: int, room: int):
        self.fd, self.room, self.dropped = fd, room, 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """Where it writes."""
        return self.fd

    def write(self, data: Any) -> int:
        """All of `data`, as the caller sees it."""
        kept = bytes(data)[: max(0, self.room)]
        self.room -= len(kept)
        self.dropped += len(data) - len(kept)
        if kept:
            with contextlib.suppress(OSError):
                os.write(self.fd, kept)
        return len(data)


class Output:
    """One run's prints. `captured(path)` is entered for each turn, and what has come is appended to that file; `close()` at the run's end."""

    def __init__(self) -> None:
        self.file, self.old = _scratch(), (os.dup(1), os.dup(2))
        self.raw = _Bounded(self.file, LIMIT)
        stream: Any = self.raw
        self.text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", write_through=True)
        self.kept, self.dropped, self.known = 0, 0, False

    @contextlib.contextmanager
    def captured(self, path: Path) -> Iterator[None]:
        """File descriptors 1 and 2 and Python's streams go to `path` meanwhile, whose folder may be made inside; to where they went before, afterwards."""
        if not self.known and path.exists():  # of an earlier process
            self.kept = min(LIMIT, path.stat().st_size)
            self.raw.room = LIMIT - self.kept
        self.known = True
        out, err = sys.stdout, sys.stderr
        out.flush()
        err.flush()
        os.dup2(self.file, 1)
        os.dup2(self.file, 2)
        sys.stdout = sys.stderr = self.text
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
            for stream in (out, err):  # what was written to a stream that somebody had kept
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os.dup2(self.old[0], 1)
            os.dup2(self.old[1], 2)
            self._take(path)

    def _take(self, path: Path) -> None:
        """What the turn has printed, to the end of the file; and that there was more, once."""
        size = os.lseek(self.file, 0, os.SEEK_CUR)
        self.dropped, self.raw.dropped = self.dropped + self.raw.dropped, 0
        if not size and not self.dropped:
            return
        room, first = LIMIT - self.kept, self.kept < LIMIT
        data = os.pread(self.file, min(size, room), 0) if room > 0 else b""
        self.dropped += size - len(data)
        self.kept += len(data)
        os.lseek(self.file, 0, os.SEEK_SET)
        if self.dropped and first:
            data += b"\n[more was printed and is not kept]\n"
            self.kept = LIMIT
        if data:
            with contextlib.suppress(OSError), open(path, "ab") as file:  # no folder: the run is another process's
                file.write(data)

    def close(self) -> None:
        """Give the memory back."""
        for fd in (self.file, *self.old):
            os.close(fd)


def _scratch() -> int:
    """A file in memory that cannot grow, so that no guest fills a disk or the memory by printing; a temporary file where there is no such thing."""
    if sys.platform == "linux":
        fd = os.memfd_create("output", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(fd, 2 * LIMIT)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    return fd

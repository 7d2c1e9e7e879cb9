"""Durable writing: beside, fsynced, renamed; and an error that says how much the disk lacks.

A reader sees the old file or the new one, never half of one (rename is atomic within a file system, POSIX rename(2)); the file is fsynced
before the rename and the folder after it, so the order survives a power cut (Pillai et al. 2014, https://www.usenix.org/node/186195).
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class DiskError(OSError):
    """The disk refused a write (full, read-only, broken); `errno` is kept and the message says what is still intact."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


@contextlib.contextmanager
def explained(what: str, path: Path, needed: int, intact: str) -> Iterator[None]:
    """Turns an OSError inside into a DiskError with the bytes needed and free."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        free = free_bytes(path.parent)
        space = f"{needed:,} bytes needed" + ("" if free is None else f", {free:,} free")
        raise DiskError(error.errno or errno.EIO, f"cannot write {what} {path}: {reason} ({space}); {intact}") from error


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user may still write in `folder`, or None where that cannot be asked."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def temporary(path: Path) -> Path:
    """The name under which this process writes `path` before renaming it: same folder, so that the rename is atomic."""
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def write_new(path: Path, data: bytes) -> None:
    """Write a new file whole and fsync it; what was begun is removed when the disk refuses."""
    fd = os.open(path, _NEW, 0o644)
    try:
        try:
            rest = memoryview(data)
            while rest:
                written = os.write(fd, rest)
                if written == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[written:]
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, atomically and durably; on failure it is as it was before."""
    beside = temporary(path)
    with explained("the file", path, len(data), "what was there before is unchanged."):
        write_new(beside, data)
        try:
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        fsync_folder(path.parent)


def fsync_file(path: Path) -> None:
    """Make what any process has written to `path` durable."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(folder: Path) -> None:
    """Remove a folder such that no instant shows half of it under its name."""
    gone = temporary(folder.with_name(f"gone-{folder.name}"))
    os.rename(folder, gone)
    discard(gone)


def discard(path: Path) -> None:
    """Remove a file, link or folder that nobody needs; what the disk will not let go of is left for the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(folder: Path, everyone: bool = False) -> None:
    """Remove what dead processes, and this one when a removal failed, left half-done in `folder`; `everyone`'s if a lock is held."""
    if not folder.is_dir():
        return
    for path in folder.glob(".tmp-*"):
        owner = path.name.split("-")[1]
        if everyone or (owner.isdigit() and (int(owner) == os.getpid() or not alive(int(owner)))):
            discard(path)


def alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    if os.name == "nt":
        return True  # os.kill(pid, 0) would end the process there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

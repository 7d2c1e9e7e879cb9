"""A run on disk, as its trainer sees it: claim the folder, append rows, cut back on resume, finish.

    folder/lock                held while the run is trained (records/lock.py)
           recipe.json         what was asked for, written once
           environment.json    one entry per session, with what is therefore not exact
           rows.jsonl          the log (records/log.py); rows.parquet instead once a long run is finished
           checkpoints/step-N  records/checkpoint.py
           result.json         written last, atomically: its presence means finished

While there is no result.json, rows.jsonl is the truth; afterwards rows.parquet is, where result.json names its digest.
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from velodrome.records import parquet
from velodrome.records.disk import explained, fsync_folder, replace, sweep
from velodrome.records.encoding import cell, compact, plain, seal, unseal
from velodrome.records.environment import differences
from velodrome.records.lock import Lock
from velodrome.records.log import parse

STEP = ("t", "examples", "tokens", "flops", "seconds", "data_seconds", "gradient_seconds", "optimizer_seconds")
TAKEN = ("crc", "folder")  # the line's checksum, and the run's name where rows of many runs are queried
# Opening a parquet file costs 1.3 ms however few its rows, reading 250 of them from the log costs the same: short logs stay as they are.
PARQUET_FROM = 1 << 20


class Step(Protocol):
    """What a row takes from a training step: counters are cumulative, seconds are those of the training clock."""

    @property
    def t(self) -> int:
        """Number of the step."""

    @property
    def examples(self) -> int:
        """Drawn so far."""

    @property
    def tokens(self) -> int | None:
        """Drawn so far; None where a token has no meaning."""

    @property
    def flops(self) -> int:
        """Spent so far."""

    @property
    def seconds(self) -> float:
        """Of training so far."""

    @property
    def data_seconds(self) -> float:
        """Of these, waiting for data."""

    @property
    def gradient_seconds(self) -> float:
        """Of these, forward and backward."""

    @property
    def optimizer_seconds(self) -> float:
        """Of these, in the optimizer."""


class Run:
    """One run of one process: made by `Run.open`, a context manager, `close`d at the end.

    `rows` counts the rows in the log, `finished` says whether there is a result, `inexact` what keeps this run from being bit-identical to
    an uninterrupted one (["torch 2.11.0 -> 2.13.0"]), `damaged` which rows of the log a bad disk has made unreadable.
    """

    def __init__(self, folder: Path, lock: Lock):
        self.folder, self._lock = folder, lock
        self.finished = (folder / "result.json").exists()
        self.rows = 0
        self.inexact: list[str] = []
        self.damaged: tuple[int, ...] = ()
        self._fd: int | None = None
        self._size = 0

    @classmethod
    def open(cls, folder: Path | str, recipe: dict[str, Any], environment: dict[str, Any] | None = None) -> "Run":
        """Create the run, or go on with it: the half-written is removed, a torn last row is cut off, and this session is noted.

        Args:
            folder: the run's own folder; made if need be.
            recipe: everything needed to run it again, as a JSON-ready tree; written once, and the same whenever the run is reopened.
            environment: this session (`records.environment.environment()`), appended to environment.json unless the run is finished.

        Raises:
            Busy: another live process trains this run.
            ValueError: the folder holds another recipe (the message says what differs), or a damaged recipe or result.
            DiskError: the disk is full, read-only or broken.
        """
        folder = Path(folder)
        recipe = plain(recipe, "recipe")
        with explained("the run folder", folder, 1, "nothing was changed."):
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder)
        try:
            sweep(folder, everyone=True)
            sweep(folder / "checkpoints", everyone=True)
            _settle_recipe(folder / "recipe.json", recipe)
            run = cls(folder, lock)
            if run.finished:
                run._open_finished()
            else:
                run._open_log()
                run._note_session(plain(environment or {}, "environment"))
        except BaseException:
            lock.release()
            raise
        return run

    def row(self, step: Step | None = None, /, **values: Any) -> None:
        """Append one row: the counters and seconds of `step` (if given), then `values`.

        Values are numbers (NaN and infinities included), strings, bools, None and flat lists of numbers; scalars and vectors of torch and
        NumPy are converted. The row is in the kernel's hands when this returns, so a kill cannot take it; `sync` makes it survive a power cut.

        Raises:
            ValueError: the run is finished or closed, a value is of another type, or its name is taken.
            DiskError: the disk refused; the log stays readable and the same row may be tried again.
        """
        if self._fd is None or not self._lock.held:
            state = "finished" if self.finished else "closed"
            raise ValueError(f"{self.folder} is {state} and takes no more rows: open it again, or give the new run another folder.")
        body: dict[str, Any] = {"seq": self.rows}
        if step is not None:
            for name in STEP:
                body[name] = cell(getattr(step, name), name)
        for name, value in values.items():
            if name in body or name in TAKEN:
                raise ValueError(f"{name} is a name that every row already has: choose another.")
            body[name] = cell(value, name)
        self._append(seal(body))
        self.rows += 1

    def truncate(self, rows: int) -> None:
        """Cut the log back to its first `rows` rows, as a checkpoint taken then needs it; missing ones stay missing and are in `damaged`."""
        if self._fd is None:
            raise ValueError(f"{self.folder} is finished or closed: its rows cannot be cut.")
        if type(rows) is not int or rows < 0:
            raise ValueError(f"rows must be a whole number >= 0, got {rows!r}: write the `run.rows` that the checkpoint was taken at.")
        log = parse((self.folder / "rows.jsonl").read_bytes())
        kept = [end for row, end in zip(log.rows, log.ends, strict=True) if row["seq"] < rows]
        self._size = kept[-1] if kept else 0
        os.ftruncate(self._fd, self._size)
        self.damaged = tuple(sorted({*(seq for seq in log.damaged if seq < rows), *range(log.next, rows)}))
        self.rows = rows

    def sync(self) -> None:
        """Make all rows durable (one fsync, some milliseconds); `checkpoint.save` and `finish` do it for you."""
        if self._fd is not None:
            with explained("the log", self.folder / "rows.jsonl", 0, "rows up to the last sync are safe."):
                os.fsync(self._fd)

    def finish(self, result: dict[str, Any], to_parquet: bool | None = None) -> None:
        """Write the result: afterwards the run is finished and takes no more rows.

        Args:
            result: a JSON-ready tree, NaN and infinities allowed.
            to_parquet: whether the log becomes rows.parquet; by default if it is longer than 1 MiB, undamaged, and pyarrow is installed.
        """
        if self._fd is None:
            raise ValueError(f"{self.folder} is already finished or closed: a result is written once.")
        body = {"result": plain(result, "result"), "rows": self.rows, "parquet": None}
        self.sync()
        if to_parquet is None:
            to_parquet = self._size >= PARQUET_FROM and parquet.available()
        if to_parquet and not self.damaged:
            body["parquet"] = parquet.write(self.folder / "rows.parquet", parse((self.folder / "rows.jsonl").read_bytes()).rows)
        replace(self.folder / "result.json", seal(body))
        self.finished = True
        os.close(self._fd)
        self._fd = None
        if body["parquet"]:
            (self.folder / "rows.jsonl").unlink()

    def close(self) -> None:
        """Release the folder; rows stay, and the run can be opened again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        """One write, so that a kill leaves all or a torn end; what the disk took of a refused row is cut off again."""
        assert self._fd is not None
        path = self.folder / "rows.jsonl"
        with explained("a row of", path, len(line), "all earlier rows are intact."):
            try:
                if os.write(self._fd, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                raise
        self._size += len(line)

    def _open_log(self) -> None:
        (self.folder / "rows.parquet").unlink(missing_ok=True)  # begun by a `finish` that was killed; the log is the truth
        path = self.folder / "rows.jsonl"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        with explained("the log", path, 1, "all rows are intact."):
            self._fd = os.open(path, flags, 0o644)
            try:
                log = parse(path.read_bytes())
                self._size = log.ends[-1] if log.ends else 0
                os.ftruncate(self._fd, self._size)
                fsync_folder(self.folder)
            except BaseException:
                os.close(self._fd)
                self._fd = None
                raise
        self.rows, self.damaged = log.next, tuple(seq for seq in log.damaged if seq < log.next)

    def _open_finished(self) -> None:
        body = unseal((self.folder / "result.json").read_bytes().rstrip(b"\n"))
        if body is None:
            raise ValueError(f"{self.folder / 'result.json'} is damaged: remove the file to go on from the last checkpoint.")
        self.rows = body["rows"]
        if body["parquet"] and (self.folder / "rows.parquet").exists():
            (self.folder / "rows.jsonl").unlink(missing_ok=True)  # left by a `finish` that was killed after its result

    def _note_session(self, session: dict[str, Any]) -> None:
        path = self.folder / "environment.json"
        sessions, found = [], []
        if path.exists():
            try:
                sessions = json.loads(path.read_bytes())
                found = [reason for earlier in sessions for reason in earlier.get("inexact", [])]
            except (ValueError, AttributeError, TypeError):
                sessions, found = [], ["environment.json was damaged"]
        if sessions:
            found += differences(sessions[0], session)
        self.inexact = list(dict.fromkeys(found))
        sessions.append({**session, "inexact": self.inexact})
        replace(path, (json.dumps(sessions, indent=1) + "\n").encode())


def _settle_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Write the recipe of a new run; hold a reopened one to its own."""
    if not path.exists():
        replace(path, (json.dumps(recipe, indent=1) + "\n").encode())
        return
    try:
        there = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: give the run another folder, or remove this one.") from error
    if isinstance(there, dict) and compact(there, ordered=False) == compact(recipe, ordered=False):
        return
    there = there if isinstance(there, dict) else {}
    absent = object()
    names = [n for n in dict.fromkeys((*there, *recipe)) if _text(there.get(n, absent)) != _text(recipe.get(n, absent))]
    changes = "; ".join(f"{name} is {_text(there.get(name, absent))} there and {_text(recipe.get(name, absent))} here" for name in names)
    raise ValueError(f"{path.parent} holds another recipe ({changes}): give this run a folder of its own.")


def _text(value: Any) -> str:
    return "absent" if type(value) is object else compact(value, ordered=False)

"""Where the numbers of a watched run go: a list, a file of JSON lines that survives a kill, TensorBoard, or a function."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velodrome.probes.estimate import Estimate


@dataclass(frozen=True)
class Row:
    """One number: `name` is "probe/what", `step` the step it belongs to, `seconds` what the whole measurement took (all its rows say the same)."""

    step: int
    name: str
    estimate: Estimate
    seconds: float

    @property
    def value(self) -> float:
        """The number; NaN where there is none, and the estimate's note says why."""
        return self.estimate.value

    def plain(self) -> dict[str, Any]:
        """For JSON: step, name, value, error, low, high, unit, kind, n, note, seconds; what is not a finite number is None."""
        e = self.estimate.plain()
        e.pop("cost")
        return {"step": self.step, "name": self.name, **e, "seconds": round(self.seconds, 6)}


class Function:
    """A function that is given the rows of each measurement."""

    def __init__(self, call: Callable[[Sequence[Row]], Any]):
        self.call = call

    def __call__(self, rows: Sequence[Row]) -> None:
        """Hand on."""
        self.call(rows)

    def close(self) -> None:
        """Nothing is held."""


class JsonLines:
    """One line a row, appended; the rows of a step in one write, so that a kill leaves all of them or a torn end, which is cut off when it is opened again.

    `start` is the step at which a run goes on: rows from there on are cut, because they will come again. ValueError for a file with rows of later steps
    where `start` is 0: nothing is overwritten by mistake.
    """

    def __init__(self, path: Path, start: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            row = _read(line)
            if row is None or row["step"] >= start:
                break
            kept += len(line)
        if start == 0 and path.exists() and _read(path.read_bytes().splitlines()[0] if path.stat().st_size else b"") is not None:
            raise ValueError(
                f"{path} holds the rows of an earlier run: give another file, or start=…, the step at which that run is resumed."
            )
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.ftruncate(self.fd, kept)

    def __call__(self, rows: Sequence[Row]) -> None:
        """Append."""
        os.write(self.fd, "".join(json.dumps(r.plain(), allow_nan=False) + "\n" for r in rows).encode())

    def close(self) -> None:
        """Release the file."""
        os.close(self.fd)


def read(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines as dicts, up to the first that is torn; an empty list where there is no file."""
    found = []
    for line in Path(path).read_bytes().splitlines(keepends=True) if Path(path).exists() else ():
        row = _read(line)
        if row is None:
            break
        found.append(row)
    return found


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class TensorBoard:
    """Scalars over steps: the value, and name/low and name/high where there is an interval. Of a SummaryWriter, which stays open if it was given."""

    def __init__(self, writer: Any, own: bool = False):
        self.writer, self.own = writer, own

    def __call__(self, rows: Sequence[Row]) -> None:
        """Write those that are numbers."""
        for r in rows:
            if r.estimate.identified:
                self.writer.add_scalar(r.name, r.value, r.step)
                if r.estimate.kind != "exact":
                    self.writer.add_scalar(f"{r.name}/low", r.estimate.low, r.step)
                    self.writer.add_scalar(f"{r.name}/high", r.estimate.high, r.step)

    def close(self) -> None:
        """Close the writer that was made here."""
        if self.own:
            self.writer.close()


def sinks(given: Any, start: int) -> list[Any]:
    """A path ending in .jsonl, another path (a folder for TensorBoard), a SummaryWriter, a function of rows, several of these, or None."""
    if given is None:
        return []
    if isinstance(given, str | Path):
        path = Path(given)
        return [JsonLines(path, start) if path.suffix == ".jsonl" else TensorBoard(_writer(path), own=True)]
    if callable(getattr(given, "add_scalar", None)):
        return [TensorBoard(given)]
    if callable(given):
        return [Function(given)]
    if isinstance(given, Iterable):
        return [s for g in given for s in sinks(g, start)]
    raise ValueError(f'sink must be a path, a SummaryWriter or a function of rows, got {type(given).__name__}: write sink="watch.jsonl".')


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            f'sink {folder} is a TensorBoard folder, which needs: pip install "velodrome[tensorboard]"; or write "{folder}.jsonl".'
        ) from None
    writer: Any = SummaryWriter
    return writer(str(folder))

"""Runs of a race from their folders, fast: the evaluated curves of finished runs are kept in the user's cache folder, so that only new ones are read.

A run's curve is taken from there while result.json and its rows have the size and the time of change they had when every row's checksum was verified.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from velodrome.bench.targets import Watched
from velodrome.data.folder import cache as cache_folder
from velodrome.records.disk import replace as write_whole
from velodrome.records.read import Record
from velodrome.reports import collect
from velodrome.reports.race import AXES

NAMES = (*AXES, "valid")
Columns = dict[str, Any]  # arrays of float64
Stamp = list[int]
FORMAT = 1  # of the file; another number is read anew


@dataclass(frozen=True)
class Measured:
    """A finished run and its curve: `columns` has steps, examples, flops, seconds and valid, one value per evaluation."""

    record: Record
    columns: Columns

    def watched(self) -> Watched:
        """As the score wants it."""
        r, c = self.record.recipe, self.columns
        costs = {axis: c[axis] for axis in AXES}
        name, early = collect.named(self.record), collect.early(self.record)
        return Watched(r["workload"], name, r["seed"], r["targets"], costs, c["valid"], r["steps"], r.get("trial"), early)


def measured(root: Path, records: Sequence[Record]) -> tuple[list[Measured], list[str]]:
    """The finished runs that can be measured and compared (`collect.one_version`), and notes on those left out, which diverged and are not exact."""
    kept = _load(root)
    found: dict[str, tuple[Stamp, Columns]] = {}
    fit: list[Record] = []
    unfit: dict[str, list[str]] = {}
    for r in records:
        stamp = _stamp(r)
        known = kept.get(r.path.name)
        if stamp is not None and known is not None and known[0] == stamp:
            found[r.path.name] = known
            fit.append(r)
            continue
        copy = replace(r)  # a record keeps the rows it has read
        reason = collect.flaw(copy)
        if reason is not None:
            unfit.setdefault(reason, []).append(r.path.name)
        elif r.finished and stamp is not None:
            c = collect.curve(copy)
            found[r.path.name] = stamp, {name: np.asarray(getattr(c, name), dtype=np.float64) for name in NAMES}
            fit.append(r)
    if any(name not in kept or kept[name][0] != stamp for name, (stamp, _) in found.items()):
        _save(root, found)
    notes = [f"{collect.listed(names)} {'is' if len(names) == 1 else 'are'} left out: {reason}" for reason, names in unfit.items()]
    chosen, dropped = collect.one_version(fit)
    if not chosen:
        more = " ".join(["", *notes])
        raise ValueError(f"there are no finished runs to score: run `velodrome race` first, or name the folder that holds them.{more}")
    notes += [*dropped, *collect.diverged(chosen), *collect.inexact(chosen)]
    return [Measured(r, found[r.path.name][1]) for r in chosen], notes


def _stamp(r: Record) -> Stamp | None:
    """Size, time of change and file number of the result and the rows; None where one of them is missing."""
    rows = "rows.jsonl" if r.digest is None else "rows.parquet"
    try:
        told = [os.stat(f"{r.path}/{name}") for name in ("result.json", rows)] if r.finished else []
    except OSError:
        return None
    return [x for s in told for x in (s.st_size, s.st_mtime_ns, s.st_ino)] or None


def _place(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / "curves" / f"{name}.npz"


def _load(root: Path) -> dict[str, tuple[Stamp, Columns]]:
    """What was kept of this folder; nothing where there is none or it cannot be read."""
    try:
        with np.load(io.BytesIO(_place(root).read_bytes()), allow_pickle=False) as file:
            index, values = json.loads(file["index"].tobytes()), file["values"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return {}
    if index.get("format") != FORMAT or values.shape != (len(NAMES), index.get("rows")):
        return {}
    return {name: (stamp, dict(zip(NAMES, values[:, begin:end], strict=True))) for name, (stamp, begin, end) in index["runs"].items()}


def _save(root: Path, found: dict[str, tuple[Stamp, Columns]]) -> None:
    """Keep the curves; a cache folder that cannot be written costs time, nothing else."""
    begin, runs = 0, {}
    for name, (stamp, columns) in found.items():
        end = begin + len(columns["valid"])
        runs[name] = stamp, begin, end
        begin = end
    values = np.stack([np.concatenate([c[name] for _, c in found.values()]) for name in NAMES])
    index = json.dumps({"format": FORMAT, "rows": begin, "runs": runs}).encode()
    sink = io.BytesIO()
    np.savez(sink, index=np.frombuffer(index, np.uint8), values=values)
    place = _place(root)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, sink.getvalue())

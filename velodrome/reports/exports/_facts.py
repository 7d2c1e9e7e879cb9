"""What every format is told of a run: its numbers under the usual names, its settings, how it ended, when it began; and what was exported before."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as copied
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from velodrome.records.disk import replace
from velodrome.records.encoding import NONFINITE
from velodrome.records.log import Log
from velodrome.records.read import Record
from velodrome.reports import collect

VERSION = 1  # of what is written; exports of another one are written anew
RECEIPT = "velodrome-export.json"
TAGS = {
    "loss": "train/loss",
    "valid": "valid/loss",
    "seconds": "time/seconds",
    "data_seconds": "time/data_seconds",
    "gradient_seconds": "time/gradient_seconds",
    "optimizer_seconds": "time/optimizer_seconds",
}
NOT_SCALARS = ("seq", "t", "crc")
EXACT = 2**53  # integers beyond are no longer exact as floats, and some readers refuse them as integers
Done = Literal["written", "replaced", "there already"]


@dataclass(frozen=True)
class Exported:
    """One run, where it is now, how many rows it has there and how many can no longer be read, and whether it was new."""

    run: str
    path: Path
    rows: int
    damaged: int
    done: Done


def exported(record: Record, path: Path, log: Log, done: Done) -> Exported:
    """What was done with a run and its log."""
    return Exported(record.path.name, path, len(log.rows), len(log.damaged), done)


def check_folder(place: Path) -> None:
    """ValueError where this is no folder that can be written to; nothing is made."""
    nearest = next(p for p in (place, *place.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise ValueError(f"runs are written to a folder, got {place}, and {nearest} is a file: name another.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{nearest} cannot be written to: name another folder than {place}.")


def number(value: Any) -> float | int | None:
    """A cell as a number, NaN and infinities included; None for what is none."""
    if isinstance(value, str):
        return NONFINITE.get(value)
    if not isinstance(value, int | float):
        return None
    return float(value) if abs(value) > EXACT else value + 0  # True is 1


def tag(column: str) -> str:
    """The usual name of a column: train/loss, valid/loss, valid/accuracy, time/seconds; others keep their own."""
    measured = column.startswith("valid_") and column != "valid_loss"
    return TAGS.get(column) or (f"valid/{column.removeprefix('valid_')}" if measured else column)


def scalars(row: Mapping[str, Any]) -> dict[str, float | int]:
    """The numbers of a row by their tags; a list of numbers is name/0, name/1, …"""
    found: dict[str, float | int] = {}
    for column, value in row.items():
        if column in NOT_SCALARS:
            continue
        parts = {f"{tag(column)}/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {tag(column): value}
        found |= {name: x for name, part in parts.items() if (x := number(part)) is not None}
    return found


def step(row: Mapping[str, Any]) -> int:
    """The step that a row describes; its place in the log where it does not say."""
    t = number(row.get("t"))
    return int(t) if t is not None and t - t == 0 else int(row["seq"])


def seconds(row: Mapping[str, Any]) -> float:
    """Of training until this row; 0 where it does not say."""
    value = number(row.get("seconds"))
    return float(value) if value is not None and value - value == 0 else 0.0


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a tree by their path, joined by "_" as in `velodrome query`."""
    if not isinstance(value, dict):
        return {name or "value": value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{name}_{key}" if name else str(key)).items()}


def settings(record: Record) -> dict[str, int | float | bool | str]:
    """The recipe's leaves as numbers, bools and text; lists as JSON, and what is None is left out."""
    return {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in flat(record.recipe).items() if v is not None}


def ending(record: Record) -> dict[str, Any]:
    """The result's leaves, and what it cost to reach the last target where it was reached; nothing for a run that is not finished."""
    if not record.finished:
        return {}
    told = {k: v for k, v in flat(record.result or {}).items() if v is not None}
    copy = copied(record)  # a record keeps the rows it has read
    if collect.flaw(copy) is not None:
        return told
    hit = collect.trial(copy, collect.curve(copy))
    costs = {f"to_target/{axis}": c for axis, c in hit.cost.items()} if hit.reached else {}
    return {**told, "reached": hit.reached, **costs}


def state(record: Record) -> str:
    """finished, diverged, or unfinished."""
    if not record.finished:
        return "unfinished"
    return str((record.result or {}).get("state", "finished"))


def began(record: Record) -> float:
    """Seconds since 1970 at which its first session began; the time of its recipe's file where that is not known."""
    try:
        return datetime.fromisoformat(record.environment[0]["time"]).astimezone(UTC).timestamp()
    except (IndexError, KeyError, TypeError, ValueError):
        return (record.path / "recipe.json").stat().st_mtime


def fingerprint(record: Record) -> str:
    """Of everything that an export is made from: equal if and only if nothing has changed since."""
    told = hashlib.sha256(f"{VERSION}".encode())
    for name in ("recipe.json", "result.json", "rows.jsonl"):
        data = (record.path / name).read_bytes() if (record.path / name).exists() else b""
        told.update(b"%d " % len(data) + data)
    told.update((record.digest or "").encode())
    return told.hexdigest()


def receipt(folder: Path) -> str | None:
    """The fingerprint of what was exported whole to this folder; None where nothing was."""
    try:
        return str(json.loads((folder / RECEIPT).read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sign(folder: Path, record: Record, fingerprint: str) -> None:
    """Say that this folder holds the run whole; written last."""
    told = {"run": record.path.name, "state": state(record), "fingerprint": fingerprint}
    replace(folder / RECEIPT, (json.dumps(told, indent=1) + "\n").encode())


def unsign(folder: Path) -> bool:
    """Before it is changed: it holds nothing whole until it is signed again. Whether it did."""
    there = (folder / RECEIPT).exists()
    (folder / RECEIPT).unlink(missing_ok=True)
    return there

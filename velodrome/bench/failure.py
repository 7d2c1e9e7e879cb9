"""Failures as results: what a run did that ended it, in a word and in one sentence, and what of it goes into result.json. Imports no torch.

A failed run is finished: it is not tried again until its folder is removed, and it counts as a miss. Its costs are those of its rows; targets that it had
reached before count, as they do for a run that diverges, unless it wrote the data: then nothing that it measured means anything.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from velodrome.bench.limits import OverTime

KINDS = {
    "crash": "raised an error, or its process was ended by one",
    "over time": "used up its seconds, or hung",
    "memory": "asked for more memory than a run may have",
    "data": "wrote the data that all runs share",
    "exit": "left the process",
}
NOTE = 300  # characters of an error's own words


@dataclass(frozen=True)
class Failure:
    """`kind` is one of KINDS, `note` one sentence."""

    kind: str
    note: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind


def failure(error: BaseException, limit: float | None = None) -> Failure:
    """What an error that came out of a run says about it; `limit` are the seconds it had."""
    words = " ".join(str(error).split())[:NOTE].rstrip(".")
    name = type(error).__name__
    if name == "DataWritten":
        return Failure("data", f"{words[:1].upper()}{words[1:]}.")
    if isinstance(error, OverTime):
        return Failure(
            "over time", f"Not done within {limit:,.0f} s: hung, or far slower than the reference." if limit else "Not done in time."
        )
    if isinstance(error, SystemExit):
        return Failure("exit", f"Called sys.exit({error.code!r}).")
    no_memory = "can't allocate memory" in words or "bad_alloc" in words or name == "OutOfMemoryError"
    if isinstance(error, MemoryError) or no_memory or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Failure("memory", f"Out of memory ({name}{f': {words[:120]}' if words else ''}).")
    return Failure("crash", f"{name}: {words}." if words else f"{name}.")


def of(result: Mapping[str, Any] | None) -> Failure | None:
    """The failure that a result.json tells of; None for a run that ended well, diverged, or is not finished."""
    if not result or result.get("state") != "failed":
        return None
    kind = str(result.get("failure"))
    return Failure(kind if kind in KINDS else "crash", str(result.get("note")))

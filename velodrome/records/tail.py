"""A file of JSON lines read as it grows: each time only what was appended, whole lines only, whatever cuts it back, replaces or removes it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from velodrome.records.encoding import unseal

CHUNK = 4 << 20  # bytes a call reads at most, so that one long log does not hold up the others
CHECKED = 32  # bytes before our place that must still be what we read: more than a seal, which no two lines share but by chance


def lines(line: bytes) -> dict[str, Any] | None:
    """The object of an unsealed line (watch.jsonl), or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass
class Tail:
    """Our place in a growing file. `decode` makes an object of a line, or None of a damaged one, which is counted and passed over.

    `behind` says that there is more to read at once. A resumed run cuts its log back to its checkpoint, and a run that is removed may come
    again: if the bytes before our place are no longer those that were read, everything is read anew.
    """

    path: str
    decode: Callable[[bytes], dict[str, Any] | None] = unseal
    offset: int = 0
    damaged: int = 0
    behind: bool = False
    before: bytes = b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Objects of the lines that were completed since the last call, and whether they replace all that were read before.

        A last line without its end is left for the next call. A file that is gone is as good as an empty one.
        """
        data, anew = self._appended()
        start = len(self.before)
        end = data.rfind(b"\n") + 1
        self.behind = len(data) - start == CHUNK
        if end <= start:
            if self.behind:  # a line longer than a chunk is none of ours
                self.offset, self.before = self.offset + CHUNK, data[-CHECKED:]
            return [], anew
        self.offset, self.before = self.offset + end - start, data[max(0, end - CHECKED) : end]
        decoded = [self.decode(line) for line in data[start : end - 1].split(b"\n")]
        found = [row for row in decoded if row is not None]
        self.damaged += len(decoded) - len(found)
        return found, anew

    def _appended(self) -> tuple[bytes, bool]:
        """The bytes from just before our place, and whether it was lost and all is read anew."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset - len(self.before))
                data = file.read(len(self.before) + CHUNK)
                if data.startswith(self.before):
                    return data, False
                self._forget()
                file.seek(0)
                return file.read(CHUNK), True
        except OSError:
            anew = self.offset > 0
            self._forget()
            return b"", anew

    def _forget(self) -> None:
        self.offset, self.damaged, self.before, self.behind = 0, 0, b"", False

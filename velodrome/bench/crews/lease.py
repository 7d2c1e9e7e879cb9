"""Claims where there are no locks: numbered leases with a heartbeat, one object per claim.

Claim n is created by an operation that fails if it exists, so one of two rivals gets it; its owner rewrites it every BEAT seconds, and after LEASE
seconds without one the next may create claim n + 1. The newest claim holds, and whoever has lost it learns that before it writes again. Expiry
compares clocks of two machines: they should agree within half of LEASE. Wrong clocks, or a storage that cannot create exclusively, cost work done
twice, never results: every session writes under the number of its claim.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from velodrome.bench.crews.objects import Objects
from velodrome.records.lock import Busy

LEASE = 60.0
BEAT = 10.0


class Leases:
    """This process's claims on runs under one URL."""

    def __init__(self, objects: Objects, clock: Callable[[], float] = time.time):
        self.objects, self.clock = objects, clock
        self.owner = f"pid {os.getpid()} on {socket.gethostname()}"
        self.held: dict[str, int] = {}
        self.ended, self.writing = threading.Event(), threading.Lock()
        self.heart = threading.Thread(target=self._beat, daemon=True)  # begun here: no algorithm is to be blamed for the thread
        self.heart.start()

    def claim(self, folder: str) -> int:
        """The number of the claim; Busy if another is alive or quicker."""
        newest = self.newest(folder)
        if (holder := self.holder(folder)) is not None:
            raise Busy(Path(folder), holder)
        if not self.objects.create(self._name(folder, newest + 1), self._body()):
            raise Busy(Path(folder), "another worker")
        self.held[folder] = newest + 1
        return newest + 1

    def hold(self, folder: str, number: int) -> None:
        """Busy if the run has been taken over since it was claimed."""
        if self.newest(folder) > number:
            raise Busy(Path(folder), self.holder(folder) or "another worker, which took it over")

    def release(self, folder: str, number: int) -> None:
        """Let the next worker in."""
        with self.writing, contextlib.suppress(OSError):
            self.held.pop(folder, None)
            self.objects.write(self._name(folder, number), self._body(0.0))

    def holder(self, folder: str) -> str | None:
        """Who holds the newest claim, or None if nobody does; one that cannot be read is being written."""
        newest = self.newest(folder)
        data = self.objects.read(self._name(folder, newest)) if newest else None
        if data is None:
            return None
        try:
            body = json.loads(data)
            age = abs(self.clock() - body["at"])
        except (ValueError, KeyError, TypeError):
            return "another worker"
        return None if age > LEASE else f"{body['owner']}, heard of {age:.0f} s ago"

    def newest(self, folder: str) -> int:
        """The number of the newest claim, 0 for none."""
        numbers = [name.removesuffix(".json") for name in self.objects.names(f"{folder}/claims")]
        return max((int(n) for n in numbers if n.isdigit()), default=0)

    def close(self) -> None:
        """Stop the heart and release everything."""
        self.ended.set()
        for folder, number in list(self.held.items()):
            self.release(folder, number)

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            for folder, number in list(self.held.items()):
                with self.writing, contextlib.suppress(OSError):  # a storage that is away for a moment; the lease outlives some beats
                    if folder in self.held:
                        self.objects.write(self._name(folder, number), self._body())

    def _body(self, at: float | None = None) -> bytes:
        return json.dumps({"owner": self.owner, "at": self.clock() if at is None else at}).encode()

    @staticmethod
    def _name(folder: str, number: int) -> str:
        return f"{folder}/claims/{number:06d}.json"

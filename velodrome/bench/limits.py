"""Limits of a run: seconds on the wall and bytes of memory while it has its turn. Whoever hangs or hoards ends its own run only. Imports no torch."""

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
SWALLOWED = 1.0  # seconds until a guest that has caught the exception gets it again
COMPILING = 600.0  # seconds that a first turn may take where models are compiled


class OverTime(BaseException):
    """The run has used up its seconds. No `Exception`, so that a guest that retries on every error does not catch it."""


@dataclass(frozen=True)
class Limits:
    """What a run may take: generous, because they are there to end runs that hang, not to judge slow ones.

    A whole run gets `times` the reference's seconds on its workload, but at least `run_seconds`, as wall-clock time of its own turns; one turn (from
    an evaluation to the next, so no step can be longer) ten times its even share of that, but at least `turn_seconds`. `memory` is how many bytes a run
    may add to its process; None: half of the worker's share of what was free when it started. `grace` are the seconds between asking (an exception in the
    guest's code) and ending the process.
    """

    times: float = 20.0
    run_seconds: float = 120.0
    turn_seconds: float = 60.0
    memory: int | None = None
    grace: float = 10.0

    def __post_init__(self) -> None:
        for name in ("times", "run_seconds", "turn_seconds", "grace"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"the limit {name} must be a number above 0, got {value}: write {name}={getattr(Limits, name)}.")
        if self.memory is not None and self.memory < 1:
            raise ValueError(
                f"the limit memory must be a number of bytes above 0, got {self.memory}: leave it out for a share of what is free."
            )

    def run(self, reference_seconds: float) -> float:
        """Seconds for a whole run, from what the reference needs for its budget."""
        return max(self.run_seconds, self.times * reference_seconds)

    def turn(self, reference_seconds: float, turns: int, compiles: bool = False) -> float:
        """Seconds for one of so many turns."""
        floor = max(self.turn_seconds, COMPILING) if compiles else self.turn_seconds
        return max(floor, 10 * self.run(reference_seconds) / turns)


class Alarm:
    """OverTime in the main thread when a turn has lasted too long, and again every second; the process ends one to three times `grace` seconds
    later, also in a call that never returns.

    Nothing outside the main thread, where no signal arrives; without SIGALRM (Windows) only the second half. The end of the process is put off once in
    `grace` seconds and not every turn, because it takes a thread.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.on, self.deadline = False, 0.0
        self.here = threading.current_thread() is threading.main_thread()
        self.alarms = self.here and hasattr(signal, "SIGALRM")
        self.before = signal.signal(signal.SIGALRM, self._late) if self.alarms else None

    def _late(self, *_: Any) -> None:
        if self.on:
            raise OverTime

    @contextlib.contextmanager
    def within(self, limit: float) -> Iterator[None]:
        """One turn of at most `limit` seconds."""
        if not self.here:
            yield
            return
        needed = time.monotonic() + limit + self.grace
        if not needed <= self.deadline <= needed + 2 * self.grace:
            faulthandler.dump_traceback_later(limit + 2 * self.grace, exit=True)  # a thread of C: it needs nothing that a guest may hold
            self.deadline = needed + self.grace
        self.on = True
        if self.alarms:
            signal.setitimer(signal.ITIMER_REAL, limit, SWALLOWED)
        try:
            yield
        finally:
            self.on = False
            if self.alarms:
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    def rest(self) -> None:
        """No turn for a while: nothing is pending."""
        if self.here:
            faulthandler.cancel_dump_traceback_later()
            self.deadline = 0.0

    def close(self) -> None:
        """As before."""
        self.rest()
        if self.alarms:
            signal.signal(signal.SIGALRM, self.before)


@contextlib.contextmanager
def memory(limit: int | None) -> Iterator[None]:
    """Allocations fail once this process has mapped `limit` more bytes of private memory than now; nothing where the kernel does not count (not Linux)."""
    now = mapped()
    if limit is None or now is None or resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    ours = max(now + limit, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (ours if hard == resource.RLIM_INFINITY else min(ours, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def mapped() -> int | None:
    """Bytes of private writable memory of this process, what RLIMIT_DATA is about; None where the kernel does not tell."""
    try:
        fd = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None
    try:
        return int(os.read(fd, 200).split()[5]) * PAGE
    finally:
        os.close(fd)


def free() -> int | None:
    """Bytes that new work may take without swapping: the machine's, or less where a control group has a limit; None where unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(found)) if found else None


def killed_for_memory() -> int:
    """How often the kernel has killed a process because memory had run out, since it started; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0

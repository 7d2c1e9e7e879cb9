"""A run as a guest of its process: what it may take while it has its turn, what it prints, what it leaves behind, and what that cost.

A race trains algorithms that nobody has read. They take turns in one process, so whatever one changes there would be the next one's: settings are put
back, prints are caught, seconds and bytes are rationed, its processes are ended with it. What cannot be put back (threads, a full heap,
a half-done call) is a reason to go on in a new process, which `spoilt` says.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from velodrome.bench import limits
from velodrome.bench.energy import Meter
from velodrome.bench.kin import children, has_children
from velodrome.bench.limits import Alarm, Limits
from velodrome.bench.output import Output
from velodrome.bench.settings import Settings
from velodrome.bench.workload import Workload


class Host:
    """What all guests of a process share: the alarm, the meter, the limits, and the share of memory of this one of `workers` processes."""

    def __init__(self, plan: dict[str, Any]):
        self.limits = Limits(**plan.get("limits", {}))
        self.device = str(plan["setting"].get("device", "cpu"))
        self.compiles = bool(plan["setting"].get("compile"))
        self.settings = Settings()
        self.alarm, self.meter = Alarm(self.limits.grace), Meter(self.device)
        free = limits.free()
        share = None if free is None else free // (2 * plan.get("workers", 1))
        self.memory = None if self.device != "cpu" else self.limits.memory or share
        self.threads: set[threading.Thread] = set(threading.enumerate())
        self.children: set[int] = set(children())


class Guest:
    """One run. `turn()` is entered whenever it is on; `leave()` at its end says what it left running; `result()` is its part of result.json."""

    def __init__(self, host: Host, workload: Workload, folder: Path):
        self.host, self.output, self.path = host, Output(), folder / "output.txt"
        self.limit = host.limits.run(workload.seconds)
        self.turn_limit = host.limits.turn(workload.seconds, workload.evaluations, host.compiles)
        self.cuda = host.device if host.device.startswith("cuda") else None
        self.spent, self.grown, self.joules = 0.0, 0, 0.0
        self.retained = self.peak = 0
        self.threads: set[threading.Thread] = set()
        self.children: set[int] = set()
        self.spoilt = False
        self.lifted = contextlib.ExitStack()

    @property
    def seconds(self) -> float:
        """What its next turn may last."""
        return max(0.01, min(self.turn_limit, self.limit - self.spent))

    @property
    def exceeded(self) -> float:
        """The limit that its present turn would hit first: of the turn or of the whole run."""
        return self.turn_limit if self.turn_limit < self.limit - self.spent else self.limit

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Limits and prints while it is on; afterwards what it has spent and started."""
        h, began, before, joules = self.host, time.perf_counter(), limits.mapped(), self.host.meter.read()
        allowed = None if h.memory is None else max(0, h.memory - self.grown)
        allocated = self._reset_peak()
        try:
            with self.output.captured(self.path), contextlib.ExitStack() as self.lifted:
                self.lifted.enter_context(limits.memory(allowed))
                self.lifted.enter_context(h.alarm.within(self.seconds))
                yield
        finally:
            self.spent += time.perf_counter() - began
            after, now = limits.mapped(), h.meter.read()
            if before is not None and after is not None:
                self.grown = max(0, self.grown + after - before)
            if joules is not None and now is not None:
                self.joules += now - joules
            self._read_peak(allocated)
            h.settings.put_back()  # what the run has not told of, because it did not get to its evaluation
            self._found()

    def lift(self) -> None:
        """No limits any more in this turn: the run is over, and what it did is being recorded."""
        self.lifted.close()

    def leave(self) -> list[str]:
        """End the processes that it has started; notes on them and on threads, which nobody can end."""
        self._found()
        notes = []
        left = [pid for pid in self.children if pid in set(children())]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)
        running = [t for t in self.threads if t.is_alive()]
        if left:
            notes.append(
                f"left {len(left)} process{'' if len(left) == 1 else 'es'} running, which {'was' if len(left) == 1 else 'were'} ended"
            )
        if running:
            notes.append(f"left {len(running)} thread{'' if len(running) == 1 else 's'} running")
            self.spoilt = True
        return notes

    def result(self) -> dict[str, Any]:
        """Wall-clock seconds of its turns, joules (None without a counter) and bytes on the GPU (None without one)."""
        return {
            "wall_seconds": self.spent,
            "joules": self.joules if self.host.meter.source else None,
            "joules_of": self.host.meter.source,
            "device_bytes": self.peak if self.cuda else None,
        }

    def _reset_peak(self) -> int:
        if self.cuda is None:
            return 0
        torch.cuda.reset_peak_memory_stats(self.cuda)
        return torch.cuda.memory_allocated(self.cuda)

    def _read_peak(self, before: int) -> None:
        """The highest point of its own: what it had kept, and what this turn added."""
        if self.cuda is not None:
            self.peak = max(self.peak, self.retained + torch.cuda.max_memory_allocated(self.cuda) - before)
            self.retained += torch.cuda.memory_allocated(self.cuda) - before

    def _found(self) -> None:
        """Threads and processes that are new since the last look are its own: nobody else was on."""
        new = set(threading.enumerate()) - self.host.threads
        if new:
            self.threads |= new
            self.host.threads |= new
        if has_children():
            born = set(children()) - self.host.children
            self.children |= born
            self.host.children |= born

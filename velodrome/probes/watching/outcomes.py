"""Measurements as they are made: what they cost is charged, numbers go to the sinks, failures are told and counted."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from velodrome.probes.watching.measure import measured, say
from velodrome.probes.watching.meter import Meter
from velodrome.probes.watching.probe import LEAST, Probe, View
from velodrome.probes.watching.sinks import Row

FAILURES = 3  # in a row, after which a probe is given up
KEPT = 100_000  # rows in memory


class Outcomes:
    """`rows` and `log` of a watch; `seconds` and `counts` of each probe; `largest` the part of the batch for which there was memory.

    `took` holds seconds that a probe has cost before it is measured: entering its hooks, copying weights, a step that it slowed down from inside.
    """

    def __init__(self, probes: Sequence[Probe], meter: Meter, out: list[Any]):
        self.probes, self.meter, self.account, self.sinks = {p.name: p for p in probes}, meter, meter.account, out
        self.rows: deque[Row] = deque(maxlen=KEPT)
        self.log: list[tuple[int, str, str]] = []
        self.seconds, self.counts = dict.fromkeys(self.probes, 0.0), dict.fromkeys(self.probes, 0)
        self.largest, self.failures = dict.fromkeys(self.probes, 1.0), dict.fromkeys(self.probes, 0)
        self.took: dict[str, float] = {}

    def refuse(self, t: int, name: str, why: str) -> None:
        """A probe is not measured from now on."""
        self.account.close(name)
        self.log.append((t, name, why))

    def add(self, name: str, seconds: float) -> None:
        """A probe has cost so much already."""
        self.took[name] = self.took.get(name, 0.0) + seconds

    def measure(self, name: str, view: View) -> None:
        """One measurement of a probe, with all that follows from it."""
        began = self.meter.stopwatch.start()
        view.fraction = self.account.fractions[name]
        found, error = measured(self.probes[name], view)
        seconds = self.meter.stopwatch.stop(began) + self.took.pop(name, 0.0)
        self.account.spend(name, seconds, view.t, view.fraction)
        self.seconds[name] += seconds
        self.counts[name] += 1
        self.meter.paid += seconds
        if error is not None:
            self.failed(name, view, error)
        else:
            self.failures[name] = 0
        self._tell([Row(view.t, f"{name}/{key}", estimate, seconds) for key, estimate in found.items()])

    def _tell(self, rows: list[Row]) -> None:
        self.rows.extend(rows)
        for sink in list(self.sinks) if rows else ():
            try:
                sink(rows)
            except Exception as trouble:
                self.sinks.remove(sink)
                say(f"{type(sink).__name__} takes no more rows since step {rows[0].step}: {type(trouble).__name__}: {trouble}")

    def failed(self, name: str, view: View, error: Exception) -> None:
        """A measurement ended with an error: half as many examples where memory was short, the end of the probe after three, or where it refuses."""
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, torch.OutOfMemoryError) and view.size > LEAST:
            self.largest[name] = view.fraction / 2
            self.log.append((view.t, name, f"out of memory with {view.size} examples: half as many from now on"))
            return
        self.failures[name] += 1
        if isinstance(error, ValueError) or self.failures[name] >= FAILURES:
            self.refuse(view.t, name, f"given up: {text}")
        else:
            self.log.append((view.t, name, text))
        if self.failures[name] == 1 and not isinstance(error, ValueError):  # a refusal is no accident
            say(f"{name} could not be measured at step {view.t}: {text}")

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            with suppress(Exception):
                sink.close()
        self.sinks.clear()

"""Live progress of many runs on stderr: a table while a person watches, one plain line per finished run otherwise.

Nothing moves unless stderr is a terminal, TERM is not "dumb" and CI is not set; NO_COLOR is honoured by rich; TQDM_DISABLE and `quiet` silence
everything. A reader that goes away (broken pipe) ends the output, never the race.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from velodrome.reports.console import Terminal
from velodrome.reports.words import MISSING, digits, seconds

STYLES = {  # in the order of the table
    "running": "cyan",
    "failed": "red",
    "diverged": "red",
    "interrupted": "yellow",
    "finished": "green",
    "waiting": "dim",
}
OVER = ("finished", "diverged", "interrupted", "failed")
INTERVAL = 0.25  # seconds between two drawings: 4 Hz


@dataclass(frozen=True)
class _Run:
    workload: str = ""
    algorithm: str = ""
    seed: int | None = None
    state: str = "waiting"
    step: int = 0
    total: int | None = None
    value: float | None = None
    target: float | None = None
    reached: bool | None = None
    forecast: str = ""
    started: float | None = None
    first: int = 0  # a resumed run has steps that took no time in this session
    ended: float | None = None

    def elapsed(self, now: float) -> float | None:
        return None if self.started is None else (now if self.ended is None else self.ended) - self.started

    def remaining(self, now: float) -> float | None:
        """Seconds to the budget at this session's mean rate; None where no step has been seen yet."""
        spent = self.elapsed(now)
        if self.state != "running" or not spent or not self.total or self.step <= self.first:
            return None
        return spent * (self.total - self.step) / (self.step - self.first)

    def metric(self) -> str:
        value = MISSING if self.value is None else digits(self.value)
        return value if self.target is None else f"{value} / {digits(self.target)}{' ✓' if self.reached else ''}"


def _clock(x: float | None) -> str:
    return seconds(None if x is None else round(x, 1))


class Progress:
    """Shows the state of `total_runs` runs. Use it as a context manager and call `update` as often as you like.

    ```python
    with Progress(total_runs=6) as progress:
        progress.update("digits-adamw-0", workload="digits", algorithm="adamw", seed=0, state="running", total=600, target=0.05)
        progress.update("digits-adamw-0", step=10, value=0.4)
        progress.update("digits-adamw-0", state="finished", reached=True)
    ```

    `file` defaults to stderr, `environ` to the process's environment, `clock` to seconds of `time.monotonic`.
    """

    def __init__(
        self,
        total_runs: int,
        *,
        quiet: bool = False,
        file: TextIO | None = None,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        env = os.environ if environ is None else environ
        out = sys.stderr if file is None else file
        self.total_runs = total_runs
        self.silent = quiet or env.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
        self.animated = not self.silent and out.isatty() and env.get("TERM") != "dumb" and env.get("CI", "").lower() in ("", "0", "false")
        self._console = Terminal(file=out, force_terminal=self.animated, _environ=env)
        self._clock = clock
        self._began = clock()
        self._drawn = -INTERVAL
        self._runs: dict[str, _Run] = {}
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=file is None)

    def __enter__(self) -> "Progress":
        if self.animated:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.animated:
            self._live.stop()
        if not self.silent and self._runs:
            self._console.print(Text(self._counts()), soft_wrap=True)

    def update(self, run_id: str, **state: Any) -> None:
        """Note what is new about a run: any of workload, algorithm, seed, state, step, total, value, target, reached, and
        `forecast`, where its value is predicted to end, in words.

        States are waiting, running, finished, diverged, failed and interrupted; `step` of `total` optimizer steps; `value` and `target` of the
        validation metric. ValueError for another state or another name. Cheap: the table is drawn at most four times per second.
        """
        unknown = state.keys() - FIELDS
        if unknown:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}: a run has {', '.join(sorted(FIELDS))}.")
        if state.get("state", "running") not in STYLES:
            raise ValueError(f"unknown state {state['state']!r}: write one of {', '.join(STYLES)}.")
        before = self._runs.get(run_id, _Run())
        self.total_runs = max(
            self.total_runs, len(self._runs | {run_id: before})
        )  # variants and runs that set targets were not counted beforehand
        run = replace(before, **state)
        now = self._clock()
        if run.state == "running" and before.state != "running":
            run = replace(run, started=now, first=run.step, ended=None)
        over = run.state in OVER and before.state not in OVER
        if over:
            run = replace(run, ended=now)
        self._runs[run_id] = run
        if self.silent:
            return
        if self.animated and (over or now - self._drawn >= INTERVAL):
            self._drawn = now
            self._live.update(self.table(), refresh=True)
        elif run.forecast and not before.forecast and not self.animated:
            self._console.print(Text(f"{self._name(run)}: predicted at {self._share(run)} to end at {run.forecast}"), soft_wrap=True)
        elif over and not self.animated:
            self._console.print(Text(self._line(run, now)), soft_wrap=True)

    def table(self) -> Table:
        """The runs, running ones first; as many as fit on the screen, and a count of all."""
        now = self._clock()
        order = list(STYLES)
        runs = sorted(self._runs.values(), key=lambda r: (order.index(r.state), -(r.ended or 0)))
        room = max(3, self._console.height - 4)
        table = Table(box=None, pad_edge=False, header_style="dim", caption=self._counts(len(runs) - room), caption_justify="left")
        told = any(run.forecast for run in runs[:room])
        columns = [("run", None), ("state", None), ("", 8), ("", 4), ("value / target", None), ("time, left", None)]
        for name, width in columns + ([("will end at (80%)", None)] if told else []):
            table.add_column(name, no_wrap=True, width=width, justify="right" if width == 4 else "left")
        for run in runs[:room]:
            bar = ProgressBar(total=run.total or 1, completed=min(run.step, run.total or 1), width=8)
            left = run.remaining(now)
            clock = "" if run.started is None else _clock(run.elapsed(now)) + ("" if left is None else f", {_clock(left)}")
            name = " ".join([run.workload, run.algorithm] + ([] if run.seed is None else [f"#{run.seed}"]))
            cells: list[Any] = [
                Text(name),
                Text(run.state, style=STYLES[run.state]),
                bar,
                self._share(run),
                Text(run.metric()),
                Text(clock),
            ]
            table.add_row(*cells, *([Text(run.forecast)] if told else []))
        return table

    def _counts(self, hidden: int = 0) -> str:
        states = Counter(r.state for r in self._runs.values())
        self.total_runs = max(self.total_runs, len(self._runs))  # runs that set a target come on top
        states["waiting"] += self.total_runs - len(self._runs)
        told = ", ".join(f"{states[s]} {s}" for s in STYLES if states[s])
        more = f" ({hidden} not shown)" if hidden > 0 else ""
        return f"{self.total_runs} run{'' if self.total_runs == 1 else 's'}: {told}{more} · {_clock(self._clock() - self._began)}"

    @staticmethod
    def _name(run: _Run) -> str:
        return " ".join([run.workload, run.algorithm] + ([] if run.seed is None else [f"seed {run.seed}"]))

    @staticmethod
    def _share(run: _Run) -> str:
        return f"{run.step / run.total:.0%}" if run.total else str(run.step)

    def _line(self, run: _Run, now: float) -> str:
        done = sum(r.state in OVER for r in self._runs.values())
        steps = f"{run.step}/{run.total} steps" if run.total else f"{run.step} steps"
        value = MISSING if run.value is None else digits(run.value)
        goal = "" if run.target is None else f" (target {digits(run.target)}{'' if run.reached else ' not'} reached)"
        return f"[{done}/{self.total_runs}] {self._name(run)}: {run.state} after {steps}, {value}{goal}, {_clock(run.elapsed(now))}"


FIELDS = frozenset({"workload", "algorithm", "seed", "state", "step", "total", "value", "target", "reached", "forecast"})

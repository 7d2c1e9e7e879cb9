"""Fan-out: a crew of workers, their progress, and what happens when one dies or the user stops the race. Imports no torch.

Where the workers are, `bench/crews/` knows: processes of this machine, or of a Ray cluster. All of them speak the same lines of JSON (`bench/worker.py`).
"""

import contextlib
import json
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from velodrome.bench.crews.on_ray import Cluster
from velodrome.bench.crews.place import Place, place
from velodrome.bench.crews.process import Process
from velodrome.bench.targets import FOLDER as TARGETS

Listener = Callable[[str, Mapping[str, Any]], None]
OVER = {"finished", "diverged", "failed"}
ROUNDS = 3  # crews in a row in which a worker died and no run has ended, until the race is given up
PATIENCE = 30.0  # seconds that workers get to save when asked to stop


class Refused(ValueError):
    """What a worker says about a plan that it cannot work on."""


class Stopped(Exception):
    """The user stopped the race; every run has been saved. `code` is the exit code of the signal."""

    def __init__(self, code: int):
        super().__init__("stopped")
        self.code = code


def run(plan: dict[str, Any], workers: int, total: int, listen: Listener) -> dict[str, dict[str, Any]]:
    """Work through `plan` with that many workers; returns the last state of each of its runs, by folder.

    The plan is JSON: "root" (a folder, or a URL of object storage), "algorithms", "workloads", "seeds", "setting", "threads" of each process, and where
    they differ from what is usual "processes" of each run (1), "alone" (false), and "ray", the address of a cluster; there, 0 workers are as many as fit.

    `total` is the number of runs until the workers say how many there are: two spellings of one algorithm are raced once. Runs that another race
    in this folder is training ("elsewhere") are waited for, and taken over if their process dies. Raises Stopped after SIGINT or SIGTERM, when
    all workers have saved and left, and ValueError for what a worker refused before it began, for a plan without runs, and when workers keep
    leaving before their runs have ended.
    """
    states: dict[str, dict[str, Any]] = {}

    def hear(folder: str, state: dict[str, Any]) -> None:
        if folder.startswith(f"{TARGETS}/"):  # of the reference, to set a target: told, and no run of the race
            return listen(folder, state)
        known = states.get(folder, {}).get("state")
        if state["state"] == "elsewhere" and known not in (None, "elsewhere", "waiting"):
            return  # one of our own workers found that another of them has it
        states[folder] = state
        listen(folder, state)

    with contextlib.ExitStack() as leaving:
        start: Start = Process
        if plan.get("ray"):
            cluster = leaving.enter_context(Cluster(plan["ray"]))
            start, workers = cluster.start, workers or cluster.room(plan)
        home = place(plan["root"])
        leaving.callback(home.close)
        crashes = ended = 0
        while True:
            crew = _Crew(plan, workers, start)
            crash = crew.work(hear)
            total = total if crew.planned is None else crew.planned
            if not crash and total < 1:
                raise ValueError("there is nothing to race: name at least one algorithm, one workload and one seed.")
            unfinished = [f for f, s in states.items() if s["state"] not in OVER]
            left = [f for f in unfinished if states[f]["state"] != "elsewhere" and home.free(f)]
            if not crash and (left or len(states) < total):
                crash = "a worker left before its runs had ended"
            if len(states) - len(unfinished) > ended:  # machines come and go; what counts is a crew that brings nothing to its end
                crashes, ended = 0, len(states) - len(unfinished)
            if crash:
                crashes += 1
                if crashes == ROUNDS:
                    raise ValueError(f"workers keep dying ({crash}). Finished runs are safe, and the same command goes on.")
            for folder in unfinished:
                hear(folder, {**states[folder], "state": "waiting"})
            if not crash and _wait(home, unfinished, states, hear):
                return states


def _wait(home: Place, unfinished: list[str], states: dict[str, dict[str, Any]], hear: Callable[[str, dict[str, Any]], None]) -> bool:
    """Until runs that other races train are all finished (True), or one of them has nobody who trains it (False)."""
    with stopping() as asked:
        while True:
            for folder in [f for f in unfinished if home.finished(f)]:
                hear(folder, {**states[folder], "state": "finished"})
                unfinished.remove(folder)
            if not unfinished:
                return True
            if any(home.free(f) for f in unfinished):
                return False
            time.sleep(home.pause)
            if asked:
                raise Stopped(asked[0])


class Member(Protocol):
    """A worker wherever it is: `bench/crews/process.py` on this machine, `bench/crews/on_ray.py` on one of a cluster."""

    def ask(self) -> None:
        """Ask it to save and leave."""

    def end(self, seconds: float) -> None:
        """Wait for it that long, then kill it."""

    def crash(self) -> str:
        """How it ended, '' for well; waits for the end."""

    def close(self) -> None:
        """Forget it."""

    @property
    def waiting(self) -> bool:
        """Whether it still waits for a machine."""


Start = Callable[[dict[str, Any], Callable[[str | None], None]], Member]


class _Crew:
    """One set of workers; `planned` is the number of runs they have found in the plan. Leaving it by an exception stops them."""

    def __init__(self, plan: dict[str, Any], count: int, start: Start):
        self.plan, self.count, self.start = plan, count, start
        self.planned: int | None = None
        self.fruitful = True  # whether a run has ended since a dead worker was last replaced
        self.events: queue.Queue[tuple[int, str | None]] = queue.Queue()
        self.members: list[Member] = []
        try:
            for i in range(count):
                self._add(i)
        except BaseException:
            self._stop(0.0)
            raise

    def _add(self, first: int) -> None:
        """One more worker, which begins at that place of the plan."""
        plan = {**self.plan, "workers": self.count, "first": first % self.count}
        self.members.append(self.start(plan, partial(self._put, len(self.members))))

    def _put(self, i: int, line: str | None) -> None:
        self.events.put((i, line))

    def work(self, hear: Callable[[str, dict[str, Any]], None]) -> str:
        """Until all have left; returns how the first one crashed that nobody has replaced, or ''."""
        patience, crash = PATIENCE, ""
        try:
            with stopping() as asked:
                alive = set(range(len(self.members)))
                while alive and not asked:
                    if len(alive) < self.count and all(self.members[i].waiting for i in alive):
                        break  # whoever got a machine has left: the work is done, or a new crew takes the machines that are there
                    try:
                        i, line = self.events.get(timeout=0.2)
                    except queue.Empty:
                        continue
                    if line is not None:
                        self._heard(line, hear)
                        continue
                    alive.remove(i)
                    end = self.members[i].crash()
                    if end and self.fruitful:
                        alive.add(len(self.members))
                        self._add(i)
                        self.fruitful = False
                    else:
                        crash = crash or end
                if asked:
                    self._stop(patience, hear)
                    raise Stopped(asked[0])
                return crash
        except KeyboardInterrupt:  # asked twice: nobody waits for a checkpoint
            patience = 0.0
            raise
        finally:
            self._stop(patience)

    def _stop(self, patience: float, hear: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        """Ask those that still work to save and leave, kill them after `patience` seconds, `hear` their last words; nothing if all have left."""
        for member in self.members:
            member.ask()
        deadline = time.monotonic() + patience
        for member in self.members:
            member.end(deadline - time.monotonic())
        while hear and not self.events.empty():
            _, line = self.events.get()
            with contextlib.suppress(Refused):  # whoever was stopped while reading the plan
                self._heard(line or "", hear)
        for member in self.members:
            member.close()

    def _heard(self, line: str, hear: Callable[[str, dict[str, Any]], None]) -> None:
        """One line of a worker; what is no message of ours is somebody's print."""
        try:
            message = json.loads(line)
        except ValueError:
            return
        match message:
            case {"refused": str(reason)}:
                raise Refused(reason)
            case {"plan": int(count)}:
                self.planned = count
            case {"run": str(folder), "state": str(state)}:
                self.fruitful = self.fruitful or state in OVER
                hear(folder, {k: v for k, v in message.items() if k != "run"})


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that receives 130 or 143 when SIGINT or SIGTERM arrives; a second Ctrl-C is the usual KeyboardInterrupt."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(128 + number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)

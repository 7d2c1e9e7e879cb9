"""Fan-out: workers as processes of this machine, their progress, and what happens when one dies or the user stops the race. Imports no torch."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from velodrome.records.lock import Busy, Lock

Listener = Callable[[str, Mapping[str, Any]], None]
OVER = {"finished", "diverged", "failed"}
ROUNDS = 3  # a crew with a worker that died is replaced this often
PATIENCE = 30.0  # seconds that workers get to save when asked to stop


class Refused(ValueError):
    """What a worker says about a plan that it cannot work on."""


class Stopped(Exception):
    """The user stopped the race; every run has been saved. `code` is the exit code of the signal."""

    def __init__(self, code: int):
        super().__init__("stopped")
        self.code = code


def run(plan: dict[str, Any], workers: int, total: int, listen: Listener) -> dict[str, dict[str, Any]]:
    """Work through `plan` with that many processes; returns the last state of each of its runs, by folder.

    `total` is the number of runs until the workers say how many there are: two spellings of one algorithm are raced once. Runs that another race
    in this folder is training ("elsewhere") are waited for, and taken over if their process dies. Raises Stopped after SIGINT or SIGTERM, when
    all workers have saved and left, and ValueError for what a worker refused before it began, for a plan without runs, and when workers keep
    leaving before their runs have ended.
    """
    states: dict[str, dict[str, Any]] = {}

    def hear(folder: str, state: dict[str, Any]) -> None:
        known = states.get(folder, {}).get("state")
        if state["state"] == "elsewhere" and known not in (None, "elsewhere", "waiting"):
            return  # one of our own workers found that another of them has it
        states[folder] = state
        listen(folder, state)

    crashes = 0
    while True:
        crew = _Crew(plan, workers)
        crash = crew.work(hear)
        total = total if crew.planned is None else crew.planned
        if not crash and total < 1:
            raise ValueError("there is nothing to race: name at least one algorithm, one workload and one seed.")
        unfinished = [f for f, s in states.items() if s["state"] not in OVER]
        left = [f for f in unfinished if states[f]["state"] != "elsewhere" and _free(plan["root"], f)]
        if not crash and (left or len(states) < total):
            crash = "a worker left before its runs had ended"
        if crash:
            crashes += 1
            if crashes == ROUNDS:
                raise ValueError(f"workers keep dying ({crash}). Finished runs are safe, and the same command goes on.")
        for folder in unfinished:
            hear(folder, {**states[folder], "state": "waiting"})
        if not crash and _wait(plan["root"], unfinished, states, hear):
            return states


def _wait(root: str, unfinished: list[str], states: dict[str, dict[str, Any]], hear: Callable[[str, dict[str, Any]], None]) -> bool:
    """Until runs that other races train are all finished (True), or one of them has nobody who trains it (False)."""
    with stopping() as asked:
        while True:
            for folder in [f for f in unfinished if (Path(root) / f / "result.json").exists()]:
                hear(folder, {**states[folder], "state": "finished"})
                unfinished.remove(folder)
            if not unfinished:
                return True
            if any(_free(root, f) for f in unfinished):
                return False
            time.sleep(0.5)
            if asked:
                raise Stopped(asked[0])


def _free(root: str, folder: str) -> bool:
    """Whether an unfinished run has nobody who trains it."""
    path = Path(root) / folder
    if (path / "result.json").exists():
        return False
    try:
        Lock(path).release()
    except Busy:
        return False
    return True


class _Crew:
    """One set of worker processes; `planned` is the number of runs they have found in the plan. Leaving it by an exception stops them."""

    def __init__(self, plan: dict[str, Any], count: int):
        self.plan = plan
        self.planned: int | None = None
        self.events: queue.Queue[tuple[int, str | None]] = queue.Queue()
        self.errors: list[IO[bytes]] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.readers: list[threading.Thread] = []
        try:
            for i in range(count):
                self._start(i, count)
        except BaseException:
            self._stop(0.0)
            raise

    def _start(self, i: int, count: int) -> None:
        self.errors.append(tempfile.TemporaryFile())  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "velodrome.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors[i],
            env={**os.environ, "OMP_NUM_THREADS": str(self.plan["threads"]), "PYTHONUNBUFFERED": "1"},
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the parent alone, which asks the workers to save
        )
        self.processes.append(process)
        self.readers.append(threading.Thread(target=self._read, args=(i,), daemon=True))
        self.readers[-1].start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps({**self.plan, "workers": count, "first": i}))

    def _read(self, i: int) -> None:
        stream = self.processes[i].stdout
        assert stream is not None
        for line in stream:
            self.events.put((i, line))
        self.events.put((i, None))

    def work(self, hear: Callable[[str, dict[str, Any]], None]) -> str:
        """Until all have left; returns how the first one crashed, or ''."""
        patience = PATIENCE
        try:
            with stopping() as asked:
                alive = len(self.processes)
                while alive and not asked:
                    try:
                        _, line = self.events.get(timeout=0.2)
                    except queue.Empty:
                        continue
                    if line is None:
                        alive -= 1
                    else:
                        self._heard(line, hear)
                if asked:
                    self._stop(patience, hear)
                    raise Stopped(asked[0])
                return next((self._crash(i) for i, p in enumerate(self.processes) if p.wait() != 0), "")
        except KeyboardInterrupt:  # asked twice: nobody waits for a checkpoint
            patience = 0.0
            raise
        finally:
            self._stop(patience)

    def _stop(self, patience: float, hear: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        """Ask those that still work to save and leave, kill them after `patience` seconds, `hear` their last words; nothing if all have left."""
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for p in self.processes:
            try:
                p.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        for reader in self.readers:
            reader.join(5.0)  # a process that an algorithm has started may still hold the pipe
        while hear and not self.events.empty():
            _, line = self.events.get()
            with contextlib.suppress(Refused):  # whoever was stopped while reading the plan
                self._heard(line or "", hear)
        for reader, process in zip(self.readers, self.processes, strict=False):
            if process.stdout and not reader.is_alive():
                process.stdout.close()
        for file in self.errors:
            file.close()

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
            case {"run": str(folder), "state": str()}:
                hear(folder, {k: v for k, v in message.items() if k != "run"})

    def _crash(self, i: int) -> str:
        """The last line that a worker left on stderr, or its signal."""
        self.errors[i].seek(0)
        lines = self.errors[i].read().decode(errors="replace").strip().splitlines()
        code = self.processes[i].returncode
        return lines[-1] if lines and code > 0 else f"killed by signal {-code}" if code < 0 else f"exit code {code}"


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

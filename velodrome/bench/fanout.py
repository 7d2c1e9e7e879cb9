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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from velodrome.records.lock import Busy, Lock

Listener = Callable[[str, Mapping[str, Any]], None]
OVER = {"finished", "diverged", "failed"}
ROUNDS = 3  # a crew with a worker that died is replaced this often
PATIENCE = 30.0  # seconds that workers get to save when asked to stop


class Stopped(Exception):
    """The user stopped the race; every run has been saved. `code` is the exit code of the signal."""

    def __init__(self, code: int):
        super().__init__("stopped")
        self.code = code


def run(plan: dict[str, Any], workers: int, total: int, listen: Listener) -> dict[str, dict[str, Any]]:
    """Work through `plan` with that many processes; returns the last state of each of the `total` runs that was heard of, by folder.

    Runs that another race in this folder is training ("elsewhere") are waited for, and taken over if their process dies. Raises Stopped after
    SIGINT or SIGTERM, when all workers have saved and left, and ValueError for what a worker refused before it began.
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
        crash = _Crew(plan, workers).work(hear)
        unfinished = [f for f, s in states.items() if s["state"] not in OVER]
        if crash:
            crashes += 1
            if crashes == ROUNDS:
                raise ValueError(f"workers keep dying ({crash}). Finished runs are safe, and the same command goes on.")
        elif len(states) == total and not unfinished:
            return states
        for folder in unfinished:
            hear(folder, {**states[folder], "state": "waiting"})
        with _signals() as asked:
            while not crash and not any(_free(plan["root"], f) for f in unfinished):
                for folder in [f for f in unfinished if (Path(plan["root"]) / f / "result.json").exists()]:
                    hear(folder, {**states[folder], "state": "finished"})
                    unfinished.remove(folder)
                if not unfinished:
                    return states
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
    """One set of worker processes. Leaving it by an exception stops them."""

    def __init__(self, plan: dict[str, Any], count: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(plan["threads"]), "PYTHONUNBUFFERED": "1"}
        self.events: queue.Queue[tuple[int, str | None]] = queue.Queue()
        self.errors: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(count)]  # noqa: SIM115
        self.processes: list[subprocess.Popen[str]] = []
        self.readers: list[threading.Thread] = []
        for i in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "velodrome.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors[i],
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which asks the workers to save
            )
            assert process.stdin is not None
            self.processes.append(process)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**plan, "workers": count, "first": i}))
                process.stdin.close()
            self.readers.append(threading.Thread(target=self._read, args=(i,), daemon=True))
            self.readers[-1].start()

    def _read(self, i: int) -> None:
        stream = self.processes[i].stdout
        assert stream is not None
        for line in stream:
            self.events.put((i, line))
        self.events.put((i, None))

    def work(self, hear: Callable[[str, dict[str, Any]], None]) -> str:
        """Until all have left; returns how the first one crashed, or ''."""
        with _signals() as asked:
            alive = len(self.processes)
            while alive:
                try:
                    _, line = self.events.get(timeout=0.2)
                except queue.Empty:
                    line = ""
                if asked:
                    self._stop(hear)
                    raise Stopped(asked[0])
                if line is None:
                    alive -= 1
                elif line.startswith("{"):
                    self._heard(line, hear)
            crash = next((self._crash(i) for i, p in enumerate(self.processes) if p.wait() != 0), "")
            self._close()
            return crash

    def _stop(self, hear: Callable[[str, dict[str, Any]], None]) -> None:
        for p in self.processes:
            with contextlib.suppress(ProcessLookupError):
                p.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for p in self.processes:
            try:
                p.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                p.kill()
        with contextlib.suppress(queue.Empty):
            while True:
                _, line = self.events.get(timeout=0.2)
                if line and line.startswith("{"):
                    self._heard(line, hear)
        self._close()

    def _close(self) -> None:
        for reader in self.readers:
            reader.join()
        for file in (*self.errors, *(p.stdout for p in self.processes)):
            if file is not None:
                file.close()

    def _heard(self, line: str, hear: Callable[[str, dict[str, Any]], None]) -> None:
        state = json.loads(line)
        if "refused" in state:
            for p in self.processes:
                p.terminate()
            for p in self.processes:
                p.wait()
            self._close()
            raise ValueError(state["refused"])
        hear(state.pop("run"), state)

    def _crash(self, i: int) -> str:
        """The last line that a worker left on stderr, or its signal."""
        self.errors[i].seek(0)
        lines = self.errors[i].read().decode(errors="replace").strip().splitlines()
        code = self.processes[i].returncode
        return lines[-1] if lines and code > 0 else f"killed by signal {-code}" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _signals() -> Any:
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

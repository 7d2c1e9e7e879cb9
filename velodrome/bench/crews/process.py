"""A worker as a process of this machine: `python -m velodrome.bench.supervisor` on its cores, a plan on stdin, lines of JSON back."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from velodrome.bench.crews.cores import claim, told


class Process:
    """One worker at work on `plan`. Its lines go to `hear`, from a thread; None says that there will be no more."""

    def __init__(self, plan: dict[str, Any], hear: Callable[[str | None], None]):
        threads, alone = plan["threads"], bool(plan.get("alone"))
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.cores = claim(threads * plan.get("processes", 1), alone)
        crew = told(self.cores, plan["workers"], alone, bool(plan.get("ray")))
        try:
            with self.cores.pinned():
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "velodrome.bench.supervisor"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.errors,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,  # Ctrl-C reaches the parent alone, which asks the workers to save
                )
        except BaseException:
            self.cores.release()
            self.errors.close()
            raise
        self.reader = threading.Thread(target=self._read, args=(hear,), daemon=True)
        self.reader.start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin:
            self.process.stdin.write(json.dumps({**plan, "crew": crew}))

    def _read(self, hear: Callable[[str | None], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            hear(line)
        hear(None)

    def ask(self) -> None:
        """Ask it to save and leave."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self, seconds: float) -> None:
        """Wait for it that long, then kill it; afterwards nobody hears of it any more. May be called again."""
        try:
            self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5.0)  # a process that an algorithm has started may still hold the pipe
        if self.process.stdout and not self.reader.is_alive():
            self.process.stdout.close()
        self.cores.release()

    def close(self) -> None:
        """Forget its last words."""
        self.errors.close()

    def crash(self) -> str:
        """How it ended if not well: the last line that it left on stderr, its signal, or its exit code; waits for the end."""
        code = self.process.wait()
        if code == 0:
            return ""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines and code > 0 else f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    @property
    def waiting(self) -> bool:
        """Whether it still waits for a machine; a process of this one never does."""
        return False

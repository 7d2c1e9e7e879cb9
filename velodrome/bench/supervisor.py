"""Whoever starts a worker, on its machine: `python -m velodrome.bench.supervisor`, in a worker's place. Imports no torch.

An algorithm can end the process that it is in: by os._exit, by a fault in its C code, by taking all memory, by a call that never returns. The
worker's is a child of this one, which knows what run had its turn when it died, tells the next one to record that as the run's result,
and goes on. A worker also asks to be replaced (RENEW) when a run has left the process in a state that others should not be trained in.

A death by signal 9 says nothing about who sent it: the run goes on from its checkpoint, and has failed when it happens to it a second time;
at once if the kernel says that it has killed somebody because memory had run out.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from velodrome.bench.kin import adopt, children
from velodrome.bench.limits import killed_for_memory

RENEW = 75  # exit code: a new process, please (sysexits.h: temporary failure)
TURN = "VELODROME_TURN"  # the file descriptor in which a worker notes whose turn it is
WIDTH = 1 << 10  # bytes of that note
RESTARTS = 200  # of one worker; more is a mistake of ours


def note_turn(fd: int | None, folder: str = "", limit: float = 0.0) -> None:
    """In a worker: this run is on, since now, for so many seconds; nobody is without a folder."""
    if fd is not None:
        os.pwrite(fd, json.dumps([folder, time.monotonic(), limit]).encode()[:WIDTH].ljust(WIDTH), 0)


class Supervisor:
    """One worker's place in a crew."""

    def __init__(self, plan: dict[str, Any]):
        self.plan, self.parent = plan, os.getppid()
        self.turn = tempfile.TemporaryFile()  # noqa: SIM115
        self.died: dict[str, list[str]] = {}
        self.kills: dict[str, int] = {}
        self.asked = False
        self.child: subprocess.Popen[str] | None = None

    def work(self) -> int:
        """Until the worker has left for good; its exit code."""
        for _ in range(RESTARTS):
            before = killed_for_memory()
            code = self._once()
            if self.asked or not self._explained(code, killed_for_memory() > before):
                if code == RENEW and not self.asked:
                    continue
                return code
        raise AssertionError("a worker was replaced too often")

    def ask(self, number: int) -> None:
        """Hand a signal on."""
        self.asked = True
        if self.child is not None:
            with contextlib.suppress(OSError):
                self.child.send_signal(number)

    def _once(self) -> int:
        fd = self.turn.fileno()
        note_turn(fd)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "velodrome.bench.worker"],
            stdin=subprocess.PIPE,
            env={**os.environ, TURN: str(fd)},
            pass_fds=(fd,),
            text=True,
        )
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.child.stdin:
            self.child.stdin.write(json.dumps({**self.plan, "died": self.died}))
        while True:
            try:
                code = self.child.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                if os.getppid() != self.parent:  # whoever started the race is gone
                    self.ask(signal.SIGTERM)
        for pid in children():  # what a run had started, and is now this process's
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return code

    def _explained(self, code: int, memory: bool) -> bool:
        """Whether the death was the fault of the run that was on, or may have been: then the next worker knows. Whatever the exit code: a worker that
        leaves by itself does so between turns."""
        folder, since, limit = json.loads(os.pread(self.turn.fileno(), WIDTH, 0))
        if not folder:
            return False
        lasted = time.monotonic() - since
        if code >= 0 and lasted >= limit:
            self.died[folder] = ["over time", f"Hung for {lasted:,.0f} s in a call that could not be interrupted, and was killed."]
        elif code >= 0:
            self.died[folder] = ["exit", f"Left the process with exit code {code}."]
        elif code != -signal.SIGKILL:
            self.died[folder] = ["crash", f"Its process was ended by {_name(-code)}."]
        elif memory:
            self.died[folder] = ["memory", "Its process was killed because the machine had run out of memory."]
        else:
            self.kills[folder] = self.kills.get(folder, 0) + 1
            if self.kills[folder] > 1:
                self.died[folder] = ["crash", "Its process was killed twice (signal 9) while it was on."]
        return True


def _name(number: int) -> str:
    """A signal in words."""
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"


def main() -> int:
    """Read the plan, and leave as the worker leaves."""
    adopt()
    supervisor = Supervisor(json.loads(sys.stdin.read()))
    assert threading.current_thread() is threading.main_thread()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: supervisor.ask(number))
    code = supervisor.work()
    if code < 0:  # leave as it did
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())

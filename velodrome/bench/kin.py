"""Processes and their parents: what a run has started, and who ends with whom. Linux; elsewhere nothing is found. Imports no torch."""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

TORCH_S_OWN = ("torch/_inductor", "resource_tracker", "triton")  # helpers that compiling leaves running on purpose


def has_children() -> bool:
    """Whether this process has any child, alive or waited for by nobody: one call of the kernel."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children() -> list[int]:
    """Living processes whose parent this one is, without those that torch keeps for itself; none where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                line = (path / "cmdline").read_text()
                found += [] if any(word in line for word in TORCH_S_OWN) else [int(path.name)]
    return found


def adopt() -> None:
    """Processes that a guest's process leaves behind become this one's, so that they are found; Linux only."""
    _prctl(36, 1)


def die_with_parent() -> None:
    """This process is killed when the one that started it is; Linux only."""
    _prctl(1, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)

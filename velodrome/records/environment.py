"""Where a run is trained, and what of it keeps a resumed run from being bit-identical to an uninterrupted one."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from velodrome.version import __version__

PACKAGES = ("torch", "numpy", "safetensors")


def environment(threads: int | None = None, device: str | None = None) -> dict[str, Any]:
    """This session: versions, machine, `threads` and `device` as given (importing torch to ask would cost a second), git, load, UTC time.

    Returns:
        `time` (ISO 8601), `versions` {python, velodrome, torch, numpy, safetensors}, `platform`, `cpu`, `cpus` (cores this process may
        use), `threads`, `device`, `git` {commit, dirty} or None outside a checkout, `load` (1, 5, 15 minutes) or None where unknown.
    """
    return {
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "versions": {"python": platform.python_version(), "velodrome": __version__, **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "device": device,
        "git": _git(Path.cwd()),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def differences(first: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may change the last bits between two sessions: ["torch 2.11.0 -> 2.13.0", "threads 2 -> 4"]; empty if nothing does."""
    before, after = ({**_versions(session), **{key: session.get(key) for key in ("cpu", "threads", "device")}} for session in (first, now))
    return [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _versions(session: dict[str, Any]) -> dict[str, Any]:
    versions = session.get("versions")
    return dict(versions) if isinstance(versions, dict) else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None

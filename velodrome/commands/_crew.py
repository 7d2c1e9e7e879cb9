"""What the options of `velodrome race` say about who computes and where runs are kept (docs/fanout.md)."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from velodrome.bench.crews.storage import Storage, url
from velodrome.commands.options import say


class Options(Protocol):
    """The options of a race that are about its crew."""

    out: Path
    workers: int
    threads: int
    device: str
    alone: bool
    on_ray: str
    processes_per_run: int


def count(o: Options, groups: int) -> int:
    """Workers of a race with that many groups of runs; 0 on Ray: as many as fit."""
    if o.workers or o.on_ray:
        return o.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    one = o.alone or o.device != "cpu"
    return 1 if one else max(1, min(cores // (o.threads * o.processes_per_run), groups))


def told(o: Options) -> dict[str, Any]:
    """What of it the plan tells the workers, where it is not what is usual."""
    several = {"processes": o.processes_per_run} if o.processes_per_run > 1 else {}
    return {**({"alone": True} if o.alone else {}), **({"ray": o.on_ray} if o.on_ray else {}), **several}


def check(o: Options) -> None:
    """Refuse what cannot be meant; ValueError."""
    if o.processes_per_run < 1:
        raise ValueError(f"--processes-per-run must be at least 1, got {o.processes_per_run}.")
    if o.alone and (o.workers > 1 or o.on_ray):
        other = f"--on-ray {o.on_ray}" if o.on_ray else f"--workers {o.workers}"
        raise ValueError(f"--alone is one worker on this machine, got {other} beside it: leave one of them out.")


def remote(out: Path) -> bool:
    """Whether runs go to object storage."""
    return url(out) is not None


def fetched(out: Path, folders: Iterable[str]) -> Path:
    """The folder that holds those runs: `out`, or this user's copies of what is in object storage, where what is finished is fetched once."""
    address = url(out)
    if address is None:
        return out
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    here = cache / "velodrome" / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16]
    storage = Storage(address, here)
    for folder in folders:
        storage.local(folder)
    say(f"Copies of the runs: {here}")
    return here

"""Unit time: the seconds that this machine, unloaded, needs per FLOP of a workload's gradient, so that costs can be told in seconds that no neighbour
has lengthened. Measured once for each machine, setting and workload, and kept in the folder of the runs.

One thread of a CPU is timed by the processor time of this process, which a loaded machine stretches little; several threads and a GPU by the clock on
the wall. What a run costs in such seconds: `unit_seconds.py`.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from velodrome.bench.protocol import Entry, Live, Setting, capture, restore
from velodrome.recipes.parse import parse
from velodrome.records.digest import content_hash
from velodrome.records.disk import replace

BLOCKS = 9  # the median of so many
BLOCK_SECONDS = 0.03  # each long enough for clocks of a few microseconds
WARM = 3  # gradients that wake libraries up; the first one also counts FLOPs
REFERENCE = "adamw"
FOLDER = ".unit-time"


def unit_time(entry: Entry, root: Path) -> dict[str, Any]:
    """The unit time of `entry`'s workload in its setting: what an earlier call has left under `root`, or measured now (about half a second).

    Returns:
        `seconds_per_flop`; `flops` and `seconds` of one gradient; `spread`, the interquartile range of the blocks over their median; `clock`
        ("processor" or "wall"); `load` of the machine in the last minute, None where unknown.
    """
    place = root / FOLDER / f"{content_hash(_identity(entry))[:16]}.json"
    try:
        known = json.loads(place.read_text())
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and known.get("seconds"):
        return known
    random_state, threads = capture(), torch.get_num_threads()
    try:
        torch.set_num_threads(entry.setting.threads)
        found = measured(entry)
    finally:
        torch.set_num_threads(threads)
        restore(random_state)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace(place, json.dumps(found).encode())
    return found


def measured(entry: Entry) -> dict[str, Any]:
    """As `unit_time`, now and kept nowhere, by the reference whatever `entry`'s algorithm is."""
    live, setting = Live(dataclasses.replace(entry, recipe=parse(REFERENCE))), entry.setting
    steps = live.steps()
    first = next(steps)
    batch = first.batch
    now = _clock(setting)

    def block(count: int) -> float:
        began = now()
        for _ in range(count):
            live.model.zero_grad()
            live.gradient(batch).item()
        return (now() - began) / count

    count = max(1, round(BLOCK_SECONDS / max(block(WARM), 1e-6)))
    blocks = np.array([block(count) for _ in range(BLOCKS)])
    seconds = float(np.median(blocks))
    return {
        "seconds_per_flop": seconds / first.flops if first.flops else None,
        "flops": first.flops,
        "seconds": seconds,
        "spread": float((np.quantile(blocks, 0.75) - np.quantile(blocks, 0.25)) / seconds),
        "clock": "processor" if _alone(setting) else "wall",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _alone(setting: Setting) -> bool:
    return setting.device == "cpu" and setting.threads == 1


def _clock(setting: Setting) -> Callable[[], float]:
    if _alone(setting):
        return time.process_time
    if setting.device == "cpu":
        return time.perf_counter

    def wait() -> float:
        torch.cuda.synchronize(setting.device)
        return time.perf_counter()

    return wait


def _identity(entry: Entry) -> dict[str, Any]:
    """What the number depends on."""
    names = ("workload", "workload_source", "batch_size", "data", "device", "bf16", "compile", "threads", "code")
    gpu = torch.cuda.get_device_name(entry.setting.device) if entry.setting.device.startswith("cuda") else None
    machine = {"node": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpu": gpu, "torch": str(torch.__version__)}
    return {**{name: entry.identity[name] for name in names}, **machine}

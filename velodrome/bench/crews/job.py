"""A worker's job of several processes on its machine: started, connected, sent away. `python -m velodrome.bench.crews.job` is one of the others."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from velodrome.bench.catalog import workloads
from velodrome.bench.crews.mates import MateLost, Mates, joined, lend, number
from velodrome.gradients.backward import backward

FOR_EVER = timedelta(days=7)  # a mate waits as long as the first process evaluates, saves, or waits for a machine's disk


def check(plan: dict[str, Any]) -> None:
    """ValueError where there are not enough GPUs for the plan's processes."""
    count = plan.get("processes", 1)
    if count > 1 and plan["setting"].get("device", "cpu").startswith("cuda") and torch.cuda.device_count() < count:
        raise ValueError(f"{count} processes for each run need as many GPUs, and here are {torch.cuda.device_count()}: ask for fewer.")


@contextlib.contextmanager
def job(plan: dict[str, Any]) -> Iterator[None]:
    """Inside, gradients are computed by `plan["processes"]` processes."""
    count = plan.get("processes", 1)
    if count < 2:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="velodrome-") as folder, contextlib.ExitStack() as leaving:
        meeting = str(Path(folder) / "meeting")
        for rank in range(1, count):
            started = subprocess.Popen(
                [sys.executable, "-m", "velodrome.bench.crews.job"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            leaving.callback(_ended, started)
            assert started.stdin is not None
            with started.stdin:
                started.stdin.write(json.dumps({**plan, "rank": rank, "meeting": meeting}))
        leaving.enter_context(joined(connected(meeting, 0, count, plan["setting"].get("device", "cpu"))))
        yield


def _ended(process: "subprocess.Popen[str]") -> None:
    """It leaves by itself when it is sent away or the connection breaks; a second is much for that."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def connected(meeting: str, rank: int, size: int, device: str) -> Mates:
    """This process's place in the job, once all are there."""
    store = dist.FileStore(meeting, size)
    if device.startswith("cuda"):
        torch.cuda.set_device(rank)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = FOR_EVER
        return Mates(dist.ProcessGroupNCCL(store, rank, size, options), torch.device("cuda", rank))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all of them are on this machine
    return Mates(dist.ProcessGroupGloo(store, rank, size, FOR_EVER), torch.device("cpu"))


def main() -> int:
    """Lend gradients of the plan's workloads; 0 when sent away, 1 when the first process is gone."""
    plan = json.loads(sys.stdin.read())
    torch.set_num_threads(plan["threads"])
    setting = plan["setting"]
    mates = connected(plan["meeting"], plan["rank"], plan["processes"], setting.get("device", "cpu"))
    autocast = torch.bfloat16 if setting.get("bf16") else None
    models = {}
    for w in workloads(plan["workloads"]):
        model = w.model().to(mates.device)
        models[number(w.name)] = backward(model, w.loss, autocast=autocast, compile=bool(setting.get("compile")))
    try:
        lend(models, mates)
    except MateLost:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

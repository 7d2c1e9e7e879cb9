"""Workers on the machines of a Ray cluster (https://docs.ray.io, extra `ray`).

Each has an actor, which starts the same process as on one machine (`bench/crews/process.py`), pinned to cores of its own, and passes its lines on. The
actor trains nothing, so what Ray does to it cannot change a number. When it dies, the worker sees that its parent is gone, saves, and leaves.
"""

import contextlib
import os
import queue
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from velodrome.bench.crews.process import Process
from velodrome.bench.crews.storage import url

SILENCE = 5.0  # seconds after which an actor answers that there is nothing new


class Host:
    """Lives on a machine of the cluster: one worker, and what it says."""

    def __init__(self, plan: dict[str, Any], folder: str, files: dict[str, str]):
        _enter(folder, files)
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.worker = Process(plan, self.lines.put)

    def hear(self) -> list[str | None]:
        """The lines since the last call; waits for one. None is the last."""
        found: list[str | None] = []
        with contextlib.suppress(queue.Empty):
            found.append(self.lines.get(timeout=SILENCE))
            while True:
                found.append(self.lines.get_nowait())
        return found

    def ask(self) -> None:
        """Ask the worker to save and leave."""
        self.worker.ask()

    def end(self, seconds: float) -> str:
        """Wait for it that long, then kill it; how it ended."""
        self.worker.end(seconds)
        return self.worker.crash()


def _enter(folder: str, files: dict[str, str]) -> None:
    """The folder that the race was started in, where this machine has it with the same files; else a folder with those files alone."""
    with contextlib.suppress(OSError):
        if all((Path(folder) / name).read_text(encoding="utf-8") == text for name, text in files.items()):
            os.chdir(folder)
            return
    scratch = Path(tempfile.mkdtemp(prefix="velodrome-"))
    for name, text in files.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_text(text, encoding="utf-8")
    os.chdir(scratch)


class Cluster:
    """A connection to a cluster; leaving it ends what was started there.

    `address` is "auto" for the cluster that this machine is part of, "local" for one made of this machine alone, or the HOST:PORT of its head. ValueError
    if there is none, or without the package `ray`.
    """

    def __init__(self, address: str):
        try:
            import ray
        except ImportError:
            raise ValueError('--on-ray needs Ray: pip install "velodrome[ray]".') from None
        self.ray = ray
        self.mine = not ray.is_initialized()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own advice: hide no GPU from a worker without one
        os.environ.setdefault("RAY_worker_niceness", "0")  # with --on-ray local; a cluster is told when it starts (docs/fanout.md)
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == "local":
            quiet["include_dashboard"] = False
        if self.mine:
            try:
                _reached(address)
                ray.init(address=address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                raise ValueError(
                    f"there is no Ray cluster at {address!r} ({reason}): start one by `ray start --head`, or write --on-ray local."
                ) from None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error: object) -> None:
        if self.mine:
            self.ray.shutdown()

    def room(self, plan: dict[str, Any]) -> int:
        """How many workers the machines that are there can hold at once; ValueError for none."""
        need, what = _need(plan), "GPU" if _on_gpu(plan) else "CPU"
        count = sum(int(node["Resources"].get(what, 0) // need[what]) for node in self.ray.nodes() if node["Alive"])
        if not count:
            raise ValueError(
                f"no machine of the cluster has {need[what]} {what}s: start one, ask for fewer, or say how many will come with --workers."
            )
        return count

    def start(self, plan: dict[str, Any], hear: Callable[[str | None], None]) -> "Remote":
        """A worker wherever there is room; its plan names the folder of runs in full."""
        if url(plan["root"]) is None:
            plan = {**plan, "root": str(Path(plan["root"]).absolute())}
        return Remote(self.ray, plan, hear)


class Remote:
    """One worker on the cluster, as its race sees it (`bench/fanout.py`, Member)."""

    def __init__(self, ray: Any, plan: dict[str, Any], hear: Callable[[str | None], None]):
        self.ray, self.told, self.waiting, self.death = ray, hear, True, ""
        need = _need(plan)
        kind = ray.remote(Host).options(num_cpus=need["CPU"], num_gpus=need["GPU"], max_restarts=0, max_concurrency=4)
        self.actor = kind.remote(plan, os.getcwd(), dict(_files(plan)))
        self.ear = threading.Thread(target=self._listen, daemon=True)
        self.ear.start()

    def _listen(self) -> None:
        try:
            while True:
                for line in self.ray.get(self.actor.hear.remote()):
                    if line is None:
                        self.death = self.ray.get(self.actor.end.remote(5.0))
                        return
                    self.told(line)
                self.waiting = False
        except self.ray.exceptions.RayError as error:
            self.death = f"its machine or its actor is gone ({type(error).__name__})"
        finally:
            self.waiting = False
            self._dismiss()  # another worker may need its room
            self.told(None)

    def _dismiss(self) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.kill(self.actor)

    def ask(self) -> None:
        """Ask it to save and leave; one that waits for a machine has nothing to save."""
        if self.ear.is_alive() and not self.waiting:
            self.actor.ask.remote()

    def end(self, seconds: float) -> None:
        """Wait for it that long, then kill it."""
        if self.ear.is_alive() and not self.waiting:
            self.ear.join(max(0.1, seconds))
            if self.ear.is_alive():
                with contextlib.suppress(self.ray.exceptions.RayError):
                    self.ray.get(self.actor.end.remote(0.0), timeout=10.0)
        self._dismiss()
        self.ear.join(5.0)

    def crash(self) -> str:
        """How it ended, '' for well."""
        return self.death

    def close(self) -> None:
        """Nothing is left of it."""


def _reached(address: str) -> None:
    """OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10.0).close()


def _on_gpu(plan: dict[str, Any]) -> bool:
    return str(plan["setting"].get("device", "cpu")).startswith("cuda")


def _need(plan: dict[str, Any]) -> dict[str, int]:
    """What one worker takes of a machine."""
    processes = plan.get("processes", 1)
    return {"CPU": plan["threads"] * processes, "GPU": processes if _on_gpu(plan) else 0}


def _files(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, text) of the files that the plan's algorithms and workloads name."""
    for text in dict.fromkeys((*plan["algorithms"], *plan["workloads"])):
        found = re.match(r"([^(]*\.py):", text)
        if found and not Path(found[1]).is_absolute() and ".." not in Path(found[1]).parts and Path(found[1]).is_file():
            yield found[1], Path(found[1]).read_text(encoding="utf-8")

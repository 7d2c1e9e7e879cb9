"""`velodrome doctor`: what this machine has, how fast it is, and whether races can run here."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from velodrome.commands.options import parse, print_json
from velodrome.data.folder import find, folder
from velodrome.reports.console import Terminal
from velodrome.reports.words import MISSING, digits
from velodrome.version import __version__

HELP = """What this machine has: versions, compiler, cores, devices, memory, disk, data,
and its measured speed. Takes a few seconds.

  velodrome doctor
  velodrome doctor --json

Exit code 0 if races can run, 1 if not, with what to do."""

CORE = ("torch", "numpy", "safetensors", "tyro", "rich")
EXTRAS = {
    "data": ("pyarrow", "Pillow", "scikit-learn", "tokenizers"),
    "report": ("altair", "vl-convert-python"),
    "query": ("duckdb",),
    "tensorboard": ("tensorboard",),
}
DATA = ("mnist", "cifar10", "shakespeare", "novels")
MOMENT = 0.12  # seconds of each measurement
DISK = 200e6  # bytes; the records of a race are a few, its checkpoints some tens of MB


@dataclass
class Options:
    """Options of the doctor."""

    json: bool = False
    """Print one JSON object."""


def main(arguments: list[str]) -> int:
    """0 if races can run, 1 if not."""
    o = parse(Options, "doctor", arguments, HELP)
    found = examine()
    if o.json:
        print_json(found)
    else:
        console = Terminal()
        console.print(table(found))
        for problem in found["problems"]:
            console.print(Text(f"✗ {problem}", style="bold red"))
        if not found["problems"]:
            console.print(Text("✓ Races can run here.", style="bold green"))
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Everything, JSON-ready; `problems` is what keeps races from running, one sentence each."""
    found: dict[str, Any] = {
        "versions": {"velodrome": __version__, "python": platform.python_version(), **{name: version(name) for name in CORE}},
        "extras": {extra: {name: version(name) for name in names} for extra, names in EXTRAS.items()},
        "platform": platform.platform(),
        "compiler": compiler(),
        "cores": cores(),
        "memory": memory(),
        "working_folder": {"path": str(Path.cwd()), "writable": writable(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "VELODROME_DATA": os.environ.get("VELODROME_DATA"),
        "data": {name: place(name) for name in DATA},
    }
    found |= torch_part()
    found["problems"] = problems(found)
    return found


def problems(found: dict[str, Any]) -> list[str]:
    """What keeps races from running, and what to do about it."""
    said = []
    for name in CORE:
        if found["versions"][name] is None:
            said.append(f"{name} is missing: pip install velodrome.")
    if found["torch_error"]:
        said.append(f"torch cannot be used ({found['torch_error']}): install it again.")
    here = found["working_folder"]
    if not here["writable"]:
        said.append(f"The working folder {here['path']} is not writable: change to another, or race with --out FOLDER --report FILE.")
    if here["free"] < DISK:
        said.append(f"Only {gigabytes(here['free'])} are free in {here['path']}: make room, or race with --out FOLDER.")
    return said


def version(package: str) -> str | None:
    """The installed version; None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiler() -> str | None:
    """Path of the C++ compiler that torch.compile would use on the CPU."""
    named = os.environ.get("CXX")
    return next((path for name in ([named] if named else ["g++", "clang++", "c++", "cl"]) if (path := shutil.which(name))), None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> dict[str, int | None]:
    """Bytes of memory, `total` and `free` (available without swapping), within the limit of a container; None where it cannot be asked."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    except OSError:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
        return {"total": pages, "free": None}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):  # no control group, or its limit is "max"
        pass
    return {"total": total, "free": free}


def writable(path: Path) -> bool:
    """Whether a file can be made there; asked by making one, since permissions do not tell about read-only disks."""
    try:
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def place(name: str) -> str | None:
    """Where a data set lies; None where it is not found."""
    try:
        return str(find(name))
    except ValueError:
        return None


def torch_part() -> dict[str, Any]:
    """Threads, devices and measured speed; `torch_error` where torch cannot be imported or used."""
    part: dict[str, Any] = {"torch_error": None, "threads": None, "devices": [], "speed": {}}
    try:
        import torch

        part["threads"] = torch.get_num_threads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a driver that is too old warns, and then there is no device
            for i in range(torch.cuda.device_count()):
                card = torch.cuda.get_device_properties(i)
                part["devices"].append({"name": f"cuda:{i}", "model": card.name, "memory": card.total_memory})
        if torch.backends.mps.is_available():
            part["devices"].append({"name": "mps", "model": platform.processor(), "memory": None})
        part["speed"] = speed(torch)
    except Exception as error:  # a broken installation fails in many ways, and saying so is this command's purpose
        part["torch_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return part


def speed(torch: Any) -> dict[str, float]:
    """Measured on the CPU: FLOP/s of a float32 product of 512 x 512 matrices on one and on all threads, and bytes/s copied (read + written)."""
    every = torch.get_num_threads()
    a, b = torch.ones(512, 512), torch.ones(512, 512)
    source, target = torch.zeros(8 << 20), torch.empty(8 << 20)  # 32 MB each: larger than most caches
    try:
        torch.set_num_threads(1)
        one = 2 * 512**3 / best(lambda: torch.mm(a, b))
        torch.set_num_threads(max(every, cores()))
        return {
            "matmul_1_thread": one,
            "matmul_all_threads": 2 * 512**3 / best(lambda: torch.mm(a, b)),
            "copy": 2 * 4 * source.numel() / best(lambda: target.copy_(source)),
        }
    finally:
        torch.set_num_threads(every)


def best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of the repetitions that fit into a moment: the others were disturbed."""
    end, fastest = time.perf_counter() + MOMENT, float("inf")
    while time.perf_counter() < end or fastest == float("inf"):
        start = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def gigabytes(size: float | None) -> str:
    """Bytes in GB of 10^9."""
    return MISSING if size is None else f"{digits(size / 1e9)} GB"


def table(found: dict[str, Any]) -> Table:
    """The findings in two columns."""
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")

    def row(name: str, text: str, good: bool = True) -> None:
        grid.add_row(Text(name), Text(text, style="" if good else "yellow"))

    for name, value in found["versions"].items():
        row(name, value or "missing", value is not None)
    for extra, packages in found["extras"].items():
        lacking = [name for name, value in packages.items() if value is None]
        present = ", ".join(f"{name} {value}" for name, value in packages.items() if value is not None)
        text = present + ("; " if present and lacking else "")
        row(f"[{extra}]", text + (f'missing: pip install "velodrome[{extra}]" ({", ".join(lacking)})' if lacking else ""), not lacking)
    row("compiler", found["compiler"] or "no C++ compiler: --compile will run without compiling on the CPU", found["compiler"] is not None)
    row("cores", f"{found['cores']} ({MISSING if found['threads'] is None else found['threads']} threads by default)")
    for device in found["devices"]:
        row(device["name"], f"{device['model']}, {gigabytes(device['memory'])}")
    if not found["devices"]:
        row("devices", "cpu only")
    row("memory", f"{gigabytes(found['memory']['free'])} free of {gigabytes(found['memory']['total'])}")
    here = found["working_folder"]
    row("folder", f"{here['path']}, {gigabytes(here['free'])} free{'' if here['writable'] else ', not writable'}", here["writable"])
    row("data folder", str(folder() or "none; set VELODROME_DATA"), folder() is not None)
    for name, path in found["data"].items():
        row(f"  {name}", path or "missing", path is not None)
    if found["speed"]:
        one, every, copy = (found["speed"][key] / 1e9 for key in ("matmul_1_thread", "matmul_all_threads", "copy"))
        row("matmul", f"{digits(one)} GFLOP/s on one thread, {digits(every)} on all (float32)")
        row("copy", f"{digits(copy)} GB/s read and written")
    return grid

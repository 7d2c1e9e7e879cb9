"""Joules, where the machine counts them: Intel's and AMD's counters of the processor packages (RAPL), NVIDIA's of a GPU. Imports no torch.

They count the whole device, whoever used it: a run's joules are those of its own turns, and mean it alone only if nothing else runs. Where there is no
counter, or none that we may read (root's only on most kernels), the answer is None and never 0.
"""

import contextlib
import ctypes
from pathlib import Path

RAPL = Path("/sys/class/powercap")


class Meter:
    """Counters of the device that runs compute on: `read()` gives joules since some moment in the past, or None."""

    def __init__(self, device: str = "cpu", root: Path = RAPL):
        self.gpu = _Gpu(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else None
        self.packages = (
            []
            if self.gpu
            else [p for p in sorted(root.glob("*-rapl:*")) if p.name.count(":") == 1 and _number(p / "energy_uj") is not None]
        )
        self.ranges = [_number(p / "max_energy_range_uj") or 0 for p in self.packages]
        self.last: list[int | None] = [_number(p / "energy_uj") for p in self.packages]
        self.total = 0

    @property
    def source(self) -> str | None:
        """What is counted, in words; None without a counter."""
        if self.gpu:
            return "the GPU's board" if self.gpu.joules() is not None else None
        return "the processor packages" if self.packages else None

    def read(self) -> float | None:
        """Joules so far; only differences mean something."""
        if self.gpu:
            return self.gpu.joules()
        if not self.packages:
            return None
        now = [_number(p / "energy_uj") for p in self.packages]
        for before, after, span in zip(self.last, now, self.ranges, strict=True):
            if before is None or after is None:
                return None
            self.total += after - before + (span if after < before else 0)  # the counter has come round
        self.last = now
        return self.total / 1e6


class _Gpu:
    """NVML's counter of one GPU, in the driver's own library; nothing where there is no such library or counter."""

    def __init__(self, index: int):
        self.library: ctypes.CDLL | None = None
        self.handle = ctypes.c_void_p()
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self.handle)) == 0:
                self.library = library

    def joules(self) -> float | None:
        """Since the driver was loaded."""
        if self.library is None:
            return None
        millijoules = ctypes.c_ulonglong()
        if self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value / 1e3


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

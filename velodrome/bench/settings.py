"""Settings of the whole process that a run may change for the others: remembered when the run begins, put back whenever it has been on, and told."""

import gc
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch


class Kept(NamedTuple):
    """One setting: its name in words, how it is read and how it is put back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _set_cudnn(value: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = value


def _default_device() -> torch.device:
    return torch.empty(0).device  # torch.get_default_device takes 30 times as long


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _set_folder(value: str | None) -> None:
    if value is not None:
        os.chdir(value)


def _set_default_device(value: torch.device) -> None:
    torch.set_default_device(None if value == torch.device("cpu") else value)


KEPT = (
    Kept("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Kept("the default device", _default_device, _set_default_device),
    Kept("the number of threads", torch.get_num_threads, torch.set_num_threads),
    Kept("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    Kept("deterministic algorithms", _deterministic, lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1])),
    Kept("the precision of products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Kept("cuDNN's flags", _cudnn, _set_cudnn),
    Kept("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Kept("NumPy's error handling", np.geterr, lambda v: np.seterr(**v)),
    Kept("garbage collection", gc.isenabled, lambda v: gc.enable() if v else gc.disable()),
    Kept("the limit of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    Kept("the working folder", _folder, _set_folder),
)


class Settings:
    """The process's settings as they are now; `put_back` returns the names of those that had changed."""

    def __init__(self) -> None:
        self.values = [kept.read() for kept in KEPT]

    def put_back(self) -> list[str]:
        """Everything as it was when this was made."""
        changed = []
        for kept, before in zip(KEPT, self.values, strict=True):
            if kept.read() != before:
                kept.write(before)
                changed.append(kept.name)
        return changed

"""Whether a device is there, and the settings that runs on it share; asked before anything is written."""

import os

import torch


def check_device(name: str) -> None:
    """A device that is there, and on a GPU the settings that a race uses; ValueError otherwise."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"there is no device {name!r} here ({reason}): `velodrome doctor` lists the devices.") from None
    if device.type == "meta":
        raise ValueError("the device 'meta' computes nothing: write cpu or cuda.")
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)

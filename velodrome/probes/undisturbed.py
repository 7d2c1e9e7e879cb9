"""A look leaves no trace: modes, gradients, buffers and random generators of a model are afterwards what they were, bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Inside, the model may be run, put into another mode and differentiated; afterwards, also after an error, all of it is as it was.

    Kept: every module's mode, every parameter's `.grad` (set aside, so that it is None inside; the very tensor comes back) and `requires_grad`, the
    content of every buffer, the random generators of Python's torch on the CPU and on the devices that hold parameters. `weights=True` also keeps the
    parameters' values, for probes that move them: one copy of the model. Hooks that a reader puts on must be taken off by that reader.
    """
    modes = [(m, m.training) for m in model.modules()]
    params = [(p, p.grad, p.requires_grad, p.detach().clone() if weights else None) for p in model.parameters()]
    buffers = [(m, name, b, None if b is None else b.detach().clone()) for m in model.modules() for name, b in m._buffers.items()]
    devices = sorted({p.device.index or 0 for p, *_ in params if p.is_cuda})
    random = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices]
    for p, *_ in params:
        p.grad = None
    try:
        yield
    finally:
        _restore(modes, params, buffers)
        torch.set_rng_state(random[0])
        for device, state in zip(devices, random[1], strict=True):
            torch.cuda.set_rng_state(state, device)


@torch.no_grad()
def _restore(modes: list[Any], params: list[Any], buffers: list[Any]) -> None:
    for module, training in modes:
        module.training = training
    for p, grad, asked, old in params:
        p.requires_grad_(asked)
        p.grad = grad
        if old is not None:
            p.copy_(old)
    for module, name, buffer, old in buffers:
        module._buffers[name] = buffer  # a forward pass may have put another tensor in its place
        if buffer is not None and not _same(buffer, old):
            buffer.copy_(old)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))  # NaN differs from itself, and is copied back

"""Memory of a training step, counted from the tensors that really lived: the same number on every machine, and a run's own among others.

The resident set of a process is shared by all runs that take turns in it, includes what the allocator keeps for later, and never shrinks back; so
what is counted is storage: every tensor that an operation returns, from its making to its release. Scratch space inside an operation
(a convolution's workspace, threads' buffers) is not seen.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """While it is entered: `live` bytes of tensors made inside and not yet released, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, int] = {}  # storages by address, and what they count for: 0 for those that were there before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._note(tensor, counts=False)
        value = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._note(tensor, counts=True)
        return value

    def _note(self, tensor: Tensor, counts: bool) -> None:
        try:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes() if counts else 0
        except (RuntimeError, NotImplementedError):  # a sparse tensor, or one without memory
            return
        if key in self.known:
            return
        self.known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._released, key).atexit = False

    def _released(self, key: int) -> None:
        self.live -= self.known.pop(key, 0)


def held(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of these tensors; a storage that several share counts once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor is not None:
            sizes[tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


class Footprint:
    r"""$\max(P + B + S + G,\ P + B + g + U)$ in bytes: parameters and buffers $P$, the batch $B$, the optimizer's state $S$, the highest
    point of a gradient $G$ (activations, gradients) and of an update $U$ (its state and scratch) beyond what was there before, gradients $g$.

    Measured at the first gradient and the first update, so scratch of a later kind of update (every k-th) is not in it.
    """

    def __init__(self, params: Iterable[Tensor], model: nn.Module | None):
        self.params = list(params)
        buffers = [] if model is None else list(model.buffers())
        self.fixed = held([*self.params, *(() if model is None else model.parameters()), *buffers])
        self.gradient = self.state = self.update = 0

    def gradient_seen(self, peak: Peak, batch: Iterable[Tensor]) -> None:
        """What a gradient took."""
        self.gradient = max(self.gradient, held(batch) + peak.peak)

    def update_seen(self, peak: Peak, gradients: int) -> None:
        """What the first update took, and what it has left behind: the state."""
        self.update, self.state = gradients + peak.peak, max(0, peak.live)

    @property
    def bytes(self) -> int:
        """The highest point of a step."""
        return self.fixed + max(self.state + self.gradient, self.update)

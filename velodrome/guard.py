"""The guard: a reader between gradient and update may look, not write. It sees in-place writes, replaced tensors and writes through `.data`.

`Tensor._version` misses writes through `.data`, so content is compared. Small tensors are copied and compared byte by byte. Of a large one only a
digest is kept: one pass over memory, 64-bit words summed modulo 2^64 in 1,021 columns, the columns weighted with fixed random odd numbers. A change
of one word always changes it, any other escapes with a chance of about 2^-64, unless it only moves words by multiples of 1,021.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 2**17  # bytes up to which a tensor is copied; a digest costs several calls
COLUMNS = 1021  # odd and prime, so that rows of common widths do not fall on themselves when they are exchanged
WEIGHTS = np.random.default_rng(20240229).integers(0, 2**63, COLUMNS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
NUMPY_DTYPES = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool}


def digest(data: Any) -> int:
    """A number that changes when the content of an array does: one pass, about 0.2 ms per 10^6 float32 on one core."""
    flat = data.reshape(-1)
    odd = flat.nbytes % 8 // flat.itemsize
    words = (flat[:-odd] if odd else flat).view(np.uint64)
    rows = words.size // COLUMNS
    rest = words[rows * COLUMNS :]
    columns = np.add.reduce(words[: rows * COLUMNS].reshape(rows, COLUMNS), axis=0)
    tail = int.from_bytes(flat[-odd:].tobytes(), "little") if odd else 0
    return (tail << 80) + 3 * int(columns.dot(WEIGHTS)) + int(rest.dot(WEIGHTS[: rest.size]))


def digest_on_device(tensor: Tensor) -> int:
    """The same for a tensor that NumPy cannot see in place, on its own device; of a sparse one, for its values."""
    plain = tensor.detach()
    flat = (plain if plain.layout == torch.strided else plain.coalesce().values()).contiguous().view(-1)
    words = flat.view(BITS[flat.element_size()])
    weights = torch.from_numpy(WEIGHTS.view(np.int64)).to(words.device)
    rows = words.numel() // COLUMNS
    rest = words[rows * COLUMNS :]
    columns = words[: rows * COLUMNS].view(rows, COLUMNS).sum(0, dtype=torch.int64)
    return int((3 * (columns * weights).sum() + (rest * weights[: rest.numel()]).sum()).item())


def view(tensor: Tensor) -> Any:
    """The memory of a tensor as an array, or None where there is no such view: another device, not contiguous."""
    if not (tensor.is_cpu and tensor.layout == torch.strided and tensor.is_contiguous()):
        return None
    plain = tensor.detach() if tensor.requires_grad else tensor
    return (plain if plain.dtype in NUMPY_DTYPES else plain.view(-1).view(BITS[plain.element_size()])).numpy()


def reader(tensor: Tensor) -> Callable[[], Any]:
    """A function that gives what stands for the tensor's content now: its bytes, or the digest of a large one."""
    array = view(tensor)
    if array is None:
        return partial(digest_on_device, tensor)
    return array.tobytes if array.nbytes <= SMALL else partial(digest, array)


class Guard:
    """What named tensors and their gradients hold, remembered before a reader and compared after it. On the path of every step.

    `named()` gives (name, tensor, name of its gradient); it is asked at every step, because a forward pass may put another tensor in a buffer's place.
    """

    def __init__(self, named: Callable[[], list[tuple[str, Tensor, str]]]):
        self.named = named
        self.tensors: list[tuple[str, Tensor, str]] = []
        self.readers: dict[str, tuple[int, Callable[[], Any]]] = {}  # address and reader of what stays where it is: parameters and buffers
        self.seen: list[tuple[str, Tensor, int, Callable[[], Any], Any]] = []  # name, tensor, address, reader, content
        self.grads: list[Tensor | None] = []

    def close(self) -> None:
        """Remember."""
        seen = self.seen = []
        self.tensors = self.named()
        self.grads = []
        for name, t, grad_name in self.tensors:
            place = t.data_ptr()
            known, read = self.readers.get(name, (None, None))
            if read is None or known != place:
                read = reader(t)
                self.readers[name] = place, read
            seen.append((name, t, place, read, read()))
            g = t.grad
            self.grads.append(g)
            if g is not None:
                read = reader(g)
                seen.append((grad_name, g, g.data_ptr() if g.layout is torch.strided else 0, read, read()))

    def difference(self) -> str | None:
        """The first tensor that is no longer as `close` saw it, by name."""
        for name, tensor, place, read, before in self.seen:
            if read() != before or (place and tensor.data_ptr() != place):
                return name
        for (_, tensor, name), grad in zip(self.tensors, self.grads, strict=True):
            if tensor.grad is not grad:
                return name
        return None

    def check(self, t: int) -> None:
        """Raise ValueError naming the first tensor that differs from what `close` saw."""
        changed = self.difference()
        self.seen, self.grads = [], []  # or the gradients' memory could not be used again by the next backward pass
        if changed is not None:
            raise ValueError(
                f"the reader of step {t} changed {changed}: between the gradient and the update it may only look. "
                "Change a copy, or make the change part of the optimizer, the gradient or the stream."
            )

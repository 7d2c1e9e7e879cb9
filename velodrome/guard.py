"""The guard: a reader between gradient and update may look, not write. It sees in-place writes, replaced tensors and writes through `.data`.

`Tensor._version` misses writes through `.data`, so content is compared: a digest of every tensor's bytes before and after the reader. On CPU it is
one pass over memory: 64-bit words summed modulo 2^64 in 4,093 columns, the columns weighted with fixed random odd numbers. A change of one
word always changes it, any other escapes with a chance of about 2^-64, unless it only moves words by multiples of 4,093.
"""

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

COLUMNS = 4093  # odd and prime, so that rows of common widths do not fall on themselves when they are exchanged
SMALL = 512  # bytes; below, zlib's CRC-32 is quicker
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.float64}
NUMPY_DTYPES = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool}
WEIGHTS = np.random.default_rng(20240229).integers(0, 2**63, COLUMNS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Memory:
    """The memory of a CPU tensor, seen through NumPy and cut once, so that digesting it again is three calls."""

    __slots__ = ("columns", "rest", "tail", "weights")

    def __init__(self, tensor: Tensor):
        flat = tensor.detach()
        flat = flat if flat.is_contiguous() else flat.contiguous()
        data: Any = (flat if flat.dtype in NUMPY_DTYPES else flat.view(BITS[flat.element_size()])).numpy().reshape(-1)
        self.columns: Any = None
        self.rest: Any = None
        self.tail: Any = data
        if data.nbytes > SMALL:
            odd = data.nbytes % 8 // data.itemsize
            words = (data[:-odd] if odd else data).view(np.uint64)
            rows = words.size // COLUMNS
            self.columns = words[: rows * COLUMNS].reshape(rows, COLUMNS) if rows else None
            self.rest = words[rows * COLUMNS :]
            self.weights = WEIGHTS[: self.rest.size]
            self.tail = data[-odd:] if odd else None

    def digest(self) -> int:
        """A number that changes when the content does."""
        total = crc32(self.tail) if self.tail is not None else 0
        if self.rest is not None:
            total = (total << 66) + int(self.rest.dot(self.weights))
        if self.columns is not None:
            total += 3 * int(np.add.reduce(self.columns, axis=0).dot(WEIGHTS))
        return total


def digest(tensor: Tensor) -> int:
    """A number that changes when the content does. On CPU one pass over memory, 0.3 ms per 10^6 float32 on one core, 2 µs at least."""
    if tensor.device.type == "cpu":
        return Memory(tensor).digest()
    return _digest_on_device(tensor.detach().contiguous().view(-1))


def _digest_on_device(flat: Tensor) -> int:
    words = flat.view(torch.uint8 if flat.element_size() == 1 else torch.int16 if flat.element_size() == 2 else torch.int32)
    weights = torch.from_numpy(WEIGHTS.view(np.int64)).to(flat.device)
    rows = words.numel() // COLUMNS
    rest = words[rows * COLUMNS :]
    columns = words[: rows * COLUMNS].view(rows, COLUMNS).sum(0, dtype=torch.int64)
    return int((3 * (columns * weights).sum() + (rest * weights[: rest.numel()]).sum()).item())


class Guard:
    """Digests of named tensors and their gradients, taken before a reader and compared after it."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = [(name, t, name + ".grad") for name, t in tensors.items()]
        self.seen: list[
            tuple[str, Tensor, int, Memory | None, int]
        ] = []  # name, tensor, address, memory if it can be read in place, digest
        self.grads: list[int] = []  # which objects they are
        self.memories: dict[int, Memory] = {}  # of what stays where it is, parameters and buffers, by address

    def close(self) -> None:
        """Remember what the tensors and their gradients hold."""
        self.seen = []
        self.grads = [id(t.grad) for _, t, _ in self.tensors]
        for name, t, grad_name in self.tensors:
            address = t.data_ptr()
            memory = self.memories.get(address)
            if memory is None and _in_place(t):
                memory = self.memories[address] = Memory(t)
            self.seen.append((name, t, address, memory, digest(t) if memory is None else memory.digest()))
            if (g := t.grad) is not None:
                memory = Memory(g) if _in_place(g) else None
                self.seen.append((grad_name, g, g.data_ptr(), memory, digest(g) if memory is None else memory.digest()))

    def check(self, t: int) -> None:
        """Raise ValueError naming the first tensor that differs from what `close` saw."""
        for name, tensor, address, memory, before in self.seen:
            if tensor.data_ptr() != address or (digest(tensor) if memory is None else memory.digest()) != before:
                self._refuse(t, name)
        if [id(x.grad) for _, x, _ in self.tensors] != self.grads:
            self._refuse(t, "which tensors are the gradients")
        self.seen = []  # or the gradients' memory could not be used again by the next backward pass

    def _refuse(self, t: int, what: str) -> None:
        raise ValueError(
            f"the reader of step {t} changed {what}: between the gradient and the update it may only look. "
            "Change a copy, or make the change part of the optimizer, the gradient or the stream."
        )


def _in_place(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.is_contiguous()

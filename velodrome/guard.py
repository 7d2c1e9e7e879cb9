"""The guard: a reader between gradient and update may look, not write. It sees in-place writes, replaced tensors and writes through `.data`.

`Tensor._version` misses writes through `.data`, so content is compared: a digest of every tensor's bytes before and after the reader. On CPU it is
one pass over memory: 64-bit words summed modulo 2^64 in 1,021 columns, the columns weighted with fixed random odd numbers. A change of one
word always changes it, any other escapes with a chance of about 2^-64, unless it only moves words by multiples of 1,021.
"""

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

COLUMNS = 1021  # odd and prime, so that rows of common widths do not fall on themselves when they are exchanged
SMALL = 1024  # bytes; below, zlib's CRC-32 is quicker
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.float64}
NUMPY_DTYPES = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool}
WEIGHTS = np.random.default_rng(20240229).integers(0, 2**63, COLUMNS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def digest(tensor: Tensor) -> int:
    """A number that changes when the content changes. On CPU one pass over memory, 0.3 ms per 10^6 float32 on one core, 2 µs at least."""
    if tensor.device.type == "cpu":
        return _digest_of_array(_array(tensor))
    return _digest_on_device(tensor.detach().contiguous().view(-1))


def _array(tensor: Tensor) -> np.ndarray:
    """The content of a CPU tensor for NumPy, in place if it is contiguous; bfloat16 and other formats NumPy lacks as their bits."""
    flat = tensor.detach()
    if not flat.is_contiguous():
        flat = flat.contiguous()
    return (flat if flat.dtype in NUMPY_DTYPES else flat.view(BITS[flat.element_size()])).numpy()


def _digest_of_array(a: Any) -> int:
    if a.nbytes <= SMALL:
        return crc32(a)
    flat = a.reshape(-1)
    odd = a.nbytes % 8 // a.itemsize
    words = (flat[:-odd] if odd else flat).view(np.uint64)
    rows = words.size // COLUMNS
    rest = words[rows * COLUMNS :]
    total = int(rest.dot(WEIGHTS[: rest.size]))
    if rows:
        total += 3 * int(np.add.reduce(words[: rows * COLUMNS].reshape(rows, COLUMNS), axis=0).dot(WEIGHTS))
    return total + (crc32(flat[-odd:]) << 66) if odd else total


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
        self.tensors = list(tensors.items())
        self.seen: list[tuple[str, Tensor, int, Any, int]] = []  # name, tensor, address, its memory if NumPy can see it, digest
        self.arrays: dict[int, Any] = {}  # views of what stays where it is: parameters and buffers, by address

    def close(self) -> None:
        """Remember what the tensors and their gradients hold."""
        self.seen = []
        for name, t in self.tensors:
            address = t.data_ptr()
            array = self.arrays.get(address)
            if array is None and _in_place(t):
                array = self.arrays[address] = _array(t)
            self.seen.append((name, t, address, array, digest(t) if array is None else _digest_of_array(array)))
            if (g := t.grad) is not None:
                array = _array(g) if _in_place(g) else None
                self.seen.append((name + ".grad", g, g.data_ptr(), array, digest(g) if array is None else _digest_of_array(array)))

    def check(self, t: int) -> None:
        """Raise ValueError naming the first tensor that differs from what `close` saw."""
        for name, tensor, address, array, before in self.seen:
            if tensor.data_ptr() != address or (digest(tensor) if array is None else _digest_of_array(array)) != before:
                self._refuse(t, name)
        grads = [x.grad for _, x in self.tensors if x.grad is not None]
        seen = [x for name, x, *_ in self.seen if name.endswith(".grad")]
        if len(grads) != len(seen) or any(a is not b for a, b in zip(grads, seen, strict=True)):
            self._refuse(t, "which tensors are the gradients")

    def _refuse(self, t: int, what: str) -> None:
        raise ValueError(
            f"the reader of step {t} changed {what}: between the gradient and the update it may only look. "
            "Change a copy, or make the change part of the optimizer, the gradient or the stream."
        )


def _in_place(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.is_contiguous()

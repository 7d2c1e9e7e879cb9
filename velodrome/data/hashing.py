"""Digests of content, and randomness that is a pure function of a key.

A generator seeded by the SHA-256 of its key needs no history: batch t of seed s is the same whatever was drawn before, so the state
of a stream is a few integers. Splits are ordered by SHA-256 too: they will not move with a version of NumPy or PyTorch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def digest(*parts: Tensor | bytes | str) -> str:
    """SHA-256, in hex, of the parts in order: tensors with dtype and shape, text as UTF-8. Where a part ends enters the hash."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous().numpy()
            total.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
            total.update(array.reshape(-1).view(np.uint8).data)
        else:
            raw = part.encode() if isinstance(part, str) else part
            total.update(f"bytes {len(raw)};".encode())
            total.update(raw)
    return total.hexdigest()


def number(*key: int | str) -> int:
    """A number in [0, 2^63) that is a pure function of the key and uniform over keys: the first 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A fresh CPU generator whose draws are a pure function of the key."""
    return torch.Generator().manual_seed(number(*key))


def check_seed(seed: object) -> int:
    """`seed` itself if it is an int >= 0, else a ValueError."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be an int of at least 0, got {seed!r}.")
    return seed


def check_count(name: str, value: object) -> int:
    """`value` itself if it is an int >= 1, else a ValueError that names it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}.")
    return value


def check_fraction(name: str, value: object) -> float:
    """`value` itself if it lies strictly between 0 and 1, else a ValueError that names it."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}.")
    return value


def held_out(labels: Sequence[int], fraction: float, seed: int = 0) -> Tensor:
    """Stratified validation mask, bool (N,): of each label's n examples the round(fraction · n) with the smallest hash of (seed, label, rank).

    A label with at least two examples gives at least one and keeps at least one.
    """
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(int(label), []).append(row)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, members in rows.items():
        count = min(max(round(check_fraction("holdout", fraction) * len(members)), 1), len(members) - 1)
        order = sorted(range(len(members)), key=lambda rank, label=label: number("held out", seed, label, rank))  # type: ignore[misc]
        mask[[members[rank] for rank in order[:count]]] = True
    return mask

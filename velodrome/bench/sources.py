"""The data that runs of one process share: who has written it, and where. Version counters see every write but those through `.data` and NumPy; for those
the content is compared, all of it at every evaluation where it is small, else a part of it, and all of it at the end."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velodrome.data.stream import Batch, Stream
from velodrome.guard import digest, digest_on_device

BLOCK = 1 << 18  # bytes that are compared at once
BLOCKS = 1024  # at most: of a text of gigabytes, so many pieces evenly spread
SMALL = 64  # blocks (16 MiB, milliseconds): then a write is found in the turn of the run that wrote, and nobody else is taken for it
DEPTH = 6  # streams wrap streams


class DataWritten(Exception):
    """A run has written data that it may only read: what it measured since is void, and so is what others read."""


class Sources:
    """The tensors behind a run's stream and the batches it is evaluated on, as they are now; `check` and `check_all` raise DataWritten."""

    def __init__(self, stream: Stream, valid: list[Batch], evaluations: int):
        named = [(f"validation batch {i}", t) for i, b in enumerate(valid) for t in (b.inputs, b.targets)]
        tensors = [*_held(stream, "the training data", DEPTH), *named]
        self.versions = [(name, t, _version(t)) for name, t in tensors]
        self.blocks = [block for name, t in _distinct(tensors) for block in _blocks(name, t)]
        self.known = [_content(data) for _, data in self.blocks]
        self.share = len(self.blocks) if len(self.blocks) <= SMALL else -(-len(self.blocks) // evaluations)
        self.next = 0
        self.drawn: tuple[Batch, int, int] | None = None

    def draw(self, batch: Batch) -> Batch:
        """The same batch, remembered until `check_batch`."""
        self.drawn = batch, _version(batch.inputs), _version(batch.targets)
        return batch

    def check_batch(self) -> None:
        """The batch that was drawn last is as it was drawn."""
        if self.drawn is not None:
            batch, inputs, targets = self.drawn
            if _version(batch.inputs) != inputs or _version(batch.targets) != targets:
                raise DataWritten("wrote into a batch of training data in place: work on a copy.")

    def check(self) -> None:
        """No tensor has another version, and the next part of their content is the same."""
        for name, tensor, version in self.versions:
            if _version(tensor) != version:
                raise DataWritten(f"wrote into {name} in place: work on a copy.")
        for _ in range(self.share):
            self._compare(self.next)
            self.next = (self.next + 1) % len(self.blocks)

    def check_all(self) -> None:
        """As `check`, for all of it."""
        self.check()
        for i in range(len(self.blocks)):
            self._compare(i)

    def _compare(self, i: int) -> None:
        name, data = self.blocks[i]
        if _content(data) != self.known[i]:
            raise DataWritten(f"wrote into {name}, past the version counters: work on a copy.")


def _held(thing: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors that an object holds, itself or in what it holds."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif depth and isinstance(thing, list | tuple):
        for part in thing:
            yield from _held(part, name, depth - 1)
    elif depth and (isinstance(thing, Mapping) or (hasattr(thing, "__dict__") and not isinstance(thing, type))):
        for part in list((thing if isinstance(thing, Mapping) else vars(thing)).values()):
            yield from _held(part, name, depth - 1)


def _distinct(tensors: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """One tensor for every piece of memory."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, t in tensors:
        if t.layout is torch.strided:
            found.setdefault(t.untyped_storage().data_ptr(), (name, t))
    return list(found.values())


def _blocks(name: str, t: Tensor) -> list[tuple[str, Any]]:
    """Its memory in pieces: arrays where NumPy sees it."""
    storage = t.detach().untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=t.device).set_(storage)
    size = flat.numel()
    starts = range(0, size, BLOCK)
    if len(starts) > BLOCKS:
        starts = range(0, size, size // BLOCKS // 8 * 8)
    pieces = [flat[i : i + BLOCK] for i in starts]
    return [(name, piece.numpy() if piece.is_cpu else piece) for piece in pieces if piece.numel()]


def _content(data: Any) -> int:
    return digest(data) if isinstance(data, np.ndarray) else digest_on_device(data)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version

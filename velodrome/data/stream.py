"""Batch and Stream: what every source yields and every curriculum transforms.

A stream is an iterable of Batch that can say where it is (`state_dict`) and go back there (`load_state_dict`), without worker
processes and without replaying what was already drawn: the order is a pure function of (seed, epoch), so a position is two integers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch: `inputs` and `targets` share their first dimension, the number of examples.

    `tokens` counts the targets that enter the loss of a sequence task; it is None where a token has no meaning.
    """

    inputs: Tensor
    targets: Tensor
    tokens: int | None = None

    @property
    def examples(self) -> int:
        """Number of examples in the batch."""
        return self.inputs.shape[0]

    def to(self, device: Any) -> "Batch":
        """The same batch on another device."""
        return replace(self, inputs=self.inputs.to(device, non_blocking=True), targets=self.targets.to(device, non_blocking=True))

    def part(self, start: int, stop: int) -> "Batch":
        """Examples `start` to `stop` as a batch of their own."""
        tokens = None if self.tokens is None else self.tokens * (stop - start) // self.examples
        return Batch(self.inputs[start:stop], self.targets[start:stop], tokens)


@runtime_checkable
class Stream(Protocol):
    """Seeded, resumable and endless: after `load_state_dict(s)` the next batch equals, bit by bit, the one that followed `s = state_dict()`."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as JSON-ready numbers and strings; a few bytes, whatever the size of the data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken; a state of another stream (seed, data digest, batch size) is a ValueError."""
        ...

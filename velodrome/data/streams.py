"""Streams: endless, seeded, resumable batches from tensors in memory, and fixed batches to evaluate on.

    batches = Shuffled(train.inputs, train.targets, batch_size=128, seed=0, transform=normalise(), digest=train.digest)
    batches = Windows(train.tokens, length=128, batch_size=16, seed=0, digest=train.digest)

The order of epoch e is a pure function of (seed, e): a state is a few integers and loading one costs a permutation, not a replay.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from velodrome.data import hashing
from velodrome.data.hashing import check_count, check_seed, generator
from velodrome.data.stream import Batch
from velodrome.data.transforms import Transform


class Seeded(ABC):
    """Position, state and its checks, which all streams share. Concrete streams say what an epoch is and draw; they are final."""

    def __init__(self, seed: int, batch_size: int, digest: str) -> None:
        self.seed, self.batch_size, self.digest = check_seed(seed), check_count("batch_size", batch_size), digest
        self.epoch, self.position = 0, 0  # position counts the batches already drawn in this epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self.position == self._batches(self.epoch):
            self.epoch, self.position = self.epoch + 1, 0
        batch = self._draw(self.epoch, self.position)
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What identifies the stream (kind, seed, digest of the data, batch_size, …) and where it is: epoch and batches drawn in it."""
        return {**self._identity(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken. The state of another stream is a ValueError, and leaves this one where it is."""
        for name, own in self._identity().items():
            if name not in state or state[name] != own or type(state[name]) is not type(own):
                raise ValueError(f"This state belongs to another stream: its {name} is {state.get(name)!r} and this stream's is {own!r}.")
        epoch, position = state.get("epoch"), state.get("position")
        if not (type(epoch) is int and type(position) is int and epoch >= 0 and 0 <= position <= (self._batches(epoch) or position)):
            raise ValueError(f"A stream's state needs an epoch and a position inside it, got {epoch=}, {position=}.")
        self.epoch, self.position = epoch, position

    def _identity(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "seed": self.seed, "digest": self.digest, "batch_size": self.batch_size}

    @abstractmethod
    def _batches(self, epoch: int) -> int | None:
        """Batches in an epoch; None if it never ends."""

    @abstractmethod
    def _draw(self, epoch: int, position: int) -> Batch:
        """Batch number `position` of an epoch."""


class Shuffled(Seeded):
    """Epochs without replacement over `inputs` (N, …) and `targets` (N, …).

    `transform(inputs, generator)` sees the gathered inputs of one batch, with a generator that is a pure function of (seed, step).
    `drop_last` leaves out the N mod batch_size examples at the end of each epoch's order; otherwise they are a smaller batch.
    `digest` identifies the data (a source's `digest`); it is computed if it is not given.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        seed: int,
        *,
        transform: Transform | None = None,
        drop_last: bool = True,
        digest: str | None = None,
    ) -> None:
        super().__init__(seed, batch_size, digest if digest is not None else hashing.digest(inputs, targets))
        self.inputs, self.targets, self.transform, self.drop_last = inputs, targets, transform, drop_last
        _check_pairs(inputs, targets)
        self.batches_per_epoch = len(inputs) // batch_size if drop_last else -(-len(inputs) // batch_size)
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"batch_size must be at most the {len(inputs)} examples there are, got {batch_size}: or write drop_last=False."
            )
        self._ordered, self._order = -1, inputs.new_empty(0, dtype=torch.long)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "drop_last": self.drop_last}

    def _batches(self, epoch: int) -> int:
        return self.batches_per_epoch

    def _draw(self, epoch: int, position: int) -> Batch:
        if self._ordered != epoch:
            order = torch.randperm(len(self.inputs), generator=generator("Shuffled", self.seed, epoch))
            self._ordered, self._order = epoch, order.to(self.inputs.device)
        index = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        inputs, targets = self.inputs.index_select(0, index), self.targets.index_select(0, index)
        if self.transform is not None:
            step = epoch * self.batches_per_epoch + position
            inputs = self.transform(inputs, generator("Shuffled.transform", self.seed, step))
        return Batch(inputs, targets)


class Windows(Seeded):
    """Windows of `length` + 1 tokens as inputs and next-token targets, both int64 (B, L); Batch.tokens = B · L.

    An epoch lays windows end to end from a random phase in [0, L), so that no position is always a window's first, and draws them without
    replacement; every target is predicted at most once per epoch. The windows left over at its end, fewer than B, are dropped.
    """

    def __init__(self, tokens: Tensor, length: int, batch_size: int, seed: int, *, digest: str | None = None) -> None:
        super().__init__(seed, batch_size, digest if digest is not None else hashing.digest(tokens))
        self.tokens, self.length = tokens, check_count("length", length)
        self._view = _views(tokens, length, batch_size)
        self._ordered, self._offsets = -1, tokens.new_empty(0, dtype=torch.long)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "length": self.length}

    def _order(self, epoch: int) -> Tensor:
        """First tokens of the epoch's windows, shuffled. The phase is smaller than L where only that leaves one whole batch."""
        if self._ordered != epoch:
            random = generator("Windows", self.seed, epoch)
            choices = min(self.length, len(self.tokens) - self.batch_size * self.length)
            phase = int(torch.randint(choices, (1,), generator=random))
            offsets = phase + self.length * torch.randperm((len(self.tokens) - 1 - phase) // self.length, generator=random)
            self._ordered, self._offsets = epoch, offsets.to(self.tokens.device)
        return self._offsets

    def _batches(self, epoch: int) -> int:
        return len(self._order(epoch)) // self.batch_size

    def _draw(self, epoch: int, position: int) -> Batch:
        offsets = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return _pair(self._view.index_select(0, offsets))


class Generated(Seeded):
    """A synthetic task without end: batch t is `function(seed, t)`, a pure function, so the state is one integer.

    `digest` identifies the task, such as its name and options; `batch_size` is what the function returns.
    """

    def __init__(self, function: Callable[[int, int], Batch], seed: int, batch_size: int, *, digest: str) -> None:
        super().__init__(seed, batch_size, digest)
        self.function = function

    def _batches(self, epoch: int) -> None:
        return None

    def _draw(self, epoch: int, position: int) -> Batch:
        batch = self.function(self.seed, position)
        assert batch.examples == self.batch_size, "the function and the stream agree on the batch size"
        return batch


def batches(
    inputs: Tensor, targets: Tensor, batch_size: int, limit: int | None = None, *, transform: Transform | None = None
) -> list[Batch]:
    """Fixed batches for evaluation: all examples in order, or `limit` of them evenly spread over the data. The last may be smaller.

    `transform` gets a generator of a fixed seed; give it the deterministic part only, without augmentation.
    """
    _check_pairs(inputs, targets)
    index = _spread(len(inputs), limit).to(inputs.device)
    found: list[Batch] = []
    for rows in index.split(check_count("batch_size", batch_size)):
        part = inputs.index_select(0, rows)
        part = part if transform is None else transform(part, generator("batches", len(found)))
        found.append(Batch(part, targets.index_select(0, rows)))
    return found


def windows(tokens: Tensor, length: int, batch_size: int, limit: int | None = None) -> list[Batch]:
    """Fixed windows for evaluation: end to end from the first token, all of them or `limit` evenly spread over the text."""
    view = _views(tokens, check_count("length", length), 1)
    offsets = length * _spread((len(tokens) - 1) // length, limit).to(tokens.device)
    return [_pair(view.index_select(0, part)) for part in offsets.split(check_count("batch_size", batch_size))]


def _spread(count: int, limit: int | None) -> Tensor:
    """`limit` of the numbers 0 … count - 1, evenly spread, int64; all of them if there are no more."""
    if limit is None or check_count("limit", limit) >= count:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def _views(tokens: Tensor, length: int, batch_size: int) -> Tensor:
    """All windows of length + 1 tokens as an overlapping view, (n - length, length + 1): no memory of its own."""
    if tokens.dim() != 1 or tokens.is_floating_point():
        raise ValueError(f"tokens must be a 1-D tensor of integers, got {tokens.dtype} {tuple(tokens.shape)}.")
    if len(tokens) < batch_size * length + 1:
        raise ValueError(
            f"The text is too short: {batch_size} window(s) of {length} tokens need {batch_size * length + 1}, got {len(tokens)}: "
            "use a longer text, a smaller batch or shorter windows."
        )
    return tokens.contiguous().unfold(0, length + 1, 1)


def _pair(rows_BL1: Tensor) -> Batch:
    """Inputs and next-token targets of windows one token longer, each contiguous."""
    rows_BL1 = rows_BL1.long()
    inputs_BL, targets_BL = rows_BL1[:, :-1].contiguous(), rows_BL1[:, 1:].contiguous()
    return Batch(inputs_BL, targets_BL, targets_BL.numel())


def _check_pairs(inputs: Tensor, targets: Tensor) -> None:
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"inputs and targets must have as many examples, at least one, got {tuple(inputs.shape)} and {tuple(targets.shape)}."
        )

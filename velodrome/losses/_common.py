"""What the classification losses check and how they reduce positions to examples."""

import torch
from torch import Tensor


def check_classes(outputs: Tensor, targets: Tensor) -> None:
    """Scores (B, ..., C) of a floating type and int64 targets (B, ...)."""
    if outputs.ndim < 2 or targets.shape != outputs.shape[:-1]:
        want = "outputs (batch, classes) with targets (batch,), or outputs (batch, length, vocabulary) with targets (batch, length)"
        raise ValueError(f"outputs and targets do not fit, got {tuple(outputs.shape)} and {tuple(targets.shape)}: give {want}.")
    if not outputs.is_floating_point():
        raise ValueError(f"outputs must be floating-point scores, got {outputs.dtype}: give the model's logits.")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 class numbers, got {targets.dtype}: write targets.long().")


def positions(values: Tensor, targets: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Per example: the sum of `values` over the positions that count, and how many there are."""
    counts = targets.ne(ignore)
    rows = values.masked_fill(~counts, 0.0).reshape(values.shape[0], -1)
    return rows.sum(1), counts.reshape(counts.shape[0], -1).sum(1)

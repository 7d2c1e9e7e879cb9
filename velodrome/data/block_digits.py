"""Digits with a block beside them that says nothing, the idea of BlockMNIST (Shah et al. 2021, https://arxiv.org/abs/2102.12781) on 8x8 digits.

An image has two blocks, one above the other: a digit and the outline of a square, in random order. The outline tells nothing of the class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from velodrome.data import digits
from velodrome.data.hashing import digest
from velodrome.data.images import Images


@dataclass(frozen=True)
class BlockDigits:
    """`images.inputs` float32 (N, 1, 16, 8) in [0, 1]; `null` bool, of that shape: where the block lies that tells nothing."""

    images: Images
    null: Tensor


def load(split: str | None = "train", *, seed: int = 0) -> BlockDigits:
    """scikit-learn's digits of `split` (see `digits.load`), each above or below the null block with equal chance, drawn from `seed`."""
    found = digits.load(split)
    above = torch.rand(len(found.targets), generator=torch.Generator().manual_seed(seed)) < 0.5
    square = torch.zeros(1, 8, 8)
    square[:, 1:7, 1:7] = 1.0
    square[:, 2:6, 2:6] = 0.0
    blank = square.expand_as(found.inputs)
    inputs = torch.where(above[:, None, None, None], torch.cat((found.inputs, blank), 2), torch.cat((blank, found.inputs), 2))
    top = torch.arange(16).view(1, 1, 16, 1) < 8
    null = (top != above[:, None, None, None]).expand_as(inputs).clone()
    images = Images(inputs, found.targets, found.classes, digest(inputs, found.targets), f"blocks of {found.source}", found.version)
    return BlockDigits(images, null)

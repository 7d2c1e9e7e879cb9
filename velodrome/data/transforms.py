"""What happens to the inputs of a batch: `transform(inputs, generator) -> inputs`, over the whole batch at once.

The stream hands in a generator that is a pure function of (seed, step), so an augmented run resumes bit by bit.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from velodrome.data.hashing import check_fraction

Transform = Callable[[Tensor, torch.Generator], Tensor]


def normalise(mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), peak: float = 255.0) -> Transform:
    r"""$y = (x / \mathrm{peak} - \mathrm{mean}_c) / \mathrm{std}_c$: uint8 (B, C, H, W) to float32; mean and std per channel, in [0, 1] units."""
    if len(mean) != len(std) or not mean or min(std) <= 0 or peak <= 0:
        raise ValueError(f"normalise needs as many means as positive stds and a positive peak, got {mean=}, {std=}, {peak=}.")
    scale = torch.tensor([1 / (peak * s) for s in std]).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)

    def apply(inputs: Tensor, generator: torch.Generator) -> Tensor:
        if inputs.dim() != 4 or shift.shape[1] not in (1, inputs.shape[1]):
            raise ValueError(f"normalise has {shift.shape[1]} channels and needs (B, C, H, W) images to match, got {tuple(inputs.shape)}.")
        return torch.addcmul(shift.to(inputs.device), inputs.float(), scale.to(inputs.device))

    return apply


def flip_and_crop(pad: int = 4, flip: float = 0.5) -> Transform:
    """Zero-pad by `pad`, crop back at a random place, mirror left-right with probability `flip`: the CIFAR augmentation of He et al. 2015.

    Images (B, C, H, W) of any dtype, shape and dtype kept (https://arxiv.org/abs/1512.03385, section 4.2). `flip=0` only crops.
    """
    if pad < 0 or (flip != 0 and flip != 1 and not check_fraction("flip", flip)):
        raise ValueError(f"pad must be at least 0, got {pad}.")

    def apply(inputs: Tensor, generator: torch.Generator) -> Tensor:
        B, _, H, W = inputs.shape
        top_B, left_B = torch.randint(2 * pad + 1, (2, B), generator=generator).to(inputs.device)
        mirror_B = (torch.rand(B, generator=generator) < flip).to(inputs.device)
        padded = F.pad(inputs, (pad, pad, pad, pad))
        places = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2 pad + 1, 2 pad + 1, H, W), a view
        crop = places[torch.arange(B, device=inputs.device), :, top_B, left_B]
        return torch.where(mirror_B[:, None, None, None], crop.flip(3), crop)

    return apply


def compose(*transforms: Transform) -> Transform:
    """The transforms one after the other, left first, drawing from the same generator."""

    def apply(inputs: Tensor, generator: torch.Generator) -> Tensor:
        for transform in transforms:
            inputs = transform(inputs, generator)
        return inputs

    return apply

"""A small convolutional network in the manner of LeNet (LeCun et al. 1998, https://doi.org/10.1109/5.726791); initial weights of He et al. 2015."""

# Shapes: B batch, C channels, H height, W width, K classes.

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.models._common import check_floating, check_sizes, seeded


class Cnn(nn.Module):
    r"""Two convolutions 3x3 of `width` and 2 `width` channels, each $\mathrm{pool}_2(\phi(\mathrm{norm}(Wx)))$, a hidden layer of `hidden`, and `head`.

    Inputs are images (B, `channels`, `size`, `size`), outputs logits (B, K). `norm` is "none" or "batch"; `activation` any function of a tensor. Weights
    start at N(0, 2/fan-in), the head's at N(0, 0.02²), biases at zero. `seed` draws them without touching torch's global generator; None (the default)
    draws from it. ValueError for sizes below one, a size that four does not divide, or another norm.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        width: int,
        hidden: int,
        classes: int,
        norm: str = "none",
        activation: Callable[[Tensor], Tensor] = F.relu,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(size=size, channels=channels, width=width, hidden=hidden, classes=classes)
        if size % 4:
            raise ValueError(f"size must be a multiple of four, for two poolings, got {size}: write size={size + 4 - size % 4}.")
        if norm not in ("none", "batch"):
            raise ValueError(f"norm must be 'none' or 'batch', got {norm!r}.")
        self.shape, self.activation = (channels, size, size), activation
        with seeded(seed):
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
            self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=norm == "none")
            self.norm1, self.norm2 = (nn.BatchNorm2d(w) if norm == "batch" else nn.Identity() for w in (width, 2 * width))
            self.hidden = nn.Linear(2 * width * (size // 4) ** 2, hidden)
            self.head = nn.Linear(hidden, classes)
            for layer in (self.conv1, self.conv2, self.hidden, self.head):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of normalised images; ValueError for other shapes or whole-number pixels."""
        check_floating(x_BCHW)
        if x_BCHW.shape[1:] != self.shape:
            raise ValueError(f"inputs must be images (batch, {', '.join(map(str, self.shape))}), got shape {tuple(x_BCHW.shape)}.")
        x_BCHW = F.max_pool2d(self.activation(self.norm1(self.conv1(x_BCHW))), 2)
        x_BCHW = F.max_pool2d(self.activation(self.norm2(self.conv2(x_BCHW))), 2)
        return self.head(self.activation(self.hidden(x_BCHW.flatten(1))))

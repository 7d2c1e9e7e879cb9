"""Residual network for CIFAR-sized images (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2)."""

# Shapes: B batch, C channels of a stage, H height, W width, K classes.

import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.models._common import check_floating, check_sizes, seeded

NORMS = {"batch": nn.BatchNorm2d, "none": nn.Identity}


class Block(nn.Module):
    r"""$x \gets \mathrm{relu}(x' + \mathrm{BN}(W_2\,\mathrm{relu}(\mathrm{BN}(W_1 x))))$, where $x'$ is the shortcut.

    The shortcut is option A, the paper's choice for CIFAR: every second pixel, and zeros for the new channels. It has no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str = "batch") -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none")
        self.norm1 = NORMS[norm](outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=norm == "none")
        self.norm2 = NORMS[norm](outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block's output: twice the channels and half the pixels a side where its stride is 2."""
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        if self.stride > 1:
            x_BCHW = F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(x_BCHW + y_BCHW)


class ResNet(nn.Module):
    """6n + 2 layers: a convolution, three stages of n blocks with `width`, 2 `width` and 4 `width` channels, the mean over pixels and `head`.

    `depth` is 20, 32, 44, 56, 110 or any 6n + 2. With the defaults it has 269,722 parameters. Convolutions start at N(0, 2/fan-in) (He et al.
    2015), batch norms at 1 and 0, the head at N(0, 1/fan-in) and 0. `seed` draws them without touching torch's global generator; None (the default)
    draws from it. ValueError for another depth or sizes below one. BatchNorm keeps running statistics: train and eval mode differ.
    `norm="none"` leaves it out: then convolutions have biases, and the second one of every block starts at zero, without which the activations double from
    block to block (Zhang et al. 2019, https://arxiv.org/abs/1901.09321, section 3).
    """

    def __init__(
        self, depth: int = 20, width: int = 16, classes: int = 10, channels: int = 3, norm: str = "batch", *, seed: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(depth=depth, width=width, classes=classes, channels=channels)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth must be 6n + 2 for a whole n of one or more, got {depth}: write depth={max(1, round((depth - 2) / 6)) * 6 + 2}."
            )
        if norm not in NORMS:
            raise ValueError(f"norm must be 'batch' or 'none', got {norm!r}.")
        self.channels = channels
        with seeded(seed):
            self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
            self.norm = NORMS[norm](width)
            self.blocks = nn.ModuleList()
            now = width
            for stage in range(3):
                for i in range((depth - 2) // 6):
                    then = width * 2**stage
                    self.blocks.append(Block(now, then, stride=2 if stage > 0 and i == 0 else 1, norm=norm))
                    now = then
            self.head = nn.Linear(now, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            if norm == "none":
                for block in self.blocks:
                    nn.init.zeros_(block.get_submodule("conv2").get_parameter("weight"))
            nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear")
            nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, channels, H, W) of any size; ValueError for other shapes or whole-number pixels."""
        check_floating(x_BCHW)
        if x_BCHW.ndim != 4 or x_BCHW.shape[1] != self.channels:
            raise ValueError(f"inputs must be images (batch, {self.channels}, height, width), got shape {tuple(x_BCHW.shape)}.")
        x_BCHW = F.relu(self.norm(self.conv(x_BCHW)))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.head(x_BCHW.mean((2, 3)))

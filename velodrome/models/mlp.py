"""Multi-layer perceptron; initial weights of He et al. 2015 (https://arxiv.org/abs/1502.01852, eq. 10)."""

# Shapes: B batch, I inputs, D width, C classes.

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.models._common import check_floating, check_sizes, seeded


class Mlp(nn.Module):
    r"""`depth` hidden layers $x \gets \phi(Wx + b)$ of `width`, and a linear `head`: inputs (B, ...) are flattened, outputs are logits (B, C).

    `activation` is any function of a tensor. Weights start at N(0, 2/fan-in), He's for ReLU, the head's at N(0, 1/fan-in), biases at zero. `seed`
    draws them without touching torch's global generator; None (the default) draws from it. ValueError for sizes below one.
    """

    def __init__(
        self, inputs: int, width: int, depth: int, classes: int, activation: Callable[[Tensor], Tensor] = F.relu, *, seed: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(inputs=inputs, width=width, depth=depth, classes=classes)
        if not callable(activation):
            raise ValueError(f"activation must be a function of a tensor, got {activation!r}: write activation=F.gelu.")
        self.inputs, self.activation = inputs, activation
        with seeded(seed):
            layers = [nn.Linear(inputs if i == 0 else width, width) for i in range(depth)]
            self.hidden = nn.ModuleList(layers)
            self.head = nn.Linear(width, classes)
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear")
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, ...) with `inputs` numbers per example; ValueError otherwise."""
        check_floating(x)
        x_BI = x.flatten(1)
        if x_BI.shape[1] != self.inputs:
            raise ValueError(f"each example must have {self.inputs} numbers, got {x_BI.shape[1]} (shape {tuple(x.shape)}).")
        x_BD = x_BI
        for layer in self.hidden:
            x_BD = self.activation(layer(x_BD))
        return self.head(x_BD)

"""A deep auto-encoder (Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647): a classic of optimization, hard without a good rule."""

# Shapes: B batch, I numbers of an example.

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.models._common import check_floating, check_sizes, seeded


class Autoencoder(nn.Module):
    r"""Inputs (B, ...) are flattened to I = `inputs` numbers, narrowed through `widths` to the code and widened back: logits (B, I), whose sigmoids
    are the pixels.

    Every layer but the code's and the last (`head`) is $x \gets \phi(Wx + b)$. Weights start at N(0, 1/fan-in), times the activation's gain of He et
    al. 2015 for ReLU, biases at zero. `seed` draws them without touching torch's global generator; None (the default) draws from it. ValueError for sizes
    below one.
    """

    def __init__(
        self, inputs: int, widths: Sequence[int], activation: Callable[[Tensor], Tensor] = F.relu, *, seed: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(inputs=inputs, **{f"widths[{i}]": w for i, w in enumerate(widths)})
        if not widths:
            raise ValueError("widths must name the code's width at least, got none: write widths=(128, 64, 16).")
        self.inputs, self.activation, self.code = inputs, activation, len(widths) - 1
        sizes = [inputs, *widths, *reversed(widths[:-1])]
        with seeded(seed):
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.head = nn.Linear(sizes[-1], inputs)
            for layer in [*self.layers, self.head]:
                relu = activation is F.relu and layer is not self.head
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if relu else "linear")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, I) of inputs (B, ...) with I numbers per example; ValueError otherwise."""
        check_floating(x)
        x_BI = x.flatten(1)
        if x_BI.shape[1] != self.inputs:
            raise ValueError(f"each example must have {self.inputs} numbers, got {x_BI.shape[1]} (shape {tuple(x.shape)}).")
        for i, layer in enumerate(self.layers):
            x_BI = layer(x_BI) if i == self.code else self.activation(layer(x_BI))
        return self.head(x_BI)

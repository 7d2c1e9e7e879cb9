r"""The tangent kernel of ReLU networks of infinite width, by the arc-cosine recursion (Cho and Saul 2009; Jacot et al. 2018, https://arxiv.org/abs/1806.07572)."""

from math import pi

import torch
from torch import Tensor


def relu_kernel(
    x: Tensor,
    depth: int,
    *,
    width: int | None = None,
    weight_variance: float = 2.0,
    head_variance: float = 1.0,
    bias_variance: float = 0.0,
    biases: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""(covariance of the outputs, tangent kernel), both (n, n) float64, for inputs (n, d) and one output of a network with `depth` hidden layers.

    $\Sigma_1 = \sigma_w^2 x x^\top/d + \sigma_b^2$, $\Sigma_{l+1} = \sigma_w^2\, E[\phi\phi] + \sigma_b^2$, $\Theta_1 = \Sigma_1$,
    $\Theta_{l+1} = \Sigma_{l+1} + \Theta_l\, \sigma_w^2 E[\phi'\phi']$, where for ReLU and the angle $\theta$ of $\Sigma$
    $E[\phi\phi] = \frac{\sqrt{\Sigma\Sigma'}}{2\pi}(\sin\theta + (\pi-\theta)\cos\theta)$ and $E[\phi'\phi'] = \frac{\pi-\theta}{2\pi}$.
    `weight_variance` is $\sigma_w^2$ (2 is He's), `head_variance` that of the last layer, `bias_variance` $\sigma_b^2$.

    With `width` None weights are N(0, 1) and scaled in the forward pass, Jacot's parametrisation; biases are scaled by $\sigma_b$: 0 has none.
    With a `width` the weights carry their scale themselves, as in `velodrome.models.mlp.Mlp`: a layer's part of the kernel is its fan-in over its
    variance larger, that is nearly `width` times, and trained biases add 1 wherever they start; `biases=False` has none.
    """
    if x.ndim != 2 or depth < 1:
        raise ValueError(f"x must be (examples, inputs) and depth one or more, got {tuple(x.shape)} and {depth}.")
    x = x.double()
    inner = x @ x.T / x.shape[1]  # what enters a layer: mean of products over its inputs
    fan = x.shape[1]
    tangent = torch.zeros_like(inner)
    spread = inner
    for layer in range(depth + 1):
        variance = weight_variance if layer < depth else head_variance
        own = variance * inner + bias_variance if width is None else fan * inner + float(biases)
        tangent = own + tangent * variance
        spread = variance * inner + bias_variance
        if layer < depth:
            inner, slopes = _arc_cosine(spread)
            tangent = tangent * slopes
            fan = width or fan
    return spread, tangent


def _arc_cosine(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Of a Gaussian with covariance `sigma` the mean products of ReLUs and of their slopes."""
    scale = torch.sqrt(sigma.diagonal().unsqueeze(0) * sigma.diagonal().unsqueeze(1))
    cosine = (sigma / scale.clamp(min=1e-300)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    return scale * (torch.sin(angle) + (pi - angle) * cosine) / (2 * pi), (pi - angle) / (2 * pi)

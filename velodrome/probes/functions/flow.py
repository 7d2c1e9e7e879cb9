r"""Training foretold by a kernel: what gradient flow or descent on a squared error does while the tangent kernel stays what it is.

Jacot et al. 2018 (https://arxiv.org/abs/1806.07572, section 5); test points as in Lee et al. 2019 (https://arxiv.org/abs/1902.06720, eqs. 8-9).
"""

# Shapes: T times, n examples trained on, m others, c outputs.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velodrome.probes.functions.ntk import Kernel


@dataclass(frozen=True)
class Forecast:
    """`outputs` (T, n, c) of the examples trained on, `others` (T, m, c) of the rest of the kernel's examples, `loss` (T,) of the former, at `times` (T,);
    `rates` (rows,): how fast each eigenvector of the kernel is learned, per unit of time, from the fastest."""

    times: Tensor
    outputs: Tensor
    others: Tensor
    loss: Tensor
    rates: Tensor


def forecast(
    kernel: Kernel, initial: Tensor, targets: Tensor, rate: float, times: Sequence[float], *, steps: Literal["flow", "descent"] = "flow"
) -> Forecast:
    r"""$f_t = y + e^{-s K t}(f_0 - y)$ on the examples trained on, $f_t(x) = f_0(x) + K_x K^{-1} (I - e^{-s K t})(y - f_0)$ on others.

    $s = 2\,\text{rate}/(n c)$, for the loss is `velodrome.losses.squared_error`, the mean over outputs and examples without a factor 1/2. With
    steps="descent" time counts steps of gradient descent, $e^{-sKt}$ becomes $(I - sK)^t$ and may diverge, as descent does beyond $s\lambda = 2$.
    `initial` (n + m, c) are the outputs before training, `targets` (n, c) of the first n: the others are foretold. A kernel of "all" outputs, or
    of any kind where there is one output. In float64; exact for a linear model, else good as long as the kernel does not move (`drift`).
    """
    if kernel.outputs != "all" and kernel.width != 1:
        raise ValueError(f"a forecast of {kernel.width} outputs needs the kernel over all of them: write ntk(objective, 'all').")
    if kernel.draws:
        raise ValueError("a forecast needs an exact kernel, got a sketch: write ntk(objective, 'all').")
    if steps not in ("flow", "descent"):
        raise ValueError(f"steps must be 'flow' or 'descent', got {steps!r}.")
    f, y = (x.detach().double().flatten(1) if x.ndim > 1 else x.detach().double().unsqueeze(1) for x in (initial, targets))
    if f.shape != (kernel.examples, kernel.width) or y.shape[1] != kernel.width or not 0 < len(y) <= len(f):
        raise ValueError(
            f"initial must be {(kernel.examples, kernel.width)} and targets (n, {kernel.width}) with n up to {kernel.examples}, "
            f"got {tuple(f.shape)} and {tuple(y.shape)}."
        )
    n, c = y.shape
    matrix = kernel.matrix.double()
    values, vectors = torch.linalg.eigh(matrix[: n * c, : n * c])
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    speed = 2 * rate / (n * c) * values
    away = vectors.T @ (y - f[:n]).flatten()
    t = torch.as_tensor(list(times), dtype=torch.float64, device=matrix.device).unsqueeze(1)
    left = torch.exp(-speed * t) if steps == "flow" else (1 - speed) ** t  # (T, n c)
    done = 1 - left
    small = values <= values[0] * 1e-14
    per = torch.where(small, 2 * rate / (n * c) * t, done / values.masked_fill(small, 1.0))  # (1 - e^{-s λ t})/λ, also at λ = 0
    outputs = f[:n].flatten() + (done * away) @ vectors.T
    others = f[n:].flatten() + (per * away) @ (matrix[n * c :, : n * c] @ vectors).T
    shape = (len(t), -1, c)
    trained = outputs.view(shape)
    return Forecast(t.squeeze(1), trained, others.view(shape), (trained - y).square().mean((1, 2)), speed)

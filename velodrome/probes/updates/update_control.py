r"""How large an update really is (Kosson, Messmer & Jaggi 2024, https://arxiv.org/abs/2410.23922): the change of a layer's outputs, and the noise in it.

    with representation_changes(model, batch.inputs) as changes:
        optimizer.step()
    print(changes["blocks.0.expand"])                       # 0.01: the step changes what this layer says by 1 %

    print(gradient_snr(backward(model, loss), batch).snr)   # before the step

The angular update, the third of the paper's measures, is `probes.updates.steps.rotation` and in every report of `effective_steps`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.func import functional_call

from velodrome.data.stream import Batch
from velodrome.gradients._common import apart, taken, weights
from velodrome.gradients.gradient import Gradient

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their outputs are linear in their parameters


@dataclass(frozen=True)
class Layer:
    """A layer as it was before the step: its parameters, and its inputs in every call."""

    module: nn.Module
    before: dict[str, Tensor]
    inputs: list[Tensor]


@contextmanager
def representation_changes(model: nn.Module, inputs: Tensor) -> Iterator[dict[str, float]]:
    r"""$\|\Delta Y\|_F / \|Y\|_F$ (RRC) of every linear and convolution layer for the step that is made inside, filled when it has been made; no unit.

    $Y$ is the layer's output on `inputs` with the weights before the step, its bias included, and $\Delta Y$ what the layer's own update adds to it at the
    same input X, not what the layers before it change: of $Y = XW$ it is $X\,\Delta W$. Taken from the differences of the weights in float64,
    so that no small change drowns in rounding. Layers without an output (all zeros) are absent. Costs a forward pass, kept inputs, and two
    passes of each layer. Weights, buffers, gradients and random generators stay as they are, and the model in its mode.
    """
    changes: dict[str, float] = {}
    layers = captured(model, inputs)
    yield changes
    with torch.no_grad():
        for name, layer in layers.items():
            moved = {n: p.detach().double() - layer.before[n] for n, p in layer.module.named_parameters(recurse=False)}
            size, change = (sum(output(layer.module, w, x) for x in layer.inputs) for w in (layer.before, moved))
            if size:
                changes[name] = (change / size) ** 0.5


def captured(model: nn.Module, inputs: Tensor) -> dict[str, Layer]:
    """Every layer that a forward pass reaches, with the inputs it was given there."""
    layers = {
        name: Layer(m, {n: p.detach().double() for n, p in m.named_parameters(recurse=False)}, [])
        for name, m in model.named_modules()
        if isinstance(m, LINEAR)
    }
    handles = [layer.module.register_forward_pre_hook(keeper(layer.inputs)) for layer in layers.values()]
    devices = [inputs.device] if inputs.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            functional_call(model, {name: b.clone() for name, b in model.named_buffers()}, (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer for name, layer in layers.items() if layer.inputs}


def keeper(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that keeps a layer's input."""

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        kept.append(arguments[0].detach().clone())

    return keep


def output(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> float:
    """Squared norm of the layer's output with these parameters, in float64."""
    return float(functional_call(module, parameters, (x.double(),)).square().sum())


@dataclass(frozen=True)
class Snr:
    r"""`signal` $\|\nabla L\|^2$ and `noise` $\mathrm{tr}\,\Sigma$ of one example's gradient, in (loss/parameter)², both without bias.

    `snr`: signal over the noise of the whole batch, $\|\nabla L\|^2 B/\mathrm{tr}\,\Sigma$, no unit, between `low` and `high` with the asked probability.
    `critical_batch`: $\mathrm{tr}\,\Sigma/\|\nabla L\|^2$ in examples, at which the SNR is 1 (the simple noise scale of McCandlish et al. 2018,
    https://arxiv.org/abs/1812.06162); None where no signal was found. `fraction`: $\|\nabla L\|^2/\mathrm{E}\|g\|^2$ for the batch's g, between 0 and 1.
    """

    signal: float
    noise: float
    snr: float
    low: float
    high: float
    examples: int
    parts: int

    @property
    def critical_batch(self) -> float | None:
        """Examples at which signal and noise are equal."""
        return self.noise / self.signal if self.signal > 0 else None

    @property
    def fraction(self) -> float:
        """Share of the signal in the squared norm of the batch's gradient."""
        return self.snr / (1 + self.snr) if self.snr < float("inf") else 1.0


def gradient_snr(gradient: Gradient, batch: Batch, parts: int = 16, level: float = 0.95) -> Snr:
    r"""Signal-to-noise ratio of the batch's gradient from `parts` micro-batches of equal size, which must be drawn independently of each other.

    From $s = \frac{\|\sum g_i\|^2 - \sum\|g_i\|^2}{n(n-1)}$, without bias for $\|\nabla L\|^2$, and $q = \overline{\|g_i\|^2}$: the interval is a
    jackknife of $s/q$ over the micro-batches with Student's quantile, carried over to the SNR. Not below 0: then the batch shows no signal.
    Costs one gradient of the batch and the memory of n gradients; `.grad` stays as it is. BatchNorm sees a part's statistics instead of the
    batch's, and updates its running ones. ValueError unless `parts`, three or more, divides the batch.
    """
    n, size = parts, batch.examples
    if isinstance(n, bool) or not isinstance(n, int) or n < 3 or size % n:
        raise ValueError(f"parts must be a whole number, three or more, that divides the batch of {size}, got {parts!r}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}: write level=0.95.")
    gram = products(gradient, batch, n)
    own, with_all = gram.diagonal(), gram.sum(1)
    total, squares = gram.sum(), gram.diagonal().sum()
    signal, q = (total - squares) / (n * (n - 1)), squares / n
    rest, rest_squares = total - 2 * with_all + own, squares - own  # without one part
    left_out = (rest - rest_squares) / ((n - 1) * (n - 2)) / (rest_squares / (n - 1)).clamp(min=1e-300)
    theta = float(signal / q) if q else 0.0
    error = float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())
    reach = float(student.ppf((1 + level) / 2, n - 1)) * error

    def ratio(x: float) -> float:
        """The SNR of the whole batch where one part has the share x of signal."""
        x = min(max(x, 0.0), 1.0)
        return n * x / (1 - x) if x < 1 else float("inf")

    noise = float(q - signal) * (size // n)
    return Snr(float(signal), noise, ratio(theta), ratio(theta - reach), ratio(theta + reach), size, n)


def products(gradient: Gradient, batch: Batch, parts: int) -> Tensor:
    """Inner products of the gradients of the micro-batches, (parts, parts), in float64."""
    params, step = weights(gradient.model), batch.examples // parts
    kept = []
    with apart(params):
        for start in range(0, batch.examples, step):
            _, grads = taken(gradient, batch.part(start, start + step), params)
            kept.append(torch.cat([g.flatten() for g in grads if g is not None]))
    stacked = torch.stack(kept).double()
    return (stacked @ stacked.T).cpu()

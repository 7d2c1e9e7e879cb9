r"""Opposing signals (Rosenfeld and Risteski 2023, https://arxiv.org/abs/2311.04163): two groups of examples that share a large feature and disagree on it.

From one step to the next the losses of one group rise as those of the other fall, and back. The groups are found from the losses of a fixed set of
examples at consecutive steps, which need forward passes alone; their gradients and inputs are then looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, between, exact, unidentified
from velodrome.probes.objective import Objective, joined, pick
from velodrome.probes.statistics.coherence import among


@dataclass(frozen=True)
class Groups:
    """Numbers of the examples whose loss rose and fell most from step `at` to the next, and their mean changes of loss.

    `correlation` is that of the two groups' mean changes over the *other* steps, with Fisher's 95 % interval: near -1 they are in anti-phase. Steps
    next to each other are not independent, so the interval is narrower than it should be in a run that drifts.
    """

    rising: Tensor
    falling: Tensor
    rise: float
    fall: float
    correlation: Estimate
    at: int


def opposing_groups(losses: Tensor | Sequence[Tensor], k: int, at: int | None = None) -> Groups:
    """Groups of k examples, from losses (T, n) of the same n examples at T consecutive steps, two or more.

    `at` is the step before the change that decides, default the one with the largest sum of absolute changes among the 2k. The groups are chosen
    at that step and judged on the others, so that the correlation is not what they were chosen for. ValueError for other shapes or too large a k.
    """
    table = (losses if isinstance(losses, Tensor) else torch.stack(list(losses))).detach().double().cpu()
    if table.ndim != 2 or len(table) < 2 or not 1 <= k <= table.shape[1] // 2:
        raise ValueError(f"losses must be (steps, examples) of two steps and 2 k examples or more, got {tuple(table.shape)} and k = {k}.")
    if not bool(table.isfinite().all()):
        raise ValueError("losses must be finite numbers: leave out the steps after the run diverged.")
    change = table.diff(dim=0)
    ordered = change.sort(1).values
    at = int((ordered[:, -k:].sum(1) - ordered[:, :k].sum(1)).argmax()) if at is None else at
    order = change[at].argsort(stable=True)
    falling, rising = order[:k].sort().values, order[-k:].sort().values
    rest = torch.arange(len(change)) != at
    up, down = change[rest][:, rising].mean(1), change[rest][:, falling].mean(1)
    return Groups(rising, falling, float(change[at, rising].mean()), float(change[at, falling].mean()), correlated(up, down), at)


def correlated(a: Tensor, b: Tensor) -> Estimate:
    """Pearson's correlation with Fisher's 95 % interval; five pairs or more."""
    n = len(a)
    if n < 5 or not (float(a.std()) > 0 and float(b.std()) > 0):
        return unidentified("1", f"needs five changes that differ, got {n}", n)
    r = float(np.clip(np.corrcoef(a.numpy(), b.numpy())[0, 1], -1 + 1e-12, 1 - 1e-12))
    half = 1.959964 / np.sqrt(n - 3)
    return between(r, np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half), "1", n)


@dataclass(frozen=True)
class Opposition:
    r"""What two groups do to each other at the weights as they are.

    `cosine` is that of their mean gradients, `cancelled` $1 - \lVert a + b\rVert / (\lVert a\rVert + \lVert b\rVert)$ of them: 1 for opposite ones of one
    length. `feature` is a unit direction of the inputs (their shape), the leading one among the groups' inputs around the mean of all, and `excess` the
    mean square along it in the groups over that in the rest: 1 where it is nothing special.
    """

    cosine: Estimate
    cancelled: Estimate
    feature: Tensor
    excess: Estimate


def opposition(objective: Objective, groups: Groups) -> Opposition:
    """Gradients of the two groups and what their inputs share; `objective` holds the examples in the order of the losses, its inputs one tensor."""
    whole = objective.batches[0]
    for part in objective.batches[1:]:
        whole = joined(whole, part)
    a, b = (_gradient(among(objective, pick(whole, places))) for places in (groups.rising, groups.falling))
    size = float(a.norm()), float(b.norm())
    none = unidentified("1", "a group's gradient is zero")
    cosine = exact(float(a @ b) / (size[0] * size[1]), "1") if min(size) > 0 else none
    cancelled = exact(1 - float((a + b).norm()) / sum(size), "1") if max(size) > 0 else none
    if not isinstance(whole.inputs, Tensor) or not whole.inputs.is_floating_point():
        return Opposition(
            cosine, cancelled, torch.empty(0), unidentified("1", "inputs are not numbers along which a feature could be large")
        )
    x = whole.inputs.detach().flatten(1).double()
    x = x - x.mean(0)
    inside = torch.zeros(len(x), dtype=torch.bool)
    inside[torch.cat((groups.rising, groups.falling))] = True
    inside = inside.to(x.device)
    direction = torch.linalg.svd(x[inside], full_matrices=False).Vh[0]
    along = (x @ direction).square()
    rest = float(along[~inside].mean()) if bool((~inside).any()) else 0.0
    excess = exact(float(along[inside].mean()) / rest, "1", n=len(x)) if rest > 0 else unidentified("1", "no example is outside the groups")
    return Opposition(cosine, cancelled, direction.view(whole.inputs.shape[1:]), excess)


def _gradient(objective: Objective) -> Tensor:
    with objective.ready():
        grads = torch.autograd.grad(objective.mean(), list(objective.params.values()), materialize_grads=True)
    return torch.cat([g.flatten() for g in grads]).double()


@dataclass(frozen=True)
class OpposingSignals:
    r"""The solvable case: $y = b^\top x_s$ with Gaussian signal $x_s$; a feature $x_o = \pm\alpha$ on a fraction p of the examples says nothing.

    A two-layer linear network $f = c^\top W x$ under half the squared error, balanced from a small start, has $\lVert c\rVert^2 = \lVert b\rVert$ once the
    signal is learned, and along $x_o$ the curvature $\lVert b\rVert\, p\, \alpha^2$: gradient descent is unstable there for rates above
    2/curvature, however well the signal is fitted. With an `offset`, targets of these examples are so much higher, which no weight can fit; then a
    step along $x_o$ helps one sign exactly as it hurts the other. Our reading of the paper's section on the linear model.
    """

    signal: int = 8
    norm: float = 1.0
    p: float = 0.05
    alpha: float = 8.0
    examples: int = 2000
    offset: float = 0.0

    @property
    def curvature(self) -> float:
        r"""$\lVert b\rVert\, p\, \alpha^2$, in loss/parameter²."""
        return self.norm * self.p * self.alpha**2

    def data(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(inputs (n, signal + 1), targets (n,), numbers with +alpha, numbers with -alpha); float64, the signs balanced and the signal whitened."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(self.examples, self.signal, generator=g, dtype=torch.float64)
        b = torch.randn(self.signal, generator=g, dtype=torch.float64)
        k = round(self.p * self.examples / 2)
        if k < 1 or 2 * k > self.examples or self.examples <= self.signal + 2:
            raise ValueError(f"p must leave each sign an example and examples exceed the features, got p = {self.p} of {self.examples}.")
        outlier = torch.zeros(self.examples, 1, dtype=torch.float64)
        outlier[:k], outlier[k : 2 * k] = self.alpha, -self.alpha
        fixed = torch.linalg.qr(torch.cat((outlier, outlier.abs()), 1)).Q
        x = x - fixed @ (fixed.T @ x)  # exactly uncorrelated, so that the formula holds for this sample
        x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / self.examples)).T
        y = x @ (b * self.norm / b.norm()) + self.offset * (outlier.abs() > 0).squeeze(1)
        return torch.cat((x, outlier), 1), y, torch.arange(k), torch.arange(k, 2 * k)

    def model(self, width: int = 16, scale: float = 1e-2, seed: int = 0) -> nn.Sequential:
        """The network in float64, small random weights; outputs (n, 1)."""
        g = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.Linear(self.signal + 1, width, bias=False), nn.Linear(width, 1, bias=False)).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * scale)
        return net


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""$\frac12 (f - y)^2$ of each example (n,), the loss of `OpposingSignals`."""
    return 0.5 * (outputs.squeeze(-1) - targets).square()

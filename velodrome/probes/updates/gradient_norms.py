r"""Norms of every step's gradient, and how much of it is signal (McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, on signal and noise)."""

from collections.abc import Iterable, Sequence
from statistics import median

import torch
from torch import Tensor


class GradientNorms:
    r"""Ask after each gradient; it changes nothing. Norms are over all parameters together, in float64.

        norms = GradientNorms()
        for step in train(gradient, optimizer, batches):
            norms.add(model.parameters())

    `l1[t]` is the sum of absolute values and `l2[t]` the Euclidean norm of step t's gradient, in loss/parameter. Costs a copy of the gradient
    and three passes a step.
    """

    def __init__(self) -> None:
        self.l1: list[float] = []
        self.l2: list[float] = []
        self._dots: list[float] = []
        self._last: list[Tensor] = []

    @torch.no_grad()
    def add(self, parameters: Iterable[Tensor]) -> None:
        """Note the gradients at hand; parameters without one count as zero."""
        now = [p.grad.detach().clone() for p in parameters if p.grad is not None]
        if not now:
            raise ValueError("no parameter has a gradient: ask between the gradient and the update.")
        norms = torch.stack([torch.linalg.vector_norm(g, 1, dtype=torch.float64) for g in now])
        squares = torch.stack([torch.linalg.vector_norm(g, 2, dtype=torch.float64) for g in now]).square()
        self.l1.append(norms.sum().item())
        self.l2.append(squares.sum().sqrt().item())
        if self._last and [g.shape for g in self._last] == [g.shape for g in now]:
            self._dots.append(sum((a.double() * b).sum().item() for a, b in zip(self._last, now, strict=True)))
        self._last = now

    @property
    def signal(self) -> float | None:
        r"""$\langle g_t, g_{t+1}\rangle / (\lVert g_t\rVert \lVert g_{t+1}\rVert)$, the median over the steps, at least 0; None before there are two.

        The batches are independent and the weights hardly move between two steps, so the product estimates $\lVert\nabla L\rVert^2$: near
        0 the gradients are noise, near 1 each is the full gradient. A step that overshoots makes it negative, which counts as 0.
        """
        return agreement(self._dots, self.l2)


def agreement(dots: Sequence[float], norms: Sequence[float]) -> float | None:
    """Median cosine of neighbours, from their products and norms."""
    cosines = [d / (a * b) for d, a, b in zip(dots, norms, norms[1:], strict=False) if a > 0 and b > 0]
    return max(0.0, median(cosines)) if cosines else None

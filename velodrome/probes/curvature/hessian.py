"""The Hessian of a mean loss as an operator: exact products by double backward with the gradient's graph kept (Pearlmutter 1994)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from velodrome.data.stream import Batch
from velodrome.probes.curvature.curvature import Curvature, Keep, differentiable, mean_loss
from velodrome.probes.objective import Objective, examples


class Hessian(Curvature):
    r"""$H v = \nabla_\theta \langle \nabla_\theta L, v\rangle$, in loss/parameter²; L is the mean over the examples of the objective.

    `loss` and `gradient` (n,) are those at the same weights. Exact to rounding: no finite differences. A product costs about two gradients where the
    graph is kept, about three and a half where it is not, and takes about four times a gradient's memory.
    """

    def __init__(self, objective: Objective, keep: Keep = "auto") -> None:
        self.loss, self._gradient = 0.0, torch.zeros(())
        super().__init__(objective, keep)
        if self.traces is None:
            for batch in objective.batches:
                self._note(self._traced(batch), examples(batch))
        else:
            for batch, trace in zip(objective.batches, self.traces, strict=True):
                self._note(trace, examples(batch))

    def trace(self, batch: Batch) -> tuple[Tensor, Sequence[Tensor]]:
        """The mean loss of the batch and its gradients with their graphs."""
        loss = mean_loss(self.objective, batch)
        params = list(self.objective.params.values())
        gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        differentiable(gradients)
        return loss.detach(), gradients

    def apply(self, trace: tuple[Tensor, Sequence[Tensor]], pieces: list[Tensor]) -> Sequence[Tensor]:
        """One backward pass through the gradients. Of a gradient that is the same whatever the weights the derivative is zero."""
        outputs = [(g, v) for i, v in zip(self.which, pieces, strict=True) if (g := trace[1][i]).requires_grad]
        if not outputs:
            return [torch.zeros_like(p) for p in self.params]
        gradients, vectors = zip(*outputs, strict=True)
        return torch.autograd.grad(gradients, self.params, vectors, retain_graph=True, materialize_grads=True)

    @property
    def gradient(self) -> Tensor:
        """The gradient of the mean loss (n,)."""
        parts = self._gradient.split([p.numel() for p in self.objective.params.values()])
        return torch.cat([parts[i] for i in self.which])

    def _note(self, trace: tuple[Tensor, Sequence[Tensor]], count: int) -> None:
        weight = count / self.objective.examples
        self.loss += float(trace[0]) * weight
        self._gradient = self._gradient + torch.cat([g.detach().flatten().to(self.dtype) for g in trace[1]]) * weight


def hessian(objective: Objective, *, keep: Keep = "auto") -> Hessian:
    """The Hessian of the objective's mean loss at the weights as they are; `keep` as in `Curvature`."""
    return Hessian(objective, keep)

"""The Hessian of a mean loss as an operator: exact products by double backward with the gradient's graph kept (Pearlmutter 1994)."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.objective import Objective


class Hessian(Operator):
    r"""$H v = \nabla_\theta \langle \nabla_\theta L, v\rangle$, in loss/parameter²; L is the mean over the examples of the objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        params = list(objective.params.values())
        super().__init__(list(objective.params), [p.shape for p in params], params[0].dtype, params[0].device)
        with objective.ready(), sdpa_kernel(SDPBackend.MATH):
            loss = objective.mean()
            self.gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        self.loss = float(loss.detach())
        self.gradient = torch.cat([g.detach().flatten() for g in self.gradients])

    def product(self, v: Tensor) -> Tensor:
        """One double backward through the kept graph."""
        params = list(self.objective.params.values())
        pieces = [x.view(s) for x, s in zip(v.split(self.sizes), self.shapes, strict=True)]
        found = torch.autograd.grad(self.gradients, params, pieces, retain_graph=True, materialize_grads=True)
        return torch.cat([h.flatten() for h in found])


def hessian(objective: Objective) -> Hessian:
    """The Hessian of the objective's mean loss at the weights as they are."""
    return Hessian(objective)

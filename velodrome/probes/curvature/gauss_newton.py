r"""The generalised Gauss-Newton matrix $\frac1n\sum_i J_i^\top \nabla^2_z\ell_i J_i$ as an operator (Schraudolph 2002): the Hessian without
the network's own curvature, positive semi-definite where the loss is convex in the outputs."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from velodrome.data.stream import Batch
from velodrome.probes.curvature.curvature import Curvature, Keep, checked, differentiable
from velodrome.probes.objective import Objective

Middle = Callable[[Tensor], Tensor]


class Jacobian(NamedTuple):
    """The graphs by which a batch's outputs are differentiated in both directions."""

    outputs: Tensor
    dual: Tensor  # u, of the outputs' shape
    pulled: Sequence[Tensor]  # J^T u, which is linear in u: its derivative by u, applied to v, is J v
    middle: Middle


class Sandwich(Curvature):
    r"""$J^\top M J$: outputs of each batch with their Jacobian J by the parameters, and a symmetric M on outputs.

    A product is one pass forward through the derivatives (a backward pass through the kept graph of $J^\top u$, whatever u) and one back: four
    multiplications by matrices in each layer where a gradient has three, and no second derivative of the network.
    """

    @abstractmethod
    def outputs(self, batch: Batch) -> tuple[Tensor, Middle]:
        """The outputs of a batch with their graph, and M."""

    def trace(self, batch: Batch) -> Jacobian:
        """The outputs and the graph of the pulled-back u."""
        z, middle = self.outputs(batch)
        dual = torch.zeros_like(z, requires_grad=True)
        pulled = torch.autograd.grad(z, list(self.objective.params.values()), dual, create_graph=True, materialize_grads=True)
        differentiable(pulled)
        return Jacobian(z, dual, pulled, middle)

    def apply(self, trace: Jacobian, pieces: list[Tensor]) -> Sequence[Tensor]:
        """Forward, M, back."""
        ways = [(g, v) for i, v in zip(self.which, pieces, strict=True) if (g := trace.pulled[i]).requires_grad]
        if not ways:
            return [torch.zeros_like(p) for p in self.params]
        pulled, vectors = zip(*ways, strict=True)
        (moved,) = torch.autograd.grad(pulled, trace.dual, vectors, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(trace.outputs, self.params, trace.middle(moved), retain_graph=True, materialize_grads=True)


class GaussNewton(Sandwich):
    """See `gauss_newton`."""

    def outputs(self, batch: Batch) -> tuple[Tensor, Middle]:
        """The model's outputs; M is the Hessian of the batch's mean loss by them."""
        z = tensor(self.objective.outputs(batch))
        return z, output_hessian(self.objective, batch, z)


def gauss_newton(objective: Objective, *, keep: Keep = "auto") -> GaussNewton:
    r"""$\sum_b \frac{n_b}{n} J_b^\top \nabla^2_z L_b\, J_b$ with z the model's outputs and $L_b$ the batch's mean loss, in
    loss/parameter²; exact to rounding.

    Any loss with two derivatives by the outputs; the model's outputs must be one tensor. For cross-entropy and squared error it is the Fisher matrix too.
    A product costs about 1.4 gradients where graphs are kept; `keep` as in `Curvature`.
    """
    return GaussNewton(objective, keep)


def output_hessian(objective: Objective, batch: Batch, outputs: Tensor) -> Middle:
    """Products with the Hessian of the batch's mean loss by the outputs, by differentiating the loss alone twice."""
    z = outputs.detach().requires_grad_()
    loss = checked(objective.reduced(z, batch), "the loss")
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)

    def product(w: Tensor) -> Tensor:
        if not slope.requires_grad:  # linear in the outputs
            return torch.zeros_like(w)
        (curved,) = torch.autograd.grad(slope, z, w, retain_graph=True, materialize_grads=True)
        return curved

    return product


def tensor(outputs: Any) -> Tensor:
    """The outputs, where they are one tensor that depends on the parameters."""
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model's outputs must be one tensor, got {type(outputs).__name__}: wrap the model so that it returns its scores."
        )
    return checked(outputs, "the output")

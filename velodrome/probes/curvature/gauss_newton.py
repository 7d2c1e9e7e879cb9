r"""The generalised Gauss-Newton matrix $\frac1n\sum_i J_i^\top \nabla^2_z\ell_i J_i$ as an operator (Schraudolph 2002): the Hessian without
the network's own curvature, positive semi-definite where the loss is convex in the outputs."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, linearize

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


class Linearized(NamedTuple):
    """The same with the way forward recorded as operations: cheaper where layers are slow to differentiate twice (convolutions)."""

    outputs: Tensor
    forward: Callable[..., Tensor]  # J v, of one vector for each parameter
    middle: Middle


class GaussNewton(Sandwich):
    """See `gauss_newton`."""

    def __init__(self, objective: Objective, keep: Keep = "auto", linearized: bool = False) -> None:
        self.linearized = linearized
        if linearized and objective.mixes():
            raise ValueError(
                f"{objective.mixes()} keeps statistics, which cannot be recorded: look with mode='eval', or without linearized=True."
            )
        super().__init__(objective, keep)

    def trace(self, batch: Batch) -> Any:
        """The graphs, or the recorded operations, which must agree with them on one vector."""
        graphs = super().trace(batch)
        if not self.linearized:
            return graphs
        names, params = list(self.objective.params), list(self.objective.params.values())
        x: Any = batch.inputs
        args, words = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's recorder warns of itself
            run = lambda *at: functional_call(self.objective.model, dict(zip(names, at, strict=True)), args, words)  # noqa: E731
            _, forward = linearize(run, *(p.detach() for p in params))
        generator = torch.Generator().manual_seed(0)
        v = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in params]
        ways = [(g, piece) for g, piece in zip(graphs.pulled, v, strict=True) if g.requires_grad]
        (truth,) = torch.autograd.grad([g for g, _ in ways], graphs.dual, [piece for _, piece in ways], materialize_grads=True)
        off, size = float((forward(*v) - truth).norm()), float(truth.norm())
        if not off <= (1e-4 if truth.dtype == torch.float32 else 1e-10) * size:
            raise ValueError(f"recorded derivatives are off by {off / max(size, 1e-30):.1e} of their norm: look without linearized=True.")
        return Linearized(graphs.outputs, forward, graphs.middle)

    def apply(self, trace: Any, pieces: list[Tensor]) -> Sequence[Tensor]:
        """Forward, M, back."""
        if not isinstance(trace, Linearized):
            return super().apply(trace, pieces)
        vectors = (
            [torch.zeros_like(p) for p in self.objective.params.values()] if len(pieces) < len(self.objective.params) else list(pieces)
        )
        for i, v in zip(self.which, pieces, strict=True):
            vectors[i] = v
        with torch.no_grad():
            moved = trace.forward(*vectors)
        return torch.autograd.grad(trace.outputs, self.params, trace.middle(moved), retain_graph=True, materialize_grads=True)

    def outputs(self, batch: Batch) -> tuple[Tensor, Middle]:
        """The model's outputs; M is the Hessian of the batch's mean loss by them."""
        z = tensor(self.objective.outputs(batch))
        return z, output_hessian(self.objective, batch, z)


def gauss_newton(objective: Objective, *, keep: Keep = "auto", linearized: bool = False) -> GaussNewton:
    r"""$\sum_b \frac{n_b}{n} J_b^\top \nabla^2_z L_b\, J_b$ with z the model's outputs and $L_b$ the batch's mean loss, in
    loss/parameter²; exact to rounding.

    Any loss with two derivatives by the outputs; the model's outputs must be one tensor. For cross-entropy and squared error it is the Fisher matrix too.
    A product costs about 1.4 gradients where graphs are kept; `keep` as in `Curvature`. `linearized=True` records the way forward once, which costs
    50 to 250 gradients and their memory: with convolutions a product then costs 1.0 instead of 1.5, in transformers 0.05 less, in perceptrons more.
    """
    return GaussNewton(objective, keep, linearized)


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

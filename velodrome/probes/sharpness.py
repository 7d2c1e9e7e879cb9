r"""The largest eigenvalue of the Hessian by Lanczos' iteration on Hessian-vector products (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from velodrome.probes.spectra.lanczos import orthogonal_steps


class Eigen(NamedTuple):
    """`value` in units of the loss over the parameter squared; an eigenvalue is no farther from it than `residual`; Hessian-vector `products` taken."""

    value: float
    residual: float
    converged: bool
    products: int


def sharpness(
    loss: Callable[[], Tensor],
    params: Sequence[Tensor],
    iters: int = 100,
    tol: float = 1e-3,
    rates: Sequence[float] | None = None,
    seed: int = 0,
) -> Eigen:
    r"""$\lambda_{\max}(\nabla^2 L)$, or with `rates` $c$ one for each tensor $\lambda_{\max}(C^{1/2} \nabla^2 L\, C^{1/2})$, what gradient descent with
    the rates $\eta c$ feels: it is stable while this is below $2/\eta$ (Cohen et al. 2021, https://arxiv.org/abs/2103.00065).

    `loss()` is the mean loss as a 0-d tensor with its graph, twice the same for the same weights (no dropout, no BatchNorm in train mode). Full
    reorthogonalisation, in float64; converged when the residual is below `tol` times the value. Memory: `iters` copies of the parameters.
    ValueError for a loss that does not depend on the parameters.
    """
    params = list(params)
    roots = [1.0] * len(params) if rates is None else [c**0.5 for c in rates]
    if len(roots) != len(params):
        raise ValueError(f"rates must have one number for each of the {len(params)} tensors, got {len(roots)}.")
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # fused attention has one derivative only
        grads = torch.autograd.grad(loss(), params, create_graph=True, materialize_grads=True)
        if not any(g.requires_grad for g in grads):
            raise ValueError("the loss must depend on the parameters twice differentiably, got a gradient that is constant.")

        def product(x: Tensor) -> Tensor:
            pieces = x.split([p.numel() for p in params])
            vectors = [(c * v).view_as(p).to(p.dtype) for c, v, p in zip(roots, pieces, params, strict=True)]
            found = torch.autograd.grad(grads, params, vectors, retain_graph=True, materialize_grads=True)
            return torch.cat([c * h.detach().double().flatten() for c, h in zip(roots, found, strict=True)])

        start = torch.randn(sum(p.numel() for p in params), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return lanczos(product, start.to(params[0].device), iters, tol)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iters: int, tol: float) -> Eigen:
    """The largest eigenvalue of the symmetric operator `product`."""
    found = Eigen(0.0, float("inf"), False, 0)
    for chain, _ in orthogonal_steps(product, start, iters):
        value, residual = float(chain.nodes[-1]), float(chain.residuals[-1])
        found = Eigen(value, residual, residual <= tol * abs(value) or chain.broke, len(chain.diagonal))
        if found.converged:
            break
    return found

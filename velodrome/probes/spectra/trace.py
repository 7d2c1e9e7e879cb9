r"""The trace from products: Hutchinson (1989), Hutch++ (Meyer et al. 2021, https://arxiv.org/abs/2010.09649), XTrace (Epperly, Tropp & Webber
2024, https://arxiv.org/abs/2301.07825).

    trace(hessian(objective), products=98)              # Estimate: value, standard error, 95 % interval

Hutchinson's error is $\sqrt{2/m}\,\|A\|_F$ less the diagonal's part; the others first take out the space in which the operator is large, and gain
where a few eigenvalues carry the trace. All are without bias.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.estimate import Estimate, exact, sampled

Method = Literal["hutchinson", "hutch++", "xtrace"]
FEW = 20  # below so many products half of them are too few to find a space with; measured in benchmarks/probes/spectra.py


def trace(
    operator: Operator,
    products: int = 98,
    method: Method | None = None,
    *,
    seed: int = 0,
    unit: str = "loss/parameter²",
) -> Estimate:
    r"""$\mathrm{tr}\,A$ with at most `products` products; the method is chosen by their number: all n unit vectors if they suffice, XTrace from
    20 on, else Hutchinson.

    Memory: three vectors for Hutchinson, `products` for XTrace, two thirds of them for Hutch++. `error` is one standard error over draws
    (Hutchinson, Hutch++) or over the leave-one-out estimates (XTrace).
    """
    if isinstance(products, bool) or not isinstance(products, int) or products < 2:
        raise ValueError(f"products must be a whole number, two or more, got {products!r}.")
    if method not in (None, "hutchinson", "hutch++", "xtrace"):
        raise ValueError(f"method must be 'hutchinson', 'hutch++' or 'xtrace', got {method!r}.")
    begin, generator = operator.products, torch.Generator().manual_seed(seed)
    if method is None and products >= operator.n:
        value = sum(float((operator @ unit_vector(operator, i))[i]) for i in range(operator.n))
        return exact(value, unit, cost={"products": operator.n})
    if method is None:
        method = "xtrace" if products >= FEW else "hutchinson"
    if method != "hutchinson" and (products < 6 or products > operator.n):
        raise ValueError(f"{method} needs from 6 products to as many as parameters, {operator.n}, got {products}: leave method out.")
    if method == "hutchinson":
        values = np.array([quadratic(operator, signs(operator, generator)) for _ in range(products)])
        value, error, n = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5), len(values)
    elif method == "hutch++":
        value, error, n = hutch_plus_plus(operator, products, generator)
    else:
        value, error, n = xtrace(operator, products, generator)
    return sampled(value, error, unit, n, note=method, cost={"products": operator.products - begin})


def signs(operator: Operator, generator: torch.Generator) -> Tensor:
    """A Rademacher vector: the least variance of all vectors with independent entries."""
    v = torch.randint(0, 2, (operator.n,), generator=generator, dtype=torch.int8)
    return (2 * v - 1).to(operator.device, torch.promote_types(operator.dtype, torch.float32))


def unit_vector(operator: Operator, i: int) -> Tensor:
    """The i-th unit vector."""
    v = torch.zeros(operator.n, dtype=operator.dtype, device=operator.device)
    v[i] = 1
    return v


def quadratic(operator: Operator, v: Tensor) -> float:
    r"""$v^\top A v$ with the sum in float64."""
    return dot(v, operator @ v)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product, summed in float64 where float32 would lose digits over many entries of both signs."""
    return float((a.to(b.dtype) * b).sum(dtype=torch.float64))


def sketch(operator: Operator, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rademacher vectors (n, count) and their products."""
    omega = torch.stack([signs(operator, generator) for _ in range(count)], 1)
    return omega, (operator @ omega).to(omega.dtype)


def hutch_plus_plus(operator: Operator, products: int, generator: torch.Generator) -> tuple[float, float, int]:
    """A third of the products finds a space, a third gives its trace exactly, a third is Hutchinson's on the rest; the error is the rest's."""
    third = products // 3
    _, y = sketch(operator, third, generator)
    q, _ = torch.linalg.qr(y)
    inside = float((q * (operator @ q)).sum(dtype=torch.float64))
    rest = []
    for _ in range(products - 2 * third):
        v = signs(operator, generator)
        v = v - q @ (q.T @ v)
        rest.append(quadratic(operator, v))
    return inside + float(np.mean(rest)), float(np.std(rest, ddof=1) / len(rest) ** 0.5), len(rest)


def xtrace(operator: Operator, products: int, generator: torch.Generator) -> tuple[float, float, int]:
    r"""Every test vector is Hutchinson's for the space that all the others found; the mean over them and its standard error.

    With $A\Omega = QR$ the space without column i is $Q(I - s_i s_i^\top)Q^\top$, where $s_i$ is the i-th column of $R^{-\top}$ scaled to length
    1, so all the leave-one-out spaces cost one factorisation. Test vectors lie on the sphere, and what is outside a space is scaled to the length
    it has on average.
    """
    k = products // 2
    n = operator.n
    omega = torch.stack([torch.randn(n, generator=generator) for _ in range(k)], 1).to(
        operator.device, torch.promote_types(operator.dtype, torch.float32)
    )
    omega = omega * (n**0.5 / omega.norm(dim=0))
    q, r = torch.linalg.qr((operator @ omega).to(omega.dtype))
    small, w, r = (q.T @ (operator @ q).to(q.dtype)).double().cpu(), (q.T @ omega).double().cpu(), r.double().cpu()
    s = left_out(r)
    each = without(small, w, r, n, s[:, :, None])
    # Each is without bias given all other vectors, so two of them covary by what each changes through the other's vector, exactly: E[(t_i -
    # t_i')(t_j - t_j')], where t' leaves both vectors out of the space. The paper's estimate has the variance alone, and is too small where k is
    # near the rank of what is left.
    changes = torch.zeros(k, k, dtype=torch.float64)
    for j in range(k):
        second = s[:, j, None] - s * (s * s[:, j, None]).sum(0)
        second = second / second.norm(dim=0).clamp(min=1e-300)
        changes[:, j] = each - without(small, w, r, n, torch.stack([s, second], 2))
    changes.fill_diagonal_(0)
    shared = float((changes * changes.T).sum()) / (k * (k - 1))
    return float(each.mean()), (float(each.var()) / k + max(shared, 0.0)) ** 0.5, k


def without(small: Tensor, w: Tensor, r: Tensor, n: int, out: Tensor) -> Tensor:
    r"""The k estimates from $Q^\top A Q$, $Q^\top\Omega$ and R; the i-th in the space of Q less the directions `out[:, i]` (k, k, directions)."""
    k, count = r.shape[1], out.shape[2]
    x, inside = w, small.trace()
    for d in out.unbind(2):
        x = x - d * (d * w).sum(0)
        inside = inside - (d * (small @ d)).sum(0)
    outside = (w * r).sum(0) - 2 * (r * x).sum(0) + (x * (small @ x)).sum(0)
    return inside + outside * (n - k + count) / (n - x.square().sum(0)).clamp(min=1e-300)


def left_out(r: Tensor) -> Tensor:
    r"""Columns of $R^{-\top}$ of length 1: what the i-th column alone adds to the space of all. A rank that is too small leaves pseudo-inverses."""
    inverse = torch.linalg.pinv(r, rtol=1e-12).T
    return inverse / inverse.norm(dim=0).clamp(min=1e-300)

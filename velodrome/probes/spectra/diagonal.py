r"""The diagonal from products: Bekas, Kokiopoulou & Saad 2007 (https://doi.org/10.1016/j.apnum.2007.01.003), XDiag (Epperly, Tropp & Webber 2024,
https://arxiv.org/abs/2301.07825).

found = diagonal(hessian(objective), products=50)
found.of("blocks.0.expand.weight")                # values in the parameter's shape
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from scipy.stats import t as student
from torch import Tensor

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.spectra.trace import left_out, signs, sketch


@dataclass(frozen=True)
class Diagonal:
    """`value` (n,) and `error` (n,), the standard error of each entry over `draws`; `half` times the error is the half-width of a 95 % interval."""

    value: Tensor = field(repr=False)
    error: Tensor = field(repr=False)
    draws: int
    products: int
    unit: str
    operator: Operator = field(repr=False)

    @property
    def half(self) -> float:
        """Student's quantile for the draws."""
        return float(student.ppf(0.975, self.draws - 1)) if self.draws > 1 else float("inf")

    def of(self, name: str) -> Tensor:
        """The entries of one parameter, in its shape."""
        return self.operator.split(self.value)[name]


def diagonal(
    operator: Operator, products: int = 50, method: Literal["bekas", "xdiag"] = "bekas", *, seed: int = 0, unit: str = "loss/parameter²"
) -> Diagonal:
    r"""$\mathrm{diag}(A)$ without bias: the mean of $v \odot A v$ over Rademacher vectors, whose error is the rest of the entry's row,
    $\sqrt{\sum_{j \ne i} a_{ij}^2 / m}$.

    "xdiag" takes out the space found by the other vectors first, and gains where a few eigenvalues carry the matrix; its memory is `products`
    vectors, and its error the spread of the leave-one-out estimates, a little too small where they share much.
    """
    if isinstance(products, bool) or not isinstance(products, int) or products < 4:
        raise ValueError(f"products must be a whole number, four or more, got {products!r}.")
    if method not in ("bekas", "xdiag"):
        raise ValueError(f"method must be 'bekas' or 'xdiag', got {method!r}.")
    begin, generator = operator.products, torch.Generator().manual_seed(seed)
    value, error, draws = (bekas if method == "bekas" else xdiag)(operator, products, generator)
    return Diagonal(value, error, draws, operator.products - begin, unit, operator)


def bekas(operator: Operator, products: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Mean and standard error, entry by entry, in one pass (Welford's)."""
    mean = torch.zeros(operator.n, dtype=torch.promote_types(operator.dtype, torch.float32), device=operator.device)
    squares = torch.zeros_like(mean)
    for i in range(1, products + 1):
        v = signs(operator, generator)
        x = v * (operator @ v)
        change = x - mean
        mean += change / i
        squares += change * (x - mean)
    return mean, (squares / (products - 1) / products).sqrt(), products


def xdiag(operator: Operator, products: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    r"""$\mathrm{diag}(P_i A) + \omega_i \odot (I - P_i) A \omega_i$ with the space $P_i$ of all vectors but the i-th; mean and spread over i."""
    k = min(products // 2, operator.n)
    omega, y = sketch(operator, k, generator)
    q, r = torch.linalg.qr(y)
    z = (operator @ q).to(q.dtype)
    s = left_out(r.double().cpu()).to(q)
    qs, zs = q @ s, z @ s  # what the i-th vector alone adds to the space, and its image
    each = (q * z).sum(1, keepdim=True) - qs * zs + omega * qs * (s * r).sum(0)
    return each.mean(1), each.std(1) / k**0.5, k

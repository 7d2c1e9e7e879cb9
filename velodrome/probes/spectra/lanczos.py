r"""Lanczos' iteration: a symmetric operator seen from one vector, as a small tridiagonal matrix (Lanczos 1950; Golub & Meurant 2010).

Two forms. `three_term` keeps two vectors and lets orthogonality go: what it says of densities and of the ends of the spectrum stays right, for
the matrix in finite precision is the exact one of a larger problem whose eigenvalues lie in tiny clusters around the true ones (Greenbaum 1989),
but an eigenvalue may appear several times. `orthogonal` keeps all vectors and makes every new one orthogonal to them twice, for eigenpairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.stats import beta
from torch import Tensor

Product = Callable[[Tensor], Tensor]
BREAKDOWN = 1e-6  # of the largest coefficient, in float32: what is left of a vector after two subtractions is rounding


@dataclass(frozen=True)
class Tridiagonal:
    """`diagonal` (m,) and `beside` (m,): the coefficients of m steps; the last of `beside` leads to a vector that was not multiplied any more.

    `broke`: the iteration ended early, because the start lies in a space of m dimensions that the operator does not leave; then the nodes are exact.
    """

    diagonal: np.ndarray
    beside: np.ndarray
    broke: bool

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = eigh_tridiagonal(self.diagonal, self.beside[:-1])
        return values, vectors

    @cached_property
    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.diagonal.tolist(), self.beside.tolist(), strict=True))

    @property
    def nodes(self) -> np.ndarray:
        """Ritz values (m,), ascending: the nodes of Gauss' quadrature for the spectral measure of the start."""
        return self._solved[0]

    @property
    def weights(self) -> np.ndarray:
        """Weights (m,) of that quadrature; they sum to 1."""
        return self._solved[1][0] ** 2

    @property
    def residuals(self) -> np.ndarray:
        r"""$|\beta_m s_{mi}|$: an eigenvalue of the operator is no farther from a node than this, rounding apart."""
        return np.abs(self.beside[-1] * self._solved[1][-1])

    def christoffel(self, x: float) -> float:
        r"""$1/\sum_{j \le m} p_j(x)^2$ with the orthonormal polynomials of the measure: the most weight that a point x can have in it."""
        before, now, total, back = 0.0, 1.0, 1.0, 0.0
        for a, b in self._pairs[: len(self._pairs) - self.broke]:
            before, now, back = now, ((x - a) * now - back * before) / b, b
            total += now * now
            if total > 1e300:
                return 0.0
        return 1 / total


def reach(chains: Sequence[Tridiagonal], n: int, miss: float = 0.05, sign: int = 1) -> float:
    r"""A limit beyond which the operator has no eigenvalue, above (`sign` 1) or below (-1), but for a chance `miss` over the D random starts in n
    dimensions.

    A start's share of an eigenvector is at most `christoffel` of its eigenvalue. The sum of these shares over random starts is at least D times
    the `miss` quantile of $\mathrm{Beta}(\frac D2, \frac{D(n-1)}2)$ but for that chance: no eigenvalue is where the first sum is below the
    second. (The polynomial argument of Kuczynski & Wozniakowski 1992, https://doi.org/10.1137/0613066, with the best polynomial of these very
    runs; ours.)
    """
    ends = [float(c.nodes[-1] if sign > 0 else c.nodes[0]) for c in chains]
    end = max(ends) if sign > 0 else min(ends)
    if n < 2 or all(c.broke for c in chains):
        return end
    d = len(chains)
    least = d * float(beta.ppf(miss, d / 2, d * (n - 1) / 2))
    seen = lambda x: sum(c.christoffel(x) for c in chains)  # noqa: E731
    step = spread = max(max(float(c.nodes[-1] - c.nodes[0]) for c in chains), abs(end), 1e-300)
    while seen(end + sign * step) > least and step < 1e12 * spread:
        step *= 2
    near, far = 0.0, step
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if seen(end + sign * middle) > least else (near, middle)
    return end + sign * far


def three_term(product: Product, start: Tensor, order: int) -> Tridiagonal:
    """`order` products without re-orthogonalisation: two vectors of memory beside the product's own.

    Vectors stay in the dtype of `start`, the coefficients are kept in float64. Beside a product a step makes five passes over a vector.
    """
    check(start, order)
    now, before = start / start.norm(), torch.zeros_like(start)
    diagonal, beside = list[float](), list[float]()
    for _ in range(min(order, start.numel())):
        w = product(now)
        w = w.to(now.dtype, copy=w.data_ptr() == now.data_ptr())  # it is written to below
        along = float(torch.dot(w, now))
        w.sub_(now, alpha=along)
        if beside:
            w.sub_(before, alpha=beside[-1])
        size = float(torch.linalg.vector_norm(w))
        diagonal.append(along)
        beside.append(size)
        if ended(size, diagonal, beside, start.dtype):
            return Tridiagonal(np.array(diagonal), np.array(beside), True)
        before, now = now, w.div_(size)
    return Tridiagonal(np.array(diagonal), np.array(beside), len(diagonal) == start.numel())


def orthogonal(product: Product, start: Tensor, order: int) -> tuple[Tridiagonal, Tensor]:
    """At most `order` products with full re-orthogonalisation; also the basis, one vector a row, (m, n), of which `nodes` are the Ritz values.

    Memory: `order` vectors. Classical Gram-Schmidt, twice, which is enough (Kahan); one pass leaves rounding errors that grow.
    """
    steps = list(orthogonal_steps(product, start, order))
    return steps[-1]


def orthogonal_steps(product: Product, start: Tensor, order: int) -> Iterator[tuple[Tridiagonal, Tensor]]:
    """The same step by step: yields (Tridiagonal, basis) after each product, so that the reader may stop."""
    check(start, order)
    most = min(order, start.numel())
    basis = start.new_empty(most, start.numel())
    torch.div(start, start.norm(), out=basis[0])
    diagonal, beside = list[float](), list[float]()
    for k in range(1, most + 1):
        known = basis[:k]
        w = product(known[-1]).to(start.dtype)
        along = known @ w
        diagonal.append(float(along[-1]))
        w = torch.addmv(w, known.T, along, alpha=-1)
        w = torch.addmv(w, known.T, known @ w, alpha=-1)
        size = float(torch.linalg.vector_norm(w))
        beside.append(size)
        broke = ended(size, diagonal, beside, start.dtype) or k == start.numel()
        yield Tridiagonal(np.array(diagonal), np.array(beside), broke), known
        if broke:
            return
        if k < most:
            torch.div(w, size, out=basis[k])


def ended(size: float, diagonal: list[float], beside: list[float], dtype: torch.dtype) -> bool:
    """Whether what is left of the new vector is rounding (or, of a zero operator, nothing); ValueError for a number that is not finite."""
    if not np.isfinite(size) or not np.isfinite(diagonal[-1]):
        raise ValueError("the operator gave a number that is not finite: the weights or the inputs are not, or float32 overflows.")
    scale = max(max(map(abs, diagonal)), max(beside))
    return size <= BREAKDOWN * (torch.finfo(dtype).eps / 1.2e-7) * scale


def check(start: Tensor, order: int) -> None:
    """ValueError unless the start is a vector that is not 0 and the order a whole number above 0."""
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be a whole number, one or more, got {order!r}.")
    if start.ndim != 1 or start.dtype not in (torch.float32, torch.float64) or not float(start.norm()) > 0:
        raise ValueError(f"the start must be a float32 or float64 vector that is not 0, got {start.dtype} of shape {tuple(start.shape)}.")

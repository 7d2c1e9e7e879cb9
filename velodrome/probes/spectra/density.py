r"""The spectral density by stochastic Lanczos quadrature (Ghorbani, Krishnan & Xiao 2019, https://arxiv.org/abs/1901.10159; Lin, Saad & Yang
2016, https://arxiv.org/abs/1308.5467).

    found = density(hessian(objective))
    print(found.trace, found.largest, found.negative())

A random unit vector sees the spectrum through a measure whose mean is the density; `order` products give that measure's best small quadrature.
The error of what is read here is nearly all in the draws: more draws, not more steps. Between the outliers and the bulk the order decides what is
resolved.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.stats import norm

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.estimate import Estimate, between, sampled
from velodrome.probes.spectra.lanczos import Tridiagonal, reach, three_term
from velodrome.probes.spectra.resampling import jackknife

POINTS = 1000


@dataclass(frozen=True)
class Density:
    """`chains`: one tridiagonal matrix a draw. `grid` (m,) eigenvalues, `pdf` (m,) the mean over draws of Gaussians of standard deviation `width`
    at the nodes, `band` (m,) its Monte-Carlo standard error; both per unit of eigenvalue, the pdf integrates to 1. `n`: dimension. `products`:
    those taken.

    `broke`: draws whose iteration ended early, with fewer nodes, exact for that draw. Estimates have Student's interval over the draws.
    """

    chains: list[Tridiagonal] = field(repr=False)
    n: int
    unit: str
    width: float
    grid: np.ndarray = field(repr=False)
    pdf: np.ndarray = field(repr=False)
    band: np.ndarray = field(repr=False)
    products: int

    @property
    def draws(self) -> int:
        """Number of random starts."""
        return len(self.chains)

    @property
    def broke(self) -> int:
        """Draws that ended before the order asked for."""
        return sum(c.broke for c in self.chains)

    @property
    def nodes(self) -> list[np.ndarray]:
        """Ritz values of each draw."""
        return [c.nodes for c in self.chains]

    @property
    def weights(self) -> list[np.ndarray]:
        """Weights of each draw; each sums to 1."""
        return [c.weights for c in self.chains]

    def mean(self, moment: int = 1) -> Estimate:
        r"""$\mathrm{tr}(A^p)/n$, the p-th moment of the density."""
        each = [float(c.weights @ c.nodes**moment) for c in self.chains]
        unit = f"({self.unit})^{moment}" if moment > 1 else self.unit
        if moment % 2 or self.draws < 3:
            return self._over(each, unit)
        # never below 0 and carried by a few large values: on the logarithm's scale its interval covers
        return jackknife(lambda m: float(m[0]), np.array(each)[:, None], unit, log=True, cost={"products": self.products})

    @cached_property
    def trace(self) -> Estimate:
        """The sum of the eigenvalues."""
        return self._over([self.n * float(c.weights @ c.nodes) for c in self.chains], self.unit)

    def share(self, low: float = -np.inf, high: float = np.inf) -> Estimate:
        """The share of the eigenvalues between two points, a number from 0 to 1.

        Each draw's measure is known there within bounds (Chebyshev, Markov & Stieltjes): the largest mass that one point can have. The mean takes
        the middle, the interval is Student's over the draws, widened by half of those bounds; the note says when these, and so `order`, decide.
        """
        found, loose = [], []
        for c in self.chains:
            (a, da), (b, db) = below(c, low), below(c, high)
            found.append(b - a)
            loose.append(da + db)
        plain = self._over(found, "")
        more = float(np.mean(loose))
        note = f"resolved to {more:.1g} by this order" if more > plain.error else ""
        low_end, high_end = max(0.0, plain.low - more), min(1.0, plain.high + more)
        return Estimate(plain.value, "", plain.error, low_end, high_end, "interval", self.draws, note, plain.cost)

    def negative(self, relative: float = 1e-2) -> Estimate:
        """Share of eigenvalues below minus `relative` times the largest magnitude: what is nearer to 0 is not told from 0."""
        return self.share(high=-relative * self.scale)

    def near_zero(self, relative: float = 1e-2) -> Estimate:
        """Share of eigenvalues within `relative` times the largest magnitude of 0."""
        return self.share(-relative * self.scale, relative * self.scale)

    @property
    def scale(self) -> float:
        """The largest magnitude of a node."""
        return max(float(np.abs(c.nodes).max()) for c in self.chains)

    @cached_property
    def largest(self) -> Estimate:
        """The largest eigenvalue: at least the value, which is a Rayleigh quotient, and below `high` with 95 % probability over the starts."""
        return self._end(1)

    @cached_property
    def smallest(self) -> Estimate:
        """The smallest eigenvalue: at most the value, and above `low` with 95 % probability over the starts."""
        return self._end(-1)

    def _end(self, sign: int) -> Estimate:
        ends = [float(c.nodes[-1] if sign > 0 else c.nodes[0]) for c in self.chains]
        value = max(ends) if sign > 0 else min(ends)
        residual = float(self.chains[ends.index(value)].residuals[-1 if sign > 0 else 0])
        limit = reach(self.chains, self.n, 0.05, sign)
        note = f"an eigenvalue is within {residual:.2g} of it"
        return between(value, min(value, limit), max(value, limit), self.unit, self.draws, note=note, cost={"products": self.products})

    def _over(self, values: list[float], unit: str) -> Estimate:
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("inf")
        return sampled(float(np.mean(values)), error, unit, len(values), cost={"products": self.products})

    def plain(self) -> dict[str, Any]:
        """For JSON and charts."""
        numbers = {
            "trace": self.trace,
            "largest": self.largest,
            "smallest": self.smallest,
            "negative": self.negative(),
            "near_zero": self.near_zero(),
        }
        curve = {"grid": self.grid.tolist(), "pdf": self.pdf.tolist(), "band": self.band.tolist(), "width": self.width}
        raw = {"nodes": [x.tolist() for x in self.nodes], "weights": [x.tolist() for x in self.weights]}
        facts = {"n": self.n, "unit": self.unit, "draws": self.draws, "broke": self.broke, "products": self.products}
        return {**facts, **curve, **raw, "numbers": {name: e.plain() for name, e in numbers.items()}}


def density(
    operator: Operator,
    draws: int = 10,
    order: int = 80,
    *,
    width: float | None = None,
    points: int = POINTS,
    seed: int = 0,
    unit: str = "loss/parameter²",
) -> Density:
    """`draws` random Gaussian starts of `order` products each, without re-orthogonalisation: three vectors of memory.

    `width`: standard deviation of the kernel in units of eigenvalue; by default 0.3 % of the range of the nodes, the variance 1e-5 of the paper's
    code.
    """
    for name, number in {"draws": draws, "order": order, "points": points}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number, one or more, got {number!r}.")
    if width is not None and not width > 0:
        raise ValueError(f"width must be above 0, got {width!r}: leave it out for 0.3 % of the range.")
    generator, dtype, begin = torch.Generator().manual_seed(seed), torch.promote_types(operator.dtype, torch.float32), operator.products
    chains = []
    for _ in range(draws):
        start = torch.randn(operator.n, generator=generator, dtype=torch.float32).to(operator.device, dtype)
        chains.append(three_term(operator.__matmul__, start, order))
    return smoothed(chains, operator.n, unit, width, points, operator.products - begin)


def smoothed(chains: list[Tridiagonal], n: int, unit: str, width: float | None, points: int, products: int) -> Density:
    """The curve and its band from the draws."""
    low, high = min(c.nodes[0] for c in chains), max(c.nodes[-1] for c in chains)
    spread = high - low or abs(high) or 1.0
    width = 1e-5**0.5 * spread if width is None else width
    grid = np.linspace(low - 4 * width - 0.01 * spread, high + 4 * width + 0.01 * spread, points)
    each = np.stack([norm.pdf(grid[:, None], c.nodes, width) @ c.weights for c in chains])
    band = each.std(0, ddof=1) / len(chains) ** 0.5 if len(chains) > 1 else np.full(points, np.inf)
    return Density(chains, n, unit, width, grid, each.mean(0), band, products)


def below(chain: Tridiagonal, x: float) -> tuple[float, float]:
    """(mass of a draw's measure below x, half the width of what is known of it), by the quadrature that has a node at x (Golub & Meurant 2010,
    chapter 6)."""
    if not np.isfinite(x):
        return float(x > 0), 0.0
    a, b = chain.diagonal, chain.beside
    if chain.broke or x < chain.nodes[0] or x > chain.nodes[-1]:
        return float(chain.weights[chain.nodes < x].sum()), 0.0
    at_x = chain.christoffel(x)
    back = x - a[0]  # d_j = x - a_j - b_{j-1}^2 / d_{j-1}: the last pivot gives the entry that makes x an eigenvalue
    for j in range(1, len(a)):
        back = x - a[j] - b[j - 1] ** 2 / (back or 1e-300)
    values, vectors = eigh_tridiagonal(np.append(a, x - b[-1] ** 2 / (back or 1e-300)), b)
    here = int(np.abs(values - x).argmin())
    return float((vectors[0] ** 2)[:here].sum()) + at_x / 2, at_x / 2

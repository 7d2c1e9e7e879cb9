r"""The largest eigenvalues with their vectors in few products, warm-started along a run.

    pairs = top_eigenpairs(hessian(objective), k=5)
    pairs = top_eigenpairs(hessian(objective), k=5, start=pairs)        # some steps later: fewer products

Lanczos with full re-orthogonalisation and thick restarts (Wu & Simon 2000, https://doi.org/10.1137/S0895479898334605). A warm start is ONE
vector, the sum of the former ones and a tenth of a random one: measured along a training (an MLP of 84,060 parameters, Adam), it needs 16
products for five pairs where a block start needs 21, for a block must pay a product for each of its vectors before it learns anything.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.estimate import Estimate, between, bounded
from velodrome.probes.spectra.lanczos import orthogonal, reach

GUARD, FRESH = 0.3, 0.1  # shares of the next Ritz vectors and of a random direction in a warm start
Which = Literal["magnitude", "algebraic", "smallest"]
ORDER = {"magnitude": lambda x: -x.abs(), "algebraic": lambda x: -x, "smallest": lambda x: x}


@dataclass(frozen=True)
class Pairs:
    r"""`values` (k,) by `largest` first, `vectors` (n, k) orthonormal, `residuals` $\|A v - \theta v\|$ (k,), all in the operator's unit, float64
    values.

    A residual is a proof that AN eigenvalue is no farther away. It does not say which one: that none larger was missed is `unseen`'s to say.
    `errors`: what the residual shifts the value by, were the recurrence to go on as it ends, at most the residual: an estimate, right within a
    factor of three where measured. `converged` (k,): error at most `tol` times the value. `guards` (n, g): the next Ritz vectors, carried along a
    run so that a pair that rises is met early. `next`: the first Ritz value outside, NaN if there is none. `products`: those of this call.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    errors: Tensor
    converged: Tensor
    products: int
    next: float
    largest: Which
    guards: Tensor = field(repr=False)

    def estimate(self, i: int = 0, unit: str = "loss/parameter²") -> Estimate:
        """The i-th value, with its residual as a bound."""
        note = "" if bool(self.converged[i]) else "not converged"
        return bounded(float(self.values[i]), float(self.residuals[i]), unit, note=note, cost={"products": self.products})


def top_eigenpairs(
    operator: Operator,
    k: int = 5,
    tol: float = 1e-4,
    start: Pairs | Tensor | None = None,
    largest: Which = "magnitude",
    *,
    most: int = 300,
    memory: int = 60,
    guards: int = 2,
    seed: int = 0,
) -> Pairs:
    """The `k` eigenpairs that are largest in magnitude, algebraically largest, or algebraically smallest, to a relative error `tol`, in at most
    `most` products.

    `start`: the Pairs of an earlier call (of any k, so that k may grow along a run) or vectors (n,) or (n, j); the seed draws what is missing,
    and with a warm start a random direction that is mixed in (give the step's number: another one each time, so that what lies outside the
    tracked space is found in time). Memory: `memory` vectors in the operator's dtype, float32 at least; when they are full it goes on from the
    best Ritz vectors. A sharpness to a few per cent: `k=1, start=former, most=4`, where the residual says how far it can be trusted.
    """
    check(operator, k, tol, most, memory, largest)
    memory = min(max(memory, 2 * k + 4), operator.n)
    generator, begin = torch.Generator().manual_seed(seed), operator.products
    search = Search(operator, memory, largest, first(operator, start, k, generator))
    while True:
        search.expand(draw(operator, generator))
        search.solve(k, tol)
        spent = operator.products - begin
        if spent >= most or search.ended or search.settled(k, tol, start is None):
            return search.pairs(k, guards, spent)
        if search.m == memory:
            search.restart(k + max(2, k // 2))


class Search:
    """A Krylov space, cut back to its best Ritz vectors when full: rows of `basis` (m + 1, n), the last not yet multiplied, and the small matrix
    (m, m)."""

    def __init__(self, operator: Operator, memory: int, largest: Which, start: Tensor) -> None:
        self.operator, self.largest = operator, largest
        self.basis = torch.empty(memory + 1, operator.n, dtype=start.dtype, device=operator.device)
        self.small = torch.zeros(memory, memory, dtype=torch.float64)
        self.m, self.size, self.ended = 0, 0.0, False
        self.basis[0] = start / start.norm()

    def expand(self, fresh: Tensor | None = None) -> None:
        """Multiply the last vector, and make what is new in the result the next one."""
        m = self.m
        known = self.basis[: m + 1]
        w = (self.operator @ known[m]).to(known.dtype)
        along = known @ w
        w = torch.addmv(w, known.T, along, alpha=-1)
        again = known @ w
        w = torch.addmv(w, known.T, again, alpha=-1)
        along = (along + again).double().cpu()
        if not bool(torch.isfinite(along).all()):
            raise ValueError("the operator gave a number that is not finite: the weights or the inputs are not, or float32 overflows.")
        self.small[m, : m + 1] = self.small[: m + 1, m] = along
        self.size, self.m = float(w.norm()), m + 1
        if self.size > 16 * torch.finfo(known.dtype).eps * float(self.small[: m + 1, : m + 1].abs().max()):
            torch.div(w, self.size, out=self.basis[m + 1])
            return
        self.size = 0.0  # the operator does not leave the space: what is outside of it can only be found from another vector
        self.ended = fresh is None or m + 1 == self.operator.n
        if not self.ended and fresh is not None:
            for _ in range(2):
                fresh = torch.addmv(fresh, known.T, known @ fresh, alpha=-1)
                fresh = fresh / fresh.norm()
            self.basis[m + 1] = fresh

    def solve(self, k: int, tol: float) -> None:
        """Ritz pairs in the wanted order; the residuals are those of the recurrence and what rounding adds."""
        m = self.m
        values, vectors = torch.linalg.eigh(self.small[:m, :m])
        order = torch.argsort(ORDER[self.largest](values), stable=True)
        self.values, self.turn = values[order], vectors[:, order].T.contiguous()
        rounding = 8 * torch.finfo(self.basis.dtype).eps * float(values.abs().max())
        self.all_residuals = self.size * self.turn[:, -1].abs() + rounding
        self.residuals = self.all_residuals[:k]
        self.errors = torch.minimum(self.residuals, self.residuals.square() * self.green(self.values[:k]))
        self.done = self.errors <= tol * self.values[:k].abs()

    def green(self, x: Tensor) -> Tensor:
        r"""$1/|x - \alpha - \beta^2/(x - \alpha - \beta^2/\dots)|$: what the square of a residual shifts a Ritz value by, were the recurrence to
        go on as it ends."""
        at = (x - float(self.small[self.m - 1, self.m - 1])).abs()
        inside = (at.square() - 4 * self.size**2).clamp(min=0).sqrt()
        return torch.where(at > 2 * self.size, 2 / (at + inside).clamp(min=1e-300), torch.inf)

    def settled(self, k: int, tol: float, cold: bool) -> bool:
        """Whether the first k are done, and no Ritz value outside could be one of them by its own residual.

        A random start may be so poor in one eigenvector that the values around it settle before it is seen; then the next Ritz value lingers on
        its way there with a residual that does not fall. So from a cold start that one must be near an eigenvalue as well.
        """
        if not bool(self.done.all()) or (cold and self.m > k and float(self.all_residuals[k]) > tol**0.5 * abs(float(self.values[k]))):
            return False
        rank, edge = ORDER[self.largest], float(ORDER[self.largest](self.values[len(self.residuals) - 1]))
        outside = rank(self.values[k:]) - self.all_residuals[k:]
        return len(outside) > 0 and float(outside[:2].min()) >= edge - float(self.errors[-1])

    def restart(self, keep: int) -> None:
        """Keep the best Ritz vectors only, and the next vector (Wu & Simon 2000)."""
        turn = self.turn[:keep]
        self.basis[:keep] = turn.to(self.basis) @ self.basis[: self.m]
        self.basis[keep] = self.basis[self.m]
        self.small.zero_()
        self.small[:keep, :keep] = torch.diag(self.values[:keep])
        self.m = keep

    def pairs(self, k: int, guards: int, products: int) -> Pairs:
        """What was found."""
        vectors = (self.turn[: k + guards].to(self.basis) @ self.basis[: self.m]).T
        after = float(self.values[k]) if len(self.values) > k else float("nan")
        found = self.values[:k], vectors[:, :k].contiguous(), self.residuals, self.errors, self.done
        return Pairs(*found, products, after, self.largest, vectors[:, k:].contiguous())


def first(operator: Operator, start: Pairs | Tensor | None, k: int, generator: torch.Generator) -> Tensor:
    """The one vector that everything grows from: the sum of those at hand and a random part, or random."""
    dtype = torch.promote_types(operator.dtype, torch.float32)
    fresh = draw(operator, generator)
    if start is None:
        return fresh
    given: Tensor | None = start if isinstance(start, Tensor) else None
    if isinstance(start, Pairs):  # the last of the pairs converge last, and get the most
        given = torch.cat([start.vectors * torch.arange(1.0, start.vectors.shape[1] + 1).to(start.vectors), GUARD * start.guards], 1)
    if not isinstance(given, Tensor) or given.ndim not in (1, 2) or given.shape[0] != operator.n:
        raise ValueError(f"start must be Pairs or vectors of shape ({operator.n}, j), got {getattr(given, 'shape', given)!r}.")
    mean = given.to(operator.device, dtype).reshape(operator.n, -1).sum(1)
    return mean / mean.norm() + FRESH * fresh / fresh.norm()


def draw(operator: Operator, generator: torch.Generator) -> Tensor:
    """A random direction, drawn on the CPU so that it is the same on every device."""
    dtype = torch.promote_types(operator.dtype, torch.float32)
    return torch.randn(operator.n, generator=generator, dtype=torch.float32).to(operator.device, dtype)


def unseen(operator: Operator, pairs: Pairs | None = None, products: int = 10, seed: int = 0, unit: str = "loss/parameter²") -> Estimate:
    """The largest eigenvalue outside the space of `pairs`: at least the value, a Rayleigh quotient, and with 95 % probability
    below `high`.

    Lanczos from a random vector on the operator restricted to what is orthogonal to the pairs; `lanczos.reach` tells how the limit is proven. Where
    `high` is below the smallest of the pairs, none larger was missed. For pairs by magnitude the limit is on the magnitude. Few products leave it
    wide.
    """
    known = None if pairs is None else pairs.vectors
    largest = "algebraic" if pairs is None else pairs.largest
    dtype = torch.promote_types(operator.dtype, torch.float32)

    def outside(v: Tensor) -> Tensor:
        return v if known is None else v - known.to(v) @ (known.T.to(v) @ v)

    start = outside(torch.randn(operator.n, generator=torch.Generator().manual_seed(seed)).to(operator.device, dtype))
    chain, _ = orthogonal(lambda v: outside(operator @ v), start, products)
    dimensions = operator.n - (0 if known is None else known.shape[1])
    miss = 0.025 if largest == "magnitude" else 0.05
    above, below = reach([chain], dimensions, miss), reach([chain], dimensions, miss, sign=-1)
    # Where the pairs are not exact the operator couples them to the rest, which moves eigenvalues by at most the norm of the residuals (Weyl).
    coupling = 0.0 if pairs is None else float(pairs.residuals.square().sum().sqrt())
    above, below = above + coupling, below - coupling
    cost = {"products": float(len(chain.diagonal))}
    if largest == "smallest":
        return between(float(chain.nodes[0]), below, float(chain.nodes[0]), unit, 1, cost=cost)
    if largest == "algebraic":
        return between(float(chain.nodes[-1]), float(chain.nodes[-1]), above, unit, 1, cost=cost)
    value = float(abs(chain.nodes).max())
    return between(value, value, max(above, -below), unit, 1, cost=cost)


def check(operator: Operator, k: int, tol: float, most: int, memory: int, largest: str) -> None:
    """ValueError for numbers that make no sense."""
    for name, number in {"k": k, "most": most, "memory": memory}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number, one or more, got {number!r}.")
    if k > operator.n:
        raise ValueError(f"k must be at most the number of parameters, {operator.n}, got {k}.")
    if largest not in ORDER:
        raise ValueError(f"largest must be 'magnitude', 'algebraic' or 'smallest', got {largest!r}.")
    if not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol!r}: write tol=1e-4.")

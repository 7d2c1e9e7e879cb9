r"""Where a run is on the way to the edge of stability: its sharpness over the threshold of its own optimizer (Cohen et al. 2021, 2022; `thresholds.py`).

    reading = edge(objective, optimizer)
    print(reading.verdict, reading.ratio.value)             # below the edge 0.31
    reading = edge(objective, optimizer, last=reading)      # some steps later: 4 products instead of 10 or 15

The ratio is the largest eigenvalue of $S^{1/2}(H+\Omega)S^{1/2}$ with $S = 1/(\lambda^* P)$: the curvature as this optimizer feels it, its rates, momenta,
decays and second moments folded in group by group (`thresholds.py`). At 1 an oscillation along the top eigenvector neither grows nor vanishes.

**Unmet.** A row of an embedding, or an input that was silent so far, has a second moment of about 0: P is eps there, and the first example that wakes it
has curvature over next to nothing (0.0066 became 84 on a healthy run). That P is gone with the step that meets the example. Weights whose gradient on
these examples is larger over P than any gradient can be that the optimizer has met (`most_divided`) are held still, and counted in `unmet`.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.operator import Operator
from velodrome.probes.curvature.preconditioned import most_divided, preconditioner
from velodrome.probes.edge.thresholds import Threshold, threshold
from velodrome.probes.estimate import Estimate, unidentified
from velodrome.probes.objective import Objective
from velodrome.probes.spectra.lanczos import Tridiagonal, orthogonal_steps

Verdict = Literal["below the edge", "at the edge", "above", "not separable"]


COLD, WARM = 30, 8  # products at most
FEWEST = 4  # of a warm reading: after 2 the residual is small and now and then that of the second eigenvalue; see benchmarks/probes/edge.py
LEAST = 30.0  # of that ratio: Adagrad's is 1, and one small gradient before a large one is no sign
FRESH = 0.1  # share of a random direction in a warm start
SLACK = 2.0  # times the largest ratio of gradient and P that is possible: examples looked at differ from those met


@dataclass(frozen=True)
class Edge:
    r"""`ratio`: sharpness over threshold, no unit. Its `low` is a Rayleigh quotient, below which the truth is not; `high` is the highest of all Ritz values
    plus its own residual, which is no proof: an eigenvector that the start hardly met may lie above (`unseen` of `spectra/top.py` bounds that). Warm
    readings every 50 steps of one run each on digits were held by it in 97 % (gradient descent), 95 % (Adam), and 85 % and 92 % (RMSprop, two draws).

    `sharpness`: $\lambda_{\max}(P^{-1/2}(H+\Omega)P^{-1/2})$, what the papers plot; not identified where groups have different thresholds. `thresholds`:
    one for each group looked at. `margin`: ratio - 1. `unmet`: the number of weights left out. `vector` (n,): the eigenvector. `verdict`:
    "below the edge" where `high` is under 1 - `tolerance`, "above" where `low` is over 1 + `tolerance`, "at the edge" where both are between,
    "not separable" where the bounds straddle a limit.
    """

    ratio: Estimate
    sharpness: Estimate
    thresholds: tuple[Threshold, ...]
    margin: float
    verdict: Verdict
    tolerance: float
    vector: Tensor = field(repr=False)
    readings: int = 1
    unmet: int = 0

    @property
    def headroom(self) -> float:
        """By what factor the rate may grow before this curvature is marginal; infinite where nothing curves upwards. Decoupled decay apart."""
        return 1 / self.ratio.value if self.ratio.value > 0 else float("inf")


class Felt(Operator):
    r"""$S^{1/2}(A+\Omega)S^{1/2}$ for diagonal S and $\Omega$, vectors (n,)."""

    def __init__(self, operator: Operator, scale: Tensor, l2: Tensor) -> None:
        super().__init__(operator.names, operator.shapes, operator.dtype, operator.device)
        self.operator, self.root = operator, scale.sqrt().to(operator.dtype)
        self.l2 = (scale * l2).to(operator.dtype) if bool(l2.any()) else None

    def product(self, v: Tensor) -> Tensor:
        """One product of the operator inside."""
        curved = self.root * (self.operator @ (self.root * v))
        return curved if self.l2 is None else curved.addcmul_(self.l2, v)


def edge(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    last: Edge | None = None,
    tol: float = 0.03,
    products: int | None = None,
    tolerance: float = 0.1,
    before_step: bool = False,
) -> Edge:
    """The reading at the weights, rates and second moments as they are, on the objective's examples.

    `last`: the reading before, whose eigenvector is the start. It stops where the bounds of the ratio are nearer than `tol` of it, or after `products`
    (30, warm 8; 4 are made at least). `tolerance`: how near to 1 is at the edge; a run there oscillates by some percent. `before_step`: P of the step
    about to be made with the gradients in `.grad`, for readings between backward and step; needed before the first step. A batch's curvature is above
    that of all data: what holds for training by batches is `batch_sharpness`. While the second moment is still changing, P is that of a moment.
    ValueError where the optimizer has no threshold (signs, orthogonal updates). Memory: the gradient's graph and as many vectors as products.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance!r}: write tolerance=0.1.")
    places = {id(p): (i, group) for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    diagonal = preconditioner(optimizer, objective.params, before_step=before_step)  # tells what is not in the optimizer
    scale = 1 / diagonal
    found: dict[int, Threshold] = {}
    for p in objective.params.values():
        i, group = places[id(p)]
        found.setdefault(i, threshold(optimizer, group))
    groups = [(p, found[places[id(p)][0]]) for p in objective.params.values()]
    spread = lambda values: torch.cat([torch.full_like(p, v).flatten() for (p, _), v in zip(groups, values, strict=True)])  # noqa: E731
    scale, l2 = scale * spread([t.scale for _, t in groups]), spread([t.l2 for _, t in groups])
    if not bool((scale > 0).any()):
        raise ValueError("every rate is 0, so nothing is unstable: look while the optimizer moves.")
    h = hessian(objective)
    left_out = unmet(h.gradient, diagonal, most_divided(optimizer, objective.params))
    felt = Felt(h, scale.masked_fill(left_out, 0.0), l2)
    chain, vector, count = largest(felt, last, tol, products)
    return read(chain, vector, tuple(found.values()), tolerance, count, int(left_out.sum()))


def unmet(gradient: Tensor, diagonal: Tensor, most: Tensor) -> Tensor:
    """The weights (n,) whose P does not know such gradients. Clipped gradients are shorter than these in all of them alike, which is no sign of that."""
    known = diagonal.isfinite()
    clipped = gradient[known].norm() / diagonal[known].norm()
    return known & (gradient.abs().to(diagonal) > SLACK * most.clamp(min=LEAST) * clipped.clamp(min=1) * diagonal)


def largest(felt: Operator, last: Edge | None, tol: float, products: int | None) -> tuple[Tridiagonal, Tensor, int]:
    """Lanczos with all vectors kept, from a random vector or from the last reading's with a little of one; the number of the reading seeds it."""
    warm = last is not None and last.vector.shape[0] == felt.n
    count = 0 if last is None else last.readings
    dtype = torch.promote_types(felt.dtype, torch.float32)
    start = (
        torch.empty(felt.n).uniform_(-1, 1, generator=torch.Generator().manual_seed(count)).to(felt.device, dtype)
    )  # normal ones cost a gradient
    if last is not None and warm:
        start = last.vector.to(start) + FRESH * start / start.norm()
    most = products if products is not None else WARM if warm else COLD
    for k, (chain, basis) in enumerate(orthogonal_steps(lambda v: felt @ v, start, most), 1):  # noqa: B007
        value, high = float(chain.nodes[-1]), float((chain.nodes + chain.residuals).max())
        if k >= FEWEST and high - value <= tol * abs(value):
            break
    turn = eigh_tridiagonal(chain.diagonal, chain.beside[:-1])[1]
    vector = torch.from_numpy(turn[:, -1].copy()).to(basis) @ basis
    return chain, vector / vector.norm(), count + 1


def read(chain: Tridiagonal, vector: Tensor, thresholds: tuple[Threshold, ...], tolerance: float, readings: int, unmet: int = 0) -> Edge:
    """The verdict on a largest eigenvalue of the folded operator."""
    low, high = float(chain.nodes[-1]), float((chain.nodes + chain.residuals).max())
    cost = {"products": float(len(chain.diagonal))}
    note = f"without {unmet:,} weights whose gradient here the optimizer has not met" if unmet else ""
    ratio = Estimate(low, "", high - low, low, high, "bound", note=note, cost=cost)
    same, unit = {t.value for t in thresholds}, "loss/(parameter · update)"
    if len(same) == 1:
        by = same.pop()
        sharpness = Estimate(low * by, unit, (high - low) * by, low * by, high * by, "bound", note=note, cost=cost)
    else:
        sharpness = unidentified(unit, "groups have different thresholds: read the ratio", cost=cost)
    return Edge(ratio, sharpness, thresholds, low - 1, verdict(ratio, tolerance), tolerance, vector, readings, unmet)


def verdict(ratio: Estimate, tolerance: float = 0.1) -> Verdict:
    """Where the bounds of a ratio lie against 1."""
    if ratio.high < 1 - tolerance:
        return "below the edge"
    if ratio.low > 1 + tolerance:
        return "above"
    if 1 - tolerance <= ratio.low and ratio.high <= 1 + tolerance:
        return "at the edge"
    return "not separable"

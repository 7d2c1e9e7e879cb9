r"""Critical sharpness: how much farther the coming update could go before it raises the loss, by forward passes alone (Kalra et al. 2026,
https://arxiv.org/abs/2601.16979). No second derivatives: works with flash attention, bfloat16, torch.compile and sharded parameters.

With $\Delta = -\eta u$ the update and $\alpha_c$ the multiple of it at which the loss is back where it started, $\eta_c = \alpha_c \eta$ and
$\lambda_c = 2/\eta_c$; the step is too long for this batch where $\eta\lambda_c/2 = 1/\alpha_c$ is above 1. On a parabola $\lambda_c = u^T H u/(g^T u)$,
the directional sharpness. It is not the sharpness: a direction that misses the sharp eigenvector does not feel it, so $\lambda_c$ is mostly lower.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from velodrome.optim.rule import is_sharded
from velodrome.probes.edge.gauge import Verdict, verdict
from velodrome.probes.edge.update import coming_update
from velodrome.probes.estimate import Estimate, unidentified
from velodrome.probes.objective import Objective

FARTHEST, NEAREST = 2.0**20, 2.0**-20  # multiples of the update between which the search stays


@dataclass(frozen=True)
class Critical:
    r"""`step`: $\alpha_c$, in updates. `ratio`: $1/\alpha_c$, no unit, 1 is the edge of this batch. `sharpness`: $\lambda_c = 2/(\alpha_c\eta)$, not
    identified where groups have different rates or none is given. Bounds are the bracket, widened by what the loss's rounding hides. `slope`:
    $g^T\Delta$, the change of the loss to first order, NaN where no gradient was at hand. `passes`: evaluations of the objective. `verdict`: of the
    ratio.
    """

    step: Estimate
    ratio: Estimate
    sharpness: Estimate
    loss: float
    slope: float
    passes: int
    verdict: Verdict


def critical_sharpness(
    objective: Objective,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    update: Sequence[Tensor] | None = None,
    lr: float | None = None,
    own_gradients: bool = False,
    tol: float = 1 / 16,
    tolerance: float = 0.1,
    last: Critical | None = None,
    most: int = 12,
    processes: Any = None,
) -> Critical:
    """Along the update that `optimizer` is about to make (found on a copy), or along `update`, one tensor for each of `objective.params`.

    The optimizer's gradients are those of the objective, by one backward pass, so that update and loss are of the same examples; `own_gradients=True`
    takes those in `.grad`. `lr` for a given update. `tol`: width of the bracket relative to its end (the authors' 1/16). `last`: the reading before,
    whose step is tried first. `processes`: a group of torch.distributed over which losses are averaged, so that all take the same passes (FSDP); there
    the gradients must be own ones. Costs 4 to 9 forward passes, 4 or 5 warm, and at most `most`; where the loss has not risen by then, that is said;
    and a copy of the parameters, with an optimizer also of its states.
    """
    if (optimizer is None) == (update is None):
        raise ValueError("give either the optimizer or an update, one tensor for each of objective.params.")
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol!r}: write tol=1/16.")
    params = list(objective.params.values())
    gradients = [p.grad for p in params] if own_gradients else None
    if not own_gradients and processes is None:
        with objective.ready():
            gradients = list(torch.autograd.grad(objective.mean(), params, materialize_grads=True))
    with torch.no_grad(), moved(objective) as move:
        walk = Walk(objective, move, processes, tol)
        if optimizer is not None:
            rates = {float(g["lr"]) for g in optimizer.param_groups if any(p is q for p in params for q in g["params"])}
            lr = rates.pop() if len(rates) == 1 else None
            update = coming_update(optimizer, params, gradients, walk.start)
        assert update is not None
        if len(update) != len(params) or any(d.shape != p.shape for d, p in zip(update, params, strict=False)):
            raise ValueError("update must have one tensor for each of objective.params, in their order and shapes.")
        if not any(bool(d.any()) for d in update):
            raise ValueError("the update is zero everywhere: its rate is 0, or the weights' format is too coarse for it.")
        walk.update = list(update)
        if gradients is not None and processes is None:
            pairs = [(g, d) for g, d in zip(gradients, update, strict=True) if g is not None]
            walk.slope = float(sum((g.double() * d.double()).sum() for g, d in pairs))
        walk.search(last.step.value if last is not None and last.step.identified else 1.0, most)
    return walk.reading(lr, tolerance)


@contextmanager
def moved(objective: Objective) -> Iterator[Callable[[Sequence[Tensor], float], None]]:
    """A function that puts the parameters at a multiple of an update from where they were; afterwards they are back, bit for bit."""
    forget(objective)
    params = list(objective.params.values())
    old = [p.detach().clone() for p in params]

    def move(update: Sequence[Tensor], by: float) -> None:
        for p, start, d in zip(params, old, update, strict=True):
            p.copy_(start).add_(d, alpha=by)

    try:
        yield move
    finally:
        for p, start in zip(params, old, strict=True):
            p.copy_(start)
        forget(objective)


def forget(objective: Objective) -> None:
    """Drop copies of the weights that a forward pass left: autocast's in a coarser format, and what FSDP2 gathers for its outermost module."""
    torch.clear_autocast_cache()
    if any(is_sharded(p) for p in objective.params.values()):
        for module in objective.model.modules():
            reshard = getattr(module, "reshard", None)  # FSDPModule's, a class that would bring torch.distributed in
            if callable(reshard):
                reshard()


class Walk:
    r"""The search for the zero of $h(\alpha) = (L(\theta+\alpha\Delta)-L(\theta))/\alpha$, on a parabola a straight line that starts at the slope."""

    def __init__(self, objective: Objective, move: Callable[[Sequence[Tensor], float], None], processes: Any, tol: float) -> None:
        self.objective, self.move, self.processes, self.tol = objective, move, processes, tol
        self.update: list[Tensor] = []
        self.slope, self.passes = nan, 0
        self.behind, self.low, self.high = (
            (0.0, nan),
            (0.0, nan),
            (inf, inf),
        )  # the ends of the bracket with their h, and the low end before
        with outputs_of(objective) as formats:
            self.start = self.loss()
        self.hidden = abs(self.start) * resolution(objective, self.format, formats)

    def loss(self) -> float:
        """The loss where the parameters are."""
        self.passes += 1
        forget(self.objective)
        with self.objective.ready(), torch.no_grad():
            mean = self.objective.mean().detach()
        self.format = mean.dtype
        if self.processes is None:
            return float(mean)
        count = float(self.objective.examples)
        total = torch.tensor([float(mean) * count, count], dtype=torch.float64, device=mean.device)
        torch.distributed.all_reduce(total, group=self.processes)
        return float(total[0] / total[1])

    def try_at(self, alpha: float) -> None:
        """Evaluate and narrow the bracket; a loss that is not finite has risen."""
        self.move(self.update, alpha)
        rise = self.loss() - self.start
        if isfinite(rise) and rise <= 0:
            self.behind, self.low = self.low, (alpha, rise / alpha)
        else:
            self.high = alpha, rise / alpha if isfinite(rise) else inf

    def search(self, guess: float, most: int) -> None:
        """Bracket, led by the straight line through what is known; then close the bracket from both sides of that line's zero."""
        if self.slope > 0:
            return
        self.behind = self.low = 0.0, self.slope
        before, tried = inf, 0
        trial = min(max(guess, NEAREST), FARTHEST)
        while self.passes < most:
            self.try_at(trial)
            a, b = self.low[0], self.high[0]
            if b == inf or a == 0:
                if a >= FARTHEST or b <= NEAREST:
                    return
                tried += 1
                trial = self.outwards(1 + self.tol / 2.5 if tried == 1 else 1.25)
                continue
            if b - a <= max(self.tol * b, self.blur()):
                return
            zero, width = self.zero(), b / a
            beside = zero * (1 - self.tol / 2.5 if zero / a > b / zero else 1 + self.tol / 2.5)
            trial = beside if a < beside < b and width < before**0.7 else sqrt(a * b)
            before = width

    def outwards(self, across: float) -> float:
        """The next place to try while there is one end only: `across` times beyond the line's zero, at most 64 times farther or nearer."""
        a, b, zero = self.low[0], self.high[0], self.zero()
        if b == inf:
            return min(max(zero * across, 1.1 * a if across < 1.2 else 1.5 * a), 64 * a) if isfinite(zero) else 4 * a
        return max(min(zero / across, b / 1.1), b / 64) if isfinite(zero) else b / 2

    def zero(self) -> float:
        """Where the line through the ends is zero, with a low end only the line through the last two; infinite where it falls."""
        (a, ha), (b, hb) = self.low, self.high
        if b == inf:
            (a, ha), (b, hb) = self.behind, self.low
        return a - ha * (b - a) / (hb - ha) if isfinite(ha) and isfinite(hb) and hb > ha else inf

    def blur(self) -> float:
        r"""By how much the rounding of the losses may shift the zero: over the loss's slope there, on a parabola that at the start reversed."""
        (a, ha), (b, hb) = self.low, self.high
        steep = -self.slope if isfinite(self.slope) else -ha + a * max(hb - ha, 0.0) / (b - a)
        return self.hidden / steep if steep > 0 else inf

    def reading(self, lr: float | None, tolerance: float) -> Critical:
        """What was found, or why there is nothing."""
        a, b = self.low[0], self.high[0]
        cost, units = {"passes": float(self.passes)}, ("updates", "", "loss/(parameter · update)")
        if a == 0 or b == inf or self.blur() >= a:
            if a == 0:
                note = "the update points uphill on these examples: any step raises the loss"
            elif b == inf:
                note = f"the loss does not rise within {a:g} updates"
            else:
                note = f"a loss of {self.start:.3g} is resolved to {self.hidden:.1g} here, which hides what the update does"
            where: Verdict = (
                "above" if a == 0 and self.slope > 0 else "below the edge" if b == inf and a * (1 - tolerance) >= 1 else "not separable"
            )
            none = [unidentified(unit, note, cost=cost) for unit in units]
            return Critical(none[0], none[1], none[2], self.start, self.slope, self.passes, where)
        middle, low, high = sqrt(a * b), a - self.blur(), b + self.blur()
        step = bounds(middle, low, high, units[0], cost)
        ratio = bounds(1 / middle, 1 / high, 1 / low, units[1], cost)
        lambdas = unidentified(units[2], "no single learning rate: read the ratio", cost=cost)
        if lr:
            lambdas = bounds(2 / (lr * middle), 2 / (lr * high), 2 / (lr * low), units[2], cost)
        return Critical(step, ratio, lambdas, self.start, self.slope, self.passes, verdict(ratio, tolerance))


def bounds(value: float, low: float, high: float, unit: str, cost: dict[str, float]) -> Estimate:
    """A value between two limits."""
    return Estimate(value, unit, max(value - low, high - value), low, high, "bound", 1, "", cost)


@contextmanager
def outputs_of(objective: Objective) -> Iterator[set[torch.dtype]]:
    """The floating-point formats in which the model answers inside."""
    formats: set[torch.dtype] = set()

    def note(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        formats.update(x.dtype for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point())

    handle = objective.model.register_forward_hook(note)
    try:
        yield formats
    finally:
        handle.remove()


def resolution(objective: Objective, own: torch.dtype, formats: set[torch.dtype]) -> float:
    r"""How large a difference of two losses may be by rounding alone, relative to the loss: $2\epsilon + \epsilon'/\sqrt n$.

    $\epsilon$ is that of the loss's format `own`, $\epsilon'$ of the coarsest in which the model computes: weights, outputs (`formats`),
    autocast, TF32 on a GPU. Errors of n examples average out. Against float64 on an MLP, a CNN and a GPT in bfloat16 the largest differences were
    1.1e-2 (bfloat16 losses; this says 1.6e-2 and more) and 1e-4 (float32 losses; 7e-4 to 3e-3); a model that casts inside may hide coarser formats.
    """
    device = next(iter(objective.params.values())).device.type
    formats = formats | {p.dtype for p in objective.model.parameters() if p.is_floating_point()}
    if torch.is_autocast_enabled(device):
        formats.add(torch.get_autocast_dtype(device))
    coarse = max(torch.finfo(f).eps for f in formats)
    if device == "cuda":
        coarse = max(coarse, 2.0**-10)
    return 2 * torch.finfo(own).eps + coarse / objective.examples**0.5

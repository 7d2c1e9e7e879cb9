"""Easy and hard examples: when each is learned, and whose gradient is large (Zielinski et al. 2020, https://arxiv.org/abs/2003.07422, on hardness)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from velodrome.probes.estimate import Estimate, exact, unidentified
from velodrome.probes.statistics.ghost import ExampleNorms


class LearnedAt:
    """Told again and again which of the same n examples are right, it knows since when each has stayed right.

    learned = LearnedAt()
    learned.add(step, model(x).argmax(1) == y)      # at any steps, in order, always the same examples
    learned.steps                                   # (n,) float64; nan for those that are not right now
    """

    def __init__(self) -> None:
        self.at: list[float] = []
        self._since: Tensor | None = None
        self.forgotten: Tensor | None = None

    def add(self, step: float, right: Tensor) -> None:
        """`right` (n,) says which examples are; ValueError for another number of examples or a step that is not later."""
        right = right.detach().bool().flatten().cpu()
        if self._since is None or self.forgotten is None:
            self._since, self.forgotten = (
                torch.full((len(right),), torch.nan, dtype=torch.float64),
                torch.zeros(len(right), dtype=torch.int64),
            )
        if len(right) != len(self._since):
            raise ValueError(f"the same {len(self._since)} examples must be asked every time, got {len(right)}.")
        if self.at and step <= self.at[-1]:
            raise ValueError(f"steps must grow, got {step} after {self.at[-1]}.")
        known = ~self._since.isnan()
        self.forgotten += known & ~right
        self._since[~right] = torch.nan
        self._since[right & ~known] = float(step)
        self.at.append(step)

    @property
    def steps(self) -> Tensor:
        """The step since which each example has been right at every look (n,), NaN where it is not right now. ValueError before the first look."""
        if self._since is None:
            raise ValueError("nothing has been seen yet: add(step, right).")
        return self._since.clone()

    def halves(self) -> tuple[Tensor, Tensor]:
        """Numbers of the examples learned earlier and later, two halves; those that are not learned are the last, ties in the order of the examples."""
        order = self.steps.nan_to_num(torch.inf).argsort(stable=True)
        half = len(order) // 2
        return order[:half].sort().values, order[half:].sort().values


@dataclass(frozen=True)
class Hardest:
    """Examples by the norm of their gradient, largest first: their numbers, norms and losses; `share` is what the first of ten holds of all squares.

    `agreement` is Spearman's rank correlation of norm and loss over all examples: near 1 the hard ones are those that are wrong, far below it large
    gradients come from elsewhere, such as inputs that are themselves large.
    """

    numbers: Tensor
    norms: Tensor
    losses: Tensor | None
    share: Estimate
    agreement: Estimate


def hardest(norms: ExampleNorms, k: int | None = None) -> Hardest:
    """The k examples (default all) with the largest gradients."""
    squares = norms.squared
    order = squares.argsort(descending=True, stable=True)
    total, tenth = float(squares.sum()), max(1, len(order) // 10)
    share = exact(float(squares[order[:tenth]].sum()) / total, "1", n=norms.n) if total > 0 else unidentified("1", "all gradients are zero")
    agreement = unidentified("1", "the loss gave no values of single examples")
    if norms.losses is not None:
        rank = (
            float(stats.spearmanr(squares.numpy(), norms.losses.numpy()).statistic)
            if norms.n > 2 and spread(norms.losses, squares)
            else None
        )
        agreement = unidentified("1", "losses or norms are all alike") if rank is None else exact(rank, "1", n=norms.n)
    first = order[:k]
    return Hardest(first, squares[first].sqrt(), None if norms.losses is None else norms.losses[first], share, agreement)


def spread(*columns: Tensor) -> bool:
    """Whether every column has two different values."""
    return all(float(c.min()) < float(c.max()) for c in columns)


def first_half_learned(steps: Sequence[float] | Tensor) -> float:
    """The step at which half of the examples were learned; infinite where fewer are."""
    found = torch.as_tensor(steps, dtype=torch.float64).nan_to_num(torch.inf).sort().values
    return float(found[(len(found) - 1) // 2])

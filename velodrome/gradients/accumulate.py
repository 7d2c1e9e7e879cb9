"""Gradient accumulation: a batch in parts, for the memory of one part."""

from itertools import pairwise

from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.gradients.gradient import Gradient


class Accumulate:
    """See `accumulate`, which builds it; a `Gradient` itself."""

    def __init__(self, gradient: Gradient, parts: int) -> None:
        self.gradient, self.parts = gradient, parts

    @property
    def model(self) -> nn.Module:
        """The network whose gradients are filled."""
        return self.gradient.model

    def __call__(self, batch: Batch, *, weight: float = 1.0) -> Tensor:
        """Add `weight` times the gradient of the batch's mean loss to `.grad`; the mean loss, detached."""
        n = batch.examples
        parts = min(self.parts, n)
        cuts = [i * n // parts for i in range(parts + 1)]
        means = []
        for start, stop in pairwise(cuts):
            share = (stop - start) / n
            means.append(self.gradient(batch.part(start, stop), weight=weight * share) * share)
        return sum(means[1:], start=means[0])


def accumulate(gradient: Gradient, parts: int) -> Accumulate:
    r"""`gradient` over `parts` micro-batches: $\nabla L = \sum_i \frac{n_i}{n} \nabla L_i$, the mean over all examples, as is the returned loss.

    The parts differ by at most one example where `parts` does not divide the batch; a batch with fewer examples than parts is split into single
    examples. `gradient` is any callable `(batch, weight=...)`, such as `backward(model, loss)`; examples are weighted equally,
    whatever their number of tokens.

    A model with BatchNorm sees the statistics of a part instead of those of the batch, and updates its running statistics once a part: there the
    result is not the full batch's gradient. ValueError if parts is below one.
    """
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"parts must be a whole number, one or more, got {parts!r}.")
    return Accumulate(gradient, parts)

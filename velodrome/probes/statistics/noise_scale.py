r"""Gradient noise scale (McCandlish et al. 2018, https://arxiv.org/abs/1812.06162): how large a batch may be before its gradients stop getting better.

$B_{simple} = \mathrm{tr}(\Sigma)/|G|^2$ with G the gradient of the expected loss and $\Sigma$ the covariance of one example's gradient. Both are unbiased
from the squared norms of n examples and of their mean, $\mathrm{tr}\,\hat\Sigma = \frac{n}{n-1}(\overline{\lVert g_i\rVert^2} - \lVert\bar g\rVert^2)$ and
$\widehat{|G|^2} = \frac{1}{n-1}(n\lVert\bar g\rVert^2 - \overline{\lVert g_i\rVert^2})$, or from mean squared norms at two batch sizes. They are
averaged separately: a mean of ratios would be of nothing. The law that turns it into a batch to train with is `scaling/rates/noise_scale.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from velodrome.probes.estimate import Estimate, between, exact, sampled, unidentified
from velodrome.probes.statistics.ghost import ExampleNorms
from velodrome.probes.statistics.ratio import LEVEL, fieller, jackknife, means

SQUARED = "(loss/parameter)²"


@dataclass(frozen=True)
class NoiseScale:
    r"""`value` is $B_{simple}$ in examples (a sequence is one), `trace` $\mathrm{tr}\,\Sigma$ and `squared` $|G|^2$, with 95 % intervals.

    Where $|G|^2$ cannot be told from zero, `value` is not identified, its note says how large it is at least, and `squared` may be negative.
    `smoothed` is the ratio of the two moving averages at the last step, without an interval.
    """

    value: Estimate
    trace: Estimate
    squared: Estimate
    smoothed: Estimate | None = None

    @property
    def critical_batch(self) -> Estimate:
        r"""The batch at which twice the fewest steps are taken for twice the fewest examples, as $B_{simple}$ predicts it."""
        note = "assumes a Hessian like the identity and a rate tuned at every batch; right within a factor of about two"
        return Estimate(**{**vars(self.value), "note": "; ".join(filter(None, (self.value.note, note)))})

    def efficiency(self, batch: float) -> float:
        """The share of the examples' worth that is left at a batch, 1/(1 + batch/B): 0.5 at the noise scale itself. NaN where that is unknown."""
        return 1 / (1 + batch / self.value.value)


class GradientNoise:
    r"""Collects $\mathrm{tr}\,\Sigma$ and $|G|^2$ step by step.

        noise = GradientNoise()
        noise.add(seen.norms)                                  # from example_norms or gradient_norms
        noise.add_batches(16, 64, small_squared, large_squared)  # or from micro-batches, or ranks and their mean
        noise.estimate()                                       # over the last `window` steps

    The interval takes the steps' batches as drawn independently (Fieller's; Student's t), and what drifts between them as noise. `decay` is that of
    the two moving averages. `block` joins neighbouring steps, for batches that share examples. All norms in loss/parameter.
    """

    def __init__(self, window: int = 100, decay: float = 0.95, block: int = 1) -> None:
        if window < 2 or block < 1 or not 0 <= decay < 1:
            raise ValueError(f"window must be 2 or more, block 1 or more, decay in [0, 1), got {window}, {block}, {decay}.")
        self.window, self.decay, self.block = window, decay, block
        self.pairs: list[tuple[float, float]] = []
        self.layers: dict[str, list[tuple[float, float]]] = {}
        self.smooth, self.weight = np.zeros(2), 0.0

    def add(self, norms: ExampleNorms) -> None:
        """One step's examples, two or more."""
        self._add(*noise_from_examples(norms.n, float(norms.squared.mean()), norms.total))
        for name, layer in norms.layers().items():
            self.layers.setdefault(name, []).append(noise_from_examples(layer.n, float(layer.squared.mean()), layer.total))

    def add_batches(self, small: float, large: float, small_squared: float, large_squared: float) -> None:
        """Mean squared norm of gradients of `small` examples each, and the squared norm of that of all `large`, in one step."""
        self._add(*noise_from_batches(small, large, small_squared, large_squared))

    def _add(self, trace: float, squared: float) -> None:
        if not (isfinite(trace) and isfinite(squared)):
            raise ValueError(
                f"squared norms must be finite, got tr(Sigma) = {trace} and |G|² = {squared}: leave out steps that overflowed."
            )
        self.pairs.append((trace, squared))
        self.smooth = self.decay * self.smooth + (1 - self.decay) * np.array([trace, squared])
        self.weight = self.decay * self.weight + 1 - self.decay

    def estimate(self) -> NoiseScale:
        """Over the window; ValueError before there is a step."""
        if not self.pairs:
            raise ValueError("no gradient has been added yet: add(norms) after a backward pass.")
        trace, squared = self.smooth / self.weight
        smoothed = (
            exact(trace / squared, "examples")
            if squared > 0
            else unidentified("examples", "|G|² averages to zero or less", len(self.pairs))
        )
        return from_pairs(*means(self._blocks(self.pairs)), smoothed=smoothed)

    def by_layer(self) -> dict[str, NoiseScale]:
        """The same for each module, from steps that were added with `add`."""
        return {name: from_pairs(*means(self._blocks(pairs))) for name, pairs in self.layers.items()}

    def _blocks(self, pairs: Sequence[tuple[float, float]]) -> np.ndarray:
        rows = np.array(pairs[-self.window :])
        whole = len(rows) // self.block * self.block
        return rows[len(rows) - whole :].reshape(-1, self.block, 2).mean(1) if whole else rows


def noise_from_examples(n: int, mean_squared: float, squared_mean: float) -> tuple[float, float]:
    r"""(tr Σ, |G|²), unbiased, from n examples: the mean of their squared norms and the squared norm of their mean. ValueError for one example."""
    if n < 2:
        raise ValueError(f"the noise of gradients needs two examples or more, got {n}.")
    return (mean_squared - squared_mean) * n / (n - 1), (n * squared_mean - mean_squared) / (n - 1)


def noise_from_batches(small: float, large: float, small_squared: float, large_squared: float) -> tuple[float, float]:
    r"""(tr Σ, |G|²), unbiased, from mean squared norms at two batch sizes; the large may be the mean of the small (micro-batches, ranks)."""
    if not 0 < small < large:
        raise ValueError(f"two batch sizes are needed, the smaller first, got {small} and {large}.")
    return (small_squared - large_squared) / (1 / small - 1 / large), (large * large_squared - small * small_squared) / (large - small)


def noise_scale(norms: ExampleNorms) -> NoiseScale:
    """From the examples of one pass. With `inner` products in the norms (inner=True) the interval is the delete-one jackknife's; without, there is none."""
    return from_pairs(*one_sample(norms))


def one_sample(norms: ExampleNorms) -> tuple[np.ndarray, np.ndarray, int]:
    """(tr Σ, |G|²) of one pass, their covariance and its degrees of freedom; the covariance is NaN without inner products or with two examples."""
    n, squares, total = norms.n, norms.squared.numpy(), norms.total
    whole = noise_from_examples(n, float(squares.mean()), total)
    if norms.inner is None or n < 3:
        return np.array(whole), np.full((2, 2), np.nan), 0
    mean = (n * squares.mean() - squares) / (n - 1)
    rest = (n * n * total - 2 * n * norms.inner.numpy() + squares) / (n - 1) ** 2
    k = n - 1
    return jackknife(whole, np.column_stack([(mean - rest) * k / (k - 1), (k * rest - mean) / (k - 1)]))


def from_pairs(mean: np.ndarray, covariance: np.ndarray, freedom: int, smoothed: Estimate | None = None) -> NoiseScale:
    """The noise scale of a mean pair (tr Σ, |G|²) with its covariance."""
    n = freedom + 1
    known = freedom > 0
    trace, squared = (sampled(mean[i], float(np.sqrt(covariance[i, i])) if known else 0.0, SQUARED, n) for i in (0, 1))
    low, high = fieller(mean, covariance, freedom, LEVEL)
    unit = "examples"
    if mean[1] <= 0 or (known and not isfinite(high)):
        least = f"; it is at least {low:.3g}" if isfinite(low) and low > 0 else ""
        value = unidentified(unit, f"|G|² cannot be told from zero{least}: average more steps or larger batches", n)
    elif not known:
        value = sampled(mean[0] / mean[1], 0.0, unit, 1, note="one pass without inner products has no interval")
    else:
        value = between(mean[0] / mean[1], low, high, unit, n)
    return NoiseScale(value, trace, squared, smoothed)

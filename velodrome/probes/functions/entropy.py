"""Entropy and mutual information of counted symbols, in bits, with the bias that counting has and a standard error."""

# Shapes: n examples, d numbers of one example.

from math import log, sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

from velodrome.probes.estimate import Estimate, between, exact, unidentified

Symbols = npt.NDArray[np.int64]
BITS = "bit"


def symbols(values: npt.ArrayLike) -> Symbols:
    """Equal rows of (n, d) or equal entries of (n,) get the same whole number."""
    x = np.asarray(values)
    x = x[:, None] if x.ndim == 1 else x.reshape(len(x), -1)
    return np.unique(np.ascontiguousarray(x), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def entropy(values: npt.ArrayLike, *, sample: bool = False) -> Estimate:
    r"""$H = -\sum_t p_t \log_2 p_t$ in bits, of the examples themselves (exact), or with `sample=True` of the population that they were drawn from.

    A sample's plug-in entropy is too low by about $(k-1)/(2n)$ nats for k symbols seen (Miller 1955); that is added, and the 95 % interval is the delta
    method's, $\mathrm{sd}(\log p)/\sqrt{n}$. With more than a tenth as many symbols as examples the correction falls short, which the note says; where
    more than half of the examples are symbols seen once the population's entropy is not identified.
    """
    counts = np.unique(symbols(values), return_counts=True)[1]
    n = int(counts.sum())
    p = counts / n
    plain = float(-(p * np.log2(p)).sum())
    if not sample:
        return exact(plain, BITS, n=n, note=_saturated(plain, n))
    error = sqrt(max(0.0, float((p * np.log2(p) ** 2).sum()) - plain**2) / n)
    return _interval(plain + (len(p) - 1) / (2 * n) / log(2), error, counts)


def information(a: npt.ArrayLike, b: npt.ArrayLike, *, sample: bool = False, shuffles: int = 0, seed: int = 0) -> Estimate:
    r"""$I(A;B) = H(A) + H(B) - H(A,B)$ in bits, of the examples themselves, or with `sample=True` of the population that they were drawn from.

    A sample's plug-in value is too high by about $(k_{ab} - k_a - k_b + 1)/(2n)$ nats (k symbols seen), which is taken off; with `shuffles` the mean over
    that many shuffles of b is taken off instead, the bias that independent variables would have. The delta method's interval; near independence it is a
    little wide. The cost holds what was taken off as "bias".
    """
    x, y = symbols(a), symbols(b)
    n = len(x)
    if len(y) != n:
        raise ValueError(f"both must have one value for each example, got {n} and {len(y)}.")
    plain, error, counts = _plug_in(x, y)
    if not sample:
        return exact(plain, BITS, n=n, note=_saturated(plain, n))
    bias = (len(counts) - len(np.unique(x)) - len(np.unique(y)) + 1) / (2 * n) / log(2)
    if shuffles:
        draw = np.random.default_rng(seed)
        bias = float(np.mean([_plug_in(x, draw.permutation(y))[0] for _ in range(shuffles)]))
    return _interval(plain - bias, error, counts, {"bias": bias})


def _plug_in(x: Symbols, y: Symbols) -> tuple[float, float, Symbols]:
    """Mutual information in bits, its standard error, and how often each pair was seen."""
    pairs, counts = np.unique(np.stack([x, y], 1), axis=0, return_counts=True)
    n = len(x)
    p = counts / n
    px, py = np.bincount(x) / n, np.bincount(y) / n
    ratio = np.log2(p / (px[pairs[:, 0]] * py[pairs[:, 1]]))
    value = float((p * ratio).sum())
    return value, sqrt(max(0.0, float((p * ratio**2).sum()) - value**2) / n), counts


def _interval(value: float, error: float, counts: Symbols, cost: dict[str, float] | None = None) -> Estimate:
    n, cells, once = int(counts.sum()), len(counts), int((counts == 1).sum())
    if once > n / 2:  # Good's coverage is below a half: most of the population's mass is on symbols not seen
        return unidentified(BITS, f"{once} of {n} examples are symbols seen once: so few do not tell the population's", n, cost=cost or {})
    half = float(stats.norm.ppf(0.975)) * error
    sparse = f"{cells} symbols among {n} examples: the bias is larger than what was corrected" if cells > n / 10 else ""
    return between(value, value - half, value + half, BITS, n, note=sparse, cost=cost or {})


def _saturated(value: float, n: int) -> str:
    """A warning where every example is a symbol of its own: the number then speaks of the count, not of the network."""
    return f"saturated: within 5 % of log2({n}), what any injective map has" if n > 1 and value > 0.95 * np.log2(n) else ""

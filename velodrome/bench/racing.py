r"""When to stop adding seeds: an interval for the mean log speed-up that may be looked at after every pair (a confidence sequence).

Looking again and again at a fixed-sample interval finds differences that are not there. This one comes from the Bayes factor of a t test with a normal
prior on the standardised effect (Rouder et al. 2009, https://doi.org/10.3758/PBR.16.2.225), which does not depend on the unknown variance and is a
martingale under the null hypothesis, so that it exceeds $1/\alpha$ at *any* time with probability at most $\alpha$ (Grünwald, de Heide & Koolen 2024,
https://arxiv.org/abs/1906.07801; Wang & Ramdas 2024, https://arxiv.org/abs/2310.03722).

    decision([0.21, 0.18, 0.24])        # "faster"; None while undecided

Assumes that the log ratios of pairs are independent draws of one normal law. Share of 2,000 simulated races of up to 100 pairs whose 95 % interval ever
missed the truth: normal 2.3 %, Student's t with 3 degrees 1.6 %, uniform 5.0 %, exponential 13 % (standard error up to 0.8 %; a fixed-sample t interval
looked at as often: 38 % on normal noise). So: right for symmetric noise, not for a strongly skewed one, whose few values do not show their skew.
"""

from collections.abc import Sequence
from math import exp, inf, log, sqrt
from typing import Literal

import numpy as np

Decision = Literal["faster", "slower", "equal"]
PRIOR = 25.0  # variance of the standardised effect a priori: differences worth seeing are several times the spread between seeds
WITHIN = 0.02  # speed-ups nearer to 1 than this count as none


def interval(logs: Sequence[float], level: float = 0.95, prior: float = PRIOR) -> tuple[float, float]:
    r"""(low, high) of the mean of `logs`, valid at every number of pairs at once; infinite below two pairs or while they say nothing.

    With n values, $\nu = n - 1$, standard deviation s and prior variance g it is the set of means at which the Bayes factor
    $(1 + ng)^{-1/2}\,[(1 + t^2/\nu) / (1 + t^2/(\nu(1 + ng)))]^{n/2}$ is below $1/\alpha$: $t^2 < \nu (K - 1)/(1 - K/(1 + ng))$ with
    $K = (\sqrt{1 + ng}/\alpha)^{2/n}$, and all means where $K \ge 1 + ng$.
    """
    if not 0 < level < 1 or not prior > 0:
        raise ValueError(f"level must lie between 0 and 1 and prior be positive, got {level} and {prior}: write level=0.95.")
    x = np.asarray(logs, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("a log ratio must be a finite number: leave out pairs in which a run missed its target, and count them.")
    n = len(x)
    if n < 2:
        return -inf, inf
    if n > 1 and x.min() == x.max():
        return float(x[0]), float(x[0])  # equal to the last bit is no draw from a normal law: nothing varies
    spread = 1 + n * prior
    k = (sqrt(spread) / (1 - level)) ** (2 / n)
    if k >= spread:
        return -inf, inf
    half = sqrt((n - 1) * (k - 1) / (1 - k / spread)) * float(x.std(ddof=1)) / sqrt(n)
    return float(x.mean()) - half, float(x.mean()) + half


def decision(logs: Sequence[float], within: float = WITHIN, level: float = 0.95) -> Decision | None:
    """Whether the interval of the speed-up excludes 1, or lies within 1 ± `within`; None while neither. Equal pairs (spread 0) decide at two."""
    low, high = interval(logs, level)
    if log(1 - within) <= low and high <= log(1 + within):
        return "equal"
    return "faster" if low > 0 else "slower" if high < 0 else None


def pairs_needed(log_speedup: float, spread: float, level: float = 0.95, most: int = 10_000) -> int | None:
    """After how many pairs a difference of `log_speedup` is decided, were every set of pairs to have exactly this mean and standard deviation."""
    for n in range(2, most + 1):
        spike = np.full(n, float(log_speedup))
        if spread:
            wave = np.where(np.arange(n) % 2, 1.0, -1.0)
            wave -= wave.mean()
            spike = spike + spread * wave / wave.std(ddof=1)
        if decision(spike.tolist(), level=level) is not None:
            return n
    return None


def speedup(logs: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(speed-up, low, high): geometric mean of the pairs and its interval."""
    low, high = interval(logs, level)
    return exp(float(np.mean(logs))), exp(low), exp(high) if high < 700 else inf

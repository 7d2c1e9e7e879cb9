"""Intervals that may be looked at at any time, and the expected best of k trials, against definitions and simulation."""

from itertools import combinations
from math import inf, log

import numpy as np
import pytest
from scipy import integrate, stats

from velodrome.bench.best_of_k import best_of_k, weights
from velodrome.bench.racing import PRIOR, decision, interval, pairs_needed, speedup


def bayes_factor(x, mean, prior):
    """The t test's Bayes factor by integration over the effect: likelihood of t under a normal prior over that under no effect."""
    n = len(x)
    t = (x.mean() - mean) / x.std(ddof=1) * np.sqrt(n)

    def weighed(delta):
        return stats.nct.pdf(t, n - 1, delta * np.sqrt(n)) * stats.norm.pdf(delta, scale=np.sqrt(prior))

    center = t / np.sqrt(n)
    above, _ = integrate.quad(weighed, center - 12, center + 12, limit=400, points=[center])
    return above / stats.t.pdf(t, n - 1)


@pytest.mark.parametrize("n", [3, 6, 15])
def test_at_the_ends_of_the_interval_the_bayes_factor_is_one_over_alpha(n):
    x = np.random.default_rng(n).normal(0.1, 0.05, n)
    for end in interval(x):
        assert bayes_factor(x, end, PRIOR) == pytest.approx(20, rel=1e-4)


def test_looked_at_after_every_pair_it_misses_the_truth_in_fewer_than_five_of_a_hundred_races():
    """400 races of 40 pairs, fixed beforehand: a true rate above 9 % would be seen with 99 %; the fixed-sample interval is at 31 %."""
    rng = np.random.default_rng(0)
    quantiles = stats.t.ppf(0.975, np.arange(1, 40)) / np.arange(2, 41) ** 0.5
    missed = {"always valid": 0, "fixed": 0}
    for x in rng.normal(0.0, 1.0, (400, 40)):
        ends = [interval(x[:n]) for n in range(2, 41)]
        missed["always valid"] += any(low > 0 or high < 0 for low, high in ends)
        missed["fixed"] += any(abs(x[:n].mean()) > q * x[:n].std(ddof=1) for n, q in zip(range(2, 41), quantiles, strict=True))
    assert missed["always valid"] <= 20
    assert missed["fixed"] > 90


def test_decisions_are_faster_slower_equal_or_none():
    assert decision([0.21, 0.18, 0.24]) == "faster"
    assert decision([-0.21, -0.18, -0.24]) == "slower"
    assert decision([0.001, -0.001] * 10) == "equal"
    assert decision([0.3, -0.2, 0.1]) is None
    assert decision([0.5]) is None
    assert decision([0.0, 0.0]) == "equal"  # the same algorithm twice, to the last step


def test_the_interval_does_not_depend_on_the_unit_and_moves_with_the_values():
    x = np.array([0.3, 0.1, 0.25, 0.2])
    low, high = interval(x)
    scaled = interval(10 * x + 1)
    assert scaled == pytest.approx((10 * low + 1, 10 * high + 1))
    assert speedup(x)[0] == pytest.approx(np.exp(x.mean()))


def test_five_per_cent_are_decided_sooner_the_quieter_the_seeds():
    needed = [pairs_needed(log(1.05), spread) for spread in (0.01, 0.02, 0.05, 0.1)]
    assert needed == sorted(needed)
    assert pairs_needed(log(1.05), 0.02) == 6
    assert pairs_needed(0.0, 0.5, most=50) is None


@pytest.mark.parametrize(("bad", "match"), [(dict(level=1.0), "level must lie"), (dict(prior=0.0), "prior be positive")])
def test_numbers_that_mean_nothing_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        interval([1.0, 2.0], **bad)
    with pytest.raises(ValueError, match="finite"):
        interval([1.0, inf])


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_the_expected_best_of_k_is_the_mean_over_all_subsets(k):
    costs = [3.0, 1.0, inf, 7.0, 2.0, inf]
    paid = [c if c < inf else 10.0 for c in costs]
    found = best_of_k(costs, 10.0)[k - 1]
    subsets = list(combinations(range(6), k))
    assert found.cost == pytest.approx(np.mean([min(paid[i] for i in s) for s in subsets]))
    assert found.hit == pytest.approx(np.mean([any(costs[i] < inf for i in s) for s in subsets]))
    assert found.total == pytest.approx(k * np.mean(paid))
    assert weights(6, k).sum() == pytest.approx(1)


def test_the_interval_of_the_best_of_k_covers_the_truth_for_small_k():
    """400 pools of 40 trials, costs uniform on (0, 1): the truth is 1/(k + 1). Standard error of the coverage at 95 %: 1.1 %."""
    rng = np.random.default_rng(1)
    inside = {1: 0, 4: 0}
    for _ in range(400):
        curve = best_of_k(rng.uniform(1e-9, 1, 40).tolist(), 1.0, most=4, resamples=400)
        for k in inside:
            inside[k] += curve[k - 1].low <= 1 / (k + 1) <= curve[k - 1].high
    assert all(0.89 <= count / 400 <= 0.985 for count in inside.values()), inside


def test_costs_that_mean_nothing_are_refused():
    for costs, budget in (([], 1.0), ([2.0], 1.0), ([0.0], 1.0), ([1.0], inf)):
        with pytest.raises(ValueError, match="costs must be positive"):
            best_of_k(costs, budget)
    with pytest.raises(ValueError, match="k must lie"):
        weights(3, 4)

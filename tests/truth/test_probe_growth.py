"""Extrapolation to a limit, spikes, forgetting and pathways on planted series and hand-made cases with known answers."""

import math

import numpy as np
import pytest

from velodrome.probes.failures.blow_up import LIMITS, across_sizes, blow_up
from velodrome.probes.failures.forgetting import largest_fall, stability
from velodrome.probes.failures.pathways import levenshtein, pathways
from velodrome.probes.failures.spikes import Spikes

T = np.arange(100.0, 2000.0, 20.0)
GROWTH = {  # form: curve, its limit's step
    "exponential": lambda t: 2 * np.exp(t / 500),
    "power of t": lambda t: 0.05 * t**1.2,
    "linear": lambda t: 1 + 0.02 * t,
}


def noisy(form, seed, size=0.03, rho=0.0):
    rng = np.random.default_rng(seed)
    e = rng.standard_normal(len(T))
    for i in range(1, len(T)):
        e[i] = rho * e[i - 1] + (1 - rho**2) ** 0.5 * e[i]
    clean = GROWTH[form](T)
    return clean * np.exp(size * e) if form != "linear" else clean + size * clean.mean() * e


@pytest.mark.parametrize(("form", "goal"), [("exponential", 3000.0), ("power of t", 9000.0), ("linear", 6000.0)])
def test_the_step_at_which_a_planted_growth_passes_its_limit_is_in_the_interval(form, goal):
    limit = float(GROWTH[form](np.array(goal)))
    found = blow_up(T, noisy(form, 0, 0.005), limit)
    assert found.verdict == "growing"
    assert found.form == form
    assert found.step.low <= goal <= found.step.high
    assert abs(found.step.value / goal - 1) < 0.05


@pytest.mark.parametrize("rho", [0.0, 0.6])
@pytest.mark.parametrize("form", ["exponential", "power of t"])
def test_the_interval_of_the_blow_up_step_covers_it(form, rho):
    goal = 4000.0
    limit, hits = float(GROWTH[form](np.array(goal))), 0
    for seed in range(200):
        step = blow_up(T, noisy(form, seed, 0.03, rho), limit).step
        hits += step.low <= goal <= step.high
    assert 0.90 <= hits / 200 <= 0.98


def test_a_doubling_time_is_that_of_the_exponential():
    found = blow_up(T, noisy("exponential", 3, 0.01), LIMITS["float16"])
    assert found.doubling.low < 500 * math.log(2) < found.doubling.high


def test_a_blow_up_is_foretold_from_the_first_part_of_a_run():
    """Half of the way in steps, when a thousandth of the limit has been reached."""
    t = np.arange(0.0, 2000.0, 25.0)
    y = 5 * np.exp(t / 450 + 0.05 * np.random.default_rng(0).standard_normal(len(t)))
    truth = 450 * math.log(65504 / 5)
    found = blow_up(t, y, LIMITS["float16"])
    assert y[-1] < 65504 / 100
    assert found.step.low <= truth <= found.step.high
    assert found.step.high - found.step.low < 0.2 * truth


def test_level_and_falling_series_do_not_grow_and_what_has_passed_is_told():
    rng = np.random.default_rng(0)
    level, falls = 3 + 0.1 * rng.standard_normal(len(T)), np.exp(-T / 900)
    assert blow_up(T, level, 1e4).verdict == "not growing"
    assert not blow_up(T, falls, 1e4).step.identified
    over = blow_up([10, 20, 30, 40], [1.0, 5.0, math.inf, math.nan], 1e4)
    assert (over.verdict, over.step.value) == ("passed", 30)
    assert blow_up([1, 2, 3], [1.0, 2.0, 3.0], 1e4).verdict == "not identifiable"
    slow = blow_up(T, 1 + 1e-9 * T, 1e4)
    assert slow.verdict == "growing"
    assert not slow.step.identified
    with pytest.raises(ValueError, match="steps must rise"):
        blow_up([1, 1], [1.0, 2.0], 1e4)


def test_level_series_are_called_growing_no_oftener_than_the_interval_says():
    called = sum(blow_up(T, 3 + 0.3 * np.random.default_rng(s).standard_normal(len(T)), 1e4).verdict == "growing" for s in range(200))
    assert called <= 0.05 * 200  # one side of a 95 % interval is 2.5 %


def test_forms_that_a_short_series_cannot_tell_apart_are_all_in_the_interval():
    t = np.arange(1000.0, 1200.0, 10.0)
    y = 100 * np.exp((t - 1000) / 800 + 0.02 * np.random.default_rng(1).standard_normal(len(t)))
    found = blow_up(t, y, 1000.0)
    assert len(found.forms) == 3
    assert "cannot be told apart" in found.step.note
    assert found.step.low <= 1000 + 800 * math.log(10) <= found.step.high


@pytest.mark.parametrize("degree", [1, 2])
def test_the_largest_logit_of_a_larger_model_is_foretold_from_smaller_ones(degree):
    sizes = np.array([1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8])
    law = lambda n: 0.02 * n**0.5 * np.exp((degree - 1) * 0.02 * np.log(n / 1e6) ** 2)  # noqa: E731
    many = np.geomspace(1e8, 1e12, 400_000)
    passed = float(many[np.flatnonzero(law(many) >= 1e4)[0]])
    hits = where = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        value, limit = across_sizes(sizes, law(sizes) * np.exp(0.05 * rng.standard_normal(7)), 1e4, 1e9, degree)
        hits += value.low <= law(1e9) * math.exp(0.05 * rng.standard_normal()) <= value.high
        where += limit.step.low <= passed <= limit.step.high
    assert 0.90 <= hits / 200 <= 0.98
    assert 0.90 <= where / 200 <= 0.98
    with pytest.raises(ValueError, match="4 sizes or more"):
        across_sizes([1, 2], [1.0, 2.0], 10, 100)


def spiked(seed, jumps, spike=300, steps=400):
    """Losses that fall with noise and jump at `spike`; norms of three layers that jump where `jumps` says."""
    rng = np.random.default_rng(seed)
    found = Spikes()
    told = []
    for t in range(steps):
        loss = 2 * math.exp(-t / 500) + 0.05 * rng.standard_normal() + (1.5 if spike <= t < spike + 3 else 0)
        norms = {n: math.exp(0.2 * rng.standard_normal()) * (20 if jumps.get(n, steps) <= t <= spike else 1) for n in ("a", "b", "c")}
        if (s := found.add(t, loss, norms, position=10 * t)) is not None:
            told.append(s)
    return told


def test_a_planted_spike_is_found_at_its_step_with_its_layer_and_batch():
    (spike,) = spiked(0, {"b": 297, "a": 299})
    assert (spike.step, spike.layer, spike.layer_step, spike.position) == (300, "b", 297, 2970)
    assert spike.height > 6
    assert spike.layer_height > 6


def test_a_spike_without_a_layer_that_jumped_names_the_batch_alone():
    (spike,) = spiked(1, {})
    assert (spike.step, spike.layer, spike.position) == (300, None, 3000)


def test_a_falling_noisy_loss_has_no_spikes():
    assert not [s for seed in range(5) for s in spiked(seed, {}, spike=10_000, steps=1000)]


def test_a_loss_that_is_not_a_number_is_a_spike_and_the_gradient_before_it_is_named():
    spikes = Spikes(before=2)
    rng = np.random.default_rng(0)
    for t in range(60):
        assert spikes.add(t, 1 + 0.1 * rng.standard_normal(), {"w": 1 + 0.1 * rng.standard_normal(), "v": 1.0}) is None
    assert spikes.add(60, 1.0, {"w": math.inf, "v": 1.0}) is None
    spike = spikes.add(61, math.nan, {"w": math.nan, "v": math.nan})
    assert (spike.layer, spike.layer_step, spike.height) == ("w", 60, math.inf)
    assert spikes.add(62, math.nan) is None  # the same one
    with pytest.raises(ValueError, match="ten or more"):
        Spikes(window=3)


FIRST = [0.2, 0.9, 0.95, 0.5, 0.4, 0.8, 0.9]  # learned at 2, falls to 0.4 at 4
SECOND = [0.1, 0.1, 0.1, 0.6, 0.8, 0.9, 0.85]


def test_the_stability_gap_of_a_known_series_is_known():
    found = stability({"first": FIRST, "second": SECOND}, {"first": 2}, window=3)
    assert found.min_acc.value == 0.4
    assert found.wc_acc.value == pytest.approx((0.85 + 0.4) / 2)
    assert found.lowest_at == {"first": 4}
    assert found.gap["first"] == pytest.approx(0.55)
    assert found.recovered["first"] == pytest.approx(0.5)
    assert found.forgetting == pytest.approx({"first": 0.55, "second": 0.05})
    assert found.plasticity["first"] == pytest.approx(0.75)
    three = stability({"first": FIRST, "second": SECOND, "third": FIRST}, {"first": 2, "second": 4})
    assert three.min_acc.value == pytest.approx((0.4 + 0.85) / 2)
    assert three.wc_acc.value == pytest.approx(0.9 / 3 + 2 / 3 * (0.4 + 0.85) / 2)
    assert not stability({"first": FIRST}, {}).min_acc.identified
    with pytest.raises(ValueError, match="before the last"):
        stability({"first": FIRST}, {"first": 6})


@pytest.mark.parametrize("window", [2, 5, 40])
def test_a_windowed_fall_is_that_of_all_pairs(window):
    for seed in range(20):
        a = np.random.default_rng(seed).random(30)
        falls = [a[i] - a[j] for i in range(30) for j in range(i + 1, min(i + window, 30))]
        assert largest_fall(a, window) == pytest.approx(max(0.0, *falls))


def plain(a, b):
    """Levenshtein by its recursion."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
    return table[len(a), len(b)]


def test_the_distance_of_many_pairs_at_once_is_that_of_the_recursion():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (60, 9)), rng.integers(0, 4, (60, 7))
    assert levenshtein(a, b).tolist() == [plain(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    words = [[ord(c) for c in w] for w in ("kitten", "sitting")]
    assert levenshtein([words[0]], [words[1]]).tolist() == [3]


def test_identical_routing_has_distance_and_complexity_zero():
    w = np.tile(np.array([0.6, 0.3, 0.1, 0.0]), (5, 12, 1))
    found = pathways(w)
    assert (found.distance.value, found.distance.error) == (0, 0)
    assert found.consistency.value == pytest.approx(1)
    assert abs(found.complexity.value) < 1e-12
    assert found.used.tolist() == [0.5] * 5


def test_routing_that_shares_no_expert_has_distance_one_and_layers_that_share_none_complexity_one():
    w = np.zeros((2, 2, 4))
    w[0, 0, 0] = w[1, 0, 1] = w[0, 1, 2] = w[1, 1, 3] = 1.0
    found = pathways(w, top=1)
    assert found.distance.value == 1
    assert found.complexity.value == 1
    same = pathways(w, top=1, embeddings=np.ones((2, 4, 3)))
    assert same.complexity.value == pytest.approx(0)
    with pytest.raises(ValueError, match="none below 0"):
        pathways(-w)


@pytest.mark.parametrize("pairs", [2000, 100])
def test_the_interval_of_the_pathway_distance_covers_that_of_the_population(pairs):
    rng = np.random.default_rng(0)
    taste = rng.dirichlet(np.ones(4) * 0.7, size=(500, 3)).transpose(1, 0, 2)
    goal = pathways(taste, top=2, pairs=10**7).distance.value
    hits = 0
    for seed in range(200):
        some = np.random.default_rng(seed).choice(500, 40 if pairs == 2000 else 90, replace=False)
        e = pathways(taste[:, some], top=2, pairs=pairs, seed=seed).distance
        hits += e.low <= goal <= e.high
    assert 0.90 <= hits / 200 <= 0.98

"""Noise scale and coherence: closed forms, their identity, and how often the intervals cover."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.losses.squared_error import squared_error
from velodrome.probes.objective import Objective
from velodrome.probes.statistics.coherence import by_class, by_layer, coherence
from velodrome.probes.statistics.ghost import ExampleNorms, example_norms, gradient_norms
from velodrome.probes.statistics.noise_scale import GradientNoise, noise_from_batches, noise_from_examples, noise_scale
from velodrome.probes.statistics.ratio import fieller


def norms(g):
    """What the pass would give for these gradients (n, d), as of one parameter."""
    mean = g.mean(0)
    return ExampleNorms({"layer.weight": g.square().sum(1)}, {"layer.weight": float(mean @ mean)}, {"layer.weight": g @ mean})


def drawn(generator, n=64, d=50, size=0.3):
    """n gradients around G with |G|² = d size² and unit noise, so that the noise scale is 1/size²."""
    return norms(size + torch.randn(n, d, generator=generator, dtype=torch.float64))


def test_identical_gradients_have_m_coherence_m_and_orthogonal_ones_one():
    same = coherence(norms(torch.ones(7, 3, dtype=torch.float64)))
    assert (same.m_coherence.value, same.unbiased.value, same.alpha.value) == pytest.approx((7, 1, 1))
    apart = coherence(norms(torch.eye(7, dtype=torch.float64)))
    assert (apart.m_coherence.value, apart.unbiased.value, apart.alpha.value) == pytest.approx((1, 0, 1 / 7))
    against = coherence(norms(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)))
    assert against.m_coherence.value == 0
    assert against.unbiased.value == pytest.approx(-1 / 3)


def test_coherence_without_a_gradient_or_without_inner_products_claims_no_interval():
    assert not coherence(norms(torch.zeros(4, 2))).alpha.identified
    g = drawn(torch.Generator().manual_seed(0))
    bare = coherence(ExampleNorms(g.parameters, g.mean_squared))
    assert bare.unbiased.value == pytest.approx(coherence(g).unbiased.value)
    assert bare.unbiased.high == math.inf
    assert noise_scale(ExampleNorms(g.parameters, g.mean_squared)).value.high == math.inf


def test_the_noise_scale_is_one_over_the_unbiased_coherence_less_one():
    g = drawn(torch.Generator().manual_seed(0))
    scale, alpha = noise_scale(g).value, coherence(g).unbiased
    assert scale.value == pytest.approx(1 / alpha.value - 1, rel=1e-12)
    assert (scale.low, scale.high) == pytest.approx((1 / alpha.high - 1, 1 / alpha.low - 1), rel=1e-9)


def test_trace_and_square_from_examples_are_those_from_batches_of_one_and_all():
    g = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    mean, squares = g.mean(0), float(g.square().sum(1).mean())
    trace, squared = noise_from_examples(12, squares, float(mean @ mean))
    assert (trace, squared) == pytest.approx(noise_from_batches(1, 12, squares, float(mean @ mean)))
    assert trace == pytest.approx(float(torch.cov(g.T).trace()))
    pairs = [float(g[i] @ g[j]) for i in range(12) for j in range(12) if i != j]
    assert squared == pytest.approx(np.mean(pairs))


def test_leaving_one_example_out_by_inner_products_is_leaving_it_out():
    g = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    estimate = noise_scale(norms(g))
    without = np.array(
        [
            noise_from_examples(5, float(r.square().sum(1).mean()), float(r.mean(0) @ r.mean(0)))
            for r in (g[np.arange(6) != i] for i in range(6))
        ]
    )
    errors = np.sqrt(5 / 6 * (without - without.mean(0)).__pow__(2).sum(0))
    assert (estimate.trace.error, estimate.squared.error) == pytest.approx(tuple(errors), rel=1e-10)


def test_fiellers_interval_holds_the_ratios_that_the_difference_does_not_exclude():
    mean, covariance = np.array([3.0, 2.0]), np.array([[0.04, 0.01], [0.01, 0.02]])
    low, high = fieller(mean, covariance, 1_000_000)
    for edge in (low, high):
        v = np.array([1, -edge])
        assert abs(v @ mean) / math.sqrt(v @ covariance @ v) == pytest.approx(1.95996, rel=1e-4)
    assert low < 1.5 < high
    low, high = fieller(np.array([10.0, 0.1]), np.diag([1.0, 0.04]), 1_000_000)
    assert 10 < low < 100
    assert high == math.inf
    assert fieller(np.array([0.1, 0.1]), np.eye(2), 30) == (-math.inf, math.inf)


def test_intervals_over_twenty_steps_and_within_one_batch_cover_the_truth_in_90_to_98_percent_of_200():
    g, true = torch.Generator().manual_seed(1), 1 / 0.3**2
    steps = batch = ratio = 0
    for _ in range(200):
        noise = GradientNoise()
        for _ in range(20):
            one = drawn(g)
            noise.add(one)
        a, b, c = noise.estimate().value, noise_scale(one).value, coherence(one).unbiased
        steps += a.low <= true <= a.high
        batch += b.low <= true <= b.high
        ratio += c.low <= 1 / (1 + true) <= c.high
    assert 180 <= steps <= 196
    assert 180 <= batch <= 196
    assert 180 <= ratio <= 196


def test_a_mean_gradient_that_cannot_be_told_from_zero_has_no_noise_scale_and_says_how_large_it_is_at_least():
    g = torch.Generator().manual_seed(0)
    noise = GradientNoise()
    for _ in range(20):
        noise.add(drawn(g, size=0.0))
    found = noise.estimate()
    assert not found.value.identified
    assert "cannot be told from zero" in found.value.note
    assert found.squared.low < 0 < found.squared.high
    assert math.isnan(found.efficiency(64))
    again = noise_scale(norms(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)))
    assert again.squared.value < 0
    assert not again.value.identified


def test_moving_averages_are_of_numerator_and_denominator_apart():
    noise = GradientNoise(decay=0.5)
    noise.add_batches(1, 3, 10.0, 4.0)  # trace 9, squared 1
    noise.add_batches(1, 3, 6.0, 4.0)  # trace 3, squared 3
    assert noise.pairs == [pytest.approx((9, 1)), pytest.approx((3, 3))]
    found = noise.estimate()
    assert found.smoothed.value == pytest.approx((9 / 4 + 3 / 2) / (1 / 4 + 3 / 2))
    assert found.trace.value / found.squared.value == pytest.approx(3)
    assert found.critical_batch.note


def test_blocks_of_repeated_steps_do_not_pretend_to_be_independent():
    g, apart, joined = torch.Generator().manual_seed(0), GradientNoise(), GradientNoise(block=4)
    for _ in range(10):
        one = drawn(g)
        for _ in range(4):
            apart.add(one)
            joined.add(one)
    a, b = apart.estimate().value, joined.estimate().value
    assert a.value == pytest.approx(b.value)
    assert b.n == 10
    assert b.high - b.low > 1.5 * (a.high - a.low)


def test_layers_and_classes_are_measured_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    x[:4], y[:4] = x[0].clone(), y[0].clone()
    labels = torch.tensor([0] * 4 + [1] * 6 + [2] * 2)
    objective = Objective(model, squared_error, (x, y))
    found = by_class(objective, labels)
    assert set(found) == {0, 1}  # two examples have no interval
    assert found[0].m_coherence.value == pytest.approx(4)
    own = gradient_norms(Objective(model, squared_error, (x[4:10], y[4:10])), inner=True)[0]
    assert found[1].unbiased.value == pytest.approx(coherence(own).unbiased.value)
    layers = by_layer(own)
    assert set(layers) == {"0", "2"}
    noise = GradientNoise()
    noise.add(own)
    assert noise.by_layer()["2"].trace.value == pytest.approx(noise_scale(own.only(["2.weight", "2.bias"])).trace.value)
    with pytest.raises(ValueError, match="one whole number"):
        by_class(objective)


def test_the_noise_scale_of_micro_batches_is_that_of_the_examples_within_its_error():
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    noise, exact = GradientNoise(), GradientNoise()
    for _ in range(60):
        x = torch.randn(32, 6).double()
        y = x.sum(1, keepdim=True) + torch.randn(32, 1).double()
        model.zero_grad()
        with example_norms(model, examples=32) as seen:
            for xs, ys in zip(x.split(8), y.split(8), strict=True):
                ((model(xs) - ys).square().sum() / 32).backward()
        exact.add(seen.norms)
        sizes, squares = zip(*seen.norms.batches, strict=True)
        assert sizes == (8,) * 4
        noise.add_batches(8, 32, float(np.mean(squares)), seen.norms.total)
    a, b = noise.estimate().value, exact.estimate().value
    assert a.low <= b.value <= a.high


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: GradientNoise().estimate(), "no gradient"),
        (lambda: GradientNoise(window=1), "window must be"),
        (lambda: GradientNoise().add_batches(4, 2, 1.0, 1.0), "smaller first"),
        (lambda: GradientNoise().add_batches(1, 2, float("nan"), 1.0), "finite"),
        (lambda: noise_from_examples(1, 1.0, 1.0), "two examples"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()

"""Entropies and informations are those of known distributions, their intervals cover the truth, and bounds hold what they bound."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.functions.entropy import entropy, information
from velodrome.probes.functions.information import (
    binned,
    gaussian_information,
    generalisation_bound,
    information_plane,
    noisy_information,
)
from velodrome.probes.functions.phases import gradient_phases, phase
from velodrome.probes.objective import Objective

JOINT = np.array([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.02, 0.08, 0.20]])


def bits(p):
    p = np.asarray(p, float).ravel()
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


def drawn(n, seed):
    cells = np.random.default_rng(seed).choice(9, size=n, p=JOINT.ravel())
    return cells // 3, cells % 3


def test_the_entropy_and_information_of_the_examples_themselves_are_plain_counts():
    x = np.array([[1, 2], [1, 2], [3, 4], [5, 6]])
    assert entropy(x).value == pytest.approx(1.5)
    assert entropy(x).kind == "exact"
    y = np.array([0, 0, 1, 1])
    assert information(x, y).value == pytest.approx(1.0)
    assert information(y, 1 - y).value == pytest.approx(1.0)
    assert information(np.array([0, 1, 0, 1]), y).value == pytest.approx(0, abs=1e-12)


def test_an_entropy_with_a_symbol_for_each_example_is_said_to_be_saturated():
    assert entropy(np.arange(64)).note.startswith("saturated")
    assert entropy(np.arange(64)).value == pytest.approx(6)
    assert entropy(np.arange(64) // 8).note == ""
    assert "symbols among 64 examples" in entropy(np.arange(64) // 8, sample=True).note


def test_intervals_from_samples_cover_known_entropy_and_information_and_the_bias_is_gone():
    """200 samples of 400 from a 3x3 table; the plug-in information is too high by four thirds of its bias' standard error and more."""
    truth = {"entropy": bits(JOINT), "information": bits(JOINT.sum(0)) + bits(JOINT.sum(1)) - bits(JOINT)}
    found = {"entropy": [], "information": []}
    plain = []
    for seed in range(200):
        x, y = drawn(400, seed)
        found["entropy"].append(entropy(np.stack([x, y], 1), sample=True))
        found["information"].append(information(x, y, sample=True))
        plain.append(information(x, y).value)
    for name, estimates in found.items():
        covered = np.mean([e.low <= truth[name] <= e.high for e in estimates])
        assert 0.90 <= covered <= 0.98, (name, covered)
        mean, error = np.mean([e.value for e in estimates]), np.std([e.value for e in estimates]) / 200**0.5
        assert abs(mean - truth[name]) < 4 * error
    assert np.mean(plain) - truth["information"] > 2 * np.std(plain) / 200**0.5


def test_shuffling_takes_off_the_bias_of_independent_variables():
    found = [information(*np.random.default_rng(s).integers(0, 6, (2, 150)), sample=True, shuffles=20) for s in range(60)]
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 4 * values.std() / 60**0.5
    assert np.mean([e.cost["bias"] for e in found]) == pytest.approx(25 / 300 / math.log(2), rel=0.1)


def test_bins_are_equal_and_hold_the_ends():
    cells = binned(torch.tensor([[-1.0, -0.5, 0.0, 0.999, 1.0, 7.0]]), 4)
    assert cells.tolist() == [[0, 1, 2, 3, 3, 3]]
    assert binned(torch.tensor([[0.0, 5.0, 10.0]]), 2, None, None).tolist() == [[0, 1, 1]]
    assert binned(torch.zeros(1, 3), 2, None, None).tolist() == [[0, 0, 0]]


def test_the_bounds_hold_a_mixtures_information_found_by_sampling():
    """I(X;T) of 24 points with noise, by 40,000 draws of the exact density; so too I(T;Y)."""
    g = torch.Generator().manual_seed(0)
    f = 1.2 * torch.randn(24, 2, generator=g, dtype=torch.float64)
    y, noise = (f[:, 0] > 0).long(), 0.5
    which = torch.randint(0, 24, (40_000,), generator=g)
    t = f[which] + noise**0.5 * torch.randn(40_000, 2, generator=g, dtype=torch.float64)
    logs = -(torch.cdist(t, f).square()) / (2 * noise)
    own, mix = logs.gather(1, which[:, None]).squeeze(1), torch.logsumexp(logs, 1) - math.log(24)
    same = y[which][:, None] == y[None]
    of_class = torch.logsumexp(logs.masked_fill(~same, -math.inf), 1) - same.sum(1).log()
    x_truth, y_truth = float((own - mix).mean()) / math.log(2), float((of_class - mix).mean()) / math.log(2)
    x_found, y_found = noisy_information(f, y, noise)
    assert x_found.kind == "bound"
    assert x_found.low < x_truth < x_found.high < x_found.low + 1.5
    assert y_found.low < y_truth < y_found.high
    assert y_found.high <= bits(torch.bincount(y).double() / 24)


def test_noise_that_separates_all_points_or_none_gives_the_two_extremes():
    f = torch.arange(16.0)[:, None]
    apart, together = noisy_information(f, (f[:, 0] > 7).long(), 1e-4), noisy_information(f, (f[:, 0] > 7).long(), 1e6)
    assert (apart[0].low, apart[0].high, apart[1].low, apart[1].high) == pytest.approx((4, 4, 1, 1))
    assert apart[0].note.startswith("saturated")
    assert together[0].high < 1e-3


def test_a_gaussian_channels_information_is_its_closed_form_and_never_less_for_other_inputs():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=g, dtype=torch.float64)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T, correction=0))).T
    means = z * torch.tensor([1.0, 3.0], dtype=torch.float64)
    truth = 0.5 * math.log2(1 + 1 / 0.25) + 0.5 * math.log2(1 + 9 / 0.25)
    assert gaussian_information(means, torch.full_like(means, 0.25)).value == pytest.approx(truth, rel=1e-9)
    signs = z.sign()[:, :1]
    assert gaussian_information(signs, torch.full_like(signs, 1e-4)).value > 1  # one bit is all there is
    parted = gaussian_information(signs, torch.full_like(signs, 1e-4), (signs[:, 0] > 0).long())
    assert parted.value == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="variances above 0"):
        gaussian_information(means, 0 * means)


def test_the_bound_falls_as_the_root_of_the_examples_and_says_what_it_leaves_out():
    found = generalisation_bound(3.0, 5.0, 100)
    assert found.value == pytest.approx(math.sqrt(8 * math.log(2) / 100))
    assert generalisation_bound(3.0, 5.0, 400).value == pytest.approx(found.value / 2)
    assert "constants" in found.note
    with pytest.raises(ValueError, match="0 or more"):
        generalisation_bound(-1, 0, 10)


def test_the_plane_of_a_network_is_that_of_its_binned_activations_and_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(50, 3), torch.randint(0, 2, (50,))
    objective = Objective(model, cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])])
    before, random = [p.clone() for p in model.parameters()], torch.get_rng_state()
    plane = information_plane(objective, ["1", "2"], bins=6)
    cells = binned(torch.tanh(model[0](x)), 6)
    assert plane["1"].input.value == pytest.approx(entropy(cells).value)
    assert plane["1"].label.value == pytest.approx(information(cells, y.numpy()).value)
    noisy = information_plane(objective, ["1"], estimator="noise", noise=0.1)["1"]
    assert noisy.input.low <= noisy.input.high <= math.log2(50) + 1e-9
    assert information_plane(objective, ["1"], bins=2, sample=True)["1"].estimator == "2 bins, corrected for bias"
    assert not information_plane(objective, ["1"], sample=True)["1"].input.identified  # every example in a cell of its own
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert not model[1]._forward_hooks
    with pytest.raises(ValueError, match="there is no layer 'x'"):
        information_plane(objective, ["x"])
    with pytest.raises(ValueError, match="labels must be 50 classes"):
        information_plane(objective, ["1"], labels=torch.zeros(50))


def test_the_ratio_of_mean_to_scatter_is_covered_by_its_interval():
    """200 epochs of 20 gradients of 60 numbers with known mean and scatter, at ratios below, near and above 1."""
    for size in (0.05, 0.13, 0.4):
        g, covered = torch.Generator().manual_seed(0), 0
        for _ in range(200):
            found = phase(size + torch.randn(20, 60, generator=g, dtype=torch.float64))
            covered += found.ratio.low <= size <= found.ratio.high
        assert 0.90 <= covered / 200 <= 0.98, (size, covered)


def test_gradients_that_agree_drift_and_gradients_that_scatter_diffuse():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = 1 + 0.1 * torch.randn(200, 4)
    away = torch.zeros(200, dtype=torch.long)
    agree = gradient_phases(Objective(model, cross_entropy, [(x[i::10], away[i::10]) for i in range(10)]))
    assert agree["weight"].phase == "drift"
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    random = torch.randint(0, 2, (200,))
    scatter = gradient_phases(Objective(model, cross_entropy, [(x[i::10], random[i::10]) for i in range(10)]))
    assert scatter["weight"].phase == "diffusion"
    with pytest.raises(ValueError, match="three batches or more"):
        gradient_phases(Objective(model, cross_entropy, (x, random)))

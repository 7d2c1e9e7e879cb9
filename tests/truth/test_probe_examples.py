"""Easy and hard examples, opposing signals and nuclear norms, on cases whose answers are known."""

import math

import pytest
import torch
from torch import nn

from velodrome.losses.squared_error import squared_error
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.objective import Objective
from velodrome.probes.statistics.examples import LearnedAt, first_half_learned, hardest
from velodrome.probes.statistics.ghost import ExampleNorms, gradient_norms
from velodrome.probes.statistics.nuclear import gradient_spectra, spectra, unevenness
from velodrome.probes.statistics.opposing import OpposingSignals, half_squared_error, opposing_groups, opposition


def test_an_example_is_learned_when_it_has_been_right_ever_since():
    learned = LearnedAt()
    for step, right in ((0, [0, 1, 0, 0]), (10, [1, 0, 0, 1]), (20, [1, 1, 0, 1])):
        learned.add(step, torch.tensor(right))
    assert learned.steps.nan_to_num(-1).tolist() == [10, 20, -1, 10]
    assert learned.forgotten.tolist() == [0, 1, 0, 0]
    assert [half.tolist() for half in learned.halves()] == [[0, 3], [1, 2]]
    assert first_half_learned(learned.steps) == 10
    assert first_half_learned([math.nan, math.nan, 1.0]) == math.inf
    with pytest.raises(ValueError, match="same 4 examples"):
        learned.add(30, torch.ones(3))
    with pytest.raises(ValueError, match="steps must grow"):
        learned.add(20, torch.ones(4))
    with pytest.raises(ValueError, match="nothing has been seen"):
        _ = LearnedAt().steps


def test_the_hardest_examples_are_those_with_the_largest_gradients():
    squares = torch.arange(20, dtype=torch.float64).square()
    found = hardest(ExampleNorms({"w": squares}, {"w": 1.0}, None, torch.arange(20, dtype=torch.float64)), 3)
    assert found.numbers.tolist() == [19, 18, 17]
    assert found.norms.tolist() == [19, 18, 17]
    assert found.share.value == pytest.approx((19**2 + 18**2) / float(squares.sum()))
    assert found.agreement.value == 1
    assert not hardest(ExampleNorms({"w": squares}, {"w": 1.0})).agreement.identified
    assert not hardest(ExampleNorms({"w": squares * 0}, {"w": 0.0})).share.identified


def descended(case, rate, steps):
    x, y, *_ = case.data()
    model, table = case.model(), []
    for _ in range(steps):
        losses = half_squared_error(model(x), y)
        table.append(losses.detach())
        grads = torch.autograd.grad(losses.mean(), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(rate * g)
    return model, torch.stack(table)


def test_the_curvature_along_a_feature_that_says_nothing_is_norm_times_share_times_its_square():
    case = OpposingSignals(offset=0.3, examples=400)
    model, _ = descended(case, 0.3, 400)
    x, y, *_ = case.data()
    operator = hessian(Objective(model, half_squared_error, (x, y)))
    direction = torch.zeros(16, 9, dtype=torch.float64)
    direction[:, -1] = model[1].weight[0].detach()
    v = torch.cat((direction.flatten() / direction.norm(), torch.zeros(16, dtype=torch.float64)))
    assert float(v @ (operator @ v)) == pytest.approx(case.curvature, rel=1e-3)
    assert case.curvature == pytest.approx(3.2)
    assert float(torch.linalg.eigvalsh(operator.dense())[-1]) == pytest.approx(case.curvature, rel=5e-3)


def test_descent_oscillates_along_that_feature_above_two_over_the_curvature_and_not_below():
    case = OpposingSignals(offset=0.3, examples=400)
    rises = {part: float(descended(case, part * 2 / case.curvature, 400)[1][40:].mean(1).diff().max()) for part in (0.95, 1.05)}
    assert rises[0.95] < 1e-9
    assert rises[1.05] > 1e-6


def test_the_two_signs_of_a_planted_feature_are_found_in_anti_phase_with_opposite_gradients_and_the_feature_is_named():
    case = OpposingSignals(offset=0.3, examples=400)
    x, y, plus, minus = case.data()
    model, losses = descended(case, 1.05 * 2 / case.curvature, 150)
    groups = opposing_groups(losses[40:], len(plus))
    assert {tuple(groups.rising.tolist()), tuple(groups.falling.tolist())} == {tuple(plus.tolist()), tuple(minus.tolist())}
    assert groups.rise > 0 > groups.fall
    assert groups.correlation.high < -0.9
    found = opposition(Objective(model, half_squared_error, (x, y), micro_batch=150), groups)
    assert found.cosine.value < -0.99
    assert found.cancelled.value > 0.9
    assert abs(float(found.feature[-1])) == pytest.approx(1, abs=1e-6)
    assert found.excess.value > 100


def test_groups_of_noise_are_not_in_anti_phase():
    losses = torch.randn(60, 100, generator=torch.Generator().manual_seed(0))
    correlation = opposing_groups(losses, 10).correlation
    assert correlation.low < 0 < correlation.high


@pytest.mark.parametrize(
    ("losses", "k"), [(torch.ones(1, 8), 2), (torch.ones(4, 8), 5), (torch.ones(4), 1), (torch.full((4, 8), torch.nan), 2)]
)
def test_losses_without_two_steps_or_without_two_groups_are_refused(losses, k):
    with pytest.raises(ValueError, match="losses must be"):
        opposing_groups(losses, k)


def test_a_gradient_of_rank_one_has_equal_norms_and_equal_singular_values_the_largest_ratio():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, generator=g), torch.randn(2, 3, generator=g)
    found = spectra({"one": torch.tensordot(a, b, 0), "even": torch.eye(4), "zero": torch.zeros(3, 3), "vector": a})
    assert set(found) == {"one", "even", "zero"}
    assert found["one"].nuclear.value == pytest.approx(float(a.double().norm() * b.double().norm()), rel=1e-6)
    assert found["one"].frobenius.value == pytest.approx(found["one"].nuclear.value, rel=1e-6)
    assert found["one"].first.value == pytest.approx(1, rel=1e-6)
    assert (found["even"].nuclear.value, found["even"].frobenius.value, found["even"].first.value) == pytest.approx((4, 2, 1 / 4))
    assert not found["zero"].first.identified
    assert unevenness(found).value == pytest.approx((abs(found["one"].nuclear.value - 4) + 4) / 2)
    assert not unevenness(found, "one").identified
    with pytest.raises(ValueError, match="not finite"):
        spectra({"bad": torch.full((2, 2), torch.nan)})


def test_the_spectra_of_an_objective_are_those_of_its_gradient_and_nothing_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    objective = Objective(model, squared_error, (torch.randn(6, 3).double(), torch.randn(6, 2).double()))
    found, (_, grads) = gradient_spectra(objective), gradient_norms(objective)
    assert set(found) == {"0.weight", "2.weight"}
    assert found["0.weight"].nuclear.value == pytest.approx(float(torch.linalg.matrix_norm(grads["0.weight"], "nuc")), rel=1e-10)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="none of"):
        gradient_spectra(Objective(model, squared_error, (torch.randn(6, 3).double(), torch.randn(6, 2).double()), params=["*.bias"]))

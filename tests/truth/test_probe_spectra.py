"""Lanczos, density and top pairs against dense eigen-decompositions in float64; planted clusters, ghosts, crossings and misses."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.operator import Matrix
from velodrome.probes.objective import Objective
from velodrome.probes.spectra.density import below, density
from velodrome.probes.spectra.lanczos import orthogonal, reach, three_term
from velodrome.probes.spectra.participation import gradient_concentration
from velodrome.probes.spectra.top import top_eigenpairs, unseen

OUTLIERS = [10.0, 7.0, 5.0]


def drawn(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(values, seed=0):
    """(operator, eigenvectors) with these eigenvalues."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q, _ = torch.linalg.qr(drawn(len(values) ** 2, seed).view(len(values), -1))
    return Matrix((q * values) @ q.T), q


def bulk(n=300):
    """Three outliers, a positive bulk, a negative tail, and most of the mass near 0."""
    tails = np.concatenate([OUTLIERS, np.linspace(0.5, 2, 60), np.linspace(-1.2, -0.3, 40)])
    return np.concatenate([tails, 0.01 * np.random.default_rng(0).standard_normal(n - len(tails))])


def small(dtype=torch.float64):
    """A trained little network whose whole Hessian can be had."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 4)).double()
    x, y = torch.randn(60, 6, dtype=torch.float64), torch.randint(4, (60,))
    for _ in range(30):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.3 * p.grad
    return model.to(dtype), (x.to(dtype), y)


def test_a_full_orthogonal_run_is_the_eigen_decomposition():
    operator, _ = planted(np.linspace(-1, 2, 40))
    chain, basis = orthogonal(operator.__matmul__, drawn(40), 40)
    assert chain.broke
    np.testing.assert_allclose(chain.nodes, np.linspace(-1, 2, 40), atol=1e-12)
    torch.testing.assert_close(basis @ basis.T, torch.eye(40, dtype=torch.float64), atol=1e-12, rtol=0)
    assert chain.weights.sum() == pytest.approx(1)


def test_the_quadrature_has_the_exact_moments_of_its_start():
    operator, start = planted(bulk())[0], drawn(300)
    start /= start.norm()
    for chain in (orthogonal(operator.__matmul__, start, 8)[0], three_term(operator.__matmul__, start, 8)):
        image, power = start, []
        for _ in range(15):
            image = operator.matrix @ image
            power.append(float(start @ image))
        np.testing.assert_allclose([chain.weights @ chain.nodes**p for p in range(1, 16)], power, rtol=1e-10)


def test_an_invariant_space_ends_the_iteration_and_its_nodes_are_exact():
    operator, q = planted([3.0, 3.0, 1.0, -2.0, *np.zeros(20)])
    start = q[:, 0] + q[:, 1] + q[:, 2] + 2 * q[:, 3]
    for chain in (orthogonal(operator.__matmul__, start, 20)[0], three_term(operator.__matmul__, start, 20)):
        assert chain.broke
        np.testing.assert_allclose(chain.nodes, [-2, 1, 3], atol=1e-12)
        np.testing.assert_allclose(chain.weights, [4 / 7, 1 / 7, 2 / 7], atol=1e-12)


def test_without_orthogonalisation_ghosts_appear_and_change_nothing_of_weights_or_ends():
    values = np.concatenate([[50.0, 20.0], np.linspace(0, 1, 400)])
    operator, start = planted(values)[0], drawn(402)
    loose, tight = three_term(operator.__matmul__, start, 120), orthogonal(operator.__matmul__, start, 120)[0]
    assert (np.abs(loose.nodes - 50) < 1e-6).sum() > 1 == (np.abs(tight.nodes - 50) < 1e-6).sum()
    assert loose.weights[loose.nodes > 40].sum() == pytest.approx(tight.weights[tight.nodes > 40].sum(), rel=1e-8)
    assert loose.nodes[-1] == pytest.approx(50, rel=1e-12)


def test_a_draws_mass_below_a_point_is_within_the_bounds_that_are_said():
    operator, q = planted(bulk())
    values = np.sort(bulk())
    start = drawn(300)
    start /= start.norm()
    share = (q.T @ start).square().numpy()[np.argsort(bulk())]
    chain = three_term(operator.__matmul__, start, 25)
    for x in (-1.0, -0.2, 0.0, 0.2, 0.7, 1.5, 6.0):
        middle, half = below(chain, x)
        assert abs(middle - share[values < x].sum()) <= half + 1e-9
        assert half < 0.5


@pytest.mark.parametrize(("order", "draws"), [(20, 8), (12, 4)])
def test_intervals_of_a_density_cover_the_truth_as_often_as_they_say(order, draws):
    """200 repetitions: 4 standard errors of a coverage of 95 % are 6 %. Intervals widened by bounds may cover more."""
    values = bulk(120)
    operator = Matrix(torch.diag(torch.as_tensor(values)))  # random starts do not know the basis
    truth = {
        "trace": values.sum(),
        "share": (values > 0.2).mean(),
        "largest": values.max(),
        "smallest": values.min(),
        "second": (values**2).mean(),
    }
    hits = dict.fromkeys(truth, 0)
    for seed in range(200):
        d = density(operator, draws, order, points=2, seed=seed)
        found = {"trace": d.trace, "share": d.share(low=0.2), "largest": d.largest, "smallest": d.smallest, "second": d.mean(2)}
        for name, e in found.items():
            hits[name] += e.low - 1e-9 <= truth[name] <= e.high + 1e-9
    assert 0.89 <= hits["trace"] / 200 <= 0.99, hits
    assert 0.88 <= hits["second"] / 200 <= 0.99, hits
    assert min(hits.values()) / 200 >= 0.88, hits


def test_a_density_integrates_to_one_and_its_band_is_the_spread_over_draws():
    operator, _ = planted(bulk())
    d = density(operator, 12, 30, width=0.05, points=4000)
    assert d.pdf.sum() * (d.grid[1] - d.grid[0]) == pytest.approx(1, abs=2e-3)
    fresh = np.std([density(operator, 12, 30, points=2, seed=s).share(-0.1, 0.1).value for s in range(1, 25)])
    assert 0.5 < d.share(-0.1, 0.1).error / fresh < 2
    assert d.products == operator.products - 24 * 12 * 30 == 360
    body = json.loads(json.dumps(d.plain()))
    assert len(body["pdf"]) == len(body["band"]) == 4000
    assert abs(body["numbers"]["trace"]["value"] - bulk().sum()) < 4 * body["numbers"]["trace"]["error"]


def test_the_density_of_a_network_is_that_of_its_dense_hessian():
    model, batch = small()
    operator = hessian(Objective(model, nn.CrossEntropyLoss(), batch))
    exact = torch.linalg.eigvalsh(operator.dense()).numpy()
    d = density(operator, 20, 40)
    assert d.largest.value == pytest.approx(exact[-1], rel=1e-8)
    assert d.largest.low <= exact[-1] * (1 + 1e-12)
    assert exact[-1] <= d.largest.high * (1 + 1e-9)
    assert d.trace.low < exact.sum() < d.trace.high
    assert d.broke == 0


def test_draws_that_break_down_are_counted():
    d = density(Matrix(torch.diag(torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0], dtype=torch.float64))), 3, 20)
    assert d.broke == 3
    assert d.products == 6
    assert density(Matrix(torch.zeros(6, 6)), 2, 5).largest.value == 0


def test_the_top_pairs_of_a_network_are_those_of_its_dense_hessian():
    model, batch = small()
    operator = hessian(Objective(model, nn.CrossEntropyLoss(), batch))
    exact, vectors = torch.linalg.eigh(operator.dense())
    for largest, order in (
        ("algebraic", exact.argsort(descending=True)),
        ("smallest", exact.argsort()),
        ("magnitude", (-exact.abs()).argsort()),
    ):
        pairs = top_eigenpairs(operator, 4, 1e-10, largest=largest)
        assert bool(pairs.converged.all())
        torch.testing.assert_close(pairs.values, exact[order[:4]], rtol=1e-8, atol=1e-12)
        assert float((pairs.vectors.T @ vectors[:, order[:4]]).square().sum()) == pytest.approx(4, abs=1e-6)
    share = gradient_concentration(operator.gradient, pairs)
    truth = float((vectors[:, order[:4]].T @ operator.gradient).square().sum() / operator.gradient.square().sum())
    assert abs(share.value - truth) <= share.error + 1e-9


def test_float32_pairs_are_right_to_its_rounding_and_the_model_is_untouched():
    model, batch = small(torch.float32)
    before = copy.deepcopy(model.state_dict())
    pairs = top_eigenpairs(hessian(Objective(model, nn.CrossEntropyLoss(), batch)), 3)
    exact = torch.linalg.eigvalsh(hessian(Objective(*small()[:1], nn.CrossEntropyLoss(), small()[1])).dense())
    torch.testing.assert_close(pairs.values, exact[exact.abs().argsort(descending=True)[:3]], rtol=2e-4, atol=0)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is not None for p in small()[0].parameters())


@pytest.mark.parametrize("most", [2, 5, 9])
def test_residuals_are_those_of_the_vectors_also_where_the_search_is_cut_short(most):
    operator, _ = planted(bulk())
    pairs = top_eigenpairs(operator, 3, 1e-12, most=most)
    k = len(pairs.values)
    direct = (operator.matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, direct, rtol=1e-6, atol=1e-10)
    nearest = (torch.as_tensor(bulk())[:, None] - pairs.values).abs().amin(0)
    assert bool((nearest <= pairs.residuals).all())
    assert pairs.products == most
    assert not bool(pairs.converged.all())
    assert k == min(3, most)


def test_a_cluster_is_found_though_a_single_start_sees_each_multiple_once():
    values = np.concatenate([[5.0, 5.0, 5.0, 4.9], np.linspace(-1, 1, 150)])
    pairs = top_eigenpairs(planted(values)[0], 4, 1e-6, most=200)
    assert pairs.values[0] == pytest.approx(5)  # rounding brings the others in, or they are missed and the check says so
    rest = unseen(planted(values)[0], pairs, 15)
    assert float(pairs.values[-1]) == pytest.approx(4.9, abs=1e-3) or rest.high > 4.9


def test_restarts_reach_what_one_long_space_reaches():
    operator, _ = planted(np.concatenate([np.linspace(1, 1.5, 12), np.linspace(-0.9, 0.9, 200)]))
    tight = top_eigenpairs(operator, 4, 1e-8, memory=14, most=400)
    torch.testing.assert_close(tight.values, torch.linspace(1, 1.5, 12, dtype=torch.float64).flip(0)[:4], rtol=1e-7, atol=0)


def moved(values, angle, seed=5):
    """A planted matrix, and the same after its eigenvectors turned by about this angle."""
    operator, _ = planted(values)
    x = drawn(len(values) ** 2, seed).view(len(values), -1)
    turn = torch.matrix_exp(angle * (x - x.T) / (2 * len(values)) ** 0.5)
    return operator, Matrix(turn @ operator.matrix @ turn.T)


def test_a_warm_start_needs_fewer_products_and_is_as_good():
    values = np.concatenate([[10, 8, 6.5, 5, 4.2], 1.5 * np.random.default_rng(0).random(400)])
    before, after = moved(values, 0.05)
    cold = top_eigenpairs(before, 5)
    warm, again = top_eigenpairs(after, 5, start=cold, seed=1), top_eigenpairs(after, 5)
    assert warm.products < again.products <= 40
    assert warm.products <= 15
    torch.testing.assert_close(warm.values, torch.as_tensor(values[:5]), rtol=2e-4, atol=0)
    grown = top_eigenpairs(after, 8, start=warm)
    assert len(grown.values) == 8
    torch.testing.assert_close(grown.values[:5], warm.values, rtol=3e-4, atol=0)


def test_four_warm_products_give_the_sharpness_with_a_residual_that_holds():
    values = np.concatenate([[10, 7], 3 * np.random.default_rng(0).random(400)])
    before, after = moved(values, 0.1)
    sharp = top_eigenpairs(after, 1, 1e-6, start=top_eigenpairs(before, 1), most=4)
    assert sharp.products == 4
    assert abs(float(sharp.values[0]) - 10) < 0.03 * 10
    assert abs(float(sharp.values[0]) - 10) <= float(sharp.residuals[0])
    assert sharp.estimate().kind == "bound"


def test_a_new_largest_eigenvalue_is_met_along_the_run_and_the_check_tells_before():
    """The residual alone says nothing of what was missed: with four products a step the newcomer is taken over within some steps."""
    n = 400
    values = np.concatenate([[5.0, 3.0], np.random.default_rng(0).random(n - 2)])
    operator, q = planted(values)
    pairs = top_eigenpairs(operator, 1)
    changed = Matrix(operator.matrix + 7 * torch.outer(q[:, 50], q[:, 50]))  # an eigenvalue of the bulk jumps above all others
    first = top_eigenpairs(changed, 1, 1e-3, start=pairs, most=2, seed=1)
    assert float(first.values[0]) == pytest.approx(5, rel=0.05)  # a value near an eigenvalue, and not the largest
    check = unseen(changed, first, 8)
    assert check.high > float(first.values[0])
    assert check.low <= float(values[50] + 7) <= check.high
    found = first
    for step in range(2, 8):
        found = top_eigenpairs(changed, 1, 1e-3, start=found, most=4, seed=step)
    assert float(found.values[0]) == pytest.approx(values[50] + 7, rel=1e-3)
    assert unseen(changed, found, 12).high < float(found.values[0])


def test_the_limit_of_what_is_unseen_holds_in_95_of_100():
    values = np.concatenate([[10.0, 3.0], np.random.default_rng(0).random(150)])
    operator = Matrix(torch.diag(torch.as_tensor(values)))
    pairs = top_eigenpairs(operator, 1, 1e-8)
    held, ends = 0, []
    for seed in range(200):
        e = unseen(operator, pairs, 4, seed=seed)
        held += e.low <= 3.0 <= e.high
        ends.append(e.high)
    assert held / 200 >= 0.89
    assert np.median(ends) < 9
    assert reach([orthogonal(operator.__matmul__, drawn(152), 4)[0]], 152) > 10


def test_a_gradient_in_the_top_space_is_seen_with_an_error_from_the_residuals():
    operator, q = planted(bulk())
    pairs = top_eigenpairs(operator, 3, 1e-3)
    g = 3 * q[:, 0] + 4 * q[:, 50]
    share = gradient_concentration(g, pairs)
    assert abs(share.value - 9 / 25) <= share.error < 0.2
    loose = top_eigenpairs(operator, 3, 1e-3, most=4)
    assert gradient_concentration(g, loose).error == 1
    assert "another k" in gradient_concentration(g, loose).note
    assert not gradient_concentration(0 * g, pairs).identified


def test_what_makes_no_sense_is_named():
    operator, _ = planted(bulk(110))
    for wrong, message in (
        (lambda: top_eigenpairs(operator, 0), "k must be"),
        (lambda: top_eigenpairs(operator, 111), "at most the number"),
        (lambda: top_eigenpairs(operator, 1, largest="top"), "'magnitude'"),
        (lambda: top_eigenpairs(operator, 1, start=torch.ones(3)), "start must be"),
        (lambda: top_eigenpairs(operator, 1, 0.0), "tol must be"),
        (lambda: density(operator, 0), "draws must be"),
        (lambda: density(operator, width=-1.0), "width must be"),
        (lambda: three_term(operator.__matmul__, torch.zeros(110), 3), "not 0"),
        (lambda: gradient_concentration(torch.ones(3), top_eigenpairs(operator, 1)), "flat vector of 110"),
        (lambda: density(Matrix(torch.full((5, 5), float("nan"))), 1, 3), "not finite"),
        (lambda: top_eigenpairs(Matrix(torch.full((5, 5), float("inf"))), 1), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()

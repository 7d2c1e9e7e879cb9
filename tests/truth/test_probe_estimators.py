"""Trace, diagonal, norms, alignment, inflation: against dense matrices, and intervals that cover in 200 repetitions as often as they say.

The bounds of a coverage are 4 standard errors around 95 % at 200 repetitions: 88.8 % and 100 %.
"""

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.operator import Matrix
from velodrome.probes.estimate import bounded
from velodrome.probes.objective import Objective
from velodrome.probes.spectra.alignment import alignment, overlap
from velodrome.probes.spectra.diagonal import diagonal
from velodrome.probes.spectra.inflation import batch_inflation, fit_inflation
from velodrome.probes.spectra.norms import norms
from velodrome.probes.spectra.top import top_eigenpairs
from velodrome.probes.spectra.trace import left_out, trace, without, xtrace

TIMES = 200


def planted(n=120, seed=0):
    """Outliers, a bulk of both signs and much near 0, in a random basis."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[10.0, 7.0, 5.0], np.linspace(0.5, 2, n // 4), np.linspace(-1.2, -0.3, n // 6)])
    values = np.concatenate([values, 0.01 * rng.standard_normal(n - len(values))])
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return torch.as_tensor((q * values) @ q.T)


A = planted()
NOISE = torch.randn(120, 120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
B = A + 0.15 * (NOISE + NOISE.T)


def coverage(estimates, truth):
    return np.mean([e.low <= truth <= e.high for e in estimates])


@pytest.mark.parametrize(("method", "products"), [("hutchinson", 10), ("hutchinson", 40), ("hutch++", 40), ("xtrace", 10), ("xtrace", 40)])
def test_a_traces_interval_covers_as_often_as_it_says(method, products):
    found = [trace(Matrix(A), products, method, seed=s) for s in range(TIMES)]
    truth = float(A.trace())
    assert 0.888 <= coverage(found, truth) < 1
    error = np.sqrt(np.mean([(e.value - truth) ** 2 for e in found]))
    assert 0.7 < np.sqrt(np.mean([e.error**2 for e in found])) / error < 1.4
    assert abs(np.mean([e.value for e in found]) - truth) < 4 * error / TIMES**0.5


def test_the_leave_one_out_spaces_of_xtrace_are_those_of_a_new_factorisation():
    generator = torch.Generator().manual_seed(0)
    omega = torch.stack([torch.randn(120, generator=generator) for _ in range(6)], 1).double()
    omega *= 120**0.5 / omega.norm(dim=0)
    q, r = torch.linalg.qr(A @ omega)
    s = left_out(r)
    found = without(q.T @ A @ q, q.T @ omega, r, 120, s[:, :, None])
    for i in range(6):
        others, _ = torch.linalg.qr(A @ omega[:, [j for j in range(6) if j != i]])
        rest = omega[:, i] - others @ (others.T @ omega[:, i])
        direct = (others * (A @ others)).sum() + (120 - 5) * (rest @ A @ rest) / (rest @ rest)
        assert float(found[i]) == pytest.approx(float(direct), rel=1e-9)
    assert xtrace(Matrix(A), 12, torch.Generator().manual_seed(0))[0] == pytest.approx(float(found.mean()), rel=1e-6)


def test_the_method_follows_the_budget_and_a_full_one_is_exact():
    assert trace(Matrix(A), 8).note == "hutchinson"
    assert trace(Matrix(A), 60).note == "xtrace"
    full = trace(Matrix(A), 120)
    assert full.kind == "exact"
    assert full.value == pytest.approx(float(A.trace()), rel=1e-12)
    assert trace(Matrix(A), 60).cost == {"products": 60}
    q = torch.linalg.eigh(A)[1]
    steep = Matrix((q * 0.6 ** torch.arange(120, dtype=torch.float64)) @ q.T)
    assert abs(trace(steep, 60).value - 2.5) < 1e-6 < abs(trace(steep, 60, "hutchinson").value - 2.5)


@pytest.mark.parametrize("method", ["bekas", "xdiag"])
def test_a_diagonals_errors_cover_over_entries_and_repetitions(method):
    hits, total = 0.0, torch.zeros(120, dtype=torch.float64)
    for seed in range(TIMES):
        d = diagonal(Matrix(A), 24, method, seed=seed)
        hits += float(((d.value - A.diagonal()).abs() <= d.half * d.error).double().mean()) / TIMES
        total += d.value / TIMES
    assert 0.90 <= hits <= 0.98
    torch.testing.assert_close(total, A.diagonal(), atol=0.35, rtol=0)
    assert d.of("matrix").shape == (120,)
    assert d.products == 24


def test_norms_and_alignment_cover_as_often_as_they_say():
    truth = {"frobenius": A.norm(), "rms": A.norm() / 120**0.5, "trace": A.trace(), "dimension": A.trace() ** 2 / A.norm() ** 2}
    found = [norms(Matrix(A), 20, seed=s) for s in range(TIMES)]
    for name, value in truth.items():
        assert 0.888 <= coverage([getattr(e, name) for e in found], float(value)) < 1, name
    cosine = float((A * B).sum() / A.norm() / B.norm())
    assert 0.888 <= coverage([alignment(Matrix(A), Matrix(B), 20, seed=s) for s in range(TIMES)], cosine) < 1


def test_a_matrix_is_aligned_with_itself_and_orthogonal_to_what_shares_nothing():
    assert alignment(Matrix(A), Matrix(2 * A), 5).value == pytest.approx(1)
    values, q = torch.linalg.eigh(A)
    top, low = (q[:, -3:] * values[-3:]) @ q[:, -3:].T, (q[:, :3] * values[:3]) @ q[:, :3].T
    assert alignment(Matrix(top), Matrix(low), 30).low <= 0 <= alignment(Matrix(top), Matrix(low), 30).high
    one, other = top_eigenpairs(Matrix(A), 3, 1e-8), top_eigenpairs(Matrix(low), 3, 1e-8)
    assert overlap(one, one).value == pytest.approx(1)
    assert overlap(one, other).value <= overlap(one, other).error + 1e-6
    truth = torch.linalg.eigh(B)[1][:, torch.linalg.eigvalsh(B).abs().argsort(descending=True)[:3]]
    both = overlap(one, top_eigenpairs(Matrix(B), 3, 1e-6))
    assert abs(both.value - float((one.vectors.T @ truth).square().sum() / 3)) <= both.error + 1e-9


@pytest.mark.parametrize(("sizes", "repeats"), [((8, 32, 128), 8), ((4, 16, 64, 128), 12)])
def test_the_fitted_constant_of_inflation_covers_the_planted_one(sizes, repeats):
    rng, n, sharp, c = np.random.default_rng(0), 1024, 0.3, 10.0
    inside, critical, wrong = [], [], []
    for _ in range(TIMES):
        b = np.array(sizes)[:, None]
        draws = sharp + c * (1 / b - 1 / n) + 0.3 * c / b * rng.standard_normal((len(sizes), repeats))
        fit = fit_inflation(bounded(sharp, 1e-4, "u"), sizes, draws, n)
        inside.append(fit.constant.low <= c <= fit.constant.high)
        critical.append(fit.critical_batch.low <= 1 / (sharp / c + 1 / n) <= fit.critical_batch.high)
        wrong.append(fit.p_value < 0.01)
    assert 0.888 <= np.mean(inside) < 1
    assert 0.888 <= np.mean(critical) < 1
    assert np.mean(wrong) < 0.08


def test_an_inflation_that_does_not_follow_one_over_b_is_told():
    rng, b = np.random.default_rng(0), np.array([8, 32, 128])[:, None]
    fit = fit_inflation(bounded(0.3, 0.0, "u"), (8, 32, 128), 0.3 + b**-0.3 * (1 + 0.05 * rng.standard_normal((3, 8))), 1024)
    assert fit.p_value < 0.01
    assert "do not lie" in fit.verdict
    level = fit_inflation(bounded(0.3, 0.0, "u"), (8, 32, 128), 0.3 + 0.01 * rng.standard_normal((3, 8)), 1024)
    assert not level.critical_batch.identified
    assert "does not depend" in level.verdict


def test_small_batches_of_a_network_are_sharper_by_a_constant_over_b():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    x, y = torch.randn(256, 8, dtype=torch.float64), torch.randint(4, (256,))
    found = batch_inflation(model, nn.CrossEntropyLoss(), (x, y), sizes=(4, 16, 64), repeats=8)
    exact = torch.linalg.eigvalsh(hessian(Objective(model, nn.CrossEntropyLoss(), (x, y))).dense())[-1]
    assert found.full.value == pytest.approx(float(exact), rel=1e-3)
    assert [e.value for e in found.each] == sorted((e.value for e in found.each), reverse=True)
    assert found.constant.low > 0
    assert found.max_lr(4).value < found.max_lr(64).value < 2 / found.full.value
    assert "grows in proportion" in found.verdict
    again = batch_inflation(model, nn.CrossEntropyLoss(), [(x[:128], y[:128]), (x[128:], y[128:])], sizes=(4, 16, 64), repeats=8)
    assert again.constant == found.constant


def test_what_makes_no_sense_is_named():
    m, data = nn.Linear(3, 2), (torch.randn(20, 3), torch.randint(2, (20,)))
    for wrong, message in (
        (lambda: trace(Matrix(A), 1), "products must be"),
        (lambda: trace(Matrix(A), 10, "exact"), "method must be"),
        (lambda: trace(Matrix(A), 4, "xtrace"), "needs from 6"),
        (lambda: diagonal(Matrix(A), 3), "products must be"),
        (lambda: diagonal(Matrix(A), 30, "all"), "method must be"),
        (lambda: norms(Matrix(A), 2), "draws must be"),
        (lambda: alignment(Matrix(A), Matrix(A[:50, :50])), "same parameters"),
        (lambda: batch_inflation(m, nn.CrossEntropyLoss(), data, sizes=(8, 16)), "at most half"),
        (lambda: batch_inflation(m, nn.CrossEntropyLoss(), data, sizes=(2, 4), repeats=2), "repeats must be"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()

"""Gauss-Newton and Fisher operators against dense J^T M J and outer products of gradients, and blocks against parts of dense matrices; float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.probes.curvature.blocks import block, block_diagonal, per_group, per_layer
from velodrome.probes.curvature.fisher import empirical_fisher, fisher
from velodrome.probes.curvature.gauss_newton import gauss_newton
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.operator import Matrix
from velodrome.probes.curvature.preconditioned import preconditioned
from velodrome.probes.objective import Objective


class Tokens(nn.Module):
    """Scores (B, L, 3) of tokens, with attention by the fused function, LayerNorm and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head, self.spare = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Parameter(torch.ones(2))
        nn.init.normal_(self.norm.weight)

    def forward(self, tokens):
        x = self.embed(tokens)
        heads = self.norm(x).unsqueeze(1)
        return self.head(torch.tanh(x + F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).squeeze(1)))


def classes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double().eval()
    model[2].weight.data.normal_()
    return model, (torch.randn(7, 4).double(), torch.randint(3, (7,)))


def tokens():
    torch.manual_seed(0)
    return Tokens().double(), (torch.randint(5, (3, 4)), torch.randint(3, (3, 4)))


def dense_jacobian(model, x):
    """(outputs, parameters), one backward pass for each output."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        z = model(x)
    params = list(model.parameters())
    rows = [torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True) for entry in z.flatten()]
    return z.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def softmax_curvature(z, weights):
    """The block-diagonal matrix of weights times (diag p - p p^T), one block for each prediction."""
    p = z.softmax(-1).reshape(-1, z.shape[-1])
    return torch.block_diag(*(w * (torch.diag(q) - torch.outer(q, q)) for q, w in zip(p, weights.flatten(), strict=True)))


def test_of_cross_entropy_it_is_the_jacobian_around_the_softmax_covariance():
    model, (x, y) = classes()
    z, J = dense_jacobian(model, x)
    want = J.T @ softmax_curvature(z, torch.full((7,), 1 / 7, dtype=torch.float64)) @ J
    for loss in (cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(label_smoothing=0.1)):
        got = gauss_newton(Objective(model, loss, (x, y))).dense()
        assert (got - want).norm() <= 1e-12 * want.norm()
    assert torch.linalg.eigvalsh(want).min() > -1e-12


def test_positions_that_do_not_count_have_no_curvature():
    model, (x, y) = tokens()
    y[0, 1:3] = -100
    z, J = dense_jacobian(model, x)
    counts = y.ne(-100)
    weights = counts.double() / counts.sum(1, keepdim=True) / 3
    want = J.T @ softmax_curvature(z, weights) @ J
    objective = Objective(model, cross_entropy, (x, y))
    for operator in (gauss_newton(objective), gauss_newton(objective, keep=False), fisher(objective)):
        assert (operator.dense() - want).norm() <= 1e-12 * want.norm()


def test_of_squared_error_it_is_twice_the_mean_of_squared_jacobians():
    model, (x, _) = classes()
    y = torch.randn(7, 3).double()
    _, J = dense_jacobian(model, x)
    want = J.T @ J * 2 / 21
    objective = Objective(model, squared_error, (x, y))
    assert (gauss_newton(objective).dense() - want).norm() <= 1e-12 * want.norm()
    assert (fisher(objective).dense() - want).norm() <= 1e-12 * want.norm()


def test_of_a_linear_model_it_is_the_hessian():
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3).double(), (torch.randn(7, 4).double(), torch.randint(3, (7,)))
    objective = Objective(model, cross_entropy, batch)
    torch.testing.assert_close(gauss_newton(objective).dense(), hessian(objective).dense(), rtol=1e-12, atol=1e-14)


def test_a_loss_that_is_linear_in_the_outputs_has_none():
    model, (x, _) = classes()
    objective = Objective(model, lambda z, y: (z * y).mean(1), (x, torch.ones(7, 3).double()))
    assert not (gauss_newton(objective) @ torch.ones(sum(p.numel() for p in model.parameters()))).any()


def test_a_recorded_way_forward_gives_the_same_products():
    model, (x, y) = tokens()
    objective = Objective(model, cross_entropy, (x, y))
    G, R = gauss_newton(objective), gauss_newton(objective, linearized=True)
    V = torch.randn(G.n, 2).double()
    assert (R @ V - G @ V).norm() <= 1e-13 * (G @ V).norm()
    part = block(R, "norm.*")
    assert (part @ V[: part.n] - block(G, "norm.*") @ V[: part.n]).norm() <= 1e-13 * (part @ V[: part.n]).norm()
    model, batch = classes()
    with pytest.raises(ValueError, match="keeps statistics"):
        gauss_newton(Objective(model, cross_entropy, batch, mode="train"), linearized=True)


def test_batches_count_by_their_examples():
    model, (x, y) = classes()
    parts = [(x[:6], y[:6]), (x[6:], y[6:])]
    for make in (gauss_newton, empirical_fisher):
        whole = make(Objective(model, cross_entropy, (x, y))).dense()
        for keep in (True, False):
            assert (make(Objective(model, cross_entropy, parts), keep=keep).dense() - whole).norm() <= 1e-12 * whole.norm()


def test_the_empirical_fisher_is_the_mean_of_outer_products_of_gradients():
    for make in (classes, tokens):
        model, (x, y) = make()
        rows = []
        for i in range(len(x)):
            loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1]).mean()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)]))
        g = torch.stack(rows)
        want = g.T @ g / len(x)
        got = empirical_fisher(Objective(model, cross_entropy, (x, y))).dense()
        assert (got - want).norm() <= 1e-12 * want.norm()


@pytest.mark.parametrize("kind", ["classes", "positions", "numbers"])
def test_labels_drawn_from_the_model_give_the_exact_fisher_on_average(kind):
    """40 operators of 10 draws each; a wrong weight or distribution of 20 % is 5 standard errors or more."""
    model, (x, y) = tokens() if kind == "positions" else classes()
    loss = cross_entropy
    if kind == "positions":
        y[0, 1:3] = -100
    if kind == "numbers":
        loss, y = squared_error, torch.randn(7, 3).double()
    objective = Objective(model, loss, (x, y))
    v = torch.randn(sum(p.numel() for p in model.parameters())).double()
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([v @ (fisher(objective, samples=10, generator=generator) @ v) for _ in range(40)])
    truth, error = v @ (fisher(objective) @ v), draws.std() / 40**0.5
    assert error < 0.04 * truth
    assert abs(draws.mean() - truth) < 4 * error


def test_drawn_labels_stay_drawn():
    model, (x, y) = classes()
    objective = Objective(model, cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])])
    kept, made = fisher(objective, samples=3), fisher(objective, samples=3, keep=False)
    v = torch.randn(kept.n).double()
    assert torch.equal(kept @ v, kept @ v)
    assert torch.equal(kept @ v, made @ v)
    assert not torch.equal(kept @ v, fisher(objective, samples=3, generator=torch.Generator().manual_seed(5)) @ v)


def test_what_has_no_fisher_is_told():
    model, (x, y) = classes()
    hinge = nn.MultiMarginLoss(reduction="none")
    with pytest.raises(ValueError, match="use gauss_newton"):
        fisher(Objective(model, hinge, (x, y)))
    with pytest.raises(ValueError, match="samples must be"):
        fisher(Objective(model, cross_entropy, (x, y)), samples=0)
    with pytest.raises(ValueError, match="2 mixes the examples"):
        empirical_fisher(Objective(model, cross_entropy, (x, y), mode="train"))
    with pytest.raises(ValueError, match="one loss per example"):
        empirical_fisher(Objective(model, nn.CrossEntropyLoss(), (x, y)))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x), x

    for make in (gauss_newton, fisher):
        with pytest.raises(ValueError, match="outputs must be one tensor, got tuple"):
            make(Objective(Pair(), lambda z, y: cross_entropy(z[0], y), (x, y)))


def test_a_gauss_newton_look_leaves_no_trace():
    model, (x, y) = classes()
    model.train()
    before, random = [t.clone() for t in (*model.parameters(), *model.buffers())], torch.get_rng_state()
    objective = Objective(model, cross_entropy, (x, y))
    v = torch.ones(sum(p.numel() for p in model.parameters())).double()
    for operator in (gauss_newton(objective), gauss_newton(objective, keep=False), fisher(objective, samples=2)):
        operator @ v
    assert all(torch.equal(a, b) for a, b in zip((*model.parameters(), *model.buffers()), before, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


OPERATORS = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "empirical_fisher": empirical_fisher,
    "matrix": lambda objective: named(Matrix(hessian(objective).dense()), objective),
}


def named(matrix, objective):
    """A dense matrix that knows whose entries it holds."""
    matrix.names, matrix.shapes = list(objective.params), [p.shape for p in objective.params.values()]
    matrix.sizes = [p.numel() for p in objective.params.values()]
    return matrix


@pytest.mark.parametrize("name", OPERATORS)
def test_blocks_are_parts_of_the_dense_matrix(name):
    model, batch = classes()
    operator = OPERATORS[name](Objective(model, cross_entropy, batch))
    A = operator.dense()
    first, norm, last = slice(0, 25), slice(25, 35), slice(35, 53)
    layers = per_layer(operator)
    assert list(layers) == ["0", "2", "3"]
    for layer, part in zip(layers.values(), (first, norm, last), strict=True):
        torch.testing.assert_close(layer.dense(), A[part, part], rtol=1e-12, atol=1e-14)
    weights = per_group(operator, {"weights": ["*.weight"], "all": ["*"]})
    of_weights = [i for name, part in (("0.weight", range(20)), ("2.weight", range(25, 30)), ("3.weight", range(35, 50))) for i in part]
    torch.testing.assert_close(weights["weights"].dense(), A[of_weights][:, of_weights], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights["all"].dense(), A, rtol=1e-12, atol=1e-14)
    want = torch.block_diag(A[first, first], A[norm, norm], A[last, last])
    torch.testing.assert_close(block_diagonal(operator).dense(), want, rtol=1e-12, atol=1e-14)
    assert list(per_layer(operator, lambda name: "whole")) == ["whole"]


def test_a_block_of_a_block_and_of_a_preconditioned_operator_are_theirs():
    model, batch = classes()
    H = hessian(Objective(model, cross_entropy, batch))
    A = H.dense()
    inner = block(block(H, ["0.*", "3.*"]), "3.weight")
    assert inner.names == ["3.weight"]
    torch.testing.assert_close(inner.dense(), A[35:50, 35:50])
    optimizer = torch.optim.Adam(model.parameters())
    cross_entropy(model(batch[0]), batch[1]).mean().backward()
    P = preconditioned(H, optimizer, before_step=True)
    torch.testing.assert_close(block(P, "3.weight").dense(), P.dense()[35:50, 35:50])
    torch.testing.assert_close(preconditioned(block(H, "3.weight"), optimizer, before_step=True).dense(), P.dense()[35:50, 35:50])
    assert torch.equal(block(H, "3.weight").gradient, H.gradient[35:50])
    with pytest.raises(ValueError, match=r"no parameter matches \['4.*'\]: there are 0.weight"):
        block(H, "4.*")

"""Attributions are their definitions, DiffROAR has the sign it should, and plain networks hang on blocks that tell nothing."""

import pytest
import torch
from torch import nn

from velodrome.data import block_digits
from velodrome.data.stream import Batch
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp
from velodrome.probes.functions.attribution import attributions, diffroar, share_of_mass, unmasked
from velodrome.probes.objective import Objective


def adversarial(model, x, y, radius):
    """Three steps of projected ascent on the l2 ball."""
    moved = x
    for _ in range(3):
        moved = moved.detach().requires_grad_()
        g = torch.autograd.grad(cross_entropy(model(moved), y).sum(), moved)[0]
        away = moved.detach() + 0.6 * radius * torch.nn.functional.normalize(g.flatten(1)).view_as(g) - x
        moved = x + away * (radius / away.flatten(1).norm(dim=1).clamp(min=radius)).view(-1, 1, 1, 1)
    return moved.detach()


def test_attributions_are_their_definitions():
    torch.manual_seed(0)
    model, x, y = Mlp(4, 9, 1, 3, torch.tanh).double(), torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    objective = Objective(model, cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])])
    logit = lambda v: model(v)[torch.arange(len(v)), y[: len(v)]]  # noqa: E731
    truth = torch.stack([torch.autograd.functional.jacobian(lambda v, i=i: model(v[None])[0, y[i]], x[i]) for i in range(6)])
    assert torch.allclose(attributions(objective), truth)
    assert torch.allclose(attributions(objective, "gradient x input"), x * truth)
    whole = attributions(objective, "integrated", steps=400)
    assert torch.allclose(whole.sum(1), logit(x) - logit(torch.zeros_like(x)), atol=1e-4)
    smooth = attributions(objective, "smooth", steps=400, noise=1e-3)
    assert torch.allclose(smooth, truth, atol=1e-3)
    own = x.clone().requires_grad_()
    assert torch.allclose(attributions(objective, of="loss"), torch.autograd.grad(cross_entropy(model(own), y).sum(), own)[0])
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="floating-point"):
        attributions(Objective(nn.Embedding(3, 2), lambda f, t: f.mean((1, 2)), (torch.zeros(2, 2, dtype=torch.long), y[:2])))


def test_what_is_kept_is_the_top_or_the_bottom_and_mass_is_shared_out():
    a = torch.tensor([[0.1, -4.0, 2.0, 1.0]])
    assert unmasked(torch.ones(1, 4), a, 0.5, "top", -1.0).tolist() == [[-1, 1, 1, -1]]
    assert unmasked(torch.ones(1, 4), a, 0.25, "bottom").tolist() == [[1, 0, 0, 0]]
    two = torch.tensor([[1.0, -1.0], [3.0, 1.0], [0.0, 0.0]])
    share = share_of_mass(two, torch.tensor([[True, False]]))
    assert share.value == pytest.approx(0.625)
    assert share.note == "1 examples have no attribution at all"


def test_diffroar_is_positive_for_true_attributions_negative_for_reversed_ones_and_covers_zero_for_random():
    """Two places of ten carry the class; the classifier is the sign of their sum, the retraining a closed-form probe."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (600,), generator=g)
    x = torch.randn(600, 10, generator=g)
    x[:, :2] += 2.0 * y[:, None] - 1
    true = torch.zeros(600, 10)
    true[:, :2] = 1
    train, test = Batch(x[:400], y[:400]), Batch(x[400:], y[400:])

    def retrain(a, b, seed):
        pick = torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:300]
        u = a.inputs[pick]
        w = torch.linalg.solve(u.T @ u + torch.eye(10), u.T @ (2.0 * a.targets[pick, None] - 1))
        return float((((b.inputs @ w)[:, 0] > 0) == b.targets.bool()).float().mean())

    score = lambda a: diffroar((train, a[:400]), (test, a[400:]), retrain, share=0.2, seeds=range(5)).difference  # noqa: E731
    assert score(true).low > 0.2
    assert score(1 - true).high < 0
    random = score(torch.rand(600, 10, generator=g))
    assert abs(random.value) < 0.15
    with pytest.raises(ValueError, match="two or more"):
        diffroar((train, true), (test, true), retrain, seeds=[0])


def test_block_digits_hold_each_digit_once_and_a_null_block_that_is_the_same_everywhere():
    pytest.importorskip("sklearn")
    found = block_digits.load("validation")
    x, null = found.images.inputs, found.null
    assert x.shape == null.shape == (len(found.images.targets), 1, 16, 8)
    assert null.flatten(1).sum(1).unique().tolist() == [64]
    blocks = x[null].view(-1, 64)
    assert (blocks == blocks[0]).all()
    assert 0.4 < float(null[:, 0, 0, 0].float().mean()) < 0.6
    assert block_digits.load("validation", seed=1).images.digest != found.images.digest


def test_a_plain_network_hangs_on_the_null_block_and_an_adversarially_trained_one_far_less():
    """Shah et al. 2021 (https://arxiv.org/abs/2102.12781), on 8x8 digits: null blocks have near half of a plain network's input gradients."""
    pytest.importorskip("sklearn")
    data, held = block_digits.load("train").images, block_digits.load("validation")

    def share(radius):
        model, draw = Mlp(128, 64, 1, 10, seed=0), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(150):
            pick = torch.randint(0, len(data.targets), (64,), generator=draw)
            x, y = data.inputs[pick], data.targets[pick]
            optimizer.zero_grad()
            cross_entropy(model(adversarial(model, x, y, radius) if radius else x), y).mean().backward()
            optimizer.step()
        return share_of_mass(attributions(Objective(model, cross_entropy, (held.images.inputs, held.images.targets))), held.null)

    plain, robust = share(0.0), share(1.0)
    assert plain.low > 0.38
    assert robust.high < 0.8 * plain.low

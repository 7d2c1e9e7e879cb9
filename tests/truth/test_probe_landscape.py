"""Slices of the loss are the loss at moved weights; a barrier's interval covers it; linear probes read what is there."""

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.models.mlp import Mlp
from velodrome.probes.functions.landscape import interpolation, loss_slice, random_direction
from velodrome.probes.functions.probing import linear_probe
from velodrome.probes.objective import Objective


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 3, (40,))
    model(2 * x + 1)  # running statistics that are not those of x
    return model.eval(), x, y


def test_a_slice_is_the_loss_at_the_moved_weights_and_the_weights_stay():
    model, x, y = normed()
    objective = Objective(model, cross_entropy, [(x[:25], y[:25]), (x[25:], y[25:])])
    one, two = random_direction(objective, 0), random_direction(objective, 1, "layer")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    line, plane = loss_slice(objective, one, span=0.5, points=3), loss_slice(objective, [one, two], points=3)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    truth = []
    for a in (-0.5, 0, 0.5):
        model.load_state_dict({k: v + a * one.get(k, 0) for k, v in before.items()})
        truth.append(cross_entropy(model(x), y).mean().item())
    assert line.loss.tolist() == pytest.approx(truth, rel=1e-12)
    model.load_state_dict({k: v + one.get(k, 0) - two.get(k, 0) for k, v in before.items()})
    losses = cross_entropy(model(x), y).detach()
    where = plane.coordinates.tolist().index([1.0, -1.0])
    assert float(plane.loss[where]) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert float(plane.error[where]) == pytest.approx(float(losses.std() / 40**0.5), rel=1e-12)
    assert plane.rows()[where].keys() == {"x", "y", "loss", "error"}


def test_filter_normalised_rows_have_the_norms_of_the_weights_rows_and_see_the_same_slice_at_another_scale():
    torch.manual_seed(0)
    model, x, y = Mlp(5, 7, 1, 3).double(), torch.randn(20, 5, dtype=torch.float64), torch.randint(0, 3, (20,))
    objective = Objective(model, cross_entropy, (x, y))
    d = random_direction(objective, 3)
    assert torch.allclose(d["hidden.0.weight"].norm(dim=1), model.hidden[0].weight.norm(dim=1))
    assert not d["hidden.0.bias"].any()
    one = loss_slice(objective, d, points=5).loss
    plain = loss_slice(objective, random_direction(objective, 3, "none"), points=5).loss
    with torch.no_grad():
        model.hidden[0].weight.mul_(10), model.hidden[0].bias.mul_(10), model.head.weight.div_(10)
    other = loss_slice(objective, random_direction(objective, 3), points=5).loss
    assert torch.allclose(one, other, rtol=1e-10)
    assert not torch.allclose(plain, loss_slice(objective, random_direction(objective, 3, "none"), points=5).loss, rtol=1e-3)


def test_re_estimated_statistics_are_those_of_the_inputs_and_the_models_own_stay():
    model, x, y = normed()
    objective = Objective(model, cross_entropy, (x, y), mode="eval")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = dict(model.named_parameters())
    stale, fresh = (interpolation(objective, weights, weights, points=2, batch_norm=how) for how in ("as is", "re-estimated"))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert model[1].momentum == 0.1
    assert not model.training
    assert float(stale.slice.loss[0]) == pytest.approx(cross_entropy(model(x), y).mean().item(), rel=1e-12)
    h = model[0](x)
    model[1].running_mean, model[1].running_var = h.mean(0).detach(), h.var(0).detach()
    assert float(fresh.slice.loss[0]) == pytest.approx(cross_entropy(model(x), y).mean().item(), rel=1e-12)
    with pytest.raises(ValueError, match="mode='eval'"):
        interpolation(Objective(model, cross_entropy, (x, y), mode="train"), weights, weights, batch_norm="re-estimated")


class Bump(nn.Module):
    """Losses x + 4 w (1 - w) s: a barrier of s between w = 0 and 1, in the mean over examples."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return x[:, 0] + 4 * self.w * (1 - self.w) * x[:, 1]


def test_a_barriers_interval_covers_it_and_a_flat_path_has_none():
    ends = {"w": torch.zeros((), dtype=torch.float64)}, {"w": torch.ones((), dtype=torch.float64)}
    covered, flat = 0, []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(60, 2, generator=g, dtype=torch.float64)
        for height in (0.5, 0.0):
            data = noise + torch.tensor([2.0, height], dtype=torch.float64)
            path = interpolation(Objective(Bump(), lambda f, _: f, (data, data[:, 0]), check=False), *ends, points=5)
            if height:
                covered += path.barrier.low <= 0.5 <= path.barrier.high
                assert path.where == 0.5 or path.barrier.value < 0.3
            else:
                flat.append(path.barrier.low > 0)
    assert 0.90 <= covered / 200 <= 0.98, covered
    assert np.mean(flat) <= 0.05


def test_two_networks_that_are_permutations_of_each_other_have_a_barrier_and_a_line_to_oneself_has_none():
    torch.manual_seed(0)
    model, x = Mlp(4, 12, 1, 1).double(), torch.randn(80, 4, dtype=torch.float64)
    y = model(x).detach()
    order = torch.randperm(12)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    swapped = {**own, "hidden.0.weight": own["hidden.0.weight"][order], "head.weight": own["head.weight"][:, order]}
    objective = Objective(model, squared_error, (x, y))
    path = interpolation(objective, own, swapped)
    assert path.slice.loss[[0, -1]].abs().max() < 1e-20
    assert path.barrier.low > 0
    assert path.barrier.value == pytest.approx(float(path.slice.loss.max()), rel=0.2)
    assert interpolation(objective, own, own).barrier.value == pytest.approx(0, abs=1e-15)
    with pytest.raises(ValueError, match=r"head\.bias is missing"):
        interpolation(objective, own, {k: v for k, v in own.items() if k != "head.bias"})


def test_a_linear_probe_reads_what_is_there_and_nothing_from_control_labels():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (300,), generator=g)
    x = torch.randn(300, 8, generator=g) + 3 * torch.eye(3, 8)[y]
    for kind in ("ridge", "logistic"):
        probe = linear_probe(x, y, kind=kind)
        assert probe.accuracy.value > 0.85
        assert probe.control.low < 1 / 3 + 0.1
        assert probe.selectivity.low > 0.3
    groups = torch.arange(300) % 4
    told = linear_probe(torch.eye(4)[groups] + 0.01 * torch.randn(300, 4, generator=g), y, groups=groups)
    assert told.control.value == 1.0  # labels by group can be learned by heart
    assert told.selectivity.high < 0
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(x, torch.zeros(300, dtype=torch.long))


def test_a_logistic_probe_answers_as_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (200,), generator=g)
    x = torch.randn(200, 5, generator=g, dtype=torch.float64) + 1.2 * torch.eye(3, 5)[y]
    found = linear_probe(x, y, kind="logistic", penalty=0.01, folds=4, seed=0)
    draw = np.random.default_rng(0)
    fold, right = draw.permutation(200) % 4, []
    for k in range(4):
        inside, outside = x[fold != k].numpy(), x[fold == k].numpy()
        mean, std = inside.mean(0), inside.std(0)
        model = linear_model.LogisticRegression(C=1 / (0.01 * len(inside)), tol=1e-8, max_iter=1000)
        answers = model.fit((inside - mean) / std, y[fold != k]).predict((outside - mean) / std)
        right.append(answers == y[fold == k].numpy())
    assert found.accuracy.value == pytest.approx(np.concatenate(right).mean(), abs=0.0051)


def test_a_probes_interval_covers_the_accuracy_that_such_probes_have():
    """200 data sets of 120 examples; the truth is the mean accuracy on 4,000 fresh examples of probes trained on 96."""

    def made(n, seed):
        g = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 2
        return torch.randn(n, 3, generator=g) + torch.tensor([1.0, 0.5, 0.0]) * (2 * y[:, None] - 1), y

    far, labels = made(4000, 10**6)
    scores = []
    for seed in range(100):
        x, y = made(96, 10**5 + seed)
        w = torch.linalg.lstsq(torch.cat((x, torch.ones(96, 1)), 1), 2.0 * y[:, None] - 1).solution
        scores.append(float((((far @ w[:3] + w[3])[:, 0] > 0) == labels.bool()).float().mean()))
    truth, covered = np.mean(scores), 0
    for seed in range(200):
        found = linear_probe(*made(120, seed), penalty=1e-4).accuracy
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.98, covered

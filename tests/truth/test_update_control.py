"""Probes of the update's size, the balance of decay and updates, and the step of a chosen relative change: against dense sums and random walks."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.data.stream import Batch
from velodrome.data.streams import Shuffled
from velodrome.gradients.backward import backward
from velodrome.gradients.layer_inputs import with_layer_inputs
from velodrome.losses.squared_error import squared_error
from velodrome.models.gpt import Gpt
from velodrome.models.mlp import Mlp
from velodrome.optim.adam import adam, adamw
from velodrome.optim.lion import lion
from velodrome.optim.lion_a import lion_a, lion_ar
from velodrome.optim.relative_change import RelativeChange, rrc_adam
from velodrome.optim.rule import At
from velodrome.optim.sgd import sgd
from velodrome.probes.updates.equilibrium import equilibrium
from velodrome.probes.updates.steps import effective_steps
from velodrome.probes.updates.update_control import gradient_snr, representation_changes


def walk(optimizer, p, steps, seed=0):
    """Gradients that are noise orthogonal to every row and shrink as 1/norm (a neuron before a normalisation); the rows' mean squared norm each step."""
    g = torch.Generator().manual_seed(seed)
    norms = []
    for _ in range(steps):
        noise = torch.randn(p.shape, generator=g)
        w = p.detach()
        noise -= w * (noise * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
        p.grad = noise / w.norm(dim=1, keepdim=True)
        norms.append(float(w.square().sum(1).mean()))
        optimizer.step()
    return np.array(norms)


BALANCES = {
    "adamw": (partial(adamw, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.999)), 0.05),
    "adamw without momentum": (partial(adamw, lr=4e-3, weight_decay=0.5, betas=(0.0, 0.999)), 0.05),
    "torch AdamW": (partial(torch.optim.AdamW, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.999)), 0.05),
    "sgd": (partial(sgd, lr=0.1, momentum=0.9, weight_decay=2e-3), 0.02),
    "sgd without momentum": (partial(sgd, lr=0.1, momentum=0.0, weight_decay=2e-2), 0.02),
    "lion": (partial(lion, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.99)), 0.12),
}


@pytest.mark.parametrize("name", BALANCES)
def test_a_random_walk_settles_at_the_norm_that_equilibrium_says(name):
    """Kosson et al. 2024 (https://arxiv.org/abs/2305.17212); Lion's takes averages as Gaussian and is good to some 10 %."""
    make, within = BALANCES[name]
    p = nn.Parameter(torch.randn(16, 256, generator=torch.Generator().manual_seed(1)) * (0.05 if "sgd" not in name else 1.0))
    optimizer = make([p])
    norms = walk(optimizer, p, 1300)
    found = next(iter(equilibrium(optimizer).values()))
    assert math.sqrt(norms[-200:].mean()) == pytest.approx(found.norm, rel=within)


def test_the_norm_of_adamw_has_no_factor_of_the_momentum():
    """A copied derivation multiplies it by sqrt((1 - beta1)/(1 + beta1)), 4.4 times too small at 0.9. The walks above measure both."""
    w = nn.Parameter(torch.ones(2, 256))
    norms = [next(iter(equilibrium(adamw([w], lr=4e-3, weight_decay=0.5, betas=(b, 0.999))).values())).norm for b in (0.0, 0.9)]
    assert norms == pytest.approx([math.sqrt(4e-3 * 256 / (2 * 0.5))] * 2, rel=1e-12)


RETURNS = {
    "adamw": (partial(adamw, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.95)), 2, 0.063),  # a second moment that forgets faster than the norm
    "sgd": (partial(sgd, lr=0.1, momentum=0.9, weight_decay=2e-3), 4, 1.18),
    "lion": (partial(lion, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.99)), 2, 0.42),
}


@pytest.mark.parametrize("name", RETURNS)
def test_the_norm_returns_to_its_balance_with_the_time_constant(name):
    """From 30 % above: the distance of the norm's 2nd (SGD: 4th) power shrinks e-fold in one time constant, here from 0.5 to 1.5 of them."""
    make, power, start = RETURNS[name]
    p = nn.Parameter(torch.randn(128, 128, generator=torch.Generator().manual_seed(1)) * start)
    optimizer = make([p])
    walk(optimizer, p, 500)
    level = walk(optimizer, p, 200, seed=1).mean()
    tau = next(iter(equilibrium(optimizer).values())).steps
    with torch.no_grad():
        p.mul_(1.3)
    norms = walk(optimizer, p, round(1.6 * tau), seed=2) ** (power / 2) - level ** (power / 2)
    early, late = norms[round(0.4 * tau) : round(0.6 * tau)].mean(), norms[round(1.4 * tau) :].mean()
    assert math.log(early / late) == pytest.approx(1, abs=0.25)


def test_equilibrium_is_absent_where_no_formula_holds():
    w, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    assert list(equilibrium(adamw([("w", w), ("b", b)], weight_decay=0.1))) == ["w"]
    assert equilibrium(adam([w], weight_decay=0.1)) == {}  # L2 in Adam has no balance of this kind
    assert equilibrium(adamw([w], weight_decay=0.0)) == {}
    assert equilibrium(sgd([w], weight_decay=0.1, momentum=0.9, nesterov=True)) == {}
    assert equilibrium(lion_a([w])) == {}
    found = equilibrium(sgd([w], lr=0.1, weight_decay=0.1, momentum=0.9))
    assert [x.norm for x in found.values()] == [None]  # no gradient yet
    assert [x.steps for x in found.values()] == [pytest.approx(0.1 / (4 * 0.01))]


def test_lion_ar_turns_every_neuron_by_the_angle_that_adamw_has_in_balance():
    p = nn.Parameter(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    angle = next(iter(equilibrium(adamw([p], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999))).values())).angle
    optimizer = lion_ar([p], lr=1e-2, weight_decay=0.1, momentum=0.9)
    for i in range(3):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        with effective_steps(optimizer) as report:
            optimizer.step()
        found = report.parameters["parameter 0 of group 0"]["neuron_rotation"]
        assert found == pytest.approx(math.atan(angle), rel=1e-3)


def test_reports_of_steps_hold_the_norm_beside_its_balance():
    p = nn.Parameter(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    norm = float(p.detach().norm(dim=1).double().quantile(0.5))
    optimizer = sgd([p], lr=0.1, weight_decay=0.1)
    p.grad = torch.ones_like(p)
    goal = (0.1 * (8 * norm) ** 2 / 0.2) ** 0.25
    with effective_steps(optimizer) as report:
        optimizer.step()
    found = report.parameters["parameter 0 of group 0"]
    assert found["neuron_norm"] == pytest.approx(norm, rel=1e-6)
    assert found["equilibrium_norm"] == pytest.approx(goal, rel=1e-3)


def test_the_change_of_a_representation_is_that_of_the_dense_products():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Flatten(0))
    x = torch.randn(7, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    model(x).square().sum().backward()
    with representation_changes(model, x) as changes:
        assert changes == {}
        optimizer.step()
    now = {n: p.detach().double() for n, p in model.named_parameters()}
    xs = {"0": x.double(), "2": torch.tanh(x.double() @ before["0.weight"].T + before["0.bias"])}
    first = xs["0"] @ before["0.weight"].T + before["0.bias"]
    moved = xs["0"] @ (now["0.weight"] - before["0.weight"]).T + now["0.bias"] - before["0.bias"]
    assert changes["0"] == pytest.approx(float(moved.norm() / first.norm()), rel=1e-9)
    ratio = (xs["2"] @ (now["2.weight"] - before["2.weight"]).T).norm() / (xs["2"] @ before["2.weight"].T).norm()
    assert changes["2"] == pytest.approx(float(ratio), rel=1e-5)  # the layer's inputs are float32's


def test_looking_at_representations_changes_nothing():
    def trained(look):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2))
        x, optimizer = torch.randn(4, 1, 6, 6), torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            if look:
                with representation_changes(model, x) as changes:
                    optimizer.step()
                assert set(changes) == {"0", "4"}
            else:
                optimizer.step()
        return model.state_dict()

    mine, theirs = trained(True), trained(False)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


class Sum(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return x @ self.w


def noisy(signal, examples, size, rng):
    """A linear loss: the gradient of example i is its input, (signal, 0, …) plus standard normal noise in every direction."""
    x = torch.from_numpy(rng.standard_normal((examples, size)))
    x[:, 0] += signal
    return Batch(x, torch.zeros(examples))


LINEAR = backward(Sum(20), lambda outputs, targets: outputs)


def test_signal_and_noise_are_without_bias():
    """200 batches of 16: standard error of the signal about 0.03; a signal with the noise in it would be 0.25 + 20/16."""
    rng = np.random.default_rng(0)
    found = [gradient_snr(LINEAR, noisy(0.5, 16, 20, rng), parts=8) for _ in range(200)]
    for values, truth in (([f.signal for f in found], 0.25), ([f.noise for f in found], 20.0)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / 200**0.5
    assert LINEAR.model.w.grad is None


@pytest.mark.parametrize(("signal", "parts"), [(1.0, 8), (3.0, 16), (0.0, 8)])
def test_the_interval_of_the_snr_holds_the_truth(signal, parts):
    """200 batches of 64, truth 64 signal^2 / 20: 95 % with a standard error of 1.5 %; without signal it may only be wider."""
    rng = np.random.default_rng(1)
    found = [gradient_snr(LINEAR, noisy(signal, 64, 20, rng), parts) for _ in range(200)]
    hits = np.mean([f.low <= 64 * signal**2 / 20 <= f.high for f in found])
    assert 0.88 <= hits <= (1.0 if signal == 0 else 0.99)


def test_a_batch_without_noise_is_all_signal():
    batch = Batch(torch.ones(8, 20, dtype=torch.float64), torch.zeros(8))
    found = gradient_snr(LINEAR, batch, parts=4)
    assert found.signal == pytest.approx(20)
    assert found.noise == pytest.approx(0, abs=1e-12)
    assert found.critical_batch == pytest.approx(0, abs=1e-12)
    assert found.fraction == pytest.approx(1)
    with pytest.raises(ValueError, match="divides the batch of 8"):
        gradient_snr(LINEAR, batch, parts=3)


def rotated(lr, steps=6):
    """A GPT trained with `rrc_adam`; the relative change of every controlled layer at every step."""
    model = Gpt(11, 8, 16, 2, 2, seed=0)
    optimizer = rrc_adam(model, lr=lr)
    gradient = with_layer_inputs(backward(model, lambda y, t: y.flatten(0, -2)[:, :1].square().view(len(t), -1).mean(1)), optimizer)
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        x = torch.randint(0, 11, (4, 8), generator=g)
        optimizer.zero_grad()
        gradient(Batch(x, x))
        with representation_changes(model, x) as changes:
            optimizer.step()
        found.append(changes)
    return found


def test_the_learning_rate_is_the_relative_representation_change():
    """Exactly, on the batch of the step, from the second step on, for every hidden matrix; the head is not controlled."""
    for lr in (1e-3, 3e-2):
        for changes in rotated(lr)[1:]:
            hidden = {name: value for name, value in changes.items() if name != "head"}
            assert len(hidden) == 12
            assert list(hidden.values()) == pytest.approx([lr] * 12, rel=1e-4)


def test_without_inputs_it_is_the_relative_change_of_the_weights():
    """In float64 against numpy, for a matrix and a filter; a vector and zero weights keep their direction."""
    rng = np.random.default_rng(0)
    rule, at = RelativeChange(), At(1, 0.1)
    for shape in ((3, 4), (3, 2, 2, 2)):
        w, u = rng.standard_normal(shape), rng.standard_normal(shape)
        p = torch.from_numpy(w)
        out, _ = rule(torch.from_numpy(u), p, rule.init(p), at)
        np.testing.assert_allclose(out.numpy().reshape(shape), u * np.linalg.norm(w) / np.linalg.norm(u), rtol=1e-12)
    for p in (torch.ones(3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)):
        u = torch.ones_like(p) / 3
        assert torch.equal(rule(u, p, rule.init(p), at)[0].reshape(p.shape), u)


def test_the_inputs_moments_are_averaged_and_what_is_not_controlled_is_refused():
    x = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Mlp(4, 3, 1, 2).double()
    optimizer = rrc_adam(model)
    gradient = with_layer_inputs(backward(model, squared_error), optimizer, decay=0.75)
    stream, expected = iter(Shuffled(x, x[:, :2], 16, seed=0)), torch.eye(4, dtype=torch.float64)
    first = next(m for m in model.modules() if isinstance(m, nn.Linear)).weight
    for t in range(4):
        batch = next(stream)
        optimizer.zero_grad()
        gradient(batch)
        if t:
            expected = 0.75 * expected + 0.25 * batch.inputs.T @ batch.inputs / 16
            torch.testing.assert_close(optimizer.state[first]["relativechange.A"], expected, rtol=1e-12, atol=0)
        optimizer.step()
    with pytest.raises(ValueError, match="must have the rule RelativeChange"):
        with_layer_inputs(gradient, adamw(model))
    with pytest.raises(ValueError, match="decay must be in"):
        with_layer_inputs(gradient, optimizer, decay=1.0)

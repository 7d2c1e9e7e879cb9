"""Critical sharpness against closed forms on parabolas, against torch's own next step, and in coarse formats against float64."""

import pytest
import torch
from torch import Tensor, nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.optim.adam import adamw
from velodrome.optim.chain import Chain
from velodrome.optim.clip import ClipNorm
from velodrome.optim.descend import Descend
from velodrome.optim.lion import lion
from velodrome.optim.muon import muon
from velodrome.optim.sgd import Momentum
from velodrome.probes.edge.critical import critical_sharpness
from velodrome.probes.edge.directional import directional_sharpness
from velodrome.probes.edge.update import coming_update
from velodrome.probes.objective import Objective

H = torch.diag(torch.tensor([8.0, 2.0, 0.5], dtype=torch.float64))


class Parabola(nn.Module):
    """Half of w'Hw for every example."""

    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.w @ H @ self.w).expand(len(x))


def objective(model: nn.Module) -> Objective:
    return Objective(model, lambda outputs, targets: outputs, (torch.zeros(4, 1), torch.zeros(4)))


def net(dtype: torch.dtype = torch.float64, width: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, 3)).to(dtype)
    return model, torch.randn(64, 6).to(dtype), torch.randint(3, (64,))


@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.2, 0.3, 5.0])
def test_on_a_parabola_it_is_the_directional_sharpness_whatever_the_rate(lr):
    w = [0.3, 1.0, -2.0]
    model = Parabola(w)
    g = H @ torch.tensor(w, dtype=torch.float64)
    truth = float(g @ H @ g / (g @ g))
    found = critical_sharpness(objective(model), torch.optim.SGD(model.parameters(), lr))
    assert found.sharpness.low <= truth <= found.sharpness.high
    assert found.sharpness.value == pytest.approx(truth, rel=1 / 16)
    assert found.ratio.low <= lr * truth / 2 <= found.ratio.high
    assert found.slope == pytest.approx(-lr * float(g @ g))
    assert found.passes <= 5


@pytest.mark.parametrize(("lr", "where"), [(0.1, "below the edge"), (0.25, "at the edge"), (0.4, "above")])
def test_the_verdict_is_that_of_the_rate_along_the_sharpest_direction(lr, where):
    model = Parabola([1.0, 0.0, 0.0])  # curvature 8: the edge is at 0.25
    found = critical_sharpness(objective(model), torch.optim.SGD(model.parameters(), lr), tol=0.01)
    assert found.verdict == where


def test_a_momentum_that_points_uphill_is_told_as_above():
    model = Parabola([0.1, 0.0, 0.0])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model.w.grad = torch.tensor([-100.0, 0.0, 0.0], dtype=torch.float64)
    optimizer.step()
    found = critical_sharpness(objective(model), optimizer)
    assert found.slope > 0
    assert found.verdict == "above"
    assert not found.step.identified
    assert "uphill" in found.step.note


def test_where_the_loss_never_rises_that_is_told():
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.w - 1e9).expand(len(x))

    model = Slope()
    found = critical_sharpness(objective(model), torch.optim.SGD(model.parameters(), 1.0))
    assert found.verdict == "below the edge"
    assert "does not rise" in found.ratio.note


MAKERS = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.3),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.01, momentum=0.5, centered=True),
    "ours": lambda m: adamw(m, 0.01, weight_decay=0.3),
    "clipped": lambda m: Chain(m.parameters(), ClipNorm(0.1), Momentum(0.9), Descend(), lr=0.1),
    "lion": lambda m: lion(m.parameters(), lr=0.01),
    "muon": lambda m: muon(m, lr=0.01),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_coming_update_is_what_the_next_step_does_and_leaves_no_trace(name):
    model, x, y = net()
    optimizer = MAKERS[name](model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)  # hangs a step on the instance
    calls = []
    optimizer.register_step_pre_hook(lambda *a: calls.append(1))
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad()
    cross_entropy(model(x), y).mean().backward()
    before = [p.detach().clone() for p in model.parameters()]
    grads = [p.grad.clone() for p in model.parameters()]
    states = {k: [v.clone() if isinstance(v, Tensor) else v for v in s.values()] for k, s in optimizer.state_dict()["state"].items()}
    found = coming_update(optimizer, list(model.parameters()))
    assert all(torch.equal(p, b) and torch.equal(p.grad, g) for p, b, g in zip(model.parameters(), before, grads, strict=True))
    after = {k: list(s.values()) for k, s in optimizer.state_dict()["state"].items()}
    for k, values in states.items():
        for a, b in zip(values, after[k], strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert len(calls) == 3
    optimizer.step()
    for p, b, d in zip(model.parameters(), before, found, strict=True):
        torch.testing.assert_close(p.detach() - b, d, rtol=0, atol=0)


def test_nothing_of_the_model_is_changed_bit_for_bit():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    cross_entropy(model(x), y).mean().backward()
    kept = [p.grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    critical_sharpness(Objective(model, cross_entropy, (x, y)), torch.optim.Adam(model.parameters(), 0.1))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert not model._forward_hooks


def truth(model: nn.Module, x: Tensor, y: Tensor, update: list[Tensor]) -> float:
    """The first zero of the change of the loss along the update, in float64, by a fine scan and bisection."""
    twin = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3)).double()
    twin.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    start = [p.detach().clone() for p in twin.parameters()]

    @torch.no_grad()
    def loss(a: float) -> float:
        for p, s, d in zip(twin.parameters(), start, update, strict=True):
            p.copy_(s + a * d.double())
        return float(cross_entropy(twin(x.double()), y).mean())

    base, a = loss(0.0), 0.01
    while loss(a) <= base:
        a *= 1.05
    low = a / 1.05
    for _ in range(20):
        low, a = (low, (low + a) / 2) if loss((low + a) / 2) > base else ((low + a) / 2, a)
    return a


@pytest.mark.parametrize("form", ["float32", "autocast", "bfloat16"])
def test_its_bounds_hold_the_truth_of_float64_in_every_format(form):
    """Fixed beforehand: three nets, three rates; bfloat16 weights round the displaced weights too."""
    held, known = 0, 0
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3))
        x, y = torch.randn(256, 6), torch.randint(3, (256,))
        if form == "bfloat16":
            model, x = model.bfloat16(), x.bfloat16()
        for lr in (0.1, 1.0, 5.0):
            loss = (lambda o, t: cross_entropy(o.float(), t)) if form != "float32" else cross_entropy
            with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
                o = Objective(model, loss, (x, y))
                with o.ready():
                    gradients = torch.autograd.grad(o.mean(), list(model.parameters()))
                update = [-lr * g for g in gradients]
                found = critical_sharpness(o, update=update, lr=lr)
            if found.step.identified:
                known += 1
                held += found.step.low <= truth(model, x, y, update) <= found.step.high
    assert known >= 5
    assert held == known


def test_a_loss_too_coarse_to_show_the_update_is_not_identified():
    torch.manual_seed(0)
    model = nn.Linear(6, 3).bfloat16()
    x, y = torch.randn(16, 6).bfloat16(), torch.randint(3, (16,))
    update = [-1e-6 * torch.ones_like(p, dtype=torch.float32) for p in model.parameters()]
    found = critical_sharpness(Objective(model, nn.CrossEntropyLoss(), (x, y)), update=update)
    assert found.verdict == "not separable" or not found.step.identified


def test_a_warm_reading_takes_no_more_passes_and_agrees():
    model, x, y = net()
    o = Objective(model, cross_entropy, (x, y))
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    cold = critical_sharpness(o, optimizer)
    warm = critical_sharpness(o, optimizer, last=cold)
    assert warm.passes <= 4 < cold.passes <= 8
    assert max(warm.step.low, cold.step.low) <= min(warm.step.high, cold.step.high)


def test_directional_sharpness_is_the_quadratic_form():
    w = torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64)
    model = Parabola(w.tolist())
    u = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = directional_sharpness(objective(model), [u])
    assert found.curvature.value == pytest.approx(float(u @ H @ u / (u @ u)))
    assert found.slope.value == pytest.approx(float(H @ w @ u / u.norm()))
    g = H @ w
    along = directional_sharpness(objective(model), [-g], lr=0.1)
    assert along.sharpness.value == pytest.approx(float(g @ H @ g / (g @ g)) / 0.1)


def test_critical_and_directional_sharpness_agree_where_the_loss_is_a_parabola_also_for_adam():
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3).double(), torch.randn(64, 6).double(), torch.randn(64, 3).double()
    o = Objective(model, nn.MSELoss(), (x, y))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    with o.ready():
        gradients = torch.autograd.grad(o.mean(), list(model.parameters()))
    update = coming_update(optimizer, list(model.parameters()), gradients)
    found, quadratic = critical_sharpness(o, optimizer, tol=0.001), directional_sharpness(o, update, lr=0.01)
    assert found.sharpness.value == pytest.approx(quadratic.sharpness.value, rel=0.001)
    assert found.passes <= 6


def test_mistakes_are_told():
    model, x, y = net()
    o = Objective(model, cross_entropy, (x, y))
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(ValueError, match="either the optimizer or an update"):
        critical_sharpness(o)
    with pytest.raises(ValueError, match="not in the optimizer"):
        critical_sharpness(o, other)
    with pytest.raises(ValueError, match="zero everywhere"):
        critical_sharpness(o, torch.optim.SGD(model.parameters(), 0.0))
    with pytest.raises(ValueError, match="no gradients"):
        critical_sharpness(o, torch.optim.SGD(model.parameters(), 0.1), own_gradients=True)
    with pytest.raises(ValueError, match="one tensor for each"):
        critical_sharpness(o, update=[torch.zeros(1)])

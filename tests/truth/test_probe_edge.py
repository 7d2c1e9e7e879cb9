"""The gauge of the edge of stability against dense eigenvalues in float64 and planted cases; batch sharpness and SGD's conditions against closed forms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.optim.adam import adamw
from velodrome.optim.lion import lion
from velodrome.optim.sgd import sgd
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.preconditioned import preconditioner
from velodrome.probes.edge.batch_sharpness import along_gradients, batch_sharpness
from velodrome.probes.edge.gauge import edge, verdict
from velodrome.probes.edge.thresholds import threshold
from velodrome.probes.edge.trace import sgd_conditions
from velodrome.probes.estimate import Estimate
from velodrome.probes.objective import Objective


def net(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    return model, torch.randn(64, 6).to(dtype), torch.randint(3, (64,))


def stepped(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()


def dense_ratio(objective: Objective, optimizer: Any) -> float:
    """The largest eigenvalue of the folded operator, by a dense decomposition."""
    H = hessian(objective).dense()
    places = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    t = [threshold(optimizer, places[id(p)]) for p in objective.params.values()]
    sizes = [p.numel() for p in objective.params.values()]
    scale = torch.cat([torch.full((n,), a.scale, dtype=torch.float64) for a, n in zip(t, sizes, strict=True)])
    l2 = torch.cat([torch.full((n,), a.l2, dtype=torch.float64) for a, n in zip(t, sizes, strict=True)])
    root = (scale / preconditioner(optimizer, objective.params)).sqrt()
    return float(torch.linalg.eigvalsh(root[:, None] * (H + torch.diag(l2)) * root)[-1])


MAKERS = {
    "gradient descent": lambda m: torch.optim.SGD(m.parameters(), 0.3, weight_decay=0.1),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.1),
    "ours": lambda m: adamw(m, 0.01, weight_decay=0.1),
    "our SGD": lambda m: sgd(m, 0.1, momentum=0.9, weight_decay=0.05),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), 0.01),
    "groups": lambda m: torch.optim.Adam(
        [{"params": m[0].parameters(), "lr": 0.02, "betas": (0.5, 0.99)}, {"params": [*m[2].parameters(), *m[3].parameters()]}], 0.005
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_converged_reading_is_the_dense_largest_eigenvalue_over_the_threshold(name):
    model, x, y = net()
    optimizer = MAKERS[name](model)
    stepped(model, optimizer, x, y)
    objective = Objective(model, cross_entropy, (x, y))
    truth = dense_ratio(objective, optimizer)
    found = edge(objective, optimizer, tol=1e-8, products=90)
    assert found.ratio.value == pytest.approx(truth, rel=1e-8)
    assert found.headroom == pytest.approx(1 / truth, rel=1e-8)
    rough = edge(objective, optimizer)
    assert rough.ratio.low <= truth * (1 + 1e-9)
    assert truth <= rough.ratio.high * (1 + 1e-9)
    assert rough.ratio.high - rough.ratio.low <= 0.03 * rough.ratio.value
    assert found.sharpness.identified == (name not in ("groups", "ours"))  # decay is for matrices only in ours: two thresholds
    if found.sharpness.identified:
        assert found.sharpness.value == pytest.approx(truth * found.thresholds[0].value)


@pytest.mark.parametrize(("factor", "where"), [(0.3, "below the edge"), (1.0, "at the edge"), (1.5, "above")])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_every_verdict_is_given_where_it_was_planted(kind, factor, where):
    """The rate is set to a multiple of the one that the dense eigenvalue makes marginal; Adam alone makes no edge."""
    model, x, y = net()
    optimizer = getattr(torch.optim, kind)(model.parameters(), 0.01)
    stepped(model, optimizer, x, y)
    objective = Objective(model, cross_entropy, (x, y))
    optimizer.param_groups[0]["lr"] = factor * 0.01 / dense_ratio(objective, optimizer)
    found = edge(objective, optimizer)
    assert found.verdict == where
    assert found.margin == pytest.approx(factor - 1, abs=0.03)


def test_bounds_that_straddle_a_limit_are_not_separable():
    bounds = lambda low, high: Estimate(low, "", high - low, low, high, "bound")  # noqa: E731
    assert verdict(bounds(0.85, 0.95)) == "not separable"
    assert verdict(bounds(1.05, 1.2)) == "not separable"
    assert verdict(bounds(0.5, 2.0)) == "not separable"
    model, x, y = net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    objective = Objective(model, cross_entropy, (x, y))
    optimizer.param_groups[0]["lr"] = 0.92 / dense_ratio(objective, optimizer)
    assert edge(objective, optimizer, products=2).verdict == "not separable"


def test_a_warm_reading_takes_few_products_and_still_finds_the_top():
    model, x, y = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    objective = Objective(model, cross_entropy, (x, y))
    stepped(model, optimizer, x, y)
    reading, errors, spent = edge(objective, optimizer), [], []
    for _ in range(12):
        stepped(model, optimizer, x, y, 3)
        reading = edge(objective, optimizer, last=reading)
        truth = dense_ratio(objective, optimizer)
        errors.append(abs(reading.ratio.value / truth - 1))
        spent.append(reading.ratio.cost["products"])
    assert sorted(errors)[10] < 0.03
    assert sum(spent) / 12 <= 5


def test_a_new_top_eigenvector_is_found_though_the_start_is_orthogonal_to_it():
    """Two parabolas; the second becomes ten times the first between readings. Only the random share of the start can see it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.h = torch.tensor([3.0, 1.0], dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return (0.5 * (self.h * self.w.square()).sum()).expand(len(x))

    model = Two()
    objective = Objective(model, lambda o, t: o, (torch.zeros(2, 1), torch.zeros(2)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = edge(objective, optimizer)
    model.h[1] = 30.0
    assert edge(objective, optimizer, last=first).ratio.value == pytest.approx(1.5)


def test_before_the_first_step_the_second_moment_of_the_step_to_come_is_asked_for():
    model, x, y = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    objective = Objective(model, cross_entropy, (x, y))
    with pytest.raises(ValueError, match="before_step=True"):
        edge(objective, optimizer)
    cross_entropy(model(x), y).mean().backward()
    early = edge(objective, optimizer, before_step=True, tol=1e-6, products=60)
    optimizer.step()
    with torch.no_grad():
        for p, g in zip(model.parameters(), [p.grad for p in model.parameters()], strict=True):
            p.add_(0.01 * g.sign() * (g.abs() / (g.abs() + 1e-8)))  # back: the first step of Adam is the sign
    assert edge(objective, optimizer, tol=1e-6, products=60).ratio.value == pytest.approx(early.ratio.value, rel=1e-4)


def test_a_reading_leaves_model_gradients_and_state_as_they_were_bit_for_bit():
    model, x, y = net(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    stepped(model, optimizer, x, y)
    grads = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in grads]
    before = [v.clone() for v in [*model.state_dict().values(), *(s for d in optimizer.state.values() for s in d.values())]]
    random = torch.get_rng_state()
    edge(Objective(model, cross_entropy, (x, y)), optimizer, before_step=True)
    batch_sharpness(Objective(model, cross_entropy, [(x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)]), 0.1)
    after = [*model.state_dict().values(), *(s for d in optimizer.state.values() for s in d.values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is g and torch.equal(g, c) for p, g, c in zip(model.parameters(), grads, copies, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, adamw], ids=["AdamW", "RMSprop", "Adagrad", "ours"]
)
def test_rows_that_the_optimizer_has_not_met_are_left_out_and_counted(make, scale):
    """Words 0 to 5 are trained on (with gradients clipped to a thousandth, too), 6 and 7 are only looked at: over P of eps their curvature is endless."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    optimizer, y = make(model.parameters(), 1e-3), torch.randint(3, (32,))
    met, both = torch.randint(6, (32, 3)), torch.randint(8, (32, 3))
    for _ in range(5):
        optimizer.zero_grad()
        (scale * cross_entropy(model(met), y).mean()).backward()
        optimizer.step()
    seen = Objective(model, cross_entropy, (both, y))
    found = edge(seen, optimizer, tol=1e-8, products=60)
    assert found.unmet == 2 * 4
    assert found.ratio.note.startswith("without 8 weights")
    assert float(found.vector[24:32].norm()) < 1e-6  # what is left of the random start
    p = preconditioner(optimizer, seen.params)
    group = optimizer.param_groups[0]
    lr = threshold(optimizer, group).scale  # one for all but the chain's biases, whose decay is none
    known = torch.cat([torch.ones(24), torch.zeros(8), torch.ones(39)]).double()
    root = (known * lr / p).sqrt()
    truth = float(torch.linalg.eigvalsh(root[:, None] * hessian(seen).dense() * root)[-1])
    assert found.ratio.value == pytest.approx(truth, rel=1e-4)
    assert edge(Objective(model, cross_entropy, (met, y)), optimizer).unmet == 0


def test_gradient_descent_leaves_nothing_out_however_large_its_gradients_are():
    model, x, y = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert edge(Objective(model, lambda o, t: 1e6 * cross_entropy(o, t), (x, y)), optimizer).unmet == 0


def test_what_has_no_threshold_is_refused():
    model, x, y = net()
    objective = Objective(model, cross_entropy, (x, y))
    with pytest.raises(ValueError, match="critical"):
        edge(objective, lion(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="every rate is 0"):
        edge(objective, torch.optim.SGD(model.parameters(), 0.0))
    with pytest.raises(ValueError, match="tolerance"):
        edge(objective, torch.optim.SGD(model.parameters(), 0.1), tolerance=2.0)


class Linear(nn.Module):
    """Half of the squared product with each input: Hessians a a', one for each example."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.w).square()


def test_batch_sharpness_is_the_dense_quadratic_form_of_every_batch():
    model, x, y = net()
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)]
    found = along_gradients(Objective(model, cross_entropy, batches))
    for batch, value in zip(batches, found.tolist(), strict=True):
        H = hessian(Objective(model, cross_entropy, batch))
        g = H.gradient
        assert value == pytest.approx(float(g @ H.dense() @ g / (g @ g)), rel=1e-10)


def test_batch_sharpness_intervals_hold_the_truth_as_often_as_they_say():
    """Fixed beforehand: 200 repetitions of 16 batches of 4 from 64 inputs with replacement; the truth from 40,000 batches. 90 to 98 %."""
    g = torch.Generator().manual_seed(0)
    data = torch.randn(64, 5, dtype=torch.float64, generator=g) * torch.tensor([2.0, 1.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    w = torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    drawn = data[torch.randint(64, (40_000, 4), generator=g)]
    grads = (drawn * (drawn @ w)[..., None]).mean(1)
    truth = float(((drawn @ grads[..., None]).squeeze(-1).square().mean(1) / grads.square().sum(1)).mean())
    model, held = Linear(w.clone()), 0
    for _ in range(200):
        batches = [(data[torch.randint(64, (4,), generator=g)], torch.zeros(4)) for _ in range(16)]
        found = batch_sharpness(Objective(model, lambda o, t: o, batches, check=False), 0.1)
        held += found.value.low <= truth <= found.value.high
    assert 180 <= held <= 196


@pytest.mark.parametrize(
    ("rate", "momentum", "where"),
    [
        (0.2, 0.0, "below the edge"),
        (1.0, 0.0, "at the edge"),
        (2.0, 0.0, "above"),
        (0.05, 0.9, "below the edge"),
        (1.0, 0.9, "not separable"),
        (2.5, 0.9, "above"),
    ],
)
def test_batch_sharpness_judges_the_rate_and_knows_both_plateaus_of_momentum(rate, momentum, where):
    """All batches alike: the curvature along their gradients is 4, the edge of plain SGD at 0.5."""
    model = Linear(torch.tensor([1.0, 0.0], dtype=torch.float64))
    batch = torch.tensor([[2.0, 0.0]] * 4, dtype=torch.float64), torch.zeros(4)
    found = batch_sharpness(Objective(model, lambda o, t: o, [batch] * 8), rate * 0.5, momentum=momentum)
    assert found.ratio.value == pytest.approx(rate)
    assert found.verdict == where


def test_batch_sharpness_needs_eight_batches_of_one_size():
    model, x, y = net()
    with pytest.raises(ValueError, match="8 or more batches"):
        batch_sharpness(Objective(model, cross_entropy, [(x[:8], y[:8])] * 7), 0.1)
    with pytest.raises(ValueError, match=r"\[4, 8\]"):
        batch_sharpness(Objective(model, cross_entropy, [(x[:8], y[:8])] * 8 + [(x[:4], y[:4])]), 0.1)
    with pytest.raises(ValueError, match="lr must be above 0"):
        batch_sharpness(Objective(model, cross_entropy, [(x[:8], y[:8])] * 8), 0.0)


@pytest.mark.parametrize(("batch", "apart"), [(1, False), (4, False), (4, True), (16, True)])
def test_on_orthogonal_inputs_the_mean_square_condition_is_exact(batch, apart):
    """n = 16 orthogonal inputs of equal length: the second moment of every coordinate changes by a factor that is 1 exactly at ratio 1 (card W15)."""
    n, h = 16, 0.5
    inputs = (n * h) ** 0.5 * torch.eye(n, dtype=torch.float64)
    model = Linear(torch.ones(n, dtype=torch.float64))
    objective = Objective(model, lambda o, t: o, (inputs, torch.zeros(n)))
    c = (n - batch) / (n - 1) / batch if apart else 1 / batch
    marginal = 2 / (h * (1 - c) + c * n * h)
    for factor, where in ((0.5, "below the edge"), (1.0, "at the edge"), (1.3, "above")):
        found = sgd_conditions(objective, factor * marginal, batch, population=n if apart else None)
        assert found.ratio.value == pytest.approx(factor, rel=1e-3)
        assert found.verdict == where
        assert found.trace.value == pytest.approx(n * h, rel=1e-6)
    # one coordinate's second moment over one step, by the exact distribution of how often its input is drawn
    mean = batch / n
    square = mean if apart else mean**2 + mean * (1 - 1 / n)
    growth = 1 - 2 * marginal * h * n / batch * mean + (marginal * h * n / batch) ** 2 * square
    assert growth == pytest.approx(1)


def test_the_conditions_refuse_numbers_that_make_no_sense():
    model, x, y = net()
    objective = Objective(model, cross_entropy, (x, y))
    with pytest.raises(ValueError, match="batch_size from 1 to population"):
        sgd_conditions(objective, 0.1, 100, population=64)

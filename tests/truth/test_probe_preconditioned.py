"""Curvature as the optimizer feels it: P against the steps that torch's and our optimizers make, and the operator against the dense product."""

import threading

import pytest
import torch
from torch import nn

from velodrome.optim.adabelief import AdaBelief, adabelief
from velodrome.optim.adagrad import adagrad
from velodrome.optim.adam import Adam, adam, adamw
from velodrome.optim.amsgrad import amsgrad
from velodrome.optim.chain import Chain
from velodrome.optim.clip import ClipNorm
from velodrome.optim.descend import Descend
from velodrome.optim.lion import lion
from velodrome.optim.muon import muon
from velodrome.optim.nadam import nadamw
from velodrome.optim.radam import radam
from velodrome.optim.rmsprop import rmsprop
from velodrome.optim.sgd import sgd
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.operator import Matrix
from velodrome.probes.curvature.preconditioned import preconditioned, preconditioner
from velodrome.probes.edge.update import coming_update
from velodrome.probes.objective import Objective
from velodrome.probes.updates.rounding import rounding

LR = 0.01
KNOWN = {
    "torch Adam": lambda p: torch.optim.Adam(p, lr=LR),
    "torch Adam amsgrad": lambda p: torch.optim.Adam(p, lr=LR, amsgrad=True),
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.5, 0.9), eps=0.1, weight_decay=0.0),
    "torch RAdam": lambda p: torch.optim.RAdam(p, lr=LR, betas=(0.9, 0.9)),
    "torch Adamax": lambda p: torch.optim.Adamax(p, lr=LR),
    "torch RMSprop": lambda p: torch.optim.RMSprop(p, lr=LR),
    "torch RMSprop centred": lambda p: torch.optim.RMSprop(p, lr=LR, centered=True),
    "torch Adagrad": lambda p: torch.optim.Adagrad(p, lr=LR, lr_decay=0.3),
    "torch SGD": lambda p: torch.optim.SGD(p, lr=LR),
    "adam": lambda p: adam(p, lr=LR),
    "adamw": lambda p: adamw(p, lr=LR, eps=0.1, weight_decay=0.0),
    "amsgrad": lambda p: amsgrad(p, lr=LR, weight_decay=0.0),
    "amsgrad corrected": lambda p: amsgrad(p, lr=LR, weight_decay=0.0, variant="corrected"),
    "amsgrad paper": lambda p: amsgrad(p, lr=LR, weight_decay=0.0, variant="paper"),
    "radam": lambda p: radam(p, lr=LR, betas=(0.9, 0.9)),
    "adabelief": lambda p: adabelief(p, lr=LR),
    "adabelief rectified": lambda p: Chain(p, AdaBelief(rectify=True, betas=(0.9, 0.9)), Descend(), lr=LR),
    "rmsprop": lambda p: rmsprop(p, lr=LR),
    "rmsprop centred": lambda p: rmsprop(p, lr=LR, centered=True),
    "rmsprop tensorflow": lambda p: rmsprop(p, lr=LR, variant="tensorflow"),
    "adagrad": lambda p: adagrad(p, lr=LR, lr_decay=0.3),
    "sgd": lambda p: sgd(p, lr=LR),
}


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, (torch.randn(6, 4).double(), torch.randint(3, (6,)))


def backward(model, batch):
    model.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()


def flat(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


def steps(optimizer, model, batch, count=7):
    for _ in range(count):
        backward(model, batch)
        optimizer.step()


@pytest.mark.parametrize("name", KNOWN)
def test_the_step_is_the_rate_times_momentum_over_the_preconditioner(name):
    model, batch = problem()
    optimizer = KNOWN[name](model.parameters())
    steps(optimizer, model, batch)
    before = flat(model.parameters())
    backward(model, batch)
    optimizer.step()
    moved = before - flat(model.parameters())
    states = [optimizer.state.get(p, {}) for p in model.parameters()]
    keys = [k for k in states[0] if k == "exp_avg" or k.endswith(".m")]
    direction = flat(s[keys[0]] for s in states) if keys else flat(p.grad for p in model.parameters())
    P = preconditioner(optimizer, dict(model.named_parameters()))
    torch.testing.assert_close(LR * direction / P, moved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [nadamw, lambda p: torch.optim.NAdam(p)], ids=["ours", "torch"])
def test_nadam_divides_by_adams_corrected_root(make):
    model, batch = problem()
    optimizer = make(list(model.parameters()))
    steps(optimizer, model, batch, 3)
    b2 = 0.999
    v = flat(next(s[k] for k in ("exp_avg_sq", "nadam.v") if k in s) for s in (optimizer.state[p] for p in model.parameters()))
    torch.testing.assert_close(preconditioner(optimizer, dict(model.named_parameters())), (v / (1 - b2**3)).sqrt() + 1e-8)


@pytest.mark.parametrize("name", KNOWN)
def test_the_preconditioner_before_a_step_is_the_one_after_it(name):
    model, batch = problem()
    optimizer = KNOWN[name](model.parameters())
    params = dict(model.named_parameters())
    for _ in range(2):
        backward(model, batch)
        kept = [p.detach().clone() for p in params.values()], [p.grad.clone() for p in params.values()], str(optimizer.state_dict())
        ahead = preconditioner(optimizer, params, before_step=True)
        assert all(torch.equal(p, q) for p, q in zip(params.values(), kept[0], strict=True))
        assert all(torch.equal(p.grad, g) for p, g in zip(params.values(), kept[1], strict=True))
        assert str(optimizer.state_dict()) == kept[2]
        optimizer.step()
        assert torch.equal(ahead, preconditioner(optimizer, params))


def test_looking_ahead_steps_nothing_under_a_scheduler_or_hooks():
    model, batch = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    backward(model, batch)
    before = flat(model.parameters())
    preconditioner(optimizer, dict(model.named_parameters()), before_step=True)
    assert torch.equal(before, flat(model.parameters()))
    assert not optimizer.state
    assert not called


def test_a_clipped_gradient_enters_as_clipped():
    model, batch = problem()
    optimizer = Chain(model.parameters(), ClipNorm(1e-3), Adam(), Descend(), lr=LR)
    backward(model, batch)
    P = preconditioner(optimizer, dict(model.named_parameters()), before_step=True)
    assert (P / 0.1).norm() < 1.1e-3  # after one step P = (1 - beta1)(|g| + eps), and the clipped g is 1e-3 long


@pytest.mark.parametrize("name", ["torch AdamW", "adamw", "torch SGD", "rmsprop", "adagrad"])
def test_the_operator_is_the_dense_product(name):
    model, batch = problem()
    optimizer = KNOWN[name](model.parameters())
    steps(optimizer, model, batch, 2)
    optimizer.param_groups[0]["lr"] = 0.5
    H = hessian(Objective(model, nn.CrossEntropyLoss(), batch))
    P = preconditioner(optimizer, dict(model.named_parameters()))
    want = P.rsqrt()[:, None] * H.dense() * P.rsqrt()
    torch.testing.assert_close(preconditioned(H, optimizer).dense(), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(preconditioned(H, optimizer, fold_lr=True).dense(), 0.5 * want, rtol=1e-12, atol=1e-12)
    assert preconditioned(H, optimizer) @ torch.zeros(H.n, 3) is not None


def test_rates_of_groups_are_folded_in_by_their_parameters():
    model, batch = problem()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 4.0}, {"params": model[2].parameters(), "lr": 9.0}])
    operator = preconditioned(hessian(Objective(model, nn.CrossEntropyLoss(), batch)), optimizer, fold_lr=True)
    assert operator.scale.unique().tolist() == [2.0, 3.0]
    assert operator.scale[: model[0].weight.numel()].eq(2).all()


def test_dampening_scales_the_gradient_that_goes_in():
    model, _ = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, dampening=0.5)
    assert preconditioner(optimizer, dict(model.named_parameters())).eq(2).all()


def test_a_parameter_without_a_gradient_has_no_say():
    model, batch = problem()
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    optimizer = torch.optim.Adam(model.parameters())
    steps(optimizer, model, batch, 1)
    P = preconditioner(optimizer, dict(model.named_parameters()))
    assert P[:2].isinf().all()
    assert P[2:].isfinite().all()
    H = hessian(Objective(model, nn.CrossEntropyLoss(), batch))
    assert (preconditioned(H, optimizer) @ torch.ones(H.n)).isfinite().all()


def test_what_has_no_diagonal_is_refused_in_one_sentence():
    model, batch = problem()
    params = dict(model.named_parameters())
    H = hessian(Objective(model, nn.CrossEntropyLoss(), batch))
    backward(model, batch)
    for make in (lion, muon, lambda p: torch.optim.Rprop(p), lambda p: torch.optim.Adafactor(p)):
        with pytest.raises(ValueError, match="critical sharpness"):
            preconditioner(make([p for p in model.parameters() if p.ndim == 2]), {"0.weight": model[0].weight}, before_step=True)
    with pytest.raises(ValueError, match="no step yet"):
        preconditioned(H, torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="no step yet"):
        preconditioned(H, torch.optim.Adagrad(model.parameters()))
    with pytest.raises(ValueError, match="is not in the optimizer"):
        preconditioned(H, torch.optim.SGD(model[0].parameters(), lr=1))
    with pytest.raises(ValueError, match="over an objective"):
        preconditioned(Matrix(torch.eye(2)), torch.optim.SGD(model.parameters(), lr=1))
    with pytest.raises(ValueError, match="eps > 0"):
        without = torch.optim.Adam(model.parameters(), eps=0.0)
        model.zero_grad()
        for p in params.values():
            p.grad = torch.zeros_like(p)
        preconditioned(H, without, before_step=True)
    model.zero_grad()
    with pytest.raises(ValueError, match="between backward and step"):
        preconditioned(H, torch.optim.Adam(model.parameters()), before_step=True)


class Counting(torch.optim.SGD):
    """A user's optimizer with attributes of its own, which its step needs."""

    def __init__(self, params, lr):
        self.made = [0]
        super().__init__(params, lr)

    def step(self, closure=None):
        self.made.append(len(self.made))
        return super().step(closure)


def test_the_coming_step_of_a_users_own_optimizer_is_found_and_its_attributes_stay_as_they_were():
    model, batch = problem()
    optimizer = Counting(model.parameters(), LR)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # hangs a step on the instance
    backward(model, batch)
    (change, *_) = coming_update(optimizer, list(model.parameters()))
    assert torch.equal(change, (model[0].weight.detach() - LR * model[0].weight.grad) - model[0].weight.detach())
    with pytest.raises(ValueError, match="Counting has no diagonal P"):
        preconditioner(optimizer, dict(model.named_parameters()), before_step=True)
    assert optimizer.made == [0]
    with rounding(optimizer, model.to(torch.bfloat16)) as lost:
        pass
    assert set(lost.numbers) == {n for n, _ in model.named_parameters()}
    assert optimizer.made == [0]
    optimizer.handle = threading.Lock()
    with pytest.raises(ValueError, match=r"Counting\.handle cannot be copied"):
        coming_update(optimizer, list(model.parameters()))

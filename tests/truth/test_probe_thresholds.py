"""Thresholds of stability against the real optimizers, torch's and ours, on quadratics in float64: stable at 0.99 of them, unstable at 1.01."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from velodrome.averages.ema import EMA
from velodrome.optim.adagrad import adagrad
from velodrome.optim.adam import adam, adamw
from velodrome.optim.amsgrad import amsgrad
from velodrome.optim.chain import Chain
from velodrome.optim.clip import ClipNorm
from velodrome.optim.descend import Descend
from velodrome.optim.lion import lion
from velodrome.optim.muon import muon
from velodrome.optim.nadam import nadamw
from velodrome.optim.rmsprop import RMSProp, rmsprop
from velodrome.optim.sgd import Momentum, sgd
from velodrome.optim.sign import signum
from velodrome.optim.weight_decay import IndependentDecay, WeightDecay
from velodrome.probes.curvature.preconditioned import preconditioner
from velodrome.probes.edge.thresholds import Threshold, threshold

FROZEN = 1 - 1e-15  # a second moment that forgets nothing: the preconditioner holds still
LR = 0.1
V, T = 4.0, 10**6  # the second moment, and how long ago its run began: bias corrections are over
O = torch.optim

PLAIN: dict[str, Callable[[list[Tensor]], Any]] = {
    "GD": lambda p: O.SGD(p, LR),
    "GD with L2": lambda p: O.SGD(p, LR, weight_decay=0.5),
    "heavy ball": lambda p: O.SGD(p, LR, momentum=0.9),
    "dampened": lambda p: O.SGD(p, LR, momentum=0.8, dampening=0.3, weight_decay=0.2),
    "Nesterov": lambda p: O.SGD(p, LR, momentum=0.9, nesterov=True),
    "our GD": lambda p: sgd(p, LR, weight_decay=0.5),
    "our heavy ball": lambda p: sgd(p, LR, momentum=0.9),
    "our dampened": lambda p: sgd(p, LR, momentum=0.8, dampening=0.3, weight_decay=0.2),
    "our Nesterov": lambda p: sgd(p, LR, momentum=0.9, nesterov=True),
    "decoupled": lambda p: Chain(p, Momentum(0.5), WeightDecay(2.0), Descend(), lr=LR),
    "twice decayed, averaged": lambda p: Chain(p, WeightDecay(0.3), Momentum(0.5), WeightDecay(2.0), Descend(), EMA(0.9), lr=LR),
    "independent": lambda p: Chain(p, ClipNorm(1e100), Momentum(0.5), Descend(), IndependentDecay(0.1), lr=LR),
    "schedule alone": lambda p: Chain(p, Descend(), IndependentDecay(0.2, peak_lr=0.2), lr=LR),
}
ADAPTIVE: dict[str, Callable[[list[Tensor]], Any]] = {
    "Adam": lambda p: O.Adam(p, LR, (0.9, FROZEN)),
    "Adam without momentum": lambda p: O.Adam(p, LR, (0.0, FROZEN)),
    "Adam with L2": lambda p: O.Adam(p, LR, (0.5, FROZEN), weight_decay=0.5),
    "AdamW": lambda p: O.AdamW(p, LR, (0.9, FROZEN), weight_decay=3.0),
    "AMSGrad": lambda p: O.Adam(p, LR, (0.9, FROZEN), amsgrad=True),
    "NAdam": lambda p: O.NAdam(p, LR, (0.9, FROZEN)),
    "NAdamW": lambda p: O.NAdam(p, LR, (0.8, FROZEN), weight_decay=1.0, decoupled_weight_decay=True),
    "RMSprop": lambda p: O.RMSprop(p, LR, FROZEN),
    "RMSprop with momentum": lambda p: O.RMSprop(p, LR, FROZEN, momentum=0.9, weight_decay=0.3),
    "RAdam": lambda p: O.RAdam(p, LR, (0.7, FROZEN), weight_decay=1.0, decoupled_weight_decay=True),
    "Adamax": lambda p: O.Adamax(p, LR, (0.9, FROZEN)),
    "our adam": lambda p: adam(p, LR, (0.9, FROZEN), weight_decay=0.5),
    "our adamw": lambda p: adamw(p, LR, (0.9, FROZEN), weight_decay=3.0),
    "our amsgrad": lambda p: amsgrad(p, LR, (0.5, FROZEN)),
    "our nadamw": lambda p: nadamw(p, LR, (0.9, FROZEN), weight_decay=1.0),
    "AlgoPerf's nadamw": lambda p: nadamw(p, LR, (0.9, FROZEN), weight_decay=1.0, variant="algoperf"),
    "our rmsprop": lambda p: rmsprop(p, LR, FROZEN, momentum=0.9),
    "TensorFlow's rmsprop": lambda p: rmsprop(p, LR, FROZEN, momentum=0.9, variant="tensorflow"),
    "rmsprop, Nesterov": lambda p: Chain(p, RMSProp(FROZEN), Momentum(0.7, 0.0, True), WeightDecay(1.0), Descend(), lr=LR),
}
SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "v", "v_max")


def settle(optimizer: Any, p: Tensor) -> None:
    """A state as late in a run: the second moment at V, all corrections over, no momentum yet."""
    p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[p]
    for key, value in state.items():
        if key.rpartition(".")[2] in SECOND:
            value.fill_(V * (1 if key in ("square_avg", "exp_inf", "rmsprop.v") else 1 - FROZEN ** (T + 1)))
        if key.rpartition(".")[2] in ("mu_product", "product", "momentum_buffer", "b"):
            value.zero_()
    state["step"] = torch.tensor(float(T)) if isinstance(state["step"], Tensor) else T


def grows(make: Callable[[list[Tensor]], Any], factor: float, adaptive: bool) -> bool:
    """Whether 1e-12 becomes 1e-6 within 1,000 steps on a parabola with `factor` times the curvature of the threshold; else it has vanished."""
    p = torch.tensor([1e-12], dtype=torch.float64, requires_grad=True)
    optimizer = make([p])
    if adaptive:
        settle(optimizer, p)
    edge = threshold(optimizer)
    h = factor * edge.value * float(preconditioner(optimizer, {"p": p})) - edge.l2
    with torch.no_grad():
        p.fill_(1e-12)
    for _ in range(1000):
        p.grad = h * p.detach()
        optimizer.step()
        if abs(float(p.detach())) > 1e-6:
            return True
    assert abs(float(p.detach())) < 1e-13
    return False


@pytest.mark.parametrize("name", [*PLAIN, *ADAPTIVE])
def test_the_optimizer_is_stable_just_below_its_threshold_and_not_just_above(name):
    make = {**PLAIN, **ADAPTIVE}[name]
    assert not grows(make, 0.99, name in ADAPTIVE)
    assert grows(make, 1.01, name in ADAPTIVE)


@pytest.mark.parametrize(
    "make", [lambda p: O.Adagrad(p, LR, lr_decay=1e-6), lambda p: adagrad(p, LR, lr_decay=1e-6)], ids=["torch", "ours"]
)
def test_adagrad_has_the_threshold_of_gradient_descent_with_its_decay_of_the_rate_in_the_preconditioner(make):
    p = torch.tensor([1e-3], dtype=torch.float64, requires_grad=True)
    optimizer = make([p])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[p]
    for key in state:
        if key.rpartition(".")[2] in ("sum", "G"):
            state[key].fill_(1e30)  # gradients of 1 add nothing
    state["step"] = torch.tensor(1e6) if isinstance(state["step"], Tensor) else 10**6
    t = threshold(optimizer)
    for f, up in ((0.99, False), (1.01, True)):
        with torch.no_grad():
            p.fill_(1e-9)
        for _ in range(500):
            p.grad = f * t.value * float(preconditioner(optimizer, {"p": p})) * p.detach()
            optimizer.step()
        assert (abs(float(p.detach())) > 1e-9) == up


def test_thresholds_are_those_of_the_papers():
    p = [torch.zeros(1, requires_grad=True)]
    assert threshold(O.SGD(p, 0.1)).value == pytest.approx(2 / 0.1)
    assert threshold(O.Adam(p, 0.001)).value == pytest.approx(38 / 0.001)  # Cohen et al. 2022
    assert threshold(O.SGD(p, 0.1, momentum=0.9)).value == pytest.approx(2 * 1.9 / 0.1)  # Cohen et al. 2021, section 4
    assert threshold(O.SGD(p, 0.1, momentum=0.9, nesterov=True)).value == pytest.approx(2 * 1.9 / (0.1 * 2.8))
    assert threshold(O.AdamW(p, 0.1, weight_decay=1.0)).value == pytest.approx(1.9 * (2 - 0.1) / (0.1 * 0.1))
    assert threshold(O.SGD(p, 0.0)).value == float("inf")


def test_groups_of_different_optimizers_numbers_are_marginal_together_exactly_when_the_folded_operator_says_one():
    """Coupled curvature, two groups with other rates, momenta and decays: 0.99 decays, 1.01 grows."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, dtype=torch.float64, generator=g)
    H = A @ A.T
    groups = [(0.03, 0.9, 0.0), (0.2, 0.2, 1.5)]
    scale = torch.cat([torch.full((3,), Threshold(lr, (1 / (1 + mu)), wd).scale, dtype=torch.float64) for lr, mu, wd in groups])
    top = float(torch.linalg.eigvalsh(scale.sqrt()[:, None] * H * scale.sqrt())[-1])
    for f, up in ((0.99, False), (1.01, True)):
        a, b = (y.clone().requires_grad_() for y in torch.ones(6, dtype=torch.float64).split(3))
        made = [
            {"params": [p], "lr": lr, "rules": (Momentum(mu), WeightDecay(wd), Descend())}
            for p, (lr, mu, wd) in zip((a, b), groups, strict=True)
        ]
        chain = Chain(made, lr=0.1)
        sizes = []
        for _ in range(2000):
            grad = (f / top) * H @ torch.cat([a.detach(), b.detach()])
            a.grad, b.grad = grad[:3], grad[3:]
            chain.step()
            sizes.append(float(a.detach().norm() + b.detach().norm()))
        assert (max(sizes[-50:]) > max(sizes[1000:1050])) == up
        assert [threshold(chain, i).scale for i in (0, 1)] == pytest.approx([float(scale[0]), float(scale[3])])


@pytest.mark.parametrize("make", [lion, muon, signum], ids=["lion", "muon", "signum"])
def test_sign_and_orthogonal_updates_have_no_threshold_and_are_sent_to_critical_sharpness(make):
    optimizer = make([torch.zeros(3, 3, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=r"do not grow with the gradient.*critical_sharpness"):
        threshold(optimizer)


def test_what_the_table_does_not_hold_is_refused_by_name():
    p = [torch.zeros(2, 2, requires_grad=True)]
    for optimizer, name in (
        (O.Adadelta(p), "Adadelta"),
        (Chain(p, Momentum(0.5), Momentum(0.5), Descend(), lr=0.1), "momentum momentum2"),
        (Chain(p, RMSProp(), WeightDecay(0.1), Momentum(0.5), Descend(), lr=0.1), "rmsprop weightdecay momentum"),
    ):
        with pytest.raises(ValueError, match=name):
            threshold(optimizer)
    with pytest.raises(ValueError, match="maximize"):
        threshold(O.SGD(p, 0.1, maximize=True))

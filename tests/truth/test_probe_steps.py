"""The report of effective steps: every number against its definition in NumPy, the equilibrium against a random walk, and nothing is changed."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.models.mlp import Mlp
from velodrome.optim.adam import adam, adamw
from velodrome.optim.diffgrad import diffgrad
from velodrome.optim.lion import lion
from velodrome.optim.rmsprop import rmsprop
from velodrome.optim.sgd import sgd
from velodrome.probes.updates.steps import UNITS, effective_steps, medians, named, rotation

OPTIMIZERS = {
    "sgd": partial(sgd, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": partial(adamw, lr=1e-2, weight_decay=0.1),
    "lion": partial(lion, lr=1e-3, weight_decay=1.0),
    "torch AdamW": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, weight_decay=0.1),
    "torch SGD": lambda m: torch.optim.SGD(m.parameters(), 0.1, 0.9, weight_decay=1e-3),
    "torch RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), 1e-3),
    "torch LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), 0.1),
}


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def loss(m, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 4, 4, generator=g).to(next(m.parameters()).dtype)
    value = (m(x).float() - 1).square().mean()
    value.backward()
    return value


def step(m, optimizer, seed, probed=True):
    optimizer.zero_grad()
    closure = (lambda: loss(m, seed)) if isinstance(optimizer, torch.optim.LBFGS) else None
    if closure is None:
        loss(m, seed)
    if not probed:
        return optimizer.step(closure) if closure else optimizer.step()
    with effective_steps(optimizer, m) as report:
        optimizer.step(closure) if closure else optimizer.step()
    return report


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_looking_changes_neither_weights_nor_gradients_nor_state_bit_by_bit(name):
    looked, alone = model(), model()
    one, two = OPTIMIZERS[name](looked), OPTIMIZERS[name](alone)
    for i in range(5):
        step(looked, one, i)
        step(alone, two, i, probed=False)
    for p, q in zip(looked.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)
    mine, theirs = one.state_dict()["state"], two.state_dict()["state"]
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key].keys() == theirs[key].keys()


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "torch LBFGS"])
def test_the_numbers_are_their_definitions(name):
    m = model()
    optimizer = OPTIMIZERS[name](m)
    for i in range(3):
        before = {n: p.detach().double().numpy().copy() for n, p in m.named_parameters()}
        report = step(m, optimizer, i)
    lr = optimizer.param_groups[0]["lr"]
    assert set(report.parameters) == set(before)
    for n, p in m.named_parameters():
        w, new, found = before[n], p.detach().double().numpy(), report.parameters[n]
        change = new - w
        assert set(found) == set(UNITS)
        assert found["rms_update"] == pytest.approx(np.sqrt(np.mean(change**2)), rel=1e-12)
        assert found["relative_update"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(w), rel=1e-12)
        assert found["trust_ratio"] == pytest.approx(np.linalg.norm(w) / np.linalg.norm(change / lr), rel=1e-12)
        assert found["rotation"] == pytest.approx(np.arccos(np.sum(w * new) / np.linalg.norm(w) / np.linalg.norm(new)), rel=1e-6)
        rows = [np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(w, new, strict=True)] if w.ndim > 1 else []
        assert found["neuron_rotation"] == (pytest.approx(np.median(rows), rel=1e-6) if rows else None)
        assert found["unmoved"] == np.mean(new == w)  # every gradient here is non-zero
        assert report.about[n]["shape"] == tuple(p.shape)


def test_an_angle_is_right_where_the_arc_cosine_of_float32_is_not():
    for angle in (1e-6, 1e-4, 1e-2, 1.0, 3.0):
        a = torch.tensor([1.0, 0.0], dtype=torch.float64)
        b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert float(rotation(a, 5 * b)) == pytest.approx(angle, rel=1e-9)
    narrow = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(1e-4), math.sin(1e-4)])
    assert float(torch.arccos((narrow[0] @ narrow[1]).clamp(max=1))) == 0  # why it is not used
    assert float(rotation(*narrow)) == pytest.approx(1e-4, rel=1e-4)


@pytest.mark.parametrize(
    ("factory", "corrected"),
    [
        (lambda p, eps: adam(p, lr=1e-3, betas=(0.9, 0.99), eps=eps), True),
        (lambda p, eps: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.99), eps=eps), True),
        (lambda p, eps: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.99), eps=eps, amsgrad=True), True),
        (lambda p, eps: diffgrad(p, lr=1e-3, betas=(0.9, 0.99), eps=eps), False),
        (lambda p, eps: rmsprop(p, lr=1e-3, alpha=0.99, eps=eps), False),
        (lambda p, eps: torch.optim.RMSprop(p, lr=1e-3, alpha=0.99, eps=eps), False),
    ],
)
def test_the_share_of_eps_is_that_of_the_elements_whose_root_it_exceeds(factory, corrected):
    """Constant gradients of sizes 1e-1 to 1e-8, and one that never comes: v^ = g^2 after any number of steps, v = (1 - 0.99^t) g^2."""
    sizes = torch.tensor([10.0**-k for k in range(1, 9)] + [0.0], dtype=torch.float64)
    p = nn.Parameter(torch.ones(9, dtype=torch.float64))
    for eps in (2e-9, 2e-6, 2e-3, 2.0):
        optimizer = factory([p], eps)
        for _ in range(10):
            p.grad = sizes.clone()
            with effective_steps(optimizer) as report:
                optimizer.step()
        shrunk = 1.0 if corrected else (1 - 0.99**10) ** 0.5
        truth = np.mean([eps > shrunk * 10.0**-k for k in range(1, 9)])
        assert report.parameters["parameter 0 of group 0"]["eps_share"] == truth


def test_weights_in_bfloat16_that_do_not_move_are_counted():
    """Ones have neighbours 2^-7 above and 2^-8 below in bfloat16: an update of 1e-3 leaves 1.0 where it is, 0.01 moves it."""
    p = nn.Parameter(torch.tensor([1.0, 1.0, 0.01, 0.01], dtype=torch.bfloat16))
    optimizer = sgd([p], lr=1.0)
    p.grad = torch.tensor([1e-3, 0.0, 1e-3, 0.0], dtype=torch.bfloat16)
    with effective_steps(optimizer) as report:
        optimizer.step()
    found = report.parameters["parameter 0 of group 0"]
    assert found["unmoved"] == 0.5  # of the two that have a gradient, the large weight
    assert report.about["parameter 0 of group 0"]["dtype"] == "bfloat16"


def test_momentum_alone_is_reason_enough_to_move():
    p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))
    optimizer = sgd([p], lr=1e-3, momentum=0.9)
    for g in (1.0, 0.0):
        p.grad = torch.tensor([g, 0.0], dtype=torch.bfloat16)
        with effective_steps(optimizer) as report:
            optimizer.step()
    assert report.parameters["parameter 0 of group 0"]["unmoved"] == 1.0


def test_what_cannot_be_had_is_none_and_what_did_not_take_part_is_absent():
    m = Mlp(4, 3, 1, 2)
    for p in m.parameters():
        nn.init.zeros_(p)
    first, last = next(iter(m.parameters())), list(m.parameters())[-1]
    optimizer = sgd(m.parameters(), lr=0.0)
    last.grad = torch.ones_like(last)
    with effective_steps(optimizer, m) as report:
        optimizer.step()
    assert len(report.parameters) == 1
    (found,) = report.parameters.values()
    assert found["rms_update"] == 0
    assert found["unmoved"] == 1
    assert [found[n] for n in UNITS if n not in ("rms_update", "unmoved")] == [None] * 9
    assert first not in optimizer.state  # reading must not make an entry


def test_sparse_gradients_are_looked_at_too():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with effective_steps(optimizer, table) as report:
        optimizer.step()
    assert report.parameters["weight"]["rms_update"] == pytest.approx(0.1 / 2, rel=1e-6)  # two elements of eight by 0.1


def test_groups_hold_shares_over_elements_and_medians_over_tensors():
    m = model()
    optimizer = OPTIMIZERS["adamw"](m)
    report = step(m, optimizer, 0)
    named_ = list(named(optimizer, m))
    for i, group in enumerate(report.groups):
        mine = [(report.parameters[n], p.numel()) for n, j, _, p in named_ if j == i]
        rms = math.sqrt(sum(x["rms_update"] ** 2 * k for x, k in mine) / sum(k for _, k in mine))
        assert group["rms_update"] == pytest.approx(rms, rel=1e-12)
        assert group["relative_update"] == pytest.approx(np.median([x["relative_update"] for x, _ in mine]), rel=1e-12)
    assert report.groups[0]["equilibrium"] is not None
    assert report.groups[1]["equilibrium"] is None  # the biases do not decay


def test_several_reports_have_medians():
    m = model()
    optimizer = OPTIMIZERS["adamw"](m)
    reports = [step(m, optimizer, i) for i in range(5)]
    name = "3.weight"
    middle = medians(reports)
    assert middle.parameters[name]["rotation"] == np.median([r.parameters[name]["rotation"] for r in reports])
    assert middle.parameters["3.bias"]["neuron_rotation"] is None
    assert middle.about[name]["t"] == 5


WALKS = {
    "adamw": (lambda p: adamw(p, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.999)), 0.05),
    "torch AdamW": (lambda p: torch.optim.AdamW(p, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.999)), 0.05),
    "lion": (lambda p: lion(p, lr=4e-3, weight_decay=0.5, betas=(0.9, 0.99)), 0.10),
    "sgd": (lambda p: sgd(p, lr=0.1, momentum=0.9, weight_decay=2e-2), 0.05),
}


@pytest.mark.parametrize("name", WALKS)
def test_a_random_walk_rotates_as_the_equilibrium_says(name):
    """Kosson et al. 2024 (https://arxiv.org/abs/2305.17212): for gradients that are noise orthogonal to the weights, and smaller for longer ones."""
    make, within = WALKS[name]
    g = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(16, 256, generator=g) * (0.2 if name != "sgd" else 1.0))
    optimizer = make([p])
    found = []
    for i in range(1500):
        noise = torch.randn(p.shape, generator=g)
        w = p.detach()
        noise -= w * (noise * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
        p.grad = noise / w.norm(dim=1, keepdim=True)
        if i < 1400:
            optimizer.step()
            continue
        with effective_steps(optimizer) as report:
            optimizer.step()
        found.append(report.parameters["parameter 0 of group 0"])
    assert found[-1]["balance_steps"] == pytest.approx(12.5 if name == "sgd" else 250)
    assert np.mean([x["neuron_rotation"] for x in found]) == pytest.approx(found[-1]["equilibrium"], rel=within)


def test_rules_without_a_known_equilibrium_say_none():
    for factory in (
        partial(adam, weight_decay=0.1),
        partial(adamw, weight_decay=0.0),
        partial(sgd, momentum=0.9, nesterov=True, weight_decay=0.1),
    ):
        m = model()
        report = step(m, factory(m), 0)
        assert all(x["equilibrium"] is None and x["balance_steps"] is None for x in report.parameters.values())


def test_a_report_can_be_copied_and_names_come_from_the_model_the_group_or_the_place():
    m = model()
    report = step(m, OPTIMIZERS["adamw"](m), 0)
    assert copy.deepcopy(report).parameters == report.parameters
    optimizer = sgd([("mine", nn.Parameter(torch.ones(2)))], lr=0.1)
    assert [n for n, *_ in named(optimizer)] == ["mine"]
    assert [n for n, *_ in named(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1))] == ["parameter 0 of group 0"]

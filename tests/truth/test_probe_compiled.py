"""The compiled Hessian against the eager one. What the compiler makes of the linear half is checked by the operator itself; here it runs as recorded."""

import pytest
import torch
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Gpt
from velodrome.probes.curvature.compiled import CompiledHessian, compiled_hessian
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.objective import Objective

pytestmark = pytest.mark.filterwarnings("default")  # those of torch's compiler are torch's


def gpt():
    torch.manual_seed(0)
    draw = lambda n: (torch.randint(7, (n, 5)), torch.randint(7, (n, 5)))  # noqa: E731
    model = Gpt(7, 5, 4, 1, 1, tied=True).double()
    return model, Objective(model, cross_entropy, [draw(3), draw(2)])


def normalised():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    return model, Objective(model, cross_entropy, (torch.randn(6, 4).double(), torch.randint(3, (6,))), mode="train")


@pytest.mark.parametrize("make", [gpt, normalised])
def test_recorded_products_are_the_eager_ones_now_and_after_a_step(make):
    model, objective = make()
    C = compiled_hessian(objective, backend="eager")
    v = torch.randn(C.n).double()
    for _ in range(2):
        H = hessian(objective)
        assert (C @ v - H @ v).norm() <= 1e-13 * (H @ v).norm()
        assert (C.gradient - H.gradient).norm() <= 1e-13 * H.gradient.norm()
        assert C.loss == pytest.approx(H.loss, rel=1e-14)
        last = [C.names.index(n) for n in C.names[-2:]]
        part = torch.ones(C.on(last).n).double()
        assert (C.on(last) @ part - H.on(last) @ part).norm() <= 1e-13 * (H.on(last) @ part).norm()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        with pytest.raises(ValueError, match="the weights have changed"):
            C @ v
        halves = dict(C._halves)
        C.again()
        assert C._halves == halves


def test_recording_leaves_no_trace():
    model, objective = normalised()
    before, random = [x.clone() for x in (*model.parameters(), *model.buffers())], torch.get_rng_state()
    compiled_hessian(objective, backend="eager") @ torch.ones(objective_size(objective))
    assert all(torch.equal(a, b) for a, b in zip((*model.parameters(), *model.buffers()), before, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def objective_size(objective):
    return sum(p.numel() for p in objective.params.values())


def test_a_product_that_is_off_is_refused(monkeypatch):
    _, objective = normalised()
    right = CompiledHessian.apply
    monkeypatch.setattr(CompiledHessian, "apply", lambda self, trace, pieces: [1.001 * x for x in right(self, trace, pieces)])
    with pytest.raises(ValueError, match=r"is off by 1\.0e-03"):
        compiled_hessian(objective, backend="eager")


def test_random_numbers_are_refused():
    model, objective = normalised()
    batch = objective.batches[0]
    with pytest.raises(ValueError, match="mode='eval'"):
        compiled_hessian(Objective(model, cross_entropy, batch, fix_random=True))

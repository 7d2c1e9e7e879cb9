"""SGD, Adam, AdamW and NAdam equal torch.optim to 1e-12 in float64: 50 steps, groups, schedules, a resume in the middle."""

from functools import partial

import pytest
import torch
from torch import nn

from velodrome.optim.adam import adam, adamw
from velodrome.optim.nadam import nadamw
from velodrome.optim.sgd import sgd

PAIRS = {
    "sgd": (partial(sgd, lr=0.05), partial(torch.optim.SGD, lr=0.05)),
    "sgd-decay": (partial(sgd, lr=0.05, weight_decay=0.1), partial(torch.optim.SGD, lr=0.05, weight_decay=0.1)),
    "momentum": (
        partial(sgd, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
    ),
    "nesterov": (
        partial(sgd, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "adam": (partial(adam, weight_decay=0.1), partial(torch.optim.Adam, weight_decay=0.1)),
    "adamw": (partial(adamw, weight_decay=0.1, betas=(0.8, 0.99)), partial(torch.optim.AdamW, weight_decay=0.1, betas=(0.8, 0.99))),
    "nadamw": (
        partial(nadamw, weight_decay=0.1),
        partial(torch.optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True),
    ),
}


@pytest.fixture(autouse=True)
def _double():
    """torch keeps NAdam's product of momenta in the default dtype: in float32 it would be torch that is off by 1e-8."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).double()


def groups(model: nn.Module) -> list[dict]:
    parameters = list(model.parameters())
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.002, "weight_decay": 0.03}]


def run(factory, schedule, resume_at=None) -> torch.Tensor:
    model, generator = network(), torch.Generator().manual_seed(1)
    optimizer = factory(groups(model))
    scheduler = schedule(optimizer)
    for t in range(50):
        if t == resume_at:
            saved, position = optimizer.state_dict(), scheduler.state_dict()
            optimizer = factory(groups(model))
            scheduler = schedule(optimizer)
            optimizer.load_state_dict(saved)
            scheduler.load_state_dict(position)
        x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        if t < 7:  # a parameter whose first gradient arrives late
            model[3].bias.grad = None
        optimizer.step()
        scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("resume_at", [None, 23])
@pytest.mark.parametrize("name", PAIRS)
def test_fifty_steps_equal_torch_with_groups_and_a_schedule(name, resume_at):
    ours, theirs = PAIRS[name]
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=50)
    torch.testing.assert_close(run(ours, cosine, resume_at), run(theirs, cosine), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "nadamw"])
def test_one_cycle_drives_the_betas_of_a_group_as_in_torch(name):
    ours, theirs = PAIRS[name]
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=[0.01, 0.005], total_steps=60)
    torch.testing.assert_close(run(ours, cycle), run(theirs, cycle), rtol=1e-12, atol=1e-12)

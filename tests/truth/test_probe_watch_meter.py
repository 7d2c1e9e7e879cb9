"""What looking costs beside the looks, with clocks of its own: hooks, steps that a look made slower, getting ready, a first look dearer than believed."""

import random
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from velodrome.optim.lion import lion
from velodrome.probes.estimate import exact
from velodrome.probes.watch import watch
from velodrome.probes.watching.budget import Account
from velodrome.probes.watching.meter import Meter, cost_of_hooks
from velodrome.probes.watching.probe import Probe


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Costly(Probe):
    """Takes `cost` seconds, the first time `first`, and leaves the next step slower by `after`."""

    name, needs, prior, every = "costly", "gradient", 0.3, 10

    def __init__(self, clock, cost, first=None, after=0.0):
        self.clock, self.cost, self.first, self.after, self.left = clock, cost, first or cost, after, 0.0

    def measure(self, view):
        self.clock.now, self.first, self.left = self.clock.now + self.first, self.cost, self.after
        return {"x": exact(1.0, "")}


def trained(clock, probe, steps, way, noise=0.0, budget=0.05):
    """(the watch, its real share): seconds that would not have passed without it over those that would."""
    model, draw = nn.Linear(3, 2), random.Random(0)
    optimizer, alone = torch.optim.SGD(model.parameters(), 0.0), 0.0
    model(torch.randn(4, 3)).sum().backward()
    seen = watch(model, optimizer, budget, probes=[probe], clock=clock)
    for _ in range(steps):
        took = 1.0 + noise * draw.gauss(0, 1)
        alone += took
        slower, probe.left = probe.left, 0.0
        clock.now += took + slower
        if way == "told":
            seen.step()
        optimizer.step()
    seen.close()
    return seen, (clock.now - alone) / alone


@pytest.mark.parametrize("way", ["hooks", "told"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_step_that_a_look_made_slower_is_paid_by_looking(way, noise):
    """As dear as the look itself; with steps that differ by a tenth by chance, too."""
    clock = Clock()
    seen, share = trained(clock, Costly(clock, 0.2, after=0.2), 1500, way, noise)
    looks = seen.spent.counts["costly"]
    assert looks > 80
    assert seen.spent.after == pytest.approx(0.2 * looks, rel=0.02 if not noise else 0.25)
    assert 0.03 < share <= 0.05
    assert seen.spent.share == pytest.approx(share, abs=1e-3 if not noise else 6e-3)


def test_steps_that_differ_by_chance_alone_are_hardly_charged():
    """The sum of differences is a random walk of 0.1 step: its highest point over n touched steps is about 0.08 sqrt(n), here one or two steps of 1,500."""
    clock = Clock()
    seen, _ = trained(clock, Costly(clock, 0.05), 1500, "told", noise=0.1)
    assert seen.spent.counts["costly"] > 100
    assert seen.spent.after < 5.0


@pytest.mark.parametrize("way", ["hooks", "told"])
def test_a_first_look_dearer_than_believed_is_named_and_paid_back_before_the_next(way):
    """Fifty times the belief."""
    clock = Clock()
    probe = Costly(clock, 0.2, first=15.0)
    seen, share = trained(clock, probe, 250, way)
    assert seen.spent.counts["costly"] == 1
    assert seen.spent.deepest.startswith("first measurement of costly at step ")
    assert f"the {seen.spent.deepest} cost " in str(seen.spent)
    assert share > 0.05, "the one exception, and it has a name"
    clock = Clock()
    seen, share = trained(clock, Costly(clock, 0.2, first=15.0), 1500, way)
    assert seen.spent.counts["costly"] > 1
    assert share <= 0.05, "after a while the share is what it may be"


def test_of_probes_that_were_never_measured_one_is_at_a_time():
    account = Account(0.5, {"a": 1.0, "b": 1.0, "c": 1.0}, dict.fromkeys("abc", 1))
    for _ in range(20):
        account.earn(1.0, 1)
    for name in "abc":
        assert [n for n in account.due(20) if not account.costs[n].count] == [name]
        account.spend(name, 0.1, 20)


def test_hooks_of_every_step_and_getting_ready_are_charged():
    clock = Clock()
    account = Account(0.02, {"a": 1.0}, {"a": 1})
    meter = Meter(account, clock, torch.device("cpu"), 0.02)
    meter.charge_start(0.5)
    meter.each = 0.01
    meter.settle(0.0, 0)
    for t in range(1, 11):
        clock.now += 1.01
        meter.credit(t, touched=False)
        meter.settle(clock.now, t)
    assert account.trained == pytest.approx(10.0)
    assert meter.hooks == pytest.approx(0.1)
    assert account.spent == pytest.approx(0.6)
    assert account.due(10) == []
    assert account.credit == pytest.approx(0.2 - 0.6)


def test_what_hooks_cost_is_measured():
    """A clock that moves with every call of a hook's own code is not at hand; a real one finds microseconds, not milliseconds."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.0)
    seconds = cost_of_hooks(time.process_time, True)
    assert all(0 < s < 1e-3 for s in seconds)


def test_hooks_that_only_looks_need_are_on_at_looked_at_steps_alone():
    clock, on = Clock(), []
    model = nn.Linear(3, 2)
    optimizer, probe = torch.optim.SGD(model.parameters(), 0.0), Costly(clock, 0.2)
    with watch(model, optimizer, 0.05, probes=[probe], clock=clock) as seen:
        for _ in range(100):
            on.append(len(model._forward_pre_hooks) + len(optimizer._optimizer_step_pre_hooks))
            model(torch.randn(4, 3)).sum().backward()
            clock.now += 1.0
            optimizer.step()
    looked = {row.step for row in seen.rows}
    assert len(looked) > 5
    assert {i for i, n in enumerate(on) if n == 2} == looked
    assert sum(on) <= 2 * len(looked) + 3, "and until the first batch has been seen"


def test_an_optimizer_without_a_threshold_is_read_by_forward_passes():
    torch.manual_seed(0)
    clock, model = Clock(), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer, criterion = lion(model, lr=1e-3), nn.CrossEntropyLoss()
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    with watch(model, optimizer, 1.0, loss=criterion, probes=["sharpness"], clock=clock) as seen:
        for _ in range(120):
            criterion(model(x), y).backward()
            clock.now += 1
            optimizer.step()
            optimizer.zero_grad()
    found = [row for row in seen.rows if row.name == "sharpness/critical"]
    assert found, seen.log
    assert all(row.estimate.low <= row.value <= row.estimate.high for row in found if row.estimate.identified)
    assert any(row.estimate.identified for row in found)


def test_noise_that_hooks_see_under_several_processes_is_labelled_as_of_this_one():
    clock, model, criterion = Clock(), nn.Linear(6, 3), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with watch(model, optimizer, 1.0, loss=criterion, probes=["noise"], clock=clock) as seen:
        seen.ranks = SimpleNamespace(parallel=True, sharded=False, rank=1, size=2, agree=lambda numbers: numbers)
        for _ in range(40):
            criterion(model(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
            clock.now += 1
            optimizer.step()
            optimizer.zero_grad()
    notes = {row.estimate.note for row in seen.rows if row.name == "noise/scale"}
    assert notes
    assert all("process 1's own 8 examples" in note for note in notes), notes

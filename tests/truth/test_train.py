"""The loop: what the clock counts, what the guard sees, what divergence and resuming do."""

import copy
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.bench.unit_seconds import spent_on_updates
from velodrome.data.stream import Batch
from velodrome.gradients.backward import backward as compiled_backward
from velodrome.guard import digest_on_device
from velodrome.losses.squared_error import squared_error
from velodrome.optim.adam import adamw
from velodrome.optim.muon import muon
from velodrome.optim.sgd import sgd
from velodrome.optim.shampoo import shampoo
from velodrome.optim.soap import soap
from velodrome.train import set_lr, train


def network(seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 70), nn.BatchNorm1d(70), nn.Tanh(), nn.Dropout(0.2), nn.Linear(70, 3))


def batches(n, size=8):
    g = torch.Generator().manual_seed(7)
    for _ in range(n):
        x = torch.randn(size, 4, generator=g)
        yield Batch(x, x[:, :3].sin())


def backward(model):
    def gradient(batch):
        loss = (model(batch.inputs) - batch.targets).square().mean()
        loss.backward()
        return loss.detach()

    return gradient


class Clock:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_clock_counts_data_gradient_and_optimizer_and_nothing_of_the_reader():
    model, clock = network(), Clock()
    optimizer = sgd(model.parameters())

    def slow_data():
        for batch in batches(10):
            clock.now += 0.5
            yield batch

    def slow_gradient(batch):
        clock.now += 2.0
        return backward(model)(batch)

    optimizer.register_step_pre_hook(lambda *_: setattr(clock, "now", clock.now + 0.25))
    for step in train(slow_gradient, optimizer, slow_data(), clock=clock, model=model):
        clock.now += 1000.0  # the reader evaluates
    assert (step.data_seconds, step.gradient_seconds, step.optimizer_seconds) == (5.0, 20.0, 9 * 0.25)
    assert step.seconds == 5.0 + 20.0 + 2.25
    assert (step.t, step.examples, step.tokens) == (9, 80, None)


def test_the_loop_gives_the_same_weights_as_a_hand_written_one():
    one, two = network(), network()
    a, b = adamw(one.parameters()), adamw(two.parameters())
    torch.manual_seed(3)
    for _ in train(backward(one), a, batches(20), model=one):
        pass
    torch.manual_seed(3)
    for i, batch in enumerate(batches(20)):
        backward(two)(batch)
        if i < 19:
            b.step()
            b.zero_grad()
    # the loop has made the update of the last step before it found that the batches had ended
    b.step()
    for p, q in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(p, q)


WRITES = {
    "in place": lambda m: m[0].weight.detach().add_(1e-3),
    "one bit through .data": lambda m: m[0].weight.data.view(torch.int32)[0, 0].bitwise_xor_(1),
    "a sign flip through .data": lambda m: m[0].weight.data.neg_(),
    "an exchange of rows through .data": lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(0)),
    "another tensor as .data": lambda m: setattr(m[0].weight, "data", m[0].weight.data + 1),
    "a bias of three": lambda m: m[4].bias.data.mul_(1.001),
    "a gradient": lambda m: m[4].weight.grad.mul_(0.5),
    "a gradient through .data": lambda m: m[4].weight.grad.data.zero_(),
    "another gradient": lambda m: setattr(m[4].weight, "grad", m[4].weight.grad.clone()),
    "no gradient": lambda m: setattr(m[4].weight, "grad", None),
    "a running mean": lambda m: m[1].running_mean.data.add_(1),
    "a forward pass in training mode": lambda m: m(torch.randn(9, 4)),
    "an integer buffer": lambda m: m[1].num_batches_tracked.add_(1),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_reader_that_writes_is_an_error_that_names_the_tensor(what):
    model = network()
    with pytest.raises(ValueError, match="the reader of step 2 changed"):
        for step in train(backward(model), sgd(model.parameters()), batches(5), model=model):
            if step.t == 2:
                WRITES[what](model)


def test_a_reader_that_only_looks_is_not_an_error():
    model = network()
    for step in train(backward(model), sgd(model.parameters()), batches(5), model=model):
        model.eval()
        model(step.batch.inputs)
        model.train()
        copy.deepcopy(model)[0].weight.data.zero_()
        sum(p.grad.norm() for p in model.parameters())
    assert step.t == 4


@pytest.mark.parametrize("what", ["one bit", "a sign flip", "an exchange of rows", "the last of an odd number"])
def test_large_tensors_are_guarded_by_their_digest(what):
    model = nn.Linear(301, 301, bias=False)  # beyond what is copied, and an odd number of elements
    write = {
        "one bit": lambda w: w.view(torch.int32)[7, 7].bitwise_xor_(1),
        "a sign flip": lambda w: w.neg_(),
        "an exchange of rows": lambda w: w.copy_(w.flip(0)),
        "the last of an odd number": lambda w: w[-1, -1].mul_(1.001),
    }
    data = [Batch(torch.randn(2, 301), torch.zeros(2, 301))] * 4
    with pytest.raises(ValueError, match="step 1 changed weight"):
        for step in train(backward(model), sgd(model.parameters()), data, model=model):
            if step.t == 1:
                write[what](model.weight.data)


@pytest.mark.parametrize("shape", [(3,), (1021, 6), (5, 4099)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_digest_on_a_device_sees_every_single_bit(shape, dtype):
    """The one for GPUs, run here on the CPU."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole, flat = digest_on_device(x), x.view(-1)
    for i in range(0, x.numel(), max(1, x.numel() // 50)):
        y = flat.clone()
        y.view(torch.uint8)[i * x.element_size()].bitwise_xor_(1 << i % 8)
        assert digest_on_device(y.view(shape)) != whole
    assert digest_on_device(x.clone()) == whole
    assert digest_on_device(x.flip(0)) != whole


def test_bfloat16_and_non_contiguous_parameters_are_guarded_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).to(memory_format=torch.channels_last, dtype=torch.bfloat16)
    data = [Batch(torch.randn(2, 3, 5, 5, dtype=torch.bfloat16), torch.zeros(2, 8, 3, 3, dtype=torch.bfloat16))] * 3
    with pytest.raises(ValueError, match=r"step 1 changed 0\.weight"):
        for step in train(backward(model), sgd(model.parameters()), data, model=model):
            if step.t == 1:
                model[0].weight.data[0, 0, 0, 0] = 9


@pytest.mark.parametrize(("value", "name"), [(math.nan, "nan"), (math.inf, "inf"), (1e4, "exploded")])
def test_divergence_is_a_value_and_the_update_is_not_made(value, name):
    model = network()
    losses = iter([1.0, 0.9, *[value] * 20])

    def gradient(batch):
        backward(model)(batch)
        return torch.tensor(next(losses))

    steps = list(train(gradient, sgd(model.parameters(), lr=0.1), batches(20), model=model))
    assert [s.diverged for s in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].diverged == name
    assert len(steps) == (3 if name != "exploded" else 7)
    assert all(p.grad is not None for p in model.parameters())  # the pending update never came


def test_a_single_spike_is_not_a_divergence():
    model = network()
    losses = iter([1.0, 0.9, 1e4, 0.9, 1e4, 1e4, 1e4, 1e4, 0.8, 0.7])
    steps = list(train(lambda b: torch.tensor(next(losses)), sgd(model.parameters()), batches(10), model=model))
    assert len(steps) == 10
    assert steps[-1].diverged is None


@pytest.mark.parametrize("stop", [0, 6])
def test_going_on_from_a_yield_equals_never_having_stopped(stop):
    def state(model, optimizer, step, source):
        return copy.deepcopy(
            (model.state_dict(), [p.grad for p in model.parameters()], optimizer.state_dict(), step.state(), torch.get_rng_state(), source)
        )

    whole = network()
    torch.manual_seed(5)
    losses = [s.loss for s in train(backward(whole), muon(whole), list(batches(12)), lambda t: 0.01 / (1 + t), model=whole)]

    model = network()
    torch.manual_seed(5)
    optimizer, data = muon(model), list(batches(12))
    for step in train(backward(model), optimizer, data, lambda t: 0.01 / (1 + t), model=model):
        if step.t == stop:
            saved = state(model, optimizer, step, data[stop + 1 :])
            break
    model = network(seed=99)
    optimizer = muon(model)
    model.load_state_dict(saved[0])
    for p, g in zip(model.parameters(), saved[1], strict=True):
        p.grad = g
    optimizer.load_state_dict(saved[2])
    torch.set_rng_state(saved[4])
    rest = list(train(backward(model), optimizer, saved[5], lambda t: 0.01 / (1 + t), model=model, after=saved[3]))
    assert [s.loss for s in rest] == losses[stop + 1 :]
    assert (rest[-1].t, rest[-1].examples) == (11, 96)
    for p, q in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_flops_are_those_of_the_matrix_products():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    steps = list(train(backward(model), sgd(model.parameters()), batches(3), model=model))
    # forward 2·B·(4·6 + 6·3); backward: weights as much again, and the inputs of the second layer alone
    per_step = 2 * 8 * (24 + 18) * 2 + 2 * 8 * 18
    assert [s.flops for s in steps] == [per_step, 2 * per_step, 3 * per_step]


def test_attention_on_a_cpu_is_counted():
    """torch's own counter gives zero here (2.13): two products forward, five backward."""
    from velodrome.flops import counted

    q = torch.randn(2, 4, 32, 16, requires_grad=True)
    _, flops = counted(lambda: nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward())
    assert flops == 7 * 2 * 2 * 4 * 32 * 32 * 16


def test_the_flops_of_the_optimizer_are_counted():
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 1, bias=False))
    steps = list(train(lambda b: model(torch.ones(2, 8)).sum().backward() or torch.zeros(()), muon(model), batches(3), model=model))
    newton_schulz = 5 * (2 * 8 * 8 * 16 + 2 * 8 * 8 * 8 + 2 * 8 * 8 * 16)
    assert steps[1].flops - 2 * steps[0].flops == newton_schulz


@pytest.mark.parametrize("make", [soap, shampoo])
@pytest.mark.parametrize(("after", "longest"), [(None, 1000), (5, 1000), (5, 2)])
def test_an_optimizer_that_works_hard_every_third_step_is_charged_for_what_each_of_its_updates_really_did(
    make, after, longest, monkeypatch
):
    """Truth: every update of a twin counted by itself; also when a run goes on from the middle of a cycle, or has one too long to keep."""
    from velodrome.flops import counted

    monkeypatch.setattr("velodrome.flops.LONGEST", longest)

    def fresh():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False), nn.Linear(8, 1, bias=False))
        return model, make(model, lr=1e-3, precondition_frequency=3)

    def gradient(model):
        return lambda b: model(torch.ones(2, 8)).pow(2).sum().backward() or torch.zeros(())

    (twin, its), truth = fresh(), []
    for _ in range(12):
        gradient(twin)(None)
        truth.append(counted(its.step)[1])
        its.zero_grad()
    model, optimizer = fresh()
    steps = list(itertools.islice(train(gradient(model), optimizer, batches(13), model=model), after))
    if after is not None:  # its gradients are there, the update is pending
        steps += train(gradient(model), optimizer, batches(13 - after), model=model, after=steps[-1].state())
    spent = [b.flops - a.flops - steps[0].flops for a, b in itertools.pairwise(steps)]
    assert spent == truth
    assert len(set(truth)) > 1
    known = steps[-1].counters.update_flops or [*truth[:1], truth[2], truth[3], truth[1]]  # not kept: each was counted
    assert spent_on_updates(known, np.array([0, 1, 5, 12])).tolist() == [0, truth[0], sum(truth[:5]), sum(truth)]


def test_factorizations_cost_what_the_textbook_says():
    from velodrome.flops import counted

    a = torch.randn(3, 6, 6)
    positive = a @ a.mT + torch.eye(6)
    assert counted(torch.linalg.eigh, positive)[1] == 3 * 9 * 6**3
    assert counted(torch.linalg.qr, a)[1] == 3 * 8 * 6**3 // 3
    assert counted(torch.linalg.cholesky, positive)[1] == 3 * 6**3 // 3
    assert counted(torch.linalg.inv, positive)[1] == 3 * 2 * 6**3
    assert counted(torch.linalg.solve, positive, a)[1] == 3 * (2 * 6**3 // 3 + 2 * 6 * 6 * 6)
    assert counted(torch.linalg.svd, a)[1] == 3 * 26 * 6**3


def test_groups_keep_their_ratio_to_the_first():
    model = network()
    optimizer = muon(model, lr=0.02, adam_lr=0.005)
    for _ in train(backward(model), optimizer, batches(3), lambda t: [0.0, 0.01, 0.5][t], model=model):
        pass
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.125]
    set_lr(optimizer, 0.0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.0]


def test_an_optimizer_that_requires_a_closure_gets_the_loss_at_hand_and_then_new_ones():
    w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    scale = torch.tensor([1.0, 10.0], dtype=torch.float64)
    calls = []

    def gradient(batch):
        calls.append(w.detach().clone())
        loss = (scale * w.square()).sum()
        loss.backward()
        return loss.detach()

    optimizer = torch.optim.LBFGS([w], max_iter=20, line_search_fn="strong_wolfe")
    steps = list(train(gradient, optimizer, batches(4)))
    assert steps[1].loss < 1e-8  # a quadratic in two dimensions is solved in one step of its inner iterations
    assert not torch.equal(calls[0], calls[1])  # the gradient at the start was not computed twice


def test_the_first_call_of_a_process_is_charged_at_the_price_of_the_second():
    """It counts FLOPs and wakes libraries up, and in a race it would always be the reference that pays for that."""
    model, clock = network(), Clock()
    prices = iter([30.0, 2.0, 2.0, 5.0])

    def gradient(batch):
        clock.now += next(prices)
        return backward(model)(batch)

    seconds = [s.gradient_seconds for s in train(gradient, sgd(model.parameters()), batches(4), clock=clock, model=model)]
    assert seconds == [0.0, 4.0, 6.0, 11.0]


def test_a_gradient_that_an_earlier_loop_left_behind_is_not_added():
    model = network()
    model.eval()
    data = list(batches(1))
    for _ in range(2):
        for _ in train(backward(model), sgd(model.parameters()), data, model=model):
            left = model[0].weight.grad.clone()
            break
    (truth,) = torch.autograd.grad((model(data[0].inputs) - data[0].targets).square().mean(), model[0].weight)
    torch.testing.assert_close(left, truth)


class Sam(torch.optim.SGD):
    """Moves the weights before it calls its closure."""

    def step(self, closure):
        kept = [p.detach().clone() for p in self.param_groups[0]["params"]]
        for p in self.param_groups[0]["params"]:
            p.data.add_(p.grad, alpha=0.05 / (p.grad.norm() + 1e-12))
        closure()
        for p, value in zip(self.param_groups[0]["params"], kept, strict=True):
            p.data.copy_(value)
        super().step()


def test_an_optimizer_that_moves_the_weights_before_its_closure_gets_the_gradient_there():
    w = nn.Parameter(torch.tensor([2.0, 1.0]))

    def gradient(batch):
        loss = w.pow(4).sum()
        loss.backward()
        return loss.detach()

    for step in train(gradient, Sam([w], lr=0.01), batches(3)):
        if step.t == 1:
            start, direction = torch.tensor([2.0, 1.0]), 4 * torch.tensor([8.0, 1.0])
            there = start + 0.05 * direction / direction.norm()
            torch.testing.assert_close(w.detach(), start - 0.01 * 4 * there**3)


def test_compile_compiles_although_the_flops_of_the_first_batch_are_counted(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = nn.Linear(4, 3)
    gradient = compiled_backward(model, squared_error, compile=True)
    steps = list(train(gradient, sgd(model.parameters()), batches(4), model=model))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert steps[0].flops > 0
    torch._dynamo.reset()


def test_a_buffer_that_the_forward_pass_replaces_is_guarded():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen = self.seen + 1
            return super().forward(x)

    model = nn.Sequential(Counting())
    with pytest.raises(ValueError, match=r"step 1 changed 0\.seen"):
        for step in train(backward(model), sgd(model.parameters()), batches(4), model=model):
            if step.t == 1:
                model[0].seen.data.add_(1)


def test_sparse_gradients_pass_the_guard_and_writing_them_does_not():
    table = nn.Embedding(5, 2, sparse=True)

    def gradient(batch):
        loss = table(torch.tensor([1, 1, 3])).sum()
        loss.backward()
        return loss.detach()

    optimizer = torch.optim.SparseAdam(table.parameters())
    assert len(list(train(gradient, optimizer, batches(3), model=table))) == 3
    with pytest.raises(ValueError, match=r"changed weight\.grad"):
        for _ in train(gradient, optimizer, batches(3), model=table):
            table.weight.grad._values().mul_(2)


def test_a_group_that_begins_at_zero_stays_there_and_a_schedule_needs_a_rate():
    model = network()
    parameters = list(model.parameters())
    optimizer = sgd([{"params": parameters[:2], "lr": 0.0}, {"params": parameters[2:], "lr": 0.1}])
    set_lr(optimizer, 0.05)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.05]
    with pytest.raises(ValueError, match="has the learning rate 0"):
        set_lr(sgd(model.parameters(), lr=0.0), 0.1)


def test_a_run_that_goes_on_does_not_count_the_update_anew():
    model = network()
    optimizer = muon(model)
    steps = list(train(backward(model), optimizer, batches(3), model=model))
    state = steps[-1].state()
    assert state["update_flops"] > 0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    (more,) = train(backward(model), optimizer, batches(1), model=model, after={**state, "update_flops": 12345})
    assert more.flops - steps[-1].flops == 12345 + steps[0].flops

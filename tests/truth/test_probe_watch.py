"""Watching: nothing of the training is changed, whatever happens in a probe, and what is told is right.

The clock of these runs is moved by the loop alone, a second a step, so that looks cost nothing and every probe is measured as often as it may be.
"""

import copy
import json
import math
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.averages.schedule_free import schedule_free_adamw
from velodrome.data.stream import Batch
from velodrome.data.streams import Shuffled
from velodrome.gradients.backward import backward
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.optim.adam import adamw
from velodrome.optim.muon import muon
from velodrome.probes.estimate import exact
from velodrome.probes.watch import watch
from velodrome.probes.watching.probe import Probe
from velodrome.probes.watching.sinks import read
from velodrome.train import train


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def network(dropout=0.0, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12) if norm else nn.LayerNorm(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3)]
    return nn.Sequential(*layers)


def data(i):
    g = torch.Generator().manual_seed(i)
    return torch.randn(32, 6, generator=g), torch.randint(3, (32,), generator=g)


def state(model, optimizer):
    """All that training depends on, as bytes."""
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for held in optimizer.state_dict()["state"].values():
        tensors += [v for v in held.values() if isinstance(v, torch.Tensor)] if isinstance(held, dict) else [held]
    raw = b"".join(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors if isinstance(t, torch.Tensor))
    return raw, torch.get_rng_state().numpy().tobytes(), pickle.dumps((random.getstate(), np.random.get_state())), model.training


def trained(build, make=network, steps=60, probes=None, way="hooks", accumulate=1, autocast=False, scaler=False, compiled=None, zero=True):
    """(state at the end, losses, the watch): `probes` None for a run that is not watched."""
    model = make()
    optimizer, criterion, clock, found = build(model), nn.CrossEntropyLoss(), Clock(), []
    called = torch.compile(model, backend=compiled) if compiled else model
    grads = torch.amp.GradScaler("cpu", init_scale=64.0) if scaler else None
    seen = None
    if probes is not None:
        seen = watch(called, optimizer, 1.0, loss=criterion, probes=probes, clock=clock, fix_random=True)

    def loss_of(i):
        x, y = data(i)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return criterion(called(x), y) / accumulate

    for i in range(steps):
        for k in range(accumulate):
            loss = loss_of(accumulate * i + k)
            (grads.scale(loss) if grads else loss).backward()
        found.append(loss.item())
        if seen is not None and way == "told":
            seen.step(loss=loss, batch=data(accumulate * i))
        clock.now += 1.0
        if grads:
            grads.step(optimizer)
            grads.update()
        elif isinstance(optimizer, torch.optim.LBFGS):

            def closure(i=i):
                optimizer.zero_grad()
                again = loss_of(i)
                again.backward()
                return again

            optimizer.step(closure)
        else:
            optimizer.step()
        if zero or i < steps - 1:
            optimizer.zero_grad()
    if seen is not None:
        seen.close()
    return state(model, optimizer), found, seen


def groups(model):
    return torch.optim.AdamW([{"params": model[0].parameters(), "lr": 1e-2}, {"params": [*model[1].parameters(), *model[4].parameters()]}])


SGD = lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9)  # noqa: E731
OPTIMIZERS = {
    "sgd": SGD,
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 1e-2),
    "adamw for each": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, foreach=True),
    "adamw fused": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, fused=True),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), 0.1, max_iter=3),
    "groups": groups,
    "our adamw": lambda m: adamw(m, lr=1e-2),
    "our muon": lambda m: muon(m, lr=1e-2),
    "our schedule-free": lambda m: schedule_free_adamw(m, lr=1e-2),
}


def same(build, needed=("gradient", "update"), **how):
    """A watched run equals one that is not, bit for bit, and something was seen."""
    probes = how.pop("probes", "full")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Was asked to gather|.*cpp_wrapper")
        plain, plain_losses, _ = trained(build, **how)
        watched, losses, seen = trained(build, probes=probes, **how)
    assert losses == plain_losses
    assert watched == plain
    names = {r.name.split("/")[0] for r in seen.rows if not r.name.endswith("/failed")}
    assert set(needed) <= names, (names, seen.log)
    return seen


@pytest.mark.parametrize("way", ["hooks", "told"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_watched_run_is_the_unwatched_one_bit_for_bit(name, way):
    if name == "lbfgs" and way == "told":
        pytest.skip("its gradients are made inside the step")
    every = ("gradient", "update", "losses", "layers", "noise", "sharpness")
    needed = every if name in ("sgd", "adamw", "groups") else every[:4] if name != "lbfgs" else every[:2]
    same(OPTIMIZERS[name], needed, way=way, zero=False, steps=100)


@pytest.mark.parametrize("way", ["hooks", "told"])
@pytest.mark.parametrize(
    "how",
    [
        {"make": lambda: network(dropout=0.3)},
        {"make": lambda: network(norm=True)},
        {"accumulate": 3},
        {"autocast": True},
        {"scaler": True, "autocast": True},
        {"compiled": "eager"},
        {"compiled": "aot_eager"},
    ],
    ids=["dropout", "BatchNorm", "accumulation", "autocast", "GradScaler", "compiled", "compiled aot"],
)
def test_so_it_is_with_all_that_training_is_made_of(how, way):
    same(SGD, way=way, zero=False, **how)


def test_the_numbers_are_those_of_the_step():
    """Norm of the gradient, of the update and the angle of one step against plain float64."""
    model, clock = network().double(), Clock()
    optimizer, truth = torch.optim.SGD(model.parameters(), 0.1), {}
    with watch(model, optimizer, 1.0, probes=["gradient", "update"], clock=clock) as seen:
        for i in range(40):
            x, y = data(i)
            nn.functional.cross_entropy(model(x.double()), y).backward()
            grad = torch.cat([p.grad.flatten() for p in model.parameters()])
            before = torch.cat([p.detach().flatten() for p in model.parameters()])
            clock.now += 1
            optimizer.step()
            after = torch.cat([p.detach().flatten() for p in model.parameters()])
            u, v = before / before.norm(), after / after.norm()
            angle = 2 * math.atan2((u - v).norm(), (u + v).norm())
            truth[i] = {
                "gradient/norm": grad.norm(),
                "update/norm": after.norm(),
                "update/relative": (after - before).norm() / before.norm(),
                "update/angle": angle,
            }
            optimizer.zero_grad()
    checked = [(r.value, float(truth[r.step][r.name])) for r in seen.rows if r.name in truth[0]]
    assert len(checked) >= 8
    assert all(abs(a - b) <= 1e-10 * abs(b) for a, b in checked), checked


@pytest.mark.parametrize("way", ["hooks", "told"])
def test_the_noise_scale_is_that_of_a_loop_over_examples(way):
    """Of the steps that were looked at, in float64; the weights stand still, so that the gradient is far from zero in all of them."""
    torch.manual_seed(0)
    model, criterion, clock, pairs = nn.Linear(6, 3).double(), nn.CrossEntropyLoss(), Clock(), {}
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    each, twin = nn.CrossEntropyLoss(reduction="none"), copy.deepcopy(model)
    with watch(model, optimizer, 1.0, loss=criterion, probes=["noise"], clock=clock) as seen:
        for i in range(120):
            x, _ = data(i)
            x, y = x[:12].double() + 0.5, torch.zeros(12, dtype=torch.long)
            rows = [
                torch.cat([g.flatten() for g in torch.autograd.grad(v, twin.parameters(), retain_graph=True)]) for v in each(twin(x), y)
            ]
            squares, mean = torch.stack(rows).square().sum(1).mean(), torch.stack(rows).mean(0).square().sum()
            pairs[i] = (12 / 11 * (squares - mean), (12 * mean - squares) / 11)
            loss = criterion(model(x), y)
            loss.backward()
            clock.now += 1
            if way == "told":
                seen.step(loss=loss, batch=(x, y))
            optimizer.step()
            optimizer.zero_grad()
    found = [r for r in seen.rows if r.name == "noise/scale"]
    assert len(found) >= 8
    steps = [r.step for r in found]
    truth = float(sum(pairs[t][0] for t in steps) / sum(pairs[t][1] for t in steps))
    assert abs(found[-1].value - truth) < 1e-9 * truth
    assert found[-1].estimate.low < truth < found[-1].estimate.high
    shared = [r for r in seen.rows if r.name == "noise/coherence"][-1]
    assert abs(shared.value - 1 / (1 + truth)) < 1e-9
    assert shared.estimate.low < shared.value < shared.estimate.high


def test_a_spike_of_the_loss_is_named_with_its_step_though_nobody_looked_at_it():
    model, clock = network(), Clock()
    optimizer = SGD(model)
    seen = watch(model, optimizer, 1.0, probes=["losses"], clock=clock)
    for i in range(120):
        x, y = data(i)
        nn.functional.cross_entropy(model(x), y).backward()
        clock.now += 1
        seen.step(loss=torch.tensor(9.0 if i == 77 else 1.0 + 0.01 * (i % 5)))
        optimizer.step()
        optimizer.zero_grad()
    seen.close()
    spikes = [r for r in seen.rows if r.name == "losses/spike"]
    assert len(spikes) == 1
    assert spikes[0].estimate.note == "step 77: loss 9, usually 1.02"
    assert 77 not in {r.step for r in seen.rows}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loop_that_our_hooks_do_not_understand_is_not_stopped_by_them(parts):
    """Twice backward through one forward pass, or once through each of two."""

    def run(watched):
        model, clock = network(), Clock()
        optimizer = SGD(model)
        seen = watch(model, optimizer, 1.0, probes=["noise"], clock=clock) if watched else None
        for i in range(40):
            x, y = data(i)
            outputs = [model(x) for _ in range(parts)]
            for z in (outputs[0], outputs[-1]):
                nn.functional.cross_entropy(z, y).backward(retain_graph=True)
            clock.now += 1
            optimizer.step()
            optimizer.zero_grad()
        return state(model, optimizer), seen

    plain, watched = run(False), run(True)
    assert plain[0] == watched[0]
    whys = {1: "two backward passes went through one forward pass", 2: "the gradient of a step comes from several passes: tell the steps"}
    assert len(watched[1].log) == 1
    assert f"given up: ValueError: {whys[parts]}" in watched[1].log[0][2]


class Broken(Probe):
    name, needs, prior, every = "broken", "gradient", 0.1, 1

    def __init__(self, error, also=None):
        self.error, self.also = error, also

    def measure(self, view):
        torch.rand(3), random.random(), np.random.rand()
        raise self.error


def test_an_error_in_a_probe_is_its_result_and_training_goes_on():
    plain = trained(SGD)
    with pytest.warns(RuntimeWarning, match="broken could not be measured at step .*boom") as told:
        watched = trained(SGD, probes=[Broken(RuntimeError("boom")), "gradient"])
    assert watched[:2] == plain[:2]
    seen = watched[2]
    assert len(told) == 1, "told once"
    failed = [r for r in seen.rows if r.name == "broken/failed"]
    assert len(failed) == 3
    assert "boom" in failed[0].estimate.note
    assert not failed[0].estimate.identified
    assert [why for _, name, why in seen.log if name == "broken"] == ["RuntimeError: boom"] * 2 + ["given up: RuntimeError: boom"]
    assert any(r.name == "gradient/norm" for r in seen.rows)


def test_a_probe_that_cannot_be_measured_here_says_so_once():
    seen = trained(SGD, probes=[Broken(ValueError("not here"))])[2]
    assert len(seen.rows) == 1
    assert "given up" in seen.log[0][2]


def test_warnings_that_are_errors_do_not_end_a_training():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched = trained(SGD, probes=[Broken(RuntimeError("boom"))])
    assert watched[:2] == trained(SGD)[:2]


def test_an_interrupt_passes_through_and_the_hooks_are_off():
    model, clock = network(), Clock()
    optimizer = SGD(model)
    with pytest.raises(KeyboardInterrupt), watch(model, optimizer, 1.0, probes=[Broken(KeyboardInterrupt())], clock=clock):
        for i in range(60):
            x, y = data(i)
            nn.functional.cross_entropy(model(x), y).backward()
            clock.now += 1
            optimizer.step()
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_copies_and_pickles_of_the_model_do_not_take_the_watch_along():
    model = network()
    with watch(model, SGD(model), probes=["gradient"]) as seen:
        other = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        assert seen.t == 0
        assert torch.equal(other(data(0)[0]), again(data(0)[0]))


def test_in_the_loop_of_velodrome_looks_are_off_the_clock_and_change_nothing():
    def run(watched):
        model = network()
        optimizer = adamw(model, lr=1e-2)
        x, y = data(0)
        seen, seconds, losses = None, 0.0, []
        if watched:
            seen = watch(model, optimizer, 1.0, loss=cross_entropy, probes="full")
        for step in train(backward(model, cross_entropy), optimizer, Shuffled(x, y, 16, 0), model=model):
            losses.append(step.loss)
            if seen is not None:
                seen.step(loss=step.loss, batch=step.batch)
            if step.t == 150:
                seconds = step.seconds
                break
        return losses, state(model, optimizer), seen, seconds

    plain, watched = run(False), run(True)
    assert plain[0] == watched[0]
    assert plain[1] == watched[1]
    steps = {r.step for r in watched[2].rows if r.name == "update/norm"}
    assert steps
    assert max(steps) <= 150


def test_rows_survive_in_a_file_which_is_cut_where_a_run_goes_on(tmp_path):
    path = tmp_path / "deep" / "watch.jsonl"

    def go(start, steps, **more):
        model, clock = network(), Clock()
        optimizer = SGD(model)
        with watch(model, optimizer, 1.0, probes=["gradient"], sink=path, start=start, clock=clock, **more) as seen:
            for i in range(steps):
                x, y = data(i)
                nn.functional.cross_entropy(model(x), y).backward()
                clock.now += 1
                optimizer.step()
        return seen

    first = go(0, 80)
    rows = read(path)
    assert rows == [json.loads(json.dumps(r.plain())) for r in first.rows]
    assert set(rows[0]) == {"step", "name", "value", "error", "low", "high", "unit", "kind", "n", "note", "seconds"}
    with pytest.raises(ValueError, match="holds the rows of an earlier run: give another file, or start="):
        go(0, 5)
    with open(path, "ab") as file:
        file.write(b'{"step": 79, "na')  # killed in the middle of a line
    assert read(path) == rows
    second = go(40, 80)
    found = read(path)
    assert [r for r in found if r["step"] < 40] == [r for r in rows if r["step"] < 40]
    assert [r["step"] for r in found if r["step"] >= 40] == [r.step for r in second.rows]
    assert min(r.step for r in second.rows) >= 40


def test_sinks_may_be_functions_and_writers_and_a_broken_one_is_dropped():
    class Writer:
        def __init__(self):
            self.scalars = []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

    writer, lists, said = Writer(), [], []

    def broken(rows):
        raise OSError("disk full")

    model, clock = network(), Clock()
    optimizer = SGD(model)
    with watch(model, optimizer, 1.0, probes=["gradient"], sink=[writer, lists.append, broken], clock=clock) as seen:
        for i in range(60):
            x, y = data(i)
            nn.functional.cross_entropy(model(x), y).backward()
            clock.now += 1
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                optimizer.step()
            said += [str(w.message) for w in heard]
    assert len(said) == 1
    assert "takes no more rows since step" in said[0]
    assert "disk full" in said[0]
    assert [row for rows in lists for row in rows] == list(seen.rows)
    assert [(n, v, s) for n, v, s in writer.scalars if n == "gradient/norm"] == [
        (r.name, r.value, r.step) for r in seen.rows if r.name == "gradient/norm"
    ]


def test_what_cannot_be_watched_is_refused_in_one_sentence():
    model = network()
    optimizer = SGD(model)
    with pytest.raises(ValueError, match="there is no probe 'gradeint': did you mean 'gradient'"):
        watch(model, optimizer, probes=["gradeint"])
    with pytest.raises(ValueError, match="name of its own"):
        watch(model, optimizer, probes=["gradient", "gradient"])
    with pytest.raises(ValueError, match="trains no parameter of the model"):
        watch(network(), optimizer)
    with pytest.raises(ValueError, match=r"must be a torch.optim.Optimizer"):
        watch(model, "adam")
    with pytest.raises(ValueError, match="sink must be a path"):
        watch(model, optimizer, sink=3)
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


class Costly(Probe):
    name, needs, prior, every = "costly", "gradient", 1.0, 1

    def __init__(self, clock, cost):
        self.clock, self.cost = clock, cost

    def measure(self, view):
        self.clock.now += self.cost
        return {"x": exact(1.0, "")}


@pytest.mark.parametrize("way", ["hooks", "told"])
def test_a_run_spends_what_it_may_and_says_how_much_that_was(way):
    model, clock = network(), Clock()
    optimizer = SGD(model)
    with watch(model, optimizer, "5%", probes=[Costly(clock, 0.6)], clock=clock) as seen:
        for i in range(400):
            x, y = data(i)
            nn.functional.cross_entropy(model(x), y).backward()
            clock.now += 0.5
            if way == "told":
                seen.step()
            clock.now += 0.5
            optimizer.step()
            optimizer.zero_grad()
            assert seen.spent.seconds <= 0.05 * (i + 1)
    spent = seen.spent
    assert spent.overdrawn == 0
    assert spent.seconds == pytest.approx(0.6 * spent.counts["costly"])
    assert 0.03 < spent.share <= 0.04, "four fifths of the budget, the rest is for what no clock of the process sees"
    assert spent.budget == 0.05
    assert abs(spent.trained - 398) <= 1, "all but the first steps, which compile and fill caches"
    assert f"{spent.counts['costly']} times" in str(spent)


def test_a_batch_may_be_a_pair_or_a_batch():
    model, clock = network(), Clock()
    optimizer = SGD(model)
    seen = watch(model, optimizer, 1.0, probes=["gradient"], clock=clock)
    for i in range(30):
        x, y = data(i)
        nn.functional.cross_entropy(model(x), y).backward()
        clock.now += 1
        seen.step(loss=1.0, batch=Batch(x, y) if i % 2 else (x, y))
        optimizer.step()
    seen.close()
    assert seen.rows

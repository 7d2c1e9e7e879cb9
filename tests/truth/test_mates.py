"""Several processes for one run: the gradient of every step is that of one process, and so are the rows; a mate that dies costs nothing."""

import copy
import os
import shutil
import signal
import threading
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from velodrome.bench import fanout
from velodrome.bench.crews.mates import Mates, Shared, flattened, lend, number, shared, split, unflattened
from velodrome.bench.worker import Worker
from velodrome.data.stream import Batch
from velodrome.gradients.backward import backward
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.records.read import scan
from velodrome.train import train

SMOOTH = """
from dataclasses import replace
from torch import nn
from tests import tiny as t

def network():
    return nn.Sequential(t.Slow(), nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))

def smooth():
    return replace(t.tiny(), name="smooth", model=network)
"""


class Odd(nn.Module):
    """Layers of two types, one that is never used, one that is frozen, a buffer; a mistake on demand."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 7, dtype=torch.float64), nn.Linear(7, 3, dtype=torch.float32)
        self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(5, 5, dtype=torch.float64).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x):
        if bool((x[0] == 13.0).all()):
            raise RuntimeError("thirteen")
        return self.b(torch.tanh(self.a(self.frozen(x))).float()) * self.scale


@pytest.fixture
def mates(tmp_path):
    """Three of them as threads of this process; rank 0 is the test."""
    torch.manual_seed(1)
    model = Odd()
    groups: list[Mates | None] = [None] * 3

    def work(rank: int) -> None:
        store = dist.FileStore(str(tmp_path / "meeting"), 3)
        groups[rank] = Mates(dist.ProcessGroupGloo(store, rank, 3, timedelta(seconds=60)), torch.device("cpu"))
        if rank:
            other = copy.deepcopy(model)
            for p in other.parameters():
                p.data.fill_(torch.nan)  # only what rank 0 sends may count
            lend({number("odd"): backward(other, cross_entropy)}, groups[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (1, 2)]
    for thread in threads:
        thread.start()
    work(0)
    yield model, groups[0]
    groups[0].dismiss()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def example(count: int = 17) -> Batch:
    g = torch.Generator().manual_seed(2)
    return Batch(torch.randn(count, 5, generator=g, dtype=torch.float64), torch.randint(3, (count,), generator=g))


def test_the_gradient_of_three_processes_is_that_of_one(mates):
    model, group = mates
    alone = backward(model, cross_entropy)
    for batch in (example(), example(3), example(2)):  # parts of 5, 6 and 6; of one each; fewer than processes
        one = alone(batch, weight=0.3)
        one_gradient = [p.grad for p in model.parameters()]
        model.zero_grad()
        model.a.weight.grad = torch.ones_like(model.a.weight)  # what was accumulated before
        several = Shared(alone, "odd", group)(batch, weight=0.3)
        assert abs(float(one) - float(several)) < 1e-6
        model.a.weight.grad -= 1.0
        for a, p in zip(one_gradient, model.parameters(), strict=True):
            assert (a is None) == (p.grad is None)
            assert a is None or torch.allclose(a, p.grad, rtol=1e-5, atol=1e-7)
        assert torch.allclose(one_gradient[0], model.a.weight.grad, rtol=0, atol=1e-7)
        model.zero_grad()


def test_flops_are_those_of_the_whole_batch_and_training_is_that_of_one_process(mates):
    model, group = mates
    start = copy.deepcopy(model.state_dict())
    ends, costs = [], []
    alone = backward(model, cross_entropy)
    for gradient in (alone, Shared(alone, "odd", group)):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        steps = list(train(gradient, optimizer, [example(n) for n in (16, 17, 16, 9, 16)], model=model))
        ends.append(model.a.weight.detach().clone())
        costs.append([s.flops for s in steps])
    assert costs[0] == costs[1]
    assert torch.allclose(*ends, rtol=0, atol=1e-6)
    assert not torch.equal(ends[0], start["a.weight"])


def test_a_mistake_of_the_model_reaches_the_caller_and_the_mates_stay_in_step(mates):
    model, group = mates
    gradient = Shared(backward(model, cross_entropy), "odd", group)
    bad = example()
    bad.inputs[0] = 13.0
    with pytest.raises(RuntimeError, match="thirteen"):
        gradient(bad)
    model.zero_grad()
    assert torch.isfinite(gradient(example()))


def test_parts_cover_the_batch_and_what_is_flattened_comes_back():
    for examples, parts in ((16, 4), (17, 3), (5, 5), (100, 7)):
        bounds = split(examples, parts)
        assert [bounds[0][0], bounds[-1][1], len(bounds)] == [0, examples, parts]
        assert all(a[1] == b[0] for a, b in pairwise(bounds))
        assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1
    tensors = [torch.ones(2, 3), torch.arange(4.0, dtype=torch.float64), torch.zeros(()), torch.full((1, 2), 2.0, dtype=torch.float64)]
    back = unflattened(flattened(tensors), tensors)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, back, strict=True))


def test_without_a_job_a_gradient_is_computed_alone():
    alone = backward(nn.Linear(1, 1), cross_entropy)
    assert shared(alone, "odd") is alone


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the mate under /proc")
def test_a_run_of_two_processes_has_the_rows_of_one_though_a_mate_is_killed(tmp_path, monkeypatch):
    shutil.copy(Path(__file__).parent.parent / "tiny.py", tmp_path / "tiny.py")
    (tmp_path / "mine.py").write_text(SMOOTH)
    monkeypatch.chdir(tmp_path)

    def plan(root: str, processes: int) -> dict:
        setting = {"checkpoint_seconds": 0.1, "processes": processes}
        what = {"algorithms": ["adamw"], "workloads": ["mine.py:smooth"], "seeds": [0], "threads": 1, "setting": setting}
        return {"root": root, **what, "processes": processes}

    Worker({**plan("one", 1), "first": 0}, lambda line, flush: None).work()
    monkeypatch.setenv("TINY_DELAY", "0.02")
    killed: list[int] = []

    def kill(folder: str, state: dict) -> None:
        if not killed and state.get("t", 0) >= 30:
            worker = int((tmp_path / "two" / folder / "lock").read_text().split()[1])
            killed.append(int(Path(f"/proc/{worker}/task/{worker}/children").read_text().split()[0]))
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.2)

    states = fanout.run(plan("two", 2), 1, 1, kill)
    assert killed
    assert [s["state"] for s in states.values()] == ["finished"]
    (one,), (two,) = scan("one"), scan("two")
    assert len(two.environment) == 2
    assert two.recipe["processes"] == 2
    assert "processes" not in one.recipe
    for a, b in zip(one.rows, two.rows, strict=True):
        assert [a[k] for k in ("t", "examples", "flops")] == [b[k] for k in ("t", "examples", "flops")]
        assert abs(a["valid"] - b["valid"]) < 1e-5 * abs(a["valid"])

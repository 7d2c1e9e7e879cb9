"""Every variant and every rung of the ladders of scale: it builds, takes a batch and learns from it, and is as large as its name says."""

import math
from functools import cache

import pytest
import torch

from tests.tiny import load, network, tiny
from velodrome.bench.catalog import expanded, workload
from velodrome.bench.protocol import seed_everything
from velodrome.bench.robustness import scale_of
from velodrome.bench.suite import suite
from velodrome.bench.workload import Data, Variant, Workload
from velodrome.data.folder import find
from velodrome.discover import workload_names

LOADS = {"ratings+16x"}  # planted in ten seconds and 1.7 GB: its model is built, its data is not
BASES = {name: workload(name) for name in workload_names()}
ALL = [f"{name}+{v}" for name, w in BASES.items() for v in w.variants]
RUNGS = [name for name in ALL if scale_of(name) > 1]
FOLDERS = {"mnist": "mnist", "cifar10": "cifar10", "shakespeare": "shakespeare", "novels": "novels"}


def available(name: str) -> None:
    folder = FOLDERS.get(name.split("-")[0].split("+")[0])
    if folder is not None:
        try:
            find(folder)
        except ValueError:
            pytest.skip(f"the data folder has no {folder}")


@cache
def loaded(name: str) -> Data:
    available(name)
    return workload(name).load()


def count(w: Workload) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in w.model().parameters())


@pytest.mark.parametrize("name", [n for n in ALL if n not in LOADS])
def test_a_variants_model_takes_its_batch_and_one_step_leaves_a_finite_loss(name):
    w, data = workload(name), loaded(name)
    seed_everything(0)
    model = w.model()
    batch = next(data.stream(0))
    assert batch.examples == w.batch_size
    batch = batch.part(0, 8)  # of the largest rungs a whole one would take seconds
    losses = []
    for _ in range(2):
        loss = w.loss(model(batch.inputs), batch.targets).mean()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                if g is not None:
                    p.sub_(1e-3 * g)
    assert all(math.isfinite(x) for x in losses)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_has_as_many_times_the_parameters_and_examples_as_its_name_says(name):
    w, base = workload(name), BASES[name.split("+")[0]]
    scale = scale_of(name)
    assert w.scale == scale
    assert w.steps * w.batch_size == scale * base.steps * base.batch_size
    assert w.steps**2 == scale * base.steps**2
    assert abs(math.log(count(w) / count(base) / scale)) < math.log(1.05)
    assert not w.targets
    assert f"{scale} times the parameters" in w.summary


@pytest.mark.parametrize("name", [n for n in ALL if n not in LOADS])
def test_digests_differ_exactly_where_the_data_differ(name):
    about = BASES[name.split("+")[0]].variants[name.split("+")[1]]
    ours, theirs = loaded(name), loaded(name.split("+")[0])
    same = about.load is None or (about.scale > 1 and name not in ("stdlib-gpt+16x", "ratings+4x"))
    assert (ours.digest == theirs.digest) is same
    if about.load is not None and about.scale == 1:
        a, b = next(ours.stream(0)), next(theirs.stream(0))
        assert torch.equal(a.inputs, b.inputs)
        assert not torch.equal(a.targets, b.targets)


def test_every_workload_of_the_laptop_has_variants_of_two_kinds_or_more():
    for name in suite("laptop").workloads:
        assert len([v for v in BASES[name].variants.values() if v.scale == 1]) >= 2, name


def test_variants_of_robustness_are_of_scale_one_and_rungs_are_asked_for_by_name():
    names = expanded(["stdlib-gpt+all"])
    assert "stdlib-gpt+wide" in names
    assert all(scale_of(n) == 1 for n in names)
    ladder = suite("gpu").workloads
    assert expanded(["gpu"]) == list(ladder)
    assert [scale_of(n) for n in ladder if n.startswith("stdlib")] == [1, 4, 16]
    for name in ladder:
        assert workload(name).name == name
    assert set(suite("gpu").develop) < set(ladder)
    halves = {suite("laptop").develop, suite("laptop").confirm}
    assert all(any(n.split("+")[0] in half for half in halves) for n in ladder)
    assert all((n in suite("gpu").develop) is (n.split("+")[0] in suite("laptop").develop) for n in ladder)


@pytest.mark.parametrize(("name", "scale"), [("4x", 1), ("wide", 4), ("4x", 16)])
def test_a_variants_name_says_its_scale(name, scale):
    about = tiny()
    with pytest.raises(ValueError, match=rf"a variant named '{name}' has scale .*, got scale={scale}: name it '{scale}x'"):
        Workload(
            **{f: getattr(about, f) for f in ("name", "summary", "loss", "metric", "metric_name", "targets", "steps", "batch_size")},
            **{"cost": "", "seconds": 1.0, "load": load, "model": network, "variants": {name: Variant("", scale=scale)}},
        )

"""Watching with two processes: DDP and FSDP2 train as they do unwatched, decisions are the same on both, and numbers are those of the whole model."""

import json
import traceback
import warnings
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.watch import Watch, watch
from velodrome.probes.watching.chosen import chosen


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 1, bias=False), nn.Linear(1, 3)
    return nn.Sequential(*layers).double()


class Clock:
    """Each process has its own speed: what they measure differs, what they do must not."""

    def __init__(self, rank: int):
        self.now, self.rank = 0.0, rank

    def __call__(self) -> float:
        self.now += 0.003 * (1 + 3 * self.rank)
        return self.now


def run(spread: Any, own: slice, watched: bool, rank: int = 0, build: Any = None) -> tuple[list[torch.Tensor], Watch | None]:
    """Weights after 80 steps on this process's part of each batch."""
    model = network()
    outer = spread(model)
    optimizer, clock, seen = torch.optim.AdamW(model.parameters(), 1e-2), Clock(rank), None
    if watched:
        seen = watch(outer, optimizer, 0.3, loss=cross_entropy, probes=quick(), clock=clock)
    for i in range(80):
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 6, generator=g, dtype=torch.float64), torch.randint(3, (16,), generator=g)
        optimizer.zero_grad()
        loss = cross_entropy(outer(x[own]), y[own]).mean()
        loss.backward()
        clock.now += 1.0 + 0.5 * rank
        if seen is not None:
            seen.step(loss=loss, batch=(x[own], y[own]))
        optimizer.step()
    if seen is not None:
        seen.close()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    return whole, seen


def quick() -> list[Any]:
    """All, without waiting for what they are believed to cost."""
    probes = chosen("full")
    for p in probes:
        p.prior = 1.0
    return probes


def told(seen: Watch | None) -> dict[str, Any]:
    assert seen is not None
    first: dict[str, tuple[int, float | None, str]] = {}
    for r in seen.rows:
        first.setdefault(r.name, (r.step, r.plain()["value"], r.estimate.note))
    noise = [(r.step, r.plain()["value"]) for r in seen.rows if r.name == "noise/smoothed"]
    return {"noise": noise, "at": [(r.step, r.name.split("/")[0]) for r in seen.rows], "first": first, "log": seen.log}


def work(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    half, found = slice(8 * rank, 8 * rank + 8), {}
    mesh = init_device_mesh("cpu", (2,))

    def shard(model: nn.Module) -> nn.Module:
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    try:
        for name, spread in (("ddp", nn.parallel.DistributedDataParallel), ("fsdp", shard)):
            plain, _ = run(spread, half, False, rank)
            watched, seen = run(spread, half, True, rank)
            same = all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
            found[name] = {"same": same, **told(seen)}
    except Exception:
        found["error"] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either process found."""
    folder = tmp_path_factory.mktemp("watched")
    mp.spawn(work, (str(folder),), 2)
    both = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]
    for one in both:
        assert "error" not in one, one["error"]
    return both


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_watched_processes_end_with_the_weights_of_unwatched_ones_bit_for_bit(found, way):
    assert all(one[way]["same"] for one in found)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_both_processes_look_at_the_same_steps_though_one_is_slower(found, way):
    assert found[0][way]["at"] == found[1][way]["at"]
    assert {"gradient", "update"} <= {name for _, name in found[0][way]["at"]}


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["gradient/norm", "update/relative", "update/angle", "update/norm", "update/outward"])
def test_numbers_of_shards_and_replicas_are_those_of_one_process(found, way, name):
    """Those of the same step, of a run by one process with the whole batch."""
    for one in found:
        step, value, _ = one[way]["first"][name]
        truth = truths()[name][step]
        assert abs(value - truth) <= 1e-9 * abs(truth), (step, value, truth)


@cache
def truths() -> dict[str, dict[int, float]]:
    """Of every step, by hand."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    out: dict[str, dict[int, float]] = {
        n: {} for n in ("trace", "squared", "gradient/norm", "update/relative", "update/angle", "update/norm", "update/outward")
    }
    for i in range(80):
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 6, generator=g, dtype=torch.float64), torch.randint(3, (16,), generator=g)
        optimizer.zero_grad()
        losses = cross_entropy(model(x), y)
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(v, model.parameters(), retain_graph=True)]) for v in losses]
        squares, mean = torch.stack(rows).square().sum(1).mean(), torch.stack(rows).mean(0).square().sum()
        out["trace"][i], out["squared"][i] = float((squares - mean) * 16 / 15), float((16 * mean - squares) / 15)
        losses.mean().backward()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        out["gradient/norm"][i] = float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        u, v = before / before.norm(), after / after.norm()
        out["update/norm"][i] = float(after.norm())
        out["update/relative"][i] = float((after - before).norm() / before.norm())
        out["update/angle"][i] = float(2 * torch.atan2((u - v).norm(), (u + v).norm()))
        out["update/outward"][i] = float((after.norm() - before.norm()) / (after - before).norm())
    return out


def test_the_noise_scale_of_replicas_is_that_of_all_their_examples(found):
    """Moving averages over the steps that were looked at, by hand from single gradients of the whole batch."""
    truth = truths()
    for one in found:
        looked = sorted({step for step, name in one["ddp"]["at"] if name == "noise"})
        values, trace, squared = dict(one["ddp"]["noise"]), 0.0, 0.0
        for step in looked:
            trace, squared = 0.95 * trace + 0.05 * truth["trace"][step], 0.95 * squared + 0.05 * truth["squared"][step]
            if squared > 0:
                assert abs(values[step] - trace / squared) <= 1e-7 * trace / squared
        assert len(looked) >= 3


def test_what_is_not_exact_with_shards_is_refused_by_name_and_what_is_local_is_labelled(found):
    for rank, one in enumerate(found):
        refused = {name: why for _, name, why in one["fsdp"]["log"]}
        assert "sharded (FSDP2), and another forward pass would leave them gathered" in refused["layers"]
        assert "sharded (FSDP2), and second derivatives of shards are not exact" in refused["sharpness"]
        for name in ("layers/log_z", "sharpness/ratio"):
            assert f"of process {rank}'s 8 examples" in one["ddp"]["first"][name][2]

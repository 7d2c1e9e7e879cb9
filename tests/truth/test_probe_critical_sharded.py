"""Critical sharpness under FSDP2 on two gloo processes is that of one process with all examples, and the shards come back bit for bit."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.edge.critical import Critical, critical_sharpness
from velodrome.probes.objective import Objective

RATE = 0.3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(32, 6, dtype=torch.float64, generator=g), torch.randint(3, (32,), generator=g)


def look(model: nn.Module, x: Tensor, y: Tensor, processes: object = None) -> Critical:
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    cross_entropy(model(x), y).mean().backward()
    return critical_sharpness(Objective(model, cross_entropy, (x, y)), optimizer, own_gradients=True, tol=0.01, processes=processes)


def work(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    mesh = dist.init_device_mesh("cpu", (2,))
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x, y = data()
    before = [p.detach().to_local().clone() for p in model.parameters()]
    found = look(model, x[rank::2], y[rank::2], dist.group.WORLD)
    same = all(torch.equal(p.detach().to_local(), b) for p, b in zip(model.parameters(), before, strict=True))
    torch.save(
        {"low": found.step.low, "high": found.step.high, "same": same, "passes": found.passes, "loss": found.loss}, f"{folder}/{rank}"
    )
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_two_processes_find_the_step_that_one_finds(tmp_path: Path):
    model = network()
    alone = look(model, *data())
    mp.spawn(work, (str(tmp_path),), 2)
    both = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    assert both[0] == both[1]
    assert both[0]["same"]
    assert both[0]["loss"] == pytest.approx(alone.loss)
    assert max(both[0]["low"], alone.step.low) <= min(both[0]["high"], alone.step.high)
    assert both[0]["passes"] <= 8

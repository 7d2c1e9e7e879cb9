"""Several processes: who they are, sums over them, and one decision for all, without which their collectives would wait for each other for ever."""

from typing import Any

import torch
from torch import Tensor, nn


def plain(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and what torch.compile returned: its hooks and second derivatives are those of eager PyTorch."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it (FSDP2, a DTensor that is not replicated)."""
    placements = getattr(tensor, "placements", None)
    return placements is not None and any(p.is_shard() for p in placements)


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def copies(tensor: Tensor, size: int) -> float:
    """How many of `size` processes hold the same elements of it: a sum over all of them counts each so often."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return float(size)
    same = 1
    for dimension, placement in enumerate(getattr(tensor, "placements", ())):
        same *= mesh.size(dimension) if placement.is_replicate() else 1
    return same * size / mesh.size()


class Ranks:
    """The processes that train one model: `rank`, `size`; `sharded` if its parameters are divided among them."""

    def __init__(self, model: nn.Module):
        import torch.distributed as dist

        alive = dist.is_available() and dist.is_initialized()
        self.sharded = any(sharded(p) for p in model.parameters())
        parallel = self.sharded or any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())
        self.parallel = alive and dist.get_world_size() > 1 and parallel
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if self.parallel else (0, 1)
        device = local(next(model.parameters())).device
        self.device = device if self.parallel and dist.get_backend() == "nccl" else torch.device("cpu")

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the processes of float64 numbers; every process must call it."""
        if not self.parallel:
            return numbers
        import torch.distributed as dist

        moved = numbers.to(self.device)
        dist.all_reduce(moved)
        return moved.to(numbers.device)

    def agree(self, numbers: list[float]) -> list[float]:
        """The first process's numbers, everywhere; every process must call it with as many."""
        if not self.parallel:
            return numbers
        import torch.distributed as dist

        held: Any = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.broadcast(held, 0)
        return [float(x) for x in held.tolist()]

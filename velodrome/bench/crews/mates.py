r"""Several processes for one run: each computes the gradient of its part of every batch, and the weighted sum is the gradient of the batch.

$\nabla \frac1B \sum_b \ell_b = \sum_r \frac{B_r}{B} \nabla \frac1{B_r} \sum_{b \in r} \ell_b$, so the examples of a step are those of one process, and
the result is the same within rounding.

The run itself (stream, optimizer, evaluation, checkpoints, record) is in the first process alone. At each step it sends the weights and the parts of the
batch, and receives gradients: as many bytes as the all-reduce of data-parallel training moves, which is a reduction and a broadcast, without copies of
the optimizer's state. Not the same as in one process: BatchNorm normalises each part by itself and keeps the running statistics of the first part, as
torch's DistributedDataParallel does, and dropout draws other masks.
"""

import contextlib
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from velodrome.bench.supervisor import RENEW, TURN, note_turn
from velodrome.data.stream import Batch
from velodrome.gradients.backward import Backward

DTYPES = (
    torch.float32,
    torch.int64,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.int8,
    torch.bool,
)
HEADER, LEAVE = 24, -1  # numbers in a command; the one that sends a mate away


class MateLost(Exception):
    """Another process of the job is gone."""


class Mates:
    """The processes of one job, as each of them sees it: `rank` 0 has the runs, the others lend it gradients.

    `group` is a process group of torch (gloo on CPUs, nccl on GPUs, one device for each process). It is not torch's default group, of which an
    algorithm under test would believe that it takes part in it.
    """

    def __init__(self, group: Any, device: torch.device):
        self.group, self.device, self.rank, self.size = group, device, group.rank(), group.size()

    def broadcast(self, tensor: Tensor) -> None:
        """Everybody gets what rank 0 has."""
        with _talking():
            self.group.broadcast(tensor, 0).wait()

    def reduce(self, tensor: Tensor) -> None:
        """Rank 0 gets the sum."""
        with _talking():
            self.group.reduce(tensor, 0).wait()

    def send(self, tensor: Tensor, rank: int) -> None:
        """To one of them, as bytes."""
        with _talking():
            self.group.send([tensor.contiguous().reshape(-1).view(torch.uint8)], rank, 0).wait()

    def receive(self, like: "Shape", examples: int) -> Tensor:
        """What rank 0 has sent."""
        dtype, dims = like
        tensor = torch.empty((examples, *dims[1:]), dtype=dtype, device=self.device)
        with _talking():
            self.group.recv([tensor.view(-1).view(torch.uint8)], 0, 0).wait()
        return tensor

    def dismiss(self) -> None:
        """Send them away."""
        with contextlib.suppress(MateLost):
            self.broadcast(torch.full((HEADER,), LEAVE, dtype=torch.float64, device=self.device))


Shape = tuple[torch.dtype, list[int]]
_job: Mates | None = None  # of this process; as with torch's default group, there is one or none


@contextlib.contextmanager
def joined(mates: Mates) -> Iterator[None]:
    """Inside, gradients that are made by `shared` are computed by these processes; afterwards they are sent away."""
    global _job
    _job = mates
    try:
        yield
        mates.dismiss()
    finally:
        _job = None


def shared(alone: Backward, workload: str) -> "Backward | Shared":
    """The gradient over this process's job, or as it is where there is none: whoever looks into a recorded run computes it alone."""
    return alone if _job is None else Shared(alone, workload, _job)


class Shared:
    """The gradient `alone` of a workload's model, computed by all processes of a job and asked for in the first. A `Gradient`."""

    def __init__(self, alone: Backward, workload: str, mates: Mates):
        self.alone, self.model, self.number, self.mates = alone, alone.model, number(workload), mates
        self.mean_loss = alone.mean_loss

    def __call__(self, batch: Batch, *, weight: float = 1.0) -> Tensor:
        """Add `weight` times the gradient of the batch's mean loss to `.grad`; the mean loss, detached.

        A batch with fewer examples than processes, and one whose FLOPs are counted, is computed here alone.
        """
        if batch.examples < self.mates.size or _get_current_dispatch_mode() is not None:
            return self.alone(batch, weight=weight)
        try:
            return self._together(batch, weight)
        except MateLost as lost:  # nobody's mistake, so no algorithm gets to see it: a new worker goes on from the checkpoint
            print(lost, file=sys.stderr, flush=True)
            note_turn(int(os.environ[TURN]) if TURN in os.environ else None)  # the run that was on did not do it
            os._exit(RENEW)

    def _together(self, batch: Batch, weight: float) -> Tensor:
        mates = self.mates
        mates.broadcast(_header(self.number, batch, weight, mates.device))
        for flat in flattened(state(self.model)):
            mates.broadcast(flat)
        bounds = split(batch.examples, mates.size)
        for rank, (start, stop) in enumerate(bounds[1:], 1):
            part = batch.part(start, stop)
            mates.send(part.inputs, rank)
            mates.send(part.targets, rank)
        mistake, loss = None, torch.zeros((), device=mates.device)
        first = batch.part(*bounds[0])
        share = first.examples / batch.examples
        try:
            loss = self.alone(first, weight=weight * share).float() * share
        except Exception as error:  # the others will send what they have: it must be received before anything else
            mistake = error
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        here = gradients(parameters)
        flats = flattened(here)
        for flat in (*flats, loss):
            mates.reduce(flat)
        if mistake is not None:
            raise mistake
        for p, value in zip(parameters, unflattened(flats, here), strict=True):
            if p.grad is not None:
                p.grad.copy_(value)
            elif value.any():
                p.grad = value.clone()
        return loss


def lend(models: Mapping[int, Backward], mates: Mates) -> None:
    """What the other processes do until the first one sends them away: their part of the gradient, again and again."""
    header = torch.zeros(HEADER, dtype=torch.float64, device=mates.device)
    while True:
        mates.broadcast(header)
        if int(header[0]) == LEAVE:
            return
        numbers, weight, inputs, targets = _read(header)
        alone = models[numbers[0]]
        current = state(alone.model)
        flats = flattened(current)
        for flat in flats:
            mates.broadcast(flat)
        for tensor, value in zip(current, unflattened(flats, current), strict=True):
            tensor.copy_(value)
        start, stop = split(inputs[1][0], mates.size)[mates.rank]
        part = Batch(mates.receive(inputs, stop - start), mates.receive(targets, stop - start))
        share = part.examples / inputs[1][0]
        torch.manual_seed(numbers[1] + mates.rank)
        loss = alone(part, weight=weight * share).float() * share
        for flat in (*flattened(gradients([p for p in alone.model.parameters() if p.requires_grad])), loss):
            mates.reduce(flat)
        alone.model.zero_grad()


def number(workload: str) -> int:
    """A workload's name as a number that a message can hold."""
    return zlib.crc32(workload.encode())


def split(examples: int, parts: int) -> list[tuple[int, int]]:
    """Bounds of consecutive parts whose sizes differ by one at most."""
    edges = [examples * i // parts for i in range(parts + 1)]
    return list(pairwise(edges))


def state(model: nn.Module) -> list[Tensor]:
    """What a gradient depends on: parameters and buffers of floating point, without their history."""
    return [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Their gradients, zeros where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def flattened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One vector for each dtype instead of hundreds of tensors: a message has a price of its own."""
    kinds = dict.fromkeys(t.dtype for t in tensors)
    return [torch.cat([t.reshape(-1) for t in tensors if t.dtype == kind]) for kind in kinds]


def unflattened(vectors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The vectors' values, shaped and ordered as those tensors."""
    rest = {flat.dtype: iter(flat.split([t.numel() for t in like if t.dtype == flat.dtype])) for flat in vectors}
    return [next(rest[t.dtype]).view(t.shape) for t in like]


def _header(workload: int, batch: Batch, weight: float, device: torch.device) -> Tensor:
    """A command: workload, seed of the random numbers, weight; dtype, number of dimensions and dimensions of inputs and targets.

    The seed comes from the generator's state, which a checkpoint holds, and leaves it as it is: without dropout nothing differs from one process.
    """
    seed = zlib.crc32(torch.get_rng_state().numpy().tobytes())
    if device.type == "cuda":
        seed ^= zlib.crc32(torch.cuda.get_rng_state(device).numpy().tobytes())
    shapes = [x for t in (batch.inputs, batch.targets) for x in (DTYPES.index(t.dtype), t.dim(), *t.shape)]
    body = [workload, seed, weight, *shapes]
    return torch.tensor(body + [0.0] * (HEADER - len(body)), dtype=torch.float64, device=device)


def _read(header: Tensor) -> tuple[tuple[int, int], float, Shape, Shape]:
    body = header.tolist()
    numbers = [int(x) for x in body[3:]]
    shapes = []
    for _ in range(2):
        kind, dims, *numbers = numbers
        shapes.append((DTYPES[kind], numbers[:dims]))
        numbers = numbers[dims:]
    return (int(body[0]), int(body[1])), body[2], shapes[0], shapes[1]


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """The other end's death, or a connection that broke, as what it is."""
    try:
        yield
    except RuntimeError as error:
        raise MateLost(f"a process of the job is gone ({str(error).splitlines()[0]})") from error

"""What a population is made of: K entries of one workload, stacked, with each one's learning rates; and what a lone run of them costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from velodrome.bench.protocol import Entry, seed_everything
from velodrome.data.stream import Batch
from velodrome.flops import counted
from velodrome.gradients.backward import backward
from velodrome.population.chain import Group, groups, structure
from velodrome.records.digest import content_hash
from velodrome.schedules.over import Over
from velodrome.train import step_once

PASS_BYTES = 24 * 2**20  # of what the backward pass keeps, for the members that pass at once; measured in benchmarks/population.py


@dataclass
class Lone:
    """Member 0 as a lone run has it: it is asked what a step costs, once for each shape of batch and once for the update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Any
    autocast: torch.dtype | None
    flops: dict[Any, int] = field(default_factory=dict)
    update_flops: int | None = None
    kept_bytes: int = 0

    def gradient_flops(self, batch: Batch) -> int:
        """FLOPs of a gradient; the first also finds out how many bytes it keeps, and refuses a model that draws random numbers."""
        key = (batch.inputs.shape, batch.targets.shape)
        if key not in self.flops:
            device = batch.inputs.device
            before = _random_state(device)
            storages: dict[int, int] = {}

            def pack(x: Tensor) -> Tensor:
                storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            self.optimizer.zero_grad()
            with saved_tensors_hooks(pack, lambda x: x):
                _, self.flops[key] = counted(backward(self.model, self.loss, autocast=self.autocast), batch)
            if not torch.equal(before, _random_state(device)):
                raise Alone("a model that draws random numbers while it trains, as dropout does, cannot be trained as a population.")
            self.kept_bytes = max(self.kept_bytes, sum(storages.values()))
        return self.flops[key]

    def first_update(self) -> int:
        """FLOPs of the first update, after `gradient_flops`; a population counts no cycle (`flops.Updates`)."""
        if self.update_flops is None:
            _, self.update_flops = counted(step_once, self.optimizer, 1.0)  # whatever the loss
        return self.update_flops


class Alone(ValueError):
    """Why these entries can be trained one by one, but not as a population."""


@dataclass
class Stack:
    """The members before their first step."""

    members: list[tuple[Group, ...]]
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    rates: Tensor  # [steps + 1, groups, K], float64
    lone: Lone


def identity(entry: Entry, halving: Any, entries: Sequence[Entry]) -> dict[str, Any]:
    """A member's identity: the lone run's, and that it was trained in a population, because its seconds are shares of the population's.

    Where members can be dropped, what happens to one depends on the others, which are then part of its identity.
    """
    among = {} if halving is None else {"halving": halving.to_json(), "among": content_hash([e.identity for e in entries])}
    return {**entry.identity, "population": True, **among}


def folder(entry: Entry, own: dict[str, Any]) -> str:
    """The run's folder, named like a lone run's."""
    return f"{entry.folder.rsplit('-', 1)[0]}-{content_hash(own)[:12]}"


def kinds(entries: Sequence[Entry]) -> list[list[int]]:
    """The positions of entries that can be stacked with each other: those whose chains have one structure. Alone for what is no chain."""
    found: dict[Any, list[int]] = {}
    for i, entry in enumerate(entries):
        _, _, member = _made(entry)
        found.setdefault(structure(member), []).append(i)
    return list(found.values())


def stack(entries: Sequence[Entry]) -> Stack:
    """Build every member as its lone run builds it, from its own seed, and stack what they are made of."""
    first = entries[0]
    if first.setting.compile:
        raise Alone("a population records its operations itself: leave --compile out.")
    if any(e.workload != first.workload or e.setting != first.setting for e in entries):
        raise ValueError("the members of a population must share workload and setting.")
    members, weights, buffers, rates = [], [], [], []
    for entry in entries:
        model, _, member = _made(entry)
        members.append(member)
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        buffers.append({n: b.detach().clone() for n, b in model.named_buffers()})
        rates.append(_rates(entry, member))
    lone = Lone(*_made(first)[:2], first.workload.loss, torch.bfloat16 if first.setting.bf16 else None)
    return Stack(members, _together(weights), _together(buffers), torch.stack(rates, -1), lone)


def _made(entry: Entry) -> tuple[nn.Module, torch.optim.Optimizer, tuple[Group, ...]]:
    """The model after its optimizer was made (a recipe may scale the weights it is given), the optimizer, and its groups."""
    seed_everything(entry.seed)
    model = entry.workload.model().to(entry.setting.device)
    optimizer = entry.recipe.optimizer(model)
    try:
        return model, optimizer, groups(optimizer, model)
    except ValueError as error:
        raise Alone(f"{entry.recipe.name}: {error}") from None


def _rates(entry: Entry, member: Sequence[Group]) -> Tensor:
    """The learning rate of each group at each step, [steps + 1, groups], as `train` sets them."""
    steps, initial = entry.workload.steps, [g.lr for g in member]
    first = next((lr for lr in initial if lr), 0.0)
    schedule = entry.recipe.schedule and entry.recipe.schedule(first, steps)
    if entry.end != steps or isinstance(schedule, Over):
        raise Alone(f"{entry.recipe.name} has a horizon of its own: a population's members share theirs.")
    if not schedule:
        return torch.tensor([initial] * (steps + 1), dtype=torch.float64)
    if not first:
        raise ValueError(f"every group of {entry.recipe.name} has the learning rate 0: a schedule has nothing to scale.")
    values = [schedule(min(t, steps - 1)) for t in range(steps + 1)]
    return torch.tensor([[x if lr == first else x * lr / first for lr in initial] for x in values], dtype=torch.float64)


def _together(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

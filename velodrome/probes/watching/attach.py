"""What a watch is attached to: the parameters that are trained, what cannot be measured there, and the hooks that are put on and taken off."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from velodrome.data.stream import Batch
from velodrome.probes.objective import Loss
from velodrome.probes.watching.probe import Call, Needs


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The optimizer's parameters that are trained, by the model's names; ValueError if there are none, or none is the model's."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: p for g in optimizer.param_groups for p in g["params"] if id(p) in names and p.requires_grad}
    if not found:
        raise ValueError("the optimizer trains no parameter of the model: give the model whose parameters it was made with.")
    return found


def cannot(needs: Needs, sharded: bool, criterion: Loss | None) -> str | None:
    """Why a probe cannot be measured in this run, if that is known before it begins."""
    if sharded and needs in ("examples", "curvature"):
        what = "second derivatives" if needs == "curvature" else "gradients of single examples"
        return f"the parameters are sharded (FSDP2), and {what} of shards are not exact: look at a checkpoint"
    if sharded and needs == "forward":
        return "the parameters are sharded (FSDP2), and another forward pass would leave them gathered: look at a checkpoint"
    if needs == "curvature" and criterion is None:
        return "the loss is unknown: write watch(…, loss=cross_entropy), a function of (outputs, targets)"
    return None


def call_of(batch: Batch, autocast: torch.dtype | None = None) -> Call:
    """How a model is called with a batch."""
    inputs: Any = batch.inputs
    if isinstance(inputs, dict):
        return Call((), inputs, autocast)
    return Call(inputs if isinstance(inputs, tuple) else (inputs,), {}, autocast)


class Hooks:
    """Hooks that are put on where something is to be seen and taken off again: every one costs each step some microseconds."""

    def __init__(self) -> None:
        self.makers: list[Callable[[], Any]] = []
        self.handles: list[Any] = []

    def on(self) -> None:
        """Put them on, unless they are."""
        if not self.handles:
            self.handles = [make() for make in self.makers]

    def off(self) -> None:
        """Take them off."""
        while self.handles:
            self.handles.pop().remove()

    def drop(self) -> None:
        """Take them off for good."""
        self.off()
        self.makers = []


class Absent:
    """What stands for the watch in a model that was pickled under it."""

    def _called(self, *anything: Any) -> None:
        """Nothing is seen."""

    _judged = _before = _after = _called

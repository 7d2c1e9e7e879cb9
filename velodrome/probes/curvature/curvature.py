"""Curvature: what the operators of a loss share. Traces of the batches, kept or made anew; blocks; refusals; what to do when memory is short."""

import copy
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from velodrome.data.stream import Batch
from velodrome.optim.rule import is_sharded
from velodrome.probes.curvature.operator import Operator
from velodrome.probes.objective import Objective, cut, examples

Keep = bool | Literal["auto"]
LOW = (torch.float16, torch.bfloat16)


class Curvature(Operator):
    r"""$A = \sum_b \frac{n_b}{n} A_b$ over the batches of an objective, at the weights as they were when it was made.

    A trace is what `apply` needs of a batch: the graph of its gradient, say. `keep=True` keeps all traces, one for each batch, so that a product costs
    no forward pass; `keep=False` makes each anew for every product, or once for all columns of a block, and holds one at a time; "auto" keeps them
    where they take less than half of the memory that is free, told from the first. Several operators may live at once. After a step of the optimizer
    a product is a ValueError: the graphs belong to other weights.
    """

    def __init__(self, objective: Objective, keep: Keep = "auto") -> None:
        if keep not in (True, False, "auto"):
            raise ValueError(f"keep must be True, False or 'auto', got {keep!r}.")
        check_parameters(objective)
        self.objective = objective
        self.params = list(objective.params.values())
        dtype = max((p.dtype for p in self.params), key=lambda d: torch.finfo(d).bits)
        super().__init__(list(objective.params), [p.shape for p in self.params], dtype, self.params[0].device)
        self.which = list(range(len(self.params)))  # of the objective's parameters, those that this operator is over
        self._made = versions(objective)
        self.keep = len(objective.batches) == 1 or self._fits() if keep == "auto" else keep
        self.traces = [self._traced(b) for b in objective.batches] if self.keep else None

    @abstractmethod
    def trace(self, batch: Batch) -> Any:
        """What `apply` needs of one batch; called with the model ready."""

    @abstractmethod
    def apply(self, trace: Any, pieces: list[Tensor]) -> Sequence[Tensor]:
        """The matrix of one batch times a vector given as one piece for each of `self.params`."""

    def product(self, v: Tensor) -> Tensor:
        """The weighted sum of the batches' products."""
        return self._columns([v])[0]

    def block(self, V: Tensor) -> Tensor:
        """The products of all columns, one after the other; each trace is made once where it is not kept.

        Together (`is_grads_batched`) they take longer on a CPU, and not every layer can.
        """
        return torch.stack(self._columns(list(V.unbind(1))), dim=1)

    def _columns(self, columns: list[Tensor]) -> list[Tensor]:
        self.check_current()
        asked = [self._pieces(v) for v in columns]
        totals: list[Tensor] = []
        for i, batch in enumerate(self.objective.batches):
            weight = examples(batch) / self.objective.examples
            trace = self.traces[i] if self.traces is not None else self._traced(batch)
            for j, pieces in enumerate(asked):
                with told(self):
                    found = torch.cat([x.detach().flatten().to(self.dtype) for x in self.apply(trace, pieces)])
                found = found if weight == 1 else found.mul_(weight)  # a pass over memory is a tenth of a small net's product
                if i:
                    totals[j].add_(found)
                else:
                    totals.append(found)
        return totals

    def on(self, which: Sequence[int]) -> "Curvature":
        """The block of some of this operator's parameters, given by their places: shares the traces, and differentiates no more than it needs."""
        part = copy.copy(self)
        part.params, part.which = [self.params[i] for i in which], [self.which[i] for i in which]
        Operator.__init__(part, [self.names[i] for i in which], [self.shapes[i] for i in which], self.dtype, self.device)
        return part

    def check_current(self) -> None:
        """ValueError if the weights are others than those of which the traces were made."""
        if versions(self.objective) != self._made:
            raise ValueError("the weights have changed since this operator was made: make it again, one after each step.")

    def _pieces(self, v: Tensor) -> list[Tensor]:
        parts = zip(v.split(self.sizes), self.shapes, self.params, strict=True)
        return [x.reshape(shape).to(p.dtype) for x, shape, p in parts]

    def _traced(self, batch: Batch) -> Any:
        with ready(self.objective), told(self):
            return self.trace(batch)

    def _fits(self) -> bool:
        """Whether all traces take less than half of the memory that is free."""
        largest = max(self.objective.batches, key=examples)
        storages: dict[int, int] = {}

        def count(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x.detach()

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            self._traced(largest)
        per_example = sum(storages.values()) / examples(largest)
        return per_example * self.objective.examples < free_memory(self.device) / 2


@contextmanager
def ready(objective: Objective) -> Iterator[None]:
    """The objective's model ready to be differentiated twice: attention by the backend that has two derivatives, nothing compiled, and copies of the
    buffers, because the restored originals would be newer than the graph that saw them."""
    # nothing is compiled where torch's compiler has not been loaded, which takes seconds
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with objective.ready(), sdpa_kernel(SDPBackend.MATH), eager:
        for module in objective.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        yield


@contextmanager
def told(operator: Curvature) -> Iterator[None]:
    """Errors of torch that a user can do something about, in one sentence."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        text = str(error)
        if is_short(error):
            raise ValueError(advice(operator)) from None
        if "once_differentiable" in text or "not implemented" in text or "does not currently support double backward" in text:
            raise ValueError(
                f"a part of the model has no second derivative ({text.splitlines()[0]}): use another kernel for it."
            ) from error
        raise


def is_short(error: BaseException) -> bool:
    """Whether memory is what was lacking, on the CPU or on another device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def advice(operator: Curvature) -> str:
    """How many examples do fit, found by halving the batch."""
    whole = max(operator.objective.batches, key=examples)
    size, v = examples(whole), [torch.zeros_like(p) for p in operator.params]
    operator.traces = None  # what is kept is of no use now
    while size := size // 2:
        try:
            with ready(operator.objective):
                operator.apply(operator.trace(next(iter(cut(whole, size)))), v)
        except RuntimeError as error:
            if is_short(error):
                continue
            raise
        how = "mode='eval' and " if operator.objective.mixes() else ""
        return f"out of memory with {examples(whole)} examples at a time, {size} fit: write {how}micro_batch={size} and keep=False."
    return "out of memory even with one example: look at some parameters only (params=…), or at a smaller model."


def check_parameters(objective: Objective) -> None:
    """ValueError for what cannot be differentiated twice with meaning."""
    for name, p in objective.params.items():
        if is_sharded(p):
            raise ValueError(
                f"{name} is divided over processes, and second derivatives of it are not to be had: use the critical sharpness (forward passes only)."
            )
        if p.dtype in LOW:
            raise ValueError(f"curvature needs float32 or float64 parameters, got {p.dtype} for {name}: look at a copy, model.float().")
        if p.device != next(iter(objective.params.values())).device:
            raise ValueError(f"parameters must be on one device, got {p.device} for {name}.")
    device = next(iter(objective.params.values())).device.type
    if torch.is_autocast_enabled(device):
        raise ValueError("autocast is on, and its rounding hides second derivatives: look outside of it.")


def mean_loss(objective: Objective, batch: Batch) -> Tensor:
    """The mean loss of one batch with its graph; ValueError if there is none, or if it was computed in a low precision."""
    return checked(objective.mean_of(batch), "the loss")


def checked(x: Tensor, name: str) -> Tensor:
    """A tensor that depends on the weights, in a precision that can be differentiated twice."""
    if not x.requires_grad:
        raise ValueError(
            f"{name} does not depend on the parameters looked at: is there a detach() or no_grad() in the model or in the loss?"
        )
    if x.dtype in LOW:
        raise ValueError(f"curvature needs float32 or float64, got {name} in {x.dtype}: take the autocast out of the model for the look.")
    return x


def differentiable(gradients: Sequence[Tensor]) -> None:
    """ValueError where gradients are sparse, or where a part of their graph has only one derivative: torch would take its second for zero."""
    if any(g.is_sparse for g in gradients):
        raise ValueError("gradients must be dense, got a sparse one: use sparse=False in the embedding.")
    waiting = [g.grad_fn for g in gradients if g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise ValueError(
                "a part of the model has no second derivative: an autograd.Function whose backward pass is once_differentiable."
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def versions(objective: Objective) -> list[tuple[int, int]]:
    """Where each parameter of the model lies and how often it has been written."""
    return [(p.data_ptr(), p._version) for p in objective.model.parameters()]


def free_memory(device: torch.device) -> float:
    """Bytes that could be had now; where the system does not say, 2 GiB."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    ask: Callable[[str], int] | None = getattr(os, "sysconf", None)
    if ask is None or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 2.0**31
    return float(ask("SC_AVPHYS_PAGES") * ask("SC_PAGE_SIZE"))

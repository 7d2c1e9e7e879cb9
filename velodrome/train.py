"""The loop: one generator, one yield per step, after the gradient and before the update.

    for step in train(gradient, optimizer, batches, lr=wsd(1e-3, steps=4000)):
        if step.t % 200 == 0:
            run.row(step, loss=step.loss, valid=evaluate(model))
        if step.loss < target:
            break

At the yield, parameters, batch, loss and gradient belong together. The clock runs only inside the generator: whatever the reader does (evaluate,
measure, save) is outside it by construction, and a reader that writes parameters, gradients or buffers is an error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from itertools import chain
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.flops import counted
from velodrome.guard import Guard

Gradient = Callable[[Batch], Tensor]
EXPLODED_STEPS = 5  # a spike may heal; this many steps in a row do not


class Counters(NamedTuple):
    """What has been spent up to and including the gradient of step `t`; cumulative, and part of every checkpoint.

    `flops` counts the products of gradient and optimizer (`flops.py`); `tokens` is None for tasks without tokens; seconds are the clock's.
    `first_loss`, `last_loss` and `high` are the loop's memory: for judging divergence, and for a closure.
    """

    t: int = -1
    examples: int = 0
    tokens: int | None = None
    flops: int = 0
    data_seconds: float = 0.0
    gradient_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float = 0.0
    high: int = 0

    @property
    def seconds(self) -> float:
        """Time inside the generator: data, gradient (forward and backward) and optimizer."""
        return self.data_seconds + self.gradient_seconds + self.optimizer_seconds


class Step(NamedTuple):
    """One step, as the reader sees it: the batch, its mean loss, what was spent so far, and `diverged`.

    `diverged` is None, or "nan", "inf" or "exploded": then the update is not made and the loop ends after this step.
    """

    batch: Batch
    loss: float
    diverged: str | None
    counters: Counters

    @property
    def t(self) -> int:
        """Number of the step, from 0."""
        return self.counters.t

    @property
    def examples(self) -> int:
        """Examples drawn so far."""
        return self.counters.examples

    @property
    def tokens(self) -> int | None:
        """Tokens drawn so far, or None."""
        return self.counters.tokens

    @property
    def flops(self) -> int:
        """FLOPs so far."""
        return self.counters.flops

    @property
    def seconds(self) -> float:
        """Seconds on the clock so far."""
        return self.counters.seconds

    @property
    def data_seconds(self) -> float:
        """Of these, waiting for batches."""
        return self.counters.data_seconds

    @property
    def gradient_seconds(self) -> float:
        """Of these, forward and backward."""
        return self.counters.gradient_seconds

    @property
    def optimizer_seconds(self) -> float:
        """Of these, in the optimizer."""
        return self.counters.optimizer_seconds

    def state(self) -> dict[str, Any]:
        """The counters as plain numbers, for a checkpoint; give them to `train(..., after=…)` to go on."""
        return self.counters._asdict()


def train(
    gradient: Gradient,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    lr: Callable[[int], float] | None = None,
    *,
    model: nn.Module | None = None,
    after: Mapping[str, Any] | None = None,
    batch: Batch | None = None,
    guard: bool = True,
    explosion: float = 10.0,
    clock: Callable[[], float] = perf_counter,
) -> Iterator[Step]:
    """Train until the batches end, the reader breaks or the loss diverges; yields one Step per step.

    `gradient(batch)` fills `.grad` and returns the mean loss. `lr(t)` sets the rate of the first parameter group; the other groups keep their
    ratio to it (torch's `initial_lr` remembers it); None leaves the rates alone. `model` lets the guard see buffers and give names;
    `guard=False` saves two passes over the weights per step. The loss has exploded when it stays for 5 steps above `explosion` times the
    first loss (or times 1, if that is larger: a small first loss is no scale). The loss is read every step, which on a GPU waits for it.

    `after` continues from `Step.state()`: parameters, gradients, optimizer, stream and random generators must have been restored, and the
    first thing done is the update that was pending. An optimizer whose `step` requires a closure (torch's LBFGS) gets one: its first call
    returns the loss at hand, later ones compute loss and gradient of the same batch anew; to continue with one, give that `batch` too.
    """
    counters = Counters(**after) if after is not None else Counters()
    tensors = named_tensors(optimizer, model)
    watch = Guard(tensors) if guard else None
    now = _synchronised(clock, tensors)
    flops: dict[Any, int] = {}
    source = iter(batches)
    closes = needs_closure(optimizer)
    if closes and after is not None and batch is None:
        raise ValueError(
            f"{type(optimizer).__name__}.step requires a closure: to continue, give the batch of step {counters.t} as batch=…."
        )
    loss, pending = counters.last_loss, after is not None
    while True:
        tick = now()
        closure = _Closure(gradient, optimizer, batch, loss, flops) if closes and batch is not None else None
        update_flops = _update(optimizer, flops, closure) if pending else 0
        updated = now()
        batch = next(source, None)
        if batch is None:
            return
        t = counters.t + 1
        if lr is not None:
            set_lr(optimizer, lr(t))
        drawn = now()
        loss, gradient_flops = _gradient(gradient, batch, flops)
        done = now()
        first = loss if counters.first_loss is None else counters.first_loss
        high = counters.high + 1 if loss > explosion * max(1.0, abs(first)) else 0
        tokens = counters.tokens if batch.tokens is None else (counters.tokens or 0) + batch.tokens
        counters = Counters(
            t,
            counters.examples + batch.examples,
            tokens,
            counters.flops + update_flops + gradient_flops,
            counters.data_seconds + drawn - updated,
            counters.gradient_seconds + done - drawn,
            counters.optimizer_seconds + updated - tick,
            first,
            loss,
            high,
        )
        diverged = None if isfinite(loss) else ("nan" if loss != loss else "inf")
        if high >= EXPLODED_STEPS:
            diverged = diverged or "exploded"
        if watch is not None:
            watch.close()
        yield Step(batch, loss, diverged, counters)
        if watch is not None:
            watch.check(t)
        if diverged is not None:
            return
        pending = True


def _gradient(gradient: Gradient, batch: Batch, flops: dict[Any, int]) -> tuple[float, int]:
    """The loss and its FLOPs, counted on the first batch of each shape."""
    shape = (batch.inputs.shape, batch.targets.shape)
    if shape in flops:
        value = gradient(batch)
    else:
        value, flops[shape] = counted(gradient, batch)
    return value.item(), flops[shape]


def _update(optimizer: torch.optim.Optimizer, flops: dict[Any, int], closure: "_Closure | None") -> int:
    """Step, clear the gradients, and return the FLOPs: counted on the first step of this process, or of the gradients that a closure added."""
    if closure is not None:
        optimizer.step(closure)
        update = closure.flops
    else:
        if "update" in flops:
            optimizer.step()
        else:
            _, flops["update"] = counted(optimizer.step)
        update = flops["update"]
    optimizer.zero_grad()
    return update


class _Closure:
    """What `step(closure)` calls: the gradient is there already the first time, and computed anew at other weights later."""

    def __init__(self, gradient: Gradient, optimizer: torch.optim.Optimizer, batch: Batch, loss: float, known: dict[Any, int]):
        self.gradient, self.optimizer, self.batch, self.loss, self.known = gradient, optimizer, batch, loss, known
        self.fresh, self.flops = True, 0

    def __call__(self) -> float:
        if self.fresh:
            self.fresh = False
            return self.loss
        self.optimizer.zero_grad()
        loss, flops = _gradient(self.gradient, self.batch, self.known)
        self.flops += flops
        return loss


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` has a required parameter."""
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in signature(optimizer.step).parameters.values()
    )


def _synchronised(clock: Callable[[], float], tensors: Mapping[str, Tensor]) -> Callable[[], float]:
    """The clock; on a GPU it first waits for the work that was sent there."""
    devices = {t.device for t in tensors.values() if t.is_cuda}
    if not devices:
        return clock

    def wait() -> float:
        for device in devices:
            torch.cuda.synchronize(device)
        return clock()

    return wait


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the first group's rate to `lr`, the others in the ratio they had when the optimizer was made."""
    groups = optimizer.param_groups
    for group in groups:
        group.setdefault("initial_lr", float(group["lr"]))
    first = groups[0]["initial_lr"]
    for group in groups:
        value = lr if group["initial_lr"] == first else lr * group["initial_lr"] / first
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def named_tensors(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> dict[str, Tensor]:
    """Every tensor a reader must not write: the optimizer's parameters and the model's parameters and buffers."""
    named = dict(chain(model.named_parameters(), model.named_buffers())) if model is not None else {}
    known = {id(t) for t in named.values()}
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if id(p) not in known:
                named[f"parameter {j} of group {i}"] = p
    return named

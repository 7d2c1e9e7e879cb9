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
from functools import partial
from inspect import signature
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.flops import Updates, counted
from velodrome.guard import Guard
from velodrome.memory import Footprint, Peak, held
from velodrome.schedules._common import horizon
from velodrome.schedules.over import Over

Gradient = Callable[[Batch], Tensor]
Schedule = Callable[[int], float]
EXPLODED_STEPS = 5  # a spike may heal; this many steps in a row do not


class Counters(NamedTuple):
    """What has been spent up to and including the gradient of step `t`; cumulative, and part of every checkpoint.

    `flops` counts the products of gradient and optimizer (`flops.py`); `tokens` is None for tasks without tokens; seconds are the clock's.
    `bytes` is the memory of a step (`memory.py`), known in full from the second step on. The rest is the loop's memory: for judging divergence,
    for a closure, of what updates cost (`flops.Updates`), and the horizon of the learning rate's schedule.
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
    update_flops: int | list[int | None] | None = None
    horizon: int | None = None
    bytes: int | None = None

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
    lr: Schedule | None = None,
    *,
    options: Mapping[str, Schedule] | None = None,
    model: nn.Module | None = None,
    after: Mapping[str, Any] | None = None,
    batch: Batch | None = None,
    guard: bool = True,
    explosion: float = 10.0,
    clock: Callable[[], float] = perf_counter,
) -> Iterator[Step]:
    """Train until the batches end, the reader breaks or the loss diverges; yields one Step per step.

    `gradient(batch)` fills `.grad` and returns the mean loss. `lr(t)` sets the rate of the first parameter group; the other groups keep their
    ratio to it (torch's `initial_lr` remembers it); None leaves the rates alone. A schedule made by `over` counts examples, tokens, FLOPs or
    seconds instead of steps. `options` are schedules of other numbers of the groups, {"weight_decay": linear(0.1, steps=4000)}.

    `model` lets the guard see buffers and give names; `guard=False` saves two passes over the weights per step. The loss has exploded when it
    stays for 5 steps above `explosion` times the first loss (or times 1, if that is larger: a small first loss is no scale). The loss is read
    every step, which on a GPU waits for it.

    `after` continues from `Step.state()`: parameters, gradients, optimizer, stream and random generators must have been restored, and the
    first thing done is the update that was pending. The schedule must have the horizon it had: to branch off on another one, say so by
    `after={**state, "horizon": None}`. An optimizer whose `step` requires a closure (torch's LBFGS) gets one: its first call
    returns the loss at hand, later ones compute loss and gradient of the same batch anew; to continue with one, give that `batch` too.
    """
    counters = Counters(**after) if after is not None else Counters()
    length = _settled(counters, lr)
    watch = Guard(watched(optimizer, model)) if guard else None
    now = _synchronised(clock, optimizer)
    if after is None:
        optimizer.zero_grad()  # what an earlier loop left behind when its reader broke off
    flops: dict[Any, int] = {}
    cost = Updates(optimizer, counters.update_flops)
    seen = _footprint(counters, optimizer, model)
    gradients, updates = _Charges(), _Charges()
    source = iter(batches)
    closes, told = needs_closure(optimizer), takes_loss(optimizer)
    if closes and after is not None and batch is None:
        raise ValueError(
            f"{type(optimizer).__name__}.step requires a closure: to continue, give the batch of step {counters.t} as batch=…."
        )
    loss, pending = counters.last_loss, after is not None
    while True:
        closure = _Closure(gradient, optimizer, batch, loss, flops) if closes and batch is not None else None
        tick = now()
        update_flops = _update(optimizer, loss if told else None, cost, counters.t + 1, closure, seen) if pending else 0
        updated = now()
        optimizer_seconds = updates.charge("update", updated - tick) if pending else 0.0
        batch = next(source, None)
        if batch is None:
            return
        t = counters.t + 1
        if lr is not None:
            set_lr(optimizer, _now(lr, counters, batch))
        for name, schedule in (options or {}).items():
            set_option(optimizer, name, _now(schedule, counters, batch))
        drawn = now()
        loss, gradient_flops = _gradient(gradient, batch, flops, seen)
        done = now()
        gradient_seconds = gradients.charge((batch.inputs.shape, batch.targets.shape), done - drawn)
        first, high, diverged = _judged(counters, loss, explosion)
        tokens = counters.tokens if batch.tokens is None else (counters.tokens or 0) + batch.tokens
        counters = Counters(
            t,
            counters.examples + batch.examples,
            tokens,
            counters.flops + update_flops + gradient_flops,
            counters.data_seconds + drawn - updated,
            counters.gradient_seconds + gradient_seconds,
            counters.optimizer_seconds + optimizer_seconds,
            first,
            loss,
            high,
            cost.state(),
            length,
            counters.bytes if seen is None else seen.bytes,
        )
        if watch is not None:
            watch.close()
        yield Step(batch, loss, diverged, counters)
        if watch is not None:
            watch.check(t)
        if diverged is not None:
            return
        pending = True


def _settled(counters: Counters, lr: Schedule | None) -> int | None:
    """The horizon of a run; a schedule that was made for another one than the run has had is a mistake."""
    new = horizon(lr)
    if counters.horizon is not None and new is not None and counters.horizon != new:
        raise ValueError(
            f"the run was begun with a schedule over {counters.horizon:,} and is resumed with one over {new:,}: give the same one, or branch "
            'off on purpose with after={**state, "horizon": None}.'
        )
    return counters.horizon if new is None else new


def _now(schedule: Schedule | Over, counters: Counters, batch: Batch) -> float:
    """What a schedule says for the step that has drawn `batch` after `counters`."""
    if not isinstance(schedule, Over):
        return schedule(counters.t + 1)
    start = getattr(counters, schedule.unit) or 0
    spent = batch.tokens if schedule.unit == "tokens" else batch.examples if schedule.unit == "examples" else 0
    if spent is None:
        raise ValueError("the schedule counts tokens, and a batch of this task has none: write over(…, 'examples').")
    return schedule.between(start, start + spent)


def _judged(counters: Counters, loss: float, explosion: float) -> tuple[float, int, str | None]:
    """(the run's first loss, how many steps in a row stood too high, whether and how the run has diverged)."""
    first = loss if counters.first_loss is None else counters.first_loss
    high = counters.high + 1 if loss > explosion * max(1.0, abs(first)) else 0
    if not isfinite(loss):
        return first, high, "nan" if loss != loss else "inf"
    return first, high, "exploded" if high >= EXPLODED_STEPS else None


class _Charges:
    """What calls are charged for. The first of each kind in a process also counts FLOPs and wakes libraries up, so it is charged together with the
    second one, at the lower of the two prices."""

    def __init__(self) -> None:
        self.calls: dict[Any, float | None] = {}  # the time of a first call that is not charged yet, or None

    def charge(self, kind: Any, seconds: float) -> float:
        """Seconds to put on the clock for a call of that kind that took so long."""
        if kind not in self.calls:
            self.calls[kind] = seconds
            return 0.0
        first = self.calls[kind]
        if first is None:
            return seconds
        self.calls[kind] = None
        return seconds + min(first, seconds)


def _gradient(gradient: Gradient, batch: Batch, flops: dict[Any, int], seen: Footprint | None = None) -> tuple[float, int]:
    """The loss and its FLOPs, counted on the first batch of each shape, as its memory is."""
    shape = (batch.inputs.shape, batch.targets.shape)
    if shape in flops:
        value = gradient(batch)
    elif seen is None:
        value, flops[shape] = counted(gradient, batch)
    else:
        with Peak() as peak:
            value, flops[shape] = counted(gradient, batch)
        seen.gradient_seen(peak, (batch.inputs, batch.targets))
    return value.item(), flops[shape]


def _update(
    optimizer: torch.optim.Optimizer,
    loss: float | None,
    cost: Updates,
    number: int,
    closure: "_Closure | None",
    seen: Footprint | None = None,
) -> int:
    """The update of that `number`, clear the gradients, and return the FLOPs: counted or known, or of the gradients that a closure added."""

    def once() -> int:
        if closure is None:
            return cost.spend(number, partial(step_once, optimizer, loss))
        optimizer.step(closure)
        return closure.flops

    if seen is None or seen.update:
        flops = once()
    else:
        gradients = held(p.grad for p in seen.params)
        with Peak() as peak:
            flops = once()
        seen.update_seen(peak, gradients)
    optimizer.zero_grad()
    return flops


def _footprint(counters: Counters, optimizer: torch.optim.Optimizer, model: nn.Module | None) -> Footprint | None:
    """What measures the memory of the first gradient and update; None where both are past."""
    if counters.t > 0:
        return None
    seen = Footprint((p for group in optimizer.param_groups for p in group["params"]), model)
    if counters.bytes is not None:
        seen.gradient = counters.bytes - seen.fixed
    return seen


class _Closure:
    """What `step(closure)` calls: as long as weights and gradients are as the loop left them it returns the loss at hand, then it computes anew."""

    def __init__(self, gradient: Gradient, optimizer: torch.optim.Optimizer, batch: Batch, loss: float, known: dict[Any, int]):
        self.gradient, self.optimizer, self.batch, self.loss, self.known = gradient, optimizer, batch, loss, known
        self.watch: Guard | None = Guard(watched(optimizer, None))
        self.watch.close()
        self.flops = 0

    def __call__(self) -> float:
        untouched = self.watch is not None and self.watch.difference() is None
        self.watch = None
        if untouched:
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


def takes_loss(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` has a parameter `loss`, as a chain's has and those of MoMo's package."""
    return "loss" in signature(optimizer.step).parameters


def step_once(optimizer: torch.optim.Optimizer, loss: float | None) -> None:
    """`optimizer.step()`, told the loss of its gradients if there is one to tell."""
    step: Callable[..., Any] = optimizer.step
    if loss is None:
        step()
    else:
        step(loss=torch.tensor(loss, dtype=torch.float64))


def _synchronised(clock: Callable[[], float], optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """The clock; on a GPU it first waits for the work that was sent there."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"] if p.is_cuda}
    if not devices:
        return clock

    def wait() -> float:
        for device in devices:
            torch.cuda.synchronize(device)
        return clock()

    return wait


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the first group's rate to `lr`, the others in the ratio they had when the optimizer was made; a group that began at 0 stays there.

    "First" is the first group whose rate was not 0. ValueError if there is none, or if groups have no `lr`.
    """
    if any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} has groups without 'lr', which no schedule can drive: train it without one.")
    set_option(optimizer, "lr", lr)


def set_option(optimizer: torch.optim.Optimizer, name: str, value: float) -> None:
    """As `set_lr` for any number of the groups, such as weight_decay; groups without it are passed over, and all without it are a ValueError."""
    groups, initial = [group for group in optimizer.param_groups if name in group], f"initial_{name}"
    if not groups:
        raise ValueError(f"no group of {type(optimizer).__name__} has {name!r}: a schedule has nothing to set.")
    for group in groups:
        if initial not in group:
            group[initial] = float(group[name])
    first = next((group[initial] for group in groups if group[initial] != 0), None)
    if first is None:
        what = "the learning rate" if name == "lr" else name
        raise ValueError(f"every group of {type(optimizer).__name__} has {what} 0: a schedule has nothing to scale.")
    for group in groups:
        scaled = value if group[initial] == first else value * group[initial] / first
        if isinstance(group[name], Tensor):
            group[name].fill_(scaled)
        else:
            group[name] = scaled


def watched(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> Callable[[], list[tuple[str, Tensor, str]]]:
    """A function that lists what a reader must not write: parameters of optimizer and model, and the buffers that the model has at that moment."""
    holders = [(name, m._buffers) for name, m in model.named_modules() if m._buffers] if model is not None else []
    known: list[tuple[str, Tensor, str]] = []
    counted_for = -1

    def now() -> list[tuple[str, Tensor, str]]:
        nonlocal known, counted_for
        count = len(optimizer.param_groups)
        if count != counted_for:  # the first time, or a group was added
            known, counted_for = [(name, p, f"{name}.grad") for name, p in _parameters(optimizer, model).items()], count
        if not holders:
            return known
        buffers = [(f"{prefix}.{name}", b, "") for prefix, held in holders for name, b in held.items() if b is not None]
        return known + buffers

    return now


def _parameters(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(model.named_parameters()) if model is not None else {}
    ids = {id(t) for t in named.values()}
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if id(p) not in ids:
                named[f"parameter {j} of group {i}"] = p
    return named

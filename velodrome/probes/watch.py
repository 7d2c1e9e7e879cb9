"""Watch a run while it trains, for a bounded share of its time, from anybody's loop.

    with watch(model, optimizer, budget="2%", loss=criterion) as seen:
        for x, y in batches:
            criterion(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    print(seen.spent)

Nothing that training depends on is changed: weights, gradients, optimizer, buffers and random generators stay what they would be, bit for bit.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn

from velodrome.probes.objective import Loss
from velodrome.probes.watching.attach import trained
from velodrome.probes.watching.budget import Account, share_of
from velodrome.probes.watching.chosen import chosen
from velodrome.probes.watching.meter import Meter
from velodrome.probes.watching.probe import Probe
from velodrome.probes.watching.ranks import local, plain
from velodrome.probes.watching.watched import SAFE, Watch

__all__ = ["Watch", "watch"]


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    budget: str | float = "2%",
    *,
    loss: Loss | None = None,
    probes: str | Sequence[str | Probe] = "cheap",
    sink: Any = None,
    start: int = 0,
    mode: Literal["train", "eval"] | None = None,
    fix_random: bool = False,
    clock: Callable[[], float] = perf_counter,
) -> Watch:
    """Look at `model` while `optimizer` trains it, and spend at most `budget` of the training time on it.

    Steps are seen by hooks on the optimizer and inputs by one on the model: give the module that the loop calls (what torch.compile or
    DistributedDataParallel returned). If `loss` is a module that the loop calls, targets and losses are seen too. A loop that calls
    `seen.step(loss=…, batch=…)` between gradient and update is believed instead; so write it in the reader of `velodrome.train.train`.

    Args:
        model: what is trained.
        optimizer: any torch.optim.Optimizer, a Chain included.
        budget: "2%", 0.02 or seconds a minute as "1.2 s/min"; of the training time so far, at any time.
        loss: (outputs, targets) -> one loss per example, or one of torch's mean criteria; for what needs derivatives.
        probes: "cheap", "full", or names and Probe objects; `velodrome/probes/watching/chosen.py` lists them.
        sink: where rows go besides `rows`: FILE.jsonl, a folder or a SummaryWriter of TensorBoard, a function of a list of rows, or several.
        start: number of the first step; a resumed run says where it goes on, and its file of rows is cut there.
        mode: "train", "eval" or None for the model's own; for probes that run the model.
        fix_random: curvature of a model with dropout holds for one draw; without it (and mode="eval") it is refused.
        clock: seconds; for tests.

    Raises:
        ValueError: an unknown probe, a budget that is no share, a file that holds another run.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    began, found = clock(), chosen(probes)
    share = share_of(budget)
    account = Account(SAFE * share, {p.name: p.prior for p in found}, {p.name: p.every for p in found})
    meter = Meter(account, clock, local(next(iter(trained(plain(model), optimizer).values()))).device, share)
    shown = {"criterion": loss, "mode": mode, "fix_random": fix_random}
    seen = Watch(model, optimizer, meter, found, shown, sink, start)
    meter.charge_start(clock() - began)
    return seen

"""A workload that trains in a fraction of a second, with everything that makes resuming hard: dropout, batch norm, shuffled epochs.

`TINY_DELAY` (seconds) slows every step down, so that a test can interrupt the run; `TINY_LOG` counts the gradients of all processes.
"""

import os
import time

import torch
from torch import nn

from velodrome.bench.workload import Data, Workload
from velodrome.data.streams import Shuffled, batches
from velodrome.losses.cross_entropy import cross_entropy


def load() -> Data:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=g)
    y = (x[:, :3].sum(1) > 0).long() + (x[:, 3:].prod(1) > 0).long()
    return Data(lambda seed: Shuffled(x[:260], y[:260], 16, seed), batches(x[260:], y[260:], 40), "tiny-1")


class Slow(nn.Module):
    def forward(self, x):
        if self.training:
            if delay := os.environ.get("TINY_DELAY"):
                time.sleep(float(delay))
            if log := os.environ.get("TINY_LOG"):
                with open(log, "a") as file:
                    file.write("g")
        return x


def network() -> nn.Module:
    return nn.Sequential(Slow(), nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))


def tiny(steps: int = 100) -> Workload:
    return Workload(
        name="tiny",
        summary="a toy",
        load=load,
        model=network,
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss",
        targets=(0.75,),
        steps=steps,
        batch_size=16,
        cost="nothing",
        seconds=0.1,
    )


class Plain(torch.optim.Optimizer):
    """Somebody's own optimizer: gradient descent, with state that only `state_dict` knows."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(0.9).add_(p.grad)
                p.sub_(group["lr"] * m)


class Broken(Plain):
    def step(self):
        raise RuntimeError("my own mistake")


class Wild(Plain):
    """Diverges at once."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1e30)


class Averaged(Plain):
    """Keeps other weights for evaluation, as Schedule-Free does, and asks for `eval()` and `train()`."""

    def eval(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0.5).add_(0.1)

    def train(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(0.1).mul_(2.0)


class Rateless(torch.optim.Optimizer):
    """Has no `lr` in its groups."""

    def __init__(self, params):
        super().__init__(params, {"rate": 0.05})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["rate"] * p.grad)

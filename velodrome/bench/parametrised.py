"""A workload's network at any width, in the standard parametrisation or in muP, with its optimizer: what a learning rate is carried over."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from velodrome.bench.workload import Workload
from velodrome.layers.mup import mup
from velodrome.optim.adam import adamw
from velodrome.optim.chain import Chain
from velodrome.optim.muon import muon
from velodrome.optim.mup import mup_groups, mup_muon_groups
from velodrome.optim.sgd import sgd

Parametrisation = Literal["mup", "standard"]
Algorithm = Literal["sgd", "adamw", "muon"]
RATES: dict[str, float] = {"sgd": 0.1, "adamw": 1.2e-2, "muon": 2.4e-2}  # at the base width


def network(task: Workload, width: int) -> nn.Module:
    """The workload's model at a width, with the weights that the global generator draws."""
    if task.at_width is not None:
        return task.at_width(width)
    if width not in task.sizes:
        known = f"it has {', '.join(map(str, sorted(task.sizes)))}" if task.sizes else "it has one width only"
        raise ValueError(f"the workload {task.name!r} has no model of width {width}, {known}: give it at_width=lambda width: ….")
    return task.sizes[width]()


def parametrised(
    task: Workload, width: int, base: int, parametrisation: Parametrisation, algorithm: Algorithm = "adamw", lr: float | None = None
) -> tuple[nn.Module, Callable[[nn.Module], Chain]]:
    """(model, its optimizer's factory). Both parametrisations are the same model and the same rates at width `base`, but for muP's zero readout."""
    rate, model = RATES[algorithm] if lr is None else lr, network(task, width)
    if parametrisation == "standard":
        factories: dict[str, Callable[..., Chain]] = {"sgd": sgd, "adamw": adamw, "muon": muon}
        return model, lambda m: factories[algorithm](m, lr=rate)
    with torch.random.fork_rng(devices=[]):  # the base is for comparison, and must not shift what is drawn afterwards
        torch.manual_seed(0)
        narrow = network(task, base)
    mup(model, narrow)
    if algorithm == "muon":
        return model, lambda m: Chain(mup_muon_groups(m, narrow, lr=rate), lr=rate)
    if algorithm == "sgd":
        return model, lambda m: sgd(mup_groups(m, narrow, "sgd", lr=rate), lr=rate)
    return model, lambda m: adamw(mup_groups(m, narrow, "adam", lr=rate, weight_decay=0.01), lr=rate)

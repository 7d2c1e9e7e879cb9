r"""Where decay and updates balance (Kosson, Messmer & Jaggi 2024, https://arxiv.org/abs/2305.17212): angle, norm and time of a neuron's weights.

    for name, balance in equilibrium(optimizer, model).items():
        print(name, balance.angle, balance.norm, balance.steps)

For a row $w$ of $C$ weights whose gradient is noise, orthogonal to $w$ and shrinking as $1/\|w\|$ (a neuron before a normalisation); $\eta$ is the
rate, $\lambda$ the decay, multiplied by the rate as in torch, $\mu$ the momentum, $\tilde g = \|g\|\|w\|$, and
$k = (1-\beta_1)^2 + \beta_1^2\frac{1-\beta_2}{1+\beta_2}$:

* AdamW: angle $\sqrt{2\eta\lambda\frac{1-\beta_1}{1+\beta_1}}$ per step, norm $\sqrt{\eta C/(2\lambda)}$, time constant $1/(2\eta\lambda)$ steps;
* SGD with L2: $\sqrt{2\eta\lambda/(1+\mu)}$, $(\eta\tilde g^2/(2\lambda(1-\mu)))^{1/4}$, $(1-\mu)/(4\eta\lambda)$;
* Lion: $\sqrt{\pi\eta\lambda k}$, $\sqrt{\eta C/(\pi\lambda k)}$, $1/(2\eta\lambda)$.

Momentum makes an update smaller and the next ones like it, which cancels in a random walk: $\frac{1-\beta_1}{1+\beta_1}$ is in AdamW's angle and **not**
in its norm. The norm tends to its balance as $1 - e^{-t/\tau}$, for AdamW and Lion in $\|w\|^2$, for SGD, whose gradient grows when w shrinks,
in $\|w\|^4$; these times are derived here, for $\tau$ well above the memory of both averages. A run shorter than a few $\tau$ never gets there.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from velodrome.optim.rotational import Inner, rotation_per_step

CHAINS: dict[str, Inner] = {
    "adam weightdecay descend": "adamw",
    "lion weightdecay descend": "lion",
    "weightdecay momentum descend": "sgdm",
    "weightdecay descend": "sgdm",
}
CLASSES: dict[str, Inner] = {"AdamW": "adamw", "Lion": "lion", "SGD": "sgdm"}


@dataclass(frozen=True)
class Equilibrium:
    """`angle`: radians per step. `norm`: of a row, the median over rows where these differ, in units of the parameter; None for SGD without a
    gradient at hand. `steps`: the time constant."""

    angle: float
    norm: float | None
    steps: float


def equilibrium(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> dict[str, Equilibrium]:
    """The balance of every matrix and filter under AdamW, SGD with L2 or Lion, with their present rates, by the name of the parameter; others are absent.

    SGD's norm is that of the present gradient, one draw of a noisy number: call it between `backward` and `step`, or average over steps as
    `velodrome look steps` does. `model` only gives the parameters their names.
    """
    found = {name: balance(p, group, optimizer) for name, _, group, p in named(optimizer, model)}
    return {name: value for name, value in found.items() if value is not None}


def balance(p: Tensor, group: dict[str, Any], optimizer: torch.optim.Optimizer | None = None) -> Equilibrium | None:
    """The balance of one parameter; None for vectors, without decay, and for rules without a known formula."""
    kind = method(group, optimizer)
    lr, decay = float(group.get("lr", 0)), float(group.get("weight_decay", 0))
    if kind is None or not lr * decay or p.ndim < 2:
        return None
    b1, b2 = (float(b) for b in ((group.get("momentum", 0), 0) if kind == "sgdm" else group["betas"]))
    angle = float(rotation_per_step(kind, lr, decay, (b1, b2)))
    if kind == "sgdm":
        size = effective_gradient(p)
        norm = None if size is None else (lr * size**2 / (2 * decay * (1 - b1))) ** 0.25
        return Equilibrium(angle, norm, (1 - b1) / (4 * lr * decay))
    long_run = 1.0 if kind == "adamw" else 2 / (math.pi * ((1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)))
    return Equilibrium(angle, math.sqrt(lr * p.shape[1:].numel() * long_run / (2 * decay)), 1 / (2 * lr * decay))


def effective_gradient(p: Tensor) -> float | None:
    r"""$\tilde g = \|g\|\|w\|$, the median over rows; None without a gradient."""
    if p.grad is None or p.grad.is_sparse or not p.numel():
        return None
    g, w = (x.detach().flatten(1).float() for x in (p.grad, p))
    return float((g.norm(dim=1) * w.norm(dim=1)).quantile(0.5))


def method(group: dict[str, Any], optimizer: torch.optim.Optimizer | None) -> Inner | None:
    """Which formula holds for a group; None for a rule without a known one."""
    if group.get("nesterov") or group.get("dampening"):
        return None
    if "chain" in group:
        rules = " ".join(name for name in group["chain"].split() if not name.startswith("clip"))
        return CHAINS.get(rules)
    name = type(optimizer).__name__
    if name == "Adam":
        return "adamw" if group.get("decoupled_weight_decay") else None
    return CLASSES.get(name)


def named(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> Iterator[tuple[str, int, dict[str, Any], Tensor]]:
    """(name, number of the group, group, parameter); names from the model, else from the group, else by place."""
    names = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
    for i, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [f"parameter {j} of group {i}" for j in range(len(group["params"]))]
        for p, name in zip(group["params"], own, strict=True):
            yield names.get(id(p), name), i, group, p

r"""What an optimizer step did to each parameter (rotation and its equilibrium: Kosson et al. 2024, https://arxiv.org/abs/2305.17212).

    with effective_steps(optimizer, model) as report:
        optimizer.step()
    print(report.parameters["0.weight"]["rotation"])

Works around one step of any `torch.optim.Optimizer` and changes nothing, bit for bit. With $w$ the weights before, $\Delta$ their change,
$u = -\Delta/\eta$ the direction (decay included), each parameter that had a gradient or moved gets the numbers of `UNITS`; a number that
cannot be had (no eps, no decay, a zero tensor) is None. Costs a copy of the weights and some passes in float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from velodrome.probes.updates.equilibrium import Equilibrium, balance, named

Numbers = dict[str, float | None]

UNITS = {
    "rms_update": "root mean square of the change, in units of the parameter",
    "relative_update": "norm of the change over norm of the weights, no unit",
    "rotation": "angle between the whole tensor before and after, radians",
    "neuron_rotation": "median over rows (the weights into one neuron) of their angle, radians; None for vectors",
    "equilibrium": "angle per step at which decay and updates balance in a scale-invariant row, radians; None where no formula is known",
    "balance_steps": "time constant in steps with which the norm tends to equilibrium; None with the former",
    "neuron_norm": "median over rows of their norm before the step, in units of the parameter; None for vectors",
    "equilibrium_norm": "that norm in equilibrium; None where no formula is known",
    "trust_ratio": "norm of the weights over norm of the direction, what LAMB would multiply by; in units of the parameter over the direction's",
    "eps_share": "share of the elements with a second moment in which eps exceeds its root, 0 to 1",
    "unmoved": "share of the elements with a gradient or momentum that are bit for bit where they were, 0 to 1",
}
MOMENTA = ("exp_avg", "momentum_buffer", "m", "b")
SECOND = ("max_exp_avg_sq", "v_max", "exp_avg_sq", "square_avg", "sum", "v", "G")
# Where the denominator is the root of the moment as it is kept, not over 1 - beta2^t: by the names of torch's states and of our rules.
UNCORRECTED = ("square_avg", "sum", "rmsprop", "adagrad", "adopt", "diffgrad", "stableadamw", "lamb")


@dataclass
class Report:
    """`parameters`: numbers by name, in the units of `UNITS`. `groups`: the same over all tensors of a group, angles as medians over tensors.

    `about` tells of each parameter its group, dtype, shape and number of updates; filled when the step has been made.
    """

    parameters: dict[str, Numbers] = field(default_factory=dict)
    groups: list[Numbers] = field(default_factory=list)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def effective_steps(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> Iterator[Report]:
    """A report of the one step that is made inside; `model` only gives the parameters their names. Learning rates are read on entry."""
    report = Report()
    before = [
        (
            name,
            i,
            dict(group),
            p,
            p.detach().clone(),
            balance(p, group, optimizer),
            None if p.grad is None or p.grad.is_sparse else p.grad.detach() != 0,
        )
        for name, i, group, p in named(optimizer, model)
    ]
    yield report
    sums: list[list[tuple[Numbers, int]]] = [[] for _ in optimizer.param_groups]
    for name, i, group, p, old, goal, asked in before:
        state = optimizer.state.get(p, {})  # indexing would add an entry
        if asked is None and (p.grad is None or torch.equal(p.detach(), old)):
            continue
        numbers = effect(old, p.detach(), group, state, asked, goal)
        report.parameters[name] = numbers
        report.about[name] = {"group": i, "dtype": str(p.dtype).removeprefix("torch."), "shape": tuple(p.shape), "t": count(state, group)}
        sums[i].append((numbers, p.numel()))
    report.groups = [together(members) for members in sums]


def effect(old: Tensor, new: Tensor, group: dict[str, Any], state: Any, asked: Tensor | None, goal: Equilibrium | None = None) -> Numbers:
    """The numbers of one tensor, from its weights before and after, its group's options and its state; `asked` marks non-zero gradients, `goal` is its
    equilibrium."""
    w, moved = double(old), double(new)
    change = moved - w
    size, length = float(w.norm()), float(change.norm())
    lr = float(group["lr"]) if "lr" in group else 0.0
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape and key.rpartition(".")[2] in MOMENTA:
            asked = value != 0 if asked is None else asked | (value != 0)
    told = 0 if asked is None else int(asked.sum())
    stayed = 0 if asked is None else int((asked & (old == new)).sum())
    return {
        "rms_update": length / max(w.numel(), 1) ** 0.5,
        "relative_update": length / size if size else None,
        "rotation": float(rotation(w, moved)) if size and moved.any() else None,
        "neuron_rotation": neuron_rotation(w, moved),
        "equilibrium": goal.angle if goal else None,
        "balance_steps": goal.steps if goal else None,
        "neuron_norm": float(w.flatten(1).norm(dim=1).quantile(0.5)) if old.ndim > 1 and w.numel() else None,
        "equilibrium_norm": goal.norm if goal else None,
        "trust_ratio": lr * size / length if length and lr else None,
        "eps_share": eps_share(group, state, old),
        "unmoved": stayed / told if told else None,
    }


def double(x: Tensor) -> Tensor:
    """In float64, where the difference of two float32 numbers is exact; on the CPU where the device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def rotation(a: Tensor, b: Tensor, dim: int | None = None) -> Tensor:
    r"""The angle between two non-zero tensors, or between their rows with `dim`, in radians.

    $2\,\mathrm{atan2}(\|\hat a-\hat b\|, \|\hat a+\hat b\|)$ (Kahan): an arc cosine in float32 knows no angle below 3e-4.
    """
    kept = dim is not None
    a, b = (x / torch.linalg.vector_norm(x, dim=dim, keepdim=kept) for x in (a, b))
    return 2 * torch.atan2(torch.linalg.vector_norm(a - b, dim=dim), torch.linalg.vector_norm(a + b, dim=dim))


def neuron_rotation(a: Tensor, b: Tensor) -> float | None:
    """The median angle of the rows that are not zero; None for vectors and where every row is zero."""
    if a.ndim < 2:
        return None
    a, b = a.flatten(1), b.flatten(1)
    there = a.any(1) & b.any(1)
    return float(rotation(a[there], b[there], 1).quantile(0.5)) if there.any() else None


def eps_share(group: dict[str, Any], state: Any, p: Tensor) -> float | None:
    r"""Share of the elements with $v > 0$ in which $\epsilon > \sqrt{\hat v}$, where a state has a second moment under a name of `SECOND`."""
    for name in SECOND:
        for key, v in state.items():
            rule, _, letter = key.rpartition(".")
            eps = group.get(f"{rule}.eps", group.get("eps"))
            if letter != name or eps is None or not isinstance(v, Tensor) or v.shape != p.shape:
                continue
            t, betas = count(state, group), group.get(f"{rule}.betas", group.get("betas"))
            plain = name in UNCORRECTED or (rule.rstrip("0123456789") in UNCORRECTED and group.get("variant") != "debiased")
            there = v > 0
            scale = 1 - float(betas[1]) ** t if betas and t and not plain else 1.0
            return float((double(v[there]) < float(eps) ** 2 * scale).double().mean()) if there.any() else None
    return None


def count(state: Any, group: dict[str, Any]) -> int | None:
    """How many updates the parameter has had, where the optimizer counts them."""
    step = state.get("step", group.get("step"))
    return None if step is None else int(step)


def together(members: list[tuple[Numbers, int]]) -> Numbers:
    """One group's numbers: root mean squares and shares over elements, everything else the median over tensors."""
    numbers: Numbers = {}
    for name in UNITS:
        known = [(value, size) for member, size in members if (value := member[name]) is not None]
        if not known:
            numbers[name] = None
        elif name in ("rms_update", "eps_share", "unmoved"):
            power = 2 if name == "rms_update" else 1
            numbers[name] = (sum(value**power * size for value, size in known) / sum(size for _, size in known)) ** (1 / power)
        else:
            numbers[name] = median(value for value, _ in known)
    return numbers


def medians(reports: list[Report]) -> Report:
    """Medians over the steps of several reports; `about` is that of the last."""
    last = Report(about={name: about for r in reports for name, about in r.about.items()})
    for name in last.about:
        last.parameters[name] = middle([r.parameters[name] for r in reports if name in r.parameters])
    groups = max((len(r.groups) for r in reports), default=0)
    last.groups = [middle([r.groups[i] for r in reports if i < len(r.groups)]) for i in range(groups)]
    return last


def middle(rows: list[Numbers]) -> Numbers:
    """The median of each number over the rows that have it."""
    return {name: median(known) if (known := [v for row in rows if (v := row[name]) is not None]) else None for name in UNITS}

"""Probes that only read tensors at hand: gradients, updates, losses. Exact with sharded parameters too: sums over shards are added over the processes."""

import math
from typing import Any

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, exact, unidentified
from velodrome.probes.failures.spikes import Spikes
from velodrome.probes.updates.motion import UNITS, WIDE, numbers, table
from velodrome.probes.watching.probe import Probe, View
from velodrome.probes.watching.ranks import copies, local


def added(view: View, names: list[str], columns: list[list[float]]) -> list[list[float]]:
    """Sums of every parameter over the processes that hold its parts; one collective, for all of the view's parameters, whichever are at hand here."""
    if not view.ranks.sharded:
        return columns
    at = {name: i for i, name in enumerate(view.params)}
    held = torch.zeros(len(at), len(columns[0]) + 1 if columns else 4, dtype=torch.float64)
    for name, row in zip(names, columns, strict=True):
        held[at[name]] = torch.tensor([*row, 1.0], dtype=torch.float64) / copies(view.params[name], view.ranks.size)
    return [row[:-1] for row in view.ranks.sum(held).tolist()]


class Gradients(Probe):
    """`norm`: Euclidean norm of the step's whole gradient, loss/parameter. `rms_largest`, `rms_smallest` of the parameters, named in the note.

    `not_finite`: how many parameters have a gradient that is NaN or infinite. With a GradScaler whose step unscales, numbers are of the unscaled gradient.
    """

    name, needs, prior, every = "gradient", "gradient", 0.5, 10

    def measure(self, view: View) -> dict[str, Estimate]:
        """Norms in float32 of each tensor, their sum in float64."""
        found = view.gradients()
        names = list(view.params) if view.ranks.sharded else list(found)
        tensors = [found.get(n, torch.zeros(0)) for n in names]
        if not names:
            raise RuntimeError("no parameter has a gradient at this step")
        squares = [(x / view.scale) ** 2 for x in norms(tensors)]
        sizes = [float(view.params[n].numel()) for n in names]
        squares = [row[0] for row in added(view, names, [[s, 0.0, 0.0] for s in squares])]
        rms = {n: math.sqrt(s / size) for n, s, size in zip(names, squares, sizes, strict=True) if math.isfinite(s) and size}
        bad = [n for n, s in zip(names, squares, strict=True) if not math.isfinite(s)]
        out = {
            "norm": exact(math.sqrt(sum(squares)), "loss/parameter")
            if not bad
            else unidentified("loss/parameter", f"{bad[0]} is not finite"),
            "not_finite": exact(len(bad), "parameters", note=", ".join(bad[:3])),
        }
        if rms:
            low, high = min(rms, key=lambda n: rms[n]), max(rms, key=lambda n: rms[n])
            out["rms_largest"] = exact(rms[high], "loss/parameter", note=high)
            out["rms_smallest"] = exact(rms[low], "loss/parameter", note=low)
        return out


class Updates(Probe):
    """What one update did to all weights together (`norm`, `rms`, `relative`, `angle`, `outward` as in `updates.motion`), and the extreme parameters.

    `relative_largest` and `relative_smallest` are among matrices and filters, named in the note. Keeps one copy of the weights for the time of a step.
    """

    name, needs, prior, every = "update", "update", 1.0, 10

    def measure(self, view: View) -> dict[str, Estimate]:
        """Three passes over the weights."""
        names = list(view.before)
        now = [x if x.dtype in WIDE else x.float() for x in (local(view.params[n].detach()) for n in names)]
        before = [x if x.dtype in WIDE else x.float() for x in view.before.values()]
        sums = table(now, list(torch._foreach_sub(now, before)))
        rows = added(view, names, [[norm**2, dot, change**2] for norm, dot, change in sums])
        sizes = [view.params[n].numel() for n in names]
        found = [numbers(math.sqrt(a), b, math.sqrt(c), size) for (a, b, c), size in zip(rows, sizes, strict=True)]
        a, b, c = (sum(row[i] for row in rows) for i in range(3))
        whole = numbers(math.sqrt(a), b, math.sqrt(c), sum(sizes))
        out = {key: exact(value, UNITS[key]) for key, value in whole.items() if math.isfinite(value)}
        each = {n: f["relative"] for n, f in zip(names, found, strict=True) if view.params[n].ndim > 1 and math.isfinite(f["relative"])}
        if each:
            low, high = min(each, key=lambda n: each[n]), max(each, key=lambda n: each[n])
            out["relative_largest"] = exact(each[high], UNITS["relative"], note=high)
            out["relative_smallest"] = exact(each[low], UNITS["relative"], note=low)
        return out


def norms(tensors: list[Tensor]) -> list[float]:
    """Euclidean norms, summed in float32 at least; the host waits once."""
    wide = [x if x.dtype in WIDE else x.float() for x in tensors]
    found = torch._foreach_norm(wide)
    if len({(x.dtype, x.device) for x in found}) == 1:
        return [float(x) for x in torch.stack(found).tolist()]
    return [float(x) for x in found]


class Losses(Probe):
    """Of all losses since the last time: their `mean`, and `spike`, the height of the highest one that is a spike, named in the note (`failures.spikes`).

    Losses are known where the loop calls the loss module that the watch was given, or tells them.
    """

    name, needs, prior, every = "losses", "gradient", 0.2, 10

    def __init__(self) -> None:
        self.spikes = Spikes()

    def measure(self, view: View) -> dict[str, Estimate]:
        """Every step's loss is looked at, at little cost."""
        steps, values = [t for t, _ in view.losses], plain([x for _, x in view.losses])
        if not steps:
            raise ValueError("no loss is known: give watch the loss module that the loop calls, or write seen.step(loss=loss).")
        found = [s for t, x in zip(steps, values, strict=True) if (s := self.spikes.add(t, x, position=t)) is not None]
        out = {"mean": exact(sum(values) / len(values), "loss", n=len(values))}
        if found:
            top = max(found, key=lambda s: s.height)
            note = f"step {top.step}: loss {top.loss:.4g}, usually {top.usual:.4g}"
            out["spike"] = exact(top.height, "robust standard deviations", note=note)
        return out


def plain(losses: list[Any]) -> list[float]:
    """As numbers; those on a device with one wait."""
    tensors = [x for x in losses if isinstance(x, Tensor)]
    if len(tensors) == len(losses) and tensors and len({(x.device, x.dtype) for x in tensors}) == 1:
        return [float(x) for x in torch.stack(tensors).tolist()]
    return [float(x) for x in losses]

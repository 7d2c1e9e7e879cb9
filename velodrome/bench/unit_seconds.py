r"""Unit seconds: what a run would have cost on its machine at the calibrated speed, whatever else the machine had to do. Imports no torch.

$$ \mathrm{cost}(t) = F(t)\, u \left(1 + \frac{s_{\mathrm{optimizer}} + s_{\mathrm{data}}}{s_{\mathrm{gradient}}}\right) $$

$F(t)$ are the FLOPs of the gradients up to step $t$ and $u$ the unit time (`unit_time.py`), so the gradient costs what it costs on an idle machine. An
optimizer's work is mostly memory traffic, which FLOPs do not count, and its products run at another speed than a network's; so it is charged its measured
seconds, as a multiple of the gradient's of the same run: both were measured in turn, step by step, so a load that slows both cancels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = ("t", "flops", "gradient_seconds", "optimizer_seconds", "data_seconds")


def unit_seconds(result: Mapping[str, Any] | None, columns: Mapping[str, Sequence[float] | np.ndarray]) -> list[float]:
    r"""Cumulative cost at each row; `columns` are the rows' COLUMNS. Empty where the run has no unit time or was not clocked. Where a gradient counts no
    FLOPs (lookups and elementwise work alone), $F(t)\,u$ is the number of gradients times the idle machine's seconds for one.

    Where an optimizer computes gradients of its own (torch's LBFGS), their FLOPs are not in $F$: their seconds are among the optimizer's.
    """
    unit = (result or {}).get("unit_time") or {}
    per_flop, per_step = unit.get("seconds_per_flop"), unit.get("flops")
    if not per_flop or not per_step:
        per_flop, per_step = 1.0, unit.get("seconds")
    if not per_step or any(len(columns.get(name, ())) == 0 for name in COLUMNS):
        return []
    t, flops, gradient, optimizer, data = (np.asarray(columns[name], np.float64) for name in COLUMNS)
    update = (result or {}).get("update_flops")
    products = (t + 1) * per_step if update is None or not unit.get("flops") else flops - spent_on_updates(update, t)
    if not gradient[-1] > 0:
        return np.zeros(len(t)).tolist() if len(t) == 1 else []
    share = (optimizer[-1] + data[-1]) / gradient[-1]
    cost: list[float] = (products * per_flop * (1 + share)).tolist()
    return cost


def spent_on_updates(known: float | Sequence[float | None], t: np.ndarray) -> np.ndarray:
    """FLOPs of the first `t` updates, by what a result says of them: of each, or of the first and of each place of a cycle (`flops.Updates`)."""
    if not isinstance(known, Sequence):
        return t * known
    first, places = known[0] or 0, [n or 0 for n in known[1:]]
    each = [first, *(places[n % len(places)] for n in range(2, int(t.max(initial=0)) + 1))]
    return np.concatenate([[0.0], np.cumsum(each)])[t.astype(int)]

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
    """Cumulative cost at each row; `columns` are the rows' COLUMNS. Empty where the run has no unit time, counts no FLOPs, or was not clocked.

    Where an optimizer computes gradients of its own (torch's LBFGS), their FLOPs are not in $F$: their seconds are among the optimizer's.
    """
    unit = (result or {}).get("unit_time") or {}
    per_flop, per_step = unit.get("seconds_per_flop"), unit.get("flops")
    if not per_flop or not per_step or any(len(columns.get(name, ())) == 0 for name in COLUMNS):
        return []
    t, flops, gradient, optimizer, data = (np.asarray(columns[name], np.float64) for name in COLUMNS)
    update = (result or {}).get("update_flops")
    products = (t + 1) * per_step if update is None else flops - t * update
    if not gradient[-1] > 0:
        return np.zeros(len(t)).tolist() if len(t) == 1 else []
    share = (optimizer[-1] + data[-1]) / gradient[-1]
    cost: list[float] = (products * per_flop * (1 + share)).tolist()
    return cost

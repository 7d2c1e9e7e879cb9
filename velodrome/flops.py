"""FLOPs, counted from the operations that really ran (matrix products, convolutions, attention, factorizations), not from a formula of the model.

A multiplication and an addition are two. Elementwise work is not counted, as is usual. torch's counter gives 0 for the attention kernel that CPUs
use (`_scaled_dot_product_flash_attention_for_cpu`, torch 2.13), so it is told here: two products forward, five backward (one recomputed),
over the full square also when causal: torch's own convention for its GPU kernels. It does not know factorizations either, without which Shampoo's roots
and SOAP's bases would be free: leading terms of Golub & Van Loan, Matrix Computations (4th ed., sections 3.2, 4.2, 5.2, 8.3, 8.6).

The loop counts the gradient for each shape of batch. Updates are counted over one `cycle` of the optimizer and once before: its heavy work may be done
every k-th step only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
aten = torch.ops.aten


def _product(q: Any, k: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[-2] * width


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _product(q, k)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return 5 * _product(q, k)


def _sides(a: Any) -> tuple[int, int, int]:
    """(number of matrices, longer side, shorter side)."""
    return math.prod(a[:-2]), max(a[-2:]), min(a[-2:])


def _eigh(a: Any, *args: Any, **kwargs: Any) -> int:
    count, n, _ = _sides(a)
    return 9 * count * n**3


def _qr(a: Any, *args: Any, **kwargs: Any) -> int:
    """Householder's R and as much again for the columns of Q."""
    count, m, n = _sides(a)
    return 4 * count * n * n * (3 * m - n) // 3


def _svd(a: Any, *args: Any, **kwargs: Any) -> int:
    count, m, n = _sides(a)
    return count * (6 * m * n * n + 20 * n**3)


def _cholesky(a: Any, *args: Any, **kwargs: Any) -> int:
    count, n, _ = _sides(a)
    return count * n**3 // 3


def _inverse(a: Any, *args: Any, **kwargs: Any) -> int:
    count, n, _ = _sides(a)
    return 2 * count * n**3


def _solve(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    count, n, _ = _sides(a)
    return count * (2 * n**3 // 3 + 2 * n * n * (b[-1] if len(b) > 1 else 1))


TOLD = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._linalg_eigh: _eigh,
    aten.linalg_qr: _qr,
    aten._linalg_svd: _svd,
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_inv_ex: _inverse,
    aten._linalg_solve_ex: _solve,
}
PERIODS = ("precondition_frequency", "preconditioning_compute_steps", "update_freq")  # options of groups: heavy work every so many steps
LONGEST = 1000  # a cycle beyond that is not kept: every update is counted


def counted(function: Callable[..., T], *args: Any) -> tuple[T, int]:
    """(what the function returns, the FLOPs of the tensor operations it ran)."""
    with FlopCounterMode(display=False, custom_mapping=TOLD) as counter:
        value = function(*args)
    total = counter.get_total_flops()
    assert math.isfinite(total), total
    return value, int(total)


def cycle(optimizer: torch.optim.Optimizer) -> int:
    """After how many updates the optimizer's work repeats, by the options of its groups that say so (`PERIODS`); 1 where none does."""
    found = [group[name] for group in optimizer.param_groups for name in PERIODS if isinstance(group.get(name), int)]
    return math.lcm(*(n for n in found if n > 0))


class Updates:
    """FLOPs of an optimizer's updates: the first is counted by itself, then each place of the cycle once; later ones are known.

    `known` is what a checkpoint holds: one number where every update is alike, else the first's and those of the places, None where not counted yet.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, known: int | Sequence[int | None] | None = None):
        self.cycle = cycle(optimizer)
        self.each = self.cycle > LONGEST
        size = 1 if self.cycle == 1 or self.each else 1 + self.cycle
        if isinstance(known, Sequence) and len(known) != size:
            known = None  # another optimizer's, or its period was changed
        self.known: list[int | None] = list(known) if isinstance(known, Sequence) else [known] * size

    def spend(self, number: int, update: Callable[[], Any]) -> int:
        """Do the update of that number (from 1) and return its FLOPs, counted if they are not known."""
        place = 0 if len(self.known) == 1 or number == 1 else 1 + number % self.cycle
        flops = None if self.each else self.known[place]
        if flops is not None:
            update()
            return flops
        _, flops = counted(update)
        self.known[place] = flops
        return flops

    def state(self) -> int | list[int | None] | None:
        """For a checkpoint."""
        return None if self.each else self.known[0] if self.cycle == 1 else list(self.known)

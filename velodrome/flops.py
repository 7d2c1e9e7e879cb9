"""FLOPs, counted from the operations that really ran (matrix products, convolutions, attention), not from a formula of the model.

A multiplication and an addition are two. Elementwise work is not counted, as is usual. torch's counter gives 0 for the attention kernel that CPUs
use (`_scaled_dot_product_flash_attention_for_cpu`, torch 2.13), so it is told here: two products forward, five backward (one recomputed),
over the full square also when causal: torch's own convention for its GPU kernels.

The loop counts the gradient for each shape of batch and the update once, on the run's first: for an optimizer that does its heavy work every
k-th step only, the update's share is wrong by up to a factor of k.
"""

import math
from collections.abc import Callable
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


CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counted(function: Callable[..., T], *args: Any) -> tuple[T, int]:
    """(what the function returns, the FLOPs of the tensor operations it ran)."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        value = function(*args)
    total = counter.get_total_flops()
    assert math.isfinite(total), total
    return value, int(total)

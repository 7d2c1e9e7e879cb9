"""Rule: a pure function of tensors, `(u, p, state, at) -> (u', state')`, written once and run by every driver.

`u` is what the rule before it produced (the gradient, for the first), `p` the parameter. Rules before `Descend` pass directions on,
rules after it displacements. A rule never writes to `u`, `p` or `state`; it returns new tensors.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

State = dict[str, Any]
Kind = Literal["elementwise", "normwise", "matrixwise", "global"]


class At(NamedTuple):
    """Where a rule stands: `t` counts this parameter's own updates from 1, `lr` is its group's, `total` a global rule's sum."""

    t: int
    lr: Any
    total: Any = None


@dataclass(frozen=True)
class Rule:
    """Base of all rules. Concrete rules are final: nobody inherits from them.

    `kind` says what a rule must see: single elements, a norm of its tensor, its tensor as a matrix, or (`global`) a sum over all tensors
    of the optimizer: then `part` gives one tensor's share, and the host hands the sum back as `at.total`.
    """

    kind: ClassVar[Kind] = "elementwise"

    def init(self, p: Tensor) -> State:
        """State of one parameter before its first update, each entry named by the paper's letter."""
        return {}

    def part(self, u: Tensor, p: Tensor, s: State) -> Tensor:
        """One tensor's share of the sum that a global rule asks for, a 0-d tensor; never called for other kinds."""
        raise AssertionError(f"{type(self).__name__} is {self.kind}: only global rules have parts")

    def __call__(self, u: Tensor, p: Tensor, s: State, at: At) -> tuple[Tensor, State]:
        """One update: the next direction (or displacement) and the next state."""
        raise AssertionError(f"{type(self).__name__} has no __call__")


def check(condition: bool, name: str, got: object, want: str) -> None:
    """Raise the one-sentence ValueError every rule uses for a bad option."""
    if not condition:
        raise ValueError(f"{name} must be {want}, got {got!r}.")


def check_betas(betas: object, count: int = 2) -> None:
    """`betas`: `count` numbers in [0, 1)."""
    ok = isinstance(betas, tuple | list) and len(betas) == count and all(is_number(b) and 0 <= b < 1 for b in betas)
    check(ok, "betas", betas, f"{count} numbers in [0, 1), such as {(0.9, 0.999)[:count]}")


def is_number(x: object) -> bool:
    """A finite int or float that is not a bool."""
    return isinstance(x, int | float) and not isinstance(x, bool) and x == x and abs(x) != float("inf")


def moment(p: Tensor) -> Tensor:
    """Zeros like `p`, but in float32 at least: a bfloat16 moment with beta = 0.999 stops moving (1 + 2^-8 rounds away)."""
    return torch.zeros_like(p, dtype=p.dtype if p.element_size() >= 4 else torch.float32)

"""Descend: from a direction to a displacement. Every chain has exactly one."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from velodrome.optim.rule import At, Rule, State


@dataclass(frozen=True)
class Descend(Rule):
    r"""$\Delta = -\eta\,u$, with $\eta$ the group's `lr`. No state. The chain then does $p \gets p + \Delta$."""

    def __call__(self, u: Tensor, p: Tensor, s: State, at: At) -> tuple[Tensor, dict[str, Any]]:
        """The displacement."""
        return u * -at.lr, {}

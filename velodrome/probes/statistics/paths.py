"""Where parameters enter autograd's graph outside the layers with a rule, and how their gradients of single examples are read off it there.

A bare parameter is added to something that has examples (`x + self.position`), or expanded over them (a class token). The gradient that arrives at that
addition, before it is summed over the examples, is that of each example.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# They only rearrange numbers, so that norms and products of gradients are the same before and after them.
REARRANGES = {
    *("SliceBackward0", "UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1", "ViewBackward0", "UnsafeViewBackward0"),
    *("ReshapeAliasBackward0", "TransposeBackward0", "PermuteBackward0", "TBackward0", "SelectBackward0", "AliasBackward0"),
}


@dataclass(frozen=True)
class Entry:
    """`node` is where something without examples meets the examples; `shape` is its shape there."""

    node: Any
    shape: tuple[int, ...]


class Graph:
    """The graph behind some outputs, with calls of layers that have rules as single nodes: `inside` maps the node of a call's output to those before it."""

    def __init__(self, outputs: Iterable[Tensor], inside: Mapping[Any, list[Any]]) -> None:
        self.users: dict[Any, list[Any]] = {}
        self.inside = inside
        todo = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen = set(todo)
        while todo:
            node = todo.pop()
            for other in self._before(node):
                if other is None:
                    continue
                self.users.setdefault(other, []).append(node)
                if other not in seen:
                    seen.add(other)
                    todo.append(other)

    def _before(self, node: Any) -> list[Any]:
        return self.inside[node] if node in self.inside else [n for n, _ in node.next_functions]

    def leaves(self) -> dict[int, Any]:
        """Nodes that gather gradients of tensors, by the tensors' ids."""
        return {id(n.variable): n for n in self.users if type(n).__name__ == "AccumulateGrad"}

    def entry(self, node: Any, examples: int, apart: Collection[Any] = ()) -> Entry | None:
        """Where what this node makes meets the examples, if it does so once, by an addition or an expansion; `apart` are calls that have no examples."""
        while True:
            users = self.users.get(node, [])
            if len(users) != 1:
                return None
            user, kind = users[0], type(users[0]).__name__
            if kind not in REARRANGES:
                break
            node = user
        own, wide = shape(node), shape(user)
        if len(wide) < 2 or wide[0] != examples or (len(own) == len(wide) and own[0] != 1):
            return None
        if kind == "ExpandBackward0":
            # a length may equal the number of examples; then what was expanded is broadcast once more
            return Entry(user, own) if self.entry(user, examples) is None else None
        if kind != "AddBackward0" or user._saved_alpha != 1:
            return None
        others = [n for n, _ in user.next_functions if n is not node]
        return Entry(user, own) if len(own) + 1 < len(wide) or self._has_examples(others, apart) else None

    def _has_examples(self, nodes: list[Any], apart: Collection[Any]) -> bool:
        """Whether a layer with examples is behind one of the nodes; the sum of two tables as long as the batch has none."""
        todo, seen = [n for n in nodes if n is not None], set[Any]()
        while todo:
            node = todo.pop()
            if node in self.inside and node not in apart:
                return True
            seen.add(node)
            todo += [n for n in self._before(node) if n is not None and n not in seen]
        return False


def shape(node: Any) -> tuple[int, ...]:
    """The shape of what a node made."""
    if type(node).__name__ == "AccumulateGrad":
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[0].shape)


def narrowed(d: Tensor, own: tuple[int, ...]) -> Tensor:
    """A gradient (B, …) summed to a shape that was broadcast to it, for each example (B, numbers of `own`)."""
    full = (1,) * (d.ndim - len(own)) + tuple(own)
    over = [i for i in range(1, d.ndim) if full[i] == 1 and d.shape[i] != 1]
    return (d.sum(over) if over else d).flatten(1)


def listen(entry: Entry, told: Callable[[Tensor], None]) -> Any:
    """Call `told` with the gradient that arrives there; the handle takes it off again."""

    def arrived(grads: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None:
            told(grads[0].detach())

    return entry.node.register_prehook(arrived)

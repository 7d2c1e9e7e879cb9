"""Parts of an operator: the block of a layer or of a group of parameters, all blocks of a kind, and the block-diagonal matrix that they make."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor

from velodrome.probes.curvature.curvature import Curvature
from velodrome.probes.curvature.operator import Operator
from velodrome.probes.curvature.preconditioned import Preconditioned


class Block(Operator):
    r"""$P A P^\top$, P the choice of some of the parameters' entries: for operators that know no shorter way."""

    def __init__(self, operator: Operator, which: Sequence[int]) -> None:
        super().__init__([operator.names[i] for i in which], [operator.shapes[i] for i in which], operator.dtype, operator.device)
        self.operator, self.entries = operator, entries(operator, which)

    def product(self, v: Tensor) -> Tensor:
        """One product of the whole."""
        return self.block(v.unsqueeze(1)).squeeze(1)

    def block(self, V: Tensor) -> Tensor:
        """The columns together."""
        whole = V.new_zeros(self.operator.n, V.shape[1])
        whole[self.entries] = V
        return (self.operator @ whole)[self.entries]


class BlockDiagonal(Operator):
    """Blocks along the diagonal, in their order, and zeros elsewhere: what a method that treats layers apart sees."""

    def __init__(self, blocks: Mapping[str, Operator]) -> None:
        first = next(iter(blocks.values()))
        names, shapes = [n for b in blocks.values() for n in b.names], [s for b in blocks.values() for s in b.shapes]
        super().__init__(names, shapes, first.dtype, first.device)
        self.blocks = dict(blocks)

    def product(self, v: Tensor) -> Tensor:
        """A product of each block."""
        return self.block(v.unsqueeze(1)).squeeze(1)

    def block(self, V: Tensor) -> Tensor:
        """The columns together."""
        parts = V.split([b.n for b in self.blocks.values()])
        return torch.cat([b @ part for b, part in zip(self.blocks.values(), parts, strict=True)])


def block(operator: Operator, patterns: str | Sequence[str]) -> Operator:
    """The block of the parameters whose names match a pattern ("blocks.0.*"). Shares the operator's graphs, and differentiates no more than it needs."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    which = [i for i, name in enumerate(operator.names) if any(fnmatch(name, w) for w in patterns)]
    if not which:
        raise ValueError(f"no parameter matches {patterns}: there are {', '.join(operator.names[:6])} and so on.")
    return chosen(operator, which)


def chosen(operator: Operator, which: Sequence[int]) -> Operator:
    """The block of the parameters at these places, by the shortest way that the operator knows."""
    if isinstance(operator, Curvature):
        return operator.on(which)
    if isinstance(operator, Preconditioned):
        return Preconditioned(chosen(operator.operator, which), operator.scale[entries(operator, which)])
    return Block(operator, which)


def per_layer(operator: Operator, layer_of: Callable[[str], str] | None = None) -> dict[str, Operator]:
    """The block of each layer by its name, in the order of the parameters.

    A layer is a module that holds parameters itself: weight and bias together. `layer_of` maps a parameter's name to another group's, so that
    `lambda name: ".".join(name.split(".")[:2])` takes a whole transformer block as one. All blocks share one set of graphs.
    """
    layer_of = layer_of or (lambda name: name.rpartition(".")[0] or name)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(operator.names):
        groups.setdefault(layer_of(name), []).append(i)
    return {layer: chosen(operator, which) for layer, which in groups.items()}


def per_group(operator: Operator, groups: Mapping[str, Iterable[str]]) -> dict[str, Operator]:
    """The block of each group, given by patterns: `{"attention": ["*.attention.*"], "norms": ["*.norm?.*"]}`. Groups may overlap."""
    return {title: block(operator, list(patterns)) for title, patterns in groups.items()}


def block_diagonal(operator: Operator, layer_of: Callable[[str], str] | None = None) -> BlockDiagonal:
    """The operator with everything between different layers set to zero; the parameters are in the blocks' order. Costs a product of each layer."""
    return BlockDiagonal(per_layer(operator, layer_of))


def entries(operator: Operator, which: Sequence[int]) -> Tensor:
    """Where the parameters at these places lie in a vector."""
    starts = [sum(operator.sizes[:i]) for i in range(len(operator.sizes))]
    parts = [torch.arange(starts[i], starts[i] + operator.sizes[i], device=operator.device) for i in which]
    return torch.cat(parts)

r"""The empirical neural tangent kernel $K = J J^\top$ of any network (Jacot et al. 2018, https://arxiv.org/abs/1806.07572), exact and by sketches."""

# Shapes: n examples, c outputs of one example, P parameters.

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from velodrome.probes.functions.gram import gram, signals
from velodrome.probes.functions.jacobian import Tangent, own_outputs, parts, rows, tensor
from velodrome.probes.objective import Objective, examples, joined

Outputs = Literal["all", "sum", "trace"]
Over = Literal["", "parameters", "outputs"]
MEMORY = 2**30
UNIT = "output²/parameter²"


@dataclass(frozen=True)
class Kernel:
    r"""A kernel over n examples with c outputs each: `matrix` (n·c, n·c), example by example, if `outputs` is "all", else (n, n).

    "sum" is the kernel of the sum of an example's outputs, "trace" the sum over outputs of the kernels of each. In output²/parameter².
    `error` is None for an exact kernel, else one standard error for each entry from `draws` independent draws `over` parameters or
    outputs, which are kept in `sketch`: (R, rows), (R, n, c) for a trace, (R, n, n) over outputs.
    `cost` counts passes over the data.
    """

    matrix: Tensor
    outputs: Outputs
    examples: int
    width: int
    error: Tensor | None = None
    draws: int = 0
    sketch: Tensor | None = None
    over: Over = ""
    unit: str = UNIT
    cost: dict[str, float] = field(default_factory=dict)


def ntk(objective: Objective, outputs: Outputs = "all", *, memory: int = MEMORY) -> Kernel:
    r"""$K_{(i,k),(j,l)} = \langle \partial f_k(x_i)/\partial\theta,\ \partial f_l(x_j)/\partial\theta \rangle$: exact, in the weights' dtype.

    Linear layers with 2-d inputs, also shared ones, add $(A A^\top) \odot (\Delta \Delta^\top)$ and no gradient of an example is made; all other
    parameters go by Jacobians of single examples, in blocks so that about `memory` bytes (default 1 GiB) are held beside the kernel; the more
    blocks, the more often Jacobians are made again. Cost: one forward pass and c backward passes ("sum": one), and the product of the rows.
    ValueError where an example has no outputs of its own (BatchNorm in training mode, dropout).
    """
    if outputs not in ("all", "sum", "trace"):
        raise ValueError(f"outputs must be 'all', 'sum' or 'trace', got {outputs!r}.")
    own_outputs(objective)
    width = _width(objective)
    some = next(iter(objective.params.values()))
    weights = (torch.ones(1, width) if outputs == "sum" else torch.eye(width)).to(some)
    matrix, passes = _exact(objective, weights, outputs == "all", memory)
    return Kernel(matrix, outputs, objective.examples, width, cost={"forward": passes, "backward": len(weights) * passes})


def _width(objective: Objective) -> int:
    with objective.ready(), torch.no_grad():
        return tensor(objective.outputs(objective.batches[0])).flatten(1).shape[1]


def _exact(objective: Objective, weights: Tensor, across: bool, memory: int) -> tuple[Tensor, float]:
    """The kernel of these combinations of outputs (q, c), between all of them if `across`, else summed over them; and the passes over the data."""
    with objective.ready():
        whole = objective.batches[0]
        for batch in objective.batches[1:]:
            whole = joined(whole, batch)
        seen, names = signals(objective, whole, weights)
        size = objective.examples * (len(weights) if across else 1)
        matrix = gram(objective, seen, names, across) if names else weights.new_zeros((size, size))
        left = {name: p.detach() for name, p in objective.params.items() if name not in names}
        passes = _add_rows(objective, weights, left, across, memory, matrix) if left else 0
    return matrix.detach(), 1 + passes


def _add_rows(objective: Objective, weights: Tensor, params: dict[str, Tensor], across: bool, memory: int, matrix: Tensor) -> float:
    """Adds to `matrix` what these parameters contribute, block by block; returns how often the data were passed."""
    each = sum(p.numel() for p in params.values()) * len(weights) * matrix.element_size()
    pieces = parts(objective, int(memory // (2 * each)) or 1)
    sizes = [examples(p) * (len(weights) if across else 1) for p in pieces]
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    made = 0
    for i, first in enumerate(pieces):
        mine = rows(objective, first, weights, params)
        made += sizes[i]
        for j in range(i, len(pieces)):
            other = mine if i == j else rows(objective, pieces[j], weights, params)
            made += 0 if i == j else sizes[j]
            block = torch.stack([_contract(mine[name], other[name], across) for name in params]).sum(0)
            matrix[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] += block
            if i != j:
                matrix[starts[j] : starts[j + 1], starts[i] : starts[i + 1]] += block.T
    return made / starts[-1]


def _contract(a: Tensor, b: Tensor, across: bool) -> Tensor:
    if across:
        return a.flatten(0, 1).flatten(1) @ b.flatten(0, 1).flatten(1).T
    return a.flatten(1) @ b.flatten(1).T  # the sum over combinations and parameters in one product


def ntk_sketch(
    objective: Objective, outputs: Outputs = "all", *, draws: int = 64, over: Over = "parameters", seed: int = 0, memory: int = MEMORY
) -> Kernel:
    r"""An unbiased kernel with a standard error for each entry, for networks with so many outputs that the exact one costs too much.

    Over "parameters": $\hat K = \frac1R \sum_r u_r u_r^\top$ with $u_r = J v_r$, $v_r \sim N(0, I_P)$, one forward-mode pass for each of R `draws`. The
    error of an entry is near $\sqrt{(K_{ii} K_{jj} + K_{ij}^2)/R}$; of the whole matrix it is $\|K\|_F \sqrt{d/R}$ with d the effective rank, large
    unless R is many times d. The rank is at most R, so that single eigenvalues are not those of K: read the trace, the norm and the effective rank
    (`spectrum`), or ask `Tangent` by Lanczos.

    Over "outputs", for the "trace" kernel: $\hat K = \frac1R \sum_r J_r J_r^\top$ with $J_r = w_r^\top J$, gradients of the outputs summed with random
    signs $w_r$, the same for every example. Each draw is an exact kernel of one output, about one backward pass and the product of the rows, and what is
    random is only how much outputs have to do with each other: far smaller errors, for the memory of Jacobians (`memory` as in `ntk`).
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ValueError(f"draws must be a whole number, two or more, for an error can be told from two; got {draws!r}.")
    if outputs not in ("all", "sum", "trace"):
        raise ValueError(f"outputs must be 'all', 'sum' or 'trace', got {outputs!r}.")
    if over not in ("parameters", "outputs") or (over == "outputs" and outputs != "trace"):
        raise ValueError(f"over must be 'parameters', or 'outputs' for the 'trace' kernel, got {over!r} for {outputs!r}.")
    own_outputs(objective)
    generator, width = torch.Generator().manual_seed(seed), _width(objective)
    sketch = (
        _over_outputs(objective, draws, width, generator, memory)
        if over == "outputs"
        else _over_parameters(objective, outputs, draws, generator)
    )
    first = torch.zeros(sketch.shape[1], sketch.shape[1], dtype=sketch.dtype, device=sketch.device)
    second = torch.zeros_like(first)
    for one in sketch:
        product = one if over == "outputs" else one @ one.T if one.ndim == 2 else torch.outer(one, one)
        first += product
        second += product.square()
    mean = first / draws
    error = ((second / draws - mean.square()).clamp(min=0) / (draws - 1)).sqrt()
    cost: dict[str, float] = {"jvp": draws} if over == "parameters" else {"forward": draws, "backward": draws}
    return Kernel(mean, outputs, objective.examples, width, error, draws, sketch, over, cost=cost)


def _over_parameters(objective: Objective, outputs: Outputs, draws: int, generator: torch.Generator) -> Tensor:
    """(R, n·c), (R, n) for the sum, (R, n, c) for the trace; float64."""
    tangent, found = Tangent(objective), []
    for _ in range(draws):
        v = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for n, p in objective.params.items()}
        u = tangent.forth(v).view(objective.examples, -1)
        found.append(u.flatten() if outputs == "all" else u.sum(1) if outputs == "sum" else u)
    return torch.stack(found).double()


def _over_outputs(objective: Objective, draws: int, width: int, generator: torch.Generator, memory: int) -> Tensor:
    """(R, n, n) float64, a kernel for each draw of signs."""
    some = next(iter(objective.params.values()))
    signs = (2 * torch.randint(0, 2, (draws, 1, width), generator=generator) - 1).to(some)
    return torch.stack([_exact(objective, w, False, memory)[0] for w in signs]).double()

"""The Jacobian of a network's outputs in its parameters: example by example, and as products with random or given vectors."""

# Shapes: n examples, c outputs of one example (all its numbers, flattened), P parameters, q combinations of outputs.

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from velodrome.data.stream import Batch
from velodrome.probes.curvature.operator import Operator
from velodrome.probes.objective import Objective, cut


def own_outputs(objective: Objective) -> None:
    """ValueError unless the outputs of an example are a function of that example alone."""
    if name := objective.mixes():
        raise ValueError(f"{name} mixes the examples of a batch, so an example has no Jacobian of its own: look with mode='eval'.")
    for name, m in objective.model.named_modules():
        training = m.training if objective.mode is None else objective.mode == "train"
        if isinstance(m, nn.modules.dropout._DropoutNd) and training and m.p > 0:
            raise ValueError(f"{name or 'the model'} drops out, so the outputs are not a function of the input: look with mode='eval'.")


def math_attention() -> AbstractContextManager[None]:
    """Attention by plain operations: the fused kernels have neither a batching rule nor a forward derivative on every device."""
    return sdpa_kernel(SDPBackend.MATH)


def function(objective: Objective, batch: Batch) -> Callable[[dict[str, Tensor]], Tensor]:
    """The objective's parameters -> outputs (n, c) on a batch, everything else as it is."""
    model = objective.model
    rest = {n: p.detach() for n, p in model.named_parameters() if n not in objective.params} | dict(model.named_buffers())
    args, kwargs = arguments(batch.inputs)

    def run(params: dict[str, Tensor]) -> Tensor:
        return tensor(functional_call(model, {**params, **rest}, args, kwargs)).flatten(1)

    return run


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, as `Objective` reads inputs."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def tensor(outputs: Any) -> Tensor:
    """The outputs, one row for each example; ValueError if they are not one tensor."""
    if not isinstance(outputs, Tensor) or outputs.ndim == 0:
        raise ValueError(f"the model's outputs must be one tensor with a row for each example, got {type(outputs).__name__}.")
    return outputs if outputs.ndim > 1 else outputs.unsqueeze(1)


def detached(objective: Objective) -> dict[str, Tensor]:
    """The parameters looked at, without a graph."""
    return {name: p.detach() for name, p in objective.params.items()}


def rows(objective: Objective, batch: Batch, combinations: Tensor, params: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    r"""Rows $w_q^\top \partial f(x_i)/\partial\theta$ of every example: (n, q, shape of the parameter) by name.

    `combinations` (q, c) are weights on the outputs, the identity for all of them. `params` are some of the objective's (default all). Memory:
    n q P numbers. Inside `ready`.
    """
    model = objective.model
    params = detached(objective) if params is None else params
    rest = {n: p.detach() for n, p in model.named_parameters() if n not in params} | dict(model.named_buffers())

    def one(inputs: Any) -> dict[str, Tensor]:
        args, kwargs = arguments(tree_map(lambda x: x.unsqueeze(0) if isinstance(x, Tensor) else x, inputs))
        f = lambda p: tensor(functional_call(model, {**p, **rest}, args, kwargs)).flatten()  # noqa: E731
        back = vjp(f, params)[1]
        return vmap(lambda w: back(w)[0])(combinations)

    dims = tree_map(lambda x: 0 if isinstance(x, Tensor) else None, batch.inputs)
    with math_attention():
        return vmap(one, in_dims=(dims,))(batch.inputs)


class Tangent(Operator):
    r"""$K = J J^\top$ over all outputs of all examples (n·c, in output²/parameter²), never made: a product is $J(J^\top v)$, about two gradients.

    For the largest eigenvalues of kernels that do not fit in memory, by any of the tools in `spectra/`. Outputs are ordered example by example.
    """

    def __init__(self, objective: Objective) -> None:
        own_outputs(objective)
        self.objective = objective
        with objective.ready(), torch.no_grad():
            shapes = [tensor(objective.outputs(b)).flatten(1).shape for b in objective.batches]
        some = next(iter(objective.params.values()))
        super().__init__([f"outputs.{i}" for i in range(len(shapes))], shapes, some.dtype, some.device)

    def back(self, v: Tensor) -> dict[str, Tensor]:
        r"""$J^\top v$ by parameter."""
        total = {name: torch.zeros_like(p) for name, p in self.objective.params.items()}
        with self.objective.ready(), math_attention():
            for batch, piece in zip(self.objective.batches, self.split(v).values(), strict=True):
                outputs = tensor(self.objective.outputs(batch)).flatten(1)
                params = list(self.objective.params.values())
                found = torch.autograd.grad(outputs, params, piece, materialize_grads=True)
                total = {name: t + g for (name, t), g in zip(total.items(), found, strict=True)}
        return {name: t.detach() for name, t in total.items()}

    def forth(self, direction: dict[str, Tensor]) -> Tensor:
        r"""$J u$ (n·c,) by forward-mode differentiation, one pass."""
        parts = []
        with self.objective.ready(), torch.no_grad(), math_attention(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)  # torch's own, at the first jvp
            for batch in self.objective.batches:
                parts.append(jvp(function(self.objective, batch), (detached(self.objective),), (direction,))[1].flatten())
        return torch.cat(parts)

    def product(self, v: Tensor) -> Tensor:
        r"""$J(J^\top v)$."""
        return self.forth(self.back(v))


def parts(objective: Objective, size: int) -> list[Batch]:
    """All examples in pieces of at most `size`."""
    return [p for b in objective.batches for p in cut(b, max(1, size))]

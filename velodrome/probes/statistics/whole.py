"""Gradients of single examples for what no layer's rule covers: the module is run again on the same inputs, example by example under vmap."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from velodrome.probes.statistics.uses import blocks

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
}  # of outputs against those of the pass that is looked at; other batches round otherwise


@dataclass
class Whole:
    """One call of a module with the parameters `names` (full name -> name inside) whose gradients are wanted, and the gradients at its outputs."""

    module: nn.Module
    title: str
    names: Mapping[str, str]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: Any
    examples: int
    dim: int = 0
    autocast: tuple[str, bool, torch.dtype] | None = None
    deltas: dict[int, Tensor] = field(default_factory=dict)

    def gradients(self) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """(first example, end, gradients (b, …) by full name), block by block. ValueError where the module does not say the same about an example alone."""
        size = sum(self.module.get_parameter(inside).numel() for inside in self.names.values())
        for low, high in blocks(self.examples, max(size, 1)):
            try:
                found = self._block(low, high)
            except RuntimeError:  # vmap cannot do recurrent layers nor control flow that depends on the data
                found = self._one_by_one(low, high)
            yield low, high, {name: found[inside] for name, inside in self.names.items()}

    def _parts(self) -> tuple[list[Any], Any, list[int], list[Tensor], list[Tensor]]:
        leaves, spec = tree_flatten(self.arguments)
        mapped = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim > self.dim and x.shape[self.dim] == self.examples]
        outputs = [y for y in tree_leaves(self.outputs) if isinstance(y, Tensor)]
        taken = [outputs[i] for i in self.deltas]
        for y in taken:
            if y.ndim <= self.dim or y.shape[self.dim] != self.examples:
                raise ValueError(
                    f"{self.title} has an output of shape {tuple(y.shape)}, which has no dimension of {self.examples} examples."
                )
        return leaves, spec, mapped, taken, list(self.deltas.values())

    def _single(self, leaves: list[Any], spec: Any, mapped: list[int]) -> Any:
        params = {n: p.detach() for n, p in self.module.named_parameters()}
        buffers = dict(self.module.named_buffers())

        def outputs(own: dict[str, Tensor], xs: list[Tensor]) -> list[Tensor]:
            mine = list(leaves)
            for i, x in zip(mapped, xs, strict=True):
                mine[i] = x.unsqueeze(self.dim)
            args, kwargs = tree_unflatten(mine, spec)
            found = tree_leaves(functional_call(self.module, {**params, **buffers, **own}, args, kwargs))
            found = [y for y in found if isinstance(y, Tensor)]
            return [found[i].squeeze(self.dim) for i in self.deltas]

        return outputs

    def _block(self, low: int, high: int) -> dict[str, Tensor]:
        leaves, spec, mapped, taken, deltas = self._parts()
        outputs = self._single(leaves, spec, mapped)
        own = {inside: self.module.get_parameter(inside).detach() for inside in self.names.values()}

        def one(xs: list[Tensor], ds: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
            ys, back, *_ = vjp(lambda own: outputs(own, xs), own)
            return back([d.to(y.dtype) for d, y in zip(ds, ys, strict=True)])[0], [y.detach() for y in ys]

        part = lambda t: t.detach().narrow(self.dim, low, high - low)  # noqa: E731
        xs, ds, old = [part(leaves[i]) for i in mapped], [part(d) for d in deltas], [part(y) for y in taken]
        with self._as_before():
            grads, ys = vmap(one, in_dims=(self.dim, self.dim), out_dims=(0, self.dim), randomness="different")(xs, ds)
        self._check(ys, old)
        return grads

    def _one_by_one(self, low: int, high: int) -> dict[str, Tensor]:
        leaves, spec, mapped, taken, deltas = self._parts()
        found: list[tuple[Tensor, ...]] = []
        outputs = self._single(leaves, spec, mapped)
        own = {inside: self.module.get_parameter(inside).detach().requires_grad_() for inside in self.names.values()}
        for i in range(low, high):
            part = lambda t: t.detach().select(self.dim, i)  # noqa: B023, E731
            with self._as_before(), torch.enable_grad():
                ys = outputs(own, [part(leaves[k]) for k in mapped])
                self._check(ys, [part(y) for y in taken])
                total = torch.stack([(y * part(d).to(y.dtype)).sum() for y, d in zip(ys, deltas, strict=True)]).sum()
                found.append(torch.autograd.grad(total, list(own.values()), materialize_grads=True))
        return {name: torch.stack(grads) for name, grads in zip(own, zip(*found, strict=True), strict=True)}

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)  # slow is better than refused
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention has no batching rule
            if self.autocast is not None:
                device, enabled, dtype = self.autocast
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
            yield

    def _check(self, ys: list[Tensor], old: list[Tensor]) -> None:
        for y, before in zip(ys, old, strict=True):
            loose = TOLERANCE.get(before.dtype, 3e-2)
            if float((y.detach() - before.detach()).abs().max()) > loose * float(before.detach().abs().max()) + loose * 1e-3:
                raise ValueError(
                    f"{self.title} says something else about an example alone than in the batch (it draws random numbers, or mixes examples): "
                    "look with the model in eval mode."
                )

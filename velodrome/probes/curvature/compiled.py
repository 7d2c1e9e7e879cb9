"""The Hessian compiled: its graph is cut where the vector enters, one half evaluated once for each point, the other a compiled linear map."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from velodrome.data.stream import Batch
from velodrome.probes.curvature.curvature import Keep, versions
from velodrome.probes.curvature.hessian import Hessian
from velodrome.probes.objective import Objective, examples

Halves = tuple[Callable[..., Any], Callable[..., Any]]


class CompiledHessian(Hessian):
    """See `compiled_hessian`."""

    def __init__(self, objective: Objective, backend: str, keep: Keep) -> None:
        if objective.fix_random:
            raise ValueError("a compiled operator draws other random numbers: look with mode='eval', or write hessian(objective).")
        self.backend = backend
        self._halves: dict[Any, Halves] = {}  # by the shapes of the batch
        super().__init__(objective, keep)

    def trace(self, batch: Batch) -> Any:
        """The mean loss, its gradients, what the linear half needs, and that half."""
        inputs, _ = tree_flatten((batch.inputs, batch.targets))
        shapes = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in inputs)
        fresh = shapes not in self._halves
        if fresh:
            self._halves[shapes] = self._compile(batch)
        point, linear = self._halves[shapes]
        with torch.no_grad():
            loss, gradients, *kept = point(self._weights(), inputs)
        trace = (loss, gradients, kept, linear)
        if fresh:
            self._check(batch, trace)
        return trace

    def apply(self, trace: Any, pieces: list[Tensor]) -> Sequence[Tensor]:
        """The compiled half, of all parameters; of a block, its part of them."""
        kept, linear = trace[2:]
        vectors = [torch.zeros_like(p) for p in self.objective.params.values()] if len(pieces) < len(self.objective.params) else pieces
        for i, v in zip(self.which, pieces, strict=True):
            vectors[i] = v
        with torch.no_grad():
            found = linear(*kept, *vectors)
        return [found[i] for i in self.which]

    def again(self) -> "CompiledHessian":
        """This operator at the weights as they are now, without compiling anew."""
        self._made = versions(self.objective)
        traces = [self._traced(b) for b in self.objective.batches]
        self.loss, self._gradient = 0.0, torch.zeros(())
        for batch, trace in zip(self.objective.batches, traces, strict=True):
            self._note(trace, examples(batch))
        self.traces = traces if self.keep else None
        return self

    def _weights(self) -> list[Tensor]:
        model = self.objective.model
        return [*(p.detach() for p in model.parameters()), *model.buffers()]

    def _compile(self, batch: Batch) -> Halves:
        """Record all operations of a product, cut, and compile the half that the vector goes through."""
        model, wanted = self.objective.model, list(self.objective.params)
        names = [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()]
        inputs, layout = tree_flatten((batch.inputs, batch.targets))

        def product(weights: list[Tensor], inputs: list[Any], vectors: list[Tensor]) -> Any:
            at = {n: w.detach().requires_grad_(n in self.objective.params) for n, w in zip(names, weights, strict=True)}
            x, y = tree_unflatten(inputs, layout)
            args, words = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            loss = self.objective.reduced(functional_call(model, at, args, words), Batch(x, y))
            params = [at[n] for n in wanted]
            gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
            used = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
            if not used:
                raise ValueError("the gradient is the same whatever the weights, so the Hessian is zero: there is nothing to compile.")
            found = torch.autograd.grad([g for g, _ in used], params, [v for _, v in used], materialize_grads=True)
            return loss.detach(), [g.detach() for g in gradients], list(found)

        vectors = [torch.zeros_like(p) for p in self.objective.params.values()]
        recorded = make_fx(product)(self._weights(), inputs, vectors)
        point, linear = halves(recorded, len(vectors))
        return (lambda weights, inputs: point(*weights, *inputs)), torch.compile(
            linear, fullgraph=True, dynamic=False, backend=self.backend
        )

    def _check(self, batch: Batch, trace: Any) -> None:
        """A compiled product must be the one of autograd, twice."""
        generator = torch.Generator().manual_seed(0)
        params = list(self.objective.params.values())
        pieces = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in params]
        truth = Hessian.apply(self, Hessian.trace(self, batch), pieces)
        near = 1e-4 if any(p.dtype == torch.float32 for p in params) else 1e-10
        with torch.compiler.set_stance("default"):
            for _ in range(2):
                found = self.apply(trace, pieces)
                off = sum(float((a - b).square().sum()) for a, b in zip(found, truth, strict=True)) ** 0.5
                size = sum(float(b.square().sum()) for b in truth) ** 0.5
                if not off <= near * size:
                    raise ValueError(f"the compiled product is off by {off / max(size, 1e-30):.1e} of its norm: use hessian(objective).")


def compiled_hessian(objective: Objective, *, backend: str = "inductor", keep: Keep = True) -> CompiledHessian:
    """The Hessian with products compiled by `torch.compile`; exact to rounding, and checked against autograd when it is made.

    Compiling takes minutes for a transformer on a CPU and pays for itself from some thousand products on; `again()` moves the operator to the weights
    as they are now without compiling anew. What a product needs of the point (activations, slopes) is computed once. Compiles once for each shape of
    batch. `backend` is torch.compile's.
    """
    return CompiledHessian(objective, backend, keep)


def halves(recorded: fx.GraphModule, vectors: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The recorded (loss, gradients, product) as (inputs but the last `vectors`) -> (loss, gradients, *kept) and (*kept, *vectors) -> product."""
    recorded.graph.eliminate_dead_code()
    nodes = list(recorded.graph.nodes)
    holes = [n for n in nodes if n.op == "placeholder"]
    entering, (loss, *rest) = holes[-vectors:], nodes[-1].args[0]
    gradients, product = rest[:vectors], rest[vectors:]
    moved = set(entering)
    for n in nodes:
        if any(i in moved for i in n.all_input_nodes):
            moved.add(n)
    late = [n for n in nodes if n in moved and n.op != "output" and n not in entering]
    early = [n for n in nodes if n not in moved and n.op not in ("placeholder", "output")]
    needed = {i for n in late for i in n.all_input_nodes} | set(product)
    kept = [n for n in nodes if n in needed and n not in moved]
    first = cut(recorded, [h for h in holes if h not in moved], early, (loss, gradients, *kept))
    return first, cut(recorded, [*kept, *entering], late, product)


def cut(recorded: fx.GraphModule, inputs: list[fx.Node], nodes: list[fx.Node], outputs: Any) -> fx.GraphModule:
    """A graph of some of the nodes."""
    graph = fx.Graph()
    place = {i: graph.placeholder(i.name) for i in inputs}
    for n in nodes:
        place[n] = graph.node_copy(n, place.__getitem__)
    graph.output(fx.node.map_arg(outputs, place.__getitem__))
    return fx.GraphModule(recorded, graph)

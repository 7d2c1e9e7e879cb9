"""The hooks that see every use of every parameter in a forward pass and its gradient in the backward pass; what `ghost.py` builds on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from velodrome.probes.statistics.paths import Graph, listen, narrowed
from velodrome.probes.statistics.uses import Placed, Rule, Use, least, rule, squared_norm, together
from velodrome.probes.statistics.whole import Whole
from velodrome.probes.undisturbed import undisturbed


@dataclass
class Call:
    """One call of a layer with a rule; `node` is autograd's node of its output, `examples` says whether its input has them in front."""

    module: nn.Module
    rule: Rule
    names: dict[str, str]  # of its parameters: inside -> full
    x: Tensor
    y: Tensor | None
    node: Any
    examples: bool


@dataclass
class Pass:
    """One forward pass, and what its backward pass told so far, by the parameters' names."""

    examples: int
    root: Whole
    calls: list[Call] = field(default_factory=list)
    late: list[Whole] = field(default_factory=list)
    inside: dict[Any, list[Any]] = field(default_factory=dict)
    waiting: dict[str, list[Use]] = field(default_factory=dict)
    squared: dict[str, Tensor] = field(default_factory=dict)
    inner: dict[str, Tensor] = field(default_factory=dict)

    def given(self, x: Tensor) -> bool:
        """Whether a tensor is one of the model's inputs that have examples, or a part of one."""
        inputs = [t for t in tree_leaves(self.root.arguments) if isinstance(t, Tensor) and t.ndim and len(t) == len(x) == self.examples]
        return any(t.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for t in inputs)


class Observer:
    """Put on by `start`, taken off by `stop`; `passes` and `arrivals` (one dict of gradients' squared norms for each backward pass) hold what was seen."""

    def __init__(
        self, model: nn.Module, params: Mapping[str, nn.Parameter], inner: bool, toward: Mapping[str, Tensor] | None = None
    ) -> None:
        refuse(model, params)
        self.model, self.params, self.inner, self.toward = model, params, inner, toward
        self.names = {id(p): name for name, p in params.items()}
        self.passes: list[Pass] = []
        self.arrivals: list[dict[str, Tensor]] = []
        self.kept: dict[str, Tensor] = {}  # gradients for parameters that are looked at again at the end
        self.now: Pass | None = None
        self.handles: list[Any] = []

    def start(self) -> None:
        """Put the hooks on."""
        apart = {id(c) for m in self.model.modules() if is_unit(m) for c in m.modules() if c is not m}
        for title, module in self.model.named_modules():
            own = {} if id(module) in apart else self._own(module, is_unit(module))
            if not own:
                continue
            hook: Any = None
            made = rule(module)
            if made is not None and not is_unit(module):
                hook = partial(self._called, made, own)
            elif is_unit(module) or not any(True for _ in module.children()):
                hook = partial(self._called_whole, title or type(module).__name__, own)
            if hook is not None:  # first of the module's hooks: another may change the output
                self.handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        self.handles.append(self.model.register_forward_pre_hook(self._enter, with_kwargs=True))
        self.handles.append(self.model.register_forward_hook(self._leave, with_kwargs=True))
        for name, p in self.params.items():
            self.handles.append(p.register_hook(partial(self._arrived, name)))

    def stop(self) -> None:
        """Take them off."""
        while self.handles:
            self.handles.pop().remove()

    def _own(self, module: nn.Module, deep: bool) -> dict[str, str]:
        return {inside: self.names[id(p)] for inside, p in module.named_parameters(recurse=deep) if id(p) in self.names}

    # forward

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim), None)
        if not torch.is_grad_enabled() or first is None:
            return
        root = Whole(module, "the model", {}, (args, kwargs), None, first.shape[0], 0, autocast(first))
        self.now = Pass(first.shape[0], root)

    def _called(self, made: Rule, own: dict[str, str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        if self.now is None or not y.requires_grad:
            return
        x = args[0] if args else kwargs["input"]
        whole = x.ndim >= least(module) and y.shape[0] == x.shape[0] == self.now.examples
        call = Call(module, made, own, x.detach(), y, y.grad_fn, whole)
        self.now.calls.append(call)
        self.now.inside[y.grad_fn] = [x.grad_fn]
        y.register_hook(partial(self._delta, self.now, call))

    def _called_whole(
        self, title: str, own: dict[str, str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any
    ) -> None:
        outputs = [t for t in tree_leaves(y) if isinstance(t, Tensor)]
        if self.now is None or not any(t.requires_grad for t in outputs):
            return
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        dim = 0 if getattr(module, "batch_first", True) else 1
        names = {full: inside for inside, full in own.items()}
        detached = [t.detach() for t in outputs]
        used = Whole(module, title, names, (args, kwargs), detached, self.now.examples, dim, autocast(outputs[0]))
        self.now.late.append(used)
        for i, t in enumerate(outputs):
            if t.requires_grad:
                self.now.inside[t.grad_fn] = [x.grad_fn for x in inputs]
                t.register_hook(partial(_keep, used, i))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
        seen, self.now = self.now, None
        outputs = [t for t in tree_leaves(y) if isinstance(t, Tensor)]
        if seen is None or not any(t.requires_grad for t in outputs):
            return
        self.passes.append(seen)
        again = self._survey(seen, Graph(outputs, seen.inside))
        for call in seen.calls:
            call.y = None  # the hook is on; only autograd needs it now
        seen.late = [w for w in seen.late if _without(w, again)]
        seen.root.outputs = [t.detach() for t in outputs]
        seen.root.names = {name: module_name(self.model, self.params[name]) for name in again}
        if again:
            for i, t in enumerate(outputs):
                if t.requires_grad:
                    t.register_hook(partial(_keep, seen.root, i))

    def _survey(self, seen: Pass, graph: Graph) -> set[str]:
        """Listen where parameters without a layer meet the examples; the names of those for which the whole model must be run again."""
        again: set[str] = set()
        ruled = [name for call in seen.calls for name in call.names.values()]
        late = [name for w in seen.late for name in w.names]
        again |= {name for name in late if late.count(name) > 1 or name in ruled}
        apart = []
        for call in seen.calls:
            # A table of positions has no examples, though as many rows may be asked for as there are; what comes out of the model's input has.
            table = isinstance(call.module, nn.Embedding) and (call.x.ndim == 1 or len(call.x) == 1) and not seen.given(call.x)
            entry = graph.entry(call.node, seen.examples) if table else None
            if table:
                call.examples = False
                apart.append(call.node)
            if entry is not None:
                self.handles.append(listen(entry, partial(self._table, seen, call)))
            elif not call.examples:
                again |= set(call.names.values())
        for key, node in graph.leaves().items():
            name = self.names.get(key)
            if name is None:
                continue
            entry = None if name in ruled or name in late or self.toward is not None else graph.entry(node, seen.examples, apart)
            if entry is None:
                again.add(name)
            else:
                self.handles.append(listen(entry, partial(self._placed, seen, name, entry.shape)))
        return again

    # backward

    @torch.no_grad()
    def _delta(self, seen: Pass, call: Call, d: Tensor) -> None:
        if call.examples:
            self._use(seen, call, call.x, d.detach())

    @torch.no_grad()
    def _table(self, seen: Pass, call: Call, d: Tensor) -> None:
        rows = call.x.flatten()
        d = narrowed(d, (len(rows), d.shape[-1])).view(seen.examples, len(rows), -1)
        self._use(seen, call, rows.expand(seen.examples, -1), d)

    def _use(self, seen: Pass, call: Call, x: Tensor, d: Tensor) -> None:
        if x.is_floating_point() and x.dtype != d.dtype and d.element_size() < 4:
            x = x.to(d.dtype)  # autocast: what the layer's product saw
        for inside, use in call.rule(call.module, wide(x), wide(d)).items():
            name = call.names.get(inside)
            if name is not None and name not in seen.root.names:
                seen.waiting.setdefault(name, []).append(use)

    def _placed(self, seen: Pass, name: str, shape: tuple[int, ...], d: Tensor) -> None:
        seen.waiting.setdefault(name, []).append(Placed(wide(narrowed(d, shape))))

    @torch.no_grad()
    def _arrived(self, name: str, grad: Tensor) -> None:
        if not self.arrivals or name in self.arrivals[-1]:
            self.arrivals.append({})
        self.arrivals[-1][name] = squared_norm(wide(grad.detach()))
        direction = wide(grad.detach()) if self.toward is None else self.toward[name]
        for seen in self.passes:
            uses = seen.waiting.pop(name, None)
            if uses is not None:
                if name in seen.squared:
                    raise ValueError("two backward passes went through one forward pass: add the losses and go back once.")
                use = together(uses, seen.examples, self.params[name].numel())
                seen.squared[name] = use.squared()
                if self.inner:
                    seen.inner[name] = use.inner(direction)
            elif self.inner and any(name in w.names for w in (seen.root, *seen.late)):
                self.kept[name] = direction

    @torch.no_grad()
    def finish(self) -> None:
        """Run again what no rule covers. ValueError that names parameters whose gradient is not accounted for."""
        for seen in self.passes:
            for whole in (*seen.late, seen.root):
                if whole.names and whole.deltas:
                    self._run_again(seen, whole)
        found = {name for seen in self.passes for name in seen.squared}
        missing = [name for arrived in self.arrivals for name in arrived if name not in found]
        if missing:
            raise ValueError(
                f"the gradients of {', '.join(sorted(set(missing))[:4])} came from outside the model's forward pass (or out of a checkpoint's), "
                "so their shares cannot be told: call the model itself inside the block, without reentrant checkpoints."
            )

    def _run_again(self, seen: Pass, whole: Whole) -> None:
        squared = {name: list[Tensor]() for name in whole.names}
        inner = {name: list[Tensor]() for name in whole.names}
        with undisturbed(self.model):
            for _, _, grads in whole.gradients():
                for name, g in grads.items():
                    g = wide(g.reshape(len(g), -1))  # a parameter may be one number
                    squared[name].append(g.square().sum(1))
                    if self.inner and name in self.kept:
                        inner[name].append(g @ self.kept[name].flatten())
        seen.squared |= {name: torch.cat(parts) for name, parts in squared.items()}
        seen.inner |= {name: torch.cat(parts) for name, parts in inner.items() if parts}


def _keep(whole: Whole, i: int, d: Tensor) -> None:
    whole.deltas[i] = d.detach()


def _without(whole: Whole, names: set[str]) -> bool:
    whole.names = {full: inside for full, inside in whole.names.items() if full not in names}
    return bool(whole.names)


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x


def autocast(x: Tensor) -> tuple[str, bool, torch.dtype]:
    """Device, whether autocast is on, and its type, as they are now."""
    device = x.device.type
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def module_name(model: nn.Module, p: nn.Parameter) -> str:
    """The first name of a parameter."""
    return next(name for name, q in model.named_parameters() if q is p)


def is_unit(module: nn.Module) -> bool:
    """Whether a module uses its children's parameters itself, so that their own calls do not tell."""
    return isinstance(module, nn.MultiheadAttention) or is_parametrized(module)


def refuse(model: nn.Module, params: Mapping[str, nn.Parameter]) -> None:
    """ValueError for a model whose examples have no gradients of their own, or that hides its layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{name} mixes the examples of a batch, which then have no gradients of their own: call model.eval() or use another norm."
            )
        if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
            raise ValueError(f"{name} divides gradients by counts over the batch: write scale_grad_by_freq=False.")
        if type(module).__name__ == "OptimizedModule":  # importing its class would take a second
            raise ValueError(f"{name or 'the model'} is compiled, which hides its layers: look at the model that torch.compile was given.")
    for name, p in params.items():
        if type(p).__name__ == "DTensor":
            raise ValueError(f"{name} is sharded: gradients of single examples are not told apart there; look at a replica.")

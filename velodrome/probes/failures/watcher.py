"""How the probes of this room look into a forward pass: hooks and a function mode that are put on, see tensors, and are taken off again.

What a handler gets it may read and nothing else. What a checkpointed region computes twice is seen twice, which no mean or maximum minds. Under DDP and
FSDP each process sees its own examples. A compiled model runs past the hooks that come after compiling, and is refused. nn.TransformerEncoderLayer, in
eval mode without gradients, leaves its fused path while anybody hooks it: its outputs then differ in rounding; nothing else is changed, bit for bit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ModuleHandler = Callable[[str, nn.Module, Any, Any, Any], None]  # name, module, args, kwargs, output
FunctionHandler = Callable[[str, Any, Any, Any], None]  # name, args, kwargs, output

# Modules that call no function that anybody watches: to know where a call came from, their coming and going need not be followed.
SILENT = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d),
    *(nn.Dropout, nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Sequential, nn.ModuleList),
)


class Watcher:
    """Handlers for modules and for functions, together over one or more forward passes: `with watcher.watching(): model(x)`."""

    def __init__(self, model: nn.Module, inside: bool = True) -> None:
        self.model, self.named = model, list(model.named_modules())
        if inside and (name := compiled(self.named)) is not None:
            raise ValueError(
                f"{name or 'the model'} is compiled, and compiled code runs past the hooks of a probe: look at the plain model "
                "(`model._orig_mod`, or the one that was given to torch.compile) on a batch."
            )
        self.modules: list[tuple[Callable[[nn.Module], bool], ModuleHandler]] = []
        self.functions: dict[Any, FunctionHandler] = {}
        self._path: list[tuple[str, nn.Module]] = []
        self._calls: dict[str, dict[str, int]] = defaultdict(dict)

    def on_module(self, chosen: Callable[[nn.Module], bool], handler: ModuleHandler) -> None:
        """Call the handler after each forward pass of the chosen modules."""
        self.modules.append((chosen, handler))

    def on_function(self, functions: Sequence[Any], handler: FunctionHandler) -> None:
        """Call the handler after each of these torch functions that a module's forward pass calls by itself."""
        self.functions.update(dict.fromkeys(functions, handler))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The hooks are on inside."""
        hooks = []
        try:
            for name, module in self.named:
                handlers = [handler for chosen, handler in self.modules if chosen(module)]
                calls = bool(self.functions) and type(module) not in SILENT
                if calls:
                    hooks.append(module.register_forward_pre_hook(self._enter(name)))
                if calls or handlers:
                    hook = self._leave(name, handlers, calls)
                    hooks.append(module.register_forward_hook(hook, with_kwargs=True, always_call=calls))
            if self.functions:
                with _Functions(self):
                    yield
            else:
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._path.clear()

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, _: Any) -> None:
            self._path.append((name, module))
            self._calls[name] = {}

        return hook

    def _leave(self, name: str, handlers: list[ModuleHandler], calls: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if calls:
                self._path.pop()
            for handler in handlers:
                quietly(handler, output, name, module, args, kwargs)

        return hook

    @property
    def inside(self) -> bool:
        """Whether a forward pass of the model is under way; what the loop computes between is not the model's."""
        return bool(self._path)

    def called(self, function: Any) -> str:
        """A name for this call of a function: the module's where calling it is all that it does, else with the function and a number."""
        path, module = self._path[-1]
        if not any(True for _ in module.parameters()) and not any(True for _ in module.children()):
            return path
        name = getattr(function, "__name__", "function").strip("_")
        count = self._calls[path].get(name, 0)
        self._calls[path][name] = count + 1
        return ".".join(part for part in (path, name, str(count) if count else "") if part)


class _Functions(TorchFunctionMode):
    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.functions = watcher, watcher.functions

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **kwargs) if kwargs else function(*args)
        if (handler := self.functions.get(function)) is not None and self.watcher.inside:
            quietly(handler, output, self.watcher.called(function), args, kwargs or {})
        return output


def quietly(handler: Callable[..., None], output: Any, *given: Any) -> None:
    """Call a handler without a graph, and without autocast, which would round the numbers of a probe; not when the pass has failed."""
    if output is None:
        return
    device = output.device.type if isinstance(output, Tensor) else "cpu"
    with torch.no_grad():
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                handler(*given, output)
        else:
            handler(*given, output)


def compiled(named: Sequence[tuple[str, nn.Module]]) -> str | None:
    """The name of a part that torch.compile has compiled; None if there is none."""
    for name, module in named:
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return name
    return None


def rows(x: Tensor, most: int | None, unit: int = -1) -> Tensor:
    """(examples and positions, units), detached: all of them, or `most` evenly spaced ones, without a copy of the rest."""
    x = x.detach()
    x = x.unsqueeze(0) if x.ndim < 2 else x
    x = x if unit in (-1, x.ndim - 1) else x.movedim(unit, -1)
    if most is None or x.shape[:-1].numel() <= most:
        return x.flatten(0, -2)
    first = max(1, most // max(x.shape[1:-1].numel(), 1))
    x = x[:: -(-x.shape[0] // first)].flatten(0, -2)
    return x[:: -(-x.shape[0] // most)]


def host(scalars: Sequence[Tensor]) -> list[float]:
    """0-d tensors as numbers, with one wait where they are of one kind."""
    if len({(x.dtype, x.device) for x in scalars}) != 1:
        return [float(x) for x in scalars]
    values: list[float] = torch.stack(list(scalars)).tolist()
    return values


def numbers(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Small tensors of any length as lists, with one wait for each device."""
    if not tensors:
        return []
    flat = [t.detach().float().flatten() for t in tensors]
    if len({t.device for t in flat}) > 1:
        return [t.tolist() for t in flat]
    return [part.tolist() for part in torch.cat(flat).cpu().split([t.numel() for t in flat])]

"""Features: what a layer puts out on the examples of an objective."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from velodrome.probes.objective import Objective


def features(objective: Objective, layer: str) -> Tensor:
    """The outputs of the module named `layer` on all examples, (n, d), flattened and without a graph; "" is the model itself."""
    return captured(objective, [layer])[layer]


def captured(objective: Objective, layers: Sequence[str]) -> dict[str, Tensor]:
    """`features` of several layers in one pass; a module that is called more than once gives its last outputs. ValueError for unknown names."""
    modules = dict(objective.model.named_modules())
    for name in layers:
        if name not in modules:
            raise ValueError(f"there is no layer {name!r}: the model has {', '.join([m for m in modules if m][:8])}.")
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"the outputs of {name!r} must be a tensor, got {type(output).__name__}: name a layer inside it.")
            seen[name] = output.detach().clone()

        return keep

    handles = [modules[name].register_forward_hook(keeper(name)) for name in layers]
    try:
        with objective.ready(), torch.no_grad():
            for batch in objective.batches:
                seen.clear()
                objective.outputs(batch)
                for name in layers:
                    if name not in seen:
                        raise ValueError(f"the layer {name!r} is not run on these examples.")
                    kept[name].append(seen[name].flatten(1) if seen[name].ndim > 1 else seen[name].unsqueeze(1))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(found) for name, found in kept.items()}

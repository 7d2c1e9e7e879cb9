"""A rehearsal: a workload of somebody's own is tried on two examples when its data is loaded, so that a mistake is one sentence before anything is trained.

It runs the model in evaluation mode, forward and backward, its loss and its metrics, and puts the random generators back. What works on a GPU alone is
tried there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from velodrome.bench.protocol import capture, restore
from velodrome.bench.workload import Data, Loss, Workload
from velodrome.data.stream import Batch
from velodrome.data.streams import Shuffled, Windows
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.recipes.load import cause

T = TypeVar("T")
EXAMPLES = 2
CLASSES = (cross_entropy, accuracy)  # what takes class numbers below the number of scores


@dataclass(frozen=True)
class Rehearsed:
    """The `load` of a workload that tries what it has loaded."""

    workload: Workload

    def __call__(self) -> Data:
        """The data; ValueError for a workload that cannot be trained."""
        before = capture()
        try:
            return rehearse(self.workload)
        finally:
            restore(before)


def rehearse(w: Workload) -> Data:
    """Load, and try everything that a run does; returns the data. ValueError, with the workload's name, for whatever cannot be done."""
    name = f"workload {w.name!r}"
    data = _done(w.load, f"{name}: its data cannot be loaded", own=True)
    if not isinstance(data, Data):
        raise ValueError(f"{name}: load must return a Data, got {type(data).__name__}.")
    if not data.valid:
        raise ValueError(f"{name} has nothing to validate on: give Data at least one batch as valid.")
    stream = _done(lambda: data.stream(0), f"{name}: its stream cannot be made", own=True)
    batch = _done(lambda: next(iter(stream)), f"{name}: its stream has no first batch", own=True)
    for what, found in (("its stream yields", batch), ("valid holds", data.valid[0])):
        if not isinstance(found, Batch):
            raise ValueError(f"{name}: {what} {type(found).__name__}, and needs Batch(inputs, targets).")
    model = _done(w.model, f"{name}: its model cannot be built")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: model must be a function that returns a torch.nn.Module, got one that returns {type(model).__name__}.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{name}: its model, {type(model).__name__}, has no parameter to train.")
    labels = {"its training data": [_all(stream, batch)], "its validation data": [b.targets for b in data.valid]}
    tried = _on("cpu", w, model, batch, data.valid[0], labels, name)
    if tried is not None and torch.cuda.is_available() and _on("cuda", w, model, batch, data.valid[0], labels, name) is None:
        tried = None
    if tried is not None:
        raise tried
    return data


def _on(
    device: str, w: Workload, model: nn.Module, batch: Batch, valid: Batch, labels: dict[str, list[Tensor]], name: str
) -> ValueError | None:
    """What goes wrong on a device, or None. Modules are left in the modes they had: a workload may put the same ones into every model it makes."""
    modes = {m: m.training for m in model.modules()}
    try:
        model.to(device).eval()
        _train(w, model, batch.part(0, EXAMPLES).to(device), labels, name)
        _validate(w, model, valid.part(0, EXAMPLES).to(device), name)
    except ValueError as error:
        return error
    finally:
        model.zero_grad()
        for m, mode in modes.items():
            m.training = mode
    return None


def _train(w: Workload, model: nn.Module, batch: Batch, labels: dict[str, list[Tensor]], name: str) -> None:
    """Forward, loss, backward."""
    outputs = _outputs(model, batch, name)
    if isinstance(outputs, Tensor) and outputs.ndim > 1:
        for f in (w.loss, w.metric, *w.accuracies.values()):
            _check_labels(f, outputs.shape[-1], labels, name)
    losses = _values(w.loss, outputs, batch, f"{name}: its loss")
    if not losses.requires_grad:
        raise ValueError(
            f"{name}: its loss does not depend on the model's parameters, so there is no gradient: compute it from the outputs."
        )
    _done(lambda: losses.mean().backward(), f"{name}: its loss has no gradient")


def _validate(w: Workload, model: nn.Module, batch: Batch, name: str) -> None:
    """Forward and every metric."""
    with torch.no_grad():
        outputs = _outputs(model, batch, name)
        for what, metric in {"its metric": w.metric, **{f"accuracies[{key!r}]": f for key, f in w.accuracies.items()}}.items():
            _values(metric, outputs, batch, f"{name}: {what}")


def _outputs(model: nn.Module, batch: Batch, name: str) -> Any:
    given = f"{str(batch.inputs.dtype).removeprefix('torch.')} inputs of shape {tuple(batch.inputs.shape)}"
    return _done(lambda: model(batch.inputs), f"{name}: its model cannot be run on {given}")


def _values(f: Loss, outputs: Any, batch: Batch, what: str) -> Tensor:
    """One value per example, or the reason why not."""
    try:
        found: Any = f(outputs, batch.targets)
    except Exception as error:
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"{what} gets from the model {type(outputs).__name__}, no tensor: return the tensor of outputs, or wrap the model in "
                "layers.logits.Logits where it is an object with .logits."
            ) from error
        reason = str(error) if isinstance(error, ValueError) else cause(error)
        raise ValueError(f"{what} cannot be computed from outputs of shape {tuple(outputs.shape)}: {reason}") from error
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (batch.examples,):
        raise ValueError(
            f"{what} must give one value per example, a tensor of shape ({batch.examples},) here, got {shape}: do not average."
        )
    return found


def _check_labels(f: Loss, classes: int, labels: dict[str, list[Tensor]], name: str) -> None:
    """Refuse class numbers that the model has no score for, wherever in the data they are."""
    bare, ignore = (f.func, f.keywords.get("ignore", -100)) if isinstance(f, partial) else (f, -100)
    if bare not in CLASSES:
        return
    for where, found in labels.items():
        for low, high in _ranges(found, ignore):
            if low < 0 or high >= classes:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"{name}: labels must be class numbers from 0 to {classes - 1}, because the model has {classes} outputs, got {wrong} in {where}."
                )


def _ranges(found: Iterable[Tensor], ignore: int) -> Iterable[tuple[int, int]]:
    """The lowest and the highest of each tensor's class numbers; nothing for other types, which the loss itself refuses."""
    for t in found:
        counted = t if t.is_floating_point() else t[t != ignore] if t.dtype == torch.int64 else t
        if counted.numel() and not counted.is_floating_point():
            yield int(counted.min()), int(counted.max())


def _all(stream: Any, batch: Batch) -> Tensor:
    """All targets of a stream that holds them, or those of its first batch."""
    held = stream.targets if isinstance(stream, Shuffled) else stream.tokens if isinstance(stream, Windows) else None
    return batch.targets if held is None else held


def _done(action: Callable[[], T], sentence: str, own: bool = False) -> T:
    """The result; what goes wrong as a ValueError that begins with `sentence`, unless the error is one already and `own` says to leave it."""
    try:
        return action()
    except ValueError as error:
        if own:
            raise
        raise ValueError(f"{sentence}: {error}") from error
    except StopIteration as error:
        raise ValueError(f"{sentence}.") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{sentence}: {cause(error)}.") from error

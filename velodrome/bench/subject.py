"""What a look opens: a run, a checkpoint, weights of anybody's beside the code that makes their model, that code alone, or a workload."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, cycle, islice, repeat
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from velodrome.bench.protocol import Entry, Live, seed_everything
from velodrome.bench.replay import entry_of, find, replay
from velodrome.bench.weights import load_weights
from velodrome.bench.workload import Workload
from velodrome.data.stream import Batch
from velodrome.probes.objective import as_batch, examples, is_one
from velodrome.recipes.load import cause, load_module, nearest
from velodrome.recipes.parse import parse
from velodrome.records.checkpoint import load
from velodrome.train import Counters, Step

FORMS = "(model, loss, batches) or (model, loss, batches, optimizer)"
WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
PARTS = ("model", "loss", "batches", "optimizer")


@dataclass
class Subject:
    """Somebody's training, alive in memory: `batches` are held still and looked at, `steps` trains on (None where nothing can).

    Steps are yielded as by `train`: after the gradient, before the update. `first` is the step at which it stands; `begun` says whether that step's
    gradient is there, and its update what comes next.
    """

    name: str
    origin: str
    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    batches: list[Batch]
    optimizer: torch.optim.Optimizer | None = None
    steps: Iterator[Step] | None = None
    first: int = 0
    begun: bool = True
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None

    @property
    def batch_size(self) -> int:
        """Examples of one batch."""
        return examples(self.batches[0])


def of_run(path: Path, at: int | None, count: int, on: str | None = None) -> Subject:
    """A recorded run at its newest checkpoint or at step `at`; its next `count` batches are what is looked at, and they are also trained on."""
    record = find(path)
    torch.set_num_threads(record.recipe.get("threads", 1))
    entry, notes = entry_of(record, on)
    live, steps, first, origin = replay(entry, record.path, at)
    return _alive(entry, live, steps, first, record.path.name, origin, notes, count, record.path)


def of_checkpoint(path: Path, count: int, on: str | None = None) -> Subject:
    """One checkpoint of a run, `runs/NAME/checkpoints/step-N`, be it the newest or not."""
    record = find(path.resolve().parents[1])
    entry, notes = entry_of(record, on)
    torch.set_num_threads(entry.setting.threads)
    first, tree = load(path)
    live = Live(entry)
    return _alive(entry, live, live.steps(tree), first, record.path.name, f"its checkpoint of step {first:,}", notes, count, record.path)


def of_workload(task: Workload, algorithm: str, seed: int, at: int, count: int) -> Subject:
    """A workload trained with an algorithm in memory up to step `at`, recorded nowhere."""
    entry = Entry(task, task.load(), parse(algorithm), seed)
    live, steps, first, _ = replay(entry, Path("/nowhere"), at)
    name = f"{task.name}, {entry.recipe.name}, seed {seed}"
    return _alive(entry, live, steps, first, name, "its initial weights" if not at else f"{at:,} steps of training", [], count, None)


def of_function(text: str, seed: int, count: int, weights: Path | None = None) -> Subject:
    """What the function `FILE.py:NAME` or `package.module:NAME` returns, with the weights of a file in its model if one is given."""
    made = called(text, seed)
    if isinstance(made, Workload):
        return of_workload(made, "adamw", seed, 0, count)
    parts = parts_of(made, text)
    model, loss, optimizer = parts["model"], parts["loss"], parts["optimizer"]
    batches, stream = held(parts["batches"], count, text)
    first, origin = 0, f"{text}, seed {seed}"
    notes: list[str] = []
    if weights is not None:
        first, notes, restored = load_weights(weights, model, optimizer)
        origin, optimizer = f"{weights} in the model of {text}", optimizer if restored else None
    for batch in batches:
        _fits(batch, model)
    steps = None if optimizer is None else trained(model, loss, optimizer, stream, first)
    return Subject(text if weights is None else weights.name, origin, model, loss, batches, optimizer, steps, first, False, notes)


def called(text: str, seed: int) -> Any:
    """What the function returns with the generators of torch, NumPy and Python at the seed; ValueError that says what is wrong with it."""
    place, _, attribute = text.rpartition(":")
    if not place or not attribute:
        raise ValueError(f"the code is named FILE.py:FUNCTION, got {text!r}.")
    module = load_module(place)
    function = getattr(module, attribute, None)
    if function is None:
        raise ValueError(f"{place} has no {attribute!r}{nearest(module, attribute)}")
    if isinstance(function, Workload | nn.Module) or not callable(function):
        return function
    needed = [p.name for p in _parameters(function) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ValueError(f"{text} must be callable without arguments, it needs {', '.join(needed)}: give them defaults.")
    seed_everything(seed)
    try:
        return function()
    except ValueError as error:
        raise ValueError(f"{text} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{text} failed: {cause(error)}.") from error


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return []


def parts_of(made: Any, text: str) -> dict[str, Any]:
    """Model, loss, batches and optimizer (or None) from a tuple, a dict or an object with these names; in a tuple the first three in this order."""
    if isinstance(made, tuple | list):
        if len(made) not in (3, 4):
            raise ValueError(f"{text} must return {FORMS}, got {len(made)} values.")
        found = dict(zip(PARTS, made, strict=False))
    elif isinstance(made, Mapping):
        found = dict(made)
    else:
        found = {name: getattr(made, name) for name in PARTS if hasattr(made, name)}
    missing = [name for name in PARTS[:3] if found.get(name) is None]
    if missing:
        raise ValueError(
            f"{text} must return {FORMS}, a dict or an object with these names; got {type(made).__name__} without {missing[0]}."
        )
    model, loss, optimizer = found["model"], found["loss"], found.get("optimizer")
    if not isinstance(model, nn.Module) or isinstance(model, nn.modules.loss._Loss):
        raise ValueError(f"{text}: the model must be a torch.nn.Module, got {type(model).__name__}; the order is {FORMS}.")
    if not callable(loss) or isinstance(loss, torch.optim.Optimizer):
        raise ValueError(f"{text}: the loss must be callable as loss(outputs, targets), got {type(loss).__name__}; the order is {FORMS}.")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{text}: the optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    own = {id(p) for p in model.parameters()}
    if optimizer is not None and not any(id(p) in own for g in optimizer.param_groups for p in g["params"]):
        raise ValueError(f"{text}: the optimizer holds none of the model's parameters: make it after the model is final.")
    return {"model": model, "loss": loss, "batches": found["batches"], "optimizer": optimizer}


def held(batches: Any, count: int, text: str) -> tuple[list[Batch], Iterator[Batch]]:
    """(the first `count` batches, all of them in order and for ever: a list or a loader again from its start, an iterator until it ends)."""
    if is_one(batches):
        one = as_batch(batches)
        return [one], repeat(one)
    if callable(batches) and not isinstance(batches, Iterable):
        batches = batches()
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping | str):
        raise ValueError(f"{text}: batches must be (inputs, targets), a list of them, or a loader, got {type(batches).__name__}.")
    source = iter(batches)
    kept = [as_batch(b) for b in islice(source, count)]
    if not kept:
        raise ValueError(f"{text}: there are no batches: give one or more pairs (inputs, targets).")
    whole = len(kept) < count  # everything there is
    rest = cycle(kept) if whole else chain(kept, map(as_batch, source), _again(batches, source))
    return kept, rest


def _again(batches: Iterable[Any], used: Iterator[Any]) -> Iterator[Batch]:
    while (source := iter(batches)) is not used:
        yield from map(as_batch, source)


def trained(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], optimizer: torch.optim.Optimizer, batches: Iterator[Batch], first: int
) -> Iterator[Step]:
    """Plain training, yielding as `train` does but with whatever inputs the model takes; ends after a loss that is not finite."""
    for t, batch in enumerate(batches, first):
        optimizer.zero_grad()
        x: Any = batch.inputs
        outputs = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
        mean = loss(outputs, batch.targets).mean()
        mean.backward()
        value = float(mean.detach())
        yield Step(batch, value, None if isfinite(value) else "nan" if value != value else "inf", Counters(t=t))
        if not isfinite(value):
            return
        optimizer.step()


def _alive(
    entry: Entry, live: Live, steps: Iterator[Step], first: int, name: str, origin: str, notes: list[str], count: int, folder: Path | None
) -> Subject:
    """The subject of a run; its batches come from another stream at the same place, so that the run draws what it would have drawn."""
    ahead = entry.data.stream(entry.seed)
    ahead.load_state_dict(live.stream.state_dict())
    batches = [batch.to(entry.setting.device) for batch in islice(ahead, count)]
    if entry.setting.bf16:
        notes = [*notes, "trained under bf16 autocast, looked at in the weights' own format"]
    return Subject(name, origin, live.model, entry.workload.loss, batches, live.optimizer, steps, first, True, notes, folder)


def _fits(batch: Batch, model: nn.Module) -> None:
    """ValueError where a batch and the model are on different devices."""
    place = next((p.device for p in model.parameters()), None)
    if isinstance(batch.inputs, Tensor) and place is not None and batch.inputs.device != place:
        raise ValueError(f"the model is on {place} and the batches are on {batch.inputs.device}: put them on one device.")

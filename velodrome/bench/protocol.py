"""The protocol of a race: what identifies a run, how it is trained, evaluated, saved and resumed.

Paired seeds: seed s draws the same initial weights and the same order of the data for every algorithm. Evaluation on a fixed grid, outside the
clock. The rows at step t describe the weights after t updates; their costs include the gradient of step t, which was needed to see them.
"""

import contextlib
import random
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from velodrome.bench.crews.mates import shared
from velodrome.bench.failure import Failure, failure
from velodrome.bench.failure import of as failure_of
from velodrome.bench.guest import Guest
from velodrome.bench.settings import Settings
from velodrome.bench.sources import Sources
from velodrome.bench.workload import Data, Loss, Workload
from velodrome.data.stream import Batch, Stream
from velodrome.gradients.backward import backward
from velodrome.optim.chain import Chain
from velodrome.probes.watch import Watch, watch
from velodrome.recipes.recipe import Recipe
from velodrome.records.checkpoint import latest, save
from velodrome.records.digest import content_hash, package_digest
from velodrome.records.disk import DiskError
from velodrome.records.read import read
from velodrome.records.run import Run
from velodrome.schedules.over import Over
from velodrome.train import Step, needs_closure, train

CLOCK = ("seconds", "data_seconds", "gradient_seconds", "optimizer_seconds")


@dataclass(frozen=True)
class Setting:
    """How runs are computed: `device`, `bf16` autocast, `compile`, `threads` of the process, seconds of wall clock between checkpoints, and where
    a run ends: at its "budget", or already at the first evaluation that reaches the hard "target"."""

    device: str = "cpu"
    bf16: bool = False
    compile: bool = False
    threads: int = 1
    processes: int = 1  # that compute the gradients of one run together (`bench/crews/mates.py`)
    checkpoint_seconds: float = 20.0
    until: Literal["budget", "target"] = "budget"


@dataclass(frozen=True)
class Entry:
    """One run: an algorithm on a workload with a seed; `told` is what the rules of the race add to its identity (`bench/rules/`)."""

    workload: Workload
    data: Data
    recipe: Recipe
    seed: int
    setting: Setting = Setting()
    told: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        w, horizon = self.workload, self.recipe.steps
        if horizon is not None and not 1 <= horizon <= w.steps:
            raise ValueError(
                f"{self.recipe.name} is a schedule over {horizon:,} steps, and {w.name} has {w.steps:,}: write a number from 1 to {w.steps}."
            )

    @property
    def end(self) -> int:
        """The run's number of steps: the workload's budget, or the recipe's own horizon."""
        return self.workload.steps if self.recipe.steps is None else self.recipe.steps

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything the numbers depend on, as written to recipe.json."""
        w = self.workload
        return {
            "workload": w.name,
            "algorithm": self.recipe.name,
            "settings": dict(self.recipe.settings),
            "seed": self.seed,
            "source": self.recipe.source,
            "workload_source": w.source,
            "steps": w.steps,
            "batch_size": w.batch_size,
            "evaluations": w.evaluations,
            "targets": list(w.targets),
            "metric": w.metric_name,
            "summary": w.summary,
            "data": self.data.digest,
            "data_version": self.data.version,
            "device": self.setting.device,
            "bf16": self.setting.bf16,
            "compile": self.setting.compile,
            "threads": self.setting.threads,
            **({"processes": self.setting.processes} if self.setting.processes > 1 else {}),
            "until": self.setting.until,
            **self.told,
            "code": package_digest(),
            **({"targets_from": dict(w.targets_from)} if w.targets_from else {}),
        }

    @cached_property
    def folder(self) -> str:
        """Name of the run's folder; its end is the hash of the identity."""
        name = re.sub(r"^(.*\.py|[^(]*):", "", self.recipe.name)  # without the place of a file or module; options may have colons
        label = "".join(c if c.isalnum() else "-" for c in name)[:40].strip("-")
        return f"{self.workload.name}-{label}-s{self.seed}-{content_hash(self.identity)[:12]}"


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


Seen = Callable[[Step, Callable[[], dict[str, Any]]], None]


def drive(
    entry: Entry,
    root: Path,
    environment: dict[str, Any],
    stop: Callable[[], bool],
    seen: Seen | None = None,
    watching: str | float | None = None,
    *,
    guest: Guest | None = None,
    died: Failure | None = None,
    measured: dict[str, Any] | None = None,
    hopeless: Callable[[Step], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train one run to its end, or from its last checkpoint on; yields its state at every evaluation, with the clock stopped.

    Several of these may be advanced in turn in one process: each keeps its own random generators. `seen` is shown every step that is not
    the last, with a function that returns what a checkpoint of it holds. `watching` is the budget of `probes.watch`, whose full set of numbers goes into
    watch.jsonl of the run's folder; the run is the same with and without. `guest` is what it is in a process of a race, `died` how it ended an earlier
    one, `measured` what else goes into its result; `hopeless` says at an evaluation that missed whether the run ends there. Raises
    Busy if another process trains the run, Interrupted (after saving) once `stop()` is true, and what the algorithm raises:
    then the run has failed, which is a result as well (`failure.py`).
    """
    folder = root / entry.folder
    with Run.open(folder, entry.identity, environment) as run:
        if run.finished:
            yield _earlier(read(folder).result, entry)
            return
        (folder / "error.txt").unlink(missing_ok=True)
        if died is not None:
            yield _failed(run, died, None, measured or {})
            return
        training: _Training | None = None
        settings = Settings()
        try:
            training = _Training(entry, run, stop, seen, watching, guest, measured or {}, settings, hopeless)
            yield from training.go()
        except (Interrupted, GeneratorExit, DiskError):
            raise
        except BaseException as error:
            settings.put_back()
            if guest is not None:
                guest.lift()
            elif isinstance(error, KeyboardInterrupt):
                raise
            with contextlib.suppress(OSError):  # the disk may be what is wrong
                (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
                _failed(run, failure(error, None if guest is None else guest.exceeded), training, measured or {}, guest)
            raise


def _earlier(result: dict[str, Any] | None, entry: Entry) -> dict[str, Any]:
    """The state of a run that was finished before."""
    bad = failure_of(result)
    return {"state": "finished", "t": entry.end} if bad is None else {"state": "failed", "failure": bad.kind, "note": bad.note}


def _failed(run: Run, bad: Failure, training: "_Training | None", measured: dict[str, Any], guest: Guest | None = None) -> dict[str, Any]:
    """Write the result of a failed run. It has at least one row, of a validation that never came; rows from written data are put aside."""
    step = training and training.last
    if run.rows and bad.kind == "data":
        (run.folder / "rows-void.jsonl").write_bytes((run.folder / "rows.jsonl").read_bytes())
        run.truncate(0)
    if not run.rows:
        run.row(t=0, examples=0, tokens=None, flops=0, **dict.fromkeys(CLOCK, 0.0), loss=None, valid=float("nan"))
    spent = training.spent(step) if training and step else {"steps": 0, "examples": 0, "tokens": None, "flops": 0, "seconds": 0.0}
    run.finish(
        {
            **{"state": "failed", "failure": bad.kind, "note": bad.note, "diverged": None, "stopped": None},
            **spent,
            **{"valid": None, "best": training and training.best, "inexact": run.inexact},
            **(training.told() if training else {"notes": guest.leave() if guest else []}),
            **measured,
        }
    )
    return {"state": "failed", "failure": bad.kind, "note": bad.note}


class Live:
    """The live objects of one run (model, optimizer, stream, gradient), and its steps from the start or from a checkpoint on."""

    def __init__(self, entry: Entry):
        self.entry = entry
        setting = entry.setting
        seed_everything(entry.seed)
        self.model = entry.workload.model().to(setting.device)
        self.optimizer = entry.recipe.optimizer(self.model)
        if setting.compile and isinstance(self.optimizer, Chain):
            self.optimizer.compile()
        self.stream: Stream = entry.data.stream(entry.seed)
        autocast = torch.bfloat16 if setting.bf16 else None
        alone = backward(self.model, entry.workload.loss, autocast=autocast, compile=setting.compile)
        self.gradient = shared(alone, entry.workload.name) if setting.processes > 1 else alone
        self.drawn: Callable[[Batch], Batch] = lambda batch: batch

    def steps(self, tree: dict[str, Any] | None = None) -> Iterator[Step]:
        """The run's steps, after the state that a checkpoint holds if one is given; ends where the reader breaks off."""
        end, recipe, device = self.entry.end, self.entry.recipe, self.entry.setting.device
        schedule = recipe.schedule and recipe.schedule(self._first_lr(), end)
        lr = schedule if isinstance(schedule, Over) else (lambda t: schedule(min(t, end - 1))) if schedule else None
        after, pending = self._restore(tree) if tree is not None else (None, None)
        batches = (self.drawn(batch.to(device)) for batch in self.stream)
        return train(self.gradient, self.optimizer, batches, lr, model=self.model, after=after, batch=pending)

    def _first_lr(self) -> float:
        """The rate that a schedule scales: that of the first group which has one that is not 0."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group]
        if len(rates) < len(self.optimizer.param_groups):
            raise ValueError(f"{self.entry.recipe.name} has groups without 'lr', which no schedule can drive: add schedule='constant'.")
        return next((rate for rate in rates if rate), 0.0)

    def _restore(self, tree: dict[str, Any]) -> tuple[dict[str, Any], Batch | None]:
        self.model.load_state_dict(tree["model"])
        for name, p in self.model.named_parameters():
            grad = tree["gradients"][name]
            p.grad = None if grad is None else grad.to(p.device)
        self.optimizer.load_state_dict(tree["optimizer"])
        self.stream.load_state_dict(tree["stream"])
        restore(tree["random"])
        return tree["counters"], Batch(*tree["batch"]).to(self.entry.setting.device) if tree["batch"] else None


class _Training:
    """A run that is recorded: its live objects, its evaluations, and how they go to a checkpoint and back."""

    def __init__(
        self,
        entry: Entry,
        run: Run,
        stop: Callable[[], bool],
        seen: Seen | None,
        watching: str | float | None,
        guest: Guest | None,
        measured: dict[str, Any],
        settings: Settings,
        hopeless: Callable[[Step], bool] | None,
    ):
        self.entry, self.run, self.stop, self.seen, self.watching = entry, run, stop, seen, watching
        self.guest, self.measured = guest, measured
        self.hopeless = hopeless or (lambda step: False)
        self.stopped: str | None = None
        self.settings, self.notes = settings, list[str]()
        self.workload, self.live = entry.workload, Live(entry)
        self._put_back()
        self.model, self.optimizer = self.live.model, self.live.optimizer
        self.valid = [batch.to(entry.setting.device) for batch in entry.data.valid]
        self.sources = Sources(self.live.stream, entry.data.valid, entry.workload.evaluations)
        self.live.drawn = self.sources.draw
        self.last: Step | None = None
        self.mean = Mean()
        self.best: float | None = None
        self.evaluation_seconds = 0.0
        self.saved = time.monotonic()
        self.can_save = True

    def go(self) -> Iterator[dict[str, Any]]:
        found = self._found()
        with self._watched(found) as watched:
            yield from self._go(found, watched)

    def _watched(self, found: dict[str, Any] | None) -> contextlib.AbstractContextManager[Watch | None]:
        if self.watching is None:
            return contextlib.nullcontext()
        start, path = 0 if found is None else int(found["counters"]["t"]) + 1, self.run.folder / "watch.jsonl"
        if not start:
            path.unlink(missing_ok=True)  # of a session that left no checkpoint
        loss = self.workload.loss
        return watch(self.model, self.optimizer, self.watching, loss=loss, probes="full", sink=path, start=start)

    def _go(self, found: dict[str, Any] | None, watched: Watch | None) -> Iterator[dict[str, Any]]:
        w = self.workload
        for step in self.live.steps(found):
            self.mean.add(step.loss)
            self.last = step
            self.sources.check_batch()
            end = step.t == self.entry.end or step.diverged is not None
            if step.t % w.every == 0 or end:
                state = self._evaluate(step)
                self.stopped = "target" if self._there() else None if end else "hopeless" if self.hopeless(step) else None
                end = end or self.stopped is not None
                if end:
                    self._finish(step, state)
                random_state = capture()
                yield state
                restore(random_state)
            if end:
                return
            if self.seen is not None:
                self.seen(step, partial(self._tree, step))
            if watched is not None:
                watched.step(loss=step.loss, batch=step.batch)
            if self.stop():
                self._leave()  # whoever goes on does not know what is left
                self._save(step)
                raise Interrupted
            if time.monotonic() - self.saved > self.entry.setting.checkpoint_seconds:
                self._save(step)

    def _there(self) -> bool:
        """Whether the run is over because it has reached its target."""
        if self.best is None or not self.workload.targets:
            return False
        return self.entry.setting.until == "target" and self.best <= self.workload.targets[-1]

    def _evaluate(self, step: Step) -> dict[str, Any]:
        self._put_back()
        w, began = self.workload, time.perf_counter()
        values = evaluate(self.model, {"valid": w.metric, **w.accuracies}, self.valid, self.optimizer)
        self.evaluation_seconds += time.perf_counter() - began
        self.sources.check()
        valid = values.pop("valid")
        self.best = valid if self.best is None or not self.best <= valid else self.best  # a NaN gives way to any number
        rate = self.optimizer.param_groups[0].get("lr")
        self.run.row(
            step,
            loss=self.mean.take(),
            lr=None if rate is None else float(rate),
            valid=valid,
            **{f"valid_{k}": v for k, v in values.items()},
            diverged=step.diverged,
        )
        return {"state": "running", "t": step.t, "valid": valid, "best": self.best, "seconds": step.seconds, **values}

    def _put_back(self) -> None:
        """What the algorithm has changed in the process, once in the notes."""
        changed = [f"changed {name}, which was put back at every evaluation" for name in self.settings.put_back()]
        self.notes += [note for note in changed if note not in self.notes]

    def _leave(self) -> None:
        """End what the run has started and left running; a note that is there is not made again by a run that went on from a checkpoint before it."""
        self.notes += [note for note in (self.guest.leave() if self.guest else []) if note not in self.notes]

    def spent(self, step: Step) -> dict[str, Any]:
        """What the run has cost up to `step`."""
        c = step.counters
        return {
            **{"steps": step.t, "examples": step.examples, "tokens": step.tokens, "flops": step.flops, "update_flops": c.update_flops},
            **{"seconds": step.seconds, **{name: getattr(step, name) for name in CLOCK[1:]}, "evaluation_seconds": self.evaluation_seconds},
            "bytes": c.bytes,
        }

    def told(self) -> dict[str, Any]:
        """What the process says about the run: what it changed there and left behind, the joules."""
        self._leave()
        return {"notes": self.notes, **(self.guest.result() if self.guest else {})}

    def _finish(self, step: Step, state: dict[str, Any]) -> None:
        self.sources.check_all()
        state["state"] = "diverged" if step.diverged else "finished"
        extra = {k: v for k, v in state.items() if k in self.workload.accuracies}
        self.run.finish(
            {
                "state": state["state"],
                "diverged": step.diverged,
                "stopped": self.stopped,
                **self.spent(step),
                "valid": state["valid"],
                "best": self.best,
                **extra,
                "inexact": self.run.inexact,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                **self.told(),
                **self.measured,
            }
        )

    def _tree(self, step: Step) -> dict[str, Any]:
        """Everything that a checkpoint at a step's yield holds."""
        return {
            "model": dict(self.model.state_dict()),
            "gradients": {n: p.grad for n, p in self.model.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "counters": step.state(),
            "stream": self.live.stream.state_dict(),
            "rows": self.run.rows,
            "mean": [self.mean.total, self.mean.count],
            "best": self.best,
            "evaluation_seconds": self.evaluation_seconds,
            "notes": self.notes,
            "random": capture(),
            "batch": [step.batch.inputs, step.batch.targets, step.batch.tokens] if needs_closure(self.optimizer) else None,
        }

    def _save(self, step: Step) -> None:
        if not self.can_save:
            return
        try:
            save(self.run.folder, step.t, self._tree(step))
        except ValueError as error:  # the optimizer of a user may hold what cannot be stored: then an interrupted run starts again
            self.can_save = False
            (self.run.folder / "not-resumable.txt").write_text(f"{error}\n", encoding="utf-8")
        self.saved = time.monotonic()

    def _found(self) -> dict[str, Any] | None:
        """The newest checkpoint, with rows and counts of the evaluations put back to where it was taken; None to begin at the start."""
        found = latest(self.run.folder)
        if found is None:
            self.run.truncate(0)
            return None
        tree: dict[str, Any] = found[1]
        if self.entry.setting.compile:
            self.run.inexact.append("compile: the first gradient after resuming is computed without it")
        self.run.truncate(tree["rows"])
        self.mean.total, self.mean.count = tree["mean"]
        self.best, self.evaluation_seconds, self.notes = tree["best"], tree["evaluation_seconds"], list(tree["notes"])
        return tree


class Mean:
    """Mean of the training loss between two rows; None where there was no step."""

    total, count = 0.0, 0

    def add(self, value: float) -> None:
        """One more value."""
        self.total, self.count = self.total + value, self.count + 1

    def take(self) -> float | None:
        """The mean so far; starts over."""
        mean = self.total / self.count if self.count else None
        self.total, self.count = 0.0, 0
        return mean


def evaluate(
    model: nn.Module, metrics: dict[str, Loss], batches: Iterable[Batch], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, float]:
    """Mean of each metric over all examples, in evaluation mode and without gradients.

    A chain with a rule that averages is evaluated at its `eval_params`, without touching the model; BatchNorm's statistics are those gathered
    while training, at the weights that train. Another optimizer that keeps weights for evaluation (methods `eval` and `train`) is asked for them,
    and the training weights are put back bit by bit.
    """
    totals, count, training = dict.fromkeys(metrics, 0.0), 0, model.training
    with _evaluation_weights(model, optimizer) as weights, torch.no_grad():
        model.eval()
        for batch in batches:
            outputs = model(batch.inputs) if weights is None else functional_call(model, weights, (batch.inputs,))
            for name, metric in metrics.items():
                totals[name] += float(metric(outputs, batch.targets).double().sum())
            count += batch.examples
        model.train(training)
    return {name: total / count for name, total in totals.items()}


@contextlib.contextmanager
def _evaluation_weights(model: nn.Module, optimizer: Any) -> Iterator[dict[str, Tensor] | None]:
    """The weights to evaluate where they are given, not swapped in."""
    if isinstance(optimizer, Chain) and optimizer.averaged:
        yield optimizer.eval_params(model)
        return
    swap, back = getattr(optimizer, "eval", None), getattr(optimizer, "train", None)
    if not (callable(swap) and callable(back)):
        yield None
        return
    kept = [p.detach().clone() for p in model.parameters()]
    swap()
    try:
        yield None
    finally:
        back()
        for p, value in zip(model.parameters(), kept, strict=True):
            p.data.copy_(value)


def seed_everything(seed: int) -> None:
    """The generators that models and optimizers draw from: Python's, NumPy's, torch's on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of those generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore(state: dict[str, Any]) -> None:
    """Put the generators into that state."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

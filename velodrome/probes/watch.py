"""Watch a run while it trains, for a bounded share of its time, from anybody's loop.

    with watch(model, optimizer, budget="2%", loss=criterion) as seen:
        for x, y in batches:
            criterion(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    print(seen.spent)

Nothing that training depends on is changed: weights, gradients, optimizer, buffers and random generators stay what they would be, bit for bit.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.probes.objective import Loss, as_batch
from velodrome.probes.watching.budget import Account, share_of
from velodrome.probes.watching.chosen import chosen
from velodrome.probes.watching.measure import measured, say
from velodrome.probes.watching.probe import LEAST, Call, Needs, Probe, View
from velodrome.probes.watching.ranks import Ranks, local, plain
from velodrome.probes.watching.sinks import Row, sinks
from velodrome.probes.watching.stopwatch import Stopwatch
from velodrome.probes.watching.summary import Spent

LONGEST = 100  # steps after which the account is looked at anew
WARM_UP = 2  # steps before the clock runs: the first ones compile and fill caches
FAILURES = 3  # in a row, after which a probe is given up
SLOWER = 2.0  # step times that a step watched from inside may take longer; more was a pause
KEPT = 100_000  # rows in memory


class Watch:
    """A watched run, made by `watch`. `rows` are the last 100,000 numbers; `log` says what was not measured, when and why, as (step, probe, reason).

    `t` is the number of the step that is being made. A context manager; `close` takes the hooks off and closes the sinks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        account: Account,
        probes: Sequence[Probe],
        view: dict[str, Any],
        sink: Any,
        start: int,
        clock: Callable[[], float],
    ):
        self.model, self.optimizer, self.account, self.t = plain(model), optimizer, account, start
        self._shown = {**view, "compiled": hasattr(model, "_orig_mod")}
        self.probes = {p.name: p for p in probes}
        self.params = trained(self.model, optimizer)
        self.ranks = Ranks(model)
        self.sinks = sinks(sink, start) if self.ranks.rank == 0 else []
        self.rows: deque[Row] = deque(maxlen=KEPT)
        self.log: list[tuple[int, str, str]] = []
        self._device = local(next(iter(self.params.values()))).device
        self._watch, self._clock = Stopwatch(clock, self._device), clock
        self._plan: list[str] = []  # measured at this step
        self._pending: list[str] = []  # whose update is not made yet
        self._wake = start + WARM_UP
        self._view: View | None = None
        self._around = ExitStack()
        self._own, self._marked, self._began = 0.0, start, 0.0
        self._mark: float | None = None
        self._took: dict[str, float] = {}
        self._largest = dict.fromkeys(self.probes, 1.0)
        self._failures = dict.fromkeys(self.probes, 0)
        self._seconds, self._counts = dict.fromkeys(self.probes, 0.0), dict.fromkeys(self.probes, 0)
        self._deciding, self._examples, self._told = 0.0, 0, False
        self._call: Call | None = None
        self._targets: Any = None
        self._losses: deque[tuple[int, Any]] = deque(maxlen=10_000)
        for name, why in ((n, cannot(p.needs, self.ranks.sharded, view["criterion"])) for n, p in self.probes.items()):
            if why:
                account.close(name)
                self.log.append((start, name, f"not measured: {why}"))
        self._steps: list[Any] = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]
        self._hooks: list[Any] = [model.register_forward_pre_hook(self._called, with_kwargs=True)]
        if isinstance(criterion := view["criterion"], nn.Module):
            self._hooks.append(criterion.register_forward_hook(self._judged))

    def step(self, loss: Tensor | float | None = None, batch: Any = None) -> None:
        """Tell the watch that the gradient of a step is there and its update is not made yet, with its mean loss and its batch if they are at hand.

        From the first call on, hooks on the optimizer are taken off, and what the update did is seen at the next call.
        """
        if not self._told:
            self._told = True
            _remove(self._steps)
        if self._closed:
            return
        if loss is not None and "losses" in self.account.saved:
            self._losses.append((self.t, loss.detach() if isinstance(loss, Tensor) else float(loss)))
        if self._plan or self._pending or self.t + 1 >= self._wake:
            self._safely(self._tell, batch)
        self.t += 1

    @property
    def spent(self) -> Spent:
        """What looking has cost so far, and what was looked at how often; print it."""
        a = self.account
        return Spent(a.spent, a.trained, a.share, a.overdrawn, self._deciding, dict(self._seconds), dict(self._counts))

    def close(self) -> None:
        """Take the hooks off and close the sinks; once is enough."""
        _remove(self._steps)
        _remove(self._hooks)
        if not self._closed:
            self._credit(self.t)
        self._closed = True
        with suppress(Exception):
            self._around.close()
        self._view = self._call = self._targets = None
        for sink in self.sinks:
            with suppress(Exception):
                sink.close()
        self.sinks = []

    _closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy of the model (an average of its weights) holds our hook, and must not copy us

    def __reduce__(self) -> Any:
        return Absent, ()  # nor must a model that is pickled whole

    # What is seen

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not (self._plan or not self._examples) or not torch.is_grad_enabled():
            return
        kind = self._device.type
        self._call = Call(args, kwargs, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        self._examples = self._examples or self._call.examples

    def _judged(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self._told or not isinstance(output, Tensor):
            return
        if "losses" in self.account.saved:
            self._losses.append((self.t, output.detach() if output.ndim == 0 else output.detach().mean()))
        if self._plan and len(args) == 2:
            self._targets = args[1]

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._plan and not any(callable(x) for x in (*args[1:], kwargs.get("closure"))):  # else the gradient is made inside the step
            self._safely(self._look, None)

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._plan or self._pending or self.t + 1 >= self._wake:
            self._safely(self._finish, None)
        self.t += 1

    def _safely(self, act: Callable[[Any], None], given: Any) -> None:
        """An error of ours ends the watching, not the training."""
        try:
            act(given)
        except Exception as error:
            self.close()
            say(f"watching ended at step {self.t}: {type(error).__name__}: {error}")

    # What is done: look at the gradient, look at the update, settle the account, plan

    def _tell(self, batch: Any) -> None:
        if self._pending:
            self._updates()
        if self._plan:
            self._look(batch)
        elif batch is not None and not self._examples:
            self._examples = _call(as_batch(batch)).examples
        self._settle()

    def _finish(self, given: Any) -> None:
        if self._plan:  # the step had a closure, and its gradient is that of the last call
            self._look(None)
        if self._pending:
            self._updates()
        self._settle()

    def _look(self, batch: Any) -> None:
        """Between gradient and update."""
        began, reached = self._watch.start(), self._clock()
        try:
            self._around.close()
        except Exception as error:
            for name in [n for n in self._plan if n in self._took]:
                self._plan.remove(name)
                self._failed(name, self._seen(None), error)
        view = self._seen(None if batch is None else as_batch(batch))
        names, self._plan = self._plan, []
        inside = [n for n in names if n in self._took]  # they slowed this step down
        extra = min(max(0.0, reached - self._began - self.account.step), SLOWER * self.account.step) if inside else 0.0
        self._own += extra
        for name in inside:
            self._took[name] += extra / len(inside)
        late = [n for n in names if self.probes[n].needs == "update"]
        for name in names:
            if name not in late:
                self._measure(name, view)
        if late:
            copying = self._watch.start()
            view.before = dict(zip(self.params, (local(p.detach()).clone() for p in self.params.values()), strict=True))
            taken = self._watch.stop(copying) / len(late)
            self._took.update({n: self._took.get(n, 0.0) + taken for n in late})
            view.call = view.batch = None
            self._view, self._pending = view, late
        if any(n == "losses" for n in names):
            self._losses.clear()
        self._call = self._targets = None
        self._own += self._watch.stop(began)

    def _updates(self) -> None:
        """After the update."""
        began = self._watch.start()
        names, view, self._pending, self._view = self._pending, self._view, [], None
        assert view is not None
        for name in names:
            self._measure(name, view)
        self._own += self._watch.stop(began)

    def _measure(self, name: str, view: View) -> None:
        began = self._watch.start()
        view.fraction = self.account.fractions[name]
        found, error = measured(self.probes[name], view)
        seconds = self._watch.stop(began) + self._took.pop(name, 0.0)
        self.account.spend(name, seconds, view.t, view.fraction)
        self._seconds[name] += seconds
        self._counts[name] += 1
        self._paid += seconds
        rows = [Row(view.t, f"{name}/{key}", estimate, seconds) for key, estimate in found.items()]
        if error is not None:
            self._failed(name, view, error)
        else:
            self._failures[name] = 0
        self.rows.extend(rows)
        for sink in list(self.sinks) if rows else ():
            try:
                sink(rows)
            except Exception as trouble:
                self.sinks.remove(sink)
                say(f"{type(sink).__name__} takes no more rows since step {view.t}: {type(trouble).__name__}: {trouble}")

    _paid = 0.0  # of the own time, what is in the account already

    def _failed(self, name: str, view: View, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, torch.OutOfMemoryError) and view.size > LEAST:
            self._largest[name] = view.fraction / 2
            self.log.append((view.t, name, f"out of memory with {view.size} examples: half as many from now on"))
            return
        self._failures[name] += 1
        if isinstance(error, ValueError) or self._failures[name] >= FAILURES:
            self.account.close(name)
            self.log.append((view.t, name, f"given up: {text}"))
        else:
            self.log.append((view.t, name, text))
        if self._failures[name] == 1 and not isinstance(error, ValueError):  # a refusal is no accident
            say(f"{name} could not be measured at step {view.t}: {text}")

    def _seen(self, batch: Batch | None) -> View:
        call = self._call
        if batch is not None:
            call = _call(batch, call.autocast if call is not None else None)
        elif call is not None and isinstance(self._targets, Tensor) and self._targets.ndim and self._targets.shape[0] == call.examples:
            inputs: Any = call.kwargs if call.kwargs and not call.args else call.args[0] if len(call.args) == 1 else call.args
            batch = Batch(inputs, self._targets)
        scale = getattr(self.optimizer, "grad_scale", None)
        return View(
            self.model,
            self.optimizer,
            self.t,
            self.params,
            self.ranks,
            batch=batch,
            call=call,
            losses=self._losses,
            scale=1.0 if scale is None else float(scale),
            told=self._told,
            **self._shown,
        )

    def _settle(self) -> None:
        """Credit what has passed since the last time, and plan the next step."""
        began = self._clock()
        self._credit(self.t + 1)
        self._decide()
        self._began = self._mark = self._clock()
        self._marked, self._books = self.t + 1, self._mark - began  # known only now; charged the next time

    _books = 0.0

    def _credit(self, t: int) -> None:
        steps = t - self._marked
        if self._mark is not None and steps > 0 and (seconds := self._clock() - self._mark - self._own) > 0:
            self.account.earn(seconds, steps)
        deciding = max(0.0, self._own - self._paid) + self._books
        self.account.spend(None, deciding)
        self._deciding += deciding
        self._own = self._paid = self._books = 0.0

    def _decide(self) -> None:
        account, following = self.account, self.t + 1
        for name in account.saved:
            if self.probes[name].needs in ("forward", "examples", "curvature") and self._examples >= 2 * LEAST:
                sizes = [f for k in range(12) if (f := 0.5**k) * self._examples >= LEAST and f <= self._largest[name]]
                account.resize(name, sizes or [self._largest[name]], self.probes[name].patience)
        names = list(self.probes)
        due = [n for n in account.due(following) if n not in self._pending]
        wake = following + account.wait(following, LONGEST)
        held = self.ranks.agree([wake, *(float(n in due) for n in names), *(account.fractions[n] for n in names)])
        self._wake = int(held[0])
        self._plan = [n for n, flag in zip(names, held[1:], strict=False) if flag]
        account.fractions.update(zip(names, held[1 + len(names) :], strict=True))
        refused: list[str] = []
        for name in self._plan:
            began = self._watch.start()
            try:
                observer = self.probes[name].around(self._seen(None))
                if observer is None:
                    continue
                self._around.enter_context(observer)
            except Exception as error:
                self._failed(name, self._seen(None), error)
                refused.append(name)
            self._took[name] = self._watch.stop(began)
        self._plan = [n for n in self._plan if n not in refused]


class Absent:
    """What stands for the watch in a model that was pickled under it."""

    def _called(self, *anything: Any) -> None:
        """Nothing is seen."""

    _judged = _before = _after = _called


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    budget: str | float = "2%",
    *,
    loss: Loss | None = None,
    probes: str | Sequence[str | Probe] = "cheap",
    sink: Any = None,
    start: int = 0,
    mode: Literal["train", "eval"] | None = None,
    fix_random: bool = False,
    clock: Callable[[], float] = perf_counter,
) -> Watch:
    """Look at `model` while `optimizer` trains it, and spend at most `budget` of the training time on it.

    Steps are seen by hooks on the optimizer and inputs by one on the model: give the module that the loop calls (what torch.compile or
    DistributedDataParallel returned). If `loss` is a module that the loop calls, targets and losses are seen too. A loop that calls
    `seen.step(loss=…, batch=…)` between gradient and update is believed instead; so write it in the reader of `velodrome.train.train`.

    Args:
        model: what is trained.
        optimizer: any torch.optim.Optimizer, a Chain included.
        budget: "2%", 0.02 or seconds a minute as "1.2 s/min"; of the training time so far, at any time.
        loss: (outputs, targets) -> one loss per example, or one of torch's mean criteria; for what needs derivatives.
        probes: "cheap", "full", or names and Probe objects; `velodrome/probes/watching/chosen.py` lists them.
        sink: where rows go besides `rows`: FILE.jsonl, a folder or a SummaryWriter of TensorBoard, a function of a list of rows, or several.
        start: number of the first step; a resumed run says where it goes on, and its file of rows is cut there.
        mode: "train", "eval" or None for the model's own; for probes that run the model.
        fix_random: curvature of a model with dropout holds for one draw; without it (and mode="eval") it is refused.
        clock: seconds; for tests.

    Raises:
        ValueError: an unknown probe, a budget that is no share, a file that holds another run.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    found = chosen(probes)
    account = Account(share_of(budget), {p.name: p.prior for p in found}, {p.name: p.every for p in found})
    shown = {"criterion": loss, "mode": mode, "fix_random": fix_random}
    return Watch(model, optimizer, account, found, shown, sink, start, clock)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The optimizer's parameters that are trained, by the model's names; ValueError if there are none, or none is the model's."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: p for g in optimizer.param_groups for p in g["params"] if id(p) in names and p.requires_grad}
    if not found:
        raise ValueError("the optimizer trains no parameter of the model: give the model whose parameters it was made with.")
    return found


def cannot(needs: Needs, sharded: bool, criterion: Loss | None) -> str | None:
    """Why a probe cannot be measured in this run, if that is known before it begins."""
    if sharded and needs in ("examples", "curvature"):
        what = "second derivatives" if needs == "curvature" else "gradients of single examples"
        return f"the parameters are sharded (FSDP2), and {what} of shards are not exact: look at a checkpoint"
    if sharded and needs == "forward":
        return "the parameters are sharded (FSDP2), and another forward pass would leave them gathered: look at a checkpoint"
    if needs == "curvature" and criterion is None:
        return "the loss is unknown: write watch(…, loss=cross_entropy), a function of (outputs, targets)"
    return None


def _call(batch: Batch, autocast: torch.dtype | None = None) -> Call:
    inputs: Any = batch.inputs
    if isinstance(inputs, dict):
        return Call((), inputs, autocast)
    return Call(inputs if isinstance(inputs, tuple) else (inputs,), {}, autocast)


def _remove(hooks: list[Any]) -> None:
    while hooks:
        hooks.pop().remove()

"""The watched run: what hooks and the loop tell, when it is looked at, and how the account is settled after each look."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from velodrome.data.stream import Batch
from velodrome.probes.objective import as_batch
from velodrome.probes.watching.attach import Absent, Hooks, call_of, cannot, trained
from velodrome.probes.watching.measure import say
from velodrome.probes.watching.meter import SLOWER, Meter, cost_of_hooks
from velodrome.probes.watching.outcomes import Outcomes
from velodrome.probes.watching.probe import LEAST, Call, Probe, View
from velodrome.probes.watching.ranks import Ranks, local, plain
from velodrome.probes.watching.sinks import Row, sinks
from velodrome.probes.watching.summary import Spent

LONGEST = 100  # steps after which the account is looked at anew
WARM_UP = 2  # steps before the clock runs: the first ones compile and fill caches
SAFE = 0.8  # of the budget is spent by the watch's own account; the rest is for what no clock inside the process sees


class Watch:
    """A watched run, made by `watch`. `rows` are the last 100,000 numbers; `log` says what was not measured, when and why, as (step, probe, reason).

    `t` is the number of the step that is being made. A context manager; `close` takes the hooks off and closes the sinks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        meter: Meter,
        probes: Sequence[Probe],
        view: dict[str, Any],
        sink: Any,
        start: int,
    ):
        self.model, self.optimizer, self.meter, self.account, self.t = plain(model), optimizer, meter, meter.account, start
        self._shown = {**view, "compiled": hasattr(model, "_orig_mod")}
        self.params = trained(self.model, optimizer)
        self.ranks = Ranks(model)
        self.probes = {p.name: p for p in probes}
        self.outcomes = Outcomes(probes, meter, sinks(sink, start) if self.ranks.rank == 0 else [])
        self.rows: deque[Row] = self.outcomes.rows
        self.log: list[tuple[int, str, str]] = self.outcomes.log
        self._plan: list[str] = []  # measured at this step
        self._pending: list[str] = []  # whose update is not made yet
        self._wake = start + WARM_UP
        self._view: View | None = None
        self._around = ExitStack()
        self._began = 0.0  # the step, where it is looked into
        self._looked = self._touched = False  # a look was in this stretch, and in the one before
        self._examples, self._told, self._closed = 0, False, False
        self._call: Call | None = None
        self._targets: Any = None
        self._losses: deque[tuple[int, Any]] = deque(maxlen=10_000)
        for name, why in ((n, cannot(p.needs, self.ranks.sharded, view["criterion"])) for n, p in self.probes.items()):
            if why:
                self.outcomes.refuse(start, name, f"not measured: {why}")
        self._hang(model, view["criterion"])

    def _hang(self, model: nn.Module, criterion: Any) -> None:
        """Hooks: some at every step, some only where a step is looked at, some until it is known how many examples a batch has."""
        self._steps, self._always, self._calls, self._looks = Hooks(), Hooks(), Hooks(), Hooks()
        self._steps.makers.append(lambda: self.optimizer.register_step_post_hook(self._after))
        self._looks.makers.append(lambda: self.optimizer.register_step_pre_hook(self._before))
        fixed = getattr(model, "_compiled_call_impl", None) is not None  # model.compile() sees a hook that comes later as another model
        calls = self._always if fixed else self._calls
        calls.makers.append(lambda: model.register_forward_pre_hook(self._called, with_kwargs=True))
        judged = isinstance(criterion, nn.Module)
        if judged:
            self._always.makers.append(lambda: criterion.register_forward_hook(self._judged))
        self.meter.each, self._telling = cost_of_hooks(self.meter.clock, judged)
        for hooks in (self._steps, self._always, self._calls):
            hooks.on()

    def step(self, loss: Tensor | float | None = None, batch: Any = None) -> None:
        """Tell the watch that the gradient of a step is there and its update is not made yet, with its mean loss and its batch if they are at hand.

        From the first call on, hooks on the optimizer are taken off, and what the update did is seen at the next call.
        """
        if not self._told:
            self._told, self.meter.each = True, self._telling
            self._steps.drop()
            self._looks.drop()
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
        a, m, o = self.account, self.meter, self.outcomes
        seconds, counts = dict(o.seconds), dict(o.counts)
        return Spent(a.spent, a.trained, m.budget, a.overdrawn, a.deepest, m.deciding, m.hooks, m.after, seconds, counts)

    def close(self) -> None:
        """Take the hooks off and close the sinks; once is enough."""
        for hooks in (self._steps, self._always, self._calls, self._looks):
            hooks.drop()
        if not self._closed:
            self.meter.credit(self.t, self._touched)
        self._closed = True
        with suppress(Exception):
            self._around.close()
        self._view = self._call = self._targets = None
        self.outcomes.close()

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
        kind = self.meter.device.type
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
            self._safely(self._look, None, settle=False)

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._plan or self._pending or self.t + 1 >= self._wake:
            self._safely(self._finish, None)
        self.t += 1

    def _safely(self, act: Callable[[Any], None], given: Any, settle: bool = True) -> None:
        """All of it is looking, and freeing what it held too. An error of ours ends the watching, not the training."""
        watch = self.meter.stopwatch if self._plan or self._pending else None  # on a GPU stopping waits for the device
        self._reached = self.meter.clock()
        try:
            began = watch.start() if watch else None
            act(given)
            self.meter.own += watch.stop(began) if watch else 0.0
            if settle:
                self._settle()
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
            self._examples = call_of(as_batch(batch)).examples

    def _finish(self, given: Any) -> None:
        if self._plan:  # the step had a closure, and its gradient is that of the last call
            self._look(None)
        if self._pending:
            self._updates()

    def _look(self, batch: Any) -> None:
        """Between gradient and update."""
        self._looked = True
        names, self._plan = self._plan, []
        try:
            self._around.close()
        except Exception as error:
            for name in [n for n in names if n in self.outcomes.took]:
                names.remove(name)
                self.outcomes.failed(name, self._seen(None), error)
        view = self._seen(None if batch is None else as_batch(batch))
        self._slowed([n for n in names if n in self.outcomes.took])
        late = [n for n in names if self.probes[n].needs == "update"]
        for name in names:
            if name not in late:
                self.outcomes.measure(name, view)
        if late:
            copying = self.meter.stopwatch.start()
            view.before = dict(zip(self.params, (local(p.detach()).clone() for p in self.params.values()), strict=True))
            taken = self.meter.stopwatch.stop(copying) / len(late)
            for name in late:
                self.outcomes.add(name, taken)
            view.call = view.batch = None
            self._view, self._pending = view, late
        if "losses" in names:
            self._losses.clear()
        self._call = self._targets = None

    def _slowed(self, names: list[str]) -> None:
        """The step that ends here was looked at from inside, for these probes, and pays what it took longer than others."""
        if names:
            usual = self.account.step
            extra = min(max(0.0, self._reached - self._began - usual), SLOWER * usual)
            self.meter.own += extra
            for name in names:
                self.outcomes.add(name, extra / len(names))

    def _updates(self) -> None:
        """After the update."""
        self._looked = True
        names, view, self._pending, self._view = self._pending, self._view, [], None
        assert view is not None
        for name in names:
            self.outcomes.measure(name, view)

    def _seen(self, batch: Batch | None) -> View:
        call = self._call
        if batch is not None:
            call = call_of(batch, call.autocast if call is not None else None)
        elif call is not None and isinstance(self._targets, Tensor) and self._targets.ndim and self._targets.shape[0] == call.examples:
            inputs: Any = call.kwargs if call.kwargs and not call.args else call.args[0] if len(call.args) == 1 else call.args
            batch = Batch(inputs, self._targets)
        found: Any = getattr(self.optimizer, "grad_scale", None)
        shown: dict[str, Any] = {**self._shown, "batch": batch, "call": call, "losses": self._losses, "told": self._told}
        scale = 1.0 if found is None else float(found)
        return View(self.model, self.optimizer, self.t, self.params, self.ranks, scale=scale, **shown)

    def _settle(self) -> None:
        """Credit what has passed since the last time, and plan the next step. Told looks come at the end of a stretch, and touch only the next one."""
        began = self.meter.clock()
        self.meter.credit(self.t + 1, self._touched or (self._looked and not self._told))
        self._decide()
        self._touched, self._looked = self._looked, False
        self.meter.settle(began, self.t + 1)
        assert self.meter.mark is not None
        self._began = self.meter.mark

    def _decide(self) -> None:
        account, following = self.account, self.t + 1
        for name in account.saved:
            if self.probes[name].needs in ("forward", "examples", "curvature") and self._examples >= 2 * LEAST:
                sizes = [f for k in range(12) if (f := 0.5**k) * self._examples >= LEAST and f <= self.outcomes.largest[name]]
                account.resize(name, sizes or [self.outcomes.largest[name]], self.probes[name].patience)
        names = list(self.probes)
        due = [n for n in account.due(following) if n not in self._pending]
        wake = following + (1 if self._looked else account.wait(following, LONGEST))  # the step after a look is clocked alone
        held = self.ranks.agree([wake, *(float(n in due) for n in names), *(account.fractions[n] for n in names)])
        self._wake = int(held[0])
        self._plan = [n for n, flag in zip(names, held[1:], strict=False) if flag]
        account.fractions.update(zip(names, held[1 + len(names) :], strict=True))
        self._enter()
        for hooks, needed in ((self._calls, self._plan or not self._examples), (self._looks, self._plan)):
            hooks.on() if needed else hooks.off()

    def _enter(self) -> None:
        """What probes put around the step to come."""
        refused: list[str] = []
        for name in self._plan:
            began = self.meter.stopwatch.start()
            try:
                observer = self.probes[name].around(self._seen(None))
                if observer is None:
                    continue
                self._around.enter_context(observer)
            except Exception as error:
                self.outcomes.failed(name, self._seen(None), error)
                refused.append(name)
            self.outcomes.took[name] = self.meter.stopwatch.stop(began)
        self._plan = [n for n in self._plan if n not in refused]

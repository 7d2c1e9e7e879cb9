"""The loop of a population: each member's rows and result are those of its lone run, its seconds a share of the population's.

The order is that of `bench.protocol`: draw, gradient, evaluate and record, update; but where nothing is recorded, members that passed together also
move together, before the next ones pass. A member that diverges is out at once; `Halving` or `Ranks` drops others. The axis is compacted when an
eighth of it is out.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from velodrome.bench.protocol import Entry, Interrupted
from velodrome.data.stream import Batch
from velodrome.population.gradient import Part, StackedGradient, StackedMetrics, joined
from velodrome.population.halving import Halving
from velodrome.population.live import Live
from velodrome.population.members import PASS_BYTES, folder, identity, stack
from velodrome.population.ranks import Ranks
from velodrome.records.digest import content_hash
from velodrome.records.run import Run
from velodrome.train import Step

News = list[tuple[str, dict[str, Any]]]


def drive(
    entries: Sequence[Entry],
    root: Path,
    environment: dict[str, Any],
    stop: Callable[[], bool],
    halving: Halving | Ranks | None = None,
    compiled: bool = True,
) -> Iterator[News]:
    """Train the members together to their end, or from the last checkpoint on; yields, at every evaluation, the news as (folder, state) pairs.

    What has been trained before is not repeated. Raises Alone for what cannot be stacked, before anything is written, Busy if another process trains
    one of the runs, Interrupted (after saving) once `stop()` is true.
    """
    ids = [identity(e, halving, entries) for e in entries]
    names = [folder(e, own) for e, own in zip(entries, ids, strict=True)]
    if len(set(names)) != len(names):
        raise ValueError("the members of a population must differ: one recipe with one seed is there twice.")
    left = [k for k, name in enumerate(names) if not (root / name / "result.json").exists()]
    done: News = [(names[k], {"state": "finished", "t": entries[k].workload.steps}) for k in range(len(names)) if k not in left]
    yield done
    if not left:
        return
    found = stack([entries[k] for k in left])
    found.lone.gradient_flops(next(iter(entries[left[0]].data.stream(entries[left[0]].seed))).to(entries[left[0]].setting.device))
    home = root / f"population-{content_hash(names)[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        runs = [held.enter_context(Run.open(root / names[k], ids[k], environment)) for k in left]
        live = Live([entries[k] for k in left], runs, found, home, compiled)
        yield from _Training(live, found.rates, stop, halving).go()
    shutil.rmtree(home)  # the members' runs hold everything now


class _Training:
    """The loop over the live objects."""

    def __init__(self, live: Live, rates: torch.Tensor, stop: Callable[[], bool], halving: Halving | Ranks | None):
        first = live.members[0].entry
        self.live, self.rates, self.stop, self.halving = live, rates, stop, halving
        self.workload, self.setting = first.workload, first.setting
        self.gradient = StackedGradient(live.lone.model, self.workload.loss, torch.bfloat16 if self.setting.bf16 else None)
        self.metrics = StackedMetrics(live.lone.model, {"valid": self.workload.metric, **self.workload.accuracies})
        self.valid = [batch.to(self.setting.device) for batch in first.data.valid]

    def go(self) -> Iterator[News]:
        """From the last checkpoint to the end of all members."""
        live, w = self.live, self.workload
        live.restore()
        while live.running:
            batches = self._draw()
            due = live.counters.t % w.every == 0
            verdicts, losses, waiting = self._pass(batches, due)
            ended = [k for k, verdict in verdicts.items() if verdict or live.counters.t == w.steps]
            if due or ended:
                yield self._evaluate(list(verdicts) if due else ended, verdicts, losses, due)
            if not live.running:
                return
            self._update(waiting)
            live.compact()
            if live.leaving:  # whoever finds these results must find a checkpoint without these members
                live.save()
                live.part()
            if self.stop():
                live.save()
                raise Interrupted
            if time.monotonic() - live.saved > self.setting.checkpoint_seconds:
                live.save()

    def _draw(self) -> dict[int, Batch]:
        """The next batch of every seed."""
        began = time.perf_counter()
        seeds = {self.live.members[k].entry.seed for k in self.live.stacked}
        batches = {seed: next(iter(stream)).to(self.setting.device) for seed, stream in self.live.streams.items() if seed in seeds}
        self._charge("data_seconds", began)
        one = next(iter(batches.values()))
        if any(b.inputs.shape != one.inputs.shape for b in batches.values()):
            raise ValueError("the streams of a population's seeds must yield batches of one shape at each step: train its seeds apart.")
        c = self.live.counters
        tokens = c.tokens if one.tokens is None else (c.tokens or 0) + one.tokens
        flops = c.flops + self.live.lone.gradient_flops(one) + (self.live.lone.update_flops or 0)
        self.live.counters = c._replace(t=c.t + 1, examples=c.examples + one.examples, tokens=tokens, flops=flops)
        return batches

    def _pass(self, batches: dict[int, Batch], due: bool) -> tuple[dict[int, str | None], dict[int, float], list[Part]]:
        """Verdict and loss of every running member, and the parts that wait for their update: all where rows are due, else those with a member
        that has diverged, whose row is about the weights before it."""
        live, began, recording = self.live, time.perf_counter(), self.gradient.recording
        seeds, one = [live.members[k].entry.seed for k in live.stacked], next(iter(batches.values()))

        def batch(start: int, stop: int) -> Batch:
            if len(batches) == 1:
                return one
            mine = [batches[s] for s in seeds[start:stop]]
            return Batch(torch.stack([b.inputs for b in mine]), torch.stack([b.targets for b in mine]), one.tokens)

        verdicts: dict[int, str | None] = {}
        losses: dict[int, float] = {}
        waiting = []
        size = max(1, PASS_BYTES // max(1, live.lone.kept_bytes))
        for part in self.gradient.parts(live.chain.weights, live.buffers, len(seeds), size, batch, len(batches) == 1):
            these = dict(zip(live.stacked[part.start : part.stop], part.losses.tolist(), strict=True))
            self._charge("gradient_seconds", began + self.gradient.recording - recording)
            judged = {k: live.members[k].judge(loss) for k, loss in these.items() if k not in live.out}
            for k in judged:
                live.members[k].mean.add(these[k])
            if due or any(judged.values()) or not live.chain.divides(part.gradients):
                waiting.append(part)
            else:
                self._move(part)
            losses, verdicts = losses | these, verdicts | judged
            began, recording = time.perf_counter(), self.gradient.recording
        return verdicts, losses, waiting

    def _move(self, part: Part) -> None:
        """The update of some members."""
        began, chain = time.perf_counter(), self.live.chain
        with torch.no_grad():
            chain.move(part.gradients, self.rates[self.live.counters.t][:, self.live.stacked], part.start, part.stop, part.losses)
        self._charge("optimizer_seconds", began)

    def _update(self, waiting: list[Part]) -> None:
        """The update of those who have waited for it, and the end of this step's."""
        live, began = self.live, time.perf_counter()
        with torch.no_grad():
            if waiting and not live.chain.divides(waiting[0].gradients):
                losses = torch.cat([part.losses for part in waiting])
                live.chain.step(joined(waiting), self.rates[live.counters.t][:, live.stacked], losses)
                self._charge("optimizer_seconds", began)
            else:
                for part in waiting:
                    self._move(part)
                live.chain.t += 1
        if live.counters.update_flops is None:
            live.counters = live.counters._replace(update_flops=live.lone.first_update())

    def _charge(self, what: str, began: float) -> None:
        """A running member's share of the time since `began`."""
        if self.setting.device != "cpu":
            torch.cuda.synchronize(self.setting.device)
        share = (time.perf_counter() - began) / len(self.live.running)
        self.live.counters = self.live.counters._replace(**{what: getattr(self.live.counters, what) + share})

    def _evaluate(self, members: list[int], verdicts: dict[int, str | None], losses: dict[int, float], due: bool) -> News:
        """One row for each of the members, and the results of those that end here: by divergence, by the rule, or at the budget."""
        live, w, began = self.live, self.workload, time.perf_counter()
        with torch.no_grad():
            values = self.metrics(live.chain.average(), live.buffers, self.valid)
        live.evaluation_seconds += (time.perf_counter() - began) / len(verdicts)
        place = {k: i for i, k in enumerate(live.stacked)}
        states: dict[int, dict[str, Any]] = {}
        for k in members:
            m, own = live.members[k], {name: found[place[k]] for name, found in values.items()}
            valid = own.pop("valid")
            m.curve.append((live.counters.t, valid))
            m.best = valid if m.best is None or not m.best <= valid else m.best
            step = Step(
                Batch(*2 * (torch.zeros(0),)), losses[k], verdicts[k], live.counters._replace(first_loss=m.first, last_loss=losses[k])
            )
            more = {f"valid_{name}": x for name, x in own.items()}
            m.run.row(step, loss=m.mean.take(), lr=float(self.rates[step.t, 0, k]), valid=valid, **more, diverged=verdicts[k])
            states[k] = {"state": "running", "t": step.t, "valid": valid, "best": m.best, "seconds": step.seconds, **own}
        over = {k: "diverged" if verdicts[k] else "finished" for k in members if verdicts[k] or live.counters.t == w.steps}
        ranks: dict[int, int] = {}
        if due and self.halving is not None and self.halving.is_rung(live.counters.t, w.steps, w.every):
            ranks = self.halving.ended({k: live.members[k].curve for k in members if k not in over}, live.counters.t, w.steps, w.every)
        results = {
            k: live.members[k].result(live.counters, live.evaluation_seconds, states[k], verdicts[k], ranks.get(k)) for k in (*over, *ranks)
        }
        live.out |= set(results)
        for k, result in results.items():
            states[k]["state"] = result["state"]
            if k in ranks:
                live.leaving[live.members[k].run.folder.name] = result
            else:
                live.members[k].run.finish(result)
        return [(live.members[k].run.folder.name, state) for k, state in states.items()]

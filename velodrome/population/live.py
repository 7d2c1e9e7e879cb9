"""The live objects of a population, and how they go to a checkpoint and back: one holds all members."""

import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from velodrome.bench.protocol import Entry, Mean
from velodrome.population.chain import StackedChain
from velodrome.population.members import Stack
from velodrome.records.checkpoint import latest, save
from velodrome.records.run import Run
from velodrome.train import EXPLODED_STEPS, Counters

EXPLOSION = 10.0  # as `train`'s default


class Member:
    """One member's memory: its run, its place in the stack, and what the loop of a lone run remembers."""

    def __init__(self, entry: Entry, run: Run, parameters: int):
        self.entry, self.run, self.parameters = entry, run, parameters
        self.mean, self.high = Mean(), 0
        self.first: float | None = None
        self.best: float | None = None
        self.curve: list[tuple[int, float]] = []  # (step, validation value) of every evaluation

    def judge(self, loss: float) -> str | None:
        """Whether the run has diverged with this loss, as `train` sees it."""
        self.first = loss if self.first is None else self.first
        self.high = self.high + 1 if loss > EXPLOSION * max(1.0, abs(self.first)) else 0
        if not isfinite(loss):
            return "nan" if loss != loss else "inf"
        return "exploded" if self.high >= EXPLODED_STEPS else None

    def result(
        self, counters: Counters, evaluation_seconds: float, state: dict[str, Any], verdict: str | None, rank: int | None
    ) -> dict[str, Any]:
        """As `bench.protocol` writes it; `rank` is that of a member which the rule drops."""
        c, extra = counters, {name: x for name, x in state.items() if name in self.entry.workload.accuracies}
        return {
            "state": "diverged" if verdict else "finished" if rank is None else "dropped",
            **{"diverged": verdict, "stopped": None, "steps": c.t, "examples": c.examples, "tokens": c.tokens, "flops": c.flops},
            **{"update_flops": c.update_flops, "bytes": None},  # one member's memory cannot be told apart
            **{"seconds": c.seconds, "evaluation_seconds": evaluation_seconds},
            "valid": state["valid"],
            "best": state["best"],
            **extra,
            "inexact": self.run.inexact,
            "parameters": self.parameters,
            "notes": [],
            **({} if rank is None else {"rank": rank}),
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        mean = [self.mean.total, self.mean.count]
        more = {"best": self.best, "high": self.high, "first": self.first, "curve": [list(point) for point in self.curve]}
        return {"run": self.run.folder.name, "rows": self.run.rows, "mean": mean, **more}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.run.truncate(state["rows"])
        self.mean.total, self.mean.count = state["mean"]
        self.best, self.high, self.first = state["best"], state["high"], state["first"]
        self.curve = [(int(t), float(value)) for t, value in state.get("curve", [])]


class Live:
    """What changes while a population trains. `stacked` says whose slices the stack holds, in order; `out` who has ended."""

    def __init__(self, entries: Sequence[Entry], runs: Sequence[Run], found: Stack, home: Path, compiled: bool):
        self.home, self.lone, self.device = home, found.lone, entries[0].setting.device
        parameters = sum(p.numel() for p in found.lone.model.parameters())
        self.members = [Member(e, r, parameters) for e, r in zip(entries, runs, strict=True)]
        self.stacked: list[int] = list(range(len(entries)))
        self.out: set[int] = set()
        self.leaving: dict[str, dict[str, Any]] = {}  # results of dropped members that are not written yet
        self.chain = StackedChain(found.weights, found.members, compiled)
        self.buffers = found.buffers
        self.streams = {e.seed: e.data.stream(e.seed) for e in entries}
        self.counters, self.evaluation_seconds, self.saved = Counters(), 0.0, time.monotonic()

    @property
    def running(self) -> list[int]:
        """Members in the stack that are not out."""
        return [k for k in self.stacked if k not in self.out]

    def compact(self, least: float = 1 / 8) -> None:
        """Take out those who are out, once they are an eighth of the stack."""
        kept = [i for i, k in enumerate(self.stacked) if k not in self.out]
        if len(kept) > (1 - least) * len(self.stacked):
            return
        rows = torch.tensor(kept, device=self.device)
        self.chain.keep(rows)
        self.buffers = {name: b.index_select(0, rows) for name, b in self.buffers.items()}
        self.stacked = [self.stacked[i] for i in kept]

    def part(self) -> None:
        """Write the results of dropped members."""
        for m in self.members:
            if m.run.folder.name in self.leaving and not m.run.finished:
                m.run.finish(self.leaving[m.run.folder.name])
        self.leaving = {}

    def save(self) -> None:
        """A checkpoint of all members, behind an update."""
        tree = {
            "stacked": [self.members[k].run.folder.name for k in self.stacked],
            "members": [m.state() for m in self.members],
            "chain": self.chain.state_dict(),
            "buffers": self.buffers,
            "streams": [[seed, stream.state_dict()] for seed, stream in self.streams.items()],
            "counters": self.counters._asdict(),
            "evaluation_seconds": self.evaluation_seconds,
            "leaving": self.leaving,
        }
        for m in self.members:
            m.run.sync()
        save(self.home, self.counters.t, tree)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on where the last checkpoint was taken; who has got a result since is left out."""
        found = latest(self.home)
        if found is None:
            for m in self.members:
                m.run.truncate(0)
            return
        tree, place = found[1], {m.run.folder.name: k for k, m in enumerate(self.members)}
        for state in tree["members"]:
            if state["run"] in place:
                self.members[place[state["run"]]].load(state)
        self.leaving = tree["leaving"]
        self.part()
        rows = [i for i, name in enumerate(tree["stacked"]) if name in place and not self.members[place[name]].run.finished]
        self.stacked = [place[tree["stacked"][i]] for i in rows]
        self.out = set(range(len(self.members))) - set(self.stacked)
        if not rows:
            return
        device = self.device
        self.chain.load_state_dict(tree["chain"])  # of all who were there, then of those who are
        self.chain.keep(torch.tensor(rows, device=device))
        self.buffers = {name: b.to(device)[rows] for name, b in tree["buffers"].items()}
        for seed, state in tree["streams"]:
            if seed in self.streams:
                self.streams[seed].load_state_dict(state)
        self.counters, self.evaluation_seconds = Counters(**tree["counters"]), tree["evaluation_seconds"]
        known = self.counters.update_flops
        assert not isinstance(known, list)
        self.lone.update_flops = known

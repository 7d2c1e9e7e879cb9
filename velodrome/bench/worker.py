"""A worker of a race: `python -m velodrome.bench.worker`, a plan on stdin, one JSON line on stdout whenever a run has got somewhere.

Workers share nothing but the folder of runs. Each goes through all groups (a workload and a seed), claims the runs that nobody has, and
trains them in turn, one evaluation interval each, so that whatever slows the machine down slows all algorithms down.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from velodrome.bench.catalog import workload
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.recipes.parse import parse
from velodrome.records.environment import environment
from velodrome.records.lock import Busy


class Worker:
    """One process's share of a plan: {"root", "algorithms", "workloads", "seeds", "setting", "threads", "first"}."""

    def __init__(self, plan: dict[str, Any], emit: Any = print):
        self.plan, self.emit, self.stopping = plan, emit, False
        self.parent = os.getppid()

    def stop(self) -> bool:
        """Whether to save and leave: asked to, or whoever started the race is gone."""
        return self.stopping or os.getppid() != self.parent

    def say(self, folder: str, **state: Any) -> None:
        """One line to the parent; a parent that no longer listens is a reason to stop."""
        try:
            self.emit(json.dumps({"run": folder, **state}), flush=True)
        except (BrokenPipeError, ValueError):
            self.stopping = True

    def work(self) -> None:
        """All groups, beginning with the one this worker was told to, so that workers start on different ones."""
        try:
            groups = self.groups()
        except ValueError as error:  # the user's mistake: an unknown name, a workload without its data, a bad option
            self.emit(json.dumps({"refused": str(error)}), flush=True)
            raise SystemExit(2) from None
        for group in groups:
            if self.stop():
                return
            self.together(group)

    def groups(self) -> list[list[tuple[str, Iterator[dict[str, Any]]]]]:
        """The runs of each workload and seed; long workloads first."""
        plan = self.plan
        setting = Setting(**plan["setting"])
        recipes = [parse(text) for text in plan["algorithms"]]
        workloads = [workload(text) for text in plan["workloads"]]
        session = environment(threads=plan["threads"], device=setting.device)
        loaded = {w.name: w.load() for w in workloads}
        groups = []
        for w in sorted(workloads, key=lambda w: -w.seconds):
            for seed in plan["seeds"]:
                entries = [Entry(w, loaded[w.name], recipe, seed, setting) for recipe in recipes]
                groups.append([(e.folder, self.described(e, session)) for e in entries])
        first = plan["first"] % len(groups)
        return groups[first:] + groups[:first]

    def described(self, entry: Entry, session: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The run's states, each with what a reader of the line must know about it."""
        w = entry.workload
        about = {"workload": w.name, "algorithm": entry.recipe.name, "seed": entry.seed, "steps": w.steps, "target": w.targets[-1]}
        for state in drive(entry, Path(self.plan["root"]), session, self.stop):
            yield {**about, **state}

    def together(self, runs: list[tuple[str, Iterator[dict[str, Any]]]]) -> None:
        """Advance the runs in turn until none is left."""
        while runs:
            runs = [run for run in runs if self.advance(*run)]

    def advance(self, folder: str, run: Iterator[dict[str, Any]]) -> bool:
        """Bring one run to its next evaluation; False when there is nothing more to do for it here."""
        try:
            state = next(run)
        except StopIteration:
            return False
        except Busy as busy:
            self.say(folder, state="elsewhere", note=str(busy))
            return False
        except Interrupted:
            self.say(folder, state="interrupted")
            return False
        except Exception as error:  # one algorithm's mistake must not end the others; the traceback is in the run's folder
            self.say(folder, state="failed", note=f"{type(error).__name__}: {error}")
            return False
        self.say(folder, **state)
        return True


def main() -> int:
    """Read the plan, work, and exit with 0, or with 143 if asked to stop."""
    plan = json.loads(sys.stdin.read())
    worker = Worker(plan)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: setattr(worker, "stopping", True))
    torch.set_num_threads(plan["threads"])
    if plan["setting"]["device"].startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    worker.work()
    return 143 if worker.stopping else 0


if __name__ == "__main__":
    sys.exit(main())

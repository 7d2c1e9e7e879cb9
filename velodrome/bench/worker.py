"""A worker of a race: `python -m velodrome.bench.worker`, a plan on stdin, one JSON line on stdout whenever a run has got somewhere.

Workers share nothing but the folder of runs. Each goes through groups of runs (a workload and a seed), claims those that nobody has, and trains
them in turn, one evaluation interval each, so that whatever slows the machine down slows all algorithms down. Where the seeds do not divide among
the workers, the runs of the last groups are dealt out: they are trained at the same time in different processes instead of in turn in one. At the
end each worker looks for what is left.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from velodrome.bench.catalog import workloads
from velodrome.bench.crews import job
from velodrome.bench.crews.place import place
from velodrome.bench.device import check_device
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.bench.settling import settled, unraced
from velodrome.recipes.load import cause
from velodrome.recipes.parse import parse
from velodrome.recipes.recipe import Recipe
from velodrome.records.environment import environment
from velodrome.records.lock import Busy


class Worker:
    """One process's share of a plan: {"root", "algorithms", "workloads", "seeds", "setting", "threads", "workers", "first"}."""

    def __init__(self, plan: dict[str, Any], emit: Any = print):
        self.plan, self.emit, self.stopping = plan, emit, False
        self.parent, self.place = os.getppid(), place(plan["root"])
        self.session = environment(threads=plan["threads"], device=plan["setting"].get("device", "cpu"))
        self.session["crew"] = plan.get("crew")  # who else computed on this machine (`bench/crews/cores.py`)

    def stop(self) -> bool:
        """Whether to save and leave: asked to, or whoever started the race is gone."""
        return self.stopping or os.getppid() != self.parent

    def say(self, folder: str, **state: Any) -> None:
        """One line about a run to the parent."""
        self.tell({"run": folder, **state})

    def tell(self, line: dict[str, Any]) -> None:
        """One line to the parent; a parent that no longer listens is a reason to stop."""
        try:
            self.emit(json.dumps(line), flush=True)
        except (BrokenPipeError, ValueError):
            self.stopping = True

    def work(self) -> None:
        """Understand the plan, or refuse it, and do it."""
        self.train(*self.understand())

    def understand(self) -> tuple[list[list[Entry]], list[list[Entry]]]:
        """This worker's share of the groups, and all of them; what cannot be understood is told to the parent, exit code 2."""
        try:
            share, everything = self.groups()
            assert all(entry.folder for group in everything for entry in group)  # settings that no record can hold are a mistake now
        except Interrupted:  # while it set targets
            raise SystemExit(143) from None
        except (Exception, SystemExit) as error:  # the user's mistake: an unknown name, a workload without its data, a bad option
            self.emit(json.dumps({"refused": str(error) if isinstance(error, ValueError) else cause(error)}), flush=True)
            raise SystemExit(2) from None
        return share, everything

    def train(self, share: list[list[Entry]], everything: list[list[Entry]]) -> None:
        """This worker's share, then whatever is left."""
        for group in share:
            self.together(group)
        for group in everything:  # not what has just failed, here or in another worker
            self.together([e for e in group if not self.place.failed(e.folder)])

    def groups(self) -> tuple[list[list[Entry]], list[list[Entry]]]:
        """This worker's share of the groups, and all of them; long workloads first. Groups that do not divide among the workers are shared."""
        mine, workers = self.plan["first"], self.plan.get("workers", 1)
        setting = Setting(**self.plan["setting"])
        check_device(setting.device)
        job.check(self.plan)
        recipes: dict[str, Recipe] = {}
        for text in self.plan["algorithms"]:  # two spellings of one algorithm are raced once
            recipe = parse(text)
            recipes.setdefault(recipe.name, recipe)
        unraced(self.plan["seeds"])
        share, everything = [], []
        loaded = [(w, w.load()) for w in sorted(workloads(self.plan["workloads"]), key=lambda w: -w.seconds)]
        for known, data in loaded:
            w = settled(known, data, setting, self.plan["root"], self.session, self.stop, self.say)
            groups = [[Entry(w, data, recipe, seed, setting) for recipe in recipes.values()] for seed in self.plan["seeds"]]
            whole = len(groups) // workers * workers
            share += groups[mine:whole:workers] + [group[mine::workers] for group in groups[whole:]]
            everything += groups
        return share, everything

    def described(self, entry: Entry) -> Iterator[dict[str, Any]]:
        """The run's states, each with what a reader of the line must know about it."""
        w = entry.workload
        about = {"workload": w.name, "algorithm": entry.recipe.name, "seed": entry.seed, "steps": w.steps, "target": w.target}
        for state in self.place.kept(entry.folder, partial(drive, entry, self.place.root, self.session, self.stop)):
            yield {**about, **state}

    def together(self, entries: list[Entry]) -> None:
        """Advance the runs in turn until none is left."""
        runs = [(e.folder, self.described(e)) for e in entries if not self.stop()]
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
        except (Exception, SystemExit) as error:  # one algorithm's mistake must not end the others; the traceback is in the run's folder
            self.say(folder, state="failed", note=f"{type(error).__name__}: {error}")
            return False
        self.say(folder, **state)
        return True


def main() -> int:
    """Read the plan, say how many runs it has, work, and exit with 0, or with 143 if asked to stop."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an algorithm prints is no message to the parent
    plan = json.loads(sys.stdin.read())
    worker = Worker(plan, partial(print, file=channel))
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: setattr(worker, "stopping", True))
    torch.set_num_threads(plan["threads"])
    share, everything = worker.understand()
    worker.tell({"plan": len({entry.folder for group in everything for entry in group})})
    with job.job(plan):
        worker.train(share, everything)
    return 143 if worker.stopping else 0


if __name__ == "__main__":
    sys.exit(main())

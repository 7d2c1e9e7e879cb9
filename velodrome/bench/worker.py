"""A worker of a race: `python -m velodrome.bench.worker`, a plan on stdin, one JSON line on stdout whenever a run has got somewhere.

Workers share nothing but the folder of runs. Each goes through groups of runs (a workload and a seed), claims those that nobody has, and trains
them in turn, one evaluation interval each, so that whatever slows the machine down slows all algorithms down. Where the seeds do not divide among
the workers, the runs of the last groups are dealt out: they are trained at the same time in different processes instead of in turn in one. At the
end each worker looks for what is left.
"""

import faulthandler
import importlib
import json
import os
import random
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
from velodrome.bench.failure import Failure, failure
from velodrome.bench.guest import Guest, Host
from velodrome.bench.hopeless import Studies
from velodrome.bench.kin import adopt, die_with_parent
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.bench.settling import settled, unraced
from velodrome.bench.supervisor import RENEW, TURN, note_turn
from velodrome.bench.unit_time import unit_time
from velodrome.recipes.load import cause
from velodrome.records.environment import environment
from velodrome.records.lock import Busy

SPOILS = {"data", "memory", "over time"}  # failures after which nobody else should be trained in the same process


class Worker:
    """One process's share of a plan: {"root", "algorithms", "workloads", "seeds", "setting", "threads", "workers", "first"}; further "limits" (fields of
    `limits.Limits`) and "died", runs that have ended a process, with what is known of it (`supervisor.py`)."""

    def __init__(self, plan: dict[str, Any], emit: Any = print):
        self.plan, self.emit, self.stopping = plan, emit, False
        self.parent, self.place = os.getppid(), place(plan["root"])
        self.session = environment(threads=plan["threads"], device=plan["setting"].get("device", "cpu"))
        self.turn = int(os.environ[TURN]) if TURN in os.environ else None
        self.host: Host | None = None
        self.studies: Studies | None = None
        self.spoilt = False  # by a run: the others go on in another process
        self.session["crew"] = plan.get("crew")  # who else computed on this machine (`bench/crews/cores.py`)

    def stop(self) -> bool:
        """Whether to save and leave: asked to, or whoever started the race is gone."""
        return self.stopping or self.spoilt or os.getppid() != self.parent

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
        """What has ended an earlier process, this worker's share, then whatever is left."""
        self.host = Host(self.plan)
        self.studies = Studies((entry for group in everything for entry in group), self.place.root)
        died = [entry for group in everything for entry in group if entry.folder in self.plan.get("died", {})]
        for group in [[entry] for entry in died] + share:
            self.together(group)
        for group in everything:  # not what has just failed, here or in another worker
            self.together([e for e in group if not self.place.failed(e.folder)])
        self.host.alarm.close()

    def groups(self) -> tuple[list[list[Entry]], list[list[Entry]]]:
        """This worker's share of the groups, and all of them; long workloads first. Groups that do not divide among the workers are shared."""
        mine, workers = self.plan["first"], self.plan.get("workers", 1)
        setting = Setting(**self.plan["setting"])
        check_device(setting.device)
        job.check(self.plan)
        rules = importlib.import_module(f"velodrome.bench.rules.{self.plan.get('rules', 'self_tuning')}")
        trials, spaces = self.plan.get("trials", 1), self.plan.get("spaces")
        starts = {seed: rules.entrants(self.plan["algorithms"], seed, trials, spaces) for seed in self.plan["seeds"]}
        unraced(self.plan["seeds"])
        share, everything = [], []
        loaded = [(w, w.load()) for w in sorted(workloads(self.plan["workloads"]), key=lambda w: -w.seconds)]
        for known, data in loaded:
            w = settled(known, data, setting, self.plan["root"], self.session, self.stop, self.say)
            groups = [[Entry(w, data, e.recipe, seed, setting, e.told) for e in start] for seed in starts for start in starts[seed]]
            whole = len(groups) // workers * workers
            share += groups[mine:whole:workers] + [group[mine::workers] for group in groups[whole:]]
            everything += groups
        return share, everything

    def described(self, entry: Entry, guest: Guest, **turns: Any) -> Iterator[dict[str, Any]]:
        """The run's states, each with what a reader of the line must know about it."""
        w, died = entry.workload, self.plan.get("died", {}).get(entry.folder)
        about = {"workload": w.name, "algorithm": entry.recipe.name, "seed": entry.seed, "steps": w.steps, "target": w.target}
        hopeless = partial(self.studies.hopeless, entry) if self.studies else None
        bad = died and Failure(*died)
        run = partial(drive, entry, self.place.root, self.session, self.stop, guest=guest, died=bad, measured=turns, hopeless=hopeless)
        for state in self.place.kept(entry.folder, run):
            yield {**about, **state}

    def together(self, entries: list[Entry]) -> None:
        """Advance the runs in turn until none is left: in an order that chance gives to each workload and seed, and backwards every other time, so
        that neither the first place nor a machine that slows down favours an algorithm."""
        if not entries or self.stop():
            return
        assert self.host is not None
        order = list(entries)
        random.Random(f"{order[0].workload.name} {order[0].seed}").shuffle(order)
        unit = self.unit(order)
        guests = [Guest(self.host, e.workload, self.place.root / e.folder) for e in order]
        runs = [
            (e, guest, self.described(e, guest, turn={"place": i + 1, "of": len(order)}, unit_time=unit))
            for i, (e, guest) in enumerate(zip(order, guests, strict=True))
        ]
        begun: set[str] = set()
        while runs:
            runs = [run for run in runs if (not self.stop() or run[0].folder in begun) and self.advance(*run, begun)]
            runs.reverse()
        for guest in guests:
            guest.output.close()
        self.host.alarm.rest()

    def unit(self, entries: list[Entry]) -> dict[str, Any] | None:
        """The unit time of their workload; None where nothing is left to train, where several processes compute each gradient, which it does not know,
        and where the reference cannot be trained, which its own run will tell."""
        if all(self.place.finished(e.folder) for e in entries) or entries[0].setting.processes > 1:
            return None
        try:
            return unit_time(entries[0], self.place.root)
        except Exception:
            return None

    def advance(self, entry: Entry, guest: Guest, run: Iterator[dict[str, Any]], begun: set[str]) -> bool:
        """Bring one run to its next evaluation; False when there is nothing more to do for it here."""
        folder = entry.folder
        begun.add(folder)
        note_turn(self.turn, folder, guest.seconds)
        try:
            with guest.turn():
                state = next(run)
        except StopIteration:
            return False
        except Busy as busy:
            self.say(folder, state="elsewhere", note=str(busy))
            return False
        except Interrupted:
            self.say(folder, state="interrupted")
            return False
        except BaseException as error:  # one algorithm's mistake must not end the others; the traceback is in the run's folder
            bad = failure(error, guest.exceeded)
            self.say(folder, state="failed", failure=bad.kind, note=bad.note)
            self.spoilt |= bad.kind in SPOILS
            return False
        finally:
            note_turn(self.turn)
            self.spoilt |= guest.spoilt
        self.say(folder, **state)
        return True


def main() -> int:
    """Read the plan, say how many runs it has, work, and exit with 0, or with 143 if asked to stop."""
    die_with_parent()
    adopt()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an algorithm prints is no message to the parent
    faulthandler.enable()
    plan = json.loads(sys.stdin.read())
    worker = Worker(plan, partial(print, file=channel))
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: setattr(worker, "stopping", True))
    torch.set_num_threads(plan["threads"])
    share, everything = worker.understand()
    worker.tell({"plan": len({entry.folder for group in everything for entry in group})})
    with job.job(plan):
        worker.train(share, everything)
    return 143 if worker.stopping else RENEW if worker.spoilt and worker.turn is not None else 0


if __name__ == "__main__":
    sys.exit(main())

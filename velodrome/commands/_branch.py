"""The work of `velodrome train --branch-at`: one trunk, its branches, what each reached, and the FLOPs that the trunk saved."""

from collections.abc import Iterable
from typing import Any

import torch

from velodrome.bench.branch import Branch, grow, plan, savings
from velodrome.bench.catalog import workload
from velodrome.bench.device import check_device
from velodrome.bench.fanout import stopping
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.commands.options import print_json, say
from velodrome.commands.train import Options
from velodrome.recipes.parse import parse
from velodrome.records.environment import environment
from velodrome.records.read import read
from velodrome.reports.exports.tensorboard import Mirror
from velodrome.reports.progress import Progress
from velodrome.reports.words import MISSING, digits, quantity, seconds

MISSED = 3  # exit code where no branch reached the target


def run(o: Options, typed: str) -> int:
    """Train trunk and branches, tell what came of them, and return the exit code; `typed` is the command, for the person who goes on with it."""
    mirror = None if o.tensorboard is None else Mirror(o.out, o.tensorboard, say)
    torch.set_num_threads(o.threads)
    check_device(o.device)
    task = workload(o.on)
    setting = Setting(device=o.device, bf16=o.bf16, compile=o.compile, threads=o.threads)
    trunk, branches = plan(Entry(task, task.load(), parse(o.algorithm), o.seed, setting), o.branch_at, o.cooldown, o.shape)
    session = environment(threads=o.threads, device=o.device)
    with stopping() as asked, Progress(1 + len(branches), quiet=o.quiet) as progress:
        try:
            follow(trunk, grow(trunk, branches, o.out, session, lambda: bool(asked)), progress, branches[-1].at)
            for branch in branches:
                states = drive(branch.entry, o.out, session, lambda: bool(asked))
                follow(branch.entry, states, progress, branch.entry.end, mirror)
        except Interrupted:
            pass
    if any(not (o.out / b.entry.folder / "result.json").exists() for b in branches):
        say(f"Stopped; saved. The same command goes on: {typed}")
        return asked[0]
    return tell(o, branches)


def follow(entry: Entry, states: Iterable[dict[str, Any]], progress: Progress, total: int, mirror: Mirror | None = None) -> None:
    """One line of the progress for a run, or for the trunk."""
    name, w = entry.folder, entry.workload
    progress.update(name, workload=w.name, algorithm=entry.recipe.name, seed=entry.seed, total=total, target=w.target)
    for state in states:
        if "valid" in state:
            progress.update(name, state=state["state"], step=state["t"], value=state["valid"])
        if mirror is not None:
            mirror.look(name)
    progress.update(name, state="finished", step=total)


def tell(o: Options, branches: list[Branch]) -> int:
    """A row for each branch and the cost of all, on stdout; 0 if one of them ended below the last target."""
    results = [read(o.out / b.entry.folder).result or {} for b in branches]
    shared, alone = savings(o.out, branches)
    task = branches[0].entry.workload
    code = 0 if any(not r["diverged"] and (task.target is None or r["best"] <= task.target) for r in results) else MISSED
    if o.json:
        rows = [
            {"run": str(o.out / b.entry.folder), "at": b.at, "cooldown_steps": b.length, **r}
            for b, r in zip(branches, results, strict=True)
        ]
        print_json({"workload": task.name, "branches": rows, "flops": shared, "flops_alone": alone, "flops_saved": alone - shared})
        return code
    print(f"{o.algorithm} on {task.name}, seed {o.seed}: {len(branches)} cool-down{'s' * (len(branches) > 1)} from one trunk")
    for b, r in zip(branches, results, strict=True):
        last = digits(r["valid"]) if r["valid"] is not None and r["valid"] == r["valid"] else MISSING
        end = f"diverged at step {r['steps']:,}" if r["diverged"] else f"{task.metric_name} {last}"
        print(
            f"  step {b.at:,} + {b.length:,} of cool-down: {end} after {r['steps']:,} steps, {seconds(r['seconds'])}; {o.out / b.entry.folder}"
        )
    if alone > shared:
        rest = 1 - shared / alone
        print(f"{quantity(shared, 'FLOP')} instead of {quantity(alone, 'FLOP')} for runs of their own: {rest:.0%} saved")
    return code

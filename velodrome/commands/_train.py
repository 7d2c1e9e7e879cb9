"""The work of `velodrome train`: one run by the protocol of a race, its result in words, and TensorBoard events from its rows."""

from collections.abc import Callable

import torch

from velodrome.bench import failure
from velodrome.bench.catalog import workload
from velodrome.bench.device import check_device
from velodrome.bench.fanout import stopping
from velodrome.bench.hitting import Hit, time_to_target
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.commands._forecast import Forecast
from velodrome.commands.options import print_json, say
from velodrome.commands.train import Options
from velodrome.probes.watching.budget import share_of
from velodrome.recipes.parse import parse
from velodrome.records.environment import environment
from velodrome.records.read import Record, read
from velodrome.reports.collect import curve
from velodrome.reports.exports.tensorboard import Mirror
from velodrome.reports.progress import Progress
from velodrome.reports.race import AXES
from velodrome.reports.words import MISSING, cost, digits, seconds

MISSED = 3  # exit code of a run that diverged or never reached its target


def run(o: Options, typed: str) -> int:
    """Train, tell the result, and return the exit code; `typed` is the command, for the person who goes on with it."""
    mirror = None if o.tensorboard is None else Mirror(o.out, o.tensorboard, say)
    if o.watch:
        share_of(o.watch)
    torch.set_num_threads(o.threads)
    check_device(o.device)
    task, recipe = workload(o.on), parse(o.algorithm)
    entry = Entry(task, task.load(), recipe, o.seed, Setting(device=o.device, bf16=o.bf16, compile=o.compile, threads=o.threads))
    folder = o.out / entry.folder
    expected = Forecast(entry, o.out)
    with stopping() as asked:
        failed = train(entry, o, lambda: bool(asked), expected, mirror)
    if asked and not (folder / "result.json").exists():
        lost = (folder / "not-resumable.txt").exists()
        say(
            f"Stopped; {'its state cannot be stored, so the same command begins again' if lost else 'saved. The same command goes on'}: {typed}"
        )
        return asked[0]
    if failed is not None:
        say(f"{folder} failed: {type(failed).__name__}: {failed} (traceback in {folder / 'error.txt'})")
        return 1
    if mirror is not None and not mirror.failed:
        say(f"TensorBoard: tensorboard --logdir {o.tensorboard}")
    record = read(folder)
    if (earlier := failure.of(record.result)) is not None:
        say(f"{folder} failed earlier ({earlier.kind}: {earlier.note.rstrip('.')}): remove the folder to try again.")
        return 1
    return tell(record, o.json, expected)


def train(entry: Entry, o: Options, stop: Callable[[], bool], expected: Forecast, mirror: Mirror | None) -> Exception | None:
    """Drive the run to its end or until `stop`, with progress on stderr; returns what went wrong in the algorithm.

    What is wrong before the first evaluation (Busy, a value that the optimizer refuses) is raised if it is a ValueError, and so is what
    the disk says.
    """
    w, name = entry.workload, entry.folder
    begun = False
    with Progress(1, quiet=o.quiet) as progress:
        progress.update(name, workload=w.name, algorithm=entry.recipe.name, seed=o.seed, total=w.steps, target=w.target)
        try:
            for state in drive(entry, o.out, environment(threads=o.threads, device=o.device), stop, watching=o.watch or None):
                begun = True
                if mirror is not None:
                    mirror.look(name)
                if state["state"] == "failed":
                    progress.update(name, state="failed")
                    continue
                if "valid" not in state:  # finished earlier
                    known = read(o.out / name).result or {}
                    state = {"state": known["state"], "t": known["steps"], "valid": known["valid"]}
                    progress.update(name, state=state["state"], step=state["t"], value=state["valid"])
                    continue
                forecast = expected.add(state["t"], state["valid"])
                progress.update(name, state=state["state"], step=state["t"], value=state["valid"], forecast=forecast)
        except Interrupted:
            progress.update(name, state="interrupted")
        except OSError:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and not begun:
                raise
            progress.update(name, state="interrupted")
            return error
    return None


def tell(record: Record, as_json: bool, expected: Forecast) -> int:
    """The result on stdout; 0 if the last target was reached and the run did not diverge, before or after."""
    result, recipe = record.result or {}, record.recipe
    c = curve(record)
    costs = {axis: getattr(c, axis) for axis in AXES}
    hits = {goal: time_to_target(costs, c.valid, goal, {"steps": recipe["steps"]}) for goal in recipe["targets"]}
    reached = hits[recipe["targets"][-1]].reached if hits else None
    code = 0 if reached is not False and not result["diverged"] else MISSED
    if as_json:
        targets = [{"target": goal, "reached": h.reached, "cost": h.cost, "low": h.low, "high": h.high} for goal, h in hits.items()]
        names = ("workload", "algorithm", "seed", "metric")
        step, p = expected.first or (None, None)
        early = {"forecast": {"step": step, "value": p.value, "low": p.low, "high": p.high, "level": p.level} if p else None}
        print_json(
            {"run": str(record.path), **{n: recipe.get(n) for n in names}, **result, "reached": reached, "targets": targets, **early}
        )
        return code
    print(f"{recipe['algorithm']} on {recipe['workload']}, seed {recipe['seed']}")
    last, best = (digits(x) if x is not None and x == x else MISSING for x in (result["valid"], result["best"]))
    print(f"{recipe['metric']} {last} after {result['steps']:,} steps, {seconds(result['seconds'])} of training (best {best})")
    if result["diverged"]:
        print(f"diverged at step {result['steps']:,}: the training loss was {result['diverged']}")
    if not hits:
        print("no target yet: a race sets those of this workload")
    for goal, hit in hits.items():
        print(f"target {digits(goal)} {outcome(hit)}")
    print(f"record {record.path}")
    return code


def outcome(hit: Hit) -> str:
    """When a target was reached, interpolated between two evaluations, or that it was not."""
    if not hit.reached:
        return "missed"
    step, clock = round(hit.cost["steps"]), cost("seconds", hit.cost["seconds"])
    return "met before the first step" if hit.at_start else f"reached at step {step:,} ({clock})"

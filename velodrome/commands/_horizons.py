"""The work of `velodrome horizons`: train the run and store its windows, evaluate their averages, tell and draw what they reach."""

import torch

from velodrome.bench.catalog import workload
from velodrome.bench.device import check_device
from velodrome.bench.fanout import stopping
from velodrome.bench.horizons import cooled, follow, sweep
from velodrome.bench.protocol import Entry, Interrupted, Setting
from velodrome.commands.horizons import Options
from velodrome.commands.options import print_json, say, write_page
from velodrome.recipes.parse import parse, spelled, split
from velodrome.records.environment import environment
from velodrome.records.read import read, scan
from velodrome.reports import horizons as report
from velodrome.reports.progress import Progress


def run(o: Options, typed: str) -> int:
    """Train, sweep, tell, and return the exit code; `typed` is the command, for the person who goes on with it."""
    torch.set_num_threads(o.threads)
    check_device(o.device)
    task = workload(o.on)
    target, options = split(o.algorithm)
    recipe = parse(spelled(target, {"schedule": "wsd:0", **options}))
    entry = Entry(task, task.load(), recipe, o.seed, Setting(device=o.device, bf16=o.bf16, threads=o.threads))
    folder, window = o.out / entry.folder, task.every if o.window is None else o.window
    with stopping() as asked, Progress(1, quiet=o.quiet) as progress:
        progress.update(folder.name, workload=task.name, algorithm=recipe.name, seed=o.seed, total=entry.end, target=task.target)
        try:
            for state in follow(entry, o.out, environment(threads=o.threads, device=o.device), lambda: bool(asked), window):
                if "valid" in state:
                    progress.update(folder.name, state=state["state"], step=state["t"], value=state["valid"])
        except Interrupted:
            pass
        else:
            progress.update(folder.name, state="finished", step=entry.end)
    result = read(folder).result
    if result is None:
        say(f"Stopped; saved. The same command goes on: {typed}")
        return asked[0]
    if result["diverged"]:
        raise ValueError(f"{recipe.name} diverged at step {result['steps']:,}: there is nothing to average, lower its learning rate.")
    found = report.Sweep(
        algorithm=o.algorithm,
        workload=task.name,
        metric=task.metric_name,
        seed=o.seed,
        fractions=o.fractions,
        horizons=[(h.steps, h.plain, dict(h.averaged)) for h in sweep(entry, folder, o.fractions)],
        cooled=cooled(list(scan(o.against)), entry) if o.against is not None else [],
        command=typed,
    )
    if o.json:
        print_json({**report.to_json(found), "run": str(folder), "report": str(o.report)})
    else:
        report.show(found)
    write_page(report.write, o.report, found)
    return 0

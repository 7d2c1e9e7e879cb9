"""`velodrome race`: train every algorithm on every workload over paired seeds, and tell how much faster each reaches the target."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from velodrome.bench import fanout
from velodrome.bench.deciding import to_json as to_json_of
from velodrome.bench.suite import parts
from velodrome.commands import _crew, _racing
from velodrome.commands._rules import asked
from velodrome.commands.options import command, parse, print_json, say, write_page
from velodrome.discover import recipe_names, workload_names
from velodrome.records.read import read
from velodrome.reports import collect, html
from velodrome.reports.exports.tensorboard import Mirror
from velodrome.reports.progress import Progress
from velodrome.reports.race import Race
from velodrome.reports.table import print_race
from velodrome.reports.words import answer, joined

HELP = """Race training algorithms: time to a target on real data, with a confidence interval.

  velodrome race adamw muon nadamw --on digits stdlib-gpt
  velodrome race adamw "muon(lr=0.01)" ./my_optimizer.py:MyOptimizer --on digits --seeds 5
  velodrome race adamw torch.optim:Adagrad(lr=0.01) --on mnist --by steps --json
  velodrome race muon lion --on laptop --rules external --trials 5
  velodrome race muon --on digits --rules external --space muon:lr=3e-3..0.1:log

The shipped adamw is always raced too: speed-ups are over it. Interrupt it with
Ctrl-C and give the same command again to go on: finished runs are never repeated.
`velodrome list` shows the algorithms and the workloads."""


@dataclass
class Options:
    """Options of the race."""

    algorithms: tyro.conf.Positional[tuple[str, ...]]
    """Names, names with options as "muon(lr=0.01)", or FILE.py:CLASS."""
    on: tuple[str, ...] = ("digits", "stdlib-gpt")
    """Workloads: names, or FILE.py:NAME."""
    seeds: int = 3
    """Number of paired seeds, decided before looking."""
    by: Literal["seconds", "unit_seconds", "steps", "examples", "flops"] = "seconds"
    """The cost that the speed-up is about."""
    until: Literal["budget", "target"] = "budget"
    """target: a run ends where it has reached its hard target, with the same score."""
    race_until: Literal["seeds", "decided"] = "seeds"
    """decided: after --seeds, one more seed at a time for algorithms whose interval
    neither excludes 1 nor lies within 2 %."""
    max_seeds: int = 20
    """With --race-until decided: at most this many."""
    rules: Literal["self", "external"] = "self"
    """self: one run per seed. external: trials from a search space, fastest counts."""
    trials: int | None = None
    """With --rules external: trials of each seed; 5 by default."""
    space: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME:]SPACE …")] = ()
    """OPTION=LOW..HIGH[:log],OPTION=A|B or FILE.json, for all algorithms named or for
    NAME alone; without, the recipe's own or 4x on both sides of its lr."""
    out: Path = field(default_factory=lambda: Path("runs"))
    """Folder of the run records, which races may share; or s3://bucket/runs."""
    report: Path = field(default_factory=lambda: Path("race.html"))
    """The HTML file to write."""
    workers: int = 0
    """Processes; 0 means one for every `threads` cores, or one on a GPU."""
    threads: int = 1
    """Threads of each process; runs with another number are other runs."""
    alone: bool = False
    """One worker, and no other race pinned beside it: for seconds."""
    processes_per_run: int = 1
    """Processes that compute the gradients of one run together."""
    on_ray: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = ""
    """Workers on a Ray cluster: auto, local, or HOST:PORT of its head."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    bf16: bool = False
    """Forward passes in bfloat16 (autocast)."""
    compile: bool = False
    """Compile the models with torch.compile and the optimizers that are chains; compilation is on the clock."""
    tensorboard: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write TensorBoard events to DIR/RUN as the runs go."""
    json: bool = False
    """Print the result as one JSON object instead of a table."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress on stderr."""


def main(arguments: list[str]) -> int:
    """0 when every run finished, 1 when one failed, 2 for a mistake in the options, 130 or 143 when stopped."""
    o = parse(Options, "race", arguments, HELP)
    check(o)
    rules = asked(o.rules, o.trials, o.space, o.algorithms)
    algorithms = list(dict.fromkeys([collect.REFERENCE, *o.algorithms]))
    workloads = list(dict.fromkeys(o.on))
    pairs = len(parts(workloads)) * o.seeds
    total = len(algorithms) * pairs * rules.get("trials", 1)
    workers = _crew.count(o, pairs)
    plan = {
        "root": str(o.out),
        "algorithms": algorithms,
        "workloads": workloads,
        "seeds": list(range(o.seeds)),
        "threads": o.threads,
        "setting": {
            "device": o.device,
            "bf16": o.bf16,
            "compile": o.compile,
            "threads": o.threads,
            "until": o.until,
            "processes": o.processes_per_run,
        },
        **_crew.told(o),
        **rules,
    }
    heard: dict[str, Mapping[str, Any]] = {}
    if o.tensorboard is not None and _crew.remote(o.out):
        raise ValueError("--tensorboard follows runs in a folder, and --out is an object store: export them from a copy afterwards.")
    mirror = None if o.tensorboard is None else Mirror(o.out, o.tensorboard, say)

    def listen(folder: str, state: Mapping[str, Any]) -> None:
        heard[folder] = state
        show(progress, folder, state)
        if mirror is not None:
            mirror.look(folder)

    try:
        with Progress(total, quiet=o.quiet) as progress:
            if o.race_until == "decided":
                run = partial(fanout.run, workers=workers, total=total, listen=listen)
                states, decisions, gain = _racing.rounds(plan, o.max_seeds, o.by, run, lambda states: _crew.fetched(o.out, states))
                raced = _racing.notes(decisions, gain), to_json_of(decisions, gain)
            else:
                states, raced = fanout.run(plan, workers, total, listen), ([], {})
    except fanout.Stopped as stopped:
        say(f"{farewell(o.out, heard)} The same command goes on from here: {command('race', arguments)}")
        return stopped.code
    return report(o, states, command("race", arguments), *raced)


def check(o: Options) -> None:
    """Refuse what no race can be made of, before anything is started or written."""
    if o.seeds < 1 or o.threads < 1 or o.workers < 0:
        raise ValueError(f"seeds and threads must be at least 1 and workers at least 0, got {o.seeds}, {o.threads} and {o.workers}.")
    if o.race_until == "decided" and not 2 <= o.seeds <= o.max_seeds:
        raise ValueError(f"a race until decided begins with 2 seeds or more and at most --max-seeds, got {o.seeds} of {o.max_seeds}.")
    if not o.on:
        raise ValueError(f"--on needs a workload: {', '.join(workload_names())}.")
    _crew.check(o)
    if not _crew.remote(o.out):
        check_out(o.out)
    check_file("report", o.report)
    if not o.algorithms:
        raise ValueError(f"name at least one algorithm: {', '.join(recipe_names())}, or FILE.py:CLASS.")


def check_out(out: Path) -> None:
    """Refuse a folder that runs could not be written to."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}.")
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(
            f"--out must be a folder that can be written to, got {out}: {nearest} {'is not' if nearest.is_dir() else 'is no folder'}."
        )


def check_file(option: str, path: Path) -> None:
    """Refuse a file that could not be written in the end; that the folder can be written to is tried, which leaves nothing behind."""
    if path.is_dir():
        raise ValueError(f"--{option} must be a file, got the folder {path}: write --{option} {path / 'race.html'}.")
    if not path.parent.is_dir():
        state = "is no folder" if path.parent.exists() else "does not exist"
        raise ValueError(f"--{option} must be a file in a folder that is there, got {path}: {path.parent} {state}.")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"--{option} must be a file that can be written, got {path}: {error.strerror}.") from None


def farewell(root: Path, states: Mapping[str, Mapping[str, Any]]) -> str:
    """What stopping has kept, from the last state of every run: all of it, or which runs lose what they did since they were last saved."""
    over = (*fanout.OVER, "interrupted")
    again = [f for f, s in states.items() if s["state"] not in fanout.OVER and (root / f / "not-resumable.txt").exists()]
    lost = [f for f, s in states.items() if s["state"] not in over and "t" in s and f not in again]  # without t, others train it
    if not again and not lost:
        return "Stopped; every run is saved."
    parts = [f"not saved: {joined(lost)}"] if lost else []
    if again:
        parts.append(f"{joined(again)} cannot be stored (see not-resumable.txt there) and will begin again")
    return f"Stopped; {'; '.join(parts)}; every other run is saved."


def show(progress: Progress, folder: str, state: Mapping[str, Any]) -> None:
    """One line of a worker to the live table."""
    about = {k: state[k] for k in ("workload", "algorithm", "seed") if k in state}
    progress.update(
        folder,
        **about,
        state="waiting" if state["state"] == "elsewhere" else state["state"],
        **({"step": state["t"], "total": state["steps"]} if "t" in state and "steps" in state else {}),
        **({"value": state["valid"], "target": state["target"], "reached": state["best"] <= state["target"]} if "valid" in state else {}),
    )


def report(
    o: Options, states: Mapping[str, Mapping[str, Any]], typed: str, notes: Sequence[str] = (), racing: Mapping[str, Any] | None = None
) -> int:
    """Table or JSON on stdout, the HTML file, and the exit code; `notes` and `racing` say how the number of seeds came about."""
    failed = {f: s for f, s in states.items() if s["state"] == "failed"}
    o = replace(o, out=_crew.fetched(o.out, states))
    for folder, s in failed.items():
        trace = o.out / folder / "error.txt"  # none of a process that is gone
        say(f"{folder} failed: {s.get('note')}" + (f" (traceback in {trace})" if trace.exists() else ""))
    records = [r for f in states if (r := read(o.out / f)).finished]  # a failed run has a result; one that the disk failed has none
    if not records:
        return 1
    race = collect.race(records, axis=o.by, command=typed, notes=notes)
    if o.json:
        print_json({**to_json(race, o.report), "racing": racing or None})
    else:
        print_race(race.score, race.summary, notes=race.notes, tuning=race.tuning, costs=race.beside)
    write_page(html.write, o.report, race)
    return 1 if failed else 0


def to_json(race: Race, path: Path) -> dict[str, Any]:
    """The result for machines."""
    return {
        "answer": answer(race.score),
        "score": race.score.to_json(),
        "summary": [row.to_json() for row in race.summary],
        "workloads": [
            {"name": w.name, "target": w.target, "metric": w.metric, "steps": w.budget, "targets_from": w.targets_from}
            for w in race.workloads
        ],
        "scale": race.scale.to_json() if race.scale else None,
        "costs": {axis: [asdict(s) for s in found] for axis, found in race.beside.items()},
        "resources": [r.to_json() for r in race.resources],
        "tuning": race.tuning.to_json() if race.tuning else None,
        "environment": dict(race.environment),
        "notes": list(race.notes),
        "report": str(path),
    }

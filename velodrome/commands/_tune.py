"""The work of `velodrome tune`: draw configurations, train them as populations (or one by one), and say what was found."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from velodrome.bench.catalog import workload
from velodrome.bench.device import check_device
from velodrome.bench.fanout import stopping
from velodrome.bench.protocol import Entry, Interrupted, Setting
from velodrome.bench.protocol import drive as alone
from velodrome.bench.tuning import Configuration
from velodrome.commands.options import print_json, say, write_page
from velodrome.commands.tune import Options
from velodrome.population.halving import Halving
from velodrome.population.members import Alone, folder, identity, kinds
from velodrome.population.ranks import Ranks
from velodrome.population.train import drive
from velodrome.recipes.parse import parse, split
from velodrome.recipes.space import Choice, Range, default, draw, parse_space, spelled, told
from velodrome.records.environment import environment
from velodrome.records.read import Record, read
from velodrome.reports import tune
from velodrome.reports.progress import Progress


def run(o: Options, typed: str) -> int:
    """Search, tell the result, and return the exit code; `typed` is the command, for the person who goes on with it."""
    torch.set_num_threads(o.threads)
    check_device(o.device)
    task = workload(o.on)
    space, configurations = configurations_of(o)
    setting = Setting(device=o.device, bf16=o.bf16, threads=o.threads)
    data = task.load()
    recipes = [parse(text) for text, _ in configurations]
    entries = [Entry(task, data, recipe, seed, setting) for recipe in recipes for seed in range(o.seeds)]
    notes: list[str] = []
    with stopping() as asked:
        folders = train(entries, o, lambda: bool(asked), notes)
    if folders is None:
        say(f"Stopped; saved. The same command goes on: {typed}")
        return asked[0]
    records = [read(o.out / folder) for folder in folders]
    found = []
    for i, (_, options) in enumerate(configurations):
        mine = records[i * o.seeds : (i + 1) * o.seeds]
        found.append(configuration(recipes[i].name, options, mine))
    unique = list({c.recipe: c for c in found}.values())
    cost = sum((r.result or {}).get("seconds", 0.0) for r in records)
    search = tune.Search(
        o.algorithm, task.name, task.metric_name, [told([r]) for r in space], unique, o.seeds, task.steps, cost, typed, notes
    )
    if o.json:
        print_json({**tune.to_json(search), "report": str(o.report)})
    else:
        tune.print_search(search)
    write_page(tune.write, o.report, search)
    return 0


def configurations_of(o: Options) -> tuple[list[Range | Choice], list[tuple[str, dict[str, Any]]]]:
    """The space, and each configuration as it is typed with the options that vary; an option fixed in the algorithm's name is not searched."""
    name, fixed = split(o.algorithm)
    settings = dict(parse(o.algorithm).settings)
    space = parse_space(o.space, settings) if o.space else [r for r in default(settings) if r.option not in fixed]
    taken = sorted({r.option for r in space} & set(fixed))
    if taken:
        raise ValueError(f"{taken[0]} is fixed in {o.algorithm!r} and searched in --space: leave one of them out.")
    assert o.configs is not None  # `tune.main` has filled it in
    drawn = draw(space, settings, o.configs)
    return space, [(spelled(name, {**fixed, **options}), options) for options in drawn]


def train(entries: list[Entry], o: Options, stop: Callable[[], bool], notes: list[str]) -> list[str] | None:
    """Train all entries; the folder of each, or None when stopped. What cannot be stacked is trained one by one, and said."""
    session = environment(threads=o.threads, device=o.device)
    folders: dict[int, str] = {}
    with Progress(len(entries), quiet=o.quiet) as progress:

        def show(i: int, folder: str, state: dict[str, Any]) -> None:
            e, over = entries[i], state["state"] == "dropped"
            folders[i] = folder
            told = "finished" if over else state["state"]
            more = {"value": state["valid"]} if "valid" in state else {}
            progress.update(folder, workload=e.workload.name, algorithm=e.recipe.name, seed=e.seed, total=e.workload.steps)
            progress.update(folder, state=told, step=state["t"], **more)

        try:
            try:
                for group in kinds(entries):
                    together([entries[i] for i in group], group, o, session, stop, show)
            except Alone as reason:
                notes.append(f"Trained one by one: {reason}")
                if o.drop or o.stop != "none":
                    notes.append("Nobody was dropped: --drop and --stop need a population.")
                for i, e in enumerate(entries):
                    for state in alone(e, o.out, session, stop):
                        show(i, e.folder, state)
        except Interrupted:
            return None
    return [folders[i] for i in range(len(entries))]


def together(
    entries: list[Entry], places: list[int], o: Options, session: dict[str, Any], stop: Callable[[], bool], show: Callable[..., None]
) -> None:
    """One population."""
    unique = list({(e.recipe.name, e.seed): e for e in entries}.values())  # two draws may round to one recipe
    halving = Halving() if o.drop else None
    rule = Ranks(len(unique), halving=halving) if o.stop == "rank" else halving
    news: Iterator[Any] = drive(unique, o.out, session, stop, rule)
    named = {folder(e, identity(e, rule, unique)): e for e in unique}
    position = {name: [p for p, e in zip(places, entries, strict=True) if key(e) == key(u)] for name, u in named.items()}
    for states in news:
        for name, state in states:
            for i in position[name]:
                show(i, name, state)


def key(e: Entry) -> tuple[str, int]:
    """What tells two entries of a search apart."""
    return e.recipe.name, e.seed


def configuration(recipe: str, options: dict[str, Any], records: list[Record]) -> Configuration:
    """What the runs of a configuration say; the loss before the first update is the first row's."""
    results = [r.result or {} for r in records]
    losses = tuple(None if x.get("diverged") else x["valid"] for x in results)
    start = float(sum(r.rows[0]["valid"] for r in records) / len(records))
    return Configuration(recipe, options, losses, start, any(x["state"] == "dropped" for x in results))

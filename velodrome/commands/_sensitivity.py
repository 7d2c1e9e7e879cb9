"""The work of `velodrome tune --sensitivity`: one grid of learning rates for each set of mitigations, and what each set is worth."""

import torch

from velodrome.bench.catalog import workload
from velodrome.bench.device import check_device
from velodrome.bench.fanout import stopping
from velodrome.bench.mitigations import NAMES, Variant, variants
from velodrome.bench.protocol import Entry, Setting
from velodrome.bench.workload import Data, Workload
from velodrome.commands._tune import configuration, train
from velodrome.commands.options import print_json, say, write_page
from velodrome.commands.tune import Options
from velodrome.recipes.parse import parse, split
from velodrome.recipes.space import Choice, Range, parse_space
from velodrome.records.read import read
from velodrome.reports import sensitivity

DECADES = 3.0  # orders of magnitude


def run(o: Options, typed: str) -> int:
    """Train every variant at every rate with every seed, tell the result, and return the exit code."""
    torch.set_num_threads(o.threads)
    check_device(o.device)
    task = workload(o.on)
    name, fixed = split(o.algorithm)
    rates = grid(o, task)
    chosen = tuple(part.strip() for part in o.mitigations.split(",")) if o.mitigations else NAMES
    made, notes = variants(name, fixed, task, chosen)
    data, setting = task.load(), Setting(device=o.device, bf16=o.bf16, threads=o.threads)
    told: list[sensitivity.Curve] = []
    cost = 0.0
    with stopping() as asked:
        for variant in made:
            curve, spent = measured(variant, rates, o, setting, data, asked, notes)
            if curve is None:
                say(f"Stopped; saved. The same command goes on: {typed}")
                return asked[0]
            told.append(curve)
            cost += spent
    found = sensitivity.Sensitivities(
        o.algorithm, task.name, task.metric_name, told, o.seeds, task.steps, cost, typed, list(dict.fromkeys(notes))
    )
    if o.json:
        print_json({**sensitivity.to_json(found), "report": str(o.report)})
    else:
        sensitivity.show(found)
    write_page(sensitivity.write, o.report, found)
    return 0


def grid(o: Options, task: Workload) -> list[float]:
    """The rates, evenly in their logarithm, both ends included: three orders of magnitude around the algorithm's own, or `--space lr=LOW..HIGH:log`."""
    settings, (_, fixed) = parse(o.algorithm).settings, split(o.algorithm)
    own = settings.get("lr")
    if not isinstance(own, float) or own <= 0 or "lr" in fixed:
        raise ValueError(
            f"--sensitivity varies the learning rate, which {o.algorithm!r} fixes or does not have: leave lr out of its options."
        )
    around: list[Range | Choice] = [Range("lr", own / 10 ** (DECADES / 2), own * 10 ** (DECADES / 2), "log")]
    space = parse_space(o.space, settings) if o.space else around
    if [(r.option, r.scale) for r in space] != [("lr", "log")]:
        raise ValueError(f"--sensitivity varies the learning rate alone, got --space {o.space!r}: write --space lr=3e-4..3e-1:log.")
    assert o.configs is not None
    return [space[0].at(i / (o.configs - 1)) for i in range(o.configs)]


def measured(
    variant: Variant, rates: list[float], o: Options, setting: Setting, data: Data, asked: list[int], notes: list[str]
) -> tuple["sensitivity.Curve | None", float]:
    """One variant's curve and its seconds; None when stopped."""
    recipes = [variant.recipe(lr) for lr in rates]
    entries = [Entry(variant.workload, data, recipe, seed, setting) for recipe in recipes for seed in range(o.seeds)]
    folders = train(entries, o, lambda: bool(asked), notes)
    if folders is None:
        return None, 0.0
    records = [read(o.out / folder) for folder in folders]
    found = [
        configuration(recipe.name, {"lr": lr}, records[i * o.seeds : (i + 1) * o.seeds])
        for i, (recipe, lr) in enumerate(zip(recipes, rates, strict=True))
    ]
    return sensitivity.Curve(variant.name, found), sum((r.result or {}).get("seconds", 0.0) for r in records)

"""Does a schedule refined from a run's gradient norms beat linear decay? `python -m experiments.refinement_vs_linear`."""

from dataclasses import replace
from functools import partial

from experiments.trials import adamw, claim, difference, finals, table, tasks, train, tuned
from velodrome.bench.protocol import Entry, Live
from velodrome.probes.updates.gradient_norms import GradientNorms
from velodrome.recipes.parse import parse
from velodrome.records.digest import content_hash
from velodrome.schedules.refined import Refined, refine

RATES, SEEDS, SOURCE = (6e-3, 1.2e-2, 2.4e-2), range(3), 100  # the norms are a run's of another seed, at the middle rate


def norms_of(task):
    """Of every update of a run with linear decay."""
    live, found = Live(Entry(task, task.load(), parse(adamw(RATES[1])[0]), SOURCE)), GradientNorms()
    for step in live.steps():
        if step.t == task.steps:
            return found
        found.add(live.model.parameters())


def stretched(shape, lr, steps):
    """The refined schedule of a run."""
    return Refined(lr, steps, shape)


def recipe(lr, name, shape):
    """(label, recipe) of AdamW with a refined schedule."""
    label = f"adamw(lr={lr}, schedule={name})"
    plain = parse(f"adamw(lr={lr})")
    return label, replace(
        plain, name=label, schedule=partial(stretched, shape), settings={**plain.settings, "schedule": name, "shape": content_hash(shape)}
    )


with claim("refinement_vs_linear") as out:
    rows, gaps = [], []
    for task in tasks():
        norms = norms_of(task)
        found = refine(norms.l1)
        asked = {("linear", lr): adamw(lr) for lr in RATES} | {("refined", lr): recipe(lr, "refined", found.shape) for lr in RATES}
        losses = finals(train(task, dict(asked.values()), SEEDS, out))
        best = {s: tuned([losses[asked[s, lr][0]] for lr in RATES]) for s in ("linear", "refined")}
        chosen = {s: min(RATES, key=lambda lr, s=s: losses[asked[s, lr][0]].mean()) for s in best}
        gaps.append(best["refined"] / best["linear"] - 1)
        gap = difference(gaps[-1])
        told = [f"{max(found.smoothed) / min(found.smoothed):.1f}", f"{found.peak:.0%}", f"{found.capped:.0%}", f"{norms.signal:.2f}"]
        ends = [f"{best[s].mean():.4f} at {chosen[s]:g}" for s in best]
        rows.append([task.name, *told, *ends, gap, gap.verdict("refined", "linear")])
    whole = difference(*gaps)
    rows.append(["all five", "", "", "", "", "", "", whole, whole.verdict("refined", "linear")])
    texts = difference(*gaps[2:])
    rows.append(["the three texts", "", "", "", "", "", "", texts, texts.verdict("refined", "linear")])
    table(["workload", "fall of the norms", "peak at", "capped", "signal", "linear", "refined", "refined / linear - 1", "better"], rows)

"""Does the distance from the start grow like log t under SGD at a constant rate? `python -m experiments.log_distance`."""

import sys

import numpy as np

from experiments.trials import claim, table
from velodrome.bench.catalog import workload
from velodrome.data.streams import Shuffled
from velodrome.gradients.backward import backward
from velodrome.optim.sgd import sgd
from velodrome.probes.updates.distance import Start, distance_law
from velodrome.train import train

# Fixed before anything was trained. "root": RATE at the middle batch size, elsewhere in proportion to the root of the batch size (Hoffer et al.'s rule).
SEEDS, RATE, FIRST, POINTS = range(3), 0.1, 10, 60
TASKS = {"digits": ((16, 64, 256), 10_000), "mnist": ((32, 128, 512), 6_000)}
AGAINST = 0.5  # the claim fails when another law is better in this share of the runs, or sqrt t in any


def walked(name, batch, rate, steps, seed):
    """(steps, distances from the start) of one run, at steps evenly spaced in log t."""
    task = workload(name)
    whole = task.load().stream(seed)
    stream = Shuffled(whole.inputs, whole.targets, batch, seed, transform=whole.transform, digest="")
    model = task.model(seed=seed)
    start, optimizer = Start(model), sgd(model.parameters(), lr=rate)
    asked = set(np.unique(np.geomspace(FIRST, steps, POINTS).round().astype(int)).tolist())
    at, distances = [], []
    for step in train(backward(model, task.loss), optimizer, stream, guard=False):
        if step.t in asked:  # the gradient of step t, so t updates have been made
            at.append(step.t)
            distances.append(start.distance())
        if step.t == steps:
            break
    return at, distances


with claim("log_distance"):
    rows, found = [], []
    for name, (batches, steps) in TASKS.items():
        for rule in ("constant", "root"):
            for batch in batches:
                rate = RATE * (batch / batches[1]) ** (0.5 if rule == "root" else 0)
                if rule == "root" and batch == batches[1]:
                    continue  # the same runs
                laws = [distance_law(*walked(name, batch, rate, steps, seed)) for seed in SEEDS]
                found += laws
                mean = {law: 100 * float(np.mean([x.scatter[law] for x in laws])) for law in laws[0].scatter}
                rates, exponents = [x.rate.value for x in laws], [x.exponent.value for x in laws]
                span = [
                    f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" if np.isfinite(v).all() else "not identified"
                    for v in (rates, exponents)
                ]
                rows.append([name, batch, f"{rate:.3g}", *span, *(f"{v:.2f}" for v in mean.values()), ", ".join(x.better for x in laws)])
    scatters = [f"{law}, %" for law in found[0].scatter]
    table(["task", "batch", "rate", "b per e-fold", "exponent c", *scatters, "better, by seed"], rows)
    against = [x for x in found if x.better in ("sqrt t", "power of t")]
    roots = sum(x.better == "sqrt t" for x in found)
    logs = sum(x.better == "log t" for x in found)
    print(
        f"\nlog t is better in {logs} of {len(found)} runs, another law in {len(against)} (sqrt t in {roots}), the rest is not separable."
    )
    holds = len(against) < AGAINST * len(found) and not roots
    print("holds" if holds else "does not hold")
sys.exit(0 if holds else 1)

"""The gradient norms of a recorded run, which is trained again in memory to see them: records have a row for an evaluation, not for a step."""

from pathlib import Path

import torch

from velodrome.bench.replay import entry_of, find, replay
from velodrome.commands.refine import Norms
from velodrome.probes.updates.gradient_norms import GradientNorms
from velodrome.recipes.parse import split
from velodrome.reports.progress import Progress


def norms(path: Path, on: str | None) -> Norms:
    """Norms of the gradients that the run's updates were made of; ValueError for a run that diverges."""
    record = find(path)
    torch.set_num_threads(record.recipe.get("threads", 1))
    entry, notes = entry_of(record, on)
    if record.result and record.result.get("diverged"):
        raise ValueError(f"{record.path} diverged: a schedule is refined from a run that came to its end.")
    live, steps, _, _ = replay(entry, record.path, 0)
    found = GradientNorms()
    found.add(live.model.parameters())
    with Progress(1) as progress:
        progress.update(entry.folder, workload=entry.workload.name, algorithm=entry.recipe.name, seed=entry.seed, total=entry.end)
        for step in steps:
            if step.diverged is not None:
                raise ValueError(f"the run diverges at step {step.t:,} when it is trained again: {step.diverged}.")
            if step.t == entry.end:
                break
            found.add(live.model.parameters())
            if step.t % entry.workload.every == 0:
                progress.update(entry.folder, state="running", step=step.t)
        progress.update(entry.folder, state="finished", step=entry.end)
    name = split(entry.recipe.name)[0].rpartition(":")[2].lower()
    kind = "sgd" if name.startswith("sgd") else "adam"
    return Norms(record.path.name, {"sgd": found.l2, "adam": found.l1}, kind, found.signal, tuple(f"Note: {note}." for note in notes))

"""Targets of workloads that have none yet: set by the race itself, from whole runs of the reference on seeds that are never raced.

A rung of a ladder of scales is trained on machines that its authors have not seen, so its targets cannot be shipped: a race sets them by the rule of all
shipped targets (`targets.proposed`). Were the seeds that set a target raced too, the reference would be compared at values that its own luck has chosen;
with seeds of their own, targets are as independent of the raced runs as shipped ones.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from velodrome.bench.crews.place import Place, place
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive
from velodrome.bench.targets import FIRST_SEED, FOLDER, PLACES, REFERENCE, SEEDS, SHARE, proposed
from velodrome.bench.workload import Data, Workload
from velodrome.recipes.parse import parse
from velodrome.records.lock import Busy
from velodrome.records.read import columns, read

Say = Callable[..., None]


def settled(w: Workload, data: Data, setting: Setting, root: str, session: dict[str, Any], stop: Callable[[], bool], say: Say) -> Workload:
    """The workload with its own targets, or with those of `SEEDS` whole runs of the reference, kept in the folder `targets` of the race's runs.

    Whoever needs them trains those that nobody else is training, and waits for the others; finished ones are never repeated. `say(folder, state=…)` hears
    of every evaluation. Interrupted once `stop()` is true; ValueError where the reference diverges in too many runs.
    """
    if w.targets:
        return w
    seeds, recipe = range(FIRST_SEED, FIRST_SEED + SEEDS), parse(REFERENCE)
    alone = replace(setting, until="budget", processes=1)  # the processes of a run meet after this
    entries = [Entry(w, data, recipe, seed, alone) for seed in seeds]
    kept = place(f"{root}/{FOLDER}")
    try:
        left = entries
        while left := [e for e in left if not _over(e, kept, session, stop, say)]:
            if stop():
                raise Interrupted
            time.sleep(kept.pause)
        read_ = [columns(read(kept.local(e.folder)), "t", "valid") for e in entries]
    finally:
        kept.close()
    try:
        found = proposed([(c["t"].tolist(), c["valid"].astype(float).tolist()) for c in read_], w.steps)
    except ValueError as error:
        raise ValueError(f"{w.name} has no targets of its own, and {error}") from None
    return replace(w, targets=found, targets_from={"reference": REFERENCE, "seeds": list(seeds), "share": SHARE, "places": list(PLACES)})


def unraced(seeds: Sequence[int]) -> None:
    """Refuse a race on the seeds that set targets."""
    if max(seeds, default=0) >= FIRST_SEED:
        raise ValueError(f"seeds from {FIRST_SEED} on set the targets of workloads that have none, got {max(seeds)}: race fewer seeds.")


def _over(entry: Entry, kept: Place, session: dict[str, Any], stop: Callable[[], bool], say: Say) -> bool:
    """Whether the run is finished, after training it unless somebody else does."""
    if kept.finished(entry.folder):
        return True
    try:
        for state in kept.kept(entry.folder, partial(drive, entry, kept.root, session, stop)):
            say(f"{FOLDER}/{entry.folder}", **_told(entry, state))
    except Interrupted:
        say(f"{FOLDER}/{entry.folder}", state="interrupted")
        raise
    except Busy as busy:
        say(f"{FOLDER}/{entry.folder}", state="elsewhere", note=str(busy))
        return False
    return True


def _told(entry: Entry, state: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the line must know; no value, because there is no target to hold it to."""
    about = {"workload": entry.workload.name, "algorithm": entry.recipe.name, "seed": entry.seed, "steps": entry.workload.steps}
    return about | {k: state[k] for k in ("state", "t") if k in state}

"""Hopeless trials: of a study the fastest trial counts alone, so that one which has spent what another needed for the target can end there.

Said of trials of external tuning that end at their target (`--until target`); the score is the same with and without (`tests/truth/test_rules.py`), what
all trials cost together is lower.
"""

from collections.abc import Iterable
from pathlib import Path

from velodrome.bench.protocol import Entry
from velodrome.records.read import read
from velodrome.train import Step

Key = tuple[str, int, str]


class Studies:
    """The trials of a race by workload, seed and algorithm, and what those that have reached the target needed. Their results are looked for in `root`,
    so that trials of other workers and of earlier sessions count too."""

    def __init__(self, entries: Iterable[Entry], root: Path):
        self.root = root
        self.waiting: dict[Key, set[str]] = {}
        self.needed: dict[Key, list[tuple[int, int]]] = {}  # steps and FLOPs
        for e in entries:
            if (key := study(e)) is not None:
                self.waiting.setdefault(key, set()).add(e.folder)

    def hopeless(self, entry: Entry, step: Step) -> bool:
        """Whether another trial of `entry`'s study has reached the target in no more steps and FLOPs than this one has spent without reaching it."""
        key = study(entry)
        if key is None:
            return False
        for folder in list(self.waiting[key]):
            if not (self.root / folder / "result.json").exists():
                continue
            result = read(self.root / folder).result
            if result is not None:
                self.waiting[key].discard(folder)
                if result.get("stopped") == "target":
                    self.needed.setdefault(key, []).append((int(result["steps"]), int(result["flops"])))
        return any(steps <= step.t and flops <= step.flops for steps, flops in self.needed.get(key, []))


def study(entry: Entry) -> Key | None:
    """Which study the run is a trial of; None for one that is none, or that uses its whole budget."""
    name = entry.told.get("entrant")
    return None if name is None or entry.setting.until != "target" else (entry.workload.name, entry.seed, name)

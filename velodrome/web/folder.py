"""The runs of a folder as they are written: listed once, then only what changed is read.

What a poll costs does not depend on how much is stored: a `stat` of the folder, which is listed when it has changed (and now and then, because
some file systems tell late), and two for each unfinished run, of which those that have been quiet take turns. Whether a run is still going is
not told from this machine's clock alone, because another machine may have written the files: it is running if it changed while we looked, or if
its last change is close to now or to the newest of all.
"""

import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2s
from pathlib import Path
from threading import Lock
from typing import Any

from velodrome.records.read import Record, read, stored
from velodrome.records.tail import Tail
from velodrome.web.series import Series

QUIET = 180.0  # seconds without a row after which a run is no longer called running; the longest pause between evaluations we met is 100 s
AGAIN = 8  # looks after which the folder is listed although it seems the same
IN_TURN = 400  # quiet runs, or folders that are no runs, looked at in one poll
KEPT = 8_000_000  # numbers of finished runs' rows kept in memory: 64 MB
Stamp = tuple[int, int, int]  # inode, size, nanoseconds
NONE: Stamp = (0, 0, 0)


@dataclass(frozen=True)
class Summary:
    """One run as the table shows it; None is not known. `changed` is the file's own time in seconds since 1970."""

    id: str
    name: str
    workload: str
    algorithm: str
    seed: int | None
    state: str
    step: float | None
    steps: float | None
    valid: float | None
    best: float | None
    target: float | None
    seconds: float | None
    device: str
    changed: float


@dataclass
class Live:
    """What is known of one run: its record, its growing log, and when it was last seen to change, by our own clock."""

    record: Record
    id: str
    inode: int
    tail: Tail
    series: Series = field(default_factory=Series)
    rows: Stamp = NONE
    result: Stamp = NONE
    seen: float = float("-inf")  # monotonic seconds
    changed: float = 0.0
    best: float | None = None


@dataclass(frozen=True)
class Change:
    """What one poll found: ids of runs that are new or have changed, of those gone, and of those that are finished as of now."""

    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    finished: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


class Folder:
    """The index. One thread calls `poll`; everything else may be called by any.

    `runs` maps ids to summaries, `listed` counts the folders of the last listing, `read` those that were looked into, `behind` says that the
    next poll has work at once, `error` why the folder cannot be listed.
    """

    def __init__(self, root: Path):
        self.root = root
        self.runs: dict[str, Summary] = {}
        self.listed = self.read = 0
        self.behind = True
        self.error = ""
        self._live: dict[str, Live] = {}  # by name
        self._open: dict[str, Live] = {}  # of these, those not finished
        self._there: dict[str, int] = {}  # folders of the last listing, with their inodes
        self._stamp, self._looks = NONE, 0
        self._names: dict[str, str] = {}  # by id
        self._strange: dict[str, float] = {}  # folders that are no runs, or not yet; when they were looked at
        self._turn = 0
        self._newest = 0.0
        self._kept: OrderedDict[str, Series] = OrderedDict()
        self._lock = Lock()

    def poll(self, budget: float = 0.25) -> Change:
        """Look once, for about `budget` seconds; what is not done by then is left for the next call."""
        end = time.monotonic() + budget
        removed = self._list()
        there = self._there
        changed: set[str] = set()
        finished: set[str] = set()
        self.behind = False
        for name in self._unread(there):
            if time.monotonic() > end:
                self.behind = True
                break
            run = self._add(name, there[name])
            if run is not None:
                changed.add(run.id)
                finished |= {run.id} if run.record.finished else set()
        self.read = len(self._live) + len(self._strange)
        for run in self._due():
            if self._look(run):
                changed.add(run.id)
                finished |= {run.id} if run.record.finished else set()
            self.behind |= run.tail.behind
        for run in self._open.values():  # one that went quiet, which no file says
            if run.id in self.runs and self.runs[run.id].state != self._state(run):
                changed.add(run.id)
        self._open = {name: run for name, run in self._open.items() if not run.record.finished}
        for id_ in changed:
            self.runs[id_] = self._summary(self._live[self._names[id_]])
        return Change(frozenset(changed), frozenset(removed - changed), frozenset(finished))

    def record(self, id_: str) -> Record | None:
        """The run's record as it is on disk now; None for an id that is none of ours."""
        name = self._names.get(id_)
        run = None if name is None else self._live.get(name)
        if run is None:
            return None
        try:
            return read(run.record.path)
        except ValueError:
            return run.record  # being removed or rewritten at this moment

    def known(self, id_: str) -> Record | None:
        """The run's record as it was read last."""
        name = self._names.get(id_)
        run = None if name is None else self._live.get(name)
        return None if run is None else run.record

    def series(self, id_: str) -> Series:
        """The run's rows; of a finished one as they are stored, kept in memory while there is room."""
        name = self._names.get(id_)
        run = None if name is None else self._live.get(name)
        if run is None:
            return Series()
        if not run.record.finished:
            return run.series
        with self._lock:
            if (kept := self._kept.get(id_)) is not None:
                self._kept.move_to_end(id_)
                return kept
        log = stored(run.record)
        series = Series(log.rows, whole=not log.damaged)
        with self._lock:
            self._kept[id_] = series
            while len(self._kept) > 1 and sum(s.size for s in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return series

    def damaged(self, id_: str) -> int:
        """Lines of an unfinished run's log that cannot be read."""
        run = self._live.get(self._names.get(id_, ""))
        return 0 if run is None else run.tail.damaged

    def _list(self) -> set[str]:
        """Bring the listing up to date; ids of the runs that are gone, or were replaced by another folder of the same name."""
        now = stamp(self.root)
        self._looks += 1
        if now == self._stamp and self._looks % AGAIN and not self.error:
            return set()
        self._stamp = now
        try:
            with os.scandir(self.root) as entries:
                self._there = {e.name: e.inode() for e in entries if not e.name.startswith(".") and e.is_dir()}
        except OSError as error:
            self.error = f"{self.root} cannot be listed ({error.strerror})."
            self._there = {}
        else:
            self.error = ""
        self.listed = len(self._there)
        self._strange = {n: at for n, at in self._strange.items() if n in self._there}
        return {self._drop(name) for name in [n for n, run in self._live.items() if self._there.get(n) != run.inode]}

    def _unread(self, there: dict[str, int]) -> list[str]:
        """New folders, and those that were no runs when they were looked at: a run may be made while we look."""
        pause = 0.4 * (1 + len(self._strange) / IN_TURN)
        now = time.monotonic()
        if len(there) == len(self._live):
            return []
        return [n for n in sorted(there) if n not in self._live and now - self._strange.get(n, float("-inf")) > pause]

    def _add(self, name: str, inode: int) -> Live | None:
        path = self.root / name
        try:
            record = read(path)
        except ValueError:
            self._strange[name] = time.monotonic()
            return None
        self._strange.pop(name, None)
        id_ = blake2s(name.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        run = Live(record, id_, inode, Tail(os.fspath(path / "rows.jsonl")))
        self._live[name], self._names[id_] = run, name
        if not record.finished:
            self._open[name] = run
        if record.finished:
            run.result = stamp(path / "result.json")
            run.changed = run.result[2] / 1e9
        else:
            self._look(run, first=True)
        self._newest = max(self._newest, run.changed)
        return run

    def _drop(self, name: str) -> str:
        run = self._live.pop(name)
        self._open.pop(name, None)
        self._names.pop(run.id, None)
        self.runs.pop(run.id, None)
        with self._lock:
            self._kept.pop(run.id, None)
        return run.id

    def _due(self) -> list[Live]:
        """Unfinished runs to look at: all that are going, and some of the quiet ones in turn."""
        now = time.monotonic()
        going = [run for run in self._open.values() if now - run.seen < QUIET or run.tail.behind]
        quiet = [run for run in self._open.values() if not (now - run.seen < QUIET or run.tail.behind)]
        self._turn = self._turn + IN_TURN if self._turn + IN_TURN < len(quiet) else 0
        return going + quiet[self._turn : self._turn + IN_TURN]

    def _look(self, run: Live, first: bool = False) -> bool:
        """Whether an unfinished run has changed; reads what was appended, or its result."""
        path = run.record.path
        rows, result = stamp(path / "rows.jsonl"), stamp(path / "result.json")
        if (rows, result) == (run.rows, run.result) and not run.tail.behind:
            return False
        if rows != run.rows or run.tail.behind:
            _grow(run)
        if result != run.result:
            try:
                run.record = read(path)
            except ValueError:
                return False
        run.rows, run.result = rows, result
        run.changed = max(rows[2], result[2]) / 1e9
        self._newest = max(self._newest, run.changed)
        if not first:
            run.seen = time.monotonic()
        if run.record.finished:
            run.series, run.tail = Series(), Tail(run.tail.path)
        return True

    def _state(self, run: Live) -> str:
        if run.record.finished:
            result = run.record.result
            return str(result.get("state", "finished")) if isinstance(result, dict) else "finished"
        fresh = run.changed > max(time.time(), self._newest) - QUIET
        return "running" if fresh or time.monotonic() - run.seen < QUIET else "quiet"

    def _summary(self, run: Live) -> Summary:
        recipe = run.record.recipe
        result = run.record.result if isinstance(run.record.result, dict) else {}
        goals = recipe.get("targets")
        seed = recipe.get("seed")
        last = result if run.record.finished else _last(run)
        return Summary(
            id=run.id,
            name=run.record.path.name,
            workload=str(recipe.get("workload") or ""),
            algorithm=str(recipe.get("algorithm") or ""),
            seed=seed if isinstance(seed, int) else None,
            state=self._state(run),
            step=_number(last.get("steps")),
            steps=_number(recipe.get("steps")),
            valid=_number(last.get("valid")),
            best=_number(last.get("best")),
            target=_number(goals[-1]) if isinstance(goals, list) and goals else None,
            seconds=_number(last.get("seconds")),
            device=str(recipe.get("device") or ""),
            changed=round(run.changed, 3),
        )


def stamp(path: Path) -> Stamp:
    """What changes when a file does; zeros where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return NONE
    return found.st_ino, found.st_size, found.st_mtime_ns


def _grow(run: Live) -> None:
    """Read what was appended to the run's log."""
    found, anew = run.tail.read()
    if anew:
        run.series, run.best = Series(), None
    start = run.series.n
    run.series.extend(found)
    values = run.series.columns.get("valid", ())[start:]
    run.best = min([v for v in (*values, run.best) if v is not None and v == v], default=None)


def _last(run: Live) -> dict[str, Any]:
    """What the result of a run will say, as far as its rows tell."""
    n, columns = run.series.n, run.series.columns
    values = {name: columns[name][n - 1] for name in ("t", "seconds", "valid") if n and name in columns}
    return {"steps": values.get("t"), "seconds": values.get("seconds"), "valid": values.get("valid"), "best": run.best}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value - value == 0 else None

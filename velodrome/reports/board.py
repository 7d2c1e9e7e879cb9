"""The board: algorithms on a suite of workloads, from runs small enough to ship. What `velodrome report board` and docs/board.md show, as plain rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from velodrome.bench.pairwise import holm
from velodrome.bench.ranking import Rank, ranking
from velodrome.bench.score import Score, Speedup, speedups
from velodrome.records.packed import unpack
from velodrome.records.read import Record
from velodrome.reports import collect
from velodrome.reports.race import Race
from velodrome.reports.standing_words import Rows, optional, probability
from velodrome.reports.words import MISSING, SHORT, ratio, times

RULES = {
    "self": "self-tuning: one run per seed, the same options on every workload",
    "external": "external tuning: the best of several trials",
}
SUFFIX = ".jsonl.gz"


@dataclass(frozen=True)
class Board:
    """`race` is scored on its axis, `also` on the other costs of interest; `adjusted` are p-values of the comparisons with the reference after Holm's
    procedure over these alone; `ranks` fastest first, empty where the spread is unknown."""

    race: Race
    also: Mapping[str, Score]
    adjusted: Mapping[str, float | None]
    ranks: Sequence[Rank]
    rules: str = "self"

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers."""
        standing = self.race.standing
        return {
            "rules": self.rules,
            "score": self.race.score.to_json(),
            "also": {axis: score.to_json() for axis, score in self.also.items()},
            "adjusted": dict(self.adjusted),
            "ranks": [asdict(r) for r in self.ranks],
            "standing": None if standing is None else standing.to_json(),
            "tuning": None if self.race.tuning is None else self.race.tuning.to_json(),
            "environment": dict(self.race.environment),
            "notes": list(self.race.notes),
        }


def shipped() -> dict[str, Path]:
    """The boards that come with the package, by rules."""
    folder = Path(str(files("velodrome.bench").joinpath("board")))
    return {rules: folder / f"{rules}{SUFFIX}" for rules in RULES if (folder / f"{rules}{SUFFIX}").is_file()}


def found(place: Path) -> dict[str, Path]:
    """The boards in a folder that `python -m benchmarks.board pack` wrote, or the one in a file, by rules; ValueError where there is none."""
    if place.is_file():
        return {place.name.removesuffix(SUFFIX): place}
    there = {p.name.removesuffix(SUFFIX): p for p in sorted(place.glob(f"*{SUFFIX}"))} if place.is_dir() else {}
    if not there:
        state = "holds no board" if place.is_dir() else "does not exist"
        raise ValueError(
            f"{place} {state}: give a folder or a file that `python -m benchmarks.board pack` wrote; for run folders, velodrome report."
        )
    return there


def read(path: Path, reference: str = collect.REFERENCE, axis: str = "flops", on: Sequence[str] = (), command: str = "") -> Board:
    """The board in a file, on these workloads or all of them."""
    runs = [r for r in unpack(path) if not on or r.recipe.get("workload") in on]
    return board(runs, reference, axis, path.name.removesuffix(SUFFIX), command)


def board(runs: Iterable[Record], reference: str = collect.REFERENCE, axis: str = "flops", rules: str = "self", command: str = "") -> Board:
    """What runs say; ValueError as `collect.race`."""
    race = replace(collect.race(runs, reference=reference, axis=axis, command=command), title="Velodrome board")
    hard = race.trials
    axes = [a for a in dict.fromkeys(a for t in hard for a in t.cost) if a not in (axis, "steps", "examples")]
    also = {a: speedups(hard, reference, a, each=False) for a in axes}
    return Board(race, also, against(race, reference), ranking(hard, reference, axis), rules)


def against(race: Race, reference: str) -> dict[str, float | None]:
    """Adjusted p-value of each algorithm's comparison with the reference; None where misses or too few pairs leave it open.

    Holm's procedure over the comparisons with the reference: the chance of any false call among them is at most 5 %.
    """
    duels = race.standing.duels if race.standing else ()
    own = {d.b if d.a == reference else d.a: d.p for d in duels if reference in (d.a, d.b)}
    known = [a for a, p in own.items() if p is not None]
    found = dict(zip(known, holm([p for p in own.values() if p is not None]), strict=True))
    return {a: found.get(a) for a in own}


def order(b: Board) -> list[Speedup]:
    """Fastest first; one without an informative pair last."""
    return sorted(b.race.score.overall, key=lambda s: -(s.speedup or 0.0))


def board_rows(b: Board) -> Rows:
    """A row per algorithm, fastest first: speed-up on the board's axis and on the others, hits, adjusted p-value, place."""
    score, ranks = b.race.score, {r.algorithm: r for r in b.ranks}
    also = {axis: {s.algorithm: s for s in other.overall} for axis, other in b.also.items()}
    head = ("algorithm", *(f"speed-up ({named(a)})" for a in (score.axis, *also)), "verdict", "hits", "p adjusted", "place")
    rows = []
    for s in order(b):
        more = [times(also[axis][s.algorithm]) if s.algorithm in also[axis] else MISSING for axis in also]
        told = [
            SHORT.get(s.verdict, s.verdict),
            f"{s.hits}/{s.trials}",
            probability(b.adjusted.get(s.algorithm)),
            place(ranks.get(s.algorithm)),
        ]
        rows.append((s.speedup or 0.0, [s.algorithm, times(s), *more, *told]))
    first = score.overall[0] if score.overall else None
    hits = f"{first.reference_hits}/{first.reference_trials}" if first else ""
    own = [score.reference, "1", *("1" for _ in also), "reference", hits, "", place(ranks.get(score.reference))]
    at = sum(speed > 1 for speed, _ in rows)
    return head, [*(row for _, row in rows[:at]), own, *(row for _, row in rows[at:])]


def cell_rows(b: Board) -> Rows:
    """Speed-up of every algorithm on every workload, without intervals; ≤ and ≥ where a miss makes it a bound, "—" where all missed."""
    cells = {(c.workload, c.algorithm): c for c in b.race.score.cells}
    names = [w.name for w in b.race.workloads]
    return ("algorithm", *names), [[s.algorithm, *(brief(cells.get((w, s.algorithm))) for w in names)] for s in order(b)]


def brief(s: Speedup | None) -> str:
    """A speed-up as a number alone."""
    if s is None or s.speedup is None:
        return MISSING
    return {"<": "≤ ", ">": "≥ ", "?": "≈ ", "": ""}[s.bound] + ratio(s.speedup)


def target_rows(b: Board) -> Rows:
    """Speed-ups at the easy, the medium and the hard target."""
    levels = b.race.standing.levels if b.race.standing else {}
    by = {level: {x.algorithm: x for x in score.overall} for level, score in levels.items()}
    return ("algorithm", *by), [[s.algorithm, *(brief(by[level].get(s.algorithm)) for level in by)] for s in order(b)]


def restricted_rows(b: Board) -> Rows:
    """Speed-ups in restricted means beside the others: a miss counts as the horizon."""
    ratios = b.race.standing.restricted if b.race.standing else {}
    return ("algorithm", "speed-up", "restricted"), [[s.algorithm, brief(s), optional(ratios.get(s.algorithm))] for s in order(b)]


def place(r: Rank | None) -> str:
    """ "2 (1 to 4)"."""
    return MISSING if r is None else f"{r.rank} ({r.low} to {r.high})" if r.low != r.high else f"{r.rank}"


def markdown(rows: Rows) -> str:
    """A table for a page of docs/, the first column as code."""
    head, body = rows
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in body)]) + "\n"


def named(axis: str) -> str:
    """A cost inside a sentence."""
    return {"flops": "FLOPs", "unit_seconds": "calibrated seconds"}.get(axis, axis)

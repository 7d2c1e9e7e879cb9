"""A board in sentences: who leads it, and what its columns mean."""

from velodrome.reports.board import Board, named, order
from velodrome.reports.words import joined, times


def leader(b: Board) -> str:
    """The board in one sentence."""
    score = b.race.score
    faster = [s for s in order(b) if s.verdict == "faster"]
    slower = [s for s in score.overall if s.verdict == "slower"]
    total, cost = len(score.overall), named(score.axis)
    if not total:
        return f"Only {score.reference} is on this board."
    rest = total - len(faster) - len(slower)
    parts = [
        f"{len(faster)} of {total} algorithms {'is' if len(faster) == 1 else 'are'} faster than {score.reference} in {cost}"
        if total > 1
        else ""
    ]
    if faster:
        parts.append(f"the fastest of them is {faster[0].algorithm}, {times(faster[0])}")
    if slower:
        parts.append(f"{len(slower)} {'is' if len(slower) == 1 else 'are'} slower")
    if rest:
        parts.append(f"{rest} {'is' if rest == 1 else 'are'} not separable")
    return f"On {counted(len(b.race.workloads) - len(silent(b)), 'workload')}, {'; '.join(p for p in parts if p)}."


def reading(b: Board) -> list[str]:
    """How to read the table, a sentence per column."""
    score = b.race.score
    scope = score.overall[0].scope if score.overall else "these workloads"
    axes = joined([named(a) for a in (score.axis, *b.also)])
    seeds = len({t.seed for t in b.race.trials})
    count = sum(p is not None for p in b.adjusted.values())
    redrawn = "the workloads" if scope == "workloads like these" else "the seeds"
    mute = silent(b)
    without = (
        f" {joined(mute)} {'has' if len(mute) == 1 else 'have'} no cost in {named(score.axis)}, so nothing is said of it there."
        if mute
        else ""
    )
    return [
        f"Speed-up: cost of {score.reference} over cost of the algorithm until the hard target, in {axes}; geometric mean over "
        f"{counted(seeds, 'paired seed')} and {counted(len(b.race.workloads) - len(mute), 'workload')}, {score.level:.0%} interval for {scope}.{without} "
        "≤ and ≥: a run missed its target, so it is a bound. "
        "It depends on the algorithm and the reference alone: nobody's moves when somebody else enters.",
        f"p adjusted: of the comparisons with {score.reference}, Holm's procedure over {count}; a miss counts against who missed. "
        f"Place: by speed-up, and its 95 % range when {redrawn} are redrawn for everybody at once; a place depends on who else entered.",
    ]


def silent(b: Board) -> list[str]:
    """Workloads on which the board's cost is nothing, such as the FLOPs of a model without matrix products."""
    cells = {w.name: [c for c in b.race.score.cells if c.workload == w.name] for w in b.race.workloads}
    return [w for w, own in cells.items() if own and all(c.unusable and not c.pairs for c in own)]


def counted(n: int, what: str) -> str:
    """ "1 workload", "8 workloads"."""
    return f"{n} {what}{'' if n == 1 else 's'}"

"""The board, from its command to the records that the package ships: how the numbers of docs/board.md came about, and how to repeat them.

    python -m benchmarks.board run --out board-runs                       # every algorithm on laptop, three seeds; says how long it takes
    python -m benchmarks.board run --rules external --trials 5 --out board-external
    python -m benchmarks.board pack board-runs                            # into velodrome/bench/board/self.jsonl.gz
    python -m benchmarks.board pack board-external --rules external
    velodrome report board

`run` is `velodrome race`: the same command goes on where it was stopped, and never repeats a finished run. `pack` keeps of every run its identity, its
result and the rows that a score is made of, and says how far the scores of what it kept are from those of the runs.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from velodrome.bench.catalog import expanded, workload
from velodrome.cli import main as velodrome
from velodrome.records.packed import pack, unpack
from velodrome.records.read import scan
from velodrome.reports import collect
from velodrome.reports.board import RULES, SUFFIX, Board, board
from velodrome.reports.words import seconds

ALGORITHMS = (
    *("adamw", "nadamw", "sgd", "lion", "muon", "soap", "shampoo", "schedule_free"),
    *("ademamix", "lamb", "novograd", "adamp", "stable_spam", "rotational_adamw", "prodigy", "fastest"),
)
SHIPPED = Path(__file__).parent.parent / "velodrome" / "bench" / "board"
LARGEST = 5 << 20  # of all boards together, because they lie in the repository


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(algorithms: int, names: Sequence[str], seeds: int, trials: int, workers: int) -> float:
    """Wall seconds if every algorithm were as quick as the reference and used its whole budget, on as many cores as there are processes."""
    return sum(workload(name).seconds for name in names) * algorithms * seeds * trials / workers


def run(o: argparse.Namespace) -> int:
    """Say how long it takes, and race."""
    names = list(dict.fromkeys(expanded(o.on)))
    algorithms = list(dict.fromkeys((collect.REFERENCE, *o.algorithms)))
    trials = o.trials if o.rules == "external" else 1
    workers = o.workers or cores()
    count = len(algorithms) * len(names) * o.seeds * trials
    what = f"{count:,} runs ({len(algorithms)} algorithms, {len(names)} workloads, {o.seeds} seeds{f', {trials} trials' if trials > 1 else ''})"
    long = seconds(estimate(len(algorithms), names, o.seeds, trials, workers))
    print(f"{what}: about {long} on {workers} processes at the reference's pace; runs end at their target.", file=sys.stderr)
    if o.dry:
        return 0
    rules = ["--rules", "external", "--trials", str(o.trials)] if o.rules == "external" else []
    where = ["--out", str(o.out), "--report", str(o.out) + ".html", "--workers", str(workers)]
    return velodrome(["race", *algorithms, "--on", *names, "--seeds", str(o.seeds), "--by", "flops", "--until", "target", *rules, *where])


def keep(o: argparse.Namespace) -> int:
    """Pack the runs that count, and compare what the file says with what they say; 1 where it is too large or says something else."""
    fit, notes = collect.usable([r for folder in o.runs for r in scan(folder)])
    chosen, dropped = collect.one_version(fit)
    for line in (*notes, *dropped):
        print(line, file=sys.stderr)
    if not chosen:
        raise ValueError(f"{' '.join(map(str, o.runs))} holds no finished runs: run `python -m benchmarks.board run` first.")
    o.out.mkdir(parents=True, exist_ok=True)
    path = o.out / f"{o.rules}{SUFFIX}"
    size = pack(path, chosen)
    total = sum(p.stat().st_size for p in o.out.glob(f"*{SUFFIX}"))
    apart = difference(board(chosen, rules=o.rules), board(unpack(path), rules=o.rules))
    print(
        f"{path}: {len(chosen):,} runs in {size / 1e6:.2f} MB; all boards {total / 1e6:.2f} MB. Scores differ by at most {apart:.1e} (relative)."
    )
    return int(total > LARGEST or not apart < 1e-4)


def difference(a: Board, b: Board) -> float:
    """The largest relative difference of two boards' speed-ups; infinite where one has a number, a hit or an algorithm that the other has not."""
    ours, theirs = told(a), told(b)
    if ours.keys() != theirs.keys():
        return math.inf
    return max((abs(x / other - 1) for key, x in ours.items() if x is not None and (other := theirs[key]) is not None), default=0.0)


def told(b: Board) -> dict[tuple[object, ...], float | None]:
    """Every speed-up of a board; what must be equal to the last bit is in the keys."""
    return {
        (axis, s.algorithm, s.workload, s.bound, s.verdict, s.hits, s.pairs, s.speedup is None): s.speedup
        for axis, score in {b.race.score.axis: b.race.score, **b.also}.items()
        for s in (*score.cells, *score.overall)
    }


def main(arguments: list[str] | None = None) -> int:
    """Do it; 2 for a mistake, told in one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.board", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--rules", choices=list(RULES), default="self")
    sub = parser.add_subparsers(required=True)
    racing = sub.add_parser("run", parents=[both], help="race the algorithms of the board")
    racing.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    racing.add_argument("--on", nargs="+", default=["laptop"], help="suites and workloads")
    racing.add_argument("--seeds", type=int, default=3)
    racing.add_argument("--trials", type=int, default=5, help="per seed, with --rules external")
    racing.add_argument("--workers", type=int, default=0, help="processes; as many as cores by default")
    racing.add_argument("--out", type=Path, default=Path("board-runs"), help="folder of the run records")
    racing.add_argument("--dry", action="store_true", help="only say how long it takes")
    racing.set_defaults(do=run)
    packing = sub.add_parser("pack", parents=[both], help="make one small file of finished runs")
    packing.add_argument("runs", nargs="+", type=Path, help="folders of run records")
    packing.add_argument("--out", type=Path, default=SHIPPED, help="folder of the boards")
    packing.set_defaults(do=keep)
    o = parser.parse_args(arguments)
    try:
        return int(o.do(o))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

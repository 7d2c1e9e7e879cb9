"""What scoring costs and how often it is wrong (`python -m benchmarks.score`, about 2 minutes; bars: 3 s, 5 %, 90 %).

Speed: 5,000 run folders (25 algorithms, 8 workloads, 25 seeds, 51 evaluations each) scored at three targets with all 300 comparisons, CPU seconds by
part. The first reading verifies and parses every row; later ones take the curves that were kept. Errors: races on the laptop suite with the seeds'
measured spreads (`Workload.spread`; 5 % where none is given), a pair's log ratio having sqrt(2) of it as if pairing gained nothing. One round is one
pair on every workload; `racing.decision` is asked after each from the third to the thirtieth, on the means over workloads.
"""

import json
import os
import sys
import tempfile
import time
from math import log
from pathlib import Path

import numpy as np

from velodrome.bench.catalog import workload
from velodrome.bench.racing import decision
from velodrome.bench.score import Trial, speedups
from velodrome.bench.suite import suite
from velodrome.records.encoding import seal
from velodrome.records.read import scan
from velodrome.reports import collect
from velodrome.reports.measured import measured

FIRST, LAST, REPETITIONS, PLANTED = 3, 30, 400, 1.05


def fill(root: Path, algorithms: int, workloads: int, seeds: int) -> None:
    """Run folders as a race leaves them."""
    rng = np.random.default_rng(0)
    for a in ["adamw", *(f"a{i}" for i in range(1, algorithms))]:
        for w in range(workloads):
            for s in range(seeds):
                folder = root / f"w{w}-{a}-s{s}"
                folder.mkdir(parents=True)
                same = {"workload": f"w{w}", "algorithm": a, "seed": s, "settings": {}, "targets": [0.3, 0.2, 0.1], "steps": 300}
                told = {"batch_size": 64, "evaluations": 50, "metric": "validation loss", "data": "d", "device": "cpu", "threads": 1}
                (folder / "recipe.json").write_text(json.dumps(same | told, indent=1))
                rate = float(np.exp(0.05 * rng.standard_normal())) * 0.01
                rows = []
                for i in range(51):
                    t, loss = 6 * i, float(np.exp(-rate * 6 * i))
                    parts = {"data_seconds": 0.001 * t, "gradient_seconds": 0.008 * t, "optimizer_seconds": 0.002 * t}
                    counters = {"seq": i, "t": t, "examples": 64 * t, "tokens": None, "flops": 10**9 * t, "seconds": 0.0123 * t}
                    rows.append(seal(counters | parts | {"loss": loss, "valid": loss}))
                (folder / "rows.jsonl").write_bytes(b"".join(rows))
                (folder / "result.json").write_bytes(seal({"result": {"state": "finished"}, "rows": 51, "parquet": None}))


def timed(root: Path) -> dict[str, float]:
    """CPU seconds of each part of `velodrome score ROOT`."""
    spent, tick = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal tick
        spent[name], tick = time.process_time() - tick, time.process_time()

    records = scan(root)
    lap("recipes and results")
    found, _ = measured(root, records)
    lap("curves and versions")
    standing = collect.place([m.watched() for m in found], "adamw", "steps")
    lap("hits, intervals, all pairs")
    assert len(standing.duels) == 300
    assert len(found) == 5000
    return spent


def rounds(rng: np.random.Generator, spreads: np.ndarray, effect: float) -> tuple[str | None, int]:
    """(decision, rounds raced): None after the last."""
    means = rng.normal(effect, 2**0.5 * spreads, (LAST, len(spreads))).mean(1)
    for n in range(FIRST, LAST + 1):
        found = decision(means[:n].tolist())
        if found is not None:
            return found, n
    return None, LAST


def fixed(rng: np.random.Generator, spreads: np.ndarray, effect: float, seeds: int = 3) -> str:
    """The verdict of an ordinary race of `seeds` seeds."""
    costs = np.exp(5 + rng.normal(0, spreads, (seeds, 2, len(spreads))))
    trials = [
        Trial(f"w{w}", name, s, True, {"flops": float(costs[s, i, w] * np.exp(-effect * i))})
        for s in range(seeds)
        for i, name in enumerate(("adamw", "mine"))
        for w in range(len(spreads))
    ]
    return speedups(trials, "adamw", "flops", resamples=4000, each=False).overall[0].verdict


def errors() -> list[tuple[str, float, float, float]]:
    """(what, percent, mean rounds, bar) of A/A and of the planted speed-up."""
    told = [workload(name).spread for name in suite("laptop").workloads]
    spreads = np.array([0.05 if s is None else s for s in told])
    print(f"spreads of log steps: {', '.join(f'{s:.1%}' for s in spreads)} ({sum(s is not None for s in told)} of {len(told)} measured)")
    rng = np.random.default_rng(1)
    found: list[tuple[str, float, float, float]] = []
    for what, effect, wrong in (("A/A: a difference is reported", 0.0, True), ("5 % is found", log(PLANTED), False)):
        for name, own in (("laptop", spreads), ("one workload", spreads[:1])):
            ended = [rounds(rng, own, effect) for _ in range(REPETITIONS)]
            hits = [d in ("faster", "slower") if wrong else d == "faster" for d, _ in ended]
            found.append((f"{what}, {name}, racing", 100 * float(np.mean(hits)), float(np.mean([n for _, n in ended])), 5 if wrong else 90))
        verdicts = [fixed(rng, spreads, effect) for _ in range(REPETITIONS)]
        share = np.mean([v in ("faster", "slower") if wrong else v == "faster" for v in verdicts])
        found.append((f"{what}, laptop, 3 seeds", 100 * float(share), 3.0, 5 if wrong else 90))
    return found


def main() -> int:
    """Print both tables; 1 if scoring takes longer than its bar, or the racing rule on the suite misses one."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        root = Path(scratch) / "runs"
        fill(root, 25, 8, 25)
        first, *later = (timed(root) for _ in range(4))
    print(f"{'5,000 runs, CPU seconds':34}{'first':>9}{'later':>9}")
    quick = min(later, key=lambda s: sum(s.values()))
    for name in first:
        print(f"{name:34}{first[name]:9.2f}{quick[name]:9.2f}")
    print(f"{'together':34}{sum(first.values()):9.2f}{sum(quick.values()):9.2f}   bar 3")
    found = errors()
    print(f"\n{'percent of 400 races':44}{'':>4}{'rounds':>8}")
    for what, percent, used, bar in found:
        print(f"{what:44}{percent:6.1f}{used:8.1f}   bar {bar}")
    racing = [(p, b) for what, p, _, b in found if "laptop, racing" in what]
    return int(sum(quick.values()) > 3 or racing[0][0] > racing[0][1] or racing[1][0] < racing[1][1])


if __name__ == "__main__":
    sys.exit(main())

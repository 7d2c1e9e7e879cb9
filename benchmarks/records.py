"""What records cost: `python -m benchmarks.records` prints medians with their spread (fastest and slowest of the repeats) and the bars.

A row is timed over 2,000 rows of ten values each; a checkpoint holds 10 MB; 2,000 run folders of 60 rows each are listed and aggregated by
plain reading and by DuckDB. Writes go to a temporary folder of the default file system; use TMPDIR to measure another one.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from velodrome.records.checkpoint import latest, save
from velodrome.records.encoding import seal
from velodrome.records.query import query
from velodrome.records.read import scan
from velodrome.records.run import Run


@dataclass(frozen=True)
class Step:
    """A step as `train` yields it."""

    t: int
    examples: int
    tokens: int | None
    flops: int
    seconds: float
    data_seconds: float
    gradient_seconds: float
    optimizer_seconds: float


def timed(work: Callable[[], object], repeats: int, per: float) -> list[float]:
    """Wall seconds of each repeat, times `per`; one repeat before them is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * per)
    return taken


def rows(folder: Path) -> list[float]:
    steps = [Step(t, 64 * t, 8192 * t, 10**12 * t, t / 7, t / 70, t / 10, t / 80) for t in range(2000)]
    with Run.open(folder, {"seed": 0}) as run:

        def write() -> None:
            for step in steps:
                run.row(step, loss=step.seconds / 3, valid=step.seconds / 2)

        return timed(write, 9, 1e6 / len(steps))


def checkpoints(folder: Path) -> tuple[list[float], list[float]]:
    tree = {"model": {f"layer{i}": torch.randn(250_000) for i in range(10)}, "t": 1}
    counter = iter(range(10**6))
    saving = timed(lambda: save(folder, next(counter), tree), 7, 1e3)
    return saving, timed(lambda: latest(folder), 7, 1e3)


def fill(root: Path, runs: int, length: int) -> None:
    """Run folders as `Run` writes them, without its fsyncs."""
    for k in range(runs):
        folder = root / f"digits-adamw-s{k}"
        folder.mkdir(parents=True)
        folder.joinpath("recipe.json").write_text(
            f'{{"workload": "digits", "algorithm": "{"abc"[k % 3]}", "seed": {k}, "options": {{"lr": 0.001}}}}'
        )
        lines = [
            seal({"seq": i, **vars(Step(i, i, None, i, i / 7, 0.1, 0.2, 0.3)), "loss": 1 / (i + k + 1), "valid": 0.5})
            for i in range(length)
        ]
        folder.joinpath("rows.jsonl").write_bytes(b"".join(lines))
        folder.joinpath("result.json").write_bytes(seal({"result": {"best": 1 / (k + 1), "target": None}, "rows": length, "parquet": None}))


def plain(root: Path, deep: bool) -> dict[str, float]:
    """Per algorithm the mean of the best results, or of the lowest loss over all rows."""
    groups: dict[str, list[float]] = {}
    for record in scan(root):
        value = min(row["loss"] for row in record.rows) if deep else (record.result or {})["best"]
        groups.setdefault(record.recipe["algorithm"], []).append(value)
    return {name: statistics.fmean(values) for name, values in groups.items()}


def main() -> int:
    """Print the table; exit 1 if the fastest repeat misses its bar (slower ones measure the machine's other work too)."""
    torch.set_num_threads(1)
    shallow = "SELECT algorithm, avg(best) FROM runs GROUP BY 1 ORDER BY 1"
    deep = "SELECT algorithm, avg(low) FROM runs JOIN (SELECT folder, min(loss) AS low FROM rows GROUP BY 1) USING (folder) GROUP BY 1 ORDER BY 1"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        fill(root / "runs", 2000, 60)
        saving, loading = checkpoints(root / "checkpoints")
        table: list[tuple[str, list[float], str, float | None]] = [
            ("one row of 10 values", rows(root / "rows"), "us", 50),
            ("save 10 MB, durable", saving, "ms", None),
            ("load 10 MB, verified", loading, "ms", None),
            ("2,000 runs, results, plain", timed(lambda: plain(root / "runs", False), 5, 1), "s", 2),
            ("2,000 runs, results, DuckDB", timed(lambda: query(root / "runs", shallow), 5, 1), "s", 2),
            ("2,000 runs, 120,000 rows, plain", timed(lambda: plain(root / "runs", True), 3, 1), "s", 2),
            ("2,000 runs, 120,000 rows, DuckDB", timed(lambda: query(root / "runs", deep), 3, 1), "s", 2),
        ]
        for sql, rows_too in ((shallow, False), (deep, True)):
            truth = plain(root / "runs", rows_too)
            assert all(abs(value - truth[name]) < 1e-12 for name, value in query(root / "runs", sql)[1])
    print(f"{'':34}{'median':>9}{'fastest':>9}{'slowest':>9}      bar")
    for name, taken, unit, bar in table:
        figures = "".join(f"{value:9.3g}" for value in (statistics.median(taken), min(taken), max(taken)))
        print(f"{name:34}{figures} {unit:4}{'' if bar is None else f'<= {bar:g}'}")
    return int(any(bar is not None and min(taken) > bar for _, taken, _, bar in table))


if __name__ == "__main__":
    sys.exit(main())

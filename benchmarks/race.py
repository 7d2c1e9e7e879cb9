"""What a race adds to the training it runs (`python -m benchmarks.race`, about 2 minutes on 2 idle cores). Bar: 5 %.

Races 3 algorithms on 2 workloads over 3 seeds from the shell, as `make race` does, and adds up CPU time: what the training clocks counted, what the
evaluations took, and the rest, which is what the race adds: start-up of Python and torch, loading the data, records, checkpoints, the guard,
progress, statistics and the HTML file.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from velodrome.records.read import scan


def main() -> None:
    """Run the race in a temporary folder and print where the time went."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "velodrome", "race", "adamw", "muon", "nadamw", "--on", "digits", "stdlib-gpt", "--seeds", "3"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        results = [r.result for r in scan(Path(folder) / "runs") if r.result]
        assert len(results) == 18, f"{len(results)} of 18 runs finished"
        page = (Path(folder) / "race.html").stat().st_size
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    training = sum(r["seconds"] for r in results)
    evaluation = sum(r["evaluation_seconds"] for r in results)
    rest = cpu - training - evaluation
    table = Table(title=f"3 algorithms × 2 workloads × 3 seeds on {os.cpu_count()} cores: {wall:.0f} s, HTML {page / 1e6:.1f} MB")
    for column in ("part", "seconds", "of the training"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, value in (("training (the clocks)", training), ("evaluation, 51 a run", evaluation), ("added by the race (bar 5 %)", rest)):
        table.add_row(part, f"{value:.1f}", f"{value / training:.1%}")
    Console().print(table)
    print(
        "The clocks count wall time: on a machine that does other work they count its pauses too, and the last line is too small, even negative."
    )


if __name__ == "__main__":
    main()

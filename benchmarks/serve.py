"""What the live page costs with thousands of runs: `python -m benchmarks.serve [RUNS]` (5,000) prints each figure beside its bar.

Runs of 61 rows lie in a temporary folder, 20 of them unfinished. Measured: the time until all are listed and read, memory, a look at the folder in
which nothing or 20 runs have changed, the answers that the page asks for; and in a real Chromium (`CHROMIUM`, or the system's) the first paint, the
table, and from a row's writing to its place on the screen.
"""

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from velodrome.records.encoding import seal
from velodrome.web import answers
from velodrome.web.folder import Folder
from velodrome.web.races import Races, key
from velodrome.web.series import encoded
from velodrome.web.server import Server

ALGORITHMS = ("adamw", "nadamw", "muon", "lion", "soap", "lamb", "adopt", "mars", "sgd", "prodigy")
WORKLOADS = tuple(f"workload-{i}" for i in range(8))
ROWS = 61
WRITING = 20


def row(seq: int, speed: float) -> bytes:
    """A row as a race writes it."""
    t = 5 * seq
    valid = 0.05 + 2.3 / (1 + speed * t / 20)
    costs = {"seq": seq, "t": t, "examples": 64 * (t + 1), "tokens": None, "flops": 8_880_128 * (t + 1), "seconds": 0.002 * (t + 1)}
    split = {"data_seconds": 0.0001 * t, "gradient_seconds": 0.001 * t, "optimizer_seconds": 0.0009 * t}
    return seal({**costs, **split, "loss": valid * 1.01, "lr": 0.01, "valid": valid, "valid_accuracy": 1 - valid / 3, "diverged": None})


def recipe(workload: str, algorithm: str, seed: int, targets: tuple[float, float] = (0.6, 0.3)) -> dict[str, Any]:
    """A recipe as a race writes it."""
    about = {"workload": workload, "algorithm": algorithm, "settings": {"lr": 0.01, "betas": [0.9, 0.99]}, "seed": seed, "source": None}
    task = {
        "workload_source": None,
        "steps": 300,
        "batch_size": 64,
        "evaluations": 60,
        "targets": list(targets),
        "metric": "validation loss",
    }
    return {
        **about,
        **task,
        "summary": "synthetic",
        "data": "0" * 64,
        "device": "cpu",
        "bf16": False,
        "compile": False,
        "threads": 1,
        "code": "1" * 64,
    }


def make(root: Path, workload: str, algorithm: str, seed: int, rows: int = ROWS, finished: bool = True) -> Path:
    """One run's folder."""
    folder = root / f"{workload}-{algorithm}-s{seed}-{seed:012x}"
    folder.mkdir(parents=True)
    speed = 1 + 0.13 * ALGORITHMS.index(algorithm) + 0.02 * ((seed * 7919) % 13 - 6)
    (folder / "recipe.json").write_text(json.dumps(recipe(workload, algorithm, seed), indent=1))
    (folder / "rows.jsonl").write_bytes(b"".join(row(i, speed) for i in range(rows)))
    if finished:
        finish(folder, rows, speed)
    return folder


def finish(folder: Path, rows: int, speed: float) -> None:
    """Its result."""
    valid = 0.05 + 2.3 / (1 + speed * 5 * (rows - 1) / 20)
    result = {"state": "finished", "diverged": None, "steps": 300, "seconds": 0.6, "valid": valid, "best": valid, "inexact": []}
    (folder / "result.json").write_bytes(seal({"result": result, "rows": rows, "parquet": None}))


def fill(root: Path, runs: int) -> list[Path]:
    """That many runs; the last of them are not finished."""
    cells = [(w, a, s) for s in range(runs) for w in WORKLOADS for a in ALGORITHMS][:runs]
    return [make(root, *cell, rows=ROWS if i < runs - WRITING else 20, finished=i < runs - WRITING) for i, cell in enumerate(cells)]


def timed(work: Callable[[], object], repeats: int = 9) -> str:
    """Median and range in milliseconds."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - began))
    return f"{statistics.median(taken):8.1f} ms [{min(taken):.1f}, {max(taken):.1f}]"


def memory() -> float:
    """Resident megabytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def read_all(folder: Folder) -> Folder:
    """The folder, looked at until nothing is behind."""
    while folder.behind:
        folder.poll()
    return folder


def server_side(root: Path, folders: list[Path]) -> None:
    """Listing, looking, answering."""
    before, began = memory(), time.perf_counter()
    folder = read_all(Folder(root))
    print(f"all {len(folder.runs):,} runs listed and read: {time.perf_counter() - began:.2f} s, {memory() - before:.0f} MB")
    print(f"a look, nothing changed        {timed(folder.poll)}   bar 100")

    def written() -> None:
        for i, place in enumerate(folders[-WRITING:]):
            with (place / "rows.jsonl").open("ab") as file:
                file.write(row(20 + sent[0], 1 + i / 20))
        sent[0] += 1

    sent, looked = [0], []
    for _ in range(9):
        written()
        began = time.perf_counter()
        change = folder.poll()
        encoded([vars(folder.runs[id_]) for id_ in change.changed])
        looked.append(1e3 * (time.perf_counter() - began))
        assert len(change.changed) == WRITING
    print(f"a look, {WRITING} runs have a new row    {statistics.median(looked):8.1f} ms [{min(looked):.1f}, {max(looked):.1f}]   bar 100")
    print(f"the table's first page         {timed(lambda: encoded(answers.table(folder, {})))}   bar 100")
    print(f"a search                       {timed(lambda: encoded(answers.table(folder, {'q': 'muon s1', 'sort': 'best'})))}   bar 100")
    races, one = Races(folder), key(WORKLOADS[0])
    print(f"a race, first time             {timed(lambda: races.race(one, 'steps', '', ''), 1)}")
    print(f"a race, nothing finished       {timed(lambda: encoded(races.race(one, 'steps', '', '')))}")
    print(f"its curves                     {timed(lambda: encoded(races.curves(one, 'steps', '')))}")
    print(f"all races, first time          {timed(lambda: races.race('all', 'steps', '', ''), 1)}")
    print(f"all races, nothing finished    {timed(lambda: encoded(races.race('all', 'steps', '', '')))}")
    print(f"memory of the process at the end {memory():.0f} MB")


def in_browser(root: Path, folders: list[Path]) -> None:
    """First paint, table, and a row's way to the screen."""
    from playwright.sync_api import sync_playwright

    server = Server(root)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("tbody tr")
        page.wait_for_selector("#status:has-text('live')", timeout=120_000)  # functions as text would need eval, which the policy forbids
        address = server.url.partition("?")[0]
        paints, tables, ways = [], [], []
        for _ in range(5):
            began = time.perf_counter()
            page.goto(address + "?state=running", wait_until="commit")
            page.wait_for_selector("tbody tr")
            tables.append(1e3 * (time.perf_counter() - began))
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN"))
        for k in range(7):
            place = folders[-1 - k]
            valid = 0.0101 + k / 1000
            began = time.perf_counter()
            with (place / "rows.jsonl").open("ab") as file:
                file.write(seal({"seq": 100 + k, "t": 295, "seconds": 1.0, "valid": valid}))
            page.wait_for_selector(f"td:text-is('{valid:.3g}')")
            ways.append(1e3 * (time.perf_counter() - began))
        for name, taken, bar in (
            ("first paint", paints, 1000),
            ("the table is there", tables, 1000),
            ("from a row to the screen", ways, 2000),
        ):
            print(f"{name:30} {statistics.median(taken):8.1f} ms [{min(taken):.1f}, {max(taken):.1f}]   bar {bar:,}")
        browser.close()
    server.stop()
    thread.join(10)


def main(runs: int) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "runs"
        folders = fill(root, runs)
        server_side(root, folders)
        in_browser(root, folders)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)

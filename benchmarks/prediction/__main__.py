"""All bars of prediction, measured on the data folder: `python -m benchmarks.prediction [FAMILY …] [--json]`.

Families are the modules beside this one (curves, sizes, intervals, batch, trials, tasks). Every figure is computed from the files found in
`VELODROME_DATA/curves`, with the splits that the module's docstring names; "today's best" was measured on the same files before Velodrome, and
is a constant here. A fit's seconds are wall time on one thread, the slowest fit of the line.
"""

import importlib
import json
import os
import sys
import time
from difflib import get_close_matches
from pathlib import Path

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before NumPy loads: more threads make small fits slower

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

from benchmarks.cells import goal, measured, verdict  # noqa: E402
from benchmarks.prediction.bar import Bar  # noqa: E402
from velodrome.data.folder import find  # noqa: E402

FAMILIES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "__main__", "bar"))


def main(arguments: list[str]) -> int:
    """0 when all figures could be measured (met or not), 2 for a mistake in the command."""
    asked = [a for a in arguments if a != "--json"]
    for a in asked:
        if a not in FAMILIES:
            near = get_close_matches(a, FAMILIES, 1, 0.5)
            print(
                f"unknown family {a!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FAMILIES)}."), file=sys.stderr
            )
            return 2
    try:
        data = find("curves")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found: list[tuple[str, Bar]] = []
    for family in asked or FAMILIES:
        began = time.perf_counter()
        found += [(family, bar) for bar in importlib.import_module(f"benchmarks.prediction.{family}").rows(data)]
        print(f"{family}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps([{"family": family, **vars(bar), "met": bar.met} for family, bar in found], default=float))
    else:
        show(found)
    return 0


def show(found: list[tuple[str, Bar]]) -> None:
    """The table: bars first as the goals name them, met or missed beside."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, justify in (
        ("task", "left"),
        ("measured", "right"),
        ("must", "right"),
        ("", "left"),
        ("best before", "left"),
        ("fit", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for _, bar in found:
        table.add_row(
            bar.task,
            measured(bar.value, bar.unit),
            goal(bar.must, bar.better),
            verdict(bar.met),
            bar.published,
            clock(bar.seconds),
            Text(bar.note, style="dim"),
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    judged = [bar.met for _, bar in found if bar.met is not None]
    print(f"{sum(judged)} of {len(judged)} bars met")


def clock(x: float | None) -> str:
    """Seconds of a fit."""
    return "" if x is None else f"{x:.2g} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""All bars of the probes: `python -m benchmarks.probes [FAMILY …] [--quick] [--json]`.

Families are the modules beside this one that have `rows`. Times are CPU time of one thread as ratios to one gradient of the same model and batch,
methods in turns (`timing.py`), on the networks of `models.py`. The peers are optional, a line says which are missing; install them without their
dependencies, which would bring another torch:

    pip install --no-deps pyhessian==0.1 curvlinops-for-pytorch==3.0.1 linear_operator jaxtyping wadler_lindig einops einconv unfoldNd \\
        hessian-eigenthings==1.0.0a5 backpack-for-pytorch==1.7.1 opacus==1.6.0

PyHessian 0.1 is the newest of the index; its `density` calls a function that torch has removed, so densities have no row of it.
"""

import importlib
import json
import sys
import time
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.cells import goal, measured, verdict
from benchmarks.probes.bar import Bar
from benchmarks.probes.timing import restart, settled

FAMILIES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef rows(" in p.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """0 when all figures could be measured (met or not), 2 for a mistake in the command."""
    asked = [a for a in arguments if not a.startswith("--")]
    for a in arguments:
        if a.startswith("--") and a not in ("--json", "--quick"):
            print(f"unknown option {a!r}: there are --json and --quick.", file=sys.stderr)
            return 2
    for a in asked:
        if a not in FAMILIES:
            near = get_close_matches(a, FAMILIES, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FAMILIES)}."
            print(f"unknown family {a!r}: {hint}", file=sys.stderr)
            return 2
    if not settled():
        return restart("benchmarks.probes")
    found: list[Bar] = []
    for family in asked or FAMILIES:
        began = time.perf_counter()
        found += importlib.import_module(f"benchmarks.probes.{family}").rows("--quick" in arguments)
        print(f"{family}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps([{**vars(bar), "met": bar.met} for bar in found], default=float))
    else:
        show(found)
    return 0


def show(found: list[Bar]) -> None:
    """The table: as many tables as families, one under the other."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, right in (("family", 0), ("task", 0), ("measured", 1), ("must", 1), ("", 0), ("best today", 0), ("", 0)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for bar in found:
        table.add_row(
            bar.family,
            bar.task,
            measured(bar.value, bar.unit),
            goal(bar.bar, bar.better),
            verdict(bar.met),
            bar.best_today,
            Text(bar.note, style="dim"),
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    judged = [bar.met for bar in found if bar.met is not None]
    print(f"{sum(judged)} of {len(judged)} bars met")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

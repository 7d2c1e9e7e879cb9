"""Sharpness over widths, in the standard parametrisation and in muP: `python -m experiments.sharpness_width_mup`; see README.md."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from velodrome.bench.catalog import workload
from velodrome.bench.sharpening import Sharp, sharpening
from velodrome.models.mlp import Mlp

WIDTHS, SEEDS, STEPS, POINTS, RATE = (32, 64, 128, 256), (4, 5, 6, 7), 100, 5, 0.1
FLAT = 0.25  # octaves of sharpness a doubling of the width: below it, in the whole interval, counts as independent


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds (Student's t)."""
    x = np.asarray(values)
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half


def slopes(rows: Sequence[Sharp], step: int) -> list[float]:
    """For each seed, octaves of sharpness for each doubling of the width at a step (least squares)."""
    found = []
    for seed in SEEDS:
        at = {r.width: r.sharpness for r in rows if r.seed == seed and r.step == step}
        found.append(float(np.polyfit(np.log2(WIDTHS), [np.log2(at[w]) for w in WIDTHS], 1)[0]))
    return found


def main() -> int:
    """The table and the verdict; 1 if the claim fails."""
    torch.set_num_threads(1)
    began = time.process_time()
    task = replace(workload("digits"), at_width=lambda width: Mlp(64, width, 2, 10))
    rows = {name: list(sharpening(task, WIDTHS, name, RATE, STEPS, POINTS, SEEDS)) for name in ("standard", "mup")}
    steps = sorted({r.step for r in rows["mup"]})
    print(f"| parametrisation, step | {' | '.join(f'width {w}' for w in WIDTHS)} | octaves a doubling |")
    print("|---" * (len(WIDTHS) + 2) + "|")
    for name, mine in rows.items():
        for step in steps:
            means = [float(np.mean([r.sharpness for r in mine if r.width == w and r.step == step])) for w in WIDTHS]
            told = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval(slopes(mine, step)))
            print(f"| {name}, {step} | {' | '.join(f'{m:.2f}' for m in means)} | {told} |", flush=True)
    course = {name: list(np.mean([slopes(mine, step) for step in steps], axis=0)) for name, mine in rows.items()}
    for name, values in course.items():
        print("{}, mean over the marks: {:+.2f} [{:+.2f}, {:+.2f}] octaves a doubling".format(name, *interval(values)))
    _, low, high = interval(course["mup"])
    middle, more, most = interval([a - b for a, b in zip(course["standard"], course["mup"], strict=True)])
    print(f"standard grows by {middle:+.2f} [{more:+.2f}, {most:+.2f}] octaves a doubling more than muP")
    good = low > -FLAT and high < FLAT and more > 0
    print(f"\n{'confirmed' if good else 'refuted'}; {time.process_time() - began:.0f} s of processor time")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())

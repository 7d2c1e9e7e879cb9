"""Sharpness settles at the optimizer's own threshold, where its rate is large enough: `python -m experiments.edge_of_stability`; see README.md."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from velodrome.losses.squared_error import squared_error
from velodrome.probes.edge.gauge import Edge, edge
from velodrome.probes.objective import Objective

SEEDS, EVERY, LAST = (0, 1, 2), 25, 40  # readings every 25 steps; the median is over the last 40, a thousand steps


@dataclass(frozen=True)
class Setting:
    """An optimizer, for how long, and within what of its threshold its sharpness must settle; None where it must stay below the edge."""

    name: str
    make: Callable[[nn.Module], torch.optim.Optimizer]
    steps: int
    within: float | None


SETTINGS = (
    Setting("gradient descent, rate 0.5", lambda m: torch.optim.SGD(m.parameters(), 0.5), 4000, 0.02),
    Setting("Adam, beta1 0.9, rate 5e-3", lambda m: torch.optim.Adam(m.parameters(), 5e-3, (0.9, 0.999)), 3000, 0.03),
    Setting("Adam, beta1 0.5, rate 1e-3", lambda m: torch.optim.Adam(m.parameters(), 1e-3, (0.5, 0.999)), 4000, 0.03),
    Setting("gradient descent, rate 0.05", lambda m: torch.optim.SGD(m.parameters(), 0.05), 3000, None),
    Setting("Adam, beta1 0.9, rate 1e-4", lambda m: torch.optim.Adam(m.parameters(), 1e-4, (0.9, 0.999)), 3000, None),
)


def network(seed: int) -> nn.Module:
    """A tanh perceptron 64-48-48-10 in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10)).double()


def digits() -> tuple[Tensor, Tensor]:
    """1,000 images with their labels as unit vectors."""
    data = load_digits()
    x, y = torch.tensor(data.data[:1000] / 16), torch.tensor(data.target[:1000])
    return x, nn.functional.one_hot(y, 10).double()


def readings(setting: Setting, seed: int) -> list[Edge]:
    """Train on all examples at once and read the gauge between backward and step, warm-started and converged to 1e-3."""
    model, (x, y) = network(seed), digits()
    optimizer, objective = setting.make(model), Objective(model, squared_error, (x, y))
    found: list[Edge] = []
    for t in range(setting.steps):
        optimizer.zero_grad()
        squared_error(model(x), y).mean().backward()
        if t % EVERY == 0:
            found.append(edge(objective, optimizer, last=found[-1] if found else None, tol=1e-3, products=40, before_step=True))
        optimizer.step()
    return found


def main() -> int:
    """The table and the verdict; 1 if the claim fails."""
    torch.set_num_threads(1)
    began, failed = time.process_time(), False
    print("| optimizer | threshold | settles at, over the threshold | by seed | first at the edge, step | last verdicts |")
    print("|---|---|---|---|---|---|")
    for setting in SETTINGS:
        runs = [readings(setting, seed) for seed in SEEDS]
        ends = [float(np.median([r.ratio.value for r in run[-LAST:]])) for run in runs]
        mean = float(np.mean(ends))
        half = float(stats.t.ppf(0.975, len(ends) - 1) * np.std(ends, ddof=1) / len(ends) ** 0.5)
        first = [next((str(i * EVERY) for i, r in enumerate(run) if r.verdict == "at the edge"), "never") for run in runs]
        verdicts = sorted({r.verdict for run in runs for r in run[-LAST:]})
        if setting.within is None:
            good = all(r.verdict == "below the edge" for run in runs for r in run)
        else:
            good = abs(mean - 1) <= setting.within
        failed |= not good
        threshold = runs[0][-1].thresholds[0].value
        print(
            f"| {setting.name} | {threshold:.6g} | {mean:.4f} [{mean - half:.4f}, {mean + half:.4f}] | {', '.join(f'{e:.4f}' for e in ends)} | "
            f"{', '.join(first)} | {', '.join(verdicts)} {'' if good else '**fails**'} |",
            flush=True,
        )
    print(f"\n{'refuted' if failed else 'confirmed'}; {time.process_time() - began:.0f} s of processor time")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

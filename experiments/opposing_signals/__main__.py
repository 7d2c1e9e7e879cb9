"""Are the opposing groups of a planted large feature found, and does their removal raise the stable rate? `python -m experiments.opposing_signals`."""

import sys

import numpy as np
import torch
from torch import Tensor, nn

from experiments.trials import claim, difference, table
from velodrome.data import digits
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.estimate import Estimate
from velodrome.probes.objective import Objective
from velodrome.probes.sharpness import sharpness
from velodrome.probes.statistics.opposing import OpposingSignals, Opposition, half_squared_error, opposing_groups, opposition

CLASSES, PLANTED, SIZE, WIDTH, SEEDS, STEPS = (3, 8), 40, 20.0, 64, range(10, 14), 100
RATES = tuple(0.08 * 2 ** (k / 2) for k in range(10))
TOY_RATES = (0.90, 0.96, 1.04, 1.10)  # of the analytic bound 2/curvature


def planted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Digits (inputs with one more column, targets, numbers of the planted): 40 images of each of two classes have 20 there, all others 0."""
    data = digits.load("train")
    g = torch.Generator().manual_seed(seed)
    x = torch.cat((data.inputs.flatten(1), torch.zeros(len(data.inputs), 1)), 1)
    of = [(data.targets == c).nonzero().flatten() for c in CLASSES]
    chosen = torch.cat([mine[torch.randperm(len(mine), generator=g)[:PLANTED]] for mine in of])
    x[chosen, -1] = SIZE
    return x, data.targets, chosen


def net(inputs: int, seed: int) -> nn.Sequential:
    """Two layers of tanh."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))


def descend(model: nn.Module, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """Losses (steps, examples) of full-batch gradient descent."""
    rows = []
    for _ in range(STEPS):
        losses = cross_entropy(model(x), y)
        rows.append(losses.detach())
        grads = torch.autograd.grad(losses.mean(), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(rate * g)
    return torch.stack(rows)


def stable(x: Tensor, y: Tensor, seed: int) -> float:
    """The largest of the rates at which no step of the last two thirds raises the mean loss by more than a hundredth of the start's."""
    best = 0.0
    for rate in RATES:
        mean = descend(net(x.shape[1], seed), x, y, rate).mean(1)
        if bool(mean.isfinite().all()) and float(mean[STEPS // 3 :].diff().max()) < 0.01 * float(mean[0]):
            best = rate
        elif best:
            break
    return best


def look(seed: int) -> tuple[float, Estimate, Opposition, float, float, float, float]:
    """At the first rate above the stable one: share found, anti-phase, what they share; stable rates and final sharpness with and without the groups."""
    x, y, chosen = planted(seed)
    edge = stable(x, y, seed)
    model = net(x.shape[1], seed)
    losses = descend(model, x, y, RATES[RATES.index(edge) + 1])
    groups = opposing_groups(losses[STEPS // 3 :], PLANTED)
    found = torch.cat((groups.rising, groups.falling))
    share = float(torch.isin(found, chosen).float().mean())
    together = opposition(Objective(model, cross_entropy, (x, y)), groups)
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[found] = False
    without = stable(x[keep], y[keep], seed)
    curved = []
    for inputs, targets in ((x, y), (x[keep], y[keep])):
        other = net(x.shape[1], seed)
        descend(other, inputs, targets, RATES[0])
        curved.append(sharpness(lambda m=other, i=inputs, t=targets: cross_entropy(m(i), t).mean(), list(other.parameters())).value)
    return share, groups.correlation, together, edge, without, curved[0], curved[1]


def toy() -> list[tuple[float, float, float, float]]:
    """(rate / bound, largest rise of the loss, anti-phase, share of the outliers found) of the solvable case."""
    case = OpposingSignals(offset=0.3)
    x, y, plus, minus = case.data()
    rows = []
    for part in TOY_RATES:
        model, table_ = case.model(), []
        for _ in range(600):
            losses = half_squared_error(model(x), y)
            table_.append(losses.detach())
            grads = torch.autograd.grad(losses.mean(), list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p.sub_(part * 2 / case.curvature * g)
        rest = torch.stack(table_)[20:]
        groups = opposing_groups(rest, len(plus))
        hit = torch.isin(torch.cat((groups.rising, groups.falling)), torch.cat((plus, minus))).double().mean()
        rows.append((part, float(rest.mean(1).diff().max()), groups.correlation.value, float(hit)))
    return rows


if __name__ == "__main__":
    with claim("opposing_signals"):
        solvable = toy()
        table(["rate / (2/curvature)", "largest rise of the loss after step 20", "anti-phase", "outliers found"], solvable)
        rows = [look(seed) for seed in SEEDS]
        print()
        table(
            [
                "seed",
                "found",
                "anti-phase",
                "cosine of gradients",
                "planted column in feature",
                "stable rate",
                "without",
                "sharpness",
                "without",
            ],
            [[s, a, c.value, o.cosine.value, abs(float(o.feature[-1])), *rest] for s, (a, c, o, *rest) in zip(SEEDS, rows, strict=True)],
        )
        share = float(np.mean([r[0] for r in rows]))
        gain = difference(np.log([r[4] / r[3] for r in rows]))
        low, high = np.exp([gain.low, gain.high])
        print(f"\nfound {share:.1%} of the planted; stable rate without them / with them {np.exp(gain.mean):.2f} [{low:.2f}, {high:.2f}]")
        below, above = solvable[:2], solvable[2:]
        right = all(r[1] < 1e-6 for r in below) and all(r[1] > 1e-6 for r in above) and all(r[3] == 1 for r in above)
        held = right and share > 0.9 and low > 1 and all(r[1].high < 0 for r in rows)
    sys.exit(0 if held else 1)

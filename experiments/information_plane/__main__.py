"""Does a layer's information about the input fall late in training, and whose doing is it? `python -m experiments.information_plane`."""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from experiments.trials import claim, table
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.estimate import sampled
from velodrome.probes.functions.information import information_plane
from velodrome.probes.functions.phases import gradient_phases
from velodrome.probes.objective import Objective

WIDTHS, SEEDS, EPOCHS, BATCH, RATE, SHARE = (10, 7, 5, 4, 3), range(5), 1500, 512, 2e-3, 0.8
SOME = 1024  # inputs for the bounds with noise, whose cost is quadratic
TIMES = sorted({0, *np.geomspace(1, EPOCHS, 18).round().astype(int).tolist()})
LAYERS = [str(2 * i + 1) for i in range(len(WIDTHS))]


def task() -> tuple[Tensor, Tensor]:
    """All 4,096 inputs of 12 signs; the label is the sign of a fixed random form of second and first order, balanced by its median."""
    draw = torch.Generator().manual_seed(0)
    x = torch.tensor(list(product((-1.0, 1.0), repeat=12)))
    form, line = torch.randn(12, 12, generator=draw), torch.randn(12, generator=draw)
    value = ((x @ form) * x).sum(1) / 4 + x @ line
    return x, (value > value.median()).long()


def network(activation: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """12-10-7-5-4-3-2."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((12, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 2))


def run(activation: Callable[[], nn.Module], seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """Of each estimator I(X;T) (times, layers); the epoch at which the first layer's gradients are found in diffusion; accuracy on held-out inputs."""
    x, y = task()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    inside, outside = order[: int(SHARE * len(x))], order[int(SHARE * len(x)) :]
    model = network(activation, seed)
    low, high = (-1.0, 1.0) if activation is nn.Tanh else (None, None)
    everything, some = Objective(model, cross_entropy, (x, y)), Objective(model, cross_entropy, (x[order[:SOME]], y[order[:SOME]]))
    epoch = Objective(model, cross_entropy, [(x[p], y[p]) for p in inside.split(BATCH)])
    optimizer, draw = torch.optim.Adam(model.parameters(), lr=RATE), torch.Generator().manual_seed(seed + 1000)
    planes: dict[str, list[list[float]]] = {"30 bins": [], "noise 0.1": []}
    turned = float("nan")
    for t in range(EPOCHS + 1):
        if t in TIMES:
            plane = information_plane(everything, LAYERS, low=low, high=high)
            planes["30 bins"].append([plane[name].input.value for name in LAYERS])
            noisy = information_plane(some, LAYERS, estimator="noise", noise=0.1)
            planes["noise 0.1"].append([noisy[name].input.value for name in LAYERS])
            if np.isnan(turned) and t and gradient_phases(epoch)["0.weight"].phase == "diffusion":
                turned = float(t)
        for part in inside[torch.randperm(len(inside), generator=draw)].split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[part]), y[part]).mean().backward()
            optimizer.step()
    right = float((model(x[outside]).argmax(1) == y[outside]).float().mean())
    return {name: np.array(v) for name, v in planes.items()}, turned, right


def interval(values: np.ndarray) -> str:
    """Mean over seeds with its 95 % interval."""
    e = sampled(float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5, "bit", len(values))
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"


with claim("information_plane"):
    fallen: dict[tuple[str, str], np.ndarray] = {}
    rows, phases = [], []
    for name, activation in (("tanh", nn.Tanh), ("ReLU", nn.ReLU)):
        runs = [run(activation, seed) for seed in SEEDS]
        for estimator in ("30 bins", "noise 0.1"):
            planes = np.stack([planes[estimator] for planes, *_ in runs])  # (seeds, times, layers)
            fall, rise = planes.max(1) - planes[:, -1], planes.max(1) - planes[:, 0]
            fallen[name, estimator] = fall.mean(1)
            for i, layer in enumerate(WIDTHS):
                ends = (interval(planes[:, k, i]) for k in (0, -1))
                rows.append([name, estimator, f"{i + 1} ({layer} units)", *ends, interval(rise[:, i]), interval(fall[:, i])])
        turns = np.array([turned for _, turned, _ in runs])
        seen = turns[~np.isnan(turns)]
        phases.append(
            [
                name,
                f"{np.mean([right for *_, right in runs]):.3f}",
                f"{len(seen)} of {len(turns)}",
                f"{np.median(seen) if len(seen) else np.nan:g}",
            ]
        )
    table(
        ["activation", "estimator", "layer", "I(X;T) at the start, bits", "at the end", "rose to its largest by", "fell from it by"], rows
    )
    print()
    table(["activation", "held-out accuracy", "runs in diffusion by the end", "median epoch"], phases)
    print()
    gaps = {estimator: fallen["tanh", estimator] - fallen["ReLU", estimator] for estimator in ("30 bins", "noise 0.1")}
    table(
        ["estimator", "fall with tanh, mean of layers", "with ReLU", "difference"],
        [[e, interval(fallen["tanh", e]), interval(fallen["ReLU", e]), interval(g)] for e, g in gaps.items()],
    )
    g = gaps["30 bins"]
    more = sampled(float(g.mean()), float(g.std(ddof=1)) / len(g) ** 0.5, "bit", len(g)).low > 0
    print(f"\nunder binning tanh compresses more than ReLU: {more}")
    raise SystemExit(not more)

"""Does the tangent kernel move less the wider the network, and then foretell training? `python -m experiments.lazy_and_rich`."""

import numpy as np
import torch
from torch import Tensor, nn

from experiments.trials import claim, table
from velodrome.data import digits
from velodrome.losses.squared_error import squared_error
from velodrome.models.mlp import Mlp
from velodrome.probes.estimate import sampled
from velodrome.probes.functions.flow import forecast
from velodrome.probes.functions.lazy import drift, snapshot
from velodrome.probes.objective import Objective

WIDTHS, SEEDS, EXAMPLES, STEPS, SPEED = (64, 256, 1024, 4096), range(4), 48, 100, 0.5
SCALES, MIDDLE = (0.1, 1.0, 10.0), 256  # of the outputs, at one width: small ones are the rich regime (Chizat et al. 2019)
SLOPES, WITHIN = (-1.0, -0.5), 0.01


class Scaled(nn.Module):
    """A network's outputs times a number."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1)."""
        return self.scale * self.model(x)


def run(width: int, seed: int, scale: float = 1.0) -> list[float]:
    """Changes of the kernel (relative, and 1 - cosine) and of the weights; the forecast's largest error over the first loss and over the loss then."""
    images = digits.load()
    x = images.inputs.flatten(1)[seed * EXAMPLES : (seed + 1) * EXAMPLES]
    y = 2.0 * (images.targets[seed * EXAMPLES : (seed + 1) * EXAMPLES, None] % 2) - 1
    model = Scaled(Mlp(64, width, 2, 1, seed=seed), scale)
    objective = Objective(model, squared_error, (x, y))
    before = snapshot(objective, outputs="all")
    top = float(torch.linalg.eigvalsh(before.kernel.matrix.double())[-1])
    rate = SPEED * EXAMPLES / (2 * top)  # a step takes this share of the fastest mode away
    told = forecast(before.kernel, model(x).detach(), y, rate, range(STEPS + 1), steps="descent").loss
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=rate), []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = squared_error(model(x), y).mean()
        losses.append(float(loss.detach()))
        loss.backward()
        if len(losses) <= STEPS:
            optimizer.step()
    actual, change = torch.tensor(losses, dtype=torch.float64), drift(before, snapshot(objective, outputs="all"))
    gap = (told - actual).abs()
    return [change.kernel.value, change.distance.value, change.weights.value, float(gap.max() / actual[0]), float((gap / actual).max())]


HEAD = ["kernel's relative change", "1 - cosine", "weights' relative change", "forecast off, of the first loss", "of the loss then"]

with claim("lazy_and_rich"):
    found = {width: np.array([run(width, seed) for seed in SEEDS]) for width in WIDTHS}
    table(["width", *HEAD], [[width, *(float(v) for v in numbers.mean(0))] for width, numbers in found.items()])
    print()
    logs = np.log(WIDTHS) - np.log(WIDTHS).mean()
    slopes = np.array([logs @ np.log(np.stack([found[w][i] for w in WIDTHS])) / (logs @ logs) for i in range(len(SEEDS))])
    lines = [sampled(float(s.mean()), float(s.std(ddof=1)) / len(SEEDS) ** 0.5, "exponent", len(SEEDS)) for s in slopes.T]
    table(["exponent of width", *HEAD], [["95 %", *(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in lines)]])
    print()
    scaled = [[scale, *(float(v) for v in np.mean([run(MIDDLE, seed, scale) for seed in SEEDS], 0))] for scale in SCALES]
    table([f"outputs times, width {MIDDLE}", *HEAD], scaled)
    falls = lines[0].low <= SLOPES[1] and lines[0].high >= SLOPES[0]
    foretold = bool((found[WIDTHS[-1]][:, 3] < WITHIN).all())
    print(f"\nthe kernel's change falls as width^-1/2 to -1: {falls}; loss foretold within 1 % of its start at {WIDTHS[-1]}: {foretold}")
if not (falls and foretold):
    raise SystemExit(1)

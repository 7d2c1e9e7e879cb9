"""Does the noise scale predict the critical batch within a factor of 1.5? `python -m experiments.noise_scale_critical_batch`."""

import sys
from math import exp, inf, log

import numpy as np
import torch
from scipy.optimize import least_squares

from experiments.trials import claim, table, tuned
from velodrome.data import digits
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp
from velodrome.probes.objective import Objective
from velodrome.probes.statistics.ghost import gradient_norms
from velodrome.probes.statistics.noise_scale import GradientNoise

WIDTH, TARGET, SEEDS, DRAWS = 64, 0.3, 5, 2000
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
RATES = tuple(0.025 * 2 ** (k / 2) for k in range(15))  # plain SGD, constant, best of these at every batch
EXAMPLES, LONGEST = 100_000, 1500  # where a run is given up


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module, torch.Generator]:
    """The digits that are trained on, a network with one hidden layer, and what draws its batches (with replacement)."""
    data = digits.load("train")
    return data.inputs.flatten(1), data.targets, Mlp(64, WIDTH, 1, 10, seed=seed), torch.Generator().manual_seed(1000 + seed)


def steps(batch: int, rate: float, seed: int, look: GradientNoise | None = None) -> float:
    """Updates until the loss over all digits is below the target, between two looks by the logarithm; infinite if it is never."""
    x, y, model, g = problem(seed)
    params, limit = list(model.parameters()), min(LONGEST, EXAMPLES // batch)
    every, before = max(1, min(16, 256 // batch)), (0, inf)
    for t in range(limit + 1):
        if t % every == 0:
            with torch.no_grad():
                loss = float(cross_entropy(model(x), y).mean())
            if not loss < 10:
                return inf
            if loss < TARGET:
                return t if before[1] == inf else before[0] + every * log(before[1] / TARGET) / log(before[1] / loss)
            before = (t, loss)
            if look is not None:
                look.add(gradient_norms(Objective(model, cross_entropy, (x, y), check=False))[0])
        which = torch.randint(len(x), (batch,), generator=g)
        grads = torch.autograd.grad(cross_entropy(model(x[which]), y[which]).mean(), params)
        with torch.no_grad():
            for p, d in zip(params, grads, strict=True):
                p.sub_(rate * d)
    return inf


def sweep(batch: int) -> np.ndarray:
    """Updates (rates, seeds); from the largest rate down, until two rates in a row are worse than the best by half."""
    rows, best, worse = [], inf, 0
    for rate in RATES[::-1]:
        row = [steps(batch, rate, seed) for seed in range(SEEDS)]
        rows.append(row)
        mean = float(np.mean(row))
        worse = worse + 1 if mean > 1.5 * best else 0
        best = min(best, mean)
        if worse == 2:
            break
    return np.array(rows)


def fitted(taken: np.ndarray) -> tuple[float, float]:
    """(fewest updates, critical batch) of updates at each batch: $S(B) = S_{min}(1 + B_c/B)$, by logarithms."""
    b = np.array(BATCHES, dtype=float)
    found = least_squares(
        lambda z: z[0] + np.log1p(np.exp(z[1]) / b) - np.log(taken), [np.log(taken.min()), log(64)], loss="soft_l1", f_scale=0.1
    )
    return exp(found.x[0]), exp(found.x[1])


if __name__ == "__main__":
    with claim("noise_scale_critical_batch"):
        sweeps = [sweep(batch) for batch in BATCHES]
        taken = np.array([tuned([np.minimum(row, 10 * LONGEST) for row in rows]) for rows in sweeps])  # (batches, seeds)
        fewest, critical = fitted(np.exp(np.log(taken).mean(1)))
        rng = np.random.default_rng(0)
        draws = [fitted(np.exp(np.log(taken[:, rng.integers(SEEDS, size=SEEDS)]).mean(1)))[1] for _ in range(DRAWS)]
        low, high = np.quantile(draws, [0.025, 0.975])
        table(
            ["batch", "updates", "examples", "best rate", "S_min (1 + B_c/B)"],
            [
                [b, float(s.mean()), float(s.mean()) * b, RATES[::-1][int(rows.mean(1).argmin())], fewest * (1 + critical / b)]
                for b, s, rows in zip(BATCHES, taken, sweeps, strict=True)
            ],
        )
        # along the run at the largest batch, whose updates are nearly the fewest: S(B) = sum over them of 1 + B_noise(s)/B
        scales = []
        rate = RATES[::-1][int(sweeps[-1].mean(1).argmin())]
        for seed in range(SEEDS):
            seen = GradientNoise(window=LONGEST)
            steps(BATCHES[-1], rate, seed, seen)
            path = np.array([trace / squared for trace, squared in seen.pairs])
            scales.append((float(path.mean()), float(path[0]), float(path[-1])))
        predicted = np.array(scales)
        spread = predicted[:, 0].std(ddof=1) / SEEDS**0.5
        print(f"\ncritical batch {critical:.1f} [{low:.1f}, {high:.1f}] from the updates to a loss of {TARGET}")
        start, end = predicted[:, 1].mean(), predicted[:, 2].mean()
        print(f"noise scale {predicted[:, 0].mean():.1f} ± {spread:.1f} over the run ({start:.2f} at its start, {end:.0f} at its end)")
        ratio = predicted[:, 0].mean() / critical
        print(f"noise scale / critical batch: {ratio:.2f}; the claim is between {1 / 1.5:.2f} and 1.5")
        held = 1 / 1.5 < ratio < 1.5
    sys.exit(0 if held else 1)

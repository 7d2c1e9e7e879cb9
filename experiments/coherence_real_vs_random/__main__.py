"""Is coherence high on real labels, and does it fall to chance on random ones? `python -m experiments.coherence_real_vs_random`."""

import sys

import numpy as np
import torch

from experiments.trials import claim, difference, table
from velodrome.data import digits
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp
from velodrome.probes.objective import Objective
from velodrome.probes.statistics.coherence import coherence
from velodrome.probes.statistics.ghost import gradient_norms

WIDTH, DEPTH, BATCH, RATE, STEPS, SEEDS, SAMPLE = 128, 2, 100, 0.1, 2000, range(10, 18), 400
LOOKS = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def curve(seed: int, random_labels: bool) -> np.ndarray:
    """(looks, 3): m-coherence of a fixed sample that is trained on, its unbiased alpha, and the share of it that is right."""
    data = digits.load("train")
    g = torch.Generator().manual_seed(seed)
    x, y = data.inputs.flatten(1), data.targets
    if random_labels:
        y = y[torch.randperm(len(y), generator=g)]
    model = Mlp(x.shape[1], WIDTH, DEPTH, 10, seed=seed)
    sample = torch.randperm(len(x), generator=g)[:SAMPLE]
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    rows = []
    for t in range(STEPS + 1):
        if t in LOOKS:
            found = coherence(gradient_norms(Objective(model, cross_entropy, (x[sample], y[sample]), check=False))[0])
            right = (model(x[sample]).argmax(1) == y[sample]).float().mean()
            rows.append((found.m_coherence.value, found.unbiased.value, float(right)))
        which = torch.randint(len(x), (BATCH,), generator=g)
        optimizer.zero_grad()
        cross_entropy(model(x[which]), y[which]).mean().backward()
        optimizer.step()
    return np.array(rows)


if __name__ == "__main__":
    with claim("coherence_real_vs_random"):
        real, random = (np.array([curve(seed, chance) for seed in SEEDS]) for chance in (False, True))
        table(
            ["step", "m-coherence, real", "right", "m-coherence, random", "right", "m alpha of real / random"],
            [
                [
                    t,
                    *(float(z[:, i, k].mean()) for z in (real, random) for k in (0, 2)),
                    float(real[:, i, 0].mean() / random[:, i, 0].mean()),
                ]
                for i, t in enumerate(LOOKS)
            ],
        )
        early = [i for i, t in enumerate(LOOKS) if 5 <= t <= 20]
        ratio = difference(np.log(real[:, early, 0].mean(1)) - np.log(random[:, early, 0].mean(1)))
        low, high = np.exp([ratio.low, ratio.high])
        print(f"\nsteps 5 to 20, real / random: {np.exp(ratio.mean):.2f} [{low:.2f}, {high:.2f}]; the claim is more than 1")
        # chance: alpha of a population without coherence is 0, so that m-coherence of any sample is 1, and alpha_m is 1/m
        middle = [i for i, t in enumerate(LOOKS) if 50 <= t <= 500]
        floor = difference(random[:, middle, 0].mean(1))
        print(
            f"steps 50 to 500, random labels: m-coherence {floor.mean:.2f} [{floor.low:.2f}, {floor.high:.2f}]; the claim is below 4, alpha below 1 %"
        )
        held = low > 1 and floor.high < 4
    sys.exit(0 if held else 1)

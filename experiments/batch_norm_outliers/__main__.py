"""Does BatchNorm take the outliers out of the Hessian's spectrum, and the gradient out of their space? `python -m experiments.batch_norm_outliers`."""

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from experiments.trials import claim, difference, table
from velodrome.data import images
from velodrome.data.folder import find
from velodrome.data.streams import Shuffled
from velodrome.gradients.backward import backward
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.resnet import ResNet
from velodrome.optim.sgd import sgd
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.objective import Objective
from velodrome.probes.spectra.participation import gradient_concentration
from velodrome.probes.spectra.top import top_eigenpairs
from velodrome.train import train

SEEDS, STEPS, BATCH, RATE = (0, 1, 2), 300, 64, 0.02
TRAINED, SEEN, PRODUCTS = 4096, 128, 80  # images trained on, images of the Hessian, products at most
TOP, EDGE = 10, 15  # outliers, and the eigenvalue that stands for the bulk's edge


def network(norm: bool, seed: int) -> nn.Module:
    """ResNet-8 of width 8, 19,218 parameters; without BatchNorm the same convolutions and no scales: 18,858."""
    model = ResNet(8, 8, seed=seed)
    if not norm:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
    return model


def seen(norm: bool, seed: int, x: torch.Tensor, y: torch.Tensor) -> tuple[float, ...]:
    """(loss, lambda_1, lambda_1 / lambda_15, share of the gradient in the top 10 eigenvectors, its error bound) after training."""
    model = network(norm, seed)
    optimizer = sgd(model.parameters(), lr=RATE, momentum=0.9)
    for step in train(backward(model, cross_entropy), optimizer, Shuffled(x, y, BATCH, seed), model=model):
        if step.t > STEPS or step.diverged is not None:
            break
    at = hessian(Objective(model, cross_entropy, (x[:SEEN], y[:SEEN]), mode="train"))
    pairs = top_eigenpairs(at, EDGE, 1e-3, largest="algebraic", most=PRODUCTS, memory=PRODUCTS)
    inside = {"values": pairs.values[:TOP], "vectors": pairs.vectors[:, :TOP], "residuals": pairs.residuals[:TOP]}
    first = replace(pairs, **inside, next=float(pairs.values[TOP]))
    share = gradient_concentration(at.gradient, first)
    found = at.loss, float(pairs.values[0]), float(pairs.values[0] / pairs.values[-1]), share.value, share.error
    name = f"{'with' if norm else 'without'} BatchNorm, seed {seed}"
    print(f"{name}: {pairs.products} products, largest error of a value {float(pairs.errors.max()):.1g}", flush=True)
    return found


with claim("batch_norm_outliers"):
    data = images.load(find("cifar10"), "train")
    x = (data.inputs[:TRAINED].float() / 255 - 0.5) / 0.25
    found = {norm: np.array([seen(norm, seed, x, data.targets[:TRAINED]) for seed in SEEDS]) for norm in (False, True)}
    head = ["BatchNorm", "seed", "loss", "λ1, loss/parameter²", f"λ1/λ{EDGE}", f"gradient in the top {TOP}", "its bound"]
    table(head, [["with" if norm else "without", s, *row] for norm, rows in found.items() for s, row in zip(SEEDS, rows, strict=True)])
    print()
    outliers = difference(np.log10(found[True][:, 2]) - np.log10(found[False][:, 2]))
    share = difference(found[True][:, 3] - found[False][:, 3])
    rows = [["log10 of λ1/λ15", outliers, outliers.verdict()], ["share of the gradient", share, share.verdict()]]
    table(["with less without", "difference, 95 %", "verdict"], rows)
    held = outliers.high < 0 and share.high < 0
sys.exit(not held)

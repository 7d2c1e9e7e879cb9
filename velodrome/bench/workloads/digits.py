"""Digits: a two-layer network on scikit-learn's 8x8 digits; the smallest real task (UCI, https://doi.org/10.24432/C50P49)."""

from functools import partial

import torch.nn.functional as F

from velodrome.bench.workload import Data, Variant, Workload
from velodrome.data import digits as source
from velodrome.data.noise import noisy
from velodrome.data.streams import Shuffled, batches
from velodrome.layers.initial import scaled
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp

BATCH = 64


def load(noise: float = 0.0) -> Data:
    """1,438 images to train on, a share `noise` of their labels wrong; 359 to validate on."""
    train, valid = source.load("train"), source.load("validation")
    stream = partial(Shuffled, train.inputs, noisy(train.targets, noise, 10), BATCH, digest=f"{train.digest}{noise or ''}")
    digest = train.digest + valid.digest + (f"+{noise}" if noise else "")
    return Data(lambda seed: stream(seed=seed), batches(valid.inputs, valid.targets, 359), digest, train.version)


def digits() -> Workload:
    """A perceptron of two hidden layers on 8x8 digits, cross-entropy; validation loss."""
    return Workload(
        name="digits",
        summary="MLP 64-128-128-10 (26k parameters) on scikit-learn's digits, cross-entropy",
        load=load,
        model=partial(Mlp, 64, 128, 2, 10),
        at_width=lambda width: Mlp(64, width, 2, 10),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss",
        targets=(0.0779, 0.061, 0.0551),
        spread=0.222,
        reached=(10, 10),
        steps=300,
        batch_size=BATCH,
        cost="1 s for 300 steps on one core",
        seconds=1.0,
        evaluations=60,
        accuracies={"accuracy": accuracy},
        variants={
            "wide": Variant("of twice the width", model=partial(Mlp, 64, 256, 2, 10)),
            "tanh": Variant("with tanh", model=partial(Mlp, 64, 128, 2, 10, F.tanh)),
            "init": Variant("from weights three times too large", model=partial(scaled, partial(Mlp, 64, 128, 2, 10), 3.0)),
            "noise": Variant("with 20 % wrong labels", load=partial(load, 0.2)),
        },
    )

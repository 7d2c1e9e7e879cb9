"""MNIST with a small convolutional network (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist/)."""

from functools import partial

import torch.nn.functional as F

from velodrome.bench.workload import Data, Variant, Workload, rungs
from velodrome.bench.workloads.mnist import PIXELS
from velodrome.data import images
from velodrome.data.folder import find
from velodrome.data.noise import noisy
from velodrome.data.streams import Shuffled, batches
from velodrome.layers.initial import scaled
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.cnn import Cnn

BATCH, STEPS = 64, 400


def load(noise: float = 0.0, batch: int = BATCH) -> Data:
    """The train split, a share `noise` of its labels wrong; 500 test images to validate on. ValueError without them."""
    path = find("mnist")
    train, test = images.load(path, "train"), images.load(path, "test")
    labels = noisy(train.targets, noise, 10)
    stream = partial(Shuffled, train.inputs, labels, batch, transform=PIXELS, digest=f"{train.digest}{noise or ''}")
    valid = batches(test.inputs, test.targets, 500, limit=500, transform=PIXELS)
    return Data(lambda seed: stream(seed=seed), valid, train.digest + test.digest + (f"+{noise}" if noise else ""))


def mnist_cnn() -> Workload:
    """A small convolutional network on MNIST, cross-entropy; validation loss on 500 test images."""
    return Workload(
        name="mnist-cnn",
        summary="CNN of 8 and 16 channels (52k parameters) on MNIST, cross-entropy",
        load=load,
        model=partial(Cnn, 28, 1, 8, 64, 10),
        at_width=lambda width: Cnn(28, 1, width, 8 * width, 10),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss",
        targets=(0.137, 0.117, 0.0845),
        spread=0.187,
        reached=(10, 10),
        steps=STEPS,
        batch_size=BATCH,
        cost="5 s for 400 steps on one core",
        seconds=5.0,
        accuracies={"accuracy": accuracy},
        variants={
            "wide": Variant("of twice the width", model=partial(Cnn, 28, 1, 16, 128, 10)),
            "tanh": Variant("with tanh", model=partial(Cnn, 28, 1, 8, 64, 10, activation=F.tanh)),
            "norm": Variant("with BatchNorm", model=partial(Cnn, 28, 1, 8, 64, 10, "batch")),
            "init": Variant("from weights three times too large", model=partial(scaled, partial(Cnn, 28, 1, 8, 64, 10), 3.0)),
            "noise": Variant("with 20 % wrong labels", load=partial(load, 0.2)),
            # No 16x: twenty epochs of 20,000 plain images would be about memorising them.
            **rungs(STEPS, BATCH, {4: (partial(Cnn, 28, 1, 16, 128, 10), load)}),
        },
    )

"""A deep auto-encoder on MNIST, the classic of optimization (Hinton & Salakhutdinov 2006; Martens 2010, http://www.cs.toronto.edu/~jmartens/docs/Deep_HessianFree.pdf)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from velodrome.bench.workload import Data, Variant, Workload, rungs
from velodrome.data import images
from velodrome.data.folder import find
from velodrome.data.streams import Shuffled, batches
from velodrome.layers.initial import scaled
from velodrome.losses.binary_cross_entropy import binary_cross_entropy
from velodrome.models.autoencoder import Autoencoder

BATCH, STEPS = 128, 600
WIDTHS = (128, 64, 32, 12)
WIDE = (256, 128, 64, 24)


def pixels(inputs: Tensor) -> Tensor:
    """14x14 means of 2x2 pixels in [0, 1], flat: float32 (N, 196)."""
    return F.avg_pool2d(inputs.float() / 255, 2).flatten(1)


def load(batch: int = BATCH) -> Data:
    """The train split to train on, 1,000 test images to validate on, at 14x14 pixels. ValueError without them."""
    path = find("mnist")
    train, test = (images.load(path, split) for split in ("train", "test"))
    inputs, held = pixels(train.inputs), pixels(test.inputs)
    stream = partial(Shuffled, inputs, inputs, batch, digest=f"{train.digest}14")
    return Data(lambda seed: stream(seed=seed), batches(held, held, 500, limit=1000), train.digest + test.digest + "14")


def mnist_autoencoder() -> Workload:
    """A deep auto-encoder to twelve numbers on 14x14 MNIST, binary cross-entropy per pixel; validation loss."""
    return Workload(
        name="mnist-autoencoder",
        summary="Auto-encoder 196-128-64-32-12 and back (72k parameters) on MNIST at 14x14, binary cross-entropy",
        load=load,
        model=partial(Autoencoder, 196, WIDTHS),
        loss=binary_cross_entropy,
        metric=binary_cross_entropy,
        metric_name="validation loss (nats per pixel)",
        targets=(0.175, 0.169, 0.164),
        spread=0.159,
        reached=(10, 10),
        steps=STEPS,
        batch_size=BATCH,
        cost="4 s for 600 steps on one core",
        seconds=4.0,
        variants={
            "wide": Variant("of twice the width", model=partial(Autoencoder, 196, WIDE)),
            "tanh": Variant("with tanh", model=partial(Autoencoder, 196, WIDTHS, F.tanh)),
            "init": Variant("from weights half as large", model=partial(scaled, partial(Autoencoder, 196, WIDTHS), 0.5)),
            # The code keeps its twelve numbers, which are what makes the task; 16 times the examples are 61 epochs of 20,000 images.
            **rungs(
                STEPS,
                BATCH,
                {4: (partial(Autoencoder, 196, (344, 172, 86, 12)), load), 16: (partial(Autoencoder, 196, (816, 408, 204, 12)), load)},
            ),
        },
    )

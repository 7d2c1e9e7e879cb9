"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html) with the smallest of He et al.'s residual networks."""

from functools import partial

from velodrome.bench.workload import Data, Variant, Workload, rungs
from velodrome.data import images
from velodrome.data.folder import find
from velodrome.data.noise import noisy
from velodrome.data.streams import Shuffled, batches
from velodrome.data.transforms import compose, flip_and_crop, normalise
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.resnet import ResNet

BATCH, STEPS = 64, 400
PIXELS = normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # mean and standard deviation of the training images


def load(noise: float = 0.0, batch: int = BATCH) -> Data:
    """50,000 images to train on (re-encoded as JPEG in our copy), a share `noise` of their labels wrong; 512 of 10,000 test images to validate on.

    ValueError without them.
    """
    path = find("cifar10")
    train, test = images.load(path, "train"), images.load(path, "test")
    augment = compose(flip_and_crop(), PIXELS)
    labels = noisy(train.targets, noise, 10)
    stream = partial(Shuffled, train.inputs, labels, batch, transform=augment, digest=f"{train.digest}{noise or ''}")
    valid = batches(test.inputs, test.targets, 128, limit=512, transform=PIXELS)
    return Data(lambda seed: stream(seed=seed), valid, train.digest + test.digest + (f"+{noise}" if noise else ""))


def cifar10_resnet() -> Workload:
    """A residual network of 8 layers on CIFAR-10 with mirroring and crops, cross-entropy; validation loss on 512 test images."""
    return Workload(
        name="cifar10-resnet",
        summary="ResNet-8 of width 8 (19k parameters) on CIFAR-10, mirrored and cropped, cross-entropy",
        load=load,
        model=partial(ResNet, 8, 8),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss",
        targets=(1.74, 1.64, 1.6),
        spread=0.14,
        reached=(10, 10),
        steps=STEPS,
        batch_size=BATCH,
        cost="42 s for 400 steps on one core",
        seconds=42.0,
        accuracies={"accuracy": accuracy},
        variants={
            "bare": Variant("without BatchNorm", model=partial(ResNet, 8, 8, norm="none")),
            "noise": Variant("with 20 % wrong labels", load=partial(load, 0.2)),
            # 16 times the examples are 8 epochs, mirrored and cropped anew in each.
            **rungs(STEPS, BATCH, {4: (partial(ResNet, 8, 16), load), 16: (partial(ResNet, 8, 32), load)}),
        },
    )

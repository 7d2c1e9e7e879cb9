"""A tiny vision transformer on scikit-learn's 8x8 digits."""

from functools import partial

from velodrome.bench.workload import Variant, Workload
from velodrome.bench.workloads import digits
from velodrome.layers.initial import scaled
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.vit import Vit

SIZES = (8, 2, 1, 32, 2, 4, 10)  # image and patch in pixels, channels, width, depth, heads, classes
WIDE = (8, 2, 1, 64, 2, 4, 10)


def digits_vit() -> Workload:
    """A vision transformer of two blocks over sixteen patches of 8x8 digits, cross-entropy; validation loss."""
    return Workload(
        name="digits-vit",
        summary="ViT, 2 layers of width 32 over 16 patches (26k parameters), on scikit-learn's digits, cross-entropy",
        load=digits.load,
        model=partial(Vit, *SIZES),
        at_width=lambda width: Vit(8, 2, 1, width, 2, 4, 10),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss",
        targets=(0.305, 0.227, 0.177),
        spread=0.136,
        reached=(10, 10),
        steps=500,
        batch_size=digits.BATCH,
        cost="7 s for 500 steps on one core",
        seconds=7.0,
        accuracies={"accuracy": accuracy},
        variants={
            "wide": Variant("of twice the width", model=partial(Vit, *WIDE)),
            "post": Variant("with norms behind the residual sums", model=partial(Vit, *SIZES, post_norm=True)),
            "init": Variant("from weights three times too large", model=partial(scaled, partial(Vit, *SIZES), 3.0)),
            "noise": Variant("with 20 % wrong labels", load=partial(digits.load, 0.2)),
        },
    )

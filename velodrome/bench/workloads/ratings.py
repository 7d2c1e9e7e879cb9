"""Matrix completion on planted ratings: neither images nor text, sparse gradients, a floor that is known."""

from functools import partial

from velodrome.bench.workload import Data, Variant, Workload, rungs
from velodrome.data import ratings as source
from velodrome.data.streams import Shuffled, batches
from velodrome.layers.initial import scaled
from velodrome.losses.squared_error import squared_error
from velodrome.models.factors import Factors

BATCH, STEPS = 256, 1000
SIZES = (600, 400, 16)  # rows, columns, width


def load(sigma: float = 0.3, batch: int = BATCH, scale: int = 1) -> Data:
    """36,000 entries to train on, 4,000 to validate on; sigma² is the lowest expected error. `scale` times as many rows, columns and entries."""
    rows, columns = (scale * n for n in SIZES[:2])
    planted = partial(source.ratings, rows=rows, columns=columns, seen=40_000 * scale, sigma=sigma)
    train, valid = planted("train"), planted("validation")
    stream = partial(Shuffled, train.inputs, train.targets, batch, digest=train.digest)
    return Data(lambda seed: stream(seed=seed), batches(valid.inputs, valid.targets, 4000), train.digest + valid.digest)


def ratings() -> Workload:
    """Factors of width 16 on planted ratings of rank 4 with Zipf's popularity, squared error; validation error."""
    return Workload(
        name="ratings",
        summary="Matrix factorization of width 16 (17k parameters) on planted ratings of rank 4, squared error",
        load=load,
        model=partial(Factors, *SIZES),
        at_width=lambda width: Factors(600, 400, width),
        loss=squared_error,
        metric=squared_error,
        metric_name="validation error",
        targets=(0.183, 0.142, 0.134),
        spread=0.088,
        reached=(10, 10),
        steps=STEPS,
        batch_size=BATCH,
        cost="1 s for 1,000 steps on one core",
        seconds=1.0,
        variants={
            "wide": Variant("of twice the width", model=partial(Factors, 600, 400, 32)),
            "init": Variant("from factors three times too large", model=partial(scaled, partial(Factors, *SIZES), 3.0)),
            "noise": Variant("with twice the noise", load=partial(load, 0.6)),
            # More rows and columns of the same width, with as many entries each: planted data has no end.
            **rungs(
                STEPS,
                BATCH,
                {s: (partial(Factors, SIZES[0] * s, SIZES[1] * s, SIZES[2]), partial(load, scale=s)) for s in (4, 16)},
            ),
        },
    )

"""Stdlib-gpt: a small byte-level GPT on the Python standard library's own sources: text that is on every machine.

Another Python version is another corpus: its losses and times do not compare with this one's, and the record holds version and digest.
"""

from functools import partial

from velodrome.bench.workload import Data, Variant, Workload, rungs
from velodrome.data import stdlib
from velodrome.data.streams import Windows, windows
from velodrome.layers.initial import scaled
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Gpt

LENGTH, BATCH, WIDTH, DEPTH, HEADS = 64, 16, 64, 2, 4
STEPS = 300
WIDTHS = (24, 32, 48, 64, 96)


def load(batch: int = BATCH, limit: int | None = 4_000_000) -> Data:
    """4 MB of source files to train on, or `limit` bytes (None: all); 32 windows (2,048 bytes) spread over 400 kB of other files to validate on."""
    train, valid = stdlib.load("train", limit=limit), stdlib.load("validation", limit=400_000)
    stream = partial(Windows, train.tokens, LENGTH, batch, digest=train.digest)
    return Data(lambda seed: stream(seed=seed), windows(valid.tokens, LENGTH, 64, limit=32), train.digest + valid.digest, train.version)


def stdlib_gpt() -> Workload:
    """A byte-level GPT on Python's own library, cross-entropy per byte; validation loss in nats per byte."""
    return Workload(
        name="stdlib-gpt",
        summary="GPT, 2 layers of width 64 (0.13M parameters), on the bytes of Python's standard library, cross-entropy per byte",
        load=load,
        model=partial(Gpt, 256, LENGTH, WIDTH, DEPTH, HEADS),
        sizes={width: partial(Gpt, 256, LENGTH, width, DEPTH, HEADS) for width in WIDTHS},
        at_width=lambda width: Gpt(256, LENGTH, width, DEPTH, HEADS),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss (nats per byte)",
        targets=(2.36, 2.21, 2.13),
        spread=0.088,
        reached=(10, 10),
        steps=STEPS,
        batch_size=BATCH,
        cost="13 s for 300 steps on one core",
        seconds=13.0,
        variants={
            "wide": Variant("of twice the width", model=partial(Gpt, 256, LENGTH, 2 * WIDTH, DEPTH, HEADS)),
            "post": Variant("with norms behind the residual sums", model=partial(Gpt, 256, LENGTH, WIDTH, DEPTH, HEADS, post_norm=True)),
            "init": Variant(
                "from weights three times too large",
                model=partial(scaled, partial(Gpt, 256, LENGTH, WIDTH, DEPTH, HEADS), 3.0),
            ),
            # 16 times the bytes are 4.9 million: more than the 4 MB, and half of the library.
            **rungs(
                STEPS,
                BATCH,
                {
                    4: (partial(Gpt, 256, LENGTH, 112, 3, HEADS), load),
                    16: (partial(Gpt, 256, LENGTH, 208, 4, HEADS), partial(load, limit=None)),
                },
            ),
        },
    )

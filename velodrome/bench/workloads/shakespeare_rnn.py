"""A recurrent network on the characters of Shakespeare's plays (the tiny-shakespeare text, https://github.com/karpathy/char-rnn)."""

from functools import partial

from velodrome.bench.workload import Variant, Workload, rungs
from velodrome.bench.workloads import shakespeare_gpt
from velodrome.bench.workloads.shakespeare_gpt import VOCABULARY
from velodrome.layers.initial import scaled
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.rnn import Rnn

LENGTH, BATCH, WIDTH = 48, 16, 96
STEPS = 400


load = partial(shakespeare_gpt.load, LENGTH)


def shakespeare_rnn() -> Workload:
    """A GRU on the characters of Shakespeare's plays, cross-entropy per character; validation loss in nats per character."""
    return Workload(
        name="shakespeare-rnn",
        summary="GRU of width 96 (69k parameters) on the characters of Shakespeare's plays, cross-entropy per character",
        load=partial(load, batch=BATCH),
        model=partial(Rnn, VOCABULARY, WIDTH),
        at_width=lambda width: Rnn(VOCABULARY, width),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss (nats per character)",
        targets=(2.09, 2.01, 1.98),
        spread=0.081,
        reached=(10, 10),
        steps=STEPS,
        batch_size=BATCH,
        cost="8 s for 400 steps on one core",
        seconds=8.0,
        variants={
            "wide": Variant("of twice the width", model=partial(Rnn, VOCABULARY, 2 * WIDTH)),
            "lstm": Variant("with LSTM cells", model=partial(Rnn, VOCABULARY, WIDTH, 1, "lstm")),
            "init": Variant("from weights twice too large", model=partial(scaled, partial(Rnn, VOCABULARY, WIDTH), 2.0)),
            # 16 times the characters are 4.9 epochs of the text; up to four are nearly as good as new text (https://arxiv.org/abs/2305.16264).
            **rungs(STEPS, BATCH, {4: (partial(Rnn, VOCABULARY, 202), load), 16: (partial(Rnn, VOCABULARY, 416), load)}),
        },
    )

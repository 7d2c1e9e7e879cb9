"""Shakespeare-gpt: a small character-level GPT on Shakespeare's plays (the tiny-shakespeare text, https://github.com/karpathy/char-rnn)."""

from functools import partial

from velodrome.bench.workload import Data, Workload
from velodrome.data import text
from velodrome.data.folder import find
from velodrome.data.streams import Windows, windows
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Gpt

VOCABULARY = 66  # 65 characters of the training text, and one id for any other
LENGTH, BATCH, WIDTH, DEPTH, HEADS = 64, 16, 64, 2, 4
WIDTHS = (24, 32, 48, 64, 96)


def load(length: int = LENGTH, batch: int = BATCH) -> Data:
    """The first 90 % of the text to train on; 64 windows of `length` spread over the last 10 % to validate on. ValueError where it is missing."""
    path = find("shakespeare")
    train = text.load(path, "train", tokens="characters")
    valid = text.load(path, "validation", tokens=train.tokenizer)
    if train.tokenizer.vocabulary != VOCABULARY:
        raise ValueError(
            f"{path} has an alphabet of {train.tokenizer.vocabulary - 1} characters, tiny-shakespeare has {VOCABULARY - 1}: put its input.txt there."
        )
    stream = partial(Windows, train.tokens, length, batch, digest=train.digest)
    return Data(lambda seed: stream(seed=seed), windows(valid.tokens, length, 64, limit=64), train.digest + valid.digest)


def shakespeare_gpt() -> Workload:
    """A character-level GPT on Shakespeare's plays, cross-entropy per character; validation loss in nats per character."""
    return Workload(
        name="shakespeare-gpt",
        summary="GPT, 2 layers of width 64 (0.11M parameters), on the characters of Shakespeare's plays, cross-entropy per character",
        load=load,
        model=partial(Gpt, VOCABULARY, LENGTH, WIDTH, DEPTH, HEADS),
        sizes={width: partial(Gpt, VOCABULARY, LENGTH, width, DEPTH, HEADS) for width in WIDTHS},
        at_width=lambda width: Gpt(VOCABULARY, LENGTH, width, DEPTH, HEADS),
        loss=cross_entropy,
        metric=cross_entropy,
        metric_name="validation loss (nats per character)",
        targets=(2.14, 2.0),
        steps=600,
        batch_size=BATCH,
        cost="21 s for 600 steps on one core",
        seconds=21.0,
    )

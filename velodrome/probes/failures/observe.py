"""All signs that one forward pass can show, with one set of hooks: what is cheap enough to run along.

with observe(model) as seen:
    loss = criterion(model(x), y)
print(seen.attention.largest, seen.logits.log_z, seen.dormant.share, seen.activations.numbers)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from velodrome.probes.failures import activations as _activations
from velodrome.probes.failures import attention as _attention
from velodrome.probes.failures import dormant as _dormant
from velodrome.probes.failures.log_z import OutputLogits, output_logits
from velodrome.probes.failures.watcher import Watcher

Sign = Literal["activations", "attention", "dormant", "logits"]
SIGNS: tuple[Sign, ...] = ("activations", "attention", "dormant", "logits")


@dataclass
class Seen:
    """What was asked for, filled on leaving; `logits` of the model's last output (or its `.logits`), None where that is no floating tensor."""

    activations: _activations.Activations = field(default_factory=_activations.Activations)
    attention: _attention.Attention = field(default_factory=_attention.Attention)
    dormant: _dormant.Dormant = field(default_factory=_dormant.Dormant)
    logits: OutputLogits | None = None


@contextmanager
def observe(
    model: nn.Module, signs: Sequence[Sign] = SIGNS, *, most: int | None = 128, tau: float = 0.025, form: torch.dtype | None = None
) -> Iterator[Seen]:
    """The signs of the forward passes made inside, from at most `most` evenly spaced examples and positions of each layer (None: all).

    Changes nothing, bit for bit. A model that is compiled as a whole shows its output logits alone: ask for signs=["logits"].
    """
    for sign in signs:
        if sign not in SIGNS:
            raise ValueError(f"there is no sign {sign!r}: there are {', '.join(SIGNS)}.")
    seen, watcher = Seen(), Watcher(model, inside=any(sign != "logits" for sign in signs))
    sizes = _activations.Sizes(watcher, form, most) if "activations" in signs else None
    scores = _dormant.Scores(watcher, tau, "sokar", most) if "dormant" in signs else None
    heads = _attention.Scores(watcher, 8, 16) if "attention" in signs else None
    outputs: list[Tensor] = []

    def last(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        z = getattr(output, "logits", output)
        if isinstance(z, Tensor) and z.is_floating_point() and z.ndim > 1:
            outputs[:] = [fewer(z.detach(), most)]

    if "logits" in signs:
        watcher.on_module(lambda m: m is model, last)
    with watcher.watching():
        yield seen
    for part, into in ((sizes, seen.activations), (scores, seen.dormant), (heads, seen.attention)):
        if part is not None:
            part.fill(into)  # type: ignore[arg-type]
    if outputs:
        seen.logits = output_logits(outputs[0])


def fewer(logits: Tensor, most: int | None) -> Tensor:
    """At most so many rows of (examples, …, classes), positions thinned out before examples."""
    if most is None or logits.shape[:-1].numel() <= most:
        return logits
    if logits.ndim > 2:
        each = max(1, most // len(logits))
        logits = logits.flatten(1, -2)
        logits = logits[:, :: -(-logits.shape[1] // each)]
    return logits[:: -(-len(logits) // most)]

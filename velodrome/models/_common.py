"""What the models share: checks of their sizes and inputs, and construction from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def check_sizes(**sizes: object) -> None:
    """Every size is a whole number, one or more."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number, one or more, got {size!r}.")


def check_heads(width: int, heads: int) -> None:
    """The heads share the width evenly."""
    if width % heads:
        near = max(h for h in range(1, heads) if width % h == 0)
        raise ValueError(f"heads must divide width, got heads={heads} and width={width}: write heads={near}.")


def check_floating(inputs: Tensor) -> None:
    """The stream normalises, the model does not."""
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs must be floating point, got {inputs.dtype}: let the stream normalise them, or write inputs.float() / 255."
        )


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Inside, CPU weights are drawn from `seed` and the global generator is left as it was; None draws from it, as every nn.Module does."""
    if seed is None:
        yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would also reseed every accelerator
    try:
        yield
    finally:
        torch.set_rng_state(before)

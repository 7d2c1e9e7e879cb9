"""One measurement: whatever happens in it, training goes on, and with the random numbers that it would have drawn."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch

from velodrome.probes.estimate import Estimate, unidentified
from velodrome.probes.watching.probe import Probe, View


@contextmanager
def same_random(cuda: bool) -> Iterator[None]:
    """Afterwards the generators of Python, NumPy and torch are where they were."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state() if cuda else None
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        if state[3] is not None:
            torch.cuda.set_rng_state(state[3])


def measured(probe: Probe, view: View) -> tuple[dict[str, Estimate], Exception | None]:
    """(the numbers, None), or one number that is missing and says why, with the error. KeyboardInterrupt and SystemExit pass through."""
    try:
        with same_random(view.device() == "cuda"):
            if probe.needs in ("examples", "curvature"):
                return probe.measure(view), None
            with torch.no_grad():
                return probe.measure(view), None
    except Exception as error:
        return {"failed": unidentified("", f"{type(error).__name__}: {error}")}, error


def say(text: str) -> None:
    """A warning, also where warnings are errors: a look must not end a training."""
    with suppress(Warning):
        warnings.warn(text, RuntimeWarning, stacklevel=2)

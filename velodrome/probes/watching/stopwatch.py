"""How long something took: the host's clock, or on a GPU the device's own, between two events in its queue."""

from collections.abc import Callable
from typing import Any

import torch


class Stopwatch:
    """On a GPU work is queued, and a look that waits for a number waits for the training before it too; events count what the look added to the queue."""

    def __init__(self, clock: Callable[[], float], device: torch.device):
        self.clock, self.device = clock, device

    def start(self) -> Any:
        """A mark."""
        if self.device.type != "cuda":
            return self.clock()
        with torch.cuda.device(self.device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event

    def stop(self, mark: Any) -> float:
        """Seconds since the mark."""
        if self.device.type != "cuda":
            return self.clock() - float(mark)
        end = self.start()
        end.synchronize()
        return float(mark.elapsed_time(end)) / 1e3

"""Optimizers that nobody should be hurt by: each does one bad thing to the process that it shares with others, in its 30th step or from then on."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import torch

from tests.tiny import Plain
from velodrome.data.streams import Shuffled

WHEN = 30


class Bad(Plain):
    """Gradient descent that does `bad()` once."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.steps = 0

    def step(self):
        self.steps += 1
        if self.steps == WHEN:
            self.bad()
        super().step()

    def bad(self):
        """Nothing bad."""


class Crashes(Bad):
    def bad(self):
        raise KeyError("no such state")


class Builds(Plain):
    """Refuses a model of six parameters."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        if len(self.param_groups[0]["params"]) == 6:
            raise RuntimeError("not for such a model")


class Interrupts(Bad):
    def bad(self):
        raise KeyboardInterrupt


class Exits(Bad):
    def bad(self):
        sys.exit(3)


class Leaves(Bad):
    def bad(self):
        os._exit(3)


class Hangs(Bad):
    """And hides from errors."""

    def bad(self):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue


class Holds(Bad):
    """And hears no signal."""

    def bad(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(1000)


class Hoards(Bad):
    def bad(self):
        self.hoard = []
        while True:
            self.hoard.append(torch.ones(2**24))


class WritesBatch(Bad):
    def bad(self):
        for m in gc.get_objects():
            if type(m) is torch.nn.Linear and m.weight is self.param_groups[0]["params"][0]:
                m.register_forward_pre_hook(lambda module, inputs: inputs[0].mul_(2.0) if module.training else None)


class WritesValid(Bad):
    def bad(self):
        for m in gc.get_objects():
            if type(m) is torch.nn.Linear and m.weight is self.param_groups[0]["params"][0]:
                m.register_forward_pre_hook(lambda module, inputs: None if module.training else inputs[0].mul_(0.0))


class WritesSource(Bad):
    """Past the version counters."""

    def bad(self):
        for s in gc.get_objects():
            if type(s) is Shuffled:
                s.inputs.numpy()[:] = 0.0


class Prints(Bad):
    def bad(self):
        print('{"run": "x", "state": "finished"}')
        print("loud " * 100_000)
        print("error " * 10, file=sys.stderr)
        os.write(1, b"from below\n")
        subprocess.run(["echo", "from a child"], check=False)


class Blinds(Bad):
    """Itself first: the next loss has no gradient."""

    def bad(self):
        torch.set_grad_enabled(False)


class Meddles(Bad):
    def bad(self):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(17)
        os.chdir("/")


class Starts(Bad):
    def bad(self):
        self.process = subprocess.Popen(["sleep", "1000"])
        threading.Thread(target=time.sleep, args=(1000.0,), daemon=True).start()

"""What a stretch of training took and what looking took of it: the time of looks, of hooks at every step, and of steps that a look made slower.

A look leaves caches and the allocator in another state, and the step after it pays. Such steps are therefore clocked one by one and compared with the
median of the untouched ones. Differences have both signs, by chance; their sum is what looks have cost beside themselves, and is charged as far as it has
ever risen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from velodrome.probes.watching.budget import Account
from velodrome.probes.watching.stopwatch import Stopwatch

SLOWER = 2.0  # step times that a touched step may take longer than an untouched one; more was a pause
TRIES, CALLS = 3, 10  # the least of a few times is the one that nobody disturbed


class Meter:
    """Divides the time between two marks among training and looking, and tells the account.

    `deciding`, `after` and `hooks` are seconds of looking so far that no probe is charged with: planning, slower steps and the hooks of every step.
    """

    def __init__(self, account: Account, clock: Callable[[], float], device: torch.device, budget: float):
        self.account, self.clock, self.device, self.budget = account, clock, device, budget
        self.stopwatch = Stopwatch(clock, device)
        self.own = self.paid = self.books = 0.0  # of this stretch: all looking, what of it is charged, the settling before it
        self.deciding = self.after = self.hooks = 0.0
        self.each = 0.0  # seconds that hooks cost a step
        self.mark: float | None = None
        self.marked = 0  # step at which this stretch began
        self.excess = 0.0  # sum of what touched steps took longer, of either sign

    def charge_start(self, seconds: float) -> None:
        """What was done before the first step."""
        self.account.charge(seconds)
        self.deciding += seconds

    def credit(self, t: int, touched: bool) -> None:
        """Step t begins: settle the steps since the mark. `touched`: a look was in them or right before."""
        steps = t - self.marked
        if self.mark is not None and steps > 0:
            hooks = self.each * steps
            seconds = self.clock() - self.mark - self.own - hooks
            if seconds > 0:
                self.account.charge(hooks)
                self.hooks += hooks
                self._earn(seconds, steps, touched)
        deciding = max(0.0, self.own - self.paid) + self.books
        self.account.spend(None, deciding)
        self.deciding += deciding
        self.own = self.paid = self.books = 0.0

    def _earn(self, seconds: float, steps: int, touched: bool) -> None:
        if (
            not touched or self.device.type == "cuda" or not self.account.rates
        ):  # on a GPU the host runs ahead, and its steps are no measure
            self.account.earn(seconds, steps)
            return
        usual = self.account.step * steps
        self.excess += max(-SLOWER * usual, min(seconds - usual, SLOWER * usual))
        self.account.earn(usual, steps, quiet=False)
        if self.excess > self.after:
            self.account.charge(self.excess - self.after)
            self.after = self.excess

    def settle(self, began: float, t: int) -> None:
        """Settling that began then is done, and step t begins; what it took is known only now, and charged the next time."""
        self.mark, self.marked = self.clock(), t
        self.books = self.mark - began


def cost_of_hooks(clock: Callable[[], float], judged: bool) -> tuple[float, float]:
    """Seconds that watching costs a step in which nothing is looked at: where hooks see the steps, with one on the loss module if `judged`, and where
    the loop tells them. Measured on the smallest module and optimizer there are, within a millisecond or two.
    """
    module, optimizer, x = nn.Identity(), torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.0), torch.zeros(1, requires_grad=True)

    def nothing(*given: Any, **named: Any) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            x.detach()

    def step() -> None:
        module(x)
        optimizer.step()

    alone = least(clock, step)
    told = least(clock, lambda: nothing(loss=x, batch=None))
    handles = [optimizer.register_step_post_hook(nothing), *([module.register_forward_hook(nothing)] if judged else [])]
    hooks = max(0.0, least(clock, step) - alone)
    for handle in handles:
        handle.remove()
    return hooks, told


def least(clock: Callable[[], float], act: Callable[[], Any]) -> float:
    """Seconds of one call."""
    act()
    found = []
    for _ in range(TRIES):
        began = clock()
        for _ in range(CALLS):
            act()
        found.append((clock() - began) / CALLS)
    return min(found)

"""Any schedule as a torch.optim.lr_scheduler, for a training loop of one's own."""

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def as_torch(optimizer: Optimizer, schedule: Callable[[int], float]) -> LambdaLR:
    """A LambdaLR that sets the learning rate of update t to `schedule(t)`; call its `step()` after each `optimizer.step()`.

    A group whose lr differs from the optimizer's own keeps that ratio: Adam(groups, lr=1e-3) with a group at 1e-4 gives it a tenth of
    the schedule. The lr that the optimizer was built with is otherwise replaced. Build the optimizer and this before loading their states, as for every
    torch scheduler. ValueError if the optimizer has no positive lr, or the schedule cannot be called.
    """
    if not callable(schedule):
        raise ValueError(f"schedule must be a function of the step, got {schedule!r}: write as_torch(optimizer, constant(1e-3)).")
    own = optimizer.defaults.get("lr")
    if own is None or not float(own) > 0:
        raise ValueError(f"the optimizer's lr must be positive, for its groups keep their ratio to it, got {own!r}: build it with lr=1.0.")
    ratios = [float(group["lr"]) / float(own) for group in optimizer.param_groups]
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group["initial_lr"] = ratio  # LambdaLR multiplies this by its function, so a ratio of 1 gives the schedule to the last bit

    def rate(t: int) -> float:  # a function and not the schedule: LambdaLR would store an object's fields and write them back on load
        return schedule(t)

    return LambdaLR(optimizer, rate)

"""What the signs and motions that run along cost: a looked-at training step over a plain one, in percent of the run when every tenth step is looked at."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, gpt, mlp
from benchmarks.probes.timing import side_by_side
from velodrome.probes.failures.activations import gradient_rms
from velodrome.probes.failures.attention import attention
from velodrome.probes.failures.collapse import naive_minimisation, softmax_collapse
from velodrome.probes.failures.dormant import dormant
from velodrome.probes.failures.observe import observe
from velodrome.probes.updates.alignment import velocity_cosine
from velodrome.probes.updates.distance import Start
from velodrome.probes.updates.motion import motion

INTERVAL = 10
COCKPIT = "Cockpit economy: a tracked step is 149 times a plain one (MLP)"


def step(task: Task, optimizer: torch.optim.Optimizer, forward: Any = None, after: Any = None, around: Any = None) -> None:
    """One training step; `forward` makes a context for the forward pass, `after(logits)` runs before the update, `around` makes one for the update."""
    optimizer.zero_grad()
    with forward() if forward else nullcontext():
        z = task.model(task.batch.inputs)
    F.cross_entropy(z.flatten(0, -2), task.batch.targets.flatten()).backward()
    if after:
        after(z)
    with around() if around else nullcontext():
        optimizer.step()


def methods(task: Task) -> dict[str, Callable[[], Any]]:
    """The plain step, each look alone, and the set that runs along."""
    model = task.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    start = Start(model)
    few = Start(model, every=8)
    targets = task.batch.targets

    looks: dict[str, dict[str, Any]] = {
        "angles and norms (motion)": {"around": lambda: motion(optimizer, model)},
        "angles and norms, every 8th row": {"around": lambda: motion(optimizer, model, every=8)},
        "gradient against velocity": {"after": lambda z: velocity_cosine(optimizer, model)},
        "gradient against velocity, every 8th row": {"after": lambda z: velocity_cosine(optimizer, model, every=8)},
        "distance from start": {"after": lambda z: start.distance()},
        "distance, every 8th row": {"after": lambda z: few.distance()},
        "gradient RMS": {"after": lambda z: gradient_rms(model, optimizer)},
        "collapse": {"after": lambda z: softmax_collapse(z, targets)},
        "gradient against weights": {"after": lambda z: naive_minimisation(model)},
        "log Z and largest logit": {"forward": lambda: observe(model, ["logits"])},
        "largest attention logit": {"forward": lambda: attention(model)},
        "dormant units": {"forward": lambda: dormant(model, most=256)},
        "all signs of a forward pass": {"forward": lambda: observe(model)},
        "the streaming set": {  # angles, norms, largest logits, log Z, collapse and dormant units: what the issue names
            "forward": lambda: observe(model, ["attention", "dormant", "logits"]),
            "around": lambda: motion(optimizer, model, every=8),
        },
    }
    step(task, optimizer)  # so that there is a momentum
    return {"step": lambda: step(task, optimizer)} | {
        name: lambda options=options: step(task, optimizer, **options) for name, options in looks.items()
    }


def rows(quick: bool = False) -> list[Bar]:
    """Percent of a run's time when every tenth step is looked at: the median over rounds of (looked at over plain, minus 1) / 10."""
    found = []
    for task in (mlp(), gpt()):
        times = side_by_side(methods(task), rounds=9 if quick else 41, reference="step")
        for name, timing in times.items():
            if name == "step":
                continue
            cost = 100 * (timing.ratio - 1) / INTERVAL
            whole = name == "the streaming set"
            note = f"of AdamW steps of {1000 * times['step'].seconds:.1f} ms; a look adds {100 * (timing.ratio - 1):.0f} % to its step"
            found.append(
                Bar("updates", f"{task.name}: {name}", cost, "% of the run", 2.0 if whole else None, COCKPIT if whole else "", note)
            )
    return found

"""What a probe of `watch` is, and what it is shown: the run between a gradient and its update, or after it."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from velodrome.data.stream import Batch
from velodrome.probes.estimate import Estimate
from velodrome.probes.objective import Loss, Objective
from velodrome.probes.undisturbed import undisturbed
from velodrome.probes.watching.ranks import Ranks, local

Needs = Literal["gradient", "update", "forward", "examples", "curvature"]
LEAST = 8  # examples that a part of a batch must have


@dataclass(frozen=True)
class Call:
    """How the model was called, with the autocast that it was called under."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: torch.dtype | None = None

    @property
    def examples(self) -> int:
        """First dimension of the first tensor; 0 if there is none."""
        return next((int(x.shape[0]) for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor) and x.ndim), 0)

    def part(self, size: int) -> "Call":
        """The same with the first `size` examples: tensors as long as the batch are cut, others (a mask over positions) are not."""
        n = self.examples
        cut = lambda x: x[:size] if isinstance(x, Tensor) and x.ndim and x.shape[0] == n else x  # noqa: E731
        return Call(tree_map(cut, self.args), tree_map(cut, self.kwargs), self.autocast)


@dataclass
class View:
    """What a probe is shown at step t.

    `params` maps names to parameters, `before` to what they were before the update (for those that need it). `.grad` is the step's gradient times `scale`
    (a GradScaler's). `losses` are (step, mean loss) since the last time, where they are known; `batch` the step's examples, `call` how the model was
    called. `fraction` is the part of the examples that may be used. `told` says whether the loop calls `step` itself, `compiled` whether the
    module that it calls is torch.compile's, whose inside is not seen.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    t: int
    params: dict[str, nn.Parameter]
    ranks: Ranks
    criterion: Loss | None = None
    mode: Literal["train", "eval"] | None = None
    fix_random: bool = False
    losses: Iterable[tuple[int, Any]] = ()
    batch: Batch | None = None
    call: Call | None = None
    scale: float = 1.0
    before: dict[str, Tensor] = field(default_factory=dict)
    fraction: float = 1.0
    told: bool = False
    compiled: bool = False

    @property
    def examples(self) -> int:
        """Examples in the batch (or its last part, where gradients are accumulated); 0 if they are unknown."""
        return self.call.examples if self.call is not None else 0

    @property
    def size(self) -> int:
        """Examples that may be used."""
        return max(min(LEAST, self.examples), int(self.examples * self.fraction))

    def label(self) -> str:
        """Which examples a number is about, in words."""
        rank = f"process {self.ranks.rank}'s " if self.ranks.parallel else ""
        return f"{self.size} of {rank}{self.examples} examples" if self.size < self.examples or rank else ""

    def whose(self) -> str:
        """With several processes, which one's own examples a number is about; else nothing."""
        return f"process {self.ranks.rank}'s own {self.examples} examples" if self.ranks.parallel else ""

    def gradients(self) -> dict[str, Tensor]:
        """The gradients, or this process's shards of them; parameters without one are left out."""
        return {name: local(p.grad) for name, p in self.params.items() if p.grad is not None}

    @contextmanager
    def running(self) -> Iterator[Callable[[], Any]]:
        """Inside, the model may be observed; what is given runs it, without gradients, on the part of the batch, as it is run in training."""
        if self.call is None:
            raise ValueError("what the model was given is unknown: give watch the module that is called, or write seen.step(batch=…).")
        call = self.call.part(self.size)
        with undisturbed(self.model), torch.no_grad(), _autocast(self.device(), call.autocast), eager():
            if self.mode is not None:
                self.model.train(self.mode == "train")
            yield lambda: self.model(*call.args, **call.kwargs)

    def objective(self, check: bool) -> Objective:
        """The mean loss on the part of the batch, for what needs derivatives; ValueError if a piece is missing."""
        if self.criterion is None:
            raise ValueError("the loss is unknown: write watch(…, loss=cross_entropy), a function of (outputs, targets).")
        if self.batch is None or self.batch.targets is None:
            raise ValueError("the targets are unknown: write seen.step(loss=loss, batch=(inputs, targets)) before optimizer.step().")
        n, size = self.examples, self.size
        cut = lambda x: x[:size] if isinstance(x, Tensor) and x.ndim and x.shape[0] == n else x  # noqa: E731
        batch = Batch(tree_map(cut, self.batch.inputs), tree_map(cut, self.batch.targets))
        return Objective(self.model, self.criterion, batch, mode=self.mode, fix_random=self.fix_random, check=check)

    def device(self) -> str:
        """Type of the device that holds the model."""
        return local(next(iter(self.params.values()))).device.type


def _autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The user's autocast, without the cache: weights cast here, without gradients, must not be used by the training that follows."""
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


def eager() -> AbstractContextManager[Any]:
    """Parts of the model that are compiled run as they are written, so that hooks see them."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class Probe(ABC):
    """Something to measure now and then.

    `needs` says when: "gradient" between gradient and update, "update" after the update with the weights of before at hand, "forward" like "gradient" with
    a pass of its own over a part of the batch, "examples" and "curvature" likewise with derivatives. `prior` is what a measurement is believed to cost, in
    step times, until it has been measured; `every` the fewest steps between two; `patience` the steps above which less of the batch is taken instead.
    A new object for each run: it may remember.
    """

    name: str
    needs: Needs
    prior: float
    every: int = 10
    patience: int = 50

    def around(self, view: View) -> AbstractContextManager[Any] | None:
        """What is entered before the forward pass of a step that will be measured and left after the backward pass; None for nothing."""
        return None

    @abstractmethod
    def measure(self, view: View) -> dict[str, Estimate]:
        """The numbers, by name. A ValueError says that this cannot be measured here, and ends the probe; it is told once."""

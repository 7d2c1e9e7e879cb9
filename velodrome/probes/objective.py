"""Objective: what is looked at. A model, a loss and the examples over which its mean is taken, refused where that is not one function."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from velodrome.data.stream import Batch
from velodrome.probes.undisturbed import undisturbed

Loss = Callable[[Any, Any], Tensor]
TOLERANCE = 1e-5  # of two evaluations of one loss; threads may add in another order


class Objective:
    r"""$L(\theta) = \frac1n \sum_i \ell(f_\theta(x_i), y_i)$ over all examples of `batches`, at the model's weights as they are now.

    `loss` maps (outputs, targets) to one value per example, or like torch's criteria to their mean; any other reduction is refused. `batches` is one
    Batch or (inputs, targets) pair or an iterable of them, read once; batches of different sizes are weighted by their examples. Inputs may be a tensor,
    a tuple (the model's positional arguments) or a dict (its keyword arguments). `params` keeps some parameters, by patterns ("blocks.*.weight").

    `mode` is "train", "eval", or None for the mode that the model is in. A loss that is not the same twice is refused with a ValueError that names
    the dropout layers; with `fix_random=True` the same random numbers are drawn for every evaluation, and numbers hold for that draw.
    `micro_batch` cuts batches to at most so many examples, for memory; then BatchNorm in training mode is another function, and refused.

    `params` maps names to the parameters looked at (tied ones once), `batches` holds the parts, `examples` counts. A model in
    DistributedDataParallel is looked at from inside, on the examples of this process alone, and `local` says so.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Any,
        *,
        params: Sequence[str] | None = None,
        mode: Literal["train", "eval"] | None = None,
        fix_random: bool = False,
        micro_batch: int | None = None,
        check: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        if mode not in (None, "train", "eval"):
            raise ValueError(f"mode must be 'train', 'eval' or None, got {mode!r}.")
        if getattr(loss, "reduction", "mean") not in ("mean", "none"):
            raise ValueError(
                f"the loss must be a mean, got reduction={getattr(loss, 'reduction', None)!r}: write reduction='mean' or 'none'."
            )
        self.local = isinstance(model, nn.parallel.DistributedDataParallel)
        model = (
            model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        )  # whose forward pass awaits a backward pass
        self.model, self.loss, self.mode, self.fix_random = model, loss, mode, fix_random
        self.params = chosen(model, params)
        whole = [as_batch(b) for b in ([batches] if is_one(batches) else batches)]
        if not whole or min(examples(b) for b in whole) < 1:
            raise ValueError("there is nothing to look at: give a batch with one example or more.")
        self.batches = whole if micro_batch is None else [p for b in whole for p in cut(b, micro_batch)]
        self.examples = sum(examples(b) for b in self.batches)
        if len(self.batches) > len(whole) and self.mixes():
            raise ValueError(f"{self.mixes()} mixes the examples of a batch, so micro-batches are another loss: look with mode='eval'.")
        if check:
            self.check()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The model in the mode asked for, gradients on and the random numbers fixed; all of it as before afterwards."""
        with undisturbed(self.model), torch.enable_grad():
            if self.mode is not None:
                self.model.train(self.mode == "train")
            if self.fix_random:
                torch.manual_seed(0)
            yield

    def outputs(self, batch: Batch) -> Any:
        """What the model says; inside `ready`."""
        x: Any = batch.inputs
        if isinstance(x, dict):
            return self.model(**x)
        return self.model(*x) if isinstance(x, tuple) else self.model(x)

    def losses(self, batch: Batch) -> Tensor:
        """One loss per example (n,); inside `ready`. ValueError for a loss that only gives the mean."""
        losses = self.loss(self.outputs(batch), batch.targets)
        if losses.shape != (examples(batch),):
            raise ValueError(f"this needs one loss per example, got shape {tuple(losses.shape)}: write reduction='none'.")
        return losses

    def mean_of(self, batch: Batch) -> Tensor:
        """The mean loss of one batch, a 0-d tensor with its graph; inside `ready`."""
        return self.reduced(self.outputs(batch), batch)

    def reduced(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch whose outputs are given, a 0-d tensor."""
        losses = self.loss(outputs, batch.targets)
        if losses.ndim and losses.shape != (examples(batch),):
            raise ValueError(
                f"loss must return one value per example or their mean, got shape {tuple(losses.shape)} for {examples(batch)} examples: "
                "take the mean over positions, leave the one over examples."
            )
        return losses.mean() if losses.ndim else losses

    def mean(self) -> Tensor:
        """The mean loss over all examples, with its graph; inside `ready`."""
        parts = [self.mean_of(b) * (examples(b) / self.examples) for b in self.batches]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def mixes(self) -> str | None:
        """The name of a layer whose output for one example depends on the others, in the mode asked for."""
        for name, module in self.model.named_modules():
            training = module.training if self.mode is None else self.mode == "train"
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (training or module.running_mean is None):
                return name
        return None

    def check(self) -> None:
        """ValueError unless the loss is a finite mean, the same twice."""
        batch = self.batches[0]
        with torch.no_grad():
            first, again, doubled = (self._value(b) for b in (batch, batch, joined(batch, batch)))
        if not first == first or abs(first) == float("inf"):
            raise ValueError(f"the loss must be a finite number, got {first}: the run has diverged, or the inputs are not finite.")
        scale = max(abs(first), abs(again), 1e-30)
        if abs(first - again) > TOLERANCE * scale:
            raise ValueError(
                f"the loss is not the same twice, got {first:.6g} and {again:.6g}{self._noisy()}: look with mode='eval', or ask for "
                "fix_random=True and read the numbers as those of one draw."
            )
        if abs(doubled - 2 * first) < 1e-3 * scale < abs(doubled - first):
            raise ValueError("the loss must be a mean over examples, got twice as much for every example twice: write reduction='mean'.")

    def _value(self, batch: Batch) -> float:
        state = torch.get_rng_state()
        with self.ready(), torch.no_grad():
            if not self.fix_random:
                torch.set_rng_state(state if self._draws == 0 else torch.Generator().manual_seed(self._draws).get_state())
                self._draws += 1  # undisturbed puts the generator back, which would hide what is random
            try:
                return float(self.mean_of(batch).detach())
            except RuntimeError as error:
                if "dtype" in str(error) or "scalar type" in str(error):
                    kinds = ", ".join(sorted({str(x.dtype) for x in tree_leaves(batch.inputs) if isinstance(x, Tensor)}))
                    raise ValueError(
                        f"the model does not take these inputs, {kinds} ({str(error).splitlines()[0]}): convert them."
                    ) from error
                raise

    _draws = 0

    def _noisy(self) -> str:
        names = [n for n, m in self.model.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 and m.training]
        return f" ({', '.join(names[:3])} drop out)" if names else ""


def is_one(batches: Any) -> bool:
    """Whether this is one batch and no series of them."""
    return isinstance(batches, Batch) or (
        isinstance(batches, tuple)
        and len(batches) == 2
        and not any(isinstance(b, Batch) for b in batches)
        and isinstance(batches[1], Tensor)
    )


def as_batch(batch: Any) -> Batch:
    """A Batch from a Batch or an (inputs, targets) pair."""
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(batch[0], batch[1])
    raise ValueError(f"a batch must be a Batch or a pair (inputs, targets), got {type(batch).__name__}.")


def examples(batch: Batch) -> int:
    """Number of examples: the first dimension of the first tensor."""
    return int(next(x for x in tree_leaves(batch.inputs) if isinstance(x, Tensor)).shape[0])


def cut(batch: Batch, size: int) -> Iterable[Batch]:
    """The batch in parts of at most `size` examples."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"micro_batch must be a whole number, one or more, got {size!r}.")
    for start in range(0, examples(batch), size):
        part = slice(start, min(start + size, examples(batch)))
        yield pick(batch, part)


def pick(batch: Batch, which: Any) -> Batch:
    """Some of the examples, by a slice or by their numbers."""
    take = lambda x: x[which] if isinstance(x, Tensor) else x  # noqa: E731
    return Batch(tree_map(take, batch.inputs), tree_map(take, batch.targets))


def joined(a: Batch, b: Batch) -> Batch:
    """The examples of both."""
    both = lambda x, y: torch.cat((x, y)) if isinstance(x, Tensor) else x  # noqa: E731
    return Batch(tree_map(both, a.inputs, b.inputs), tree_map(both, a.targets, b.targets))


def chosen(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The parameters that are trained and match a pattern; ValueError if there is none."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("the model has no parameters that need gradients: set requires_grad=True on those to look at.")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = trained if patterns is None else {n: p for n, p in trained.items() if any(fnmatch(n, w) for w in patterns)}
    if not found:
        raise ValueError(f"no trained parameter matches {patterns}: there are {', '.join(list(trained)[:6])} and so on.")
    wrong = [n for n, p in found.items() if not p.is_floating_point()]
    if wrong:
        raise ValueError(f"parameters must be floating-point, got {found[wrong[0]].dtype} for {wrong[0]}.")
    return found

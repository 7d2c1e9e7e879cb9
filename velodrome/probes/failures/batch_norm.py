"""BatchNorm between its two modes: whether the running statistics are those of the data, and what the loss is with either.

The running statistics are an average over past steps, momentum 0.1 by default in torch (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167). Where
they lag behind the weights, or were never gathered, a model that trains well evaluates badly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, exact, sampled
from velodrome.probes.objective import Objective, examples

Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Modes:
    """Mean losses with the batches' own statistics (`train`) and with the running ones (`eval`), and `gap`, eval minus train, paired by batch.

    `shift` is by layer the root mean square over channels of (running mean - mean) / standard deviation, `spread` that of the logarithm of
    running over actual standard deviation, e-folds; both 0 where the running statistics are those of the data. `frozen` names layers that are in
    evaluation mode inside a model in training mode, `never` those whose running statistics no batch has updated yet.
    """

    train: Estimate
    eval: Estimate
    gap: Estimate
    shift: dict[str, Estimate]
    spread: dict[str, Estimate]
    frozen: tuple[str, ...]
    never: tuple[str, ...]


def batch_norm_modes(objective: Objective) -> Modes | None:
    """The two modes compared on the objective's batches; None for a model without BatchNorm that has running statistics.

    Dropout is off in both, so that BatchNorm is the only difference. Costs two forward passes over the batches. The intervals are Student's over
    batches; with one batch they are unbounded. The batches' variance is the unbiased one, as it is in the running average.
    """
    model = objective.model
    norms = {n: m for n, m in model.named_modules() if isinstance(m, Norm) and m.running_mean is not None}
    if not norms:
        return None
    frozen = tuple(n for n, m in norms.items() if model.training and not m.training)
    never = tuple(n for n, m in norms.items() if m.num_batches_tracked is not None and int(m.num_batches_tracked) == 0)
    # Copies: a pass in training mode writes into the buffers, which `ready` puts back only at its end.
    running = {n: (_copy(m.running_mean), _copy(m.running_var)) for n, m in norms.items()}
    with objective.ready(), torch.no_grad():
        model.eval()
        settled = [float(objective.mean_of(b)) for b in objective.batches]
        for m in norms.values():
            m.train()
        moments, fresh = _moments(objective, norms)
    weights = [examples(b) for b in objective.batches]
    shift, spread = {}, {}
    for name, (count, total, square) in moments.items():
        mean = total / count
        variance = (square / count - mean.square()).clamp_min(0) * (count / max(count - 1, 1))
        old_mean, old_variance = running[name]
        root = (variance + norms[name].eps).sqrt()
        shift[name] = exact(float(((old_mean - mean) / root).square().mean().sqrt()), "standard deviations")
        ratio = ((old_variance + norms[name].eps) / (variance + norms[name].eps)).log() / 2
        spread[name] = exact(float(ratio.square().mean().sqrt()), "e-folds")
    gap = [a - b for a, b in zip(settled, fresh, strict=True)]
    return Modes(_mean(fresh, weights), _mean(settled, weights), _mean(gap, weights), shift, spread, frozen, never)


def _copy(statistic: Tensor | None) -> Tensor:
    assert statistic is not None
    return statistic.detach().double().clone()


def _moments(objective: Objective, norms: dict[str, Any]) -> tuple[dict[str, list[Any]], list[float]]:
    """Count, sum and sum of squares of each layer's inputs by channel over all batches, and the losses, in training mode."""
    found: dict[str, list[Any]] = {}
    handles = []
    for name, module in norms.items():

        def see(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].detach().double().transpose(0, 1).flatten(1)
            count, total, square = found.get(name, [0, 0.0, 0.0])
            found[name] = [count + x.shape[1], total + x.sum(1), square + x.square().sum(1)]

        handles.append(module.register_forward_pre_hook(see))
    try:
        return found, [float(objective.mean_of(b)) for b in objective.batches]
    finally:
        for handle in handles:
            handle.remove()


def _mean(values: list[float], weights: list[int]) -> Estimate:
    """The mean over batches weighted by their examples, with the standard error of the batches' scatter."""
    whole = sum(weights)
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / whole
    n = len(values)
    error = 0.0 if n < 2 else (sum((w / whole * (v - mean)) ** 2 for v, w in zip(values, weights, strict=True)) * n / (n - 1)) ** 0.5
    return sampled(mean, error, "loss", n)

"""Which inputs a network's output hangs on, by input gradients, and whether that is to be believed (DiffROAR, Shah et al. 2021, https://arxiv.org/abs/2102.12781)."""

# Shapes: n examples, each of any shape.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from velodrome.data.stream import Batch
from velodrome.probes.estimate import Estimate, sampled
from velodrome.probes.functions.jacobian import math_attention, own_outputs, tensor
from velodrome.probes.objective import Objective

Method = Literal["gradient", "gradient x input", "integrated", "smooth"]
Of = Literal["label", "predicted", "loss"]
Retrain = Callable[[Batch, Batch, int], float]


def attributions(
    objective: Objective,
    method: Method = "gradient",
    *,
    of: Of = "label",
    steps: int = 32,
    noise: float = 0.1,
    baseline: float = 0.0,
    seed: int = 0,
) -> Tensor:
    r"""One number for each input, in the inputs' shape: how the logit `of` the true label or the predicted one, or the loss, changes with it.

    "gradient" $\partial f/\partial x$; "gradient x input" $x\,\partial f/\partial x$; "integrated" $(x - b)$ times the mean of
    $\partial f/\partial x$ from the baseline b to x by the midpoint rule in `steps`, which sums to $f(x) - f(b)$ but for the rule's error (Sundararajan
    et al. 2017, https://arxiv.org/abs/1703.01365); "smooth" the mean gradient at `steps` inputs with Gaussian noise of `noise` times the batch's range
    (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825).
    Signed: take `.abs()` to rank. Inputs must be one floating-point tensor; the outputs (n, classes) unless `of` is the loss.
    """
    if method not in ("gradient", "gradient x input", "integrated", "smooth") or of not in ("label", "predicted", "loss"):
        raise ValueError(f"method and of must be among those documented, got {method!r} and {of!r}.")
    own_outputs(objective)
    draw = torch.Generator().manual_seed(seed)
    found = []
    with objective.ready(), math_attention():
        for batch in objective.batches:
            x = batch.inputs
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise ValueError(
                    f"inputs must be one floating-point tensor to have gradients, got {getattr(x, 'dtype', type(x).__name__)}."
                )
            chosen = _chosen(objective, batch, of)
            gradient = lambda at, batch=batch, chosen=chosen: _gradient(objective, at, batch, of, chosen)  # noqa: E731
            if method == "integrated":
                points = [(s + 0.5) / steps for s in range(steps)]
                found.append((x - baseline) * torch.stack([gradient(baseline + s * (x - baseline)) for s in points]).mean(0))
            elif method == "smooth":
                scale = noise * (x.max() - x.min())
                noisy = (x + scale * torch.randn(x.shape, generator=draw, dtype=x.dtype).to(x.device) for _ in range(steps))
                found.append(torch.stack([gradient(at) for at in noisy]).mean(0))
            else:
                found.append(gradient(x) * (x if method == "gradient x input" else 1.0))
    return torch.cat(found)


def _chosen(objective: Objective, batch: Batch, of: Of) -> Tensor | None:
    if of == "loss":
        return None
    outputs = tensor(objective.outputs(batch)).detach()
    if outputs.ndim != 2 or (of == "label" and (batch.targets.ndim != 1 or batch.targets.is_floating_point())):
        raise ValueError(f"a logit is chosen among outputs (n, classes) by a label (n,), got {tuple(outputs.shape)}: write of='loss'.")
    return batch.targets if of == "label" else outputs.argmax(1)


def _gradient(objective: Objective, at: Tensor, batch: Batch, of: Of, chosen: Tensor | None) -> Tensor:
    x = at.detach().requires_grad_()
    part = Batch(x, batch.targets)
    if chosen is None:
        value = objective.losses(part).sum()
    else:
        value = tensor(objective.outputs(part)).gather(1, chosen.unsqueeze(1)).sum()
    return torch.autograd.grad(value, x, materialize_grads=True)[0].detach()


def share_of_mass(attribution: Tensor, inside: Tensor) -> Estimate:
    """The share of an example's absolute attribution that lies where `inside` (a mask, of the attributions' shape or that of one example) is true; the
    mean over examples with its 95 % interval. Examples without any attribution are left out and counted in the note."""
    size = attribution.detach().double().abs().flatten(1)
    mask = inside.to(size).expand_as(attribution).flatten(1)
    total = size.sum(1)
    share = ((size * mask).sum(1) / total)[total > 0]
    lost = int((total <= 0).sum())
    note = f"{lost} examples have no attribution at all" if lost else ""
    return sampled(float(share.mean()), float(share.std()) / sqrt(len(share)), "share of absolute attribution", len(share), note=note)


def unmasked(inputs: Tensor, attribution: Tensor, share: float, keep: Literal["top", "bottom"], fill: float = 0.0) -> Tensor:
    """The inputs with only the `share` of their places kept where the absolute attribution is largest ("top") or smallest; the others are `fill`.
    A place of an image (n, C, H, W) is a pixel: its channels count together, by their largest."""
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share!r}.")
    if keep not in ("top", "bottom") or inputs.shape != attribution.shape:
        raise ValueError(
            f"keep must be 'top' or 'bottom' and shapes the same, got {keep!r}, {tuple(inputs.shape)}, {tuple(attribution.shape)}."
        )
    size = attribution.detach().abs()
    size = size.amax(1, keepdim=True) if inputs.ndim == 4 else size
    flat = size.flatten(1)
    count = min(max(1, round(share * flat.shape[1])), flat.shape[1] - 1)
    places = flat.argsort(dim=1, descending=keep == "top", stable=True)[:, :count]
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, places, True).view_as(size)
    return torch.where(kept, inputs, torch.full_like(inputs, fill))


@dataclass(frozen=True)
class DiffRoar:
    """Test accuracy of networks trained on what the attributions rank highest (`top`) and lowest (`bottom`), and `difference`, their paired difference over
    seeds: above 0 the attributions put what can be learned from on top, below 0 they do the reverse."""

    top: Estimate
    bottom: Estimate
    difference: Estimate
    share: float


def diffroar(
    train: tuple[Batch, Tensor],
    test: tuple[Batch, Tensor],
    retrain: Retrain,
    *,
    share: float = 0.1,
    seeds: Sequence[int] = (0, 1, 2),
    fill: float = 0.0,
) -> DiffRoar:
    r"""$\mathrm{acc}(\text{top kept}) - \mathrm{acc}(\text{bottom kept})$ after training anew on inputs of which only a `share` is kept.

    `train` and `test` are a batch and its attributions (`attributions`); `retrain(train, test, seed)` trains a fresh network on the one and returns its
    accuracy on the other. What is not kept becomes `fill`. The 95 % interval is over seeds, two at least. Retraining can also read the shape of the mask
    (Song et al., https://arxiv.org/abs/2304.13836), which speaks for the difference and against either accuracy alone.
    """
    if len(seeds) < 2:
        raise ValueError(f"seeds must be two or more for an interval, got {len(seeds)}.")
    scores: dict[str, list[float]] = {}
    for keep in ("top", "bottom"):
        inside, outside = (Batch(unmasked(b.inputs, a, share, keep, fill), b.targets) for b, a in (train, test))
        scores[keep] = [float(retrain(inside, outside, seed)) for seed in seeds]
    gaps = [a - b for a, b in zip(scores["top"], scores["bottom"], strict=True)]
    return DiffRoar(_over_seeds(scores["top"]), _over_seeds(scores["bottom"]), _over_seeds(gaps), share)


def _over_seeds(values: Sequence[float]) -> Estimate:
    x = torch.tensor(values, dtype=torch.float64)
    return sampled(float(x.mean()), float(x.std()) / sqrt(len(x)), "accuracy", len(x))

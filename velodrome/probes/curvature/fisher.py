r"""Fisher matrices as operators (Kunstner et al. 2019, https://arxiv.org/abs/1905.12558): of the model's own distribution, exact or with drawn labels,
and the empirical one, of the data's labels, which is another matrix and no approximation of the first."""

from dataclasses import replace

import torch
from torch import Tensor

from velodrome.data.stream import Batch
from velodrome.probes.curvature.curvature import Keep, ready
from velodrome.probes.curvature.gauss_newton import GaussNewton, Middle, Sandwich, gauss_newton, tensor
from velodrome.probes.objective import Objective, examples

TOLERANCE = 1e-3  # relative, of a slope in float32 against that of a known likelihood


class SampledFisher(Sandwich):
    """See `fisher`."""

    def __init__(self, objective: Objective, samples: int, seed: int, keep: Keep = "auto") -> None:
        self.samples, self.seed = samples, seed
        super().__init__(objective, keep)

    def outputs(self, batch: Batch) -> tuple[Tensor, Middle]:
        """The model's outputs; M sums outer products of scores with drawn labels. The draws are the same whenever a trace is made."""
        z = tensor(self.objective.outputs(batch))
        place = next((i for i, b in enumerate(self.objective.batches) if b is batch), 0)
        generator = torch.Generator(z.device).manual_seed(self.seed + place)
        drawn = [scores(self.objective, batch, z.detach(), generator) for _ in range(self.samples)]
        s, weight = (torch.stack(x) for x in zip(*drawn, strict=True))

        def product(w: Tensor) -> Tensor:
            return (s * (weight * (s * w).sum(-1, keepdim=True))).mean(0)

        return z, product


class EmpiricalFisher(Sandwich):
    """See `empirical_fisher`."""

    def outputs(self, batch: Batch) -> tuple[Tensor, Middle]:
        """The losses of the examples; M is their mean."""
        count = examples(batch)
        return self.objective.losses(batch), lambda w: w / count


def fisher(
    objective: Objective, *, samples: int | None = None, generator: torch.Generator | None = None, keep: Keep = "auto"
) -> GaussNewton | SampledFisher:
    r"""$\frac1n\sum_i \mathrm{E}_{\hat y \sim p_\theta(\cdot|x_i)}\, g_i g_i^\top$ in loss/parameter² (type 1), with
    $g_i = \nabla_\theta \log p_\theta(\hat y|x_i)$.

    For cross-entropy p is the softmax of the last dimension of the outputs, each position a prediction of its own with the weight that the loss gives it;
    for squared error a Gaussian of unit variance. Both make it equal to the Gauss-Newton matrix, which is what you get where `samples` is None. With
    `samples` the expectation is a mean over so many drawn labels: without bias, of low rank, drawn once from `generator` (seed 0 without one), so that
    the operator is deterministic. ValueError for other losses, whose distribution is not known.
    """
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"samples must be a whole number, one or more, or None, got {samples!r}.")
    if samples is None:
        with ready(objective), torch.no_grad():
            z = tensor_of(objective)
        scores(objective, objective.batches[0], z, torch.Generator(z.device).manual_seed(0))
        return gauss_newton(objective, keep=keep)
    seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return SampledFisher(objective, samples, seed, keep)


def empirical_fisher(objective: Objective, *, keep: Keep = "auto") -> EmpiricalFisher:
    r"""$\frac1n\sum_i g_i g_i^\top$ with $g_i = \nabla_\theta \ell_i$ of single examples with the labels of the data, in loss²/parameter² (type 2).

    Its trace is the mean squared norm of the examples' gradients. No gradient of an example is ever formed: a product is one pass forward and one back.
    The loss must give one value per example; a layer that mixes them (BatchNorm in training mode) is refused.
    """
    mixing = objective.mixes()
    if mixing:
        raise ValueError(f"{mixing} mixes the examples of a batch, which then have no gradients of their own: look with mode='eval'.")
    return EmpiricalFisher(objective, keep)


def tensor_of(objective: Objective) -> Tensor:
    """The outputs for the first batch, without a graph."""
    z = objective.outputs(objective.batches[0])
    return tensor(z.requires_grad_()).detach() if isinstance(z, Tensor) else tensor(z)


def scores(objective: Objective, batch: Batch, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r"""Slopes s of the log-likelihood of drawn labels by z, and the weight (…, 1) of each prediction in the batch's mean loss.

    The weight is told from the loss itself, whose slope must be weight times s in each prediction: that is also how another loss is found out.
    """
    if batch.targets.dtype == torch.int64:
        p = z.softmax(-1)
        labels = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1])
        if labels.shape != batch.targets.shape:
            raise ValueError(f"targets must be classes {tuple(labels.shape)}, one for each prediction, got {tuple(batch.targets.shape)}.")
        labels = torch.where(batch.targets < 0, batch.targets, labels)  # positions that do not count stay so
        s = p - torch.nn.functional.one_hot(labels.clamp(min=0), p.shape[-1])
    else:
        s = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        labels = z - s
    leaf = z.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(objective.reduced(leaf, replace(batch, targets=labels)), leaf)
    weight = (slope * s).sum(-1, keepdim=True) / s.square().sum(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
    if (slope - weight * s).norm() > TOLERANCE * slope.norm():
        raise ValueError("the distribution behind this loss is not known, it is neither cross-entropy nor squared error: use gauss_newton.")
    return s, weight

"""What is read off a tangent kernel: its spectrum, how it is aligned with the labels, how far it is from another."""

# Shapes: n examples, c outputs of one example, N = n c rows of a kernel over all outputs, n of the others.

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, exact, sampled, unidentified
from velodrome.probes.functions.ntk import Kernel


@dataclass(frozen=True)
class Spectrum:
    r"""`trace` and `norm` (Frobenius) in output²/parameter², `effective_rank` $\mathrm{tr}(K)^2/\|K\|_F^2$ (between 1 and the number of rows),
    `largest`, `smallest`, `condition` $\lambda_1/\lambda_N$, and the eigenvalues from the largest; of a sketch the last four are not identified."""

    trace: Estimate
    norm: Estimate
    effective_rank: Estimate
    largest: Estimate
    smallest: Estimate
    condition: Estimate
    values: Tensor


def spectrum(kernel: Kernel) -> Spectrum:
    """The eigenvalues of an exact kernel, in float64; of a sketch what its draws can tell, with 95 % intervals by the jackknife over draws."""
    if kernel.sketch is not None:
        return _sketched(kernel, kernel.sketch)
    values = torch.linalg.eigvalsh(kernel.matrix.double()).flip(0)
    floor = float(values[0].abs()) * len(values) * torch.finfo(kernel.matrix.dtype).eps
    smallest = float(values[-1])
    ratio = float(values[0]) / smallest if smallest > floor else float("inf")
    condition = (
        exact(ratio, "ratio") if ratio < float("inf") else unidentified("ratio", f"the smallest eigenvalue is rounding (below {floor:.1e})")
    )
    total, square = float(values.sum()), float(values.square().sum())
    return Spectrum(
        exact(total, kernel.unit),
        exact(sqrt(square), kernel.unit),
        exact(total**2 / square, "rows") if square > 0 else unidentified("rows", "the kernel is zero"),
        exact(float(values[0]), kernel.unit),
        exact(smallest, kernel.unit),
        condition,
        values,
    )


def _sketched(kernel: Kernel, u: Tensor) -> Spectrum:
    r"""With $G_{rs} = \langle \hat K_r, \hat K_s \rangle$ of single draws: $\|K\|_F^2$ is the mean of G off its diagonal, which is unbiased."""
    draws = len(u)
    if kernel.over == "outputs":
        traces, products = u.diagonal(dim1=1, dim2=2).sum(1), u.flatten(1) @ u.flatten(1).T
    else:
        vectors = (u if u.ndim == 3 else u.unsqueeze(2)).permute(0, 2, 1)  # (R, c, n)
        traces, c = vectors.square().sum((1, 2)), vectors.shape[1]
        across = vectors.flatten(0, 1) @ vectors.flatten(0, 1).T
        products = across.view(draws, c, draws, c).square().sum((1, 3))  # (R, R)
    total = products.sum() - products.diagonal().sum()
    square = float(total) / (draws * (draws - 1))
    without = (total - 2 * (products.sum(1) - products.diagonal())) / ((draws - 1) * (draws - 2)) if draws > 2 else None
    trace = sampled(float(traces.mean()), float(traces.std()) / sqrt(draws), kernel.unit, draws)
    missing = unidentified(
        kernel.unit, "single eigenvalues of a sketch are not those of the kernel: take ntk, or Tangent by Lanczos", draws
    )
    if without is None or square <= 0 or bool((without <= 0).any()):
        lost = "too few draws: the norm of the kernel is not separable from 0"
        norm, rank = unidentified(kernel.unit, lost, draws), unidentified("rows", lost, draws)
    else:
        norm = sampled(sqrt(square), _jackknife(without.sqrt()), kernel.unit, draws)
        pairs = lambda t: (t.sum() ** 2 - t.square().sum()) / (len(t) * (len(t) - 1))  # noqa: E731  (unbiased for tr(K)², as the square of the mean is not)
        ranks = torch.stack([pairs(torch.cat((traces[:r], traces[r + 1 :]))) for r in range(draws)]) / without
        rank = sampled(float(pairs(traces)) / square, _jackknife(ranks), "rows", draws)
    return Spectrum(trace, norm, rank, missing, missing, unidentified("ratio", missing.note, draws), torch.empty(0))


def _jackknife(values: Tensor) -> float:
    """One standard error from the values without each draw in turn."""
    n = len(values)
    return sqrt((n - 1) / n * float((values - values.mean()).square().sum()))


@dataclass(frozen=True)
class Alignment:
    r"""Cosines of these examples: `target` $\langle K, Y\rangle / (\|K\|\,\|Y\|)$ with $Y = y y^\top$ (Cristianini et al. 2001), `cka` the same of
    the centred matrices (Cortes et al. 2012, https://arxiv.org/abs/1203.0550); `top`: the share of $\|y\|^2$ in the k largest eigenvectors."""

    target: Estimate
    cka: Estimate
    top: dict[int, Estimate]


def alignment(kernel: Kernel, labels: Tensor, top: tuple[int, ...] = (1, 10, 100)) -> Alignment:
    """How well a kernel fits labels: classes (n,) become one-hot rows less their mean; numbers (n,) or (n, c) are taken as they are.

    A kernel over all outputs wants one label for each of its rows. CKA centres over the rows. Exact for these examples; another sample of examples
    has another alignment, and few examples flatter it.
    """
    y = as_labels(kernel, labels)
    matrix = kernel.matrix.double()
    truth = y @ y.T
    vectors = torch.linalg.eigh(matrix).eigenvectors
    shares = (vectors.T @ y).square().sum(1).flip(0).cumsum(0) / y.square().sum()
    named = f"of {kernel.examples} examples"
    return Alignment(
        exact(_cosine(matrix, truth), "cosine", note=named),
        exact(_cosine(_centred(matrix), _centred(truth)), "cosine", note=named),
        {k: exact(float(shares[min(k, len(shares)) - 1]), "share of the labels' square", note=named) for k in top if k <= len(shares)},
    )


def as_labels(kernel: Kernel, labels: Tensor) -> Tensor:
    """Labels as columns (rows of the kernel, k), float64; ValueError if they do not fit."""
    labels = labels.detach().to(kernel.matrix.device)
    if len(labels) != kernel.examples:
        raise ValueError(f"labels must be {kernel.examples}, one for each example of the kernel, got {len(labels)}.")
    if not labels.is_floating_point():
        classes = kernel.width if kernel.outputs == "all" else int(labels.max()) + 1
        y = torch.nn.functional.one_hot(labels.long(), classes).double()
        y = y - y.mean(0)
    else:
        y = labels.double().flatten(1) if labels.ndim > 1 else labels.double().unsqueeze(1)
    y = y.reshape(-1, 1) if kernel.outputs == "all" else y
    if len(y) != len(kernel.matrix):
        raise ValueError(
            f"a kernel over {kernel.width} outputs needs {kernel.width} labels for each example, got {y.numel() // kernel.examples}."
        )
    return y


def distance(first: Kernel, second: Kernel) -> Estimate:
    r"""$1 - \langle K, K'\rangle / (\|K\|\,\|K'\|)$, 0 for kernels that differ by a factor (kernel distance of Fort et al. 2020, https://arxiv.org/abs/2010.15110)."""
    if first.matrix.shape != second.matrix.shape:
        raise ValueError(f"kernels must be over the same rows, got {len(first.matrix)} and {len(second.matrix)}.")
    if first.draws or second.draws:
        return unidentified("1 - cosine", "the noise of a sketch adds to the distance: take exact kernels", max(first.draws, second.draws))
    return exact(1 - _cosine(first.matrix.double(), second.matrix.double()), "1 - cosine")


def _cosine(a: Tensor, b: Tensor) -> float:
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale > 0 else float("nan")


def _centred(a: Tensor) -> Tensor:
    return a - a.mean(0) - a.mean(1, keepdim=True) + a.mean()

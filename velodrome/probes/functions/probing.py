"""Linear probes: how well a linear classifier reads a label off a layer's features, held against the same on labels that mean nothing.

Alain and Bengio 2016 (https://arxiv.org/abs/1610.01644); control labels and selectivity: Hewitt and Liang 2019 (https://arxiv.org/abs/1909.03368).
"""

# Shapes: n examples, d features, k classes.

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, special, stats
from torch import Tensor

from velodrome.probes.estimate import Estimate, between, sampled

Array = npt.NDArray[np.float64]
PENALTIES = tuple(10.0**k for k in range(-6, 3))


@dataclass(frozen=True)
class Probe:
    """Held-out `accuracy` (share of examples), that of `control` labels, `selectivity` (accuracy - control), `chance` (the commonest class), and the
    penalty taken on all examples."""

    accuracy: Estimate
    control: Estimate
    selectivity: Estimate
    chance: float
    penalty: float


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    kind: Literal["ridge", "logistic"] = "ridge",
    folds: int = 5,
    penalty: float | None = None,
    groups: Tensor | None = None,
    seed: int = 0,
) -> Probe:
    r"""A probe trained on all folds but one and scored on that one, for each in turn; features (n, d) are standardised by what is trained on.

    "ridge" is least squares on one-hot labels with $\lambda$ times the number of examples on the diagonal, in closed form; "logistic" is multinomial, by
    L-BFGS, with $\frac\lambda2\|W\|^2$. `penalty` is $\lambda$; None takes, inside each training part, the best ridge on its own leave-one-out errors
    ("logistic": 1e-3). The accuracy's 95 % interval is Wilson's over the n held-out answers, for probes trained on (folds - 1)/folds of these examples.

    Control labels are a shuffle; with `groups` (n,) each group gets one label at random, which a probe can learn by heart (Hewitt and Liang's word types).
    """
    x, y, classes = _checked(features, labels, kind, folds)
    draw = np.random.default_rng(seed)
    fold = draw.permutation(len(y)) % folds
    if groups is None:
        other = draw.permutation(y)
    else:
        g = np.unique(np.asarray(groups.cpu()), return_inverse=True)[1].reshape(-1)
        other = draw.permutation(y)[: g.max() + 1][g]
    right, wrong = (_answers(x, labels_, classes, kind, fold, penalty) == labels_ for labels_ in (y, other))
    gap = right.astype(float) - wrong
    taken = penalty if penalty is not None else (_best(*_standard(x, x)[:1], _onehot(y, classes)) if kind == "ridge" else 1e-3)
    return Probe(
        wilson(int(right.sum()), len(y)),
        wilson(int(wrong.sum()), len(y)),
        sampled(float(gap.mean()), float(gap.std(ddof=1)) / len(y) ** 0.5, "share of examples", len(y)),
        float(np.bincount(y).max() / len(y)),
        float(taken),
    )


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's 95 % interval."""
    z = float(stats.norm.ppf(0.975))
    p = successes / n
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return between(p, max(0.0, middle - half), min(1.0, middle + half), "share of examples", n)


def _checked(features: Tensor, labels: Tensor, kind: str, folds: int) -> tuple[Array, npt.NDArray[np.int64], int]:
    if kind not in ("ridge", "logistic"):
        raise ValueError(f"kind must be 'ridge' or 'logistic', got {kind!r}.")
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"features must be (n, d) and labels n classes, got {tuple(features.shape)} and {labels.dtype} {tuple(labels.shape)}."
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite numbers.")
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds must be between 2 and the number of examples, got {folds!r}.")
    names, y = np.unique(labels.cpu().numpy(), return_inverse=True)
    if len(names) < 2:
        raise ValueError("a probe needs two classes or more, got one.")
    return features.detach().double().cpu().numpy(), y.reshape(-1), len(names)


def _answers(
    x: Array, y: npt.NDArray[np.int64], classes: int, kind: str, fold: npt.NDArray[np.int64], penalty: float | None
) -> npt.NDArray[np.int64]:
    answers = np.zeros(len(y), dtype=np.int64)
    for k in np.unique(fold):
        held = fold == k
        inside, outside = _standard(x[~held], x[held])
        targets = _onehot(y[~held], classes)
        if kind == "ridge":
            best = _best(inside, targets) if penalty is None else penalty
            mean = targets.mean(0)
            scores = outside @ _ridge(inside, targets - mean, best) + mean
        else:
            scores = _logistic(inside, targets, 1e-3 if penalty is None else penalty, outside)
        answers[held] = scores.argmax(1)
    return answers


def _standard(train: Array, test: Array) -> tuple[Array, Array]:
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return (train - mean) / scale, (test - mean) / scale


def _onehot(y: npt.NDArray[np.int64], classes: int) -> Array:
    return np.eye(classes)[y]


def _ridge(x: Array, y: Array, penalty: float) -> Array:
    """(d, k) weights, from the smaller of the two normal equations."""
    n, d = x.shape
    if d <= n:
        return np.linalg.solve(x.T @ x + penalty * n * np.eye(d), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + penalty * n * np.eye(n), y)


def _best(x: Array, y: Array) -> float:
    """The penalty whose leave-one-out squared error is smallest, all of them from one decomposition."""
    y = y - y.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    n, inside = len(x), u.T @ y
    errors = []
    for penalty in PENALTIES:
        shrink = s**2 / (s**2 + penalty * n)
        left = (y - u @ (shrink[:, None] * inside)) / (1 - 1 / n - (u**2) @ shrink)[:, None].clip(1e-12)
        errors.append(float((left**2).mean()))
    return PENALTIES[int(np.argmin(errors))]


def _logistic(x: Array, y: Array, penalty: float, at: Array) -> Array:
    """Scores (m, k) of a multinomial logistic regression at other examples; the intercept is not penalised."""
    n, d, k = *x.shape, y.shape[1]

    def loss(flat: Array) -> tuple[float, Array]:
        w = flat.reshape(d + 1, k)
        z = x @ w[:d] + w[d]
        p = special.softmax(z, 1)
        value = float((special.logsumexp(z, 1) - (z * y).sum(1)).mean() + penalty / 2 * (w[:d] ** 2).sum())
        gap = (p - y) / n
        return value, np.vstack([x.T @ gap + penalty * w[:d], gap.sum(0)]).reshape(-1)

    w = optimize.minimize(loss, np.zeros((d + 1) * k), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x.reshape(d + 1, k)
    return at @ w[:d] + w[d]

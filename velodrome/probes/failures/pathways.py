r"""Pathways through mixtures of experts: how much they differ between examples and wander between layers (Li, Fan & Zhou 2025, https://arxiv.org/abs/2506.21551).

    weights = router_softmax.mean(tokens)         # (layers, examples, experts): each example's routing, averaged over its tokens
    found = pathways(weights, top=2)
    print(found.distance, found.consistency, found.complexity)

An example's pathway is the sequence of its `top` experts, layer after layer, the largest weight first. `distance` is the mean over pairs of examples of the
Levenshtein distance of their pathways, over the length; `consistency` the mean cosine of the routing of successive layers (an expert's number must mean
something across layers: give `embeddings` to compare the experts' own vectors); `complexity` is 1 minus that. The paper finds that distance and
complexity fall while the training loss stands still and downstream accuracy rises, without a test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from velodrome.probes.estimate import Estimate, between, sampled, unidentified


@dataclass(frozen=True)
class Pathways:
    """`distance`: Levenshtein over the length, 0 (all alike) to 1; `consistency`: cosine; `complexity`: 1 minus it; intervals are over examples. `paths`:
    (examples, layers times top) expert numbers; `used`: share of the experts that any pathway takes, by layer."""

    distance: Estimate
    consistency: Estimate
    complexity: Estimate
    paths: np.ndarray
    used: np.ndarray


def pathways(weights: np.ndarray, top: int = 2, embeddings: np.ndarray | None = None, pairs: int = 2000, seed: int = 0) -> Pathways:
    """Of routing weights (layers, examples, experts), none negative; `embeddings` (layers, experts, width) are the experts' vectors, such as router rows.

    With more than `pairs` pairs that many disjointly drawn ones are compared.
    """
    w = np.asarray(weights, dtype=float)
    if w.ndim != 3 or not (w >= 0).all() or not w.sum(-1).all():
        raise ValueError(f"weights must be (layers, examples, experts), none below 0, got shape {w.shape}.")
    layers, examples, experts = w.shape
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= experts:
        raise ValueError(f"top must be between 1 and {experts} experts, got {top!r}.")
    chosen = np.argsort(-w, axis=-1, kind="stable")[..., :top]  # ties: the smaller number first, so that equal routing is an equal path
    paths = chosen.transpose(1, 0, 2).reshape(examples, -1)
    used = np.array([len(np.unique(layer)) / experts for layer in chosen])
    w = w / w.sum(-1, keepdims=True)
    points = w if embeddings is None else np.einsum("lne,led->lnd", w, np.asarray(embeddings, dtype=float))
    unit = points / np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-300)
    name = "cosine of the routing of successive layers"
    if layers < 2:
        smooth, rough = (unidentified(name, "there is one layer only") for _ in range(2))
    else:
        each = (unit[1:] * unit[:-1]).sum(-1).mean(0)
        error = float(each.std(ddof=1)) / examples**0.5 if examples > 1 else 0.0
        smooth = sampled(float(each.mean()), error, name, examples)
        rough = sampled(1 - float(each.mean()), error, "1 minus the " + name, examples)
    return Pathways(apart(paths, pairs, seed), smooth, rough, paths, used)


def apart(paths: np.ndarray, pairs: int, seed: int) -> Estimate:
    """The mean distance over pairs of examples: all of them with a jackknife over examples, or that many drawn ones, each example once a round."""
    unit, (n, length) = "Levenshtein distance over the length of a pathway, 0 to 1", paths.shape
    if n < 2:
        return unidentified(unit, "one example has no other to differ from", n=n)
    if n * (n - 1) // 2 <= pairs:
        i, j = np.triu_indices(n, 1)
        table = np.zeros((n, n))
        table[i, j] = levenshtein(paths[i], paths[j]) / length
        table += table.T
        mean = float(table.sum()) / (n * (n - 1))
        if n < 3:
            return between(mean, 0.0, 1.0, unit, n)
        left = (table.sum() - 2 * table.sum(1)) / ((n - 1) * (n - 2))
        return sampled(mean, float(np.sqrt((n - 1) / n * np.square(left - left.mean()).sum())), unit, n)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(n)[: 2 * min(pairs, n // 2)]  # no example twice, so that the pairs are independent
    values = levenshtein(paths[drawn[::2]], paths[drawn[1::2]]) / length
    return sampled(float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5, unit, len(values))


def levenshtein(a: Sequence[Sequence[int]] | np.ndarray, b: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Fewest insertions, deletions and replacements between rows of (pairs, M) and (pairs, N), all pairs at once (Wagner & Fischer 1974)."""
    a, b = np.asarray(a), np.asarray(b)
    rows = np.arange(b.shape[1] + 1)
    before = np.broadcast_to(rows, (len(a), len(rows))).astype(np.int64)
    for i in range(a.shape[1]):
        kept = np.minimum(before[:, 1:] + 1, before[:, :-1] + (b != a[:, i : i + 1]))
        now = np.concatenate([before[:, :1] + 1, kept], 1)
        before = np.minimum.accumulate(now - rows, 1) + rows  # insertions run along the row
    return before[:, -1]

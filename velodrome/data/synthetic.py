"""Synthetic tasks whose floor is known: modular arithmetic, an infinite teacher-student regression, an order-2 Markov language.

train, valid = modular("train", p=97, op="/"), modular("validation", p=97, op="/")
batches = TeacherStudent(sigma=0.1).stream(batch_size=64, seed=0)      # mean squared error cannot go below sigma²
language = Markov(vocabulary=32); batches = language.stream(length=64, batch_size=16, seed=0)   # nor nats per token below its entropy
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from velodrome.data.hashing import check_count, check_fraction, check_seed, digest, generator, number
from velodrome.data.stream import Batch
from velodrome.data.streams import Generated

OPERATIONS = ("+", "-", "*", "/")


@dataclass(frozen=True)
class Equations:
    """`inputs` int64 (N, 4), the tokens of `a op b =`; `targets` int64 (N,), the residue c. Numbers are their own tokens, op is p, = is p + 1."""

    inputs: Tensor
    targets: Tensor
    vocabulary: int
    digest: str
    source: str
    version: str | None = None


def modular(split: str | None = "train", *, op: str = "+", p: int = 97, fraction: float = 0.5, seed: int = 0) -> Equations:
    r"""All equations $a \circ b \equiv c \pmod p$, of which a random share `fraction` is "train" and the rest "validation" (None: all).

    Power et al. 2022 (https://arxiv.org/abs/2201.02177, appendix A.1). For "/" p must be prime and b runs from 1: $c \equiv a b^{-1}$.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op must be one of {' '.join(OPERATIONS)}, got {op!r}.")
    if check_count("p", p) < 2 or (op == "/" and any(p % d == 0 for d in range(2, math.isqrt(p) + 1))):
        raise ValueError(f"p must be at least 2, and prime to divide, got {p}: 97 and 113 are usual.")
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}.')
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(1 if op == "/" else 0, p)).unbind(1)
    inverse = torch.tensor([0] + [pow(x, -1, p) for x in range(1, p)]) if op == "/" else torch.zeros(p, dtype=torch.long)
    c = {"+": a + b, "-": a - b, "*": a * b, "/": a * inverse[b]}[op] % p
    inputs = torch.stack([a, torch.full_like(a, p), b, torch.full_like(a, p + 1)], dim=1)
    order = torch.randperm(len(a), generator=generator("modular", check_seed(seed)))
    cut = round(check_fraction("fraction", fraction) * len(a))
    rows = {"train": order[:cut], "validation": order[cut:], None: torch.arange(len(a))}[split]
    if not len(rows):
        raise ValueError(f"fraction must leave equations for both splits, got {fraction} of {len(a)}.")
    inputs, targets = inputs[rows], c[rows]
    return Equations(inputs, targets, p + 2, digest(inputs, targets), f"a {op} b mod {p}, {split or 'all'}")


@dataclass(frozen=True)
class TeacherStudent:
    r"""$x \sim N(0, I)$, $y = W_2 \tanh(W_1 x) + \sigma \epsilon$, $\epsilon \sim N(0, I)$: `inputs` (B, inputs), `targets` (B, outputs), float32.

    $W_1$ (width, inputs) and $W_2$ (outputs, width) are normal with variance 1 / fan-in, fixed by `seed`. No student has an expected squared
    error per output below `floor` = sigma².
    """

    inputs: int = 32
    width: int = 64
    outputs: int = 1
    sigma: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("inputs", "width", "outputs"):
            check_count(name, getattr(self, name))
        check_seed(self.seed)
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be a number of at least 0, got {self.sigma}.")

    @property
    def floor(self) -> float:
        """Expected squared error per output of the teacher itself."""
        return self.sigma**2

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """The teacher's weights, (width, inputs) and (outputs, width)."""
        random = generator("teacher", self.seed)
        first = torch.randn(self.width, self.inputs, generator=random) / self.inputs**0.5
        return first, torch.randn(self.outputs, self.width, generator=random) / self.width**0.5

    def teach(self, inputs: Tensor) -> Tensor:
        """Noise-free outputs, (B, outputs)."""
        first, second = self.weights
        return torch.tanh(inputs @ first.T) @ second.T

    def batch(self, size: int, seed: int, t: int) -> Batch:
        """Batch t of the stream with this seed."""
        random = generator("teacher batch", seed, t)
        inputs = torch.randn(size, self.inputs, generator=random)
        return Batch(inputs, self.teach(inputs) + self.sigma * torch.randn(size, self.outputs, generator=random))

    def stream(self, batch_size: int, seed: int) -> Generated:
        """Batches without end; no example ever comes twice."""
        return Generated(lambda seed, t: self.batch(batch_size, seed, t), seed, batch_size, digest=digest(repr(self), *self.weights))


@dataclass(frozen=True)
class Markov:
    r"""Tokens with $P(c | a, b)$ drawn once from a symmetric Dirichlet($\alpha$) for each pair, then mixed: $(1-\epsilon) P + \epsilon / V$.

    Small `alpha` makes the rows sparse; `mix` > 0 makes the chain of pairs ergodic, so that one stationary distribution π exists.
    `seed` fixes the table. Every sequence starts from π.
    """

    vocabulary: int = 32
    alpha: float = 0.05
    mix: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_fraction("mix", self.mix)
        if check_count("vocabulary", self.vocabulary) < 2 or not 0 < self.alpha < math.inf:
            raise ValueError(f"Markov needs at least 2 tokens and a positive alpha, got {self.vocabulary} and {self.alpha}.")

    @cached_property
    def table(self) -> np.ndarray:
        """P(c | a, b), float64 (V, V, V)."""
        V = self.vocabulary
        rows = np.random.default_rng(number("Markov", self.seed)).dirichlet(np.full(V, self.alpha), size=(V, V))
        return (1 - self.mix) * rows + self.mix / V

    @cached_property
    def stationary(self) -> np.ndarray:
        r"""π(a, b), float64 (V, V): $\pi(b, c) = \sum_a \pi(a, b) P(c | a, b)$, by power iteration to an L1 residual of 1e-14."""
        pairs = np.full((self.vocabulary,) * 2, 1 / self.vocabulary**2)
        for _ in range(100_000):
            following = np.einsum("ab,abc->bc", pairs, self.table)
            following /= following.sum()
            if np.abs(following - pairs).sum() < 1e-14:
                return following
            pairs = following
        raise ValueError(f"The pair chain of {self} mixes too slowly for its entropy to be computed: use a larger mix.")

    @property
    def entropy(self) -> float:
        r"""Entropy rate $-\sum \pi(a, b) P(c | a, b) \ln P(c | a, b)$ in nats per token: the floor of the loss, given two tokens of context."""
        return float(-(self.stationary[:, :, None] * self.table * np.log(self.table)).sum())

    def floor(self, length: int) -> float:
        r"""Least expected loss in nats per token over a window of `length` targets: the first has one token of context, $H(b | a)$."""
        pairs = self.stationary
        first = float(-(pairs * np.log(pairs / pairs.sum(1, keepdims=True))).sum())
        return (first + (check_count("length", length) - 1) * self.entropy) / length

    @cached_property
    def _cumulative(self) -> tuple[np.ndarray, np.ndarray]:
        """Distribution functions of the first pair, (V²,), and of the next token, (V³,): for pair number r it lies in (r, r + 1]."""
        following = self.table.reshape(-1, self.vocabulary).cumsum(-1)
        following[:, -1] = 1  # rounding may leave it below
        return self.stationary.reshape(-1).cumsum(), (following + np.arange(len(following))[:, None]).reshape(-1)

    def sample(self, size: int, length: int, seed: int, t: int) -> Tensor:
        """Sequences (size, length) of batch t, int64, length at least 2, by inversion of the distribution functions."""
        V = self.vocabulary
        uniform = np.random.default_rng(number("Markov batch", seed, t)).random((length - 1, size))
        first, following = self._cumulative
        pairs = np.empty((length - 1, size), dtype=np.int64)
        pairs[0] = np.searchsorted(first, uniform[0], side="right") % V**2
        for row in range(1, length - 1):
            found = np.searchsorted(following, pairs[row - 1] + uniform[row], side="right")  # pair (a, b) and c: a V² + b V + c
            pairs[row] = found % V**2
        return torch.from_numpy(np.concatenate([pairs[:1] // V, pairs % V]).T.copy())

    def stream(self, length: int, batch_size: int, seed: int) -> Generated:
        """Windows (B, L) and next tokens without end, every sequence fresh; Batch.tokens = B · L."""
        check_count("length", length)

        def batch(seed: int, t: int) -> Batch:
            tokens = self.sample(batch_size, length + 1, seed, t)
            return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), batch_size * length)

        return Generated(batch, seed, batch_size, digest=digest(repr(self), self.table.tobytes(), str(length)))

r"""Planted ratings: a low-rank matrix with biases of which some entries are seen with noise, a few rows and columns often and most rarely.

    train, valid = ratings("train"), ratings("validation")
    batches = Shuffled(train.inputs, train.targets, batch_size=256, seed=0, digest=train.digest)

No model's expected squared error is below `floor` $= \sigma^2$. Popularity follows Zipf's law, as in real logs (Harper & Konstan 2015,
https://doi.org/10.1145/2827872), so that most embeddings get a gradient in few batches only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from velodrome.data.hashing import check_count, check_seed, digest, generator

SEED = 0  # of the planted matrix and of which entries are seen; another one is another task
SHARE = 0.9  # of the entries seen that are trained on


@dataclass(frozen=True)
class Ratings:
    """`inputs` int64 (N, 2): row and column; `targets` float32 (N,); `floor` the expected squared error of the planted matrix itself."""

    inputs: Tensor
    targets: Tensor
    floor: float
    digest: str
    source: str


def ratings(
    split: str | None = "train",
    *,
    rows: int = 600,
    columns: int = 400,
    rank: int = 4,
    seen: int = 40_000,
    sigma: float = 0.3,
    seed: int = SEED,
) -> Ratings:
    r"""$y_{rs} = a_r + b_s + \langle u_r, v_s\rangle + \sigma\epsilon$, $a, b \sim N(0, 0.3^2)$, $u, v \sim N(0, I/\sqrt{\mathrm{rank}})$, fixed by `seed`.

    `seen` entries are drawn with probability proportional to 1/(10 + k) for the k-th row and, independently, column; none twice. "train" is the first
    90 % of them, "validation" the rest, None all. ValueError for sizes below one, more entries than there are, or another split.
    """
    for name, value in {"rows": rows, "columns": columns, "rank": rank, "seen": seen}.items():
        check_count(name, value)
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}.')
    if seen > rows * columns // 2:
        raise ValueError(f"seen must be at most half of the {rows * columns} entries, got {seen}.")
    random = generator("ratings", check_seed(seed))
    a, b = 0.3 * torch.randn(rows, generator=random), 0.3 * torch.randn(columns, generator=random)
    u, v = (torch.randn(n, rank, generator=random) / rank**0.25 for n in (rows, columns))
    weight = torch.outer(1 / (10 + torch.arange(rows)), 1 / (10 + torch.arange(columns))).flatten()
    # Gumbel's trick: the largest of log-weights plus noise are a sample without replacement.
    keys = weight.log() - (-torch.rand(rows * columns, generator=random).clamp(1e-12).log()).log()
    entry = keys.topk(seen).indices[torch.randperm(seen, generator=random)]
    pairs = torch.stack((entry // columns, entry % columns), 1)
    clean = a[pairs[:, 0]] + b[pairs[:, 1]] + (u[pairs[:, 0]] * v[pairs[:, 1]]).sum(1)
    values = clean + sigma * torch.randn(seen, generator=random)
    cut = round(SHARE * seen)
    part = {"train": slice(0, cut), "validation": slice(cut, seen), None: slice(0, seen)}[split]
    inputs, targets = pairs[part], values[part]
    return Ratings(inputs, targets, sigma**2, digest(inputs, targets), f"planted ratings, {split or 'all'}")

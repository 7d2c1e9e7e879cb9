"""Label noise: a fixed share of the labels replaced by others, chosen once (Zhang et al. 2017, https://arxiv.org/abs/1611.03530)."""

import torch
from torch import Tensor

from velodrome.data.hashing import check_count, check_fraction, check_seed, generator


def noisy(targets: Tensor, share: float, classes: int, seed: int = 0) -> Tensor:
    """int64 class numbers (N,) with `share` of them, to the nearest example, replaced by another class drawn uniformly; fixed by `seed`.

    No label that is replaced keeps its class. 0 returns the targets. ValueError for a share outside [0, 1), fewer than two classes, or other types.
    """
    if share == 0:
        return targets
    check_fraction("share", share)
    if check_count("classes", classes) < 2 or targets.dtype != torch.int64 or targets.ndim != 1:
        raise ValueError(f"noise needs int64 class numbers (N,) of two classes or more, got {targets.dtype} {tuple(targets.shape)}.")
    random = generator("label noise", check_seed(seed))
    chosen = torch.randperm(len(targets), generator=random)[: round(share * len(targets))]
    shift = torch.randint(1, classes, (len(chosen),), generator=random)
    found = targets.clone()
    found[chosen] = (targets[chosen] + shift) % classes
    return found

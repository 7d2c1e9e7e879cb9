"""Cross-entropy of class scores, per example; label smoothing of Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567, section 7)."""

import torch.nn.functional as F
from torch import Tensor

from velodrome.losses._common import check_classes, positions


def cross_entropy(outputs: Tensor, targets: Tensor, *, ignore: int = -100, label_smoothing: float = 0.0) -> Tensor:
    r"""$-\sum_c q_c \log \mathrm{softmax}(z)_c$ in nats, with $q = (1-\varepsilon)\,\mathrm{onehot}(y) + \varepsilon/C$, mean over an example's positions.

    `outputs` are logits (B, C) or (B, L, V), `targets` int64 classes (B,) or (B, L); the result is (B,) in the dtype of the logits.
    Positions whose target is `ignore` do not count; an example without any other has loss 0 and no gradient, so it cannot turn a batch into nan.
    `label_smoothing` is the ε above, 0 by default. ValueError for shapes or types that do not fit or an ε outside [0, 1].
    """
    check_classes(outputs, targets)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing!r}.")
    flat = F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), ignore_index=ignore, reduction="none", label_smoothing=label_smoothing
    )
    total, count = positions(flat.view(targets.shape), targets, ignore)
    return total / count.clamp(min=1)

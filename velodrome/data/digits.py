"""Scikit-learn's digits: 1,797 images of 8x8 pixels in ten classes, on every machine that has scikit-learn.

They are the test set of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI, 1998, https://doi.org/10.24432/C50P49).
"""

import torch

from velodrome.data.hashing import digest, held_out
from velodrome.data.images import Images

SEED = 0  # of the split; a benchmark on another split is another benchmark
HOLDOUT = 0.2


def load(split: str | None = "train", *, holdout: float = HOLDOUT, seed: int = SEED) -> Images:
    """`inputs` float32 (N, 1, 8, 8) in [0, 1] (the file's 0..16 divided by 16), `targets` int64 (N,).

    "validation" is a stratified share `holdout` of each class chosen by `seed` (359 images by default), "train" the rest (1,438), None all.
    """
    try:
        import sklearn
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError('The digits need scikit-learn: pip install "velodrome[data]".') from None
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}.')
    found = load_digits()
    inputs = torch.from_numpy(found.images).float().div(16).unsqueeze(1)
    targets = torch.from_numpy(found.target).long()
    if split is not None:
        rows = held_out(targets.tolist(), holdout, seed) == (split == "validation")
        inputs, targets = inputs[rows], targets[rows]
    classes = tuple(str(number) for number in range(10))
    return Images(inputs, targets, classes, digest(inputs, targets), f"scikit-learn digits, {split or 'all'}", sklearn.__version__)

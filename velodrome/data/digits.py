"""Scikit-learn's digits: 1,797 images of 8x8 pixels in ten classes, on every machine that has scikit-learn.

They are the test set of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI, 1998, https://doi.org/10.24432/C50P49).
"""

import gzip
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from velodrome.data.hashing import digest, held_out
from velodrome.data.images import Images

SEED = 0  # of the split; a benchmark on another split is another benchmark
HOLDOUT = 0.2


def load(split: str | None = "train", *, holdout: float = HOLDOUT, seed: int = SEED) -> Images:
    """`inputs` float32 (N, 1, 8, 8) in [0, 1] (the file's 0..16 divided by 16), `targets` int64 (N,).

    "validation" is a stratified share `holdout` of each class chosen by `seed` (359 images by default), "train" the rest (1,438), None all.
    """
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}.')
    rows, installed = _table()
    inputs = torch.from_numpy(rows[:, :-1]).float().div(16).view(-1, 1, 8, 8)
    targets = torch.from_numpy(rows[:, -1]).long()
    if split is not None:
        chosen = held_out(targets.tolist(), holdout, seed) == (split == "validation")
        inputs, targets = inputs[chosen], targets[chosen]
    classes = tuple(str(number) for number in range(10))
    return Images(inputs, targets, classes, digest(inputs, targets), f"scikit-learn digits, {split or 'all'}", installed)


def _table() -> tuple[np.ndarray, str]:
    """The rows of scikit-learn's file, pixels and class, and its version. The file is read where it lies: importing the package costs a second."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError('The digits need scikit-learn: pip install "velodrome[data]".')
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, delimiter=","), version("scikit-learn")
    from sklearn.datasets import load_digits  # a version that keeps it elsewhere

    found = load_digits()
    return np.column_stack([found.data, found.target]), version("scikit-learn")

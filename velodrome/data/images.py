"""Labelled images in memory: parquet in the Hugging Face hub's layout, or a folder of one's own with a sub-folder per class.

train = images.load("path/to/cifar10", split="train")            # train-*.parquet: struct column {bytes, path}, integer label column
train = images.load("path/to/photos", split="train", resize=64)  # photos/cat/1.png, photos/dog/7.jpg; or photos/train/cat/1.png
batches = Shuffled(train.inputs, train.targets, 128, seed=0, transform=normalise(), digest=train.digest)
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from velodrome.data import parquet
from velodrome.data.decoding import Encoded, decoded
from velodrome.data.hashing import digest, held_out

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Images:
    """`inputs` (N, C, H, W), `targets` int64 (N,), and the classes' names where the data tells them. `digest` covers both tensors."""

    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...] | None
    digest: str
    source: str
    version: str | None = None


def load(
    path: str | Path,
    split: str | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    mode: str | None = None,
    resize: int | tuple[int, int] | None = None,
    holdout: float = 0.1,
) -> Images:
    """Decode a folder of parquet shards, one parquet file, or a tree of class folders into an `Images` with uint8 inputs.

    Columns are found by type unless `image` and `label` name them. `mode` is "L" (grey) or "RGB"; None keeps what the first image has.
    Images of different sizes are an error unless `resize` (side, or (height, width) in pixels) is given. Data without splits of its own is
    cut here: split="validation" is a fixed, stratified share `holdout` of the rows, "train" the rest, None everything. ValueError for
    anything missing, empty or damaged, with file and row.
    """
    path = Path(path).expanduser()
    size = (resize, resize) if isinstance(resize, int) else resize
    if mode not in (None, "L", "RGB"):
        raise ValueError(f'mode must be "L", "RGB" or None, got {mode!r}.')
    if size is not None and (len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size)):
        raise ValueError(f"resize must be a side in pixels or (height, width), got {resize!r}.")
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: give a folder of SPLIT-*.parquet files or one with a sub-folder per class.")
    parquet.check_split(path, split)
    own = parquet.own_splits(path)
    inputs, targets, classes = _read(path, (split or min(own)) if own else None, image, label, mode, size)
    if not own and split is not None:
        rows = held_out(targets.tolist(), holdout) == (split == "validation")
        inputs, targets = inputs[rows], targets[rows]
        if not len(targets):
            raise ValueError(f"{path} has one image per class, too few to hold some out for validation: leave split out to use them all.")
    return Images(inputs, targets, classes, digest(inputs, targets), f"images {path.name}" + (f", {split}" if split else ""))


def _read(
    path: Path, split: str | None, image: str | None, label: str | None, mode: str | None, size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Pixels, labels and class names of one split, or of everything."""
    files = parquet.shards(path, split)
    if files:
        names = _columns(files[0], image, label)
        count = sum(parquet.count(file) for file in files)
        return *decoded(_key(files, *names), _rows(files, *names), count, mode, size), _class_names(files[0], names[1])
    if path.is_file():
        raise ValueError(f"{path} is not a .parquet file: give one, or a folder.")
    tree, classes = _tree(path / split if split else path)
    encoded = ((str(file), parquet.content(file), target) for file, target in tree)
    key = _key([file for file, _ in tree], *(f"{target}" for _, target in tree))
    return *decoded(key, encoded, len(tree), mode, size), classes


def _columns(file: Path, image: str | None, label: str | None) -> tuple[str, str]:
    """Names of the image and of the label column: the given ones, or the usual ones, or the only ones whose type fits."""
    pa, schema = parquet.pyarrow(), parquet.schema(file)

    def choose(what: str, given: str | None, usual: tuple[str, ...], fits: list[str]) -> str:
        wanted = [given] if given else [name for name in usual if name in fits] or (fits if len(fits) == 1 else [])
        if wanted and wanted[0] in fits:
            return wanted[0]
        there = ", ".join(f"{column.name}: {column.type}" for column in schema)
        advice = f"write {what}={fits[0]!r}" if fits else "give data in the Hugging Face hub's layout"
        raise ValueError(f"{file} has no {what} column{f' {given!r}' if given else ''} (it has {there}): {advice}.")

    images = [
        column.name
        for column in schema
        if pa.types.is_struct(column.type) and any(f.name == "bytes" and f.type in (pa.binary(), pa.large_binary()) for f in column.type)
    ]
    labels = [column.name for column in schema if pa.types.is_integer(column.type)]
    return choose("image", image, ("image", "img"), images), choose("label", label, ("label", "labels"), labels)


def _class_names(file: Path, label: str) -> tuple[str, ...] | None:
    """Class names from the hub's own metadata in the parquet file, if it has them."""
    try:
        return tuple(map(str, json.loads(parquet.schema(file).metadata[b"huggingface"])["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _rows(files: list[Path], image: str, label: str) -> Iterator[Encoded]:
    """Encoded images of parquet files, row by row, with their labels."""
    for file in files:
        _columns(file, image, label)
        for first, (cells, labels) in parquet.pieces(file, [image, label]):
            for row, (cell, target) in enumerate(zip(cells, labels, strict=True), first):
                where = f"{file} row {row}"
                if target is None or not 0 <= target < 2**63:
                    raise ValueError(f"{where}: label must be an integer of at least 0, got {target}: mend the row or drop it.")
                if cell is None or cell["bytes"] is None:
                    raise ValueError(f"{where}: there is no encoded image in column {image!r}: mend the row or drop it.")
                yield where, cell["bytes"], target


def _tree(root: Path) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Image files of a folder per class, sorted, with class numbers in the order of the folders' names."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found: list[tuple[Path, int]] = []
    for number, name in enumerate(classes):
        files = sorted(file for file in (root / name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"{root / name} holds no image: every sub-folder is a class; fill it or take it out.")
        found += [(file, number) for file in files]
    if not found:
        raise ValueError(f"{root} holds neither SPLIT-*.parquet files nor class folders with images: give one such as photos/cat/1.png.")
    return found, tuple(classes)


def _key(files: list[Path], *options: str) -> str:
    """SHA-256 of the encoded files in order and of the options that choose what is read from them."""
    return digest(*(hashlib.sha256(parquet.content(file)).hexdigest() for file in files), *options)

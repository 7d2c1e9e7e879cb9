"""A workload of your own in one call: from tensors, a folder of parquet, images or text. A file with a function that returns it is raced as FILE.py:NAME.

Each gives a `Workload`; what is not said has a default, every other field of `Workload` may be given by name (`accuracies=…`, `summary=…`), and the
three `targets` come from `velodrome targets FILE.py:NAME`. Data is read when the function is called, stays in memory, and its digest is part of every
run's identity; each `load` gives a copy, so that a run that writes into its data cannot spoil another's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from velodrome.bench.workload import Data, Workload
from velodrome.data import images, parquet, table, text
from velodrome.data.hashing import check_count, check_fraction, digest, held_out
from velodrome.data.streams import Shuffled, Windows, batches, windows
from velodrome.data.transforms import Transform, compose, normalise
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.models.gpt import Gpt

Pair = tuple[Any, Any] | Dataset[Any]
EVALUATED = 512  # examples at once


def from_tensors(
    name: str,
    model: Callable[[], nn.Module],
    train: Pair,
    valid: Pair | None = None,
    *,
    batch_size: int = 64,
    steps: int = 500,
    holdout: float = 0.1,
    transform: Transform | None = None,
    valid_transform: Transform | None = None,
    **fields: Any,
) -> Workload:
    """A workload from (inputs, targets), tensors or arrays with the examples first, or a map-style torch `Dataset` of such pairs.

    Without `valid` a fixed share `holdout` of the rows is held out, of each class where targets are whole numbers (N,). The loss, which is also the
    metric, is cross-entropy for whole numbers and squared error for others, unless `loss` and `metric` are given: functions of (outputs, targets) with
    one value per example. Arrays in double precision become torch's default type. `transform(inputs, generator)` changes the batches that are trained
    on, `valid_transform` those of the validation. ValueError for pairs that do not fit, numbers that are not finite, or a batch larger than the data.
    """
    x, y = _pair(name, "train", train)
    if valid is None:
        mask = held_out(y.tolist() if y.ndim == 1 and not y.is_floating_point() else [0] * len(y), check_fraction("holdout", holdout))
        u, v = x[mask], y[mask]
        x, y = x[~mask], y[~mask]
    else:
        u, v = _pair(name, "valid", valid)
    if check_count("batch_size", batch_size) > len(x):
        raise ValueError(
            f"workload {name!r}: a batch of {batch_size} is more than its {len(x)} training examples: write batch_size={max(1, len(x) // 2)}."
        )
    if not len(u):
        raise ValueError(f"workload {name!r} has no example left to validate on: give valid=(inputs, targets), or more data.")
    known, told = digest(x, y), digest(u, v)

    def load() -> Data:
        stream = partial(Shuffled, x.clone(), y.clone(), batch_size, transform=transform, digest=known)
        return Data(lambda seed: stream(seed=seed), batches(u, v, EVALUATED, transform=valid_transform), known + told)

    classes = not y.is_floating_point()
    return workload(
        name,
        model,
        load,
        f"{len(x):,} examples of {_shape(x)}, {'classes' if classes else f'numbers {_shape(y)}'}",
        **{
            "loss": cross_entropy if classes else squared_error,
            **({"accuracies": {"accuracy": accuracy}} if classes and "loss" not in fields else {}),
            **fields,
        },
        batch_size=batch_size,
        steps=steps,
    )


def from_table(
    name: str,
    path: str | Path,
    target: str,
    model: Callable[[int, int], nn.Module],
    *,
    columns: Sequence[str] | None = None,
    holdout: float = 0.1,
    **fields: Any,
) -> Workload:
    """A workload from the columns of parquet files (`data.table.load`): `model(inputs, outputs)` gets the number of columns and of classes, or 1.

    Inputs, and a target of floating-point numbers, are shifted and scaled to mean 0 and variance 1 over the training rows, so that a squared error of 1 is
    that of always answering the mean. ValueError for missing columns, nulls, numbers that are not finite, or columns that are no numbers.
    """
    found = [table.load(path, split, target=target, columns=columns, holdout=holdout) for split in ("train", "validation")]
    train, valid = found
    if train.classes != valid.classes:
        raise ValueError(
            f"{path}: the classes of {target!r} to train on and to validate on are not the same: {train.classes} and {valid.classes}."
        )
    pairs = [(t.inputs, t.targets) for t in found]
    pairs = [(_standard(x, train.inputs), y if train.classes else _standard(y, train.targets)) for x, y in pairs]
    made = partial(model, len(train.columns), len(train.classes) if train.classes else 1)
    return from_tensors(name, made, *pairs, **fields)


def from_images(
    name: str,
    path: str | Path,
    model: Callable[[int], nn.Module],
    *,
    resize: int | None = None,
    transform: Transform | None = None,
    **fields: Any,
) -> Workload:
    """A workload from a folder of images, a sub-folder per class, or of parquet files (`data.images.load`): `model(classes)`, inputs (B, C, H, W).

    Channels are scaled to mean 0 and variance 1 over the training images; `transform`, such as `flip_and_crop()`, is applied to training batches before.
    """
    first, second = _splits(Path(path).expanduser())
    train = images.load(path, first, resize=resize)
    valid = images.load(path, second, resize=resize) if second else None
    pixels = train.inputs.transpose(0, 1).flatten(1).double() / 255
    scale = normalise(pixels.mean(1).tolist(), pixels.std(1).clamp(min=1e-3).tolist())
    classes = len(train.classes) if train.classes else int(train.targets.max()) + 1
    fields = {"transform": compose(transform, scale) if transform else scale, "valid_transform": scale, **fields}
    held = (valid.inputs, valid.targets) if valid else None
    return from_tensors(name, partial(model, classes), (train.inputs, train.targets), held, **fields)


def from_text(
    name: str,
    path: str | Path,
    model: Callable[[int], nn.Module] | None = None,
    *,
    tokens: str | Path = "bytes",
    length: int = 64,
    batch_size: int = 16,
    steps: int = 300,
    limit: int = 64,
    column: str = "text",
    holdout: float = 0.1,
    **fields: Any,
) -> Workload:
    """A language model's workload from a text file, a folder of .txt files, or parquet files with a column of strings (`data.text.load`).

    `model(vocabulary)` maps token numbers (B, `length`) to scores (B, `length`, vocabulary); by default a GPT with 2 layers of width 64. `tokens` are
    "bytes", "characters" or the path of a tokenizer.json. Evaluated on `limit` windows, evenly spread over the held-out text.
    """
    first, second = _splits(Path(path).expanduser())
    train = text.load(path, first, tokens=tokens, column=column, holdout=holdout)
    if second:
        valid = text.load(path, second, tokens=train.tokenizer, column=column, holdout=holdout)
    else:
        cut = int(len(train.tokens) * (1 - check_fraction("holdout", holdout)))
        train, valid = (replace(train, tokens=part, digest=digest(part)) for part in (train.tokens[:cut], train.tokens[cut:]))
    windows(valid.tokens, check_count("length", length), EVALUATED, 1)  # a text too short is said now

    def load() -> Data:
        stream = partial(Windows, train.tokens.clone(), length, batch_size, digest=train.digest)
        held = windows(valid.tokens, length, EVALUATED, limit)
        return Data(lambda seed: stream(seed=seed), held, train.digest + valid.digest)

    unit = tokens.removesuffix("s") if tokens in ("bytes", "characters") and isinstance(tokens, str) else "token"
    size = train.tokenizer.vocabulary
    made = partial(model, size) if model else partial(Gpt, size, length, 64, 2, 4)
    what = f"{len(train.tokens):,} {unit}s of {Path(path).name}, windows of {length}"
    fields = {"loss": cross_entropy, "metric_name": f"validation loss (nats per {unit})", **fields}
    return workload(name, made, load, what, batch_size=batch_size, steps=steps, **fields)


def workload(
    name: str,
    model: Callable[[], nn.Module],
    load: Callable[[], Data],
    what: str,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    **fields: Any,
) -> Workload:
    """The workload with what these constructors say where nothing else is given; the metric is the loss."""
    given = {
        "metric": loss,
        "metric_name": "validation loss" if fields.get("metric", loss) is loss else "validation metric",
        "summary": what,
        "targets": (),
        "cost": "not measured",
        "seconds": 1.0,
        **fields,
    }
    return Workload(name=name, load=load, model=model, loss=loss, **given)


def _pair(name: str, what: str, given: Pair) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one split."""
    if isinstance(given, Dataset):
        rows = [given[i] for i in range(len(given))]  # type: ignore[arg-type]
        given = tuple(torch.stack([torch.as_tensor(row[k]) for row in rows]) for k in (0, 1))  # type: ignore[assignment]
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"workload {name!r}: {what} must be (inputs, targets) or a torch Dataset, got {type(given).__name__}.")
    x, y = (_tensor(name, f"{what}'s {part}", value) for part, value in zip(("inputs", "targets"), given, strict=True))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(x):
        raise ValueError(
            f"workload {name!r}: {what} needs as many targets as inputs, one at least, got shapes {tuple(x.shape)} and {tuple(y.shape)}."
        )
    return x, y if y.is_floating_point() else y.long()


def _tensor(name: str, what: str, value: Any) -> Tensor:
    try:
        found = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"workload {name!r}: {what} must be a tensor or an array of numbers, got {type(value).__name__} ({error})."
        ) from None
    if found.dtype == torch.float64:
        found = found.to(torch.get_default_dtype())
    if found.is_floating_point() and not found.isfinite().all():
        raise ValueError(
            f"workload {name!r}: {what} have {int((~found.isfinite()).sum())} numbers that are not finite: mend or drop those rows."
        )
    return found


def _standard(values: Tensor, over: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the rows of `over`; a column that never changes becomes 0."""
    mean, std = over.double().mean(0), over.double().std(0)
    return ((values.double() - mean) / std.where(std > 0, 1.0)).float()


def _splits(path: Path) -> tuple[str, str | None]:
    """The data's own names of what is trained on and what is held out, None where that must be cut; "train" and "validation" where it has no names."""
    own = parquet.own_splits(path) if path.exists() else set()
    held = next((name for name in table.HELD_OUT if name in own), None)
    if not own or ("train" in own and held):
        return "train", held or "validation"
    if len(own) > 1:
        raise ValueError(
            f"{path} has the parts {', '.join(sorted(own))}: name what to train on train-….parquet, the rest validation-….parquet."
        )
    return min(own), None


def _shape(t: Tensor) -> str:
    return "×".join(map(str, t.shape[1:])) or "1"

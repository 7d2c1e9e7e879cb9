"""Text as one long tensor of token ids: parquet with a `text` column, a plain text file, or a folder of text files.

train = text.load("path/to/novels", split="train")                               # train-*.parquet, bytes as tokens
train = text.load("my_book.txt", split="train", tokens="characters")             # the first 90 % of the file
valid = text.load("my_book.txt", split="validation", tokens=train.tokenizer)     # the last 10 %
train = text.load("my_texts/", split="train", tokens="tokenizer.json")           # every .txt below the folder
batches = Windows(train.tokens, length=128, batch_size=16, seed=0, digest=train.digest)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from velodrome.data import parquet
from velodrome.data.hashing import check_fraction, digest
from velodrome.data.tokens import Bytes, Characters, Tokenizer, tokenizer


@dataclass(frozen=True)
class Text:
    """`tokens` (n,), the tokenizer that made them, and `bytes`, the UTF-8 length: loss in bits per byte is nats/token · n / (bytes · ln 2)."""

    tokens: Tensor
    tokenizer: Tokenizer
    bytes: int
    digest: str
    source: str
    version: str | None = None


def load(
    path: str | Path,
    split: str | None = None,
    *,
    tokens: str | Path | Tokenizer = "bytes",
    column: str = "text",
    separator: str = "\n\n",
    holdout: float = 0.1,
) -> Text:
    """Read the documents of one split, put `separator` between them, and encode.

    `tokens`: "bytes", "characters" (vocabulary of the train split, whichever split is loaded), a tokenizer, or the path of a Hugging Face
    `tokenizer.json`; with the last, `separator="<|endoftext|>"` gives that token where the vocabulary has it. A path without splits of its
    own is cut here: "train" is the first share 1 - `holdout` of the characters, "validation" the last, None everything. ValueError for
    anything missing, empty, damaged or not UTF-8, with file and row.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: give a text file, a folder of .txt files, or one of SPLIT-*.parquet files.")

    def documents(wanted: str | None) -> list[str]:
        return _documents(path, wanted, column, separator, check_fraction("holdout", holdout))

    texts = documents(split)
    coder = _tokenizer(tokens, lambda: separator.join(texts if split in (None, "train") else documents("train")))
    ids = coder.encode_all(texts, separator)
    size = sum(len(text.encode()) for text in texts) + (len(texts) - 1) * len(separator.encode())
    return Text(ids, coder, size, digest(ids, coder.digest), f"text {path.name}" + (f", {split}" if split else ""))


def _tokenizer(tokens: str | Path | Tokenizer, train: Callable[[], str]) -> Tokenizer:
    """The tokenizer that `tokens` names; `train` gives the training text to the one that needs it."""
    if isinstance(tokens, str | Path):
        if tokens == "bytes":
            return Bytes()
        if tokens == "characters":
            return Characters.of(train())
        if not str(tokens).endswith(".json"):
            raise ValueError(f'tokens must be "bytes", "characters", a tokenizer or the path of a tokenizer.json, got {str(tokens)!r}.')
        return tokenizer(tokens)
    return tokens


def _documents(path: Path, split: str | None, column: str, separator: str, holdout: float) -> list[str]:
    """The documents of one split; they hold at least one character between them."""
    parquet.check_split(path, split)
    own = parquet.own_splits(path)
    inside = own and not parquet.splits(path)
    documents = _read(path / (split or min(own)) if inside else path, split if own else None, column)
    if not own and split is not None:
        whole = separator.join(documents)
        cut = int(len(whole) * (1 - holdout))
        documents = [whole[:cut] if split == "train" else whole[cut:]]
    if not any(documents):
        raise ValueError(f"{path} holds no text{f' in its split {split!r}' if split else ''}: fill it or leave it out.")
    return documents


def _read(path: Path, split: str | None, column: str) -> list[str]:
    """Documents of parquet files (one per row), of one text file, or of the .txt files below a folder in the order of their paths."""
    files = parquet.shards(path, split)
    if files:
        return [text for file in files for text in _rows(file, column)]
    if path.is_file():
        return [_decoded(path)]
    found = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not found:
        raise ValueError(f"{path} holds neither SPLIT-*.parquet nor .txt files: put one of them there.")
    return [_decoded(file) for file in found]


def _rows(file: Path, column: str) -> list[str]:
    """The strings of one column."""
    pa, schema = parquet.pyarrow(), parquet.schema(file)
    fits = [found.name for found in schema if found.type in (pa.string(), pa.large_string())]
    if column not in fits:
        advice = f"write column={fits[0]!r}" if fits else "give data with a column of strings"
        raise ValueError(f"{file} has no column {column!r} of strings (it has {', '.join(schema.names)}): {advice}.")
    texts: list[str] = []
    for first, (values,) in parquet.pieces(file, [column]):
        for row, text in enumerate(values, first):
            if text is None:
                raise ValueError(f"{file} row {row}: column {column!r} is null: mend the row or drop it.")
            texts.append(text)
    return texts


def _decoded(file: Path) -> str:
    """Content of a UTF-8 file, line ends as they are."""
    try:
        return parquet.content(file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 at byte {error.start}: convert it, for example with iconv.") from None

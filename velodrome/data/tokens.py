"""Tokenizers: text to a 1-D tensor of ids and back. Bytes and characters are built in; a Hugging Face `tokenizers` JSON file can be given.

Bytes().encode("héllo")                 # uint8, 6 ids: every text is encodable, nothing is ever unknown
Characters.of(train_text)               # one id per character of the training text, and one for every other
tokenizer("path/to/tokenizer.json")     # needs pip install "velodrome[data]"
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from velodrome.data.hashing import digest

UNKNOWN = "\ufffd"


@runtime_checkable
class Tokenizer(Protocol):
    """What turns text into ids below `vocabulary` and back."""

    @property
    def vocabulary(self) -> int:
        """Number of different ids."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the vocabulary."""
        ...

    def encode(self, text: str) -> Tensor:
        """Ids of `text`, a 1-D integer tensor."""
        ...

    def encode_all(self, documents: Sequence[str], separator: str) -> Tensor:
        """Ids of the documents with `separator` between them."""
        ...

    def decode(self, ids: Tensor) -> str:
        """Text of the ids."""
        ...


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes as ids: a vocabulary of 256, uint8."""

    @property
    def vocabulary(self) -> int:
        """Number of different ids."""
        return 256

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the vocabulary."""
        return digest("bytes")

    def encode(self, text: str | bytes) -> Tensor:
        """Ids of `text`, uint8 (n,)."""
        raw = text.encode() if isinstance(text, str) else text
        return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())

    def encode_all(self, documents: Sequence[str], separator: str) -> Tensor:
        """Ids of the documents with `separator` between them."""
        return self.encode(separator.join(documents))

    def decode(self, ids: Tensor) -> str:
        """Text of the ids; bytes that are not UTF-8, as in a cut character, become U+FFFD."""
        return ids.to(torch.uint8).cpu().numpy().tobytes().decode(errors="replace")


@dataclass(frozen=True)
class Characters:
    """One id per character (Unicode code point) of `alphabet`, in its order; the last id, `len(alphabet)`, stands for every other character.

    Build it on training text only, `Characters.of(train)`: what validation text has beyond that is unknown, decodes to U+FFFD and costs loss.
    Ids are uint8 up to a vocabulary of 256, int32 above.
    """

    alphabet: str

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) != len(self.alphabet) or not self.alphabet or UNKNOWN in self.alphabet:
            raise ValueError("alphabet must be different characters, at least one and without U+FFFD: write Characters.of(text).")

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The alphabet of `text`, sorted by code point."""
        return cls("".join(sorted(set(text) - {UNKNOWN})))

    @property
    def vocabulary(self) -> int:
        """Number of different ids, the unknown one included."""
        return len(self.alphabet) + 1

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the vocabulary."""
        return digest("characters", self.alphabet)

    @cached_property
    def _points(self) -> np.ndarray:
        return np.array([ord(c) for c in self.alphabet + UNKNOWN], dtype=np.uint32)

    @cached_property
    def _ids(self) -> np.ndarray:
        ids = np.full(0x110000, len(self.alphabet), dtype=np.uint8 if self.vocabulary <= 256 else np.int32)
        ids[self._points] = np.arange(self.vocabulary)
        return ids

    def encode(self, text: str) -> Tensor:
        """Ids of `text`, (n,) with n = len(text)."""
        return torch.from_numpy(self._ids[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)])

    def encode_all(self, documents: Sequence[str], separator: str) -> Tensor:
        """Ids of the documents with `separator` between them."""
        return self.encode(separator.join(documents))

    def decode(self, ids: Tensor) -> str:
        """Text of the ids, U+FFFD for unknown."""
        return self._points[ids.cpu().numpy().astype(np.int64)].tobytes().decode("utf-32-le")


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of the Hugging Face `tokenizers` library; no special token is added that the text does not spell. Ids are int32."""

    path: Path
    digest: str
    _inner: Any = field(repr=False, compare=False)

    @property
    def vocabulary(self) -> int:
        """Number of different ids, added tokens included."""
        return max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> Tensor:
        """Ids of `text`, int32 (n,)."""
        return torch.tensor(self._inner.encode(text, add_special_tokens=False).ids, dtype=torch.int32)

    def encode_all(self, documents: Sequence[str], separator: str) -> Tensor:
        """Ids of the documents, each encoded by itself (in parallel), each but the last followed by `separator`."""
        pieces = [document + separator for document in documents[:-1]] + list(documents[-1:])
        encoded = self._inner.encode_batch(pieces, add_special_tokens=False)
        return torch.from_numpy(np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in encoded]))

    def decode(self, ids: Tensor) -> str:
        """Text of the ids, special tokens included."""
        return self._inner.decode(ids.tolist(), skip_special_tokens=False)


def tokenizer(path: str | Path) -> HubTokenizer:
    """The tokenizer in a Hugging Face `tokenizer.json` file; a missing or damaged file is a ValueError."""
    try:
        from tokenizers import Tokenizer as Inner
    except ImportError:
        raise ValueError('A tokenizer file needs the package tokenizers: pip install "velodrome[data]".') from None
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no tokenizer file {file}: give the path of a tokenizer.json.")
    raw = file.read_bytes()
    try:
        inner = Inner.from_buffer(raw)
    except Exception as error:  # the library raises plain Exception for a file it cannot parse
        raise ValueError(f"{file} is not a Hugging Face tokenizer.json ({error}).") from None
    return HubTokenizer(file, digest("tokenizers", raw), inner)

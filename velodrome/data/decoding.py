"""Encoded images (PNG, JPEG, …) to one uint8 tensor, once.

Where that takes long (50,000 JPEGs of CIFAR-10: 10 s on one core) the tensor is kept in the user's cache folder under the SHA-256 of the
files, and checked against its own digest when it is read again.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from velodrome.data.folder import cache
from velodrome.data.hashing import digest

SLOW = 2.0  # seconds of decoding from which a copy in the cache folder is worth its disk space
GREY, COLOUR = {"1", "L", "LA"}, {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"}

Encoded = tuple[str, bytes, int]  # where it comes from, for errors; the encoded image; its label


def pillow() -> Any:
    """The module PIL with PIL.Image loaded, or a ValueError that says how to install it."""
    try:
        import PIL
        import PIL.Image
    except ImportError:
        raise ValueError('Decoding images needs Pillow: pip install "velodrome[data]".') from None
    return PIL


def decode(encoded: Iterator[Encoded], count: int, mode: str | None, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """All `count` images in one uint8 tensor (N, C, H, W), and the labels, int64 (N,)."""
    assert count > 0, "whoever lists the images refuses an empty list"
    Image = pillow().Image
    targets = np.empty(count, np.int64)
    for row, (where, raw, target) in enumerate(encoded):
        picture = _open(Image, where, raw)
        native = "L" if picture.mode in GREY else "RGB"
        if row == 0:
            wanted = mode or native
            height, width = size or (picture.height, picture.width)
            pixels = np.empty((count, height, width, *((3,) if wanted == "RGB" else ())), np.uint8)
        if mode is None and native != wanted:
            raise ValueError(f'{where}: a {native} image, where the first is {wanted}: write mode="RGB" or mode="L".')
        if picture.mode != wanted:
            picture = picture.convert(wanted)
        if (picture.height, picture.width) != (height, width):
            if size is None:
                got = f"{picture.height}x{picture.width}"
                raise ValueError(f"{where}: the image is {got} pixels, the first one {height}x{width}: write resize=({height}, {width}).")
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels[row], targets[row] = picture, target
    channels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(channels)), torch.from_numpy(targets)


def _open(Image: Any, where: str, raw: bytes) -> Any:
    """The decoded picture, or a ValueError that says where the damaged one lies."""
    try:
        picture = Image.open(io.BytesIO(raw))
        picture.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error … for a damaged image
        reason = str(error).split(" <_io")[0]  # Pillow prints the address of the buffer
        raise ValueError(f"{where}: the image is damaged ({reason}): mend it or drop it.") from None
    if picture.mode not in GREY | COLOUR:
        raise ValueError(f"{where}: pixels of kind {picture.mode!r} have more than 8 bits per channel: convert the images to 8 bits.")
    return picture


def decoded(key: str, encoded: Iterator[Encoded], count: int, mode: str | None, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """`decode`, or its kept result under `key`. A cache that is damaged or cannot be written only costs time."""
    version = pillow().__version__  # another version may decode a JPEG to other pixels
    file = cache() / "decoded" / f"{digest(key, version, str(mode), str(size))}.safetensors"
    with suppress(OSError, KeyError, safetensors.SafetensorError), safetensors.safe_open(str(file), framework="pt") as opened:
        inputs, targets = opened.get_tensor("inputs"), opened.get_tensor("targets")
        if (opened.metadata() or {}).get("digest") == digest(inputs, targets):
            return inputs, targets
    start = time.perf_counter()
    inputs, targets = decode(encoded, count, mode, size)
    if time.perf_counter() - start > SLOW:
        with suppress(OSError):
            write(file, safetensors.torch.save({"inputs": inputs, "targets": targets}, {"digest": digest(inputs, targets)}))
    return inputs, targets


def write(file: Path, content: bytes) -> None:
    """Write beside and rename, so that no reader ever sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise

"""Checkpoints: the whole state of a run in a folder that is either complete and verified, or not used.

    checkpoints/step-N/tensors.safetensors    every tensor and array (https://github.com/huggingface/safetensors)
                       state.json             everything else (records/tree.py)
                       manifest.json          step, recipe, size and SHA-256 of both; sealed by its own CRC

Written beside under a temporary name, every file and the folder fsynced, renamed, the parent fsynced; only then is an older one removed.
Nothing is unpickled, no name in a file is followed, and a link is refused: loading a checkpoint of unknown origin executes nothing.
"""

import errno
import hashlib
import json
import os
import re
import stat
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from velodrome.records.disk import discard, explained, free_bytes, fsync_file, fsync_folder, remove, sweep, temporary, write_new
from velodrome.records.encoding import compact, seal, unseal
from velodrome.records.tree import NUMPY, decode, encode

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
KEPT = 2
_NAME = re.compile(r"step-(0|[1-9]\d*)(?:\.(\d+))?")  # step-N.1 replaces step-N: durable first, then renamed to it
_STARTED = time.time_ns()  # with the pid, tells checkpoints of this process, which need not be read again, from older ones
_COMPLEX = {torch.complex64, torch.complex128, torch.complex32}
_DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
}


class Damaged(Exception):
    """Why a checkpoint is not used; the message names the file."""


def save(run_folder: Path | str, step: int, tree: Any) -> Path:
    """Make the state at `step` durable and return its folder; the newest intact older one is kept beside it, all others are removed.

    Later ones, of a future that this run has left by resuming earlier, are removed too. The rows written so far are made durable first, so
    that a checkpoint never knows more rows than the log holds. Needs free memory for about two copies of the tensors.

    Args:
        run_folder: the run; checkpoints go to its folder `checkpoints`.
        step: number of the step, >= 0; a checkpoint that exists for it is replaced.
        tree: nested dict, list and tuple of tensors, NumPy arrays and scalars, numbers, strings, bytes, bool and None. Tensors come back on
            the CPU, without gradient history; those that share memory come back apart.

    Raises:
        ValueError: something in `tree` cannot be stored exactly; the message names its path.
        DiskError: the disk is full, read-only or broken; earlier checkpoints are intact.
    """
    if type(step) is not int or step < 0:
        raise ValueError(f"step must be a whole number >= 0, got {step!r}: write step.t.")
    folder = Path(run_folder)
    home = folder / "checkpoints"
    files = _files(folder, step, tree)
    needed = sum(map(len, files.values()))
    with explained("the checkpoint", home / f"step-{step}", needed, "earlier checkpoints are intact."):
        home.mkdir(parents=True, exist_ok=True)
        sweep(home)
        free = free_bytes(home)
        if free is not None and free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if (folder / "rows.jsonl").exists():
            fsync_file(folder / "rows.jsonl")
        _publish(home, step, files)
        _retire(home, step)
    return home / f"step-{step}"


def latest(run_folder: Path | str, report: Callable[[str], Any] = warnings.warn) -> tuple[int, Any] | None:
    """(step, tree) of the newest checkpoint that is exactly as it was written, or None; `report` is told of each that is passed over."""
    for path in _checkpoints(Path(run_folder) / "checkpoints"):
        try:
            return _step(path), _tree(_verified(path))
        except Damaged as damage:
            report(f"{path} is passed over: {damage}")
    return None


def load(path: Path | str) -> tuple[int, Any]:
    """(step, tree) of one checkpoint's folder, `…/checkpoints/step-N`; ValueError where it is none, or not exactly as it was written."""
    path = Path(path)
    if not _NAME.fullmatch(path.name):
        raise ValueError(f"{path} is not a checkpoint: give a folder such as runs/NAME/checkpoints/step-400.")
    try:
        return _step(path), _tree(_verified(path))
    except Damaged as damage:
        raise ValueError(f"{path} cannot be read: {damage}") from None


def _files(folder: Path, step: int, tree: Any) -> dict[str, bytes]:
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def keep(leaf: Any, path: str) -> tuple[str, str] | None:
        packed = _packed(leaf)
        if packed is None:
            return None
        kind, tensor = packed
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()  # safetensors refuses overlap
        storages.add(tensor.untyped_storage().data_ptr())
        name = path.lstrip("/") or "root"
        while name in tensors or name == "__metadata__":  # {1: …} and {"1": …} have one path
            name += "'"
        tensors[name] = tensor
        return kind, name

    state = compact(encode(tree, keep)).encode("ascii")
    files = {TENSORS: safetensors.torch.save(tensors), STATE: state}
    manifest = {
        "step": step,
        "recipe": _recipe(folder),
        "writer": _writer(),
        "files": {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()},
    }
    return {**files, MANIFEST: seal(manifest)}


def _packed(leaf: Any) -> tuple[str, Tensor] | None:
    """The leaf as (kind, contiguous CPU tensor of a type that safetensors has), or None."""
    if type(leaf) is np.ndarray and leaf.dtype.name in NUMPY:
        tensor, kind = torch.from_numpy(np.array(leaf, leaf.dtype.newbyteorder("="), order="C")), "array"
    elif type(leaf) in (Tensor, torch.nn.Parameter) and leaf.layout is torch.strided and leaf.device.type != "meta":
        tensor, kind = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous(), "tensor"
    else:
        return None
    if tensor.dtype in _COMPLEX:
        tensor, kind = torch.view_as_real(tensor), f"complex-{kind}"
    return (kind, tensor) if tensor.dtype in _DTYPES else None


def _publish(home: Path, step: int, files: dict[str, bytes]) -> None:
    """Write the checkpoint beside, rename it into place, and let it replace one of the same step."""
    final = home / f"step-{step}"
    rivals = [path for path in _checkpoints(home) if _step(path) == step]
    path = home / f"step-{step}.{_attempt(rivals[0]) + 1}" if rivals else final
    beside = temporary(path)
    discard(beside)
    try:
        beside.mkdir()
        for name, data in files.items():
            write_new(beside / name, data)
        fsync_folder(beside)
        os.rename(beside, path)
    except BaseException:
        discard(beside)
        raise
    fsync_folder(home)
    if rivals:
        for rival in rivals:
            remove(rival)
        os.rename(path, final)
        fsync_folder(home)


def _retire(home: Path, step: int) -> None:
    """Remove what is neither `step` nor one of the newest intact before it."""
    kept = 1
    for path in _checkpoints(home):
        if _step(path) == step:
            continue
        if _step(path) < step and kept < KEPT and _intact(path):
            kept += 1
        else:
            remove(path)


def _intact(path: Path) -> bool:
    try:
        return _manifest(path)["writer"] == _writer() or bool(_verified(path))
    except Damaged:
        return False


def _verified(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each of the size and SHA-256 that the manifest says, or Damaged."""
    files = {}
    for name, (size, digest) in _manifest(path)["files"].items():
        data = _read(path / name, size)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise Damaged(f"{name} is not what was written: its SHA-256 is {found[:16]}…, not {digest[:16]}….")
        files[name] = data
    return files


def _manifest(path: Path) -> dict[str, Any]:
    if path.is_symlink() or not path.is_dir():
        raise Damaged("it is not a folder of its own.")
    body = unseal(_read(path / MANIFEST).removesuffix(b"\n"))
    if body is None:
        raise Damaged(f"{MANIFEST} is not what was written: its CRC-32 does not match.")
    try:
        if set(body["files"]) != {TENSORS, STATE} or not all(type(n) is int and type(h) is str for n, h in body["files"].values()):
            raise Damaged(f"{MANIFEST} names other files than {TENSORS} and {STATE}.")
        if body["step"] != _step(path):
            raise Damaged(f"{MANIFEST} belongs to step {body['step']!r}.")
        recipe = _recipe(path.parents[1])
        if body["recipe"] is not None and recipe is not None and body["recipe"] != recipe:
            raise Damaged(f"{MANIFEST} belongs to a run with another recipe.")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is not a manifest.") from error
    return body


def _read(path: Path, size: int | None = None) -> bytes:
    """The bytes of a plain file (never through a link); its size is compared before anything is read."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"{path.name} is not a plain file.")
            if size is not None and status.st_size != size:
                raise Damaged(f"{path.name} ends at byte {status.st_size:,}, not {size:,}.")
            return file.read()
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}.") from error


def _tree(files: dict[str, bytes]) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def fetch(kind: str, name: Any) -> Any:
        tensor = tensors[name]
        if kind.startswith("complex-"):
            tensor = torch.view_as_complex(tensor)
        if kind.endswith("array"):
            return tensor.numpy()
        if not kind.endswith("tensor"):
            raise ValueError(f"{kind} is unknown")
        return tensor

    # Hashes hold against a bad disk; a hostile author makes his own, so whatever he wrote may only ever fail to be read.
    try:
        tensors = safetensors.torch.load(files[TENSORS])
        return decode(json.loads(files[STATE], parse_constant=refuse), fetch)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError, safetensors.SafetensorError) as error:
        raise Damaged(f"{TENSORS} or {STATE} was not written by this program: {error}.") from error


def _checkpoints(home: Path) -> list[Path]:
    """Everything named like a checkpoint, newest first."""
    paths = [path for path in home.iterdir() if _NAME.fullmatch(path.name)] if home.is_dir() else []
    return sorted(paths, key=lambda path: (_step(path), _attempt(path)), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-").partition(".")[0])


def _attempt(path: Path) -> int:
    return int(path.name.partition(".")[2] or 0)


def _recipe(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / "recipe.json").read_bytes()).hexdigest()
    except OSError:
        return None


def _writer() -> str:
    return f"{os.getpid()}.{_STARTED}"

"""Checkpoints: exact, durable, and never used when one bit of them has changed."""

import errno
import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from velodrome.records.checkpoint import MANIFEST, STATE, TENSORS, latest, save
from velodrome.records.disk import DiskError
from velodrome.records.encoding import seal, unseal
from velodrome.records.run import Run


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return type(b) is torch.Tensor and a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or a != a)


def bits(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, generator=generator)
    return {"model": {"weight": weight, "bias": torch.randn(4, generator=generator)}, "t": seed, "rng": generator.get_state()}


def quiet(_: str) -> None: ...


def test_every_kind_of_tensor_and_array_comes_back_bit_by_bit(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    floats = torch.tensor([0.1, -0.0, math.inf, math.nan])
    tree = {
        "dtypes": [floats.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn)],
        "ints": [torch.tensor([1, 0, 3]).to(d) for d in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)],
        "unsigned": [torch.tensor([1, 2], dtype=d) for d in (torch.uint16, torch.uint32, torch.uint64)],
        "complex": (torch.tensor([1 + 2j, -1j]), torch.tensor(1 - 1j, dtype=torch.complex128), torch.tensor([1 + 2j]).conj()),
        "shapes": [torch.tensor(7), torch.empty(0), torch.empty(3, 0, dtype=torch.int64), torch.ones(1).expand(5), base.T, base[::2, 1:3]],
        "aliases": [base, base, base[1:], base.view(24)],
        "parameter": torch.nn.Parameter(torch.ones(2)).detach(),
        1: {"1": torch.tensor(1), 1: torch.tensor(2)},
        "1": torch.tensor(3),
        "__metadata__": torch.tensor(4),
        "a/b": torch.tensor(5),
        "a": {"b": torch.tensor(6)},
        "numpy": [
            np.arange(6.0).reshape(2, 3).T,
            np.array(3, np.uint16),
            np.array([], np.float32),
            np.array([1j]),
            np.array([True]),
            np.arange(5)[::-1],
        ],
        "generators": (
            random.Random(1).getstate(),
            np.random.RandomState(2).get_state(legacy=True),
            torch.Generator().manual_seed(3).get_state(),
        ),
    }
    save(tmp_path, 12, tree)
    loaded = latest(tmp_path)
    assert loaded is not None
    assert loaded[0] == 12
    assert equal(tree, loaded[1])
    again = random.Random()
    again.setstate(loaded[1]["generators"][0])
    assert again.random() == random.Random(1).random()
    save(tmp_path / "b", 0, torch.ones(2))
    assert equal(latest(tmp_path / "b"), (0, torch.ones(2)))


def test_loaded_tensors_are_apart_and_can_be_trained(tmp_path):
    weight = torch.zeros(4)
    save(tmp_path, 1, {"a": weight, "b": weight, "c": weight[2:]})
    loaded = latest(tmp_path)
    assert loaded is not None
    loaded[1]["a"].add_(1)
    assert [loaded[1][name].sum().item() for name in "abc"] == [4, 0, 0]


@pytest.mark.parametrize(
    "leaf",
    [
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        np.array(["a"]),
        np.array([None]),
        torch.nn.Linear(1, 1),
        np.array(["2020"], "datetime64"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path, leaf):
    with pytest.raises(ValueError, match="at /optimizer/3/m, which cannot be stored"):
        save(tmp_path, 1, {"optimizer": {3: {"m": leaf}}})
    assert os.listdir(tmp_path) == []


def test_the_two_newest_intact_ones_are_kept_and_a_left_future_is_removed(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, state(step))
    home = tmp_path / "checkpoints"
    assert sorted(os.listdir(home)) == ["step-30", "step-40"]
    save(tmp_path, 35, state(35))
    assert sorted(os.listdir(home)) == ["step-30", "step-35"]
    assert equal(latest(tmp_path), (35, state(35)))


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, state(1))
    save(tmp_path, 2, state(2))
    save(tmp_path, 2, state(7))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-1", "step-2"]
    assert equal(latest(tmp_path), (2, state(7)))


def test_a_damaged_one_of_an_earlier_process_does_not_count_as_the_one_to_fall_back_to(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], check=True)
    flip(tmp_path / "checkpoints" / "step-20" / TENSORS, 3000)
    save(tmp_path, 30, state(30))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-10", "step-30"]


WRITE = "import sys, torch; from velodrome.records.checkpoint import save; [save(sys.argv[1], n, {'w': torch.ones(500)}) for n in (10, 20)]"


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def corrupt(rng: random.Random, folder: Path, other: Path) -> None:
    """One random corruption of a checkpoint that a disk, a copy or a stranger can make."""
    path = folder / rng.choice([TENSORS, STATE, MANIFEST])
    data = path.read_bytes()
    kind = rng.randrange(9)
    if kind <= 2:
        flip(path, rng.randrange(8 * len(data)))
    elif kind == 3:
        os.truncate(path, rng.randrange(len(data)))
    elif kind == 4:
        start = rng.randrange(len(data))
        damaged = data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]
        path.write_bytes(damaged if damaged != data else b"")
    elif kind == 5:
        path.unlink()
    elif kind == 6:
        shutil.copy(other / path.name, path)
    elif kind == 7:
        path.write_bytes(rng.randbytes(len(data)))
    else:
        path.write_bytes(data + b"\n")


def test_four_hundred_corruptions_are_all_detected_and_the_older_one_is_used(tmp_path):
    rng = random.Random(0)
    for step in (1, 2):
        save(tmp_path, step, state(step))
    save(tmp_path / "other", 2, state(9))
    newest, sound = tmp_path / "checkpoints" / "step-2", tmp_path / "sound"
    shutil.copytree(newest, sound)
    for _ in range(400):
        corrupt(rng, newest, tmp_path / "other" / "checkpoints" / "step-2")
        messages: list[str] = []
        found = latest(tmp_path, messages.append)
        assert len(messages) == 1
        assert str(newest) in messages[0]
        assert any(name in messages[0] for name in (TENSORS, STATE, MANIFEST))
        assert equal(found, (1, state(1)))
        shutil.rmtree(newest)
        shutil.copytree(sound, newest)
    assert equal(latest(tmp_path), (2, state(2)))


def test_whole_folders_exchanged_between_steps_or_runs_are_not_used(tmp_path):
    for name in ("a", "b"):
        with Run.open(tmp_path / name, {"name": name}):
            save(tmp_path / name, 1, state(1))
            save(tmp_path / name, 2, state(2))
    home = tmp_path / "a" / "checkpoints"
    shutil.copytree(home / "step-1", home / "step-3")
    shutil.copytree(tmp_path / "b" / "checkpoints" / "step-2", home / "step-4")
    shutil.copytree(home / "step-2", home / "step-5")
    (home / "step-6").write_text("a stranger")
    (home / "step-7").mkdir()
    (home / "notes").mkdir()
    messages: list[str] = []
    assert equal(latest(tmp_path / "a", messages.append), (2, state(2)))
    assert [message.split("passed over: ")[1] for message in messages] == [
        "manifest.json cannot be read: No such file or directory.",
        "it is not a folder of its own.",
        "manifest.json belongs to step 2.",
        "manifest.json belongs to step 2.",
        "manifest.json belongs to step 1.",
    ]
    (home / "step-4" / MANIFEST).write_bytes((tmp_path / "b" / "checkpoints" / "step-2" / MANIFEST).read_bytes())
    (home / "step-4").rename(home / "step-2.1")
    latest(tmp_path / "a", messages.append)
    assert messages[-1].endswith("manifest.json belongs to a run with another recipe.")
    for name in ("step-3", "step-4", "step-5", "step-7"):
        shutil.rmtree(home / name, ignore_errors=True)
    shutil.rmtree(home / "step-2.1")
    with pytest.warns(UserWarning, match="step-6 is passed over"):
        latest(tmp_path / "a")


def test_links_foreign_names_and_hostile_contents_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    home = save(tmp_path, 1, state(1)).parent

    def forge(files: dict[str, Any], **contents: bytes) -> None:
        shutil.rmtree(home / "step-2", ignore_errors=True)
        (home / "step-2").mkdir()
        for name, data in contents.items():
            (home / "step-2" / {"tensors": TENSORS, "state": STATE}[name]).write_bytes(data)
        (home / "step-2" / MANIFEST).write_bytes(seal({"step": 2, "recipe": None, "writer": "me", "files": files}))

    def entry(data: bytes) -> list[Any]:
        import hashlib

        return [len(data), hashlib.sha256(data).hexdigest()]

    tensors = (home / "step-1" / TENSORS).read_bytes()
    states = [
        *(b"[" * 100_000, b'{"$tensor":"nowhere"}', b'{"$exec":"os.system"}', b'{"$tensor":["a"]}', b"[NaN]", b'{"$tuple":5}', b""),
        *(b'{"$scalar":["object","00"]}', b'{"$dict":[[[1],2]]}', b"\xff", b'{"$complex-tensor":"t"}', b'{"$array":"../../secret"}'),
    ]
    for text in states:
        forge({TENSORS: entry(tensors), STATE: entry(text)}, tensors=tensors, state=text)
        assert equal(latest(tmp_path, quiet), (1, state(1))), text
    for header in (b"", b"\xff" * 8, (2**60).to_bytes(8, "little") + b"{}", b"\x80\x04cos\nsystem\n."):
        forge({TENSORS: entry(header), STATE: entry(b"{}")}, tensors=header, state=b"{}")
        assert equal(latest(tmp_path, quiet), (1, state(1)))
    for names in ({"../../secret": entry(secret.read_bytes())}, {TENSORS: [1], STATE: [2]}, {TENSORS: 1}, {}):
        forge(names)
        assert equal(latest(tmp_path, quiet), (1, state(1)))
    forge({TENSORS: entry(tensors), STATE: entry(secret.read_bytes())}, tensors=tensors)
    (home / "step-2" / STATE).symlink_to(secret)
    messages: list[str] = []
    assert equal(latest(tmp_path, messages.append), (1, state(1)))
    assert "state.json cannot be read" in messages[0]
    shutil.rmtree(home / "step-2")
    (home / "step-2").symlink_to(home / "step-1")
    assert equal(latest(tmp_path, quiet), (1, state(1)))


@pytest.mark.parametrize("name", ["open", "write", "fsync", "mkdir", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_call_leaves_the_earlier_checkpoints_and_no_orphan(tmp_path, monkeypatch, name, code):
    save(tmp_path, 1, state(1))
    real, failures = getattr(os, name), 0
    for failing in range(20):
        calls = 0

        def broken(*args: Any, failing: int = failing, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 == failing:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            refusal = refused_save(tmp_path, 2 + failing)
        if refusal is not None:
            failures += 1
            assert refusal.errno == code
            assert "bytes needed" in str(refusal)
            assert "earlier checkpoints are intact" in str(refusal)
        found = latest(tmp_path)
        assert found is not None
        assert equal(found[1], state(found[0]))
        orphans = [path.name for path in (tmp_path / "checkpoints").glob(".tmp-*")]
        assert not [orphan for orphan in orphans if "-gone-" not in orphan]  # a removal that failed is repeated by the next save
        if calls <= failing:
            break
    assert failures >= 1
    assert calls <= failing
    save(tmp_path, 99, state(99))
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def refused_save(folder: Path, step: int) -> DiskError | None:
    try:
        save(folder, step, state(step))
    except DiskError as error:
        return error
    return None


LIMITED = """
import resource, signal, sys, torch
from velodrome.records.checkpoint import latest, save
from velodrome.records.disk import DiskError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save(sys.argv[1], 1, {"w": torch.ones(1000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(sys.argv[1], 2, {"w": torch.ones(100_000)})
except DiskError as error:
    print(error)
print(latest(sys.argv[1])[0])
"""


def test_a_real_limit_of_the_kernel_in_the_middle_of_a_file_is_survived(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    message, step = done.stdout.splitlines()
    assert "File too large" in message
    assert step == "1"
    assert os.listdir(tmp_path / "checkpoints") == ["step-1"]


def test_a_checkpoint_is_refused_before_writing_when_too_few_bytes_are_free(tmp_path, monkeypatch):
    save(tmp_path, 1, state(1))
    monkeypatch.setattr("velodrome.records.checkpoint.free_bytes", lambda _: 100)
    monkeypatch.setattr("velodrome.records.checkpoint.write_new", lambda *_: pytest.fail("wrote"))
    with pytest.raises(DiskError, match="No space left"):
        save(tmp_path, 2, state(2))
    assert equal(latest(tmp_path), (1, state(1)))


def test_temporaries_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    home = save(tmp_path, 1, state(1)).parent
    for pid in (dead.pid, os.getppid()):
        (home / f".tmp-{pid}-step-9").mkdir()
        (home / f".tmp-{pid}-step-9" / TENSORS).write_bytes(b"half")
    save(tmp_path, 2, state(2))
    assert sorted(os.listdir(home)) == [f".tmp-{os.getppid()}-step-9", "step-1", "step-2"]
    Run.open(tmp_path, {}).close()
    assert sorted(os.listdir(home)) == ["step-1", "step-2"]


def test_the_files_are_those_that_the_documentation_promises(tmp_path):
    path = save(tmp_path, 3, {"w": torch.ones(2), "t": 3})
    assert sorted(os.listdir(path)) == [MANIFEST, STATE, TENSORS]
    manifest = unseal((path / MANIFEST).read_bytes().rstrip(b"\n"))
    assert manifest is not None
    assert manifest["files"][STATE][0] == (path / STATE).stat().st_size
    assert json.loads((path / STATE).read_text()) == {"w": {"$tensor": "w"}, "t": 3}
    assert latest(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="whole number"):
        save(tmp_path, -1, {})

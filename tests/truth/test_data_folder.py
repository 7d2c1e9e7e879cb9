"""Where data is looked for, what a missing data set's error says, and the digests everything is named by."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import velodrome
from velodrome.data import folder
from velodrome.data.hashing import digest, held_out, number


def test_the_environment_variable_names_the_only_place(tmp_path, monkeypatch):
    monkeypatch.setenv("VELODROME_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    assert folder.folder() == tmp_path
    assert folder.places() == [tmp_path]
    assert folder.find("mnist") == tmp_path / "mnist"


def test_a_named_folder_that_is_missing_is_not_replaced_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("VELODROME_DATA", str(tmp_path / "typo"))
    assert folder.folder() is None
    with pytest.raises(ValueError, match="typo"):
        folder.find("mnist")


def test_without_it_the_shared_folder_comes_before_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VELODROME_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkout = tmp_path / "checkout" / "velodrome" / "data"
    monkeypatch.setattr(folder, "__file__", str(checkout / "folder.py"))
    shared, cached = tmp_path / "shared" / "data", tmp_path / "cache" / "velodrome" / "data"
    assert folder.places() == [shared, cached]
    assert folder.folder() is None
    (cached / "mnist").mkdir(parents=True)
    assert folder.folder() == cached
    (shared / "novels").mkdir(parents=True)
    assert folder.folder() == shared
    assert folder.find("novels") == shared / "novels"
    assert folder.find("mnist") == cached / "mnist"


def test_a_missing_data_set_says_where_it_was_looked_for_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("VELODROME_DATA", str(tmp_path))
    (tmp_path / "novels").mkdir()
    with pytest.raises(ValueError, match="VELODROME_DATA") as raised:
        folder.find("mnist")
    for part in (str(tmp_path / "mnist"), "found there: novels", "mnist/SPLIT-00000-of-00001.parquet"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", ["", "/etc", "../secret"])
def test_a_name_outside_the_data_folder_is_refused(name):
    with pytest.raises(ValueError, match="inside the data folder"):
        folder.find(name)


def test_the_data_folder_is_found_without_importing_torch():
    code = "import sys; from velodrome.data.folder import folder; folder(); sys.exit('torch' in sys.modules)"
    root = Path(velodrome.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_digest_is_the_sha256_of_type_shape_and_content():
    x = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    raw = b"tensor torch.int32 (2, 2);" + x.numpy().tobytes() + b"bytes 2;ab"
    assert digest(x, "ab") == hashlib.sha256(raw).hexdigest()
    others = [digest(x.flatten(), "ab"), digest(x.long(), "ab"), digest(x.T, "ab"), digest(x, "a", "b"), digest("ab", x)]
    assert len({digest(x, "ab"), *others}) == 6
    assert digest(x.T) == digest(x.T.contiguous())
    assert digest(torch.empty(0), torch.tensor(3.0)) != digest(torch.tensor(3.0))


def test_numbers_of_different_keys_are_uniform_and_never_collide():
    drawn = torch.tensor([number("key", i) for i in range(4000)], dtype=torch.float64) / 2**63
    assert len(set(drawn.tolist())) == 4000
    assert abs(drawn.mean().item() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert number("a", 1) != number("a", "1")


def test_a_held_out_share_is_stratified_fixed_and_seeded():
    labels = [0] * 50 + [1] * 20 + [2] * 2 + [3]
    mask = held_out(labels, 0.1)
    counts = [sum(bool(m) for m, label in zip(mask, labels, strict=True) if label == wanted) for wanted in range(4)]
    assert counts == [5, 2, 1, 0]
    assert torch.equal(mask, held_out(labels, 0.1))
    assert not torch.equal(mask, held_out(labels, 0.1, seed=1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        held_out(labels, 1.0)

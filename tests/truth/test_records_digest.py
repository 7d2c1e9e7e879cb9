"""Digests change with what they stand for and with nothing else."""

import hashlib
import math
import shutil

import pytest

from velodrome.records import digest
from velodrome.records.digest import code_digest, content_hash, package_digest
from velodrome.records.environment import environment


def test_a_digest_of_code_changes_with_name_and_content_and_not_with_order_or_place(tmp_path):
    for name, text in (("a/x.py", "1"), ("a/y.py", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    x, y = tmp_path / "a" / "x.py", tmp_path / "a" / "y.py"
    first = code_digest([x, y], tmp_path)
    assert first == code_digest([y, x], tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "moved" / "a")
    assert code_digest((tmp_path / "moved").rglob("*.py"), tmp_path / "moved") == first
    assert first == hashlib.sha256(b"6:a/x.py:1:16:a/y.py:1:2").hexdigest()
    assert code_digest([x]) == hashlib.sha256(b"4:x.py:1:1").hexdigest()
    x.write_text("3")
    assert code_digest([x, y], tmp_path) != first


def test_the_package_s_digest_sees_every_room_that_trains_and_no_report(tmp_path, monkeypatch):
    shutil.copytree(digest.Path(digest.__file__).parents[1], tmp_path / "velodrome", ignore=shutil.ignore_patterns("__pycache__"))
    fresh = package_digest.__wrapped__  # a process remembers the digest of the code it runs
    here = fresh()
    monkeypatch.setattr(digest, "__file__", str(tmp_path / "velodrome" / "records" / "digest.py"))
    assert fresh() == here
    (tmp_path / "velodrome" / "reports" / "__init__.py").write_text("changed = 1")
    assert fresh() == here
    (tmp_path / "velodrome" / "optim" / "__init__.py").write_text("changed = 1")
    assert fresh() != here


def test_a_content_hash_is_that_of_the_canonical_json():
    assert content_hash({"b": [1, 0.1, None, True], "a": math.inf}) == hashlib.sha256(b'{"a":"Infinity","b":[1,0.1,null,true]}').hexdigest()
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 2.0})
    with pytest.raises(ValueError, match=r"value.a\[1\] must be a dict"):
        content_hash({"a": [1, object()]})


def test_the_environment_names_versions_and_what_was_passed():
    import numpy as np

    session = environment(threads=3, device="cpu")
    assert session["versions"]["numpy"] == np.__version__
    assert (session["threads"], session["device"]) == (3, "cpu")
    assert session["time"].endswith("Z")
    assert session["cpus"] >= 1

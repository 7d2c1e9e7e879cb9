"""A run folder: rows, resume, finish, the claim, and what a bad disk or two processes at once do to it."""

import errno
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from velodrome.records import disk
from velodrome.records.disk import DiskError
from velodrome.records.encoding import seal, unseal
from velodrome.records.environment import differences, environment
from velodrome.records.lock import Busy
from velodrome.records.log import parse
from velodrome.records.read import columns, read, scan
from velodrome.records.run import Run

RECIPE = {"workload": "digits", "algorithm": "adamw", "seed": 0, "options": {"lr": 1e-3, "clip": math.inf}}


@dataclass(frozen=True)
class Step:
    t: int = 7
    examples: int = 448
    tokens: int | None = None
    flops: int = 10**20
    seconds: float = 1.25
    data_seconds: float = 0.25
    gradient_seconds: float = 0.5
    optimizer_seconds: float = 0.5


def written(folder: Path, rows: int = 20) -> Path:
    with Run.open(folder, RECIPE) as run:
        for i in range(rows):
            run.row(t=i, loss=1 / (i + 1))
    return folder


def comparable(value):
    """NaN is a number that differs from itself: as text it can be compared."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return "nan" if value != value else value


def test_a_row_holds_the_step_s_counters_and_every_kind_of_value(tmp_path):
    with Run.open(tmp_path / "a", RECIPE) as run:
        run.row(
            Step(),
            loss=torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True),
            accuracy=np.float32(0.1),
            good=np.bool_(True),
            eigenvalues=torch.tensor([1.0, math.nan]),
            parts=[1, np.float64(2.5), torch.tensor(3)],
            note="so\nso",
            missing=None,
            worst=-math.inf,
            odd=math.nan,
        )
        assert run.rows == 1
    row = read(tmp_path / "a").rows[0]
    assert math.isnan(row.pop("odd"))
    assert math.isnan(row["eigenvalues"].pop())
    assert row == {
        **{"seq": 0, "t": 7, "examples": 448, "tokens": None, "flops": 10**20, "seconds": 1.25},
        **{"data_seconds": 0.25, "gradient_seconds": 0.5, "optimizer_seconds": 0.5},
        **{"loss": 0.5, "accuracy": float(np.float32(0.1)), "good": True, "eigenvalues": [1.0], "parts": [1, 2.5, 3]},
        **{"note": "so\nso", "missing": None, "worst": -math.inf},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "NaN"}, "stands for the number"),
        ({"loss": torch.zeros(2, 2)}, "flat list"),
        ({"loss": {"a": 1}}, "got dict"),
        ({"loss": 1j}, "got complex"),
        ({"loss": np.complex64(1)}, "complex"),
        ({"seq": 1}, "seq is a name"),
        ({"crc": 1}, "crc is a name"),
        ({"loss": [[1]]}, "flat list"),
    ],
)
def test_a_value_that_is_no_number_is_refused_and_the_log_is_unchanged(tmp_path, values, message):
    with Run.open(tmp_path, RECIPE) as run:
        run.row(loss=1.0)
        with pytest.raises(ValueError, match=message):
            run.row(**values)
        run.row(loss=2.0)
    assert [row["loss"] for row in read(tmp_path).rows] == [1.0, 2.0]


@pytest.mark.parametrize("to_parquet", [False, True])
def test_nan_infinities_missing_and_big_numbers_survive_log_and_parquet(tmp_path, to_parquet):
    rows = [
        {
            "a": math.nan,
            "b": 1,
            "c": "x",
            "d": 10**25,
            "e": [1.5, math.inf],
            "f": True,
            "g": 1,
            "h": None,
            "i": 2**62,
            "j": [1, 2],
            "k": [],
        },
        {
            "a": None,
            "b": -math.inf,
            "c": None,
            "d": -1,
            "e": None,
            "f": None,
            "g": "text",
            "h": None,
            "i": -(2**62),
            "j": [],
            "k": [math.nan],
        },
        {"a": 0.1, "l": 2**60},
        {"a": 1e-320, "l": math.inf},
    ]
    with Run.open(tmp_path, RECIPE) as run:
        for row in rows:
            run.row(**row)
        run.finish({"time": math.inf, "best": math.nan}, to_parquet=to_parquet)
    assert (tmp_path / "rows.parquet").exists() == to_parquet != (tmp_path / "rows.jsonl").exists()
    record = read(tmp_path)
    assert comparable(record.rows) == comparable(
        [{"seq": i, **{name: row.get(name) for name in "abcdefghijkl"}} for i, row in enumerate(rows)]
    )
    assert repr(record.result) == "{'time': inf, 'best': nan}"
    assert record.problems == []
    np.testing.assert_array_equal(columns(record, "a")["a"], [math.nan, math.nan, 0.1, 1e-320])


def test_a_resumed_log_equals_an_uninterrupted_one_byte_for_byte(tmp_path):
    whole = (written(tmp_path / "whole") / "rows.jsonl").read_bytes()
    folder = written(tmp_path / "resumed", 15)
    with Run.open(folder, RECIPE) as run:
        assert run.rows == 15
        run.truncate(11)
        for i in range(11, 20):
            run.row(t=i, loss=1 / (i + 1))
    assert (folder / "rows.jsonl").read_bytes() == whole


def test_a_torn_last_row_is_cut_off_wherever_it_was_torn(tmp_path):
    log = written(tmp_path, 3) / "rows.jsonl"
    data = log.read_bytes()
    second = data.index(b"\n", data.index(b"\n") + 1) + 1
    for length in range(second, len(data)):
        log.write_bytes(data[:length])
        assert len(read(tmp_path).rows) == 2
        with Run.open(tmp_path, RECIPE) as run:
            assert run.rows == 2
            run.row(t=2, loss=1 / 3)
        assert log.read_bytes() == data


def test_any_single_flipped_bit_of_a_row_is_detected():
    line = seal({"seq": 3, "t": 7, "loss": 0.12345678901234567, "note": "héllo", "bad": "NaN"}).rstrip(b"\n")
    assert unseal(line) is not None
    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        assert unseal(bytes(flipped)) is None


def test_a_flipped_bit_anywhere_in_a_log_loses_its_row_and_no_other(tmp_path):
    data = (written(tmp_path) / "rows.jsonl").read_bytes()
    truth = parse(data).rows
    rng = random.Random(0)
    for _ in range(500):
        at = rng.randrange(8 * (len(data) - 1))
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        log = parse(bytes(flipped))
        hit = data[: at // 8].count(b"\n")
        assert log.damaged[0] == hit
        assert set(log.damaged) <= {hit, hit + 1}  # a flipped newline takes the next row with it
        assert log.rows == [row for row in truth if row["seq"] not in log.damaged]


def test_damage_in_the_middle_is_counted_and_named_and_kept_out_of_the_numbers(tmp_path):
    log = written(tmp_path) / "rows.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"t":4,', b'"t":9,').replace(b'"t":5,', b'"t":8,').replace(b'"t":12,', b'"t":13,'))
    record = read(tmp_path)
    assert record.damaged == (4, 5, 12)
    assert record.problems == [f"3 rows of {tmp_path} are damaged: 4-5, 12."]
    assert list(columns(record, "t")["t"]) == [i for i in range(20) if i not in (4, 5, 12)]
    with Run.open(tmp_path, RECIPE) as run:
        assert (run.rows, run.damaged) == (20, (4, 5, 12))
        run.truncate(5)
        assert (run.rows, run.damaged) == (5, (4,))
        run.row(t=5)
    assert [row["seq"] for row in read(tmp_path).rows] == [0, 1, 2, 3, 5]


def test_rows_that_a_checkpoint_knows_and_the_log_has_lost_are_reported_missing(tmp_path):
    written(tmp_path, 3)
    with Run.open(tmp_path, RECIPE) as run:
        run.truncate(5)
        run.row(t=5)
        assert run.damaged == (3, 4)
    assert read(tmp_path).damaged == (3, 4)


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    code = "import sys; from velodrome.records.run import Run; Run.open(sys.argv[1], {'a': 1}); print('in', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(Busy, match=f"pid {holder.pid} on .* since") as caught:
            Run.open(tmp_path, {"a": 1})
        assert caught.value.folder == tmp_path
    finally:
        holder.kill()
        holder.communicate()
    with Run.open(tmp_path, {"a": 1}), pytest.raises(Busy, match=f"pid {os.getpid()} "):
        Run.open(tmp_path, {"a": 1})
    Run.open(tmp_path, {"a": 1}).close()


FORK = """
import os, sys
from velodrome.records.run import Run
run = Run.open(sys.argv[1], {})
ready, go = os.pipe(), os.pipe()
if (child := os.fork()) == 0:
    try:
        run.row(t=0)
        os.write(ready[1], b"wrote")
    except ValueError:
        os.write(ready[1], b"refused")
    os.close(go[1])
    os.read(go[0], 1)
    os._exit(0)
print(os.read(ready[0], 9).decode())
run.close()
Run.open(sys.argv[1], {}).close()
print("claimed again while the child lives")
os.close(go[1])
os.waitpid(child, 0)
"""


def test_a_forked_child_neither_writes_rows_nor_keeps_the_folder_claimed(tmp_path):
    done = subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused", "claimed again while the child lives"]


def test_a_finished_run_takes_no_more_rows_and_a_kill_inside_finish_is_healed(tmp_path, monkeypatch):
    run = Run.open(written(tmp_path), RECIPE)
    with monkeypatch.context() as patch:  # stops before the result, with the parquet already there
        patch.setattr("velodrome.records.run.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.finish({"best": 1}, to_parquet=True)
    run.close()
    assert (tmp_path / "rows.parquet").exists()
    assert not read(tmp_path).finished
    assert len(read(tmp_path).rows) == 20
    with Run.open(tmp_path, RECIPE) as run:
        assert not (tmp_path / "rows.parquet").exists()
        log = (tmp_path / "rows.jsonl").read_bytes()
        run.finish({"best": 1}, to_parquet=True)
        with pytest.raises(ValueError, match="is finished"):
            run.row(t=1)
    (tmp_path / "rows.jsonl").write_bytes(log)  # as if killed between the result and the removal
    with Run.open(tmp_path, RECIPE) as run:
        assert run.finished
        assert run.rows == 20
        with pytest.raises(ValueError, match="written once"):
            run.finish({})
    assert not (tmp_path / "rows.jsonl").exists()
    assert len(read(tmp_path).rows) == 20


def test_a_flipped_bit_in_result_or_parquet_is_never_a_number(tmp_path):
    with Run.open(written(tmp_path), RECIPE) as run:
        run.finish({"best": 1.25}, to_parquet=True)
    rng = random.Random(1)
    for name in ("result.json", "rows.parquet"):
        data = (tmp_path / name).read_bytes()
        for _ in range(60):
            at = rng.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[at // 8] ^= 1 << at % 8
            (tmp_path / name).write_bytes(flipped)
            record = read(tmp_path)
            assert record.problems
            assert record.result is None or record.damaged == tuple(range(20))
        (tmp_path / name).write_bytes(data)
    assert read(tmp_path).problems == []


def test_another_recipe_is_refused_with_what_differs(tmp_path):
    Run.open(tmp_path, RECIPE).close()
    Run.open(tmp_path, dict(reversed(RECIPE.items()))).close()
    with pytest.raises(ValueError, match="another recipe \\(seed is 0 there and 1 here; extra is absent there and null here\\)"):
        Run.open(tmp_path, {**RECIPE, "seed": 1, "extra": None})
    assert read(tmp_path).recipe == RECIPE


def test_what_is_inexact_about_a_resumed_run_is_said_and_stays_said(tmp_path):
    first = environment(threads=2, device="cpu")
    other = {**first, "threads": 4, "versions": {**first["versions"], "torch": "9.0"}}
    assert differences(first, first) == []
    with Run.open(tmp_path, RECIPE, first) as run:
        assert run.inexact == []
    for session in (other, first):
        with Run.open(tmp_path, RECIPE, session) as run:
            assert run.inexact == [f"torch {first['versions']['torch']} -> 9.0", "threads 2 -> 4"]
    assert [session["threads"] for session in read(tmp_path).environment] == [2, 4, 2]
    assert json.dumps(first)


@pytest.mark.parametrize("taken", [0, 5, 11])
def test_a_full_disk_refuses_the_row_and_leaves_the_log_as_it_was(tmp_path, monkeypatch, taken):
    run = Run.open(written(tmp_path, 3), RECIPE)
    before = (tmp_path / "rows.jsonl").read_bytes()
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if taken == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:taken])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskError, match=r"No space left .*\d+ bytes needed, [\d,]+ free.*all earlier rows are intact") as caught:
            run.row(t=3, loss=0.25)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    run.row(t=3, loss=0.25)
    run.close()
    assert [row["seq"] for row in read(tmp_path).rows] == [0, 1, 2, 3]


def test_replacing_a_file_fails_whole_at_every_system_call(tmp_path, monkeypatch):
    path = tmp_path / "a"
    for name in ("open", "write", "replace"):
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
            with pytest.raises(DiskError, match="unchanged"):
                disk.replace(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a"]


def test_eight_processes_write_eight_runs_of_one_root_at_once(tmp_path):
    code = (
        "import sys; from velodrome.records.run import Run\n"
        "with Run.open(sys.argv[1], {'seed': int(sys.argv[2])}) as run:\n"
        "    for i in range(200): run.row(t=i, loss=i * int(sys.argv[2]))\n"
        "    run.finish({'last': 199})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"run-{k}"), str(k)]) for k in range(8)]
    assert [worker.wait() for worker in workers] == [0] * 8
    records = scan(tmp_path)
    assert [record.recipe["seed"] for record in records] == list(range(8))
    for k, record in enumerate(records):
        assert record.finished
        assert [row["loss"] for row in record.rows] == [i * k for i in range(200)]


def test_scanning_passes_over_strangers_and_takes_the_half_written(tmp_path):
    assert scan(tmp_path) == []
    written(tmp_path / "b")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "recipe.json").write_text("[1")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "recipe.json").write_text("[]")
    (tmp_path / "file").write_text("x")
    Run.open(tmp_path / "a", RECIPE).close()
    assert [record.path.name for record in scan(tmp_path)] == ["a", "b"]
    assert scan(tmp_path)[0].rows == []
    with pytest.raises(ValueError, match="is not a run"):
        read(tmp_path / "foreign")
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        columns(read(tmp_path / "b"), "los")
    with pytest.raises(ValueError, match="cannot be listed"):
        scan(tmp_path / "nowhere")

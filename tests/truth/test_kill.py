"""kill -9 at any moment: the same command goes on, and ends with the rows, the weights and the result of a run that was left alone."""

import contextlib
import os
import random
import signal
import time

import pytest
import torch

from tests import tiny
from tests.truth.test_protocol import CLOCKS, entry, timeless
from velodrome.bench.protocol import drive
from velodrome.records.checkpoint import latest
from velodrome.records.disk import DiskError
from velodrome.records.lock import Busy
from velodrome.records.read import read
from velodrome.records.run import Run

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def child(work) -> int:
    """A process of its own, without the cost of importing torch again."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def train(algorithm, root, seconds):
    torch.set_num_threads(1)
    for _ in drive(entry(algorithm, checkpoint_seconds=seconds), root, {"versions": {}}, lambda: False):
        pass


def final_state(root, algorithm):
    """Weights, optimizer, stream and random generators at the end, through a checkpoint forced behind the last step."""
    found = latest(root / entry(algorithm).folder)
    assert found is not None
    return found


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k not in CLOCKS)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool((a == b).all()) if hasattr(a, "all") else a == b


@pytest.mark.parametrize("algorithm", ["adamw", "muon", f"{tiny.__file__}:Plain"])
def test_a_run_killed_again_and_again_equals_one_left_alone(tmp_path, algorithm, monkeypatch):
    """12 kills each at moments fixed by a seed; saving takes most of the time, so many fall into a save."""
    os.waitpid(child(lambda: train(algorithm, tmp_path / "whole", 0.0)), 0)
    whole = read(tmp_path / "whole" / entry(algorithm).folder)
    assert whole.finished
    monkeypatch.setenv("TINY_DELAY", "0.004")
    moments = random.Random(5)
    kills = 0
    while kills < 12:
        pid = child(lambda: train(algorithm, tmp_path / "cut", 0.0))
        time.sleep(moments.uniform(0.02, 0.35))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break  # it was quicker
        kills += 1
    monkeypatch.delenv("TINY_DELAY")
    os.waitpid(child(lambda: train(algorithm, tmp_path / "cut", 0.0)), 0)
    cut = read(tmp_path / "cut" / entry(algorithm).folder)
    assert kills >= 5
    assert timeless(cut.rows) == timeless(whole.rows)
    assert timeless([cut.result]) == timeless([whole.result])
    step, state = final_state(tmp_path / "cut", algorithm)
    assert (step, True) == (final_state(tmp_path / "whole", algorithm)[0], equal(state, final_state(tmp_path / "whole", algorithm)[1]))
    assert not [p for p in cut.path.rglob("*") if p.name.startswith(".tmp")]


def test_a_run_of_a_dead_process_is_free_and_of_a_living_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_DELAY", "0.05")
    pid = child(lambda: train("adamw", tmp_path, 0.0))
    folder = tmp_path / entry("adamw").folder
    deadline = time.monotonic() + 60
    while not (folder / "rows.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(Busy, match=f"being trained by pid {pid}"):
        next(drive(entry("adamw"), tmp_path, {}, lambda: False))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    Run.open(folder, entry("adamw").identity).close()


def test_two_races_in_one_folder_train_every_run_once(tmp_path, monkeypatch):
    log = tmp_path / "gradients"
    monkeypatch.setenv("TINY_LOG", str(log))

    def go():
        for algorithm in ("adamw", "lion", "sgd"):
            with contextlib.suppress(Busy):
                train(algorithm, tmp_path / "runs", 0.1)

    for pid in [child(go), child(go)]:
        assert os.waitpid(pid, 0)[1] == 0
    go()
    assert len(log.read_text()) == 3 * 101
    assert all(read(tmp_path / "runs" / entry(a).folder).finished for a in ("adamw", "lion", "sgd"))


def test_a_full_disk_stops_a_run_with_one_sentence_and_it_goes_on_when_there_is_room(tmp_path):
    """The kernel refuses what lies beyond a file size limit just as it refuses what lies beyond the disk."""
    os.waitpid(child(lambda: train("adamw", tmp_path / "whole", 0.0)), 0)
    said = tmp_path / "said"

    def cramped():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
        try:
            train("adamw", tmp_path / "cut", 1000.0)
        except DiskError as error:
            said.write_text(str(error))

    os.waitpid(child(cramped), 0)
    assert "all earlier rows are intact" in said.read_text()
    rows = read(tmp_path / "cut" / entry("adamw").folder).rows
    assert 5 < len(rows) < 51
    os.waitpid(child(lambda: train("adamw", tmp_path / "cut", 0.0)), 0)
    cut, whole = (read(tmp_path / name / entry("adamw").folder) for name in ("cut", "whole"))
    assert timeless(cut.rows) == timeless(whole.rows)

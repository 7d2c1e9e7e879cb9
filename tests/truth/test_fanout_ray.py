"""A race on a Ray cluster of two nodes loses nothing when a worker is killed and when a node goes away, and its rows are those of one process."""

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.truth.test_protocol import timeless
from velodrome.bench import fanout
from velodrome.bench.worker import Worker
from velodrome.records.read import scan

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

TINY = Path(__file__).parent.parent / "tiny.py"
ENDS = ("state", "diverged", "steps", "examples", "flops", "valid", "best", "parameters")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


def plan(root: str, ray: str | None = None) -> dict:
    setting = {"device": "cpu", "checkpoint_seconds": 0.1}
    what = {"algorithms": ["adamw", "mine.py:Plain"], "workloads": ["mine.py:tiny"], "seeds": [0, 1], "threads": 1, "setting": setting}
    return {"root": root, **what, "ray": ray}


@pytest.fixture
def here(tmp_path, monkeypatch):
    shutil.copy(TINY, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("TINY_DELAY", "0.02")  # the nodes inherit both
    monkeypatch.setenv("RAY_worker_niceness", "0")
    nodes = cluster_utils.Cluster()
    try:
        added(nodes)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def added(nodes):
    """One more node. Ray gives one 30 s to start, which is not enough on a machine that is busy with other things."""
    names = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port")  # not chosen by Ray, which waits 15 s for each
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    free = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    for s in sockets:
        s.close()
    try:
        return nodes.add_node(**NODE, **free)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is too busy to start a node of Ray within 30 s")


def checkpoint(folder: Path) -> Path:
    """The first run of a folder that has a checkpoint, once there is one."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for path in folder.glob("*/checkpoints/step-*/manifest.json"):
            if not (path.parents[2] / "result.json").exists():
                return path.parents[2]
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


def kill_holder(folder: Path) -> None:
    os.kill(int((checkpoint(folder) / "lock").read_text().split()[1]), signal.SIGKILL)


def test_rows_are_those_of_one_process_though_a_worker_is_killed_and_a_node_goes_away(here, cluster):
    Worker({**plan("whole"), "first": 0}, lambda line, flush: None).work()
    second = added(cluster)
    heard: list[dict] = []

    def disturb() -> None:
        kill_holder(here / "cut")
        while sum(s["state"] == "finished" for s in heard) < 1:
            time.sleep(0.05)
        cluster.remove_node(second)

    disturbance = threading.Thread(target=disturb)
    disturbance.start()
    states = fanout.run(plan("cut", cluster.address), 0, 4, lambda f, s: heard.append(dict(s)))
    disturbance.join()
    assert [s["state"] for s in states.values()] == ["finished"] * 4
    whole, cut = scan("whole"), scan("cut")
    assert [r.path.name for r in whole] == [r.path.name for r in cut]
    for a, b in zip(whole, cut, strict=True):
        assert timeless(a.rows) == timeless(b.rows)
        assert {k: a.result[k] for k in ENDS} == {k: b.result[k] for k in ENDS}
    assert sum(len(r.environment) for r in cut) > 4  # somebody went on with what another had begun
    assert all(session["crew"]["workers"] == 2 for r in cut for session in r.environment)


def test_a_cluster_that_is_not_there_is_one_clear_sentence(here):
    with pytest.raises(ValueError, match=r"there is no Ray cluster at '127\.0\.0\.1:1'"):
        fanout.run(plan("runs", "127.0.0.1:1"), 0, 4, lambda f, s: None)

"""Where workers run and where runs are kept: cores that two workers never share, leases, object storage from which any machine goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.truth.test_protocol import entry, timeless
from velodrome.bench.crews import cores, lease, on_ray, storage
from velodrome.bench.crews.objects import Objects
from velodrome.bench.crews.place import Folder, place
from velodrome.bench.crews.process import Process
from velodrome.bench.crews.storage import Storage
from velodrome.bench.protocol import Interrupted, drive
from velodrome.records.lock import Busy
from velodrome.records.read import read

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity, which is Linux's")
ENVIRONMENT = {"versions": {}}


# --- cores ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A machine of two cores and nobody else's claims."""
    monkeypatch.setattr(cores.tempfile, "gettempdir", lambda: str(tmp_path))
    real = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {real[0], real[-1], 4096} if len(real) > 1 else {real[0], 4096})
    return real


@linux
def test_no_core_is_given_twice_and_what_is_given_back_can_be_had_again(two):
    first, second = cores.claim(1), cores.claim(1)
    assert len({*first.numbers, *second.numbers}) == 2
    third = cores.claim(2)
    assert third.numbers == ()
    assert third.reason == "1 of its 2 cores were free" if len(two) > 1 else third.reason
    assert cores.claim(1).others >= 2
    first.release()
    assert cores.claim(1).numbers == first.numbers


@linux
def test_whoever_is_alone_keeps_others_from_being_pinned(two):
    alone = cores.claim(1, alone=True)
    assert len(alone.numbers) == 1
    assert alone.others == 0
    assert cores.claim(1).numbers == ()
    alone.release()
    kept = cores.claim(1)
    assert cores.told(cores.claim(1, alone=True), 1, True)["others"] == 1
    kept.release()


@linux
def test_a_process_started_on_cores_of_its_own_stays_there_and_its_parent_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(cores.tempfile, "gettempdir", lambda: str(tmp_path))
    before = os.sched_getaffinity(0)
    mine = cores.claim(1)
    with mine.pinned():
        text = subprocess.check_output([sys.executable, "-S", "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
    assert text.strip() == f"{{{mine.numbers[0]}}}"
    assert os.sched_getaffinity(0) == before


def test_cores_come_before_second_threads_of_the_same_cores(tmp_path):
    for number, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5", 6: "6-7", 7: "6-7"}.items():
        (tmp_path / f"cpu{number}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}/topology/thread_siblings_list").write_text(siblings + "\n")
    assert cores.ordered({5, 7, 6, 4, 1, 0}, tmp_path) == [0, 1, 6, 4, 5, 7]


def test_where_nothing_can_be_pinned_the_record_says_why(monkeypatch):
    monkeypatch.setattr(cores, "fcntl", None)
    assert cores.told(cores.claim(1), 2, False) == {
        "workers": 2,
        "cluster": False,
        "alone": False,
        "pinned": [],
        "unpinned": "this system cannot pin a process to a core",
        "others": 0,
    }


@linux
def test_a_worker_is_told_its_company_and_gives_its_cores_back(tmp_path, monkeypatch):
    script = tmp_path / "worker"
    script.write_text(
        f"#!{sys.executable} -S\nimport json, os, sys\nplan = json.load(sys.stdin)\n"
        "print(json.dumps([plan['crew'], sorted(os.sched_getaffinity(0))]))\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("velodrome.bench.crews.process.sys.executable", str(script))
    monkeypatch.setattr(cores.tempfile, "gettempdir", lambda: str(tmp_path))
    heard: list = []
    worker = Process({"threads": 1, "workers": 3, "setting": {}}, heard.append)
    assert worker.crash() == ""
    worker.end(10.0)
    worker.close()
    company, affinity = json.loads(heard[0])
    assert company == {"workers": 3, "cluster": False, "alone": False, "pinned": affinity, "unpinned": None, "others": 0}
    assert len(affinity) == 1
    assert heard[1] is None
    assert cores.claim(1).numbers == tuple(affinity)


# --- leases --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path):
    """The URL of a storage that nobody else uses."""
    return f"file://{tmp_path / 'bucket'}"


def test_a_lease_is_had_by_one_until_it_is_released_or_its_heart_stops(shelf):
    now = [1000.0]
    a, b, c = (lease.Leases(Objects(shelf), lambda: now[0]) for _ in range(3))
    first = a.claim("run")
    with pytest.raises(Busy, match=r"heard of 0 s ago"):
        b.claim("run")
    now[0] += lease.LEASE + 1  # a's process is gone, or its clock stands still
    second = b.claim("run")
    assert second == first + 1
    with pytest.raises(Busy):
        a.hold("run", first)  # it comes back to life, and must not write
    b.hold("run", second)
    a.release("run", first)
    assert c.holder("run")
    b.release("run", second)
    assert c.holder("run") is None
    assert c.claim("run") == second + 1
    for leases in (a, b, c):
        leases.close()


def test_of_two_who_claim_at_once_one_gets_it(shelf, monkeypatch):
    a, b = lease.Leases(Objects(shelf)), lease.Leases(Objects(shelf))
    monkeypatch.setattr(b, "newest", lambda folder: 0)  # looked before a wrote
    a.claim("run")
    with pytest.raises(Busy, match="another worker"):
        b.claim("run")
    a.close()


def test_a_heart_beats_while_a_run_is_held(shelf, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.01)
    beats = []
    a = lease.Leases(Objects(shelf), lambda: beats.append(1) or 1e6 + len(beats))
    a.claim("run")
    while len(beats) < 5:
        a.heart.join(0.01)
        assert a.heart.is_alive()
    a.close()
    a.heart.join(5.0)
    assert not a.heart.is_alive()
    assert a.holder("run") is None


# --- object storage ------------------------------------------------------------------------------------------------------------------


def work(home, stop=lambda: False, until=None, **setting) -> list[dict]:
    """Train the tiny run at a place, as a worker does; `until` abandons it after so many states, as a killed process would."""
    e = entry(checkpoint_seconds=0.0, **setting)
    states = []
    told = home.kept(e.folder, lambda: drive(e, home.root, ENVIRONMENT, stop))
    for state in told:
        states.append(state)
        if until and len(states) == until:
            return [*states, told]
    return states


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run as it is when it is left alone, in a folder."""
    root = tmp_path_factory.mktemp("whole")
    e = entry(checkpoint_seconds=0.0)
    for _ in drive(e, root, ENVIRONMENT, lambda: False):
        pass
    return read(root / e.folder)


def same(home, whole) -> None:
    found = read(home.local(whole.path.name))
    assert found.problems == []
    assert timeless(found.rows) == timeless(whole.rows)
    assert found.finished


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_run_abandoned_on_one_machine_is_finished_by_another_with_the_same_rows(tmp_path, scheme, whole, monkeypatch):
    url = f"{scheme}://{tmp_path}/bucket"
    first, second = Storage(url), Storage(url)
    folder = whole.path.name
    *states, alive = work(first, until=20)
    assert states[-1]["t"] > 0
    assert not second.free(folder)
    with pytest.raises(Busy):
        work(second)
    monkeypatch.setattr(lease, "LEASE", -1.0)  # as if a minute had passed without a sign of life
    assert second.free(folder)
    begun = work(second)
    assert begun[0]["t"] > 0  # from the checkpoint, not from the start
    same(place(url), whole)
    assert len(read(place(url).local(folder)).environment) == 2
    with pytest.raises(Busy):  # the first comes back to life: it may not write over what the second has done
        next(alive)
    same(place(url), whole)


def test_what_was_stopped_is_kept_and_what_is_finished_is_not_repeated(shelf, whole):
    home = Storage(shelf)
    seen = []
    with pytest.raises(Interrupted):
        work(home, stop=lambda: len(seen) >= 3 or seen.append(1))
    assert home.free(whole.path.name)
    assert not (home.root / whole.path.name).exists()
    states = work(Storage(shelf))
    assert states[-1]["state"] == "finished"
    assert len(work(Storage(shelf))) == 1
    assert sorted(home.objects.names(whole.path.name))[-2:] == ["result.json", "rows.jsonl"]
    same(home, whole)


def test_a_checkpoint_that_is_not_as_it_was_written_is_passed_over(shelf, whole):
    first = Storage(shelf)
    *_, alive = work(first, until=20)
    alive.close()
    folder = whole.path.name
    saved = sorted(first.objects.names(f"{folder}/saved"), key=storage._step)
    assert len(saved) == storage.KEPT
    first.objects.write(f"{folder}/saved/{saved[1]}/tensors.safetensors", b"half")
    older = storage._step(saved[0])[0]
    begun = work(Storage(shelf))
    assert older <= begun[0]["t"] < storage._step(saved[1])[0] + 4
    same(first, whole)


def test_a_mistake_is_kept_and_not_repeated_by_another_worker(shelf):
    home, e = Storage(shelf), entry(f"{tiny.__file__}:Broken")
    try:
        for _ in home.kept(e.folder, lambda: drive(e, home.root, ENVIRONMENT, lambda: False)):
            pass
    except RuntimeError as error:
        assert str(error) == "my own mistake"  # noqa: PT017
    again = Storage(shelf)
    assert again.failed(e.folder) or again.finished(e.folder)
    assert home.leases.holder(e.folder) is None


def test_a_path_that_was_a_url_is_one_again_and_a_folder_stays_a_folder():
    for text in ("s3://bucket/runs", "file:///tmp/runs", "memory://runs"):
        assert storage.url(text) == storage.url(Path(text)) == text
    assert storage.url("runs/s3") is None
    assert isinstance(place("runs"), Folder)


def test_a_storage_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("velodrome.bench.crews.objects.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs the package s3fs: pip install "velodrome\[s3\]"'):
        Objects("s3://bucket/runs")
    with pytest.raises(ValueError, match="is no place for runs"):
        Objects("nowhere://bucket/runs")


# --- what goes to a cluster ----------------------------------------------------------------------------------------------------------


def test_a_machine_without_the_folder_of_the_race_gets_the_files_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    shutil.copy(tiny.__file__, tmp_path / "a" / "mine.py")
    monkeypatch.chdir(tmp_path / "a")
    plan = {"algorithms": ["adamw", "./mine.py:Plain(lr=0.1)", "gone.py:X"], "workloads": ["mine.py:tiny"]}
    files = dict(on_ray._files(plan))
    assert set(files) == {"./mine.py", "mine.py"}
    on_ray._enter(str(tmp_path / "a"), files)
    assert Path.cwd() == tmp_path / "a"
    on_ray._enter(str(tmp_path / "b"), files)
    assert Path.cwd() != tmp_path / "a"
    assert Path("mine.py").read_text() == Path(tiny.__file__).read_text()
    os.chdir(tmp_path)

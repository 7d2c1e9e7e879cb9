"""`velodrome race` from the shell: what it prints and writes, interrupted and continued, with a mistake in one of the algorithms."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from velodrome.records.read import scan

TINY = Path(__file__).parent.parent / "tiny.py"


@pytest.fixture
def folder(tmp_path):
    shutil.copy(TINY, tmp_path / "mine.py")
    return tmp_path


def start(folder, *arguments, **environment) -> subprocess.Popen:
    command = [sys.executable, "-m", "velodrome", "race", *arguments, "--on", "mine.py:tiny", "--seeds", "2"]
    env = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def race(folder, *arguments, **environment) -> tuple[int, str, str]:
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def gradients(folder) -> int:
    return len((folder / "log").read_text())


def wait_for(process, folder, count) -> None:
    """Until that many gradients have been computed."""
    deadline = time.monotonic() + 100
    while not (folder / "log").exists() or gradients(folder) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_race_is_stopped_continued_reported_and_never_repeated(folder):
    log = str(folder / "log")
    code, _, err = race(folder, "adamw")  # measures the unit time, whose gradients are no run's
    assert code == 0, err
    process = start(folder, "lion", "mine.py:Plain", TINY_DELAY="0.02", TINY_LOG=log)
    wait_for(process, folder, 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "The same command goes on" in err
    assert out == ""

    code, out, err = race(folder, "lion", "mine.py:Plain", TINY_LOG=log)
    assert code == 0, err
    assert gradients(folder) == 4 * 101  # what was saved is not done again
    assert "tiny" in out
    assert "adamw" in out  # the reference is raced though it was not named
    assert "Plain" in out
    page = (folder / "race.html").read_text()
    assert "<html" in page
    assert all(r.finished for r in scan(folder / "runs"))

    code, out, err = race(folder, "lion", "mine.py:Plain", "--json", "--by", "steps", TINY_LOG=log)
    assert code == 0, err
    assert gradients(folder) == 4 * 101
    result = json.loads(out)
    assert {s["algorithm"] for s in result["score"]["overall"]} == {"lion", "mine.py:Plain"}
    assert all(s["pairs"] <= 2 for s in result["score"]["cells"])


def test_one_algorithms_mistake_does_not_stop_the_others(folder):
    code, out, err = race(folder, "mine.py:Broken", "mine.py:Wild", "--quiet")
    assert code == 1
    assert "my own mistake" in err
    assert "Traceback" not in err
    assert "error.txt" in err
    states = {(r.recipe["algorithm"], r.recipe["seed"]): r.result for r in scan(folder / "runs")}
    assert states["adamw", 0]["state"] == "finished"
    assert states["mine.py:Wild", 1]["state"] == "diverged"
    assert states["mine.py:Broken", 0]["failure"] == "crash"
    assert "Wild" in out
    assert "2 of 2 runs of mine.py:Broken on tiny failed and count as a miss" in " ".join(out.split())


def test_a_killed_worker_is_replaced_and_nothing_is_lost(folder):
    process = start(folder, "adamw", TINY_DELAY="0.03", TINY_LOG=str(folder / "log"))
    deadline = time.monotonic() + 100
    while not any(path.stat().st_size for path in (folder / "runs").glob("*/rows.jsonl")):  # gradients before that are the unit time's
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    holder = (next((folder / "runs").glob("*/rows.jsonl")).parent / "lock").read_text().split()[1]
    os.kill(int(holder), signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len([r for r in scan(folder / "runs") if r.finished]) == 2

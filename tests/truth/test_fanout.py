"""Workers and who starts them: a worker's answers, and what the parent does when one prints, refuses, leaves, dies or is not heard."""

import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from velodrome.bench import fanout
from velodrome.bench.crews import process
from velodrome.bench.worker import Worker
from velodrome.records.lock import Lock

TINY = Path(__file__).parent.parent / "tiny.py"
OPTIMIZERS = """
import os
import torch

class Loud(torch.optim.SGD):
    def step(self, closure=None):
        print({"run": "nowhere", "state": "finished"})
        print('{"run": "nowhere", "state": "finished"}', flush=True)
        os.write(1, b'{"refused": "by a print"}')
        return super().step(closure)

class Setting(torch.optim.SGD):
    def __init__(self, params, lr=0.1, names=None):
        super().__init__(params, lr=lr)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    shutil.copy(TINY, tmp_path / "mine.py")
    (tmp_path / "loud.py").write_text(OPTIMIZERS)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*algorithms: str, **other) -> dict:
    default = {"root": "runs", "workloads": ["mine.py:tiny"], "seeds": [0], "threads": 1, "setting": {"device": "cpu"}, "first": 0}
    return {"algorithms": list(algorithms), **default, **other}


def heard(plan: dict) -> list[dict]:
    """What a worker in this process says before it trains, or refuses."""
    said: list[dict] = []
    with pytest.raises(SystemExit) as leaving:
        Worker(plan, lambda line, flush: said.append(json.loads(line))).work()
    assert leaving.value.code == 2
    return said


# --- worker --------------------------------------------------------------------------------------------------------------------------


def test_two_spellings_of_an_algorithm_or_of_a_workload_are_raced_once(here):
    texts = ("adamw", "adamw(lr=0.012)", "mine.py:Plain", "./mine.py:Plain( lr=1e-1 )", "mine.py:Plain(lr=0.2)")
    share, everything = Worker(plan(*texts, workloads=["mine.py:tiny", "./mine.py:tiny"])).groups()
    assert [[e.recipe.name for e in group] for group in everything] == [["adamw", "mine.py:Plain", "mine.py:Plain(lr=0.2)"]]
    assert share == everything


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"setting": {"device": "toaster"}, "algorithms": ["unknown"]}, "no device 'toaster'"),
        ({"setting": {"device": "meta"}}, "'meta' computes nothing"),
        ({"setting": {"colour": "red"}}, "TypeError: "),
        ({"workloads": ["broken.py:tiny"]}, "KeyError: 'no such data'"),
        ({"workloads": ["mine.py:tiny", "broken.py:tiny"]}, "both named 'tiny'"),
        ({"algorithms": ["loud.py:Setting(names={1})"]}, "settings.names"),
    ],
)
def test_whatever_a_worker_does_not_understand_is_one_refusal(here, change, words):
    (here / "broken.py").write_text(
        "from dataclasses import replace\nfrom tests import tiny as t\ndef load():\n    raise KeyError('no such data')\n"
        "def tiny():\n    return replace(t.tiny(), load=load)\n"
    )
    (line,) = heard(plan("adamw", **change)) if "algorithms" not in change else heard({**plan(), **change})
    assert words in line["refused"]
    assert not list((here / "runs").iterdir())


def test_what_an_algorithm_prints_does_not_reach_the_parent_and_the_parent_learns_how_many_runs_there_are(here):
    told: list[tuple[str, dict]] = []
    states = fanout.run(plan("adamw", "adamw(lr=0.012)", "loud.py:Loud(lr=0.1)"), 1, 3, lambda f, s: told.append((f, dict(s))))
    assert sorted(s["algorithm"] for s in states.values()) == ["adamw", "loud.py:Loud(lr=0.1)"]
    assert {s["state"] for s in states.values()} == {"finished"}
    assert {f for f, _ in told} == set(states) == {p.name for p in (here / "runs").iterdir() if not p.name.startswith(".")}


# --- the parent, with workers of a few lines -----------------------------------------------------------------------------------------


@pytest.fixture
def act(here, monkeypatch):
    """Puts a script in the place of Python: every worker runs its lines; `starts` has a letter per start."""

    def install(lines: str) -> None:
        script = here / "worker"
        head = f"#!{sys.executable} -S\nimport json, os, signal, sys, time\nplan = json.load(sys.stdin)\nopen('starts', 'a').write('s')\n"
        say = "def say(**line):\n    print(json.dumps(line), flush=True)\n"
        script.write_text(head + say + textwrap.dedent(lines))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(process, "sys", SimpleNamespace(executable=str(script)))

    return install


def run(workers: int = 1, total: int = 2, listen=lambda folder, state: None) -> dict:
    return fanout.run(plan("adamw"), workers, total, listen)


def starts() -> int:
    return len(Path("starts").read_text())


def test_lines_that_are_no_messages_are_skipped(act):
    act("""
        for line in ("{", "{'run': 1}", "{}", "[1]", "3", '{"run": 3, "state": "x"}', '{"run": "a"}', "null", '{"plan": "x"}', "text"):
            print(line)
        say(plan=1)
        say(run="a", state="finished", t=1)
    """)
    assert run() == {"a": {"state": "finished", "t": 1}}
    assert starts() == 1


@pytest.mark.parametrize(
    "lines",
    [
        'say(plan=2); say(run="a", state="running"); os.makedirs("runs/a", exist_ok=True); say(run="b", state="finished")',
        'say(plan=2); say(run="b", state="finished")',  # the other was never begun
        "say(plan=2)",
        "pass",
    ],
)
def test_workers_that_leave_without_a_word_are_replaced_twice_and_then_given_up(act, lines):
    act(lines)
    with pytest.raises(ValueError, match=r"workers keep dying .a worker left before its runs had ended"):
        run()
    assert starts() == fanout.ROUNDS


def test_a_run_that_a_worker_left_is_finished_by_the_next(act):
    act("""
        say(plan=1)
        os.makedirs("runs/a", exist_ok=True)
        say(run="a", state="running" if len(open("starts").read()) == 1 else "finished")
    """)
    assert run() == {"a": {"state": "finished"}}
    assert starts() == 2


def test_a_plan_without_runs_is_an_error(act):
    act("say(plan=0)")
    with pytest.raises(ValueError, match="nothing to race"):
        run()
    with pytest.raises(ValueError, match="nothing to race"):
        run(total=0)


def test_a_run_that_another_race_trains_is_waited_for_and_is_no_crash(act, here):
    (here / "runs" / "a").mkdir()
    lock = Lock(here / "runs" / "a")
    act('say(plan=1); say(run="a", state="elsewhere")')

    def finish() -> None:
        (here / "runs" / "a" / "result.json").write_text("{}")

    threading.Timer(0.7, finish).start()
    assert run() == {"a": {"state": "finished"}}
    lock.release()
    assert starts() == 1


def test_an_exception_in_the_listener_stops_the_workers(act, here):
    act("""
        with open(f"part{plan['first']}", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"part{plan['first']}", f"pid{plan['first']}")  # whoever sees the file sees the number
        while not (os.path.exists("pid0") and os.path.exists("pid1")):
            time.sleep(0.01)
        say(run="a", state="running")
        time.sleep(60)
    """)

    def listen(folder, state):
        raise RuntimeError("the terminal is gone")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the terminal is gone"):
        run(workers=2, listen=listen)
    assert time.monotonic() - began < 20
    for i in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((here / f"pid{i}").read_text()), 0)


def test_a_refusal_reaches_the_caller_and_ends_the_other_workers(act):
    act('say(refused="no such thing") if plan["first"] else time.sleep(60)')
    began = time.monotonic()
    with pytest.raises(ValueError, match="no such thing"):
        run(workers=2)
    assert time.monotonic() - began < 20


def test_a_worker_that_cannot_be_started_leaves_none_behind(act, here, monkeypatch):
    act("time.sleep(60)")
    started: list[subprocess.Popen] = []
    real = subprocess.Popen

    def popen(*arguments, **options):
        if started:
            raise OSError("no more processes")
        started.append(real(*arguments, **options))
        return started[0]

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="no more processes"):
        run(workers=2)
    assert started[0].poll() is not None

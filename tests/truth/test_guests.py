"""Bad guests of a race: what each does is recorded as its own result, in a word and a sentence, and nobody else is changed by it."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import guests, tiny
from tests.truth.test_protocol import entry, finish, timeless
from velodrome.bench import fanout
from velodrome.bench.protocol import Entry, drive
from velodrome.bench.sources import DataWritten
from velodrome.bench.supervisor import RENEW, Supervisor, note_turn
from velodrome.recipes.parse import parse
from velodrome.records.read import read, scan
from velodrome.reports import collect

pytestmark = pytest.mark.timeout(900)  # six processes are begun one after the other
WORKLOAD = f"{tiny.__file__}:tiny"
MIB = 1 << 20


def name(guest: str) -> str:
    return f"{guests.__file__}:{guest}"


ALONE = {  # what one process survives
    "Crashes": ("crash", "KeyError: 'no such state'."),
    "Builds": ("crash", "RuntimeError: not for such a model."),
    "Exits": ("exit", "Called sys.exit(3)."),
    "Blinds": ("crash", "RuntimeError: element 0 of tensors does not require grad"),
    "WritesBatch": ("data", "Wrote into a batch of training data in place: work on a copy."),
    "WritesValid": ("data", "Wrote into validation batch 0 in place: work on a copy."),
    "WritesSource": ("data", "Wrote into the training data, past the version counters: work on a copy."),
}
TOGETHER = {
    "Interrupts": ("crash", "KeyboardInterrupt."),
    "Leaves": ("exit", "Left the process with exit code 3."),
    "Hangs": ("over time", "hung, or far slower than the reference."),
    "Holds": ("over time", "in a call that could not be interrupted, and was killed."),
    "Hoards": ("memory", "Out of memory (RuntimeError"),
}


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """One race of many on one workload and one seed, by one worker: their records by their short names."""
    root = tmp_path_factory.mktemp("race")
    algorithms = ["adamw", *map(name, [*TOGETHER, "Prints", "Meddles", "Starts"])]
    plan = {
        **{"root": str(root), "algorithms": algorithms, "workloads": [WORKLOAD], "seeds": [0], "threads": 1},
        "setting": {"device": "cpu", "threads": 1},
        "limits": {"turn_seconds": 5.0, "run_seconds": 25.0, "grace": 0.5, "memory": 256 * MIB},
    }
    states = fanout.run(plan, 1, len(algorithms), lambda folder, state: None)
    return {s["algorithm"].rpartition(":")[2]: read(root / f) for f, s in states.items()}


@pytest.mark.parametrize("guest", ALONE)
def test_a_mistake_is_the_result_of_a_run(guest, tmp_path):
    e = entry(name(guest))
    with pytest.raises(BaseException):  # noqa: B017
        finish(e, tmp_path)
    check(read(tmp_path / e.folder), *ALONE[guest])
    assert torch.is_grad_enabled()


def check(record, kind, note):
    assert (record.result["state"], record.result["failure"]) == ("failed", kind)
    assert note in record.result["note"]
    assert record.rows, "a failed run has a row, so that it counts as a miss"
    assert not record.problems
    if kind == "data":
        (row,) = record.rows
        assert math.isnan(row["valid"])
        assert (record.path / "rows-void.jsonl").exists()


@pytest.mark.parametrize("guest", TOGETHER)
def test_what_ends_a_process_is_the_result_of_the_run_that_was_on(raced, guest):
    check(raced[guest], *TOGETHER[guest])


def test_the_others_are_what_they_are_alone(raced, tmp_path):
    alone = finish(entry("adamw"), tmp_path)
    assert timeless(raced["adamw"].rows) == timeless(alone.rows)
    assert raced["adamw"].result["notes"] == []


def test_what_a_run_prints_is_in_a_file_of_its_own_and_bounded(raced):
    text = (raced["Prints"].path / "output.txt").read_text()
    assert raced["Prints"].result["state"] == "finished"
    assert text.startswith('{"run": "x", "state": "finished"}\nloud loud')
    assert text.endswith("[more was printed and is not kept]\n")
    assert len(text) < 70_000
    assert not (raced["adamw"].path / "output.txt").exists()


def test_settings_of_the_process_are_put_back_and_noted(raced):
    record = raced["Meddles"]
    assert record.result["state"] == "finished"
    changed = ["the default dtype", "the number of threads", "deterministic algorithms", "the working folder"]
    assert record.result["notes"] == [f"changed {what}, which was put back at every evaluation" for what in changed]


def test_processes_that_a_run_leaves_are_ended_with_it_and_threads_are_noted(raced):
    assert raced["Starts"].result["notes"] == ["left 1 process running, which was ended", "left 1 thread running"]
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if _text(p) == "sleep\x001000\x00"]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_race_with_a_guest_that_fails_ends_with_a_table_and_exit_code_1(raced, tmp_path):
    command = [sys.executable, "-m", "velodrome", "race", name("Crashes"), "--on", WORKLOAD, "--seeds", "1", "--json", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    (row,) = [r for r in found["summary"] if r["algorithm"] != "adamw"]
    assert (row["hits"], row["trials"]) == (0, 1)
    assert "KeyError: 'no such state'" in done.stderr


@pytest.mark.parametrize(
    ("code", "memory", "lasted", "verdict"),
    [
        (3, False, 1.0, "exit"),
        (0, False, 1.0, "exit"),
        (RENEW, False, 1.0, "exit"),
        (1, False, 9.0, "over time"),
        (-11, False, 1.0, "crash"),
        (-9, True, 1.0, "memory"),
        (-9, False, 1.0, None),
    ],
)
def test_a_death_is_blamed_on_the_run_that_was_on_if_it_can_be(code, memory, lasted, verdict, monkeypatch):
    keeper = Supervisor({})
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    note_turn(keeper.turn.fileno(), "a-run", 5.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + lasted)
    assert keeper._explained(code, memory)
    assert keeper.died.get("a-run", [None])[0] == verdict
    assert keeper._explained(code, memory)
    assert keeper.died["a-run"][0] == verdict or "crash", "the second time, whoever sent it"
    note_turn(keeper.turn.fileno())
    assert not keeper._explained(code, memory), "nobody was on: a mistake of ours"
    keeper.turn.close()


@pytest.mark.parametrize("code", [0, RENEW])
def test_a_guest_that_leaves_with_the_exit_code_of_a_worker_that_is_done_is_recorded_too(code, monkeypatch):
    keeper, codes = Supervisor({}), [code, RENEW, 0]

    def once(self):
        note_turn(self.turn.fileno(), "a-run" if len(codes) == 3 else "", 5.0)
        return codes.pop(0)

    monkeypatch.setattr(Supervisor, "_once", once)
    assert keeper.work() == 0
    assert not codes, "it goes on after the guest, and after a worker that asked for it"
    assert keeper.died == {"a-run": ["exit", f"Left the process with exit code {code}."]}
    keeper.turn.close()


@pytest.mark.parametrize("guest", ["Builds", "Crashes", "WritesSource"])
def test_a_failed_run_is_a_miss_that_costs_the_budget_at_the_references_price_in_every_cost(guest, tmp_path):
    finish(entry("adamw"), tmp_path)
    with pytest.raises(BaseException):  # noqa: B017
        finish(entry(name(guest)), tmp_path)
    race = collect.race(scan(tmp_path), axis="flops")
    ours, theirs = sorted(race.trials, key=lambda t: t.algorithm == "adamw")
    assert not ours.reached
    assert ours.cost.keys() == theirs.cost.keys() >= {"steps", "examples", "flops", "seconds"}
    assert all(ours.cost[axis] >= theirs.cost[axis] * ours.cost["steps"] / theirs.cost["steps"] * (1 - 1e-9) for axis in theirs.cost)


@pytest.mark.parametrize("seed", range(2))
def test_of_runs_that_take_turns_the_one_that_wrote_the_data_is_found_and_no_other(seed, tmp_path):
    work = tiny.tiny(50)
    data = work.load()
    entries = [Entry(work, data, parse(a), seed) for a in ("adamw", "lion", name("WritesSource"))]
    runs = [drive(e, tmp_path, {}, lambda: False) for e in (entries if seed else entries[::-1])]
    with pytest.raises(DataWritten):
        while True:
            for run in runs:
                next(run)
    for run in runs:
        run.close()
    assert [e.recipe.name for e in entries if (tmp_path / e.folder / "result.json").exists()] == [name("WritesSource")]

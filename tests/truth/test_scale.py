"""Races on a ladder of scales: targets from the reference's own runs on seeds that are not raced, and how a speed-up changes from rung to rung."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from velodrome.bench import targets
from velodrome.bench.robustness import robustness, scale_of
from velodrome.bench.scale import ladder
from velodrome.bench.score import Trial
from velodrome.bench.targets import proposed, round_up, set_from
from velodrome.bench.worker import Worker
from velodrome.commands import race as command
from velodrome.records.read import columns, scan
from velodrome.reports import collect, html, scale

LADDER = """
from dataclasses import replace
from velodrome.bench.workload import rungs

def wide():
    return nn.Sequential(Slow(), nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))

def loaded(batch):
    data = load()
    return replace(data, stream=lambda seed: Shuffled(*(t[:260] for t in everything()), batch, seed))

def everything():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=g)
    return x, (x[:, :3].sum(1) > 0).long() + (x[:, 3:].prod(1) > 0).long()

def one():
    return replace(tiny(50), targets=(), variants=rungs(50, 16, {4: (wide, loaded)}))

def four():
    return one().variant("4x")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "tiny.py").read_text()
    (tmp_path / "rungs.py").write_text(text + LADDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trials(speedups: dict[str, float], seeds: int = 6, spread: float = 0.05, missed: tuple[str, ...] = ()) -> list[Trial]:
    rng = np.random.default_rng(0)
    found = []
    for workload, factor in speedups.items():
        for seed in range(seeds):
            luck = 100 * math.exp(0.3 * rng.normal())
            found.append(Trial(workload, "adamw", seed, True, {"steps": luck * math.exp(spread * rng.normal())}))
            found.append(Trial(workload, "mine", seed, workload not in missed, {"steps": luck / factor * math.exp(spread * rng.normal())}))
    return found


def test_a_target_is_what_nine_of_ten_runs_have_reached_by_its_share_of_the_budget():
    steps = list(range(0, 101, 5))
    curves = [(steps, [2 - t / 100 - 0.001 * k for t in steps]) for k in range(10)]
    assert proposed(curves, 100) == (1.65, 1.5, 1.35)  # the second slowest: 0.001 better than these, rounded up
    slow = [(steps, [9.0] * len(steps))]
    assert proposed([*curves[1:], *slow], 100) == proposed(curves, 100)
    with pytest.raises(ValueError, match="fewer than 90% of 2 runs of the reference have a finite metric"):
        proposed([curves[0], (steps, [math.nan] * len(steps))], 100)
    with pytest.raises(ValueError, match="there are none"):
        proposed([], 100)
    assert [round_up(x) for x in (0.12301, 2.0, 1.9991, -1.2345)] == [0.124, 2.0, 2.0, -1.23]


def test_names_say_scales_and_rungs_are_no_variants():
    assert [scale_of(n) for n in ("a", "a+wide", "a+4x", "a+16x", "a+x4", "a4x")] == [1, 1, 4, 16, 1, 1]
    both = trials({"a": 1.5, "a+4x": 1.2, "a+wide": 1.4})
    (found,) = robustness(both, "adamw", "steps")
    assert found.worst == "a+wide"
    assert found.variants == pytest.approx(1.4, rel=0.05)
    assert robustness(trials({"a": 1.5, "a+4x": 1.2}), "adamw", "steps") == []


def test_a_planted_fading_of_a_speedup_is_found_and_a_constant_one_is_not():
    planted = {"a": 1.6, "a+4x": 1.4, "a+16x": 1.2, "b": 1.5, "b+4x": 1.3, "b+16x": 1.1, "c": 2.0, "c+4x": 2.0, "d": 3.0, "d+wide": 3.0}
    found = ladder(trials(planted), "adamw", "steps", {"a": 1000, "a+4x": 4000})
    assert found is not None
    by = {(r.base, r.scale): r for r in found.rungs}
    assert set(by) == {*((b, s) for b in ("a", "b", None) for s in (1, 4, 16)), ("c", 1), ("c", 4)}
    assert by["a", 4].parameters == 4000
    assert by["a", 16].parameters is None
    for name, factor in planted.items():
        if not name.startswith("d"):
            s = by[name.split("+")[0], scale_of(name)].speedup
            assert s.low < factor < s.high
    assert by[None, 1].speedup.speedup == pytest.approx((1.6 * 1.5) ** 0.5, rel=0.05)
    (change,) = found.changes
    assert (change.first, change.last, change.bases, change.verdict) == (1, 16, ("a", "b"), "fades")
    assert change.low < (1.2 * 1.1 / 1.6 / 1.5) ** 0.5 < change.high < 1
    (same,) = ladder(trials({"a": 1.5, "a+4x": 1.5}), "adamw", "steps").changes
    assert same.low < 1 < same.high
    assert same.verdict == "no change that is separable"
    assert ladder(trials({"a": 1.5, "b": 1.2, "b+wide": 1.1}), "adamw", "steps") is None


def test_a_miss_leaves_the_change_open():
    (change,) = ladder(trials({"a": 1.5, "a+4x": 0.5}, missed=("a+4x",)), "adamw", "steps").changes
    assert (change.low, change.high) == (None, None)
    assert change.verdict.startswith("open")
    (none,) = ladder([t for t in trials({"a": 1.5, "a+4x": 0.5}, seeds=1)], "adamw", "steps").changes
    assert none.low is None


def test_the_table_of_scales_says_what_the_charts_show():
    found = ladder(trials({"a": 1.6, "a+4x": 1.2, "b": 1.5, "b+4x": 1.1}), "adamw", "steps", {"a": 1000, "a+4x": 4000})
    head, body = scale.rows(found)
    assert head == ("algorithm", "workload", "1x", "4x", "change")
    assert [row[1] for row in body] == ["a", "b", "all of them"]
    assert [row[-1][:5] for row in body] == ["", "", f"{found.changes[0].change:.2f}×"]
    (note,) = scale.notes(found)
    assert note.startswith("From 1x to 4x the speed-up of mine on a and b changes by 0.7")
    assert note.endswith(": fades.")
    specs = scale.specs(found, "adamw", "steps")
    assert [len(spec["spec"]["datasets"]["rungs"]) for spec in specs.values()] == [2, 2, 2]
    page = scale.sections(found)
    assert all(f'id="{name}"' in page for name in specs)


def test_a_race_sets_the_targets_of_a_ladder_from_seeds_that_it_does_not_race(folder, monkeypatch, capsys):
    monkeypatch.setattr("velodrome.bench.settling.SEEDS", 3)
    log = folder / "log"
    monkeypatch.setenv("TINY_LOG", str(log))
    plan = {"root": "runs", "algorithms": ["adamw", "lion"], "workloads": ["rungs.py:one", "rungs.py:four"], "seeds": [0, 1], "threads": 1}
    plan |= {"setting": {"device": "cpu", "threads": 1, "until": "target"}, "workers": 1, "first": 0}
    lines = []
    worker = Worker(plan, lambda line, flush: lines.append(json.loads(line)))
    worker.work()
    own = scan(f"runs/{targets.FOLDER}")
    assert {(r.recipe["workload"], r.recipe["seed"]) for r in own} == {(w, s) for w in ("tiny", "tiny+4x") for s in (1000, 1001, 1002)}
    assert all(r.result["steps"] == r.recipe["steps"] == {"tiny": 50, "tiny+4x": 100}[r.recipe["workload"]] for r in own)
    raced = scan("runs")
    assert len(raced) == 8
    for r in raced:
        curves = [columns(x, "t", "valid") for x in own if x.recipe["workload"] == r.recipe["workload"]]
        assert tuple(r.recipe["targets"]) == proposed([(c["t"], c["valid"]) for c in curves], r.recipe["steps"])
        assert r.recipe["seed"] in (0, 1)
        assert r.recipe["targets_from"]["seeds"] == [1000, 1001, 1002]
    told = {line["run"] for line in lines if "run" in line}
    assert sum(name.startswith("targets/") for name in told) == 6

    spent = log.stat().st_size
    Worker(plan, lambda line, flush: None).work()
    assert log.stat().st_size == spent

    race = collect.race(raced, axis="steps")
    sentence = next(n for n in race.notes if n.startswith("The targets of tiny"))
    assert "tiny and tiny+4x" in sentence or "tiny+4x and tiny" in sentence
    assert set_from(raced[0].recipe["targets_from"]) in sentence
    assert "seeds 1000 to 1002, which are not raced" in sentence
    assert [(r.base, r.scale) for r in race.scale.rungs] == [("tiny", 1), ("tiny", 4)]
    assert race.scale.rungs[1].parameters > 1.5 * race.scale.rungs[0].parameters
    said = command.to_json(race, folder / "race.html")
    assert said["scale"]["changes"][0]["algorithm"] == "lion"
    assert all(w["targets_from"]["reference"] == "adamw" for w in said["workloads"])
    page = html.write(folder / "race.html", race).read_text()
    assert "Does it survive scale?" in page
    assert 'id="scale-0"' in page


def test_seeds_that_set_targets_are_refused_in_a_race(folder):
    plan = {"root": "runs", "algorithms": ["adamw"], "workloads": ["rungs.py:one"], "seeds": [1000], "threads": 1}
    plan |= {"setting": {"device": "cpu", "threads": 1}, "workers": 1, "first": 0}
    lines = []
    with pytest.raises(SystemExit):
        Worker(plan, lambda line, flush: lines.append(json.loads(line))).work()
    assert "seeds from 1000 on set the targets" in lines[0]["refused"]
    assert not Path("runs/targets").exists()
    shutil.rmtree("runs", ignore_errors=True)

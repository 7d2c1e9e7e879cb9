"""Which of the runs in a folder make a comparison: versions that never mix, damage, strangers' folders, divergence; and a note for each."""

import json
import os
from dataclasses import dataclass

import pytest

from velodrome.records.read import scan
from velodrome.records.run import Run
from velodrome.reports import collect

RECIPE = {
    **{"workload": "w", "algorithm": "adamw", "seed": 0, "settings": {"lr": 0.1}, "source": None, "code": "c1", "data": "d", "steps": 4},
    **{"targets": [0.5], "metric": "loss", "device": "cpu", "bf16": False, "compile": False, "batch_size": 8, "evaluations": 4},
}


@dataclass
class Step:
    """A step as `Run.row` wants it: one second and ten FLOPs each."""

    t: int

    def __getattr__(self, name):
        return {"tokens": None, "examples": 8 * self.t, "flops": 10 * self.t}.get(name, float(self.t))


def record(root, name, *, valid=(1.0, 0.8, 0.6, 0.4), written=1.0, diverged=None, **recipe):
    """A finished run that reaches 0.5 between the third and the fourth evaluation, finished at second `written` of the clock."""
    with Run.open(root / name, {**RECIPE, **recipe}) as run:
        for t, v in enumerate(valid):
            run.row(Step(t), valid=v)
        run.finish({"state": "diverged" if diverged else "finished", "diverged": diverged, "inexact": []})
    os.utime(root / name / "result.json", (written, written))


def race(root):
    return collect.race(scan(root), axis="steps")


def names(root):
    """The seeds that were chosen, per algorithm, as the trials tell."""
    return sorted((t.algorithm, t.seed, t.cost["steps"]) for t in race(root).trials)


def test_one_version_of_everything_needs_no_note(tmp_path):
    for seed in range(2):
        record(tmp_path, f"a{seed}", seed=seed)
        record(tmp_path, f"m{seed}", seed=seed, algorithm="muon", settings={"lr": 1}, valid=(1.0, 0.4, 0.3, 0.2))
    assert names(tmp_path) == [("adamw", 0, 2.5), ("adamw", 1, 2.5), ("muon", 0, pytest.approx(5 / 6)), ("muon", 1, pytest.approx(5 / 6))]
    assert list(race(tmp_path).notes) == []


@pytest.mark.parametrize("key", collect.SHARED)
def test_runs_that_differ_in_anything_of_the_workload_are_not_compared(tmp_path, key):
    for seed in range(2):
        record(tmp_path, f"a{seed}", seed=seed)
    other = {"steps": 5, "targets": [0.6], "threads": 2, "batch_size": 9}.get(key, "other")
    record(tmp_path, "m0", algorithm="muon", written=9.0, **{key: other})
    assert [t.algorithm for t in race(tmp_path).trials] == ["adamw", "adamw"]
    assert list(race(tmp_path).notes) == [f"w was recorded in 2 versions ({key} differ): left out is 1 run of the others."]


def test_of_versions_with_equally_many_runs_the_newest_counts(tmp_path):
    record(tmp_path, "x", code="c1", written=5.0)
    record(tmp_path, "b", code="c2", written=9.0, valid=(1.0, 0.4, 0.4, 0.4))
    record(tmp_path, "z", code="c3", written=2.0)
    assert names(tmp_path) == [("adamw", 0, pytest.approx(5 / 6))]


def test_seeds_of_an_algorithm_never_mix_two_versions_of_its_source(tmp_path):
    for seed in range(3):
        record(tmp_path, f"a{seed}", seed=seed)
        record(tmp_path, f"old{seed}", seed=seed, algorithm="mine", source="old", written=1.0)
    record(tmp_path, "new1", seed=1, algorithm="mine", source="new", written=2.0, valid=(1.0, 0.4, 0.4, 0.4))
    assert [(a, s) for a, s, _ in names(tmp_path)] == [("adamw", 0), ("adamw", 1), ("adamw", 2), ("mine", 1)]
    (note,) = race(tmp_path).notes
    assert note == "mine on w was recorded in 2 versions of its settings or source: left out are 3 runs of the older."


def test_of_a_repeated_seed_the_newest_run_counts_and_a_note_names_it(tmp_path):
    record(tmp_path, "one", written=1.0)
    record(tmp_path, "two", written=3.0, valid=(1.0, 0.4, 0.4, 0.4), summary="said otherwise")
    record(tmp_path, "zzz", written=2.0, summary="and again")
    assert names(tmp_path) == [("adamw", 0, pytest.approx(5 / 6))]
    (note,) = race(tmp_path).notes
    assert note == "adamw on w, seed 0, was recorded 3 times (one, two and zzz): two, the newest, counts."


@pytest.mark.parametrize("key", ["workload", "algorithm", "seed", "targets", "steps"])
def test_a_finished_folder_of_somebody_else_is_passed_over_with_a_note(tmp_path, key):
    record(tmp_path, "a0")
    recipe = {k: v for k, v in RECIPE.items() if k != key}
    with Run.open(tmp_path / "foreign", recipe) as run:
        run.row(Step(0), valid=1.0)
        run.finish({"state": "finished"})
    assert len(race(tmp_path).trials) == 1
    assert list(race(tmp_path).notes) == [f"foreign is left out: no run of a race (its recipe lacks {key})."]


def test_rows_without_a_validation_value_are_passed_over_with_a_note(tmp_path):
    record(tmp_path, "a0")
    with Run.open(tmp_path / "foreign", {**RECIPE, "algorithm": "theirs"}) as run:
        run.row(Step(0), score=1.0)
        run.finish({"state": "finished"})
    with Run.open(tmp_path / "words", {**RECIPE, "algorithm": "theirs", "seed": 1}) as run:
        run.row(Step(0), valid="good")
        run.finish({"state": "finished"})
    record(tmp_path, "empty", algorithm="theirs", seed=2, valid=())
    assert [t.algorithm for t in race(tmp_path).trials] == ["adamw"]
    notes = " ".join(race(tmp_path).notes)
    assert "foreign has no column 'valid'" in notes
    assert "words is left out: no run of a race" in notes
    assert "empty is left out" in notes


def test_where_only_strangers_are_the_error_says_why_nothing_is_left(tmp_path):
    with Run.open(tmp_path / "foreign", {"algorithm": "adamw"}) as run:
        run.row(Step(0), valid=1.0)
        run.finish({})
    with pytest.raises(ValueError, match=r"no finished runs to report.*foreign is left out: no run of a race"):
        race(tmp_path)


def test_a_run_with_damaged_rows_is_left_out_and_the_note_quotes_the_damage(tmp_path):
    record(tmp_path, "a0")
    record(tmp_path, "a1", seed=1)
    path = tmp_path / "a1" / "rows.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1].replace(b"0.8", b"0.1"), *lines[2:]]))
    assert [t.seed for t in race(tmp_path).trials] == [0]
    assert list(race(tmp_path).notes) == [f"a1 is left out: 1 rows of {tmp_path / 'a1'} are damaged: 1."]


def test_a_run_with_a_damaged_result_is_left_out_with_a_note_and_an_unfinished_one_without(tmp_path):
    record(tmp_path, "a0")
    record(tmp_path, "a1", seed=1)
    (tmp_path / "a1" / "result.json").write_text(json.dumps({"state": "finished"}))
    with Run.open(tmp_path / "a2", {**RECIPE, "seed": 2}) as run:
        run.row(Step(0), valid=1.0)
    assert list(race(tmp_path).notes) == [f"a1 is left out: {tmp_path / 'a1' / 'result.json'} is damaged."]


def test_a_run_that_diverges_after_its_target_has_reached_it_and_one_before_has_missed(tmp_path):
    record(tmp_path, "a0", valid=(1.0, 0.4, float("nan")), diverged="nan")
    record(tmp_path, "a1", seed=1, valid=(1.0, 0.9, float("nan")), diverged="nan")
    record(tmp_path, "a2", seed=2)
    result = race(tmp_path)
    assert [t.reached for t in result.trials] == [True, False, True]
    assert list(result.notes) == ["2 of 3 runs of adamw on w diverged."]


def test_runs_whose_rows_do_not_tell_where_the_clock_went_still_count(tmp_path, monkeypatch):
    record(tmp_path, "a0")
    monkeypatch.setattr(collect, "SPLIT", (*collect.SPLIT[:-1], "no_such_column"))
    assert (race(tmp_path).splits, len(race(tmp_path).trials)) == ([], 1)

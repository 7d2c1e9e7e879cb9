"""`velodrome train --watch`: the run is the one without it, and what was seen is in its folder, also when it was interrupted."""

import pytest

from tests.tiny import tiny
from velodrome.bench.protocol import Entry, Interrupted, drive
from velodrome.cli import main
from velodrome.commands.train import spelled_out
from velodrome.probes.watching.sinks import read as watched
from velodrome.recipes.parse import parse
from velodrome.records.read import read

SECONDS = ("seconds", "data_seconds", "gradient_seconds", "optimizer_seconds")


def numbers(record):
    return [{k: v for k, v in row.items() if k not in SECONDS} for row in record.rows]


def run(root, stops=(), **more):
    """The record of a run of the tiny workload, interrupted at these evaluations."""
    task = tiny(300)
    for stop in (*stops, None):
        entry, count = Entry(task, task.load(), parse("adamw"), 0), [0]

        def asked(stop=stop, count=count):
            count[0] += 1
            return stop is not None and count[0] > stop

        try:
            for _ in drive(entry, root, {}, asked, **more):
                pass
        except Interrupted:
            pass
    return read(root / entry.folder)


def test_a_watched_run_has_the_rows_of_an_unwatched_one_also_when_it_is_interrupted(tmp_path):
    plain = run(tmp_path / "plain")
    once, twice = run(tmp_path / "once", watching=1.0), run(tmp_path / "twice", stops=(120, 90), watching=1.0)
    assert numbers(once) == numbers(plain) == numbers(twice)
    for record in (once, twice):
        rows = watched(record.path / "watch.jsonl")
        steps = [row["step"] for row in rows]
        assert steps
        assert max(steps) <= 300
        assert {"gradient/norm", "update/angle", "layers/log_z"} <= {row["name"] for row in rows}
        keys = [(row["step"], row["name"]) for row in rows]
        assert len(keys) == len(set(keys)), "nothing twice, though steps were"
    assert {s < 121 for s in (row["step"] for row in watched(twice.path / "watch.jsonl"))} == {True, False}


def test_watch_alone_means_two_percent():
    assert spelled_out(["adamw", "--watch", "--on", "digits"]) == ["adamw", "--watch", "2%", "--on", "digits"]
    assert spelled_out(["adamw", "--watch"]) == ["adamw", "--watch", "2%"]
    assert spelled_out(["adamw", "--watch", "0.05"]) == ["adamw", "--watch", "0.05"]


def test_a_wrong_budget_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["train", "adamw", "--on", "digits", "--watch", "200%", "--out", str(tmp_path / "runs")]) == 2
    assert "budget must be a share of the training time, got '200%'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [["--branch-at", "100"]])
def test_several_runs_at_once_are_not_watched(tmp_path, capsys, more):
    assert main(["train", "adamw", "--on", "digits", "--watch", *more, "--out", str(tmp_path)]) == 2
    assert "--watch looks at one run" in capsys.readouterr().err

"""What the live page reads: logs as they grow, folders as they come and go, and nothing twice. What it lets in and answers: test_web.py."""

import json
import os

import numpy as np

from benchmarks.serve import make, read_all, recipe, row
from velodrome.records.run import Run
from velodrome.records.tail import Tail
from velodrome.web import answers
from velodrome.web.folder import IN_TURN, Folder, stamp
from velodrome.web.races import Races
from velodrome.web.series import encoded


def test_a_tail_reads_only_what_was_appended_and_only_whole_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = Tail(str(path))
    assert tail.read() == ([], False)
    path.write_bytes(row(0, 1) + row(1, 1)[:40])
    assert [r["seq"] for r in tail.read()[0]] == [0]
    assert tail.read() == ([], False)
    with path.open("ab") as file:
        file.write(row(1, 1)[40:] + row(2, 1))
    found, anew = tail.read()
    assert ([r["seq"] for r in found], anew) == ([1, 2], False)
    assert tail.offset == path.stat().st_size


def test_a_log_that_was_cut_back_or_replaced_is_read_anew_even_where_it_has_grown_beyond(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(row(i, 1) for i in range(5)))
    tail = Tail(str(path))
    tail.read()
    path.write_bytes(b"".join(row(i, 1) for i in range(3)))
    found, anew = tail.read()
    assert ([r["seq"] for r in found], anew) == ([0, 1, 2], True)
    path.write_bytes(b"".join(row(i, 2) for i in range(9)))
    found, anew = tail.read()
    assert (len(found), anew) == (9, True)
    path.unlink()
    assert tail.read() == ([], True)
    assert tail.read() == ([], False)


def test_damaged_lines_are_passed_over_and_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(row(0, 1) + row(1, 1).replace(b'"t":5', b'"t":6') + b"garbage\n\n" + row(2, 1))
    tail = Tail(str(path))
    assert [r["seq"] for r in tail.read()[0]] == [0, 2]
    assert tail.damaged == 3


def test_a_long_log_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("velodrome.records.tail.CHUNK", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(row(i, 1) for i in range(50)))
    tail, seen = Tail(str(path)), []
    seen += tail.read()[0]
    assert tail.behind
    while tail.behind:
        seen += tail.read()[0]
    assert [r["seq"] for r in seen] == list(range(50))


def test_a_line_longer_than_a_chunk_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("velodrome.records.tail.CHUNK", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 2500 + b"\n" + row(0, 1))
    tail, seen = Tail(str(path)), tail_all(Tail(str(path)))
    assert [r["seq"] for r in seen] == [0]
    assert tail.offset == 0


def tail_all(tail):
    seen = list(tail.read()[0])
    while tail.behind:
        seen += tail.read()[0]
    return seen


def test_what_a_tail_reads_in_any_pieces_is_what_the_records_read(tmp_path):
    g = np.random.default_rng(0)
    whole = b"".join(row(i, 1) for i in range(40))
    path = tmp_path / "rows.jsonl"
    for _ in range(20):
        cuts = sorted(g.integers(0, len(whole), 7))
        path.write_bytes(b"")
        tail, seen = Tail(str(path)), []
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            with path.open("ab") as file:
                file.write(whole[start:end])
            seen += tail.read()[0]
        assert seen == tail_all(Tail(str(path)))
        assert [r["seq"] for r in seen] == list(range(40))


def test_a_run_is_seen_from_its_first_row_to_its_result(tmp_path):
    folder = Folder(tmp_path)
    assert not folder.poll()
    with Run.open(tmp_path / "mine", recipe("digits", "adamw", 0)) as run:
        run.row(t=0, valid=2.0, seconds=0.0)
        (id_,) = read_all(folder).poll().changed or folder.runs
        assert (folder.runs[id_].state, folder.runs[id_].step, folder.runs[id_].valid) == ("running", 0, 2.0)
        run.row(t=5, valid=float("nan"), seconds=1.0)
        run.row(t=10, valid=1.0, seconds=2.0)
        assert folder.poll().changed == {id_}
        about = folder.runs[id_]
        assert (about.step, about.best, about.valid) == (10, 1.0, 1.0)
        assert not folder.poll()
        run.finish({"state": "finished", "steps": 10, "valid": 1.0, "best": 0.9, "seconds": 2.0})
    change = folder.poll()
    assert (change.changed, change.finished) == ({id_}, {id_})
    assert (folder.runs[id_].state, folder.runs[id_].best) == ("finished", 0.9)
    assert folder.series(id_).column("valid")[[0, 2]].tolist() == [2.0, 1.0]


def test_runs_that_are_deleted_leave_and_come_again(tmp_path):
    place = make(tmp_path, "digits", "adamw", 0)
    folder = read_all(Folder(tmp_path))
    (id_,) = folder.runs
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    assert folder.poll().removed == {id_}
    assert not folder.runs
    assert folder.series(id_).n == 0
    make(tmp_path, "digits", "adamw", 0, rows=7, finished=False)
    assert folder.poll().changed == {id_}
    assert folder.runs[id_].step == 30


def test_a_folder_becomes_a_run_when_its_recipe_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("velodrome.web.folder.time.monotonic", iter(range(10**6)).__next__)  # each look at the clock is a second later
    folder = Folder(tmp_path)
    (tmp_path / "late").mkdir()
    assert not folder.poll(1e9)
    (tmp_path / "late" / "recipe.json").write_text('{"workload": "dig')
    assert not folder.poll(1e9)
    (tmp_path / "late" / "recipe.json").write_text(json.dumps(recipe("digits", "adamw", 0)))
    assert len(folder.poll(1e9).changed) == 1


def test_clocks_that_differ_do_not_decide_what_is_running(tmp_path):
    ahead = make(tmp_path, "digits", "adamw", 0, rows=3, finished=False)
    os.utime(ahead / "rows.jsonl", (4e9, 4e9))  # another machine, a century ahead
    behind = make(tmp_path, "digits", "adamw", 1, rows=3, finished=False)
    os.utime(behind / "rows.jsonl", (1e9, 1e9))
    folder = read_all(Folder(tmp_path))
    states = {s.seed: s.state for s in folder.runs.values()}
    assert states == {0: "running", 1: "quiet"}
    with (behind / "rows.jsonl").open("ab") as file:
        file.write(row(3, 1))
    os.utime(behind / "rows.jsonl", (1e9 + 1, 1e9 + 1))
    folder.poll()
    assert {s.seed: s.state for s in folder.runs.values()} == {0: "running", 1: "running"}


def test_recipes_of_strangers_are_shown_and_break_nothing(tmp_path):
    strange = [
        {},
        {"workload": 3, "algorithm": ["x"], "seed": "one", "steps": "many", "targets": "NaN"},
        {"workload": None, "targets": [None], "steps": True},
    ]
    for i, text in enumerate(strange):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "recipe.json").write_text(json.dumps(text))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "recipe.json").write_text("[1, 2")
    folder = read_all(Folder(tmp_path))
    assert len(folder.runs) == 3
    encoded(answers.table(folder, {"q": "x", "sort": "seed"}))
    races = Races(folder)
    encoded([races.race(w["id"], "steps", "", "") for w in races.workloads()])
    for id_ in folder.runs:
        encoded([answers.run(folder, id_), answers.curves(folder, [id_], "t", "valid"), answers.difference(folder, list(folder.runs))])


def test_a_folder_that_goes_away_is_an_error_that_heals(tmp_path):
    root = tmp_path / "runs"
    make(root, "digits", "adamw", 0)
    folder = read_all(Folder(root))
    os.rename(root, tmp_path / "moved")
    assert len(folder.poll().removed) == 1
    assert "cannot be listed" in folder.error
    os.rename(tmp_path / "moved", root)
    assert len(folder.poll().changed) == 1
    assert folder.error == ""


def test_five_thousand_runs_cost_no_read_when_nothing_changes_and_one_when_one_does(tmp_path, monkeypatch):
    root, one = tmp_path / "runs", make(tmp_path, "digits", "adamw", 0)
    for i in range(5000):
        os.makedirs(root / f"run-{i:04}")
        os.link(one / "recipe.json", root / f"run-{i:04}" / "recipe.json")
        if i >= 4980:
            (root / f"run-{i:04}" / "rows.jsonl").write_bytes(row(0, 1))
        else:
            os.link(one / "result.json", root / f"run-{i:04}" / "result.json")
    folder = read_all(Folder(root))
    assert len(folder.runs) == 5000
    stats, opened = [], []
    monkeypatch.setattr("velodrome.web.folder.stamp", lambda path: stats.append(path) or stamp(path))
    monkeypatch.setattr("velodrome.records.tail.Tail._appended", lambda self, real=Tail._appended: opened.append(self.path) or real(self))
    assert not folder.poll()
    assert opened == []
    assert len(stats) <= 1 + 2 * (20 + IN_TURN)
    with (root / "run-4990" / "rows.jsonl").open("ab") as file:
        file.write(row(1, 1))
    (id_,) = folder.poll().changed
    assert (folder.runs[id_].name, folder.runs[id_].step) == ("run-4990", 5)
    assert len(opened) == 1
    page = answers.table(folder, {"sort": "name", "order": "desc", "offset": "150"})
    assert (len(page["runs"]), page["offset"], page["matching"]) == (100, 100, 5000)
    assert page["runs"][0]["name"] == "run-4899"
    assert answers.table(folder, {"q": "RUN-49 s0", "state": "running"})["matching"] == 20

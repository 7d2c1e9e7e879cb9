"""`velodrome score` as it is typed: tables, run folders, AlgoPerf's logs, and mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.truth.test_collect import record
from velodrome.cli import main
from velodrome.data.folder import folder
from velodrome.records.read import scan
from velodrome.reports import measured as module
from velodrome.reports.measured import measured

LOGS = (folder() or Path("nowhere")) / "algoperf" / "hits_v05.csv.gz"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def table(here):
    rng = np.random.default_rng(0)
    lines = ["optimizer,task,seed,steps_to_target"]
    for w in ("x", "y"):
        for s in range(4):
            hard = rng.normal(0, 0.3)
            for name, speed in (("adamw", 1.0), ("mine", 1.3), ("lost", 0.9)):
                lines.append(f"{name},{w},{s},{1000 * np.exp(hard + rng.normal(0, 0.01)) / speed:.1f}")
    path = here / "results.csv"
    path.write_text("\n".join([*lines[:-1], "lost,y,3,"]) + "\n")
    return path


def score(capsys, *words):
    assert main(["score", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_table_is_scored_without_a_word_about_its_columns(table, capsys):
    found = score(capsys, table)
    mine, lost = found["score"]["overall"]
    assert mine["verdict"] == "faster"
    assert 1.25 < mine["low"] < mine["speedup"] < mine["high"] < 1.35
    assert (lost["bound"], lost["hits"], lost["trials"]) == ("<", 7, 8)
    assert found["notes"][0] == "Read as algorithm: optimizer, workload: task, seed: seed, steps: steps_to_target."
    assert [d["adjusted"] < 0.05 for d in found["pairwise"]] == [True, True, True]
    assert found["restricted_speedup"]["mine"] == pytest.approx(1.3, rel=0.02)


def test_the_table_on_the_terminal_and_the_page_say_the_same(table, capsys):
    pytest.importorskip("altair")
    assert main(["score", str(table), "--report", "s.html", "--more", "pairs", "hits"]) == 0
    out = capsys.readouterr().out
    page = Path("s.html").read_text()
    for text in ("1.30× [1.29, 1.32]", "mine is faster", "≤ 0.8"):
        assert text in out
        assert text in page
    assert 'id="profile-best"' in page


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["nothing.csv"], "nothing.csv does not exist"),
        (["results.csv", "--reference", "adam"], "got 'adam': give --reference one of adamw, mine, lost"),
        (["results.csv", "--by", "second"], "unknown cost 'second'"),
        (["results.csv", "--more", "pears"], "did you mean 'pairs'"),
        (["algoperf"], "write velodrome score algoperf FILE"),
        ([], "name one folder of runs or one table"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(table, words, match, capsys):
    assert main(["score", *words]) == 2
    err = capsys.readouterr().err
    assert match in err
    assert err.count("\n") == 1


def test_run_folders_are_scored_and_read_once(here, capsys, monkeypatch):
    for seed in range(3):
        record(here / "runs", f"a{seed}", seed=seed, targets=[0.7, 0.5])
        record(here / "runs", f"m{seed}", seed=seed, algorithm="muon", targets=[0.7, 0.5], valid=(1.0, 0.4 + seed / 100, 0.3, 0.2))
    found = score(capsys, "runs", "--by", "steps")
    assert list(found["targets"]) == ["easy", "hard"]
    assert found["score"]["overall"][0]["verdict"] == "faster"

    def forbidden(r):
        raise AssertionError(f"{r.path} is read again")

    monkeypatch.setattr(module.collect, "flaw", forbidden)
    assert score(capsys, "runs", "--by", "steps") == found


def test_a_run_that_has_changed_is_read_again_and_a_damaged_one_left_out(here):
    for seed in range(2):
        record(here / "runs", f"a{seed}", seed=seed)
    before, _ = measured(here / "runs", scan(here / "runs"))
    log = here / "runs" / "a1" / "rows.jsonl"
    log.write_bytes(log.read_bytes().replace(b"0.6", b"0.3", 1))
    after, notes = measured(here / "runs", scan(here / "runs"))
    assert (len(before), len(after)) == (2, 1)
    assert "a1 is left out: 1 rows" in notes[0]


def test_a_broken_cache_is_no_error(here):
    record(here / "runs", "a0")
    first, _ = measured(here / "runs", scan(here / "runs"))
    (kept,) = (here / "cache" / "curves").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    again, _ = measured(here / "runs", scan(here / "runs"))
    assert again[0].columns["valid"].tolist() == first[0].columns["valid"].tolist()


@pytest.mark.skipif(not LOGS.is_file(), reason="needs algoperf/hits_v05.csv.gz in the data folder")
def test_algoperf_is_scored_as_published_with_what_the_ranking_hangs_on(capsys):
    found = score(capsys, "algoperf", LOGS)["rulesets"]
    published = json.loads((LOGS.parent / "published_scores_v05.json").read_text())
    for ruleset, c in found.items():
        assert {name: round(x, 4) for name, x in c["score"].items()} == published[f"v05/{ruleset}"]
        for name in c["order"]:
            assert sum(c["ranks"][name]) == pytest.approx(1)
            assert c["low"][name] <= c["high"][name]
    assert round(1 - found["external"]["ratio"]["shampoo_submission"], 3) == 0.279
    assert round(1 - found["self"]["ratio"]["schedule_free_adamw"], 3) == 0.078
    assert any(text.startswith("Without caspr_adaptive, schedule_free_adamw is first") for text in found["external"]["remarks"])
    assert any("lawa_ema has 0.3434" in text for text in found["external"]["remarks"])
    low, high = found["external"]["speedup"]["shampoo_submission"][1:]
    assert 1 < low < 1.38 < high
    assert 0.6 < found["external"]["above_next"]["shampoo_submission"] < 0.9

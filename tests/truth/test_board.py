"""The board: runs in one small file say what the runs themselves say, nobody's score moves when somebody else enters, and the pages are what it says."""

import gzip
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import board as command
from velodrome.bench.ranking import ranking
from velodrome.bench.score import Trial, speedups
from velodrome.cli import main
from velodrome.records.packed import COLUMNS, Packed, pack, unpack
from velodrome.records.read import read, scan
from velodrome.records.run import Run
from velodrome.reports import board, board_page, board_words

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 40, 2
RATES = {"adamw": 0.05, "quick": 0.08, "slow": 0.03, "same": 0.05, "never": 0.005}


def rows(rate, seed, workload):
    rng = np.random.default_rng([seed, len(workload), int(1e6 * rate)])
    rate *= math.exp(0.05 * rng.standard_normal())
    for t in range(0, STEPS + 1, EVERY):
        clock = 0.0123456789 * t
        spent = {"data_seconds": 0.1 * clock, "gradient_seconds": 0.6 * clock, "optimizer_seconds": 0.3 * clock}
        yield {"t": t, "examples": 64 * t, "flops": 10**9 * t, "seconds": clock, **spent, "loss": 1.0, "valid": 2.0 * math.exp(-rate * t)}


def recipe(workload, algorithm, seed):
    same = {"targets": [1.2, 0.8, 0.5], "steps": STEPS, "batch_size": 64, "evaluations": 20, "metric": "validation loss", "device": "cpu"}
    return {"workload": workload, "algorithm": algorithm, "settings": {"lr": 0.1}, "seed": seed, **same, "summary": "a toy"}


def packed(workload, algorithm, seed):
    """A run as the file gives it, without a folder or a file."""
    table = list(rows(RATES[algorithm], seed, workload))
    columns = {c: [row[c] for row in table] for c in COLUMNS}
    result = {"state": "finished", "seconds": 0.5, "diverged": None, "best": columns["valid"][-1], "inexact": []}
    return Packed(
        Path("nowhere") / f"{workload}-{algorithm}-s{seed}", recipe(workload, algorithm, seed), result, True, None, None, columns, []
    )


@pytest.fixture(scope="module")
def runs():
    return [packed(f"w{'x' * w}", a, s) for w in range(5) for a in RATES for s in range(3)]


@pytest.fixture
def folders(tmp_path):
    """Run folders as a race leaves them: two workloads, one run that diverges to NaN, one miss."""
    for workload in ("w", "wx"):
        for algorithm in ("adamw", "quick", "never"):
            for seed in range(2):
                broken = (workload, algorithm, seed) == ("wx", "never", 1)
                with Run.open(
                    tmp_path / "runs" / f"{workload}-{algorithm}-s{seed}",
                    recipe(workload, algorithm, seed),
                    {"cpu": "abacus", "load": [1.0]},
                ) as run:
                    for row in rows(RATES[algorithm], seed, workload):
                        run.row(**row | ({"valid": math.nan} if broken and row["t"] > 20 else {}))
                    run.finish(
                        {
                            "state": "diverged" if broken else "finished",
                            "diverged": "loss" if broken else None,
                            "best": 0.1234567890123,
                            "inexact": [],
                        }
                    )
    return tmp_path / "runs"


def test_a_packed_board_says_what_the_runs_say_to_the_rounding(folders, tmp_path):
    path = tmp_path / "self.jsonl.gz"
    pack(path, scan(folders))
    own, kept = board.board(scan(folders)), board.read(path)
    assert command.told(own).keys() == command.told(kept).keys()
    assert 0 < command.difference(own, kept) < 2e-5
    assert [(s.algorithm, s.hits) for s in own.race.score.overall] == [("never", 0), ("quick", 4)]
    assert "1 of 2 runs of never on wx diverged." in kept.race.notes
    assert kept.race.environment == own.race.environment
    assert len(kept.race.splits) == len(own.race.splits) == 6


def test_a_packed_run_keeps_its_identity_and_nan_and_rounds_clocks_to_five_digits(folders, tmp_path):
    pack(tmp_path / "x.jsonl.gz", scan(folders))
    kept = {r.path.name: r for r in unpack(tmp_path / "x.jsonl.gz")}
    whole = read(folders / "wx-never-s1")
    mine = kept["wx-never-s1"]
    assert mine.recipe == whole.recipe
    assert (mine.finished, mine.problems, mine.result["best"]) == (True, [], 0.123457)
    assert [math.isnan(row["valid"]) for row in mine.rows] == [math.isnan(row["valid"]) for row in whole.rows]
    assert any(math.isnan(row["valid"]) for row in mine.rows)
    assert [row["flops"] for row in mine.rows] == [row["flops"] for row in whole.rows]
    assert [row["seconds"] for row in mine.rows] == [float(f"{row['seconds']:.5g}") for row in whole.rows]
    assert mine.environment[0]["cpu"] == "abacus"
    assert "load" not in mine.environment[0]


def test_the_same_runs_make_the_same_bytes_in_any_order_and_again_when_packed_again(runs, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    size = pack(a, runs)
    pack(b, runs[::-1])
    pack(c, unpack(a))
    assert a.read_bytes() == b.read_bytes() == c.read_bytes()
    assert a.stat().st_size == size
    assert (
        a.read_bytes()[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    )  # RFC 1952: no name, no time, best compression, unknown system


def test_what_is_not_finished_or_names_a_place_on_this_machine_is_not_packed(runs, tmp_path):
    with pytest.raises(ValueError, match="not finished"):
        pack(tmp_path / "x", [replace(runs[0], finished=False)])
    for recipe, result in (({"algorithm": "/home/me/mine.py:Mine"}, {}), ({}, {"note": "OSError: '/scratch/cache' is full"})):
        private = replace(runs[0], recipe=runs[0].recipe | recipe, result=runs[0].result | result)
        with pytest.raises(ValueError, match=r"names a place on this machine \(/(home|scratch)/"):
            pack(tmp_path / "x", [private])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("harm", ["text", "cut", "bit", "lines", "ragged", "missing"])
def test_a_damaged_board_is_one_sentence(harm, runs, tmp_path):
    path = tmp_path / "self.jsonl.gz"
    pack(path, runs[:3])
    data = path.read_bytes()
    body = json.loads(gzip.decompress(data).splitlines()[0])
    body["rows"]["t"].pop()
    harmed = {
        "text": b"algorithm,workload\n",
        "cut": data[:-20],
        "bit": data[:60] + bytes([data[60] ^ 4]) + data[61:],
        "lines": gzip.compress(b"[1, 2]\n"),
        "ragged": gzip.compress(json.dumps(body).encode()),
    }
    path.unlink() if harm == "missing" else path.write_bytes(harmed[harm])
    with pytest.raises(ValueError, match=r"cannot be read as a board: .*\.$"):
        unpack(path)


def test_nobodys_speedup_moves_when_somebody_else_is_left_out(runs):
    whole = {s.algorithm: s for s in board.board(runs).race.score.overall}
    for out in RATES.keys() - {"adamw"}:
        left = board.board([r for r in runs if r.recipe["algorithm"] != out])
        assert {s.algorithm: s for s in left.race.score.overall} == {a: s for a, s in whole.items() if a != out}


def test_rows_are_in_the_order_of_speed_with_the_reference_between_faster_and_slower(runs):
    b = board.board(runs)
    head, body = board.board_rows(b)
    assert [row[0] for row in body] == sorted((row[0] for row in body), key=lambda a: -RATES[a])
    assert {row[0]: row[head.index("hits")] for row in body} == {
        "quick": "15/15",
        "same": "15/15",
        "adamw": "15/15",
        "slow": "0/15",
        "never": "0/15",
    }
    named = {row[0]: row for row in body}
    assert named["quick"][head.index("p adjusted")] == "< 0.001"
    assert named["never"][head.index("p adjusted")] == "< 0.001"  # a miss is evidence against who missed
    assert named["never"][1].startswith("≤ ")
    assert all(len(row) == len(head) for row in body)


def test_holm_runs_over_the_comparisons_with_the_reference_alone(runs):
    b = board.board(runs)
    own = {(d.a, d.b): d for d in b.race.standing.duels}
    assert len(own) == 10
    known = sorted(p for (a, _), d in own.items() if a == "adamw" and (p := d.p) is not None)
    assert len(known) == 4
    assert b.adjusted["quick"] == pytest.approx(4 * known[0])
    assert b.adjusted["same"] == known[-1] == 1.0
    assert b.adjusted["quick"] <= own["adamw", "quick"].adjusted


def tuned(run, number):
    """The run as a trial of a study: slower or quicker by its number, with options of its own."""
    scale = {1: 1.5, 2: 0.9, 3: 1.2}[number]
    columns = run.columns | {c: [x * scale for x in run.columns[c]] for c in ("flops", "seconds")}
    told = {
        "algorithm": f"{run.recipe['algorithm']}(lr={scale})",
        "rules": "external",
        "entrant": run.recipe["algorithm"],
        "trial": number,
        "space": "lr",
    }
    return replace(run, path=run.path.with_name(f"{run.path.name}-{number}"), recipe=run.recipe | told, columns=columns)


def test_under_external_tuning_the_fastest_trial_counts_and_both_prices_are_told(runs, tmp_path):
    two = [r for r in runs if r.recipe["algorithm"] in ("adamw", "quick")]
    pack(tmp_path / "external.jsonl.gz", [tuned(r, n) for r in two for n in (1, 2, 3)])
    own, b = board.board(two), board.read(tmp_path / "external.jsonl.gz")
    assert (b.rules, b.race.algorithms, len(b.race.trials)) == ("external", ["adamw", "quick"], 30)
    (untuned,), (best,), (paid,) = (x.overall for x in (own.race.score, b.race.score, b.race.tuning.paid))
    assert best.speedup == pytest.approx(untuned.speedup)  # a factor of 0.9 on both sides
    assert paid.speedup == pytest.approx(untuned.speedup)
    assert {(r, t) for *_, r, t in b.race.tuning.winners} == {("adamw(lr=0.9)", 2), ("quick(lr=0.9)", 2)}
    assert b.to_json()["tuning"]["trials"] == {"adamw": 45, "quick": 45}
    assert "What tuning cost" in board_page._body(b, board_page.drawn(b))


def trials(logs, seeds=3):
    """Trials whose log speed-up on workload w is logs[algorithm][w]."""
    return [
        Trial(f"w{w}", a, s, True, {"flops": math.exp(5 - x)}) for a, own in logs.items() for w, x in enumerate(own) for s in range(seeds)
    ]


def test_a_rank_that_no_redraw_changes_is_sure_and_equal_algorithms_share_it():
    found = {
        r.algorithm: r
        for r in ranking(trials({"adamw": [0] * 6, "best": [0.5] * 6, "twin": [0] * 6, "last": [-0.3] * 6}), "adamw", "flops")
    }
    assert {a: (r.rank, r.low, r.high, r.first) for a, r in found.items()} == {
        "best": (1, 1, 1, 1.0),
        "adamw": (2, 2, 2, 0.0),
        "twin": (2, 2, 2, 0.0),
        "last": (4, 4, 4, 0.0),
    }


def test_the_share_of_first_places_is_that_of_the_draws_in_which_the_speedup_exceeds_one():
    rng = np.random.default_rng(2)
    raced = trials({"adamw": [0] * 8, "mine": rng.normal(0.03, 0.1, 8).tolist()})
    first = {r.algorithm: r.first for r in ranking(raced, "adamw", "flops")}
    (score,) = speedups(raced, "adamw", "flops").overall
    assert 0.5 < score.p_faster < 0.95
    assert first["mine"] == pytest.approx(score.p_faster, abs=1e-9)
    assert first["adamw"] == pytest.approx(1 - first["mine"])


def test_a_workload_without_a_cost_is_named_and_neither_counted_nor_ranked(runs):
    free = [replace(r, columns=r.columns | {"flops": [0] * len(r.columns["flops"])}) if r.recipe["workload"] == "wx" else r for r in runs]
    with_it, without = board.board(free), board.board([r for r in runs if r.recipe["workload"] != "wx"])
    assert board_words.silent(with_it) == ["wx"]
    assert board_words.leader(with_it).startswith("On 4 workloads, ")
    assert "wx has no cost in FLOPs" in board_words.reading(with_it)[0]
    assert with_it.ranks == without.ranks
    assert with_it.also["seconds"].overall[0].pairs == 15


def test_ranks_of_few_workloads_with_one_seed_are_not_told():
    assert ranking(trials({"adamw": [0] * 4, "mine": [1] * 4}, seeds=1), "adamw", "flops") == []
    assert len(ranking(trials({"adamw": [0] * 4, "mine": [1] * 4}, seeds=2), "adamw", "flops")) == 2


def test_the_command_prints_draws_and_answers_in_json(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    pack(tmp_path / "mine" / "self.jsonl.gz", [r for r in runs if r.recipe["workload"] in ("w", "wx")])
    assert main(["report", "board", "mine", "--more", "workloads", "targets", "restricted"]) == 0
    out = capsys.readouterr().out
    assert "1 of 4 algorithms is faster than adamw in FLOPs" in " ".join(out.split())
    assert "verdict" not in out
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["report", "board", "mine"]) == 0
    assert "verdict" in capsys.readouterr().out
    assert main(["report", "board", "mine/self.jsonl.gz", "--json", "--on", "w", "--by", "steps", "--svg", "b.svg"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rules"], told["score"]["axis"], sorted(told["also"])) == ("self", "steps", ["flops", "seconds"])
    assert {c["workload"] for c in told["score"]["cells"]} == {"w"}
    assert "<svg" in (tmp_path / "b.svg").read_text()
    assert (tmp_path / "board.html").stat().st_size > 500_000


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no board"),
        (["a", "b"], "name one folder or file"),
        (["self.jsonl.gz", "--rules", "external"], "unknown rules 'external'"),
        (["self.jsonl.gz", "--more", "workload"], "did you mean 'workloads'"),
        (["self.jsonl.gz", "--on", "wxyz"], "unknown workload 'wxyz'"),
        (["self.jsonl.gz", "--reference", "sgd"], "the reference 'sgd' is not among"),
        (["self.jsonl.gz", "--svg", "board.png"], "--svg needs a name that ends in .svg"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, reason, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "self.jsonl.gz", runs[:15])
    if words == ["."]:
        (tmp_path / "self.jsonl.gz").unlink()
    assert main(["report", "board", *words]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1


def test_charts_of_lines_show_as_many_algorithms_as_there_are_colours(runs):
    many = [
        replace(r, recipe=r.recipe | {"algorithm": f"{r.recipe['algorithm']}{n}"})
        for n in range(3)
        for r in runs
        if r.recipe["algorithm"] != "adamw"
    ]
    b = board.board([*many, *(r for r in runs if r.recipe["algorithm"] == "adamw")])
    few = board_page.drawn(b)
    assert len(few.algorithms) == 7
    assert {"adamw", "quick0", "quick1", "quick2"} < set(few.algorithms)
    assert {s.algorithm for s in few.standing.over_reference} == set(few.algorithms)
    assert len(board.board_rows(b)[1]) == 13


def test_packing_tells_the_size_and_says_that_the_scores_are_equal(folders, tmp_path, capsys):
    assert command.main(["pack", str(folders), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "12 runs" in told
    assert "Scores differ by at most" in told
    assert len(unpack(tmp_path / "out" / "self.jsonl.gz")) == 12
    (tmp_path / "empty").mkdir()
    assert command.main(["pack", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2


def test_what_a_run_will_take_is_told_beforehand(capsys):
    assert (
        command.main(["run", "--dry", "--on", "digits", "ratings", "--algorithms", "adamw", "muon", "--seeds", "4", "--workers", "2"]) == 0
    )
    assert capsys.readouterr().err.startswith("16 runs (2 algorithms, 2 workloads, 4 seeds): about ")
    assert command.estimate(2, ["digits"], 4, 5, 2) == pytest.approx(5 * command.estimate(2, ["digits"], 4, 1, 2))
    for name in command.ALGORITHMS:
        assert importlib.import_module(f"velodrome.recipes.{name}")


def test_the_boards_that_are_shipped_are_small():
    there = board.shipped()
    assert sum(path.stat().st_size for path in there.values()) < command.LARGEST
    for path in there.values():
        assert path.read_bytes()[4:8] == bytes(4)  # no time, so that packing again gives the same bytes


@pytest.fixture
def refresh(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("refresh")


def test_the_pages_say_what_the_shipped_boards_say(refresh):
    tables = importlib.import_module("board_tables")
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/board.md", "README.md"))
    part, advice = tables.page_part(), "stale: run `python docs/refresh.py board`"
    assert refresh.between(page, "python docs/refresh.py board", part) == page, advice
    assert tables.short() in readme, advice


def test_the_section_of_a_board_says_what_was_run_and_what_has_changed_since(refresh, runs):
    tables = importlib.import_module("board_tables")
    text = tables.section("self", runs)
    assert "75 runs: 5 algorithms, 5 workloads, seeds 0 to 2" in text
    assert "`quick(lr=0.1)`" in text
    assert "Changed since: options of adamw." in text
    assert all(
        line.count("|") == text.splitlines()[i - 1].count("|") for i, line in enumerate(text.splitlines()) if line.startswith("|---")
    )

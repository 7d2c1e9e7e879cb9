"""The rules of a race: where a run ends, how trials are drawn and counted, and what an algorithm learns of its workload."""

from dataclasses import replace

from tests import tiny
from velodrome.bench.protocol import Entry, Setting, drive
from velodrome.recipes.parse import parse
from velodrome.records.read import read, scan
from velodrome.reports import collect

CLOCKS = {"seconds", "evaluation_seconds", "data_seconds", "gradient_seconds", "optimizer_seconds"}


def finish(root, algorithm, seed=0, target=1.0, **setting):
    work = replace(tiny.tiny(50), targets=(1.03, target))
    entry = Entry(work, work.load(), parse(algorithm), seed, Setting(**setting))
    for _ in drive(entry, root, {}, lambda: False):
        pass
    return read(root / entry.folder)


def timeless(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


# --- until the target ----------------------------------------------------------------------------------------------------------------


def test_a_run_until_its_target_is_the_whole_run_up_to_the_first_evaluation_that_reaches_it(tmp_path):
    whole, short = finish(tmp_path, "adamw"), finish(tmp_path, "adamw", until="target")
    n = len(short.rows)
    assert 1 < n < len(whole.rows)
    assert timeless(short.rows) == timeless(whole.rows)[:n]
    assert short.rows[-1]["valid"] <= 1.0 < min(row["valid"] for row in short.rows[:-1])
    assert (short.result["state"], short.result["stopped"], short.result["steps"]) == ("finished", "target", short.rows[-1]["t"])
    assert whole.result["stopped"] is None
    assert whole.path != short.path


def test_a_run_that_misses_its_target_goes_on_to_the_budget(tmp_path):
    record = finish(tmp_path, "adamw", target=1e-6, until="target")
    assert (record.result["state"], record.result["stopped"], record.result["steps"]) == ("finished", None, 50)


def test_races_until_the_target_have_the_scores_of_whole_races(tmp_path):
    for seed in range(3):
        for algorithm in ("adamw", "lion", "sgd(lr=0.001)"):  # the last one misses
            finish(tmp_path / "whole", algorithm, seed)
            finish(tmp_path / "short", algorithm, seed, until="target")
    whole, short = (collect.race(scan(tmp_path / kind), axis="flops") for kind in ("whole", "short"))
    assert short.score == whole.score
    assert [t.reached for t in short.trials].count(False) == 3
    assert {(t.workload, t.algorithm, t.seed, t.cost["flops"]) for t in short.trials} == {
        (t.workload, t.algorithm, t.seed, t.cost["flops"]) for t in whole.trials
    }
    easy = {kind: {s.algorithm: s.speedup for s in race.standing.levels["easy"].overall} for kind, race in {"w": whole, "s": short}.items()}
    assert easy["w"] == easy["s"]

"""Racing: who needs another seed, what misses forbid, what was saved, and an algorithm against itself under another name."""

import json
import shutil
from math import exp
from pathlib import Path

import numpy as np
import pytest

from velodrome.bench.deciding import decide, saved
from velodrome.bench.score import Trial, speedups
from velodrome.cli import main
from velodrome.records.read import scan

TINY = Path(__file__).parent.parent / "tiny.py"


def trials(logs, workload="w", missed=(), reference_missed=(), algorithm="a"):
    """Pairs whose log speed-ups are `logs`, by seed."""
    found = []
    for seed, log in enumerate(logs):
        found.append(Trial(workload, "adamw", seed, seed not in reference_missed, {"steps": 100.0}))
        found.append(Trial(workload, algorithm, seed, seed not in missed, {"steps": 100.0 * exp(-log)}))
    return found


def only(*args, **more):
    (d,) = decide(trials(*args, **more), "adamw", "steps")
    return d


def test_clear_differences_are_decided_and_noisy_ones_are_not():
    assert only([0.21, 0.18, 0.24]).verdict == "faster"
    assert only([-0.21, -0.18, -0.24]).verdict == "slower"
    assert only([0.0, 0.0, 0.0]).verdict == "equal"
    assert only([0.5, -0.4, 0.1]).verdict is None
    assert only([0.2]).verdict is None


def test_a_miss_allows_only_the_verdict_that_it_cannot_contradict():
    slow = only([-0.5, -0.55, -0.52], missed=[1])
    assert (slow.verdict, slow.bound, slow.low) == ("slower", "<", None)
    assert only([0.5, 0.55, 0.52], missed=[1]).verdict is None
    fast = only([0.5, 0.55, 0.52], reference_missed=[1])
    assert (fast.verdict, fast.bound, fast.high) == ("faster", ">", None)


def test_a_seed_is_one_pair_over_all_workloads_and_one_that_says_nothing_is_left_out():
    both = trials([0.1, 0.3, 0.2], "u") + trials([0.3, 0.1, 0.2], "w")
    (d,) = decide(both, "adamw", "steps")
    assert (d.verdict, d.pairs) == ("faster", 3)
    assert d.speedup == pytest.approx(exp(0.2))
    (d,) = decide(trials([0.1, 0.3, 0.2], "u", missed=[2], reference_missed=[2]) + trials([0.3, 0.1, 0.2], "w"), "adamw", "steps")
    assert (d.pairs, d.left_out) == (2, 1)
    (d,) = decide(trials([0.1] * 3, "u", missed=range(3), reference_missed=range(3)) + trials([0.3, 0.1, 0.2], "w"), "adamw", "steps")
    assert (d.pairs, d.left_out) == (3, 0)


def test_variants_have_cells_of_their_own_and_do_not_count_overall():
    every = trials([0.2, 0.2, 0.2]) + trials([-0.6, -0.6, -0.6], "w+wide")
    assert decide(every, "adamw", "steps")[0].speedup == pytest.approx(exp(0.2))
    score = speedups(every, "adamw", "steps")
    assert score.overall[0].speedup == pytest.approx(exp(0.2))
    assert {c.workload: c.speedup for c in score.cells} == {"w": pytest.approx(exp(0.2)), "w+wide": pytest.approx(exp(-0.6))}
    assert speedups(trials([0.1, 0.1], "w+wide"), "adamw", "steps").overall[0].speedup == pytest.approx(exp(0.1))


def test_an_algorithm_without_effect_is_called_different_in_few_races_however_often_one_looks():
    """Twenty looks at every race: at most 5 % of 400 may be wrong (binomial, 4 standard errors); a fixed-sample interval is wrong in a quarter."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(400):
        logs = rng.normal(0.0, 0.1, 20).tolist()
        wrong += any(only(logs[:n]).verdict in ("faster", "slower") for n in range(3, 21, 2))
    assert wrong / 400 < 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5


def test_what_is_saved_is_counted_against_the_maximum_of_seeds():
    gain = saved({"adamw": [10.0] * 4, "a": [20.0] * 3, "b": [10.0] * 4}, most=20, each=1)
    assert (gain.runs, gain.of) == (49, 60)
    assert (gain.flops, gain.of_flops) == (800 - 140, 800)


def test_adamw_against_itself_under_another_name_costs_exactly_the_same_and_racing_ends_at_once(tmp_path, monkeypatch, capsys):
    shutil.copy(TINY, tmp_path / "mine.py")
    (tmp_path / "twin.py").write_text("from velodrome.recipes.adamw import adamw\ndef same(lr: float = 0.012):\n    return adamw(lr=lr)\n")
    (tmp_path / "task.py").write_text(
        "from dataclasses import replace\nimport mine\ndef tiny():\n    return replace(mine.tiny(50), targets=(1.0,))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{TINY.parent.parent}")
    words = ["race", "twin.py:same", "--on", "task.py:tiny", "--seeds", "2", "--by", "flops", "--race-until", "decided", "--workers", "1"]
    assert main([*words, "--until", "target", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    (overall,) = told["score"]["overall"]
    assert (overall["speedup"], overall["low"], overall["high"]) == (1.0, 1.0, 1.0)
    (d,) = told["racing"]["decisions"]
    assert (d["verdict"], d["pairs"]) == ("equal", 2)
    assert (told["racing"]["saved"]["runs"], told["racing"]["saved"]["of"]) == (36, 40)
    steps = {}
    for r in scan(tmp_path / "runs"):
        steps.setdefault(r.recipe["seed"], set()).add((r.result["steps"], r.result["flops"]))
    assert all(len(s) == 1 for s in steps.values())

"""All pairs of algorithms: Holm's procedure by hand, false calls in A/A tables, a planted difference."""

import numpy as np
import pytest

from velodrome.bench.pairwise import duels, holm
from velodrome.bench.score import Trial, speedups


def table(rng, speeds, workloads=6, seeds=3, spread=0.05):
    """Trials whose seeds are paired: the workload's and the seed's own difficulty cancel."""
    found = []
    for w in range(workloads):
        for s in range(seeds):
            hard = rng.normal(0, 0.3)
            for name, speed in speeds.items():
                cost = 100 * np.exp(hard + rng.normal(0, spread)) / speed
                found.append(Trial(f"w{w}", name, s, True, {"seconds": float(cost)}))
    return found


def test_holm_is_what_a_hand_computes():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_among_six_equal_algorithms_a_false_call_is_rare():
    """60 tables of 15 duels, fixed beforehand; at most 5 % of the tables should have any: 9 or more of 60 would be seen by chance once in 300 times."""
    rng = np.random.default_rng(0)
    names = dict.fromkeys("abcdef", 1.0)
    false = [any(d.adjusted < 0.05 for d in duels(table(rng, names), resamples=1000)) for _ in range(60)]
    unadjusted = [min(d.p for d in duels(table(rng, names), resamples=1000)) < 0.05 for _ in range(60)]
    assert sum(false) < 9
    assert sum(unadjusted) > 15


def test_a_duel_is_the_speedup_over_the_other_and_finds_a_planted_one():
    trials = table(np.random.default_rng(1), {"a": 1.3, "b": 1.0, "c": 1.0})
    by = {(d.a, d.b): d for d in duels(trials)}
    assert set(by) == {("a", "b"), ("a", "c"), ("b", "c")}
    over = {s.algorithm: s for s in speedups(trials, "b").overall}["a"]
    assert (by["a", "b"].speedup, by["a", "b"].low, by["a", "b"].high) == (over.speedup, over.low, over.high)
    assert by["a", "b"].verdict == "a is faster"
    assert by["b", "c"].verdict == "not separable at this scale"


def missed(at, who="b"):
    """Equal algorithms, of which one misses its target with every first seed, at this budget."""
    trials = [t for t in table(np.random.default_rng(2), {"a": 1.0, "b": 1.0}) if t.algorithm not in who or t.seed]
    return trials + [Trial(f"w{w}", name, 0, False, {"seconds": at}) for w in range(6) for name in who]


def test_a_miss_is_evidence_against_who_missed_and_never_for_it():
    (late,) = duels(missed(5000.0))
    assert (late.bound, late.high, late.verdict) == (">", None, "a is faster")
    assert late.p < 0.001
    (early,) = duels(missed(5.0))  # as if b had been fast, which a miss cannot show
    assert (early.bound, early.p, early.adjusted, early.verdict) == (">", 1.0, 1.0, "not separable at this scale")
    assert early.speedup < 0.5


def test_where_both_missed_the_p_value_is_open():
    trials = [t for t in missed(5000.0) if (t.workload, t.algorithm, t.seed) != ("w0", "a", 1)]
    (duel,) = duels([*trials, Trial("w0", "a", 1, False, {"seconds": 5000.0})])
    assert duel.bound == "?"
    assert duel.p is duel.adjusted is duel.low is duel.high is None
    assert duel.verdict == "not known"


def test_one_algorithm_is_no_comparison():
    with pytest.raises(ValueError, match="needs two algorithms"):
        duels([Trial("w", "a", 0, True, {"seconds": 1.0})])

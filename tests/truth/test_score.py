"""The score against closed forms, SciPy's Student t, and the coverage of simulated races.

The simulations' sizes were fixed before they were run; with 1,000 races a coverage of 95 % has a standard error of 0.7 %.
"""

import json

import numpy as np
import pytest

from velodrome.bench.interval import resample
from velodrome.bench.score import Trial, speedups, summary


def race(logs, workload="w", algorithm="muon", base=10.0):
    """Trials whose log ratios reference/algorithm are exactly `logs`, one per seed."""
    ours = [Trial(workload, algorithm, s, True, {"seconds": base * np.exp(-x)}, final=0.5) for s, x in enumerate(logs)]
    theirs = [Trial(workload, "adamw", s, True, {"seconds": base}, final=0.6) for s in range(len(logs))]
    return ours + theirs


def only(score):
    (cell,) = score.cells
    return cell


def test_speedup_is_the_geometric_mean_of_paired_ratios():
    cell = only(speedups(race([0.1, 0.4, 0.25])))
    assert cell.speedup == pytest.approx(np.exp(0.25), rel=1e-12)
    assert (cell.pairs, cell.hits, cell.reference_hits, cell.bound) == (3, 3, 3, "")


def test_overall_is_the_unweighted_geometric_mean_over_workloads():
    score = speedups(race([0.1, 0.3], "a") + race([0.5, 0.6, 0.7], "b"))
    (overall,) = score.overall
    assert overall.speedup == pytest.approx(np.exp((0.2 + 0.6) / 2), rel=1e-12)
    assert (overall.workload, overall.pairs, overall.scope) == (None, 5, "these workloads")


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_on_normal_quantiles_the_interval_is_students_t(n):
    """For large n-dispersed data the t interval is exact; at n = 2 and 3 the resampled mean takes few values, hence 20 %."""
    stats = pytest.importorskip("scipy.stats")
    x = stats.norm.ppf((np.arange(n) + 0.5) / n)
    draws = resample([x], 200_000, np.random.default_rng(0))
    half = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)
    assert np.quantile(draws, 0.975) == pytest.approx(half, rel=0.2 if n <= 3 else 0.06)


def test_variance_of_the_draws_equals_the_closed_form():
    """Var = (1/W^2) sum_w s_w^2/n_w * E[(n-1)/chi2_{n-1}], and the last factor is (n-1)/(n-3)."""
    rng = np.random.default_rng(1)
    groups = [rng.normal(size=12), rng.normal(size=20) * 3]
    want = sum(g.var(ddof=1) / len(g) * (len(g) - 1) / (len(g) - 3) for g in groups) / 4
    assert resample(groups, 200_000, rng).var() == pytest.approx(want, rel=0.03)


def coverage(workloads, pairs, noise, races=1000, level=0.95):
    """Share of simulated races whose interval holds the truth: the fixed workloads' mean, or with eight workloads their population's."""
    rng = np.random.default_rng([workloads, pairs, len(noise)])
    draw = rng.standard_normal if noise == "normal" else lambda size: rng.standard_t(3, size)
    spread = 0.1 * np.array([1, 3] * 4)[:workloads, None]
    held = 0
    for _ in range(races):
        effect = 0.2 + 0.15 * rng.standard_normal((workloads, 1))
        truth = effect.mean() if workloads < 5 else 0.2
        ends = np.quantile(resample(list(effect + spread * draw((workloads, pairs))), 500, rng), [(1 - level) / 2, (1 + level) / 2])
        held += ends[0] <= truth <= ends[1]
    return held / races


@pytest.mark.parametrize("noise", ["normal", "t3"])
@pytest.mark.parametrize("pairs", [3, 5, 10])
@pytest.mark.parametrize("workloads", [1, 2, 8])
def test_intervals_cover_the_truth(workloads, pairs, noise):
    """Bounds stated beforehand: 92.5 % (95 % less 3.5 standard errors) to 99.5 %, for being cautious is allowed and being bold is not."""
    assert 0.925 <= coverage(workloads, pairs, noise) <= 0.995


def test_plain_percentiles_would_not_cover():
    """The check can fail: without the correction three pairs cover about 75 %, far below the bound above."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        x = rng.standard_normal(3)
        low, high = np.quantile(x[rng.integers(0, 3, (500, 3))].mean(axis=1), [0.025, 0.975])
        held += low <= 0 <= high
    assert held / 1000 < 0.8


def test_under_no_difference_a_false_faster_is_as_rare_as_stated():
    rng = np.random.default_rng(5)
    p = np.array([(resample([rng.standard_normal(4)], 500, rng) > 0).mean() for _ in range(1000)])
    assert (p > 0.975).mean() < 0.05
    assert abs(p.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 1000)


def test_the_same_seed_gives_the_same_interval_and_other_entrants_do_not_change_it():
    alone = speedups(race([0.1, 0.2, 0.4]), seed=7)
    crowd = speedups(race([0.1, 0.2, 0.4]) + [t for t in race([0.9, 0.1, 0.3], algorithm="lion") if t.algorithm == "lion"], seed=7)
    assert alone == speedups(reversed(race([0.1, 0.2, 0.4])), seed=7)
    assert only(alone) == next(c for c in crowd.cells if c.algorithm == "muon")
    assert only(alone).low != only(speedups(race([0.1, 0.2, 0.4]), seed=8)).low


@pytest.mark.parametrize(
    ("logs", "verdict"),
    [
        ([0.50, 0.51, 0.52], "faster"),
        ([-0.50, -0.51, -0.52], "slower"),
        ([0.5, -0.4, 0.1], "not separable at this scale"),
        ([0.0, 0.0, 0.0], "not separable at this scale"),
        ([0.5], "needs ≥ 2 informative pairs"),
    ],
)
def test_the_verdict_follows_the_interval(logs, verdict):
    score = speedups(race(logs))
    assert only(score).verdict == score.overall[0].verdict == verdict


def test_equal_algorithms_have_a_speedup_of_exactly_one_and_even_odds():
    cell = only(speedups(race([0.0, 0.0, 0.0])))
    assert (cell.speedup, cell.low, cell.high, cell.p_faster) == (1.0, 1.0, 1.0, 0.5)


def test_p_faster_agrees_with_students_t():
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(2).normal(0.05, 0.1, 10)
    truth = stats.t.cdf(x.mean() / (x.std(ddof=1) / np.sqrt(10)), 9)
    assert only(speedups(race(x))).p_faster == pytest.approx(truth, abs=0.02)


def censored(ours, theirs, budget=100.0):
    """One trial per seed and algorithm; None is a miss, censored at the budget."""
    return [
        Trial("w", algorithm, s, c is not None, {"seconds": budget if c is None else c})
        for algorithm, costs in (("muon", ours), ("adamw", theirs))
        for s, c in enumerate(costs)
    ]


def test_a_missed_algorithm_gives_an_upper_bound_and_is_never_called_faster():
    cell = only(speedups(censored([None, 1.0, 1.01], [50.0, 60.0, 61.0])))
    assert (cell.bound, cell.low, cell.p_faster, cell.hits) == ("<", None, None, 2)
    assert cell.speedup == pytest.approx((0.5 * 60 * 61 / 1.01) ** (1 / 3))
    assert cell.verdict == "not separable at this scale"
    assert only(speedups(censored([None, None, None], [50.0, 51.0, 49.0]))).verdict == "slower"


def test_a_missed_reference_gives_a_lower_bound_and_is_never_called_slower():
    cell = only(speedups(censored([50.0, 51.0, 49.0], [None, None, None])))
    assert (cell.bound, cell.high, cell.verdict, cell.reference_hits) == (">", None, "faster", 0)
    assert cell.low is not None
    assert cell.low > 1


def test_misses_on_both_sides_leave_the_interval_open():
    cell = only(speedups(censored([None, 40.0, 40.0], [50.0, None, 50.0])))
    assert (cell.bound, cell.low, cell.high) == ("?", None, None)


def test_a_pair_in_which_both_missed_is_left_out_and_counted():
    score = speedups(censored([None, 40.0, 41.0], [None, 50.0, 50.0]))
    cell = only(score)
    assert (cell.both_missed, cell.pairs, cell.bound) == (1, 2, "")
    nothing = speedups(censored([None], [None]))
    assert (only(nothing).verdict, only(nothing).speedup) == ("no pair reached the target", None)
    assert nothing.silent == {"muon": ["w"]}


def test_three_seeds_of_which_two_missed_on_both_sides_need_more_pairs_and_not_a_second_seed():
    cell = only(speedups(censored([40.0, None, None], [50.0, None, None])))
    assert (cell.pairs, cell.both_missed, cell.trials) == (1, 2, 3)
    assert cell.verdict == "needs ≥ 2 informative pairs"


def test_seeds_without_a_partner_are_left_out_and_counted():
    trials = [*race([0.2, 0.3]), Trial("w", "muon", 9, True, {"seconds": 1e-6}), Trial("w", "adamw", 8, True, {"seconds": 1e9})]
    cell = only(speedups(trials))
    assert (cell.unpaired, cell.pairs, cell.trials) == (2, 2, 3)
    assert cell.speedup == pytest.approx(np.exp(0.25))


def test_a_target_met_before_training_says_nothing_about_speed():
    trials = [*race([0.2, 0.3]), *(Trial("w", a, 5, True, {"seconds": 0.0}, at_start=True) for a in ("muon", "adamw"))]
    cell = only(speedups(trials))
    assert (cell.unusable, cell.pairs) == (1, 2)


def test_a_miss_without_a_known_cost_still_forbids_the_claim_faster():
    trials = [*race([0.5, 0.5, 0.5]), Trial("w", "muon", 7, False, {}), Trial("w", "adamw", 7, True, {"seconds": 10.0})]
    cell = only(speedups(trials))
    assert (cell.bound, cell.unusable, cell.verdict) == ("<", 1, "not separable at this scale")


def test_from_five_workloads_on_the_statement_is_about_workloads_like_these():
    trials = [t for i in range(5) for t in race([0.1 * i + 0.2], f"w{i}")]
    score = speedups(trials)
    assert score.overall[0].scope == "workloads like these"
    assert score.overall[0].low is not None, "workloads are resampled, so that one seed each is enough"
    assert all(c.verdict == "needs ≥ 2 informative pairs" for c in score.cells)


def test_the_score_is_json_with_null_for_what_is_missing():
    text = json.dumps(speedups(censored([None, 2.0], [3.0, 4.0])).to_json(), allow_nan=False)
    assert json.loads(text)["cells"][0]["low"] is None


@pytest.mark.parametrize(
    ("trials", "options", "word"),
    [
        (race([0.1]), {"reference": "sgd"}, "not among the algorithms"),
        (race([0.1]) + race([0.1]), {}, "twice"),
        (race([0.1]), {"level": 95}, "0.95 for 95 %"),
        (race([0.1]), {"axis": "joules"}, "known axes: \\['seconds'\\]"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(trials, options, word):
    with pytest.raises(ValueError, match=word):
        speedups(trials, **options)


def test_summary_gives_median_extremes_hits_and_the_final_metric():
    trials = [Trial("w", "muon", s, True, {"steps": c}, final=f) for s, (c, f) in enumerate([(10, 0.5), (30, 0.7), (20, 0.6)])]
    (row,) = summary(trials)
    steps = row.cost["steps"]
    assert (steps.median, steps.low, steps.high, row.hits, row.trials) == (20, 10, 30, 3, 3)
    assert (row.final_mean, row.final_sd) == (pytest.approx(0.6), pytest.approx(0.1))


def test_in_a_summary_a_miss_counts_as_larger_than_every_hit():
    trials = [
        Trial("w", "a", 0, False, {"s": 5.0}),
        Trial("w", "a", 1, True, {"s": 9.0}),
        Trial("w", "a", 2, True, {"s": 8.0}, float("nan")),
    ]
    (row,) = summary(trials)
    assert (row.cost["s"].median, row.cost["s"].median_is_bound, row.cost["s"].high_is_bound, row.hits) == (9.0, False, True, 2)
    (pair,) = summary(trials[:2])
    assert (pair.cost["s"].median, pair.cost["s"].median_is_bound) == (7.0, True)
    assert (row.final_mean, row.final_sd) == (None, None)
    json.dumps(row.to_json(), allow_nan=False)

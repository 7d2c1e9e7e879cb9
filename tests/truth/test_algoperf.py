"""AlgoPerf's score against its published tables, and against examples done by hand."""

import csv
import json
from math import inf
from pathlib import Path

import numpy as np
import pytest

from velodrome.bench.algoperf import Attempt, Suite, Times, counted, leave_one_out, medians, ratios, read_hits, read_suite, scores, times
from velodrome.data.folder import folder

LOGS = (folder() or Path("nowhere")) / "algoperf" / "hits_v05.csv.gz"
with_logs = pytest.mark.skipif(not LOGS.is_file(), reason="needs algoperf/hits_v05.csv.gz in the data folder")


def of(suite, *rows):
    """Times of entrants a, b, … with one study each."""
    return Times(suite, tuple("abcdef"[: len(rows)]), np.array(rows, dtype=float)[..., None])


@with_logs
@pytest.mark.parametrize("ruleset", ["external", "self"])
def test_all_published_scores_of_version_0_5_are_reproduced_to_four_digits(ruleset):
    published = json.loads((LOGS.parent / "published_scores_v05.json").read_text())[f"v05/{ruleset}"]
    t = times(read_hits(LOGS)[ruleset], read_suite(LOGS.parent / "workload_targets_v05.json", ruleset))
    ours = dict(zip(t.algorithms, scores(t.suite, t.median()), strict=True))
    assert {name: round(float(x), 4) for name, x in ours.items()} == published
    assert len(published) == {"external": 11, "self": 6}[ruleset]


@with_logs
def test_the_two_headline_speed_ups_are_reproduced():
    """Kasimbeg et al. 2025, https://arxiv.org/abs/2502.15015: Shampoo 28 % faster than the baseline, Schedule-Free AdamW 8 %."""
    hits = read_hits(LOGS)
    for ruleset, name, faster in (("external", "shampoo_submission", 0.279), ("self", "schedule_free_adamw", 0.078)):
        t = times(hits[ruleset], read_suite(LOGS.parent / "workload_targets_v05.json", ruleset))
        assert round(1 - ratios(t)[name], 3) == faster


@with_logs
def test_the_winner_depends_on_the_entrant_that_was_placed_eighth():
    t = times(read_hits(LOGS)["external"], read_suite(LOGS.parent / "workload_targets_v05.json", "external"))
    left = leave_one_out(t)
    winners = {what: max(found, key=found.get) for what, found in left.items()}
    assert winners["without caspr_adaptive"] == "schedule_free_adamw"
    assert winners["without ogbg"] == "schedule_free_adamw"
    others = {
        what: w for what, w in winners.items() if what not in ("without caspr_adaptive", "without ogbg", "without shampoo_submission")
    }
    assert set(others.values()) == {"shampoo_submission"}


@with_logs
def test_taking_the_least_time_instead_of_the_fewest_evaluations_changes_one_published_score():
    t = times(read_hits(LOGS)["external"], read_suite(LOGS.parent / "workload_targets_v05.json", "external"), "seconds")
    ours = dict(zip(t.algorithms, scores(t.suite, t.median()), strict=True))
    assert round(float(ours["lawa_ema"]), 4) == 0.3434  # published: 0.3384


def test_the_score_is_the_mean_of_what_is_left_of_four_times_the_fastest():
    suite = Suite(("x", "y"))
    t = of(suite, [10, 30], [20, 30], [50, inf])
    assert scores(suite, t.median()) == pytest.approx([1.0, (2 / 3 + 1) / 2, 0.0], abs=0.01)  # b: r = 2 and 1; c: five times, and a miss


def test_a_base_workload_counts_only_if_its_variant_was_solved_in_time():
    suite = Suite(("x",), ("x_wide",))
    solved = [[1, 10], [1, 41], [1, inf], [inf, 5]]  # the last did not solve the base, so its 5 s are no measure for the variant
    assert counted(suite, of(suite, *solved).median())[:, 0].tolist() == [1, inf, inf, inf]


def test_medians_are_over_the_studies_there_are_and_a_miss_takes_part_as_infinite():
    nan = np.nan
    rows = np.array([[1, 2, 9], [1, inf, inf], [1, 3, nan], [nan, nan, nan], [1, inf, nan], [4, inf, 2]])
    assert medians(rows).tolist() == [2, inf, 2, inf, inf, 4]


def test_of_a_study_the_fastest_trial_counts_and_a_hit_beyond_the_budget_is_a_miss():
    suite = Suite(("x",), (), {"x": 100.0})
    rows = [Attempt("a", "x", "0", "1", 3, 50.0), Attempt("a", "x", "0", "2", 2, 60.0), Attempt("b", "x", "0", "1", 4, 101.0)]
    assert times(rows, suite).seconds[:, 0, 0].tolist() == [60, inf]
    assert times(rows, suite, "seconds").seconds[0, 0, 0] == 50


def test_a_table_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["submission", "time"], ["a", 1]])
    with pytest.raises(ValueError, match="no table of AlgoPerf hits: it lacks hit_eval"):
        read_hits(path)

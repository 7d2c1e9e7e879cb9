"""Time to target against curves whose crossing is known in closed form."""

import numpy as np
import pytest

from velodrome.bench.hitting import time_to_target

STEPS = np.linspace(0, 1000, 51)
BUDGET = {"steps": 1000.0}


def axes(steps=STEPS):
    """Examples in proportion to steps; seconds of a run that slows down, so its axis is not proportional."""
    return {"steps": steps, "examples": 32 * steps, "seconds": steps**2 / 1e4}


def test_a_straight_line_is_crossed_exactly_where_algebra_says():
    hit = time_to_target(axes(), 2.0 - STEPS / 1000, 1.3333, BUDGET)
    assert hit.reached
    assert hit.cost["steps"] == pytest.approx(666.7, rel=1e-12)
    assert (hit.low["steps"], hit.high["steps"]) == (660.0, 680.0)


def test_every_axis_uses_the_same_fraction_of_the_same_interval():
    hit = time_to_target(axes(), np.exp(-STEPS / 300), 0.25, BUDGET)
    fractions = [(hit.cost[a] - hit.low[a]) / (hit.high[a] - hit.low[a]) for a in hit.cost]
    assert np.ptp(fractions) < 1e-12
    assert abs(hit.cost["steps"] - 300 * np.log(4)) < 1.0  # the exponential is nearly straight within one interval of 20 steps


def test_a_metric_to_be_raised_gives_the_same_hit_as_its_negative_lowered():
    up, down = STEPS / 1000, -STEPS / 1000
    assert time_to_target(axes(), up, 0.4321, BUDGET, lower_is_better=False) == time_to_target(axes(), down, -0.4321, BUDGET)


def test_a_noisy_rebound_is_ignored_because_the_running_best_is_interpolated():
    costs = {"steps": [0, 10, 20, 30]}
    hit = time_to_target(costs, [3.0, 1.2, 9.0, 0.8], 1.0, BUDGET)
    assert hit.cost["steps"] == pytest.approx(20 + 10 * (1.2 - 1.0) / (1.2 - 0.8))


def test_only_the_first_crossing_counts():
    hit = time_to_target({"steps": [0, 10, 20, 30]}, [2.0, 0.5, 2.0, 0.1], 1.0, BUDGET)
    assert hit.cost["steps"] == pytest.approx(20 / 3)


def test_equality_with_the_target_is_a_hit():
    hit = time_to_target({"steps": [0, 10, 20]}, [2.0, 1.0, 0.5], 1.0, BUDGET)
    assert hit.reached
    assert hit.cost["steps"] == 10


def test_a_run_that_never_crosses_is_censored_at_its_budget():
    hit = time_to_target(axes(), np.full(51, 2.0), 1.0, BUDGET)
    assert not hit.reached
    assert not hit.diverged
    assert hit.cost == {"steps": 1000.0, "examples": 32000.0, "seconds": 100.0} == hit.low == hit.high


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_makes_everything_after_it_a_miss(poison):
    values = 2.0 - STEPS / 1000
    values[10] = poison
    hit = time_to_target(axes(), values, 1.5, BUDGET)
    assert (hit.reached, hit.diverged) == (False, True)
    early = time_to_target(axes(), values, 1.9, BUDGET)
    assert (early.reached, early.diverged) == (True, False)


def test_a_run_that_diverged_early_is_censored_at_the_full_budget_at_its_own_rate():
    hit = time_to_target({"steps": [0, 20], "seconds": [0, 3.0], "flops": [0, 8e9]}, [2.0, np.nan], 1.0, BUDGET)
    assert hit.cost == {"steps": 1000.0, "seconds": 150.0, "flops": 4e11}


def test_a_budget_that_cannot_be_known_is_missing_and_not_zero():
    assert time_to_target({"steps": [0], "seconds": [0.0]}, [np.nan], 1.0, BUDGET).cost == {"steps": 1000.0}


def test_a_target_met_before_any_update_is_flagged():
    hit = time_to_target(axes(), np.full(51, 0.5), 1.0, BUDGET)
    assert (hit.reached, hit.at_start, hit.cost["steps"]) == (True, True, 0.0)
    assert not time_to_target(axes(), 2.0 - STEPS / 1000, 1.5, BUDGET).at_start


def test_a_crossing_beyond_the_budget_is_a_miss_at_the_budget():
    hit = time_to_target(axes(), 2.0 - STEPS / 1000, 1.5, {"steps": 499.0})
    assert not hit.reached
    assert hit.cost["steps"] == 499.0
    assert time_to_target(axes(), 2.0 - STEPS / 1000, 1.5, {"steps": 501.0}).reached


def test_interpolation_removes_most_of_the_grids_error():
    """AlgoPerf takes the later evaluation; on 50 points of a power law the interpolated time is at least ten times nearer to the truth."""
    steps = np.linspace(0, 2500, 51)
    truth = np.random.default_rng(3).uniform(300, 2400, 200)
    curve = (1 + steps) ** -0.3
    hits = [time_to_target({"steps": steps}, curve, (1 + t) ** -0.3, {"steps": 2500}) for t in truth]
    interpolated = np.mean([abs(h.cost["steps"] - t) for h, t in zip(hits, truth, strict=True)])
    later = np.mean([abs(h.high["steps"] - t) for h, t in zip(hits, truth, strict=True)])
    assert interpolated < later / 10


@pytest.mark.parametrize(
    ("costs", "values", "target", "budget", "word"),
    [
        ({"steps": [0, 1]}, [1.0], 0.5, BUDGET, "one cost per evaluation"),
        ({"steps": [0, 2, 1]}, [3.0, 2.0, 1.0], 0.5, BUDGET, "never decrease"),
        ({"steps": [0, np.nan]}, [2.0, 1.0], 0.5, BUDGET, "finite"),
        ({"steps": []}, [], 0.5, BUDGET, "at least one evaluation"),
        ({"steps": [0, 1]}, [2.0, 1.0], np.nan, BUDGET, "target must be"),
        ({"steps": [0, 1]}, [2.0, 1.0], 0.5, {"epochs": 3}, "budget names"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(costs, values, target, budget, word):
    with pytest.raises(ValueError, match=word):
        time_to_target(costs, values, target, budget)

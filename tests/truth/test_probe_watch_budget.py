"""What may be spent: the account of `watch`, with clocks of its own."""

import random

import pytest

from velodrome.probes.watching.budget import Account, Cost, share_of


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), (0.05, 0.05), (" 10 % ", 0.1), ("1.2 s/min", 0.02), ("0.5", 0.5), (1, 1.0)])
def test_a_budget_is_a_share_of_the_training_time_in_three_notations(text, share):
    assert share_of(text) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("wrong", ["", "2", 0, -0.1, 1.5, "150%", True, None, "two", "1.2.3%", float("nan"), "61 s/min"])
def test_what_is_no_share_is_refused_and_told(wrong):
    with pytest.raises(ValueError, match=r"budget must be a share of the training time, got .*write"):
        share_of(wrong)


def race(seed, known=True, tail=0.0):
    """A run of some thousand steps with random costs: (account, the largest share there ever was, measurements)."""
    draw = random.Random(seed)
    names = [f"p{i}" for i in range(draw.randint(1, 6))]
    priors = {n: 10 ** draw.uniform(-2, 1.5) for n in names}
    every = {n: draw.choice((1, 5, 10, 50)) for n in names}
    true = {n: priors[n] * (draw.uniform(0.05, 0.9) if known else 10 ** draw.uniform(-1, 1)) for n in names}
    account = Account(10 ** draw.uniform(-2.5, -0.8), priors, every)
    step, trained, spent, worst, t, counts = 10 ** draw.uniform(-4, 0), 0.0, 0.0, 0.0, 0, dict.fromkeys(names, 0)
    largest = 0.0
    while t < 1500:
        wait = account.wait(t, 100)
        seconds = sum(step * draw.uniform(0.9, 1.1) for _ in range(wait))
        account.earn(seconds, wait)
        trained, t = trained + seconds, t + wait
        for name in account.due(t):
            cost = true[name] * step * draw.uniform(0.95, 1.05) * (draw.paretovariate(1.5) if draw.random() < tail else 1.0)
            account.spend(name, cost, t)
            spent, largest = spent + cost, max(largest, cost)
            counts[name] += 1
            worst = max(worst, spent - account.share * trained)
    assert account.spent == pytest.approx(spent, rel=1e-9)
    assert account.trained <= trained * (1 + 1e-9)
    assert account.credit == pytest.approx(sum(account.saved.values()) + account.pool, abs=1e-9 * max(1.0, trained))
    return account, worst, largest, counts, trained


@pytest.mark.parametrize("seed", range(60))
def test_what_is_spent_never_exceeds_the_budget_at_any_time(seed):
    """Costs within a tenth of each other and below what was believed at first."""
    account, worst, *_ = race(seed)
    assert worst <= 1e-12
    assert account.overdrawn <= 1e-12


@pytest.mark.parametrize("seed", range(30))
def test_a_measurement_dearer_than_all_that_is_saved_makes_a_debt_no_larger_than_itself_which_is_paid_first(seed):
    account, worst, largest, *_ = race(seed, known=False, tail=0.05)
    assert worst <= largest
    assert account.overdrawn <= largest
    if account.credit < 0:
        assert account.due(10**6) == []


def test_nothing_is_measured_before_it_is_earned():
    account = Account(0.02, {"dear": 1.0}, {"dear": 1})
    for t in range(49):
        account.earn(1.0, 1)
        assert account.due(t) == []
    account.earn(1.0, 1)
    assert account.due(50) == ["dear"]


def test_most_of_the_budget_is_used_and_looks_are_spread_evenly():
    account, cost, seen = Account(0.02, {"a": 1.0, "b": 1.0}, {"a": 10, "b": 10}), {"a": 0.02, "b": 0.8}, {"a": [], "b": []}
    for t in range(1, 10_001):
        account.earn(1.0, 1)
        for name in account.due(t):
            account.spend(name, cost[name], t)
            seen[name].append(t)
    assert 0.97 < account.spent / (0.02 * account.trained) <= 1
    gaps = [b - a for a, b in zip(seen["a"], seen["a"][1:], strict=False)][500:]
    assert set(gaps) == {10}, "the cheap one is measured as often as it may"
    gaps = [b - a for a, b in zip(seen["b"], seen["b"][1:], strict=False)][100:]
    assert max(gaps) - min(gaps) <= 1, "the dear one gets the rest: 0.02 - 0.002 a step, every 44 or 45"
    assert 44 <= gaps[-1] <= 45


def test_a_cheap_probe_does_not_wait_for_a_dear_one():
    account, first = Account(0.02, {"cheap": 0.2, "dear": 100.0}, {"cheap": 10, "dear": 10}), {}
    for t in range(1, 8001):
        account.earn(1.0, 1)
        for name in account.due(t):
            first.setdefault(name, t)
            account.spend(name, 0.02 if name == "cheap" else 50.0, t)
    assert first["cheap"] == 20
    assert 5000 < first["dear"] < 8000


def test_a_pause_is_not_training_that_could_be_spent():
    account = Account(0.02, {"a": 1.0}, {"a": 1})
    for _ in range(9):
        account.earn(1.0, 1)
    account.earn(1000.0, 1)
    assert account.trained == 9 + 3
    slower = Account(0.02, {"a": 1.0}, {"a": 1})
    for t in range(40):
        slower.earn(1.0 if t < 20 else 5.0, 1)
    assert slower.trained == 20 + 5 * 3 + 15 * 5.0, "but steps that have become longer are, after five of them"


def test_the_first_measurement_wakes_libraries_up_and_is_forgotten():
    cost = Cost(1.0)
    cost.add(50.0)
    assert cost.reserve() == 75.0
    cost.add(2.0)
    assert cost.reserve() == 3.0
    for _ in range(30):
        cost.add(1.0)
    assert cost.reserve() == 1.5
    assert cost.typical() == pytest.approx(1.0, abs=0.01)


def test_a_part_of_the_batch_is_taken_where_the_whole_would_be_too_rare():
    account = Account(0.02, {"c": 40.0}, {"c": 10})
    sizes, t, taken = [1.0, 0.5, 0.25, 0.125], 0, []
    while t < 20_000:
        t += 1
        account.earn(1.0, 1)
        account.resize("c", sizes, 200)
        for name in account.due(t):
            taken.append((t, account.fractions[name]))
            account.spend(name, 0.4 + 12.0 * account.fractions[name], t, account.fractions[name])
    assert taken[0][1] == 0.125, "first the smallest"
    assert 1125 <= taken[0][0] <= 1126, "22.5 step times are believed of it and saved up in 1,125 steps"
    assert taken[-1][1] == 0.25, "4 step times every 200 steps: a quarter costs 3.4 of them, a half 6.4"
    assert account.spent <= 0.02 * account.trained


def test_deciding_is_a_tenth_of_the_budget_at_most_however_short_the_steps():
    account = Account(0.02, {"a": 0.1}, {"a": 1})
    t = decided = 0
    while t < 200_000:
        wait = account.wait(t, 100)
        t += wait
        account.earn(20e-6 * wait, wait)
        account.spend(None, 50e-6)
        decided += 1
        for name in account.due(t):
            account.spend(name, 1e-6, t)
    assert account.books * decided <= 0.1 * 0.02 * account.trained * 1.2

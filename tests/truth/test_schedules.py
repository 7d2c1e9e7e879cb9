"""Schedules against their published formulas, transcribed here, and against torch's own schedulers."""

import json
import math

import numpy as np
import pytest
import torch

from velodrome.schedules.constant import constant
from velodrome.schedules.cosine import cosine
from velodrome.schedules.inverse_sqrt import inverse_sqrt
from velodrome.schedules.linear import linear
from velodrome.schedules.torch_adapter import as_torch
from velodrome.schedules.warmup import warmup
from velodrome.schedules.wsd import wsd


def sgd(lr=0.5):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def driven(scheduler, steps):
    """The lr that each of `steps` updates of a torch loop really uses."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_linear_and_cosine_without_warm_up_equal_torch():
    ours = [linear(0.5, 20)(t) for t in range(21)]
    theirs = driven(torch.optim.lr_scheduler.LinearLR(sgd(), start_factor=1.0, end_factor=0.0, total_iters=20), 21)
    assert np.allclose(ours, theirs, rtol=0, atol=1e-15)
    ours = [cosine(0.5, 20, floor=0.1)(t) for t in range(21)]
    theirs = driven(torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), T_max=20, eta_min=0.05), 21)
    assert np.allclose(ours, theirs, rtol=0, atol=1e-15)


def published(shape, u, floor):
    """Hägele et al. 2024, their code's formulas as functions of the progress u."""
    line, half = floor + (1 - floor) * (1 - u), floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * u))
    return {
        "linear": line,
        "sqrt": floor + (1 - floor) * (1 - np.sqrt(u)),
        "cosine": half,
        "mirror-cosine": 2 * line - half,
        "square": floor + (1 - floor) * (1 - u**2),
        "exponential": floor**u,
    }[shape]


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine", "mirror-cosine", "square", "exponential"])
def test_wsd_cools_down_by_the_published_shape(shape):
    schedule = wsd(0.3, 100, warmup=10, cooldown=0.2, shape=shape, floor=0.05)
    values = np.array([schedule(t) for t in range(102)])
    assert np.allclose(values[:10], 0.3 * np.arange(1, 11) / 10, rtol=1e-15)
    assert np.all(values[10:80] == 0.3)
    assert np.allclose(values[80:100], 0.3 * published(shape, np.arange(20) / 20, 0.05), rtol=1e-13)
    assert np.allclose(values[100:], 0.3 * 0.05, rtol=1e-13)


def test_the_first_and_the_last_update_are_what_the_docstrings_say():
    assert wsd(1.0, 100, warmup=10)(0) == 0.1
    assert wsd(1.0, 100, warmup=10)(9) == 1.0
    assert wsd(1.0, 100, warmup=10)(80) == 1.0
    assert wsd(1.0, 100, warmup=0)(0) == 1.0
    assert wsd(1.0, 100)(99) == pytest.approx(1 / 20, rel=1e-13)
    assert linear(1.0, 100, warmup=20)(99) == pytest.approx(1 / 80, rel=1e-13)
    assert linear(1.0, 100, floor=0.1)(99) == pytest.approx(0.1 + 0.9 / 100, rel=1e-13)
    assert cosine(1.0, 100, warmup=20, floor=0.1)(99) == pytest.approx(0.1 + 0.9 * math.sin(math.pi / 160) ** 2, rel=1e-12)
    assert [linear(1.0, 100)(100), cosine(1.0, 100)(100), wsd(1.0, 100)(100)] == [0.0, 0.0, 0.0]


def test_wsd_by_default_warms_up_for_a_twentieth_and_cools_down_for_a_fifth():
    schedule = wsd(1e-3, steps=4000)
    assert (schedule.warmup, schedule.cooldown_steps) == (200, 800)
    assert (schedule(0), schedule(199), schedule(3200)) == (1e-3 / 200, 1e-3, 1e-3)
    assert wsd(1.0, 10, cooldown=1.0).warmup == 0
    assert all(wsd(1.0, 1)(t) == 1.0 for t in range(1))


def test_a_cool_down_is_rounded_and_never_lost():
    assert wsd(1.0, 100, warmup=0, cooldown=0.29).cooldown_steps == 29
    assert wsd(1.0, 10, cooldown=0.01).cooldown_steps == 1
    assert wsd(1.0, 10, cooldown=0)(10**9) == 1.0


def test_wsd_over_the_whole_run_is_linear_and_cosine_decay():
    for t in range(60):
        assert wsd(0.3, 60, warmup=15, cooldown=0.75, floor=0.1)(t) == pytest.approx(linear(0.3, 60, warmup=15, floor=0.1)(t), rel=1e-14)
        assert wsd(0.3, 60, warmup=15, cooldown=0.75, shape="cosine")(t) == pytest.approx(cosine(0.3, 60, warmup=15)(t), rel=1e-14)


def test_inverse_sqrt_is_the_transformers_schedule():
    """Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762, eq. 3): d^-0.5 min(s^-0.5, s W^-1.5), s counted from 1."""
    d, w = 512, 40
    schedule = inverse_sqrt((d * w) ** -0.5, w)
    for s in range(1, 1000):
        assert schedule(s - 1) == pytest.approx(d**-0.5 * min(s**-0.5, s * w**-1.5), rel=1e-13)


def test_inverse_sqrt_cools_down_linearly_from_its_own_curve():
    """Zhai et al. 2022 (https://arxiv.org/abs/2106.04560, section 3.5): the infinite schedule, then a linear cool-down to zero."""
    free, cooled = inverse_sqrt(0.3, 10, timescale=30), inverse_sqrt(0.3, 10, timescale=30, steps=200, cooldown=0.25)
    assert free(9) == 0.3
    assert free(39) == pytest.approx(0.3 / math.sqrt(2), rel=1e-14)
    assert [cooled(t) for t in range(151)] == [free(t) for t in range(151)]
    for t in range(150, 201):
        assert cooled(t) == pytest.approx(free(t) * (200 - t) / 50, rel=1e-13, abs=1e-18)


def test_warm_up_multiplies_a_schedule_without_delaying_it():
    bare = cosine(0.2, 50)
    risen = warmup(bare, 5)
    assert [risen(t) for t in range(50)] == pytest.approx([bare(t) * min(1.0, (t + 1) / 5) for t in range(50)], rel=1e-15)
    assert [risen(t) for t in range(4, 60)] == [bare(t) for t in range(4, 60)]
    assert warmup(lambda t: 2.0, 0)(0) == 2.0


def test_a_torch_loop_uses_the_schedule_to_the_last_bit():
    schedule = wsd(1.7e-3, 30, shape="sqrt")
    assert driven(as_torch(sgd(0.37), schedule), 30) == [schedule(t) for t in range(30)]


def test_groups_keep_their_ratio_under_torch():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    scheduler = as_torch(torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.05}], lr=0.5), linear(2.0, 10))
    for t in range(10):
        assert scheduler.get_last_lr() == pytest.approx([linear(2.0, 10)(t), 0.1 * linear(2.0, 10)(t)], rel=1e-14)
        scheduler.optimizer.step()
        scheduler.step()


def test_a_torch_scheduler_resumes_from_json():
    schedule = cosine(0.3, 20, warmup=4)
    whole = driven(as_torch(sgd(), schedule), 20)
    first = as_torch(sgd(), schedule)
    assert driven(first, 8) == whole[:8]
    states = first.optimizer.state_dict(), json.loads(json.dumps(first.state_dict()))
    for optimizer_first in (True, False):
        optimizer = sgd()
        if optimizer_first:
            optimizer.load_state_dict(states[0])
        second = as_torch(optimizer, schedule)
        optimizer.load_state_dict(states[0])
        second.load_state_dict(states[1])
        assert driven(second, 12) == whole[8:]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: wsd(1.0, 0), "steps must be a whole number of steps, 1 or more, got 0"),
        (lambda: wsd(1.0, 10.0), "steps must be a whole number"),
        (lambda: wsd(1.0, True), "steps must be a whole number"),
        (lambda: wsd(1.0, 100, warmup=90), "must fit into the run"),
        (lambda: wsd(1.0, 100, warmup=-1), "warmup must be"),
        (lambda: wsd(1.0, 100, cooldown=1.5), "cooldown must be a fraction"),
        (lambda: wsd(1.0, 100, floor=float("nan")), "floor must be a fraction"),
        (lambda: wsd(1.0, 100, shape="lineer"), "did you mean 'linear'"),
        (lambda: wsd(1.0, 100, shape="1-sqrt"), "did you mean 'sqrt'"),
        (lambda: wsd(1.0, 100, shape="exponential"), "floor must be more than 0"),
        (lambda: linear(1.0, 10, warmup=10), "at least one step of decay"),
        (lambda: cosine(1.0, 10, floor=-0.1), "floor must be a fraction"),
        (lambda: inverse_sqrt(1.0, 0), "warmup must be"),
        (lambda: inverse_sqrt(1.0, 5, timescale=0), "timescale must be"),
        (lambda: inverse_sqrt(1.0, 5, cooldown=0.2), "steps must be given"),
        (lambda: inverse_sqrt(1.0, 9, steps=10, cooldown=0.2), "must fit into the run"),
        (lambda: warmup(1e-3, 5), "schedule must be a function"),
        (lambda: as_torch(sgd(), 1e-3), "schedule must be a function"),
        (lambda: as_torch(sgd(0.0), constant(1.0)), "lr must be positive"),
    ],
)
def test_a_bad_schedule_is_one_clear_sentence(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)

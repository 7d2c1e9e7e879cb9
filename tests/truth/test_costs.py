"""What a run costs beside FLOPs and seconds: memory of a step, joules, seconds at the machine's calibrated speed."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.truth.test_protocol import entry
from velodrome.bench.energy import Meter
from velodrome.bench.limits import Limits
from velodrome.bench.protocol import Live
from velodrome.bench.unit_seconds import unit_seconds
from velodrome.bench.unit_time import unit_time
from velodrome.memory import Peak

FLOAT = 4


def test_memory_is_counted_from_making_to_release_and_views_and_what_was_there_before_cost_nothing():
    w = torch.randn(100, 100, requires_grad=True)
    with Peak() as peak:
        a = w * 2
        b = a.t().relu_()
        assert (peak.live, peak.peak) == (100 * 100 * FLOAT,) * 2
        total = (b @ b).sum()
        assert peak.peak == 2 * 100 * 100 * FLOAT + FLOAT
        del a, b
        total.backward()
        del total
        assert peak.live == 100 * 100 * FLOAT, "the gradient"
        w.grad = None
        assert peak.live == 0


def test_the_state_of_adam_is_two_numbers_per_parameter_more_than_that_of_sgd():
    found = []
    for algorithm in ("torch.optim:SGD(lr=0.1)", "torch.optim:Adam(lr=0.1)"):
        steps = Live(entry(algorithm)).steps()
        found.append([next(steps).counters.bytes for _ in range(2)])
        steps.close()
    parameters = list(tiny.network().parameters())
    (sgd_first, sgd), (adam_first, adam) = found
    assert sgd_first == adam_first
    assert adam - sgd == 2 * sum(p.numel() for p in parameters) * FLOAT


def test_joules_are_differences_of_counters_that_come_round(tmp_path):
    for name, value in {"intel-rapl:0": 900, "intel-rapl:1": 100, "intel-rapl:0:0": 5}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
    meter = Meter("cpu", tmp_path)
    before = meter.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("20000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("107000000\n")
    assert meter.read() - before == pytest.approx(120 + 7)
    assert meter.source == "the processor packages"


def test_without_a_counter_there_are_no_joules_and_not_none_of_them(tmp_path):
    meter = Meter("cpu", tmp_path)
    assert meter.read() is None
    assert meter.source is None


ROWS = {
    "t": [0, 10, 20],
    "flops": [100, 1100 + 10 * 7, 2100 + 20 * 7],
    "gradient_seconds": [0.1, 1.0, 2.0],
    "optimizer_seconds": [0.0, 0.25, 0.5],
    "data_seconds": [0.01, 0.05, 0.1],
}
RESULT = {"update_flops": 7, "unit_time": {"seconds_per_flop": 0.001, "flops": 100}}


def test_unit_seconds_are_the_gradients_flops_at_unit_time_and_the_optimizer_as_a_multiple_of_them():
    assert unit_seconds(RESULT, ROWS) == pytest.approx([0.1 * 1.3, 1.1 * 1.3, 2.1 * 1.3])


def test_a_machine_that_is_three_times_as_slow_for_everything_changes_no_unit_second():
    slow = {name: [3 * x for x in values] if name.endswith("seconds") else values for name, values in ROWS.items()}
    assert unit_seconds(RESULT, slow) == pytest.approx(unit_seconds(RESULT, ROWS))


def test_gradients_that_an_optimizer_computes_itself_are_charged_once():
    """LBFGS: their FLOPs are in the rows, their seconds among the optimizer's."""
    rows = {**ROWS, "flops": [100, 5000, 9000], "optimizer_seconds": [0.0, 4.0, 8.0]}
    assert unit_seconds({**RESULT, "update_flops": None}, rows) == pytest.approx(np.array([0.1, 1.1, 2.1]) * (1 + 8.1 / 2.0))


@pytest.mark.parametrize("result", [None, {}, {"unit_time": None}, {"unit_time": {"seconds_per_flop": None, "flops": 0}}])
def test_without_a_unit_time_there_are_no_unit_seconds(result):
    assert unit_seconds(result, ROWS) == []


def test_a_gradient_without_flops_costs_the_idle_machines_seconds_for_one():
    """Matrix completion: lookups and elementwise products."""
    result = {"update_flops": 0, "unit_time": {"seconds_per_flop": None, "flops": 0, "seconds": 0.2}}
    assert unit_seconds(result, {**ROWS, "flops": [0, 0, 0]}) == pytest.approx(0.2 * np.array([1, 11, 21]) * 1.3)


def test_a_unit_time_is_measured_once_and_draws_from_nobodys_generators(tmp_path):
    one, other = entry("lion"), entry("sgd", seed=4)
    torch.manual_seed(3)
    first = unit_time(one, tmp_path)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert first["seconds"] == pytest.approx(first["flops"] * first["seconds_per_flop"])
    assert first["clock"] == "processor"
    assert unit_time(other, tmp_path) == first
    assert len(list((tmp_path / ".unit-time").iterdir())) == 1


def test_limits_are_generous_and_say_what_is_wrong_with_them():
    limits = Limits()
    assert limits.run(42.0) == 840.0
    assert limits.run(1.0) == 120.0
    assert limits.turn(42.0, 50) == 168.0
    assert limits.turn(1.0, 50) == 60.0
    assert limits.turn(1.0, 50, compiles=True) == 600.0
    with pytest.raises(ValueError, match=r"the limit times must be a number above 0, got 0: write times=20\.0"):
        Limits(times=0)
    with pytest.raises(ValueError, match="leave it out for a share of what is free"):
        Limits(memory=0)

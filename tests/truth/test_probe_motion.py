"""Motion, alignment, rounding and distance of steps against float64 and closed forms; the intervals against planted series; nothing is changed."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.models.mlp import Mlp
from velodrome.optim.adam import adamw
from velodrome.probes.updates.alignment import cosine, velocity_cosine
from velodrome.probes.updates.balance import against_balance
from velodrome.probes.updates.distance import Start, distance_law
from velodrome.probes.updates.motion import UNITS, motion
from velodrome.probes.updates.rounding import lost_to_rounding, rounding
from velodrome.probes.updates.series import line, mean_of
from velodrome.probes.updates.steps import effective_steps

COVERED = (0.90, 0.98)


def turned(w: torch.Tensor, angle: float, scale: float = 1.0) -> torch.Tensor:
    """w (float64) turned by an angle, and scaled."""
    g = torch.Generator().manual_seed(1)
    v = torch.randn(w.shape, generator=g, dtype=torch.float64)
    v -= w * (v * w).sum() / (w * w).sum()
    v *= w.norm() / v.norm()
    return scale * (math.cos(angle) * w + math.sin(angle) * v)


@pytest.mark.parametrize("angle", [1e-4, 1e-3, 0.1, 1.5, 3.0])
def test_an_angle_is_right_in_float32_where_an_arc_cosine_is_not(angle):
    w = torch.randn(200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = w.float().clone()
    with motion({"w": p}) as moved:
        p.copy_(turned(p.double(), angle, 0.999))
    assert abs(moved.numbers["w"]["angle"] / angle - 1) < (2e-3 if angle == 1e-4 else 2e-4)
    if angle == 1e-4:
        a, b = w.float().flatten(), turned(w, angle).float().flatten()
        arc = float(torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1)))
        assert abs(arc / angle - 1) > 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_number_of_a_motion_is_that_of_float64(dtype):
    g = torch.Generator().manual_seed(2)
    model = Mlp(6, 16, 1, 3).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 6, generator=g).to(dtype)).float().square().mean().backward()
        before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
        with motion(optimizer, model) as moved:
            optimizer.step()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-4}[dtype]
    for n, p in model.named_parameters():
        a, b = before[n].flatten(), p.detach().double().flatten()
        u, v = a / a.norm(), b / b.norm()
        want = {
            "norm": b.norm(),
            "rms": (b - a).norm() / a.numel() ** 0.5,
            "relative": (b - a).norm() / a.norm(),
            "angle": 2 * torch.atan2((u - v).norm(), (u + v).norm()),
            "outward": (b.norm() - a.norm()) / (b - a).norm(),
        }
        assert set(want) == set(UNITS) == set(moved.numbers[n])
        for name, value in want.items():
            assert abs(moved.numbers[n][name] - float(value)) < tolerance * max(abs(float(value)), 0.01), (n, name)
    whole = torch.cat([(p.detach().double() - before[n]).flatten() for n, p in model.named_parameters()])
    assert abs(moved.whole["rms"] - float(whole.square().mean().sqrt())) < 1e-5
    assert moved.estimate("angle").unit == UNITS["angle"]


def test_every_eighth_row_tells_the_motion_nearly():
    torch.manual_seed(0)
    layer = nn.Linear(64, 256)
    with motion(layer) as whole, motion(layer, every=8) as some, torch.no_grad():
        layer.weight.add_(1e-3 * torch.randn_like(layer.weight))
    for name, value in whole.numbers["weight"].items():
        if name != "outward":
            assert some.numbers["weight"][name] == pytest.approx(value, rel=0.06)
    assert some.numbers["bias"]["norm"] == whole.numbers["bias"]["norm"]


def test_a_tensor_that_starts_at_zero_has_no_angle_and_one_that_stands_still_has_angle_zero():
    zero, still = torch.zeros(3, 3), torch.ones(3, 3)
    with motion({"zero": zero, "still": still}) as moved:
        zero.add_(1.0)
    assert math.isnan(moved.numbers["zero"]["angle"])
    assert math.isnan(moved.numbers["zero"]["relative"])
    assert moved.numbers["still"]["angle"] == 0
    assert moved.numbers["still"]["rms"] == 0


def test_a_step_that_is_looked_at_is_bit_for_bit_the_step_that_is_not():
    def trained(look: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Mlp(6, 16, 1, 3)
        optimizer, start = adamw(model.parameters(), lr=0.01), Start(model)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            if look:
                if optimizer.state:
                    velocity_cosine(optimizer, model)
                with motion(optimizer, model), rounding(optimizer, model):
                    optimizer.step()
                start.distance()
            else:
                optimizer.step()
        return [p.detach() for p in model.parameters()] + [p.grad for p in model.parameters()] + [torch.rand(1)]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


def test_gradient_and_velocity_are_compared_by_parameter_and_as_one_vector():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([p, q], lr=1.0, momentum=0.9)
    p.grad, q.grad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    optimizer.step()
    p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -1.0])
    found = velocity_cosine(optimizer)
    assert found.numbers == pytest.approx({"parameter 0 of group 0": 0.6, "parameter 1 of group 0": -1.0})
    assert found.whole == pytest.approx((3 - 2) / (5**0.5 * 26**0.5))
    with pytest.raises(ValueError, match="keeps no momentum"):
        rms = torch.optim.RMSprop([p], lr=0.1)
        rms.step()
        velocity_cosine(rms)
    assert math.isnan(cosine({}, {}).whole)


def test_the_same_gradient_again_is_aligned_with_adams_momentum_and_its_opposite_is_against_it():
    p = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam([p], lr=0.1)
    p.grad = torch.randn(50, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    assert velocity_cosine(optimizer).whole == pytest.approx(1.0, abs=1e-6)
    p.grad = -p.grad
    assert velocity_cosine(optimizer).whole == pytest.approx(-1.0, abs=1e-6)


def test_what_bfloat16_swallows_of_a_known_step_is_counted():
    before = torch.ones(8, dtype=torch.bfloat16)
    asked = torch.tensor([0.001, 0.001, 0.0, 0.25, -0.25, 0.5, 0.0, 0.001])  # next to 1 the format has steps of 1/128 above and 1/256 below
    found = lost_to_rounding(before, asked, (before.float() + asked).bfloat16())
    assert found["elements_lost"] == 3 / 6
    assert found["norm_lost"] == pytest.approx(3e-6 / (3e-6 + 0.375), rel=1e-4)
    assert found["error"] == pytest.approx((3e-6 / (3e-6 + 0.375)) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(("lr", "lost"), [(1e-5, (0.9, 1.0)), (0.05, (-0.05, 0.05))])
def test_small_steps_of_narrow_weights_are_lost_and_large_ones_are_not(lr, lost):
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    model(torch.randn(16, 64).bfloat16()).float().square().mean().backward()
    other = copy.deepcopy((model, optimizer))
    for p, q in zip(model.parameters(), other[0].parameters(), strict=True):
        q.grad = p.grad.clone()
    with rounding(optimizer, model) as found:
        optimizer.step()
    other[1].step()
    assert torch.equal(model.weight, other[0].weight)
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.grad.dtype == torch.bfloat16
    assert lost[0] <= found.numbers["weight"]["norm_lost"] <= lost[1]
    assert (found.numbers["weight"]["elements_lost"] > 0.9) == (lr == 1e-5)


def test_the_distance_from_the_start_is_that_of_all_weights_and_a_share_of_the_rows_tells_it_nearly():
    torch.manual_seed(0)
    model = Mlp(64, 256, 1, 3)
    start, few = Start(model), Start(model, every=8)
    before = [p.detach().double().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    want = math.sqrt(sum(float((p.detach().double() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True)))
    assert start.distance() == pytest.approx(want, rel=1e-5)
    assert few.distance() == pytest.approx(want, rel=0.03)


T = np.unique(np.geomspace(10, 20000, 80).round())


@pytest.mark.parametrize(
    ("law", "curve", "at"),
    [
        ("log t", lambda t: 1 + 0.8 * np.log(t), 0.0),
        ("sqrt t", lambda t: 2 + 0.1 * t**0.5, 0.5),
        ("power of t", lambda t: 0.7 * t**0.25, 0.25),
    ],
)
def test_the_law_a_distance_was_made_by_is_found_and_its_exponent_is_in_the_interval(law, curve, at):
    clean = curve(T)
    noisy = clean + 0.01 * clean.mean() * np.random.default_rng(0).standard_normal(len(T))
    found = distance_law(T, noisy)
    assert found.better == law
    assert found.exponent.low < at < found.exponent.high < at + 0.1


def test_a_short_noisy_walk_does_not_part_the_laws():
    t = np.arange(100.0, 130.0)
    found = distance_law(t, 5 + 0.5 * np.log(t) + 0.1 * np.random.default_rng(0).standard_normal(30))
    assert found.better == "not separable"
    with pytest.raises(ValueError, match="eight rising steps"):
        distance_law([1, 2, 3], [1, 2, 3])


def covered(make, estimate, truth, n=200):
    hits = [(e := estimate(make(np.random.default_rng(seed)))).low <= truth <= e.high for seed in range(n)]
    return sum(hits) / n


def correlated(rng, n, rho):
    """AR(1) with standard deviation 1, from its stationary state."""
    x = rng.standard_normal(n)
    x[1:] *= (1 - rho**2) ** 0.5
    for i in range(1, n):
        x[i] += rho * x[i - 1]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_interval_of_a_correlated_series_mean_covers_it(rho):
    share = covered(lambda rng: 3 + correlated(rng, 150, rho), lambda y: mean_of(y, "none"), 3.0)
    assert COVERED[0] <= share <= COVERED[1]


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_interval_of_the_rate_of_the_log_law_covers_it(rho):
    make = lambda rng: 1 + 0.8 * np.log(T) + 0.05 * correlated(rng, len(T), rho)  # noqa: E731
    assert COVERED[0] <= covered(make, lambda y: line(np.log(T), y).rate("none"), 0.8) <= COVERED[1]


def test_the_interval_of_the_exponent_covers_that_of_the_law():
    make = lambda rng: 1 + 0.8 * np.log(T) + 0.05 * rng.standard_normal(len(T))  # noqa: E731
    assert COVERED[0] <= covered(make, lambda y: distance_law(T, y).exponent, 0.0, n=200) <= COVERED[1]


def test_a_random_walk_in_balance_turns_as_predicted_and_an_early_one_is_said_to_be_early():
    """Gradients that are noise, orthogonal to the weights (Kosson et al. 2024)."""

    def run(steps: int) -> dict:
        g = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(32, 64, generator=g))
        optimizer = torch.optim.AdamW([p], lr=0.01, weight_decay=0.5)
        reports = []
        for t in range(steps):
            noise = torch.randn(p.shape, generator=g)
            w = p.detach()
            p.grad = noise - w * (noise * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
            if t >= steps - 30:
                with effective_steps(optimizer) as report:
                    optimizer.step()
                reports.append(report)
            else:
                optimizer.step()
        return against_balance(reports)["parameter 0 of group 0"]

    late, early = run(800), run(40)
    assert late.settled
    assert not early.settled
    assert "early" in early.angle.note
    assert 0.85 < late.angle.low < late.angle.high < 1.15
    assert early.norm.low > 1.5

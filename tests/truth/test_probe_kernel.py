"""The infinite tangent kernel is the limit of wide networks', what a kernel foretells comes true, and its readings are their closed forms."""

import pytest
import torch
from torch import nn

from tests.truth.test_probe_ntk import setting
from velodrome.losses.squared_error import squared_error
from velodrome.models.mlp import Mlp
from velodrome.probes.functions.flow import forecast
from velodrome.probes.functions.infinite import relu_kernel
from velodrome.probes.functions.kernel import alignment, distance, spectrum
from velodrome.probes.functions.lazy import drift, snapshot
from velodrome.probes.functions.ntk import Kernel, ntk, ntk_sketch
from velodrome.probes.objective import Objective


def test_wide_networks_kernels_approach_the_infinite_one_as_one_over_the_root_of_the_width():
    """Five networks of each width; the slope of log error over log width is -1/2 within 0.12 (its spread over seeds is 0.05)."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    widths, errors = [32, 128, 512], []
    for width in widths:
        truth = relu_kernel(x, 2, width=width)[1]
        found = [ntk(Objective(Mlp(6, width, 2, 1, seed=s).double(), squared_error, (x, x[:, :1]))).matrix for s in range(12)]
        errors.append(float(torch.stack([(k - truth).norm() / truth.norm() for k in found]).mean()))
    slope = torch.tensor(errors).log().diff().sum() / torch.tensor(widths).float().log().diff().sum()
    assert abs(float(slope) + 0.5) < 0.12, errors
    mean = torch.stack([ntk(Objective(Mlp(6, 64, 1, 1, seed=s).double(), squared_error, (x, x[:, :1]))).matrix for s in range(300)]).mean(0)
    truth = relu_kernel(x, 1, width=64)[1]
    assert (
        float((mean - truth).norm() / truth.norm()) < 0.03
    )  # with one hidden layer the mean over networks is the infinite one at every width


def test_the_parametrisations_of_the_infinite_kernel_agree_where_they_must():
    """With weights scaled in the forward pass and no biases the kernel of depth L at x, x is (L+1) Sigma(x, x) for He's variances."""
    x = torch.randn(5, 4, dtype=torch.float64)
    for depth in (1, 3):
        covariance, tangent = relu_kernel(x, depth)
        assert torch.allclose(covariance.diagonal(), x.square().mean(1))
        assert torch.allclose(tangent.diagonal(), (depth + 1) * x.square().mean(1))
    wide = relu_kernel(x, 2, width=10**9, biases=False)[1] / 10**9  # the first layer's part vanishes beside the others
    assert torch.allclose(wide.diagonal(), x.square().mean(1) * (1 / 2 + 1), rtol=1e-6)


def test_a_linear_model_is_trained_as_foretold_also_where_it_was_not_trained():
    torch.manual_seed(0)
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    model = nn.Linear(5, 2).double()
    objective = Objective(model, squared_error, (x, torch.zeros(12, 2, dtype=torch.float64)))
    kernel, start = ntk(objective), model(x).detach()
    told = forecast(kernel, start, y, 0.05, [0, 1, 30], steps="descent")
    flow = forecast(kernel, start, y, 0.05 / 1000, [0, 1000, 30_000])
    for t in range(31):
        if t in (0, 1, 30):
            k = (0, 1, 30).index(t)
            outputs = model(x).detach()
            assert torch.allclose(told.outputs[k], outputs[:8], atol=1e-11)
            assert torch.allclose(told.others[k], outputs[8:], atol=1e-11)
            assert float(told.loss[k]) == pytest.approx(float(squared_error(outputs[:8], y).mean()), rel=1e-10)
        loss = squared_error(model(x[:8]), y).mean()
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data -= 0.05 * g
    tiny = forecast(kernel, start, y, 0.05 / 1000, [0, 1000, 30_000], steps="descent")
    assert torch.allclose(tiny.others, flow.others, atol=2e-4)
    assert not torch.equal(tiny.others, flow.others)


def test_a_forecast_refuses_what_it_cannot_tell():
    objective = setting("mlp")
    with pytest.raises(ValueError, match="needs the kernel over all of them"):
        forecast(ntk(objective, "trace"), torch.zeros(7, 3), torch.zeros(7, 3), 0.1, [1])
    with pytest.raises(ValueError, match="got a sketch"):
        forecast(ntk_sketch(objective, draws=2), torch.zeros(7, 3), torch.zeros(7, 3), 0.1, [1])
    with pytest.raises(ValueError, match=r"initial must be \(7, 3\)"):
        forecast(ntk(objective), torch.zeros(7, 2), torch.zeros(7, 3), 0.1, [1])


def test_spectrum_alignment_and_distance_are_their_closed_forms():
    y = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64)
    told = Kernel(3 * y @ y.T, "all", 4, 1)
    eye = Kernel(torch.eye(4, dtype=torch.float64), "all", 4, 1)
    assert spectrum(told).effective_rank.value == pytest.approx(1)
    assert spectrum(told).largest.value == pytest.approx(30)
    assert not spectrum(told).condition.identified
    assert spectrum(eye).effective_rank.value == pytest.approx(4)
    assert spectrum(eye).condition.value == pytest.approx(1)
    one, none = alignment(told, y, top=(1,)), alignment(eye, y, top=(1, 4))
    assert (one.target.value, one.cka.value, one.top[1].value) == pytest.approx((1, 1, 1))
    assert none.target.value == pytest.approx(0.5)  # trace / (2 * norm) of a matrix of rank one
    assert none.cka.value == pytest.approx(1 / 3**0.5)
    assert none.top[4].value == pytest.approx(1)
    assert distance(told, Kernel(7 * told.matrix, "all", 4, 1)).value == pytest.approx(0, abs=1e-12)
    assert distance(told, eye).value == pytest.approx(0.5)
    classes = alignment(Kernel(torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)), "trace", 5, 9), torch.tensor([0, 0, 1, 1, 1]))
    assert classes.cka.value == pytest.approx(1)
    with pytest.raises(ValueError, match="labels must be 4"):
        alignment(told, torch.zeros(3))


def test_a_network_is_lazy_before_it_moves_and_rich_after_its_features_turned():
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randn(20, 1)
    model = Mlp(5, 8, 1, 1, seed=0)
    objective = Objective(model, squared_error, (x, y))
    first = snapshot(objective, ["hidden.0"])
    same = drift(first, snapshot(objective, ["hidden.0"]))
    assert (same.verdict, same.kernel.value, same.weights.value, same.features["hidden.0"].value) == ("lazy", 0, 0, 0)
    with torch.no_grad():
        model.head.weight.mul_(4)
    moved = drift(first, snapshot(objective, ["hidden.0"]))
    assert moved.verdict == "rich"
    assert moved.features["hidden.0"].value == 0
    assert moved.parameters["head.weight"].value == pytest.approx(3, rel=1e-5)
    assert moved.distance.value < moved.kernel.value

"""Gradients against closed forms and torch.autograd in float64."""

import warnings

import pytest
import torch
from torch import nn

from velodrome.data.stream import Batch
from velodrome.gradients.accumulate import accumulate
from velodrome.gradients.backward import backward
from velodrome.gradients.gradient import Gradient
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.models.gpt import Gpt
from velodrome.models.mlp import Mlp
from velodrome.models.resnet import ResNet


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(high, *shape, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


def close(a, b, atol=1e-12):
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in zip(a, b, strict=True))


def test_backward_fills_the_gradient_of_least_squares():
    model = nn.Linear(3, 2).double()
    x, y = draw(20, 3), draw(20, 2, seed=1)
    mean = backward(model, squared_error)(Batch(x, y))
    residual = x @ model.weight.T + model.bias - y
    assert torch.allclose(model.weight.grad, 2 * residual.T @ x / 40, rtol=0, atol=1e-14)
    assert torch.allclose(model.bias.grad, 2 * residual.sum(0) / 40, rtol=0, atol=1e-14)
    assert mean.item() == pytest.approx((residual**2).mean().item(), rel=1e-14)
    assert mean.shape == ()
    assert not mean.requires_grad


def test_backward_adds_to_a_gradient_that_is_there_and_weighs_it():
    model, batch = Mlp(4, 8, 1, 3, seed=0).double(), Batch(draw(5, 4), classes(3, 5))
    gradient = backward(model, cross_entropy)
    loss = gradient(batch)
    once = grads(model)
    assert gradient(batch, weight=0.25) == loss
    assert close(grads(model), [1.25 * g for g in once], 1e-15)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 10, 50])
def test_accumulated_gradients_equal_the_full_batchs(parts):
    model = Gpt(11, 6, 8, 1, 2, seed=0).double()
    batch = Batch(classes(11, 10, 6), classes(11, 10, 6, seed=2), tokens=60)
    loss = backward(model, cross_entropy)(batch)
    whole = grads(model)
    model.zero_grad()
    seen = []

    def watched(outputs, targets):
        seen.append(len(targets))
        return cross_entropy(outputs, targets)

    ours = accumulate(backward(model, watched), parts)(batch)
    assert close(grads(model), whole)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-12)
    assert ours.shape == ()
    assert sum(seen) == 10
    assert len(seen) == min(parts, 10)
    assert max(seen) - min(seen) <= 1


def test_accumulation_nests_and_weighs():
    model, batch = Mlp(4, 8, 1, 3, seed=0).double(), Batch(draw(7, 4), classes(3, 7))
    backward(model, cross_entropy)(batch)
    whole = grads(model)
    model.zero_grad()
    accumulate(accumulate(backward(model, cross_entropy), 2), 3)(batch, weight=0.5)
    assert close(grads(model), [g / 2 for g in whole])


def test_batch_norm_makes_accumulation_differ_as_its_docstring_says():
    model, batch = ResNet(8, 4, seed=0).double(), Batch(draw(8, 3, 8, 8), classes(10, 8))
    backward(model, cross_entropy)(batch)
    whole = grads(model)
    model.zero_grad()
    accumulate(backward(model, cross_entropy), 2)(batch)
    assert not close(grads(model), whole, 1e-3)
    model.eval().zero_grad()
    backward(model, cross_entropy)(batch)
    whole = grads(model)
    model.zero_grad()
    accumulate(backward(model, cross_entropy), 2)(batch)
    assert close(grads(model), whole)


def test_both_are_gradients_of_their_model():
    model = Mlp(4, 8, 1, 3, seed=0)
    plain = backward(model, cross_entropy)
    for gradient in (plain, accumulate(plain, 2)):
        assert isinstance(gradient, Gradient)
        assert gradient.model is model


def test_autocast_runs_the_forward_pass_in_bf16_and_keeps_weights_gradients_and_loss_in_fp32():
    model, batch = Mlp(16, 32, 2, 4, seed=0), Batch(draw(64, 16).float(), classes(4, 64))
    plain = backward(model, cross_entropy)(batch)
    truth = grads(model)
    model.zero_grad()
    kinds = []
    model.hidden[0].register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    mixed = backward(model, cross_entropy, autocast=torch.bfloat16)(batch)
    assert kinds == [torch.bfloat16]
    assert mixed.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert 0 < abs(mixed - plain).item() < 0.01 * plain.item()  # bf16 has 8 bits: 0.4 % a number
    for ours, exact in zip(grads(model), truth, strict=True):
        assert (ours - exact).norm() < 0.05 * exact.norm()


@pytest.fixture
def eager_compiler(monkeypatch):
    """torch.compile without a C++ compiler: the graph is traced and run as it is."""
    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda f: real(f, backend="aot_eager", fullgraph=True))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.usefixtures("eager_compiler")
def test_compiled_gradients_equal_eager_ones(autocast):
    model, batch = Mlp(4, 8, 1, 3, seed=0), Batch(draw(9, 4).float(), classes(3, 9))
    loss = backward(model, cross_entropy, autocast=autocast)(batch)
    whole = grads(model)
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ours = accumulate(backward(model, cross_entropy, autocast=autocast, compile=True), 2)(batch)
    assert torch.allclose(ours, loss, atol=1e-6 if autocast is None else 1e-2)
    assert close(grads(model), whole, 1e-6 if autocast is None else 1e-2)


def test_a_compiler_that_fails_is_one_warning_and_the_eager_pass(monkeypatch):
    def broken(function):
        def run(*args):
            raise RuntimeError("no C++ compiler\nand a long trace")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model, batch = Mlp(4, 8, 1, 3, seed=0), Batch(draw(9, 4).float(), classes(3, 9))
    gradient = backward(model, cross_entropy, compile=True)
    with pytest.warns(RuntimeWarning, match=r"^torch.compile failed, going on without it: no C\+\+ compiler$") as seen:
        first = gradient(batch)
    assert len(seen) == 1
    once = grads(model)
    assert gradient(batch) == first
    assert close(grads(model), [2 * g for g in once], 1e-7)


@pytest.mark.usefixtures("eager_compiler")
def test_a_users_mistake_under_compile_is_the_users_error_and_no_warning():
    model = Mlp(4, 8, 1, 3, seed=0)
    with pytest.raises(ValueError, match="outputs and targets do not fit"):
        backward(model, cross_entropy, compile=True)(Batch(draw(9, 4).float(), classes(3, 8)))


def test_a_model_keeps_its_mode():
    model, batch = Mlp(4, 8, 1, 3, seed=0).eval(), Batch(draw(9, 4).float(), classes(3, 9))
    backward(model, cross_entropy)(batch)
    assert not model.training


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: backward(m, cross_entropy, autocast=torch.float16), "got torch.float16: float16 would need loss scaling"),
        (lambda m: accumulate(backward(m, cross_entropy), 0), "parts must be a whole number, one or more, got 0"),
        (lambda m: accumulate(backward(m, cross_entropy), True), "parts must be"),
        (
            lambda m: backward(m, nn.functional.cross_entropy)(Batch(draw(9, 4), classes(3, 9))),
            r"one value per example, shape \(9,\), got shape \(\)",
        ),
    ],
)
def test_a_bad_option_or_a_reduced_loss_is_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call(Mlp(4, 8, 1, 3, seed=0).double())

"""The multi-layer perceptron against a NumPy transcription."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from velodrome.models.mlp import Mlp


def test_an_mlp_is_matrices_with_a_nonlinearity_between_them():
    model = Mlp(6, 5, 3, 2, activation=torch.tanh, seed=0).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = x.numpy().reshape(7, 6)
    for layer in model.hidden:
        h = np.tanh(h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    truth = h @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    assert np.allclose(model(x).detach().numpy(), truth, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("inputs", "width", "depth", "classes"), [(12, 8, 1, 3), (12, 8, 4, 3)])
def test_an_mlp_has_the_parameters_of_its_formula(inputs, width, depth, classes):
    count = sum(p.numel() for p in Mlp(inputs, width, depth, classes).parameters())
    assert count == (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * classes


def test_a_relu_mlp_keeps_the_variance_of_its_inputs_over_twenty_layers():
    """He et al. 2015 (https://arxiv.org/abs/1502.01852): with N(0, 2/fan-in) the second moment stays, with N(0, 1/fan-in) it would halve per layer."""
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    moments = [Mlp(512, 512, 20, 512, seed=s)(x).square().mean().item() for s in range(4)]
    mean = np.mean(np.log(moments))  # the head, N(0, 1/fan-in), sees E[relu(z)²] = E[z²]/2, with E[z²] = 2 E[x²] in every layer
    assert abs(mean) < math.log(2)


def test_initial_weights_have_the_documented_deviations():
    model = Mlp(400, 300, 2, 200, seed=0)
    for weight, variance in [(model.hidden[0].weight, 2 / 400), (model.hidden[1].weight, 2 / 300), (model.head.weight, 1 / 300)]:
        error = math.sqrt(2 / weight.numel())  # relative standard error of a normal sample's variance
        assert abs(weight.var().item() / variance - 1) < 4 * error
    assert all(torch.all(layer.bias == 0) for layer in [*model.hidden, model.head])


def test_inputs_and_activations_that_do_not_fit_are_one_clear_sentence():
    with pytest.raises(ValueError, match="each example must have 6 numbers, got 5"):
        Mlp(6, 4, 1, 2)(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="floating point, got torch"):
        Mlp(6, 4, 1, 2)(torch.zeros(3, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="activation must be a function"):
        Mlp(6, 4, 1, 2, activation="gelu")
    assert Mlp(6, 4, 1, 2, activation=F.gelu)(torch.zeros(3, 6)).shape == (3, 2)

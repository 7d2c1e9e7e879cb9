"""Lion, Muon and clipping against closed forms and plain NumPy transcriptions, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.optim.adam import Adam
from velodrome.optim.chain import Chain
from velodrome.optim.clip import ClipNorm
from velodrome.optim.descend import Descend
from velodrome.optim.groups import decay_groups, hidden_matrices
from velodrome.optim.lion import lion
from velodrome.optim.muon import Muon, muon, newton_schulz
from velodrome.optim.sgd import sgd


def gradients(shape, steps=30, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, *shape))


def drive(optimizer, p, grads):
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        optimizer.step()
    return p.detach().numpy()


def test_lion_equals_its_transcription_over_thirty_steps():
    grads = gradients((5, 4))
    p = nn.Parameter(torch.full((5, 4), 0.5, dtype=torch.float64))
    ours = drive(lion([p], lr=0.01, betas=(0.9, 0.97), weight_decay=0.3), p, grads)
    w, m = np.full((5, 4), 0.5), np.zeros((5, 4))
    for g in grads:
        w = w - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.3 * w)
        m = 0.97 * m + 0.03 * g
    np.testing.assert_allclose(ours, w, rtol=0, atol=1e-12)


def quintic(sigma, steps=5, a=3.4445, b=-4.7750, c=2.0315):
    for _ in range(steps):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_newton_schulz_applies_the_quintic_to_the_singular_values_alone(shape):
    x = gradients(shape, 1)[0]
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    truth = u @ np.diag(quintic(sigma / (np.linalg.norm(x) + 1e-7))) @ vt
    np.testing.assert_allclose(newton_schulz(torch.from_numpy(x)).numpy(), truth, rtol=0, atol=1e-12)


def test_the_float32_iteration_is_within_a_thousandth_of_the_float64_one():
    """The bar in our notes is 1e-4 for the relative error; libraries that iterate in bfloat16 stand at 3e-2."""
    x = torch.from_numpy(gradients((96, 256), 1)[0])
    truth = newton_schulz(x)
    assert (newton_schulz(x.float()).double() - truth).norm() / truth.norm() < 1e-4


def test_first_muon_update_is_semi_orthogonal():
    p = nn.Parameter(torch.zeros(24, 16, dtype=torch.float64))
    u = drive(Chain([p], Muon(), Descend(), lr=1.0), p, gradients((24, 16), 1))
    sigma = np.linalg.svd(u, compute_uv=False) / np.sqrt(24 / 16)
    assert sigma.min() > 0.6
    assert sigma.max() < 1.3


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon_equals_its_transcription_over_thirty_steps(scale):
    grads = gradients((6, 4, 2, 2))  # a convolution's filter is a 6 x 16 matrix
    p = nn.Parameter(torch.ones(6, 4, 2, 2, dtype=torch.float64))
    ours = drive(muon([p], lr=0.02, weight_decay=0.1, scale=scale, momentum=0.9), p, grads)
    w, b = np.ones((6, 16)), np.zeros((6, 16))
    factor = 1.0 if scale == "original" else 0.2 * 4
    for g in grads.reshape(30, 6, 16):
        b = 0.9 * b + 0.1 * g
        d = 0.1 * g + 0.9 * b
        left, sigma, right = np.linalg.svd(d, full_matrices=False)
        u = left @ np.diag(quintic(sigma / (np.linalg.norm(d) + 1e-7))) @ right
        w = w - 0.02 * (factor * u + 0.1 * w)
    np.testing.assert_allclose(ours.reshape(6, 16), w, rtol=0, atol=1e-10)


def test_matched_muon_updates_have_the_rms_of_an_adam_update():
    """Liu et al. 2025, section 2.2: AdamW's update RMS is about 0.2 to 0.4."""
    u = newton_schulz(torch.from_numpy(gradients((64, 256), 1)[0])) * 0.2 * 256**0.5
    assert 0.15 < float(u.square().mean().sqrt()) < 0.25


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_first_equals_torch_clip_grad_norm_and_leaves_the_gradient(max_norm):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), nn.Parameter(torch.randn(5, dtype=torch.float64))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = Chain([{"params": ours[:1]}, {"params": ours[1:], "lr": 0.01}], ClipNorm(max_norm), Adam(), Descend(), lr=0.1)
    torchs = torch.optim.Adam([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.01}], lr=0.1)
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [p.grad.clone() for p in ours]
        mine.step()
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        torchs.step()
        assert all(torch.equal(p.grad, b) for p, b in zip(ours, before, strict=True))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


class Tiny(nn.Module):
    """Every kind of parameter that grouping must tell apart."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.gain = nn.Parameter(torch.ones(8, 8))
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)
        self.tail = nn.Linear(10, 10)


def names(items):
    return [n for n, _ in items]


def test_only_weights_of_linear_layers_decay_in_a_model():
    decay, rest = decay_groups(Tiny(), 0.1)
    assert names(decay["params"]) == ["inner.weight", "head.weight", "tail.weight"]
    assert rest["weight_decay"] == 0.0
    assert len(rest["params"]) == len(list(Tiny().parameters())) - 3


def test_muon_takes_neither_the_head_nor_embeddings_nor_vectors():
    hidden, _ = hidden_matrices(Tiny())
    assert names(hidden) == ["inner.weight", "tail.weight"]
    hidden, _ = hidden_matrices(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))
    assert names(hidden) == ["0.weight", "2.weight"]  # without a named head the last linear layer is it


def test_a_weight_tied_to_an_embedding_is_an_embedding():
    model = Tiny()
    model.tail = nn.Linear(8, 10)
    model.tail.weight = model.embed.weight
    assert "embed.weight" not in names(decay_groups(model, 0.1)[0]["params"])
    assert names(hidden_matrices(model)[0]) == ["inner.weight"]


def test_without_a_named_head_the_last_layer_is_the_output_also_when_tied_or_after_attention():
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    tied[3].weight = tied[0].weight
    assert names(hidden_matrices(tied)[0]) == ["1.weight", "2.weight"]
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2))
    assert names(hidden_matrices(model)[0]) == ["0.weight", "1.in_proj_weight", "1.out_proj.weight"]
    deep = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(4, 4)}), "out": nn.Linear(4, 2)})
    assert names(hidden_matrices(deep)[0]) == ["block.fc.weight"]  # not everything that is called fc is the output


def test_plain_sgd_keeps_no_tensors():
    p = nn.Parameter(torch.ones(3))
    optimizer = sgd([p], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[p] == {"step": 1}

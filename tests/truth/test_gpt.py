"""GPT in float64 against an explicit transcription of attention, the properties of rotary positions, and closed formulas."""

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Attention, Gpt, Rotary


@pytest.fixture(autouse=True)
def float64():
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # matrices this small are slower on more
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape, high=13, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def tiny(**options):
    return Gpt(**{"vocabulary": 13, "length": 10, "width": 16, "depth": 2, "heads": 4, "seed": 0, **options})


def complex_rotary(x):
    """Su et al. 2021 (https://arxiv.org/abs/2104.09864, section 3.2.2) with complex numbers: pair i at position t times exp(i t θ_i)."""
    length, width = x.shape
    theta = 10000.0 ** (-2 * np.arange(width // 2) / width)
    z = (x[:, : width // 2] + 1j * x[:, width // 2 :]) * np.exp(1j * np.outer(np.arange(length), theta))
    return np.concatenate([z.real, z.imag], axis=1)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_the_softmax_of_rotated_scores_over_the_past(qk_norm):
    attention = Attention(16, 4, Rotary(10, 4), qk_norm, 0.0)
    x = draw(2, 7, 16)
    q, k, v = ((x @ f.weight.T).detach().numpy() for f in (attention.query, attention.key, attention.value))
    truth = np.zeros((2, 7, 16))
    for b in range(2):
        for h in range(4):
            part = slice(4 * h, 4 * h + 4)
            qh, kh = q[b, :, part], k[b, :, part]
            if qk_norm:
                qh, kh = (z / np.sqrt((z**2).mean(1, keepdims=True) + 1e-6) for z in (qh, kh))
            scores = complex_rotary(qh) @ complex_rotary(kh).T / 2
            for i in range(7):
                weights = np.exp(scores[i, : i + 1] - scores[i, : i + 1].max())
                truth[b, i, part] = weights @ v[b, : i + 1, part] / weights.sum()
    truth = truth @ attention.project.weight.detach().numpy().T
    assert np.allclose(attention(x).detach().numpy(), truth, rtol=0, atol=1e-12)


def test_rotary_scores_depend_only_on_relative_position():
    rotary, q, k = Rotary(64, 8), draw(8), draw(8, seed=1)
    scores = rotary(q.expand(1, 1, 64, 8))[0, 0] @ rotary(k.expand(1, 1, 64, 8))[0, 0].T
    for distance in range(-63, 64):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), rtol=0, atol=1e-12)
    assert scores[0].std() > 0.1
    assert torch.allclose(scores.diagonal(), (q @ k).expand(64), rtol=0, atol=1e-12)


def test_a_changed_token_changes_no_output_before_it():
    model, before = tiny(), tokens(1, 10)
    for t in range(10):
        after = before.clone()
        after[0, t] = (after[0, t] + 1) % 13
        change = (model(after) - model(before)).abs().amax(-1)[0]
        assert torch.all(change[:t] == 0)
        assert torch.all(change[t:] > 0)


def test_a_shorter_sequence_gives_the_same_first_outputs():
    model, x = tiny(), tokens(2, 10)
    assert torch.allclose(model(x)[:, :6], model(x[:, :6]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gpt_has_the_parameters_of_its_formula(norm, tied):
    count = sum(p.numel() for p in tiny(norm=norm, tied=tied).parameters())
    assert count == 13 * 16 * (1 if tied else 2) + 2 * (12 * 16**2 + 2 * 16) + 16


def test_a_tied_gpt_shares_its_embedding_with_its_head():
    model = tiny(tied=True)
    assert model.head.weight is model.embed.weight
    cross_entropy(model(tokens(2, 5)), tokens(2, 5, seed=2)).mean().backward()
    unseen = [v for v in range(13) if v not in tokens(2, 5)]
    assert torch.all(model.embed.weight.grad[unseen].abs().sum(1) > 0)  # only the head reaches the tokens that are not in the inputs
    apart = tiny(tied=False)
    assert apart.head.weight is not apart.embed.weight


def test_the_tables_of_rotary_positions_are_not_in_the_state():
    assert set(tiny().state_dict()) == {name for name, _ in tiny().named_parameters()}


def scores_of(model, x):
    """The scores q·k/√K that the first block's softmax sees."""
    attention, seen = model.blocks[0].attention, []
    handle = attention.rotary.register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    handle.remove()
    return seen[0] @ seen[1].transpose(-1, -2) / math.sqrt(seen[0].shape[-1])


def test_qk_norm_bounds_the_scores_by_the_root_of_the_head_width():
    for qk_norm in (True, False):
        model = tiny(qk_norm=qk_norm)
        for f in (model.blocks[0].attention.query, model.blocks[0].attention.key):
            f.weight.data *= 1e3
        largest = scores_of(model, tokens(2, 10)).abs().max()
        assert (largest <= 2.0 + 1e-12) == qk_norm


@pytest.mark.parametrize("tied", [False, True])
def test_initial_weights_have_the_documented_deviations(tied):
    model = Gpt(vocabulary=200, length=8, width=128, depth=6, heads=4, tied=tied, seed=0)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert torch.all(p == 1)
            continue
        variance = 1 / p.shape[1] / (12 if "project" in name else 1)
        if not tied:
            variance = {"embed.weight": 1.0, "head.weight": 0.02**2}.get(name, variance)
        assert abs(p.var().item() / variance - 1) < 4.5 * math.sqrt(2 / p.numel())
    assert sum("project" in name for name, _ in model.named_parameters()) == 12


def test_an_untrained_gpt_predicts_nearly_uniformly():
    x, y = tokens(16, 32, high=200), tokens(16, 32, high=200, seed=2)
    model = Gpt(vocabulary=200, length=32, width=128, depth=4, heads=4, seed=0)
    assert abs(cross_entropy(model(x), y).mean().item() - math.log(200)) < 0.1


def test_dropout_acts_in_train_mode_only():
    model, x = tiny(dropout=0.5), tokens(2, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), tiny()(x))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_hessian_vector_product_equals_the_difference_of_gradients(norm, qk_norm):
    model, x, y = tiny(norm=norm, qk_norm=qk_norm), tokens(3, 10), tokens(3, 10, seed=2)
    params = list(model.parameters())
    vector = [draw(*p.shape, seed=i) for i, p in enumerate(params)]

    def gradient():
        with sdpa_kernel(SDPBackend.MATH):
            loss = cross_entropy(model(x), y).mean()
        return torch.autograd.grad(loss, params, create_graph=True)

    product = torch.autograd.grad(gradient(), params, vector)
    ends, step = [], 1e-7  # the error falls as step² down to here, and grows by rounding below
    for sign in (1, -2):
        for p, v in zip(params, vector, strict=True):
            p.data += sign * step * v
        ends.append([g.detach() for g in gradient()])
    for hv, plus, minus in zip(product, *ends, strict=True):
        assert (hv - (plus - minus) / (2 * step)).abs().max() < 1e-7 * hv.abs().max()


def test_a_tiny_gpt_overfits_one_batch_in_150_updates():
    torch.set_default_dtype(torch.float32)
    model, x, y = Gpt(16, 16, 32, 2, 4, qk_norm=True, seed=0), tokens(8, 16, high=16), tokens(8, 16, high=16, seed=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = cross_entropy(model(x), y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # chance is ln 16 = 2.77


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tiny(heads=3), "heads must divide width, got heads=3 and width=16: write heads=2"),
        (lambda: tiny(heads=16), "even for rotary"),
        (lambda: tiny(norm="batch"), "norm must be 'rms' or 'layer'"),
        (lambda: tiny(dropout=1.0), "dropout must be"),
        (lambda: tiny(dropout=float("nan")), "dropout must be"),
        (lambda: tiny()(tokens(1, 11)), "at most 10, got shape"),
        (lambda: tiny()(tokens(10)), "inputs must be tokens"),
        (lambda: tiny()(draw(1, 10)), "int64 token numbers, got torch.float64"),
    ],
)
def test_a_bad_size_or_a_bad_input_is_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()

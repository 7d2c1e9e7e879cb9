"""Signs of sickness in a forward pass on hand-built networks whose numbers are known; nothing of what is looked at changes, bit for bit."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from velodrome.models.gpt import Gpt
from velodrome.models.mlp import Mlp
from velodrome.probes.failures.activations import activations, gradient_rms
from velodrome.probes.failures.attention import attention
from velodrome.probes.failures.collapse import naive_minimisation, softmax_collapse
from velodrome.probes.failures.dormant import dormant
from velodrome.probes.failures.log_z import drift, output_logits
from velodrome.probes.failures.observe import observe


def weighed(rows, bias=None):
    """A linear layer with these weights."""
    weight = torch.tensor(rows, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.tensor(bias))
    return layer


# Of four units one always fires, one fires a hundredth as much, one never, one for half of the examples; x is +1 and -1.
UNITS = weighed([[0.0], [0.0], [0.0], [1.0]], [1.0, 0.01, -1.0, 0.0])
BOTH = torch.tensor([[1.0], [-1.0]])


def test_dormant_and_dead_units_of_a_known_layer_are_counted():
    with dormant(nn.Sequential(UNITS, nn.ReLU()), tau=0.03) as seen:
        nn.Sequential(UNITS, nn.ReLU())(BOTH)  # another model is not looked at
    assert not seen.layers
    assert not seen.share.identified
    model = nn.Sequential(UNITS, nn.ReLU())
    with dormant(model, tau=0.03) as seen:
        model(BOTH)
    layer = seen.layers["1"]  # means 1, 0.01, 0, 0.5 over their mean 0.3775
    assert (layer.units, layer.dormant, layer.dead, layer.lowest) == (4, 2, 1, 0.0)
    assert seen.share.value == 0.5
    assert seen.dead.value == 0.25
    with dormant(model, tau=0.02) as seen:
        model(BOTH)
    assert seen.layers["1"].dormant == 1
    assert seen.layers["1"].dead == 1


def test_drm_looks_before_the_activation_where_nothing_is_dormant():
    model = nn.Sequential(UNITS, nn.ReLU())
    with dormant(model, tau=0.03, definition="drm") as seen:
        model(BOTH)
    assert (seen.layers["0"].dormant, seen.layers["0"].dead) == (1, 0)  # 1, 0.01, 1, 1: the one that never fires is not silent


def test_activations_called_as_functions_are_seen_each_with_a_name():
    model = Mlp(5, 8, 2, 3)
    with dormant(model) as seen:
        model(torch.randn(16, 5))
    assert list(seen.layers) == ["relu", "relu.1"]
    with torch.no_grad():
        model.hidden[1].bias[:3] = -1e6
    with dormant(model) as seen:
        model(torch.randn(16, 5))
    assert seen.layers["relu.1"].dead >= 3


def test_a_unit_of_an_image_is_a_channel_and_several_batches_are_one_look():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1).expand(3, 1, 3, 3))
        model[0].bias.zero_()
    with dormant(model) as seen:
        model(torch.ones(2, 1, 5, 5))
    assert (seen.layers["1"].units, seen.layers["1"].dead) == (3, 1)
    with dormant(model) as seen:
        model(torch.ones(2, 1, 5, 5))
        model(-torch.ones(2, 1, 5, 5))
    assert seen.layers["1"].dead == 0
    assert seen.seen == 36


def test_a_layer_that_is_silent_altogether_is_dormant_in_all_its_units():
    model = nn.Sequential(weighed([[0.0], [0.0]], [-1.0, -2.0]), nn.ReLU())
    with dormant(model) as seen:
        model(BOTH)
    assert (seen.layers["1"].dormant, seen.layers["1"].dead) == (2, 2)


def test_sizes_of_activations_are_those_of_their_definition_over_all_calls():
    model = nn.Sequential(weighed([[3.0], [4.0]]), nn.Tanh())
    with activations(model) as seen:
        model(torch.tensor([[1.0]]))
        model(torch.tensor([[-2.0], [2.0]]))
    assert seen.numbers["0"]["rms"] == pytest.approx(math.sqrt((12.5 + 50) / 2))
    assert seen.numbers["0"]["largest"] == 8.0
    assert seen.by_type()["Linear"]["largest"] == 8.0
    assert seen.numbers["1"]["near_limit"] == 0


def test_values_near_the_limit_of_float16_are_counted_before_they_overflow():
    model = nn.Sequential(weighed([[40000.0], [30000.0], [1.0], [1.0]]))
    with activations(model, form=torch.float16) as seen:
        model(torch.ones(1, 1))
    assert seen.numbers["0"]["near_limit"] == 0.25
    assert seen.numbers["0"]["headroom"] == pytest.approx(65504 / 40000)
    with activations(model) as seen:
        model(torch.ones(1, 1))
    assert seen.numbers["0"]["near_limit"] == 0


def test_gradients_are_held_against_the_optimizers_eps():
    model = weighed([[1.0, 1.0]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-2)
    model.weight.grad, model.bias.grad = torch.tensor([[3e-3, 4e-3]]), torch.tensor([1.0])
    found = gradient_rms(model, optimizer)
    assert found["weight"].rms == pytest.approx(5e-3 / 2**0.5)
    assert found["weight"].over_eps == pytest.approx(0.5 / 2**0.5)
    assert found["bias"].over_eps == pytest.approx(100)
    assert math.isnan(gradient_rms(model)["bias"].over_eps)


class Own(nn.Module):
    """Attention in three ways over the same queries and keys."""

    def __init__(self, how, q, k, causal=False, mask=None):
        super().__init__()
        self.how, self.q, self.k, self.causal, self.mask = how, q, k, causal, mask
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, v):
        if self.how == "fused":
            return F.scaled_dot_product_attention(self.gain * self.q, self.k, v, attn_mask=self.mask, is_causal=self.causal)
        scores = self.gain * self.q @ self.k.transpose(-2, -1) / self.q.shape[-1] ** 0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask, -math.inf)
        return (scores.softmax(-1) if self.how == "method" else torch.softmax(scores, dim=-1)) @ v


def truth(q, k, hidden):
    """(largest logit, mean entropy) by head, in float64, over all queries."""
    scores = (q.double() @ k.double().transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(hidden, -math.inf)
    p = scores.softmax(-1)
    return scores.amax((0, 2, 3)), -torch.xlogy(p, p).sum(-1).mean((0, 2))


@pytest.mark.parametrize("how", ["fused", "method", "function"])
@pytest.mark.parametrize("masked", ["no", "causal", "mask"])
def test_attention_logits_and_entropies_are_those_of_float64_by_head(how, masked):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 6, 4, generator=g) for _ in range(3))
    hidden = torch.zeros(6, 6, dtype=torch.bool)
    if masked == "causal":
        hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    if masked == "mask":
        hidden = torch.rand(3, 1, 6, 6, generator=g) < 0.3
        hidden[..., 0] = False
    model = Own(how, q, k, masked == "causal", ~hidden if masked == "mask" else None)
    with attention(model, examples=None, queries=None) as seen:
        model(v)
    (layer,) = seen.layers.values()
    logits, entropies = truth(q, k, hidden)
    assert layer.logits == pytest.approx(logits.tolist(), rel=1e-5)
    assert layer.entropies == pytest.approx(entropies.tolist(), rel=1e-5)
    assert seen.largest.value == pytest.approx(float(logits.max()), rel=1e-5)
    assert not seen.sampled
    with attention(model, examples=2, queries=3) as seen:
        model(v)
    assert seen.sampled
    assert seen.largest.value <= float(logits.max()) + 1e-5


def test_uniform_attention_has_all_the_entropy_there_is_and_one_hot_attention_none():
    flat, sharp = torch.zeros(1, 1, 8, 4), torch.eye(8)[None, None] * 100
    for q, share in ((flat, 1.0), (sharp, 0.0)):
        model = Own("fused", q, q)
        with attention(model) as seen:
            model(q)
        (layer,) = seen.layers.values()
        assert layer.shares[0] == pytest.approx(share, abs=1e-5)
        assert layer.lowest == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 6}, {"bias": False}])
@pytest.mark.parametrize("weights", [True, False])
def test_torchs_own_multihead_attention_shows_its_logits(options, weights):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
    shape = (4, 5) if options.get("batch_first") else (5, 4)  # four examples of length five
    x, y = torch.randn(*shape, 8), torch.randn(*shape, 6 if "kdim" in options else 8)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[1, -1] = True
    hide = {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "key_padding_mask": padding}
    with attention(layer, examples=None, queries=None) as seen:
        out, p = layer(x, y, y, need_weights=weights, average_attn_weights=False, **hide)
    plain, p = layer(x, y, y, need_weights=True, average_attn_weights=False, **hide)
    assert torch.allclose(out, plain, atol=1e-6)
    entropies = -torch.xlogy(p, p).sum(-1).mean((0, 2))
    assert list(seen.layers) == [""]
    assert seen.layers[""].entropies == pytest.approx(entropies.tolist(), rel=1e-4)


def test_grouped_queries_share_their_keys():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 5, 8, generator=g), torch.randn(2, 2, 5, 8, generator=g)

    class Grouped(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    with attention(model := Grouped(), examples=None, queries=None) as seen:
        model(q)
    logits, _ = truth(q, k.repeat_interleave(2, 1), torch.zeros(5, 5, dtype=torch.bool))
    assert seen.layers[""].logits == pytest.approx(logits.tolist(), rel=1e-5)


def test_every_layer_of_our_gpt_is_seen_and_doubling_the_queries_doubles_its_logits():
    model = Gpt(32, 16, 16, 2, 2, seed=0)
    tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    with attention(model) as before:
        model(tokens)
    with torch.no_grad():
        model.blocks[0].attention.query.weight.mul_(2)
    with attention(model) as after:
        model(tokens)
    assert list(before.layers) == ["blocks.0.attention.attend", "blocks.1.attention.attend"]
    first = "blocks.0.attention.attend"
    assert after.layers[first].logits == pytest.approx([2 * x for x in before.layers[first].logits], rel=1e-5)
    assert max(after.layers[first].shares) < max(before.layers[first].shares)


def test_log_z_of_known_logits_is_known_and_a_constant_shifts_it():
    z = torch.log(torch.tensor([[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]]))
    found, shifted = output_logits(z), output_logits(z + 7)
    assert found.log_z.value == pytest.approx(math.log(8))
    assert shifted.log_z.value == pytest.approx(math.log(8) + 7)
    assert found.largest.value == pytest.approx(math.log(5))
    assert found.log_z_squared.value == pytest.approx(math.log(8) ** 2)
    assert shifted.mean.value == pytest.approx(float(z.mean()) + 7)
    with pytest.raises(ValueError, match="floating-point"):
        output_logits(torch.ones(2, 3, dtype=torch.int64))


def test_the_interval_of_log_z_covers_its_mean():
    g = torch.Generator().manual_seed(0)
    everyone = torch.randn(4000, 5, 10, generator=g) + torch.randn(4000, 1, 1, generator=g)  # positions of an example are alike
    goal = float(everyone.double().logsumexp(-1).mean())
    hits = 0
    for i in range(200):
        e = output_logits(everyone[torch.randperm(4000, generator=torch.Generator().manual_seed(i))[:40]]).log_z
        hits += e.low <= goal <= e.high
    assert 0.90 <= hits / 200 <= 0.98


def test_a_drift_that_was_planted_is_found_and_none_where_there_is_none():
    g = torch.Generator().manual_seed(0)
    steps, noise = list(range(0, 1000, 10)), torch.randn(100, generator=g).double()
    risen = drift(steps, [1 + 0.01 * t + 0.1 * float(x) for t, x in zip(steps, noise, strict=True)])
    level = drift(steps, (0.1 * noise).tolist())
    assert risen.low < 0.01 < risen.high < 0.011
    assert level.low < 0 < level.high
    assert not drift([1, 2], [1.0, 2.0]).identified


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 40.0), (torch.float32, 20.0), (torch.bfloat16, 9.0)])
def test_collapse_begins_where_the_dtype_rounds_to_one(dtype, gap):
    z = torch.zeros(4, 3, dtype=dtype)
    z[:2, 0] = gap  # both collapsed, the second at the wrong class
    z[2:, 0] = gap / 3
    targets = torch.tensor([0, 1, 0, 1])
    found = softmax_collapse(z, targets)
    assert (found.collapsed.value, found.zero_loss.value) == (0.5, 0.25)
    losses = F.cross_entropy(z, targets, reduction="none")
    assert float((losses == 0).double().mean()) == found.zero_loss.value
    assert softmax_collapse(z, torch.tensor([0, -100, 0, -100])).collapsed.value == 0.5
    assert output_logits(z).collapsed.value == 0.5
    if dtype != torch.float64:
        assert softmax_collapse(z, targets, torch.float64).collapsed.value == 0


def test_a_gradient_that_only_scales_the_weights_is_naive_and_one_across_is_not():
    layer = weighed([[3.0, 4.0]])
    layer.weight.grad, layer.bias.grad = -0.5 * layer.weight.detach(), torch.zeros(1)
    found = naive_minimisation(layer)
    assert found.numbers["weight"] == pytest.approx(1.0)
    assert math.isnan(found.numbers["bias"])
    layer.weight.grad = torch.tensor([[4.0, -3.0]])
    assert naive_minimisation(layer).numbers["weight"] == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ValueError, match="between backward and step"):
        naive_minimisation(nn.Linear(2, 2))


def test_a_homogeneous_network_that_has_fitted_its_data_minimises_naively():
    """Prieto et al. 2025, Fig. 5 in words: past the point of overfitting gradients align with the weights."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 10), torch.randint(3, (20,))
    model = nn.Sequential(nn.Linear(10, 64, bias=False), nn.ReLU(), nn.Linear(64, 3, bias=False))
    optimizer, cosines = torch.optim.SGD(model.parameters(), lr=1.0), []
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        cosines.append(naive_minimisation(model).whole)
        optimizer.step()
    assert cosines[-1] > 0.7 > 0.3 > cosines[0]


def trained(look, dtype=None):
    """Weights, gradients and the random state after three steps of a GPT with dropout, looked at or not."""
    torch.manual_seed(0)
    model = Gpt(32, 16, 16, 2, 2, dropout=0.1, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        tokens = torch.randint(32, (4, 16))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            if look:
                with observe(model) as seen:
                    z = model(tokens)
                assert seen.logits.log_z.identified
                assert len(seen.attention.layers) == 2
                assert "blocks.0.gelu" in seen.dormant.layers
                assert "blocks.1.expand" in seen.activations.numbers
            else:
                z = model(tokens)
            F.cross_entropy(z.flatten(0, 1).float(), tokens.flatten()).backward()
        optimizer.step()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return [*(p.detach() for p in model.parameters()), *(p.grad for p in model.parameters()), torch.rand(3), torch.tensor(hooks)]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_run_that_is_observed_is_bit_for_bit_the_run_that_is_not(dtype):
    assert all(torch.equal(a, b) for a, b in zip(trained(True, dtype), trained(False, dtype), strict=True))
    assert int(trained(True)[-1]) == 0


def test_hooks_come_off_when_the_step_fails():
    model = Mlp(4, 8, 1, 2)
    with pytest.raises(ValueError, match="each example must have"), observe(model):
        model(torch.ones(2, 3))
    with observe(model) as seen:
        model(torch.ones(2, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert list(seen.dormant.layers) == ["relu"]


def test_a_compiled_model_is_refused_with_a_reason_and_still_shows_its_outputs():
    model = Mlp(4, 8, 1, 2)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="compiled"), observe(compiled):
        pass
    x = torch.randn(6, 4)
    with observe(compiled, ["logits"]) as seen:
        compiled(x)
    assert seen.logits.log_z.value == pytest.approx(float(model(x).detach().logsumexp(-1).mean()), rel=1e-5)
    with pytest.raises(ValueError, match="no sign 'loss'"), observe(model, ["loss"]):
        pass


def test_a_sample_of_positions_is_near_the_whole():
    model = Gpt(32, 64, 16, 1, 2, seed=0)
    tokens = torch.randint(32, (16, 64), generator=torch.Generator().manual_seed(1))
    with observe(model, most=None) as whole:
        model(tokens)
    with observe(model, most=128) as some:
        model(tokens)
    for name, found in whole.activations.numbers.items():
        assert some.activations.numbers[name]["rms"] == pytest.approx(found["rms"], rel=0.15)
        assert some.activations.numbers[name]["largest"] <= found["largest"]
    assert abs(some.logits.log_z.value - whole.logits.log_z.value) < 4 * some.logits.log_z.error


def test_a_copy_made_while_looking_is_a_model_without_our_hooks_after_all():
    model = Mlp(4, 8, 1, 2)
    with observe(model):
        model(torch.ones(2, 4))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(torch.ones(2, 4)), model(torch.ones(2, 4)))

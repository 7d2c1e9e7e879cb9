"""Norms of single examples' gradients from one backward pass, against a loop over the examples in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Gpt
from velodrome.models.vit import Vit
from velodrome.probes.objective import Objective
from velodrome.probes.statistics.ghost import example_norms, gradient_norms


class Pictures(nn.Module):
    """Convolutions of every kind, the norms of pictures, activations in place, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.plain, self.group = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.strided, self.batch = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, (3, 2), dilation=2, padding="same", padding_mode="reflect")
        self.pointwise, self.line, self.head = nn.Conv2d(8, 8, 1), nn.Conv1d(8, 6, 3, padding=2), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.group(self.plain(x)), inplace=True)
        x = self.pointwise(self.pointwise(self.wide(self.batch(self.strided(x)).relu_())))
        return self.head(self.line(x.flatten(2)).mean(2))


class Deep(nn.Module):
    """Deep and small, where patches are compared by Gram matrices; strided and dilated."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3, stride=2), nn.Conv2d(24, 24, 3, padding=2, dilation=2), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.b(self.a(x).tanh()).mean((2, 3)))


class Bare(nn.Module):
    """Bare parameters that are added, expanded and multiplied, torch's attention, a recurrent layer, weight norm, an unused parameter."""

    def __init__(self):
        super().__init__()
        self.patch, self.token, self.position = (
            nn.Conv2d(3, 8, 3, stride=3),
            nn.Parameter(torch.randn(1, 1, 8)),
            nn.Parameter(torch.randn(1, 12, 8)),
        )
        self.attention, self.norm, self.gain = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8), nn.Parameter(torch.randn(8))
        self.rnn, self.head, self.unused = nn.GRU(8, 8, batch_first=True), weight_norm(nn.Linear(8, 4)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        z = self.patch(x).flatten(2).transpose(1, 2)
        z = torch.cat((self.token.expand(len(x), -1, -1), z), 1)
        z = z + self.position[:, : z.shape[1]]
        n = self.norm(z)
        z = z + self.gain * self.attention(n, n, n, need_weights=False)[0]
        return self.head(self.norm(z + self.rnn(z)[0])[:, 0])


class Table(nn.Module):
    """Tokens with a padding row and learnt positions, a table without examples; a weight that is used past its layer."""

    def __init__(self, past=False):
        super().__init__()
        self.token, self.position, self.past = nn.Embedding(11, 6, padding_idx=0), nn.Embedding(9, 6), past
        self.up, self.rms, self.shift, self.head = nn.Linear(6, 6), nn.RMSNorm(6), nn.Parameter(torch.randn(6)), nn.Linear(6, 11)

    def forward(self, tokens):
        x = self.token(tokens) + (self.position(torch.arange(tokens.shape[1])) + self.shift)
        x = self.rms(self.up(self.up(x).tanh()))
        return F.linear(x, self.up.weight.T) @ self.token.weight.T if self.past else self.head(x)


class Scaled(nn.Module):
    """A parameter that is one number."""

    def __init__(self):
        super().__init__()
        self.head, self.scale = nn.Linear(5, 4), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.scale * self.head(x)


def pictures(b=6):
    return torch.randn(b, 3, 9, 9).double(), torch.randint(4, (b,))


def tokens(b, t, v=11):
    return torch.randint(v, (b, t)), torch.randint(v, (b, t))


def singles(model, x, y):
    """Gradients (n, numbers) by parameter, one example after the other."""
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = [
        torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1])[0], list(params.values()), materialize_grads=True)
        for i in range(len(x))
    ]
    return {name: torch.stack([row[k].flatten() for row in rows]) for k, name in enumerate(params)}


MODELS = {
    "linear layers": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)),
        lambda: (torch.randn(6, 5).double(), torch.randint(4, (6,))),
    ),
    "one number": (Scaled, lambda: (torch.randn(6, 5).double(), torch.randint(4, (6,)))),
    "pictures": (Pictures, pictures),
    "small pictures of many channels": (Deep, pictures),
    "a tied GPT": (lambda: Gpt(11, 8, 8, 2, 2, tied=True, norm="layer"), lambda: tokens(4, 8)),
    "a GPT as long as its batch": (lambda: Gpt(11, 8, 8, 2, 2), lambda: tokens(8, 8)),
    "a GPT longer than its layers are wide": (lambda: Gpt(11, 40, 4, 1, 2, tied=True), lambda: tokens(3, 40)),
    "a table without examples": (Table, lambda: tokens(5, 9)),
    "a table as long as the batch": (Table, lambda: tokens(9, 9)),
    "weights used past their layers": (lambda: Table(past=True), lambda: tokens(5, 7)),
    "bare parameters": (Bare, pictures),
    "bare parameters, as many examples as positions": (Bare, lambda: pictures(10)),
    "a vision transformer": (lambda: Vit(9, 3, 3, 8, 1, 2, 4), pictures),
}


def near(found, true, tol=1e-12):
    return float((found - true).abs().max()) <= tol * max(float(true.abs().max()), 1e-6)  # keys' biases have no gradient


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_products_with_the_mean_are_those_of_a_loop_over_the_examples(name):
    torch.manual_seed(0)
    make, data = MODELS[name]
    model, (x, y) = make().double().eval(), data()
    true = singles(model, x, y)
    for micro in (None, 4):
        norms, grads = gradient_norms(Objective(model, cross_entropy, (x, y), micro_batch=micro), inner=True)
        assert set(norms.parameters) == set(true)
        for key, g in true.items():
            mean = g.mean(0)
            assert near(norms.parameters[key], g.square().sum(1)), key
            assert near(norms.inner_parameters[key], g @ mean), key
            assert near(grads[key].flatten(), mean), key
            assert norms.mean_squared[key] == pytest.approx(float(mean @ mean), rel=1e-12, abs=1e-30)
        assert near(norms.losses, cross_entropy(model(x), y).detach())


def test_norms_in_single_precision_are_those_of_the_loop_to_one_in_a_million():
    torch.manual_seed(0)
    x, y = tokens(6, 8)
    model = Gpt(11, 8, 16, 2, 2, tied=True)
    found = gradient_norms(Objective(model, cross_entropy, (x, y)))[0].squared
    true = sum(g.double().square().sum(1) for g in singles(model.double(), x, y).values())
    assert near(found, true, 1e-6)


def test_one_layer_of_a_model_can_be_looked_at_alone():
    x, y = pictures()
    model = Pictures().double().eval()
    norms = gradient_norms(Objective(model, cross_entropy, (x, y), params=["group.*"]))[0]
    assert set(norms.parameters) == {"group.weight", "group.bias"}
    assert set(norms.layers()) == {"group"}
    assert near(norms.squared, sum(singles(model, x, y)[k].square().sum(1) for k in norms.parameters))


def test_the_callers_own_gradients_and_random_numbers_are_untouched_bit_for_bit_with_dropout_in_training():
    torch.manual_seed(0)
    x, y = tokens(6, 8)
    model = Gpt(11, 8, 16, 2, 2, tied=True, dropout=0.2).train()
    drawn, grads = [], []
    for watched in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        if watched:
            with example_norms(model) as seen:
                cross_entropy(model(x), y).mean().backward()
        else:
            cross_entropy(model(x), y).mean().backward()
        drawn.append(torch.rand(1))
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert torch.equal(*drawn)
    assert seen.norms.total == pytest.approx(sum(float(g.double().square().sum()) for g in grads[0]), rel=1e-5)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    # the mean of the squared norms is at least the squared norm of the mean, whatever the masks
    assert float(seen.norms.squared.mean()) > seen.norms.total


def test_looking_again_at_bare_parameters_leaves_random_generators_and_gradients_alone():
    x, y = pictures()
    model = Bare().double()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, kept = torch.get_rng_state(), {n: p.grad for n, p in model.named_parameters()}
    gradient_norms(Objective(model, cross_entropy, (x, y)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is kept[n] and bool((p.grad == 1).all()) for n, p in model.named_parameters())


def test_micro_batches_that_are_accumulated_give_the_norms_of_the_whole_batch():
    torch.manual_seed(0)
    x, y = torch.randn(8, 5).double(), torch.randint(4, (8,))
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    true = gradient_norms(Objective(model, cross_entropy, (x, y)))[0]
    for parts, options in (((3, 5), {"examples": 8}), ((4, 4), {"examples": 8, "scale": 64.0}), ((4, 4), {})):
        model.zero_grad()
        with example_norms(model, **options) as seen:
            for xs, ys in zip(x.split(parts), y.split(parts), strict=True):
                losses = cross_entropy(model(xs), ys)
                loss = losses.sum() / 8 * options.get("scale", 1.0) if options else losses.mean()
                loss.backward()
        assert near(seen.norms.squared, true.squared)
        assert seen.norms.total == pytest.approx(true.total, rel=1e-12)
    model.zero_grad()
    with example_norms(model) as seen:  # two forward passes, one backward pass
        (cross_entropy(model(x[:4]), y[:4]).mean() + cross_entropy(model(x[4:]), y[4:]).mean()).backward()
    assert near(seen.norms.squared, true.squared)


def test_under_autocast_norms_are_right_to_the_precision_of_bfloat16():
    torch.manual_seed(0)
    x, y = tokens(6, 8)
    model = Gpt(11, 8, 16, 2, 2)
    true = gradient_norms(Objective(model, cross_entropy, (x, y)))[0].squared
    with torch.autocast("cpu", dtype=torch.bfloat16), example_norms(model) as seen:
        loss = cross_entropy(model(x).float(), y).mean()
        loss.backward()
    assert near(seen.norms.squared, true, 0.03)


@pytest.mark.parametrize("parts", [1, 2])
def test_products_of_bfloat16_weights_are_those_of_float64_to_its_precision(parts):
    torch.manual_seed(0)
    y = torch.randint(4, (12,))
    for model, x in (
        (nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(12, 5)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 4)), torch.randn(12, 2, 6, 6)),
        (nn.Sequential(nn.Embedding(9, 4), nn.RMSNorm(4), nn.Flatten(), nn.Linear(12, 4)), torch.randint(9, (12, 3))),
    ):
        sums = []
        for dtype in (torch.bfloat16, torch.float64):
            inputs = x.to(torch.bfloat16).to(dtype) if x.is_floating_point() else x
            batches = [(inputs[i::parts], y[i::parts]) for i in range(parts)]
            model = model.to(torch.bfloat16).to(dtype)
            sums.append(gradient_norms(Objective(model, lambda o, t: cross_entropy(o.double(), t), batches), inner=True)[0].inner)
        assert near(*sums, 0.05)


def test_batch_norm_in_training_and_counts_over_the_batch_are_refused_by_name():
    x, y = pictures()
    with pytest.raises(ValueError, match="batch mixes the examples"):
        gradient_norms(Objective(Pictures().double(), cross_entropy, (x, y), mode="train", check=False))
    with (
        pytest.raises(ValueError, match="scale_grad_by_freq"),
        example_norms(nn.Sequential(nn.Embedding(3, 2, scale_grad_by_freq=True), nn.Flatten())),
    ):
        pass

    class OptimizedModule(nn.Sequential):  # the name of what torch.compile returns, which warns as it is imported
        pass

    with pytest.raises(ValueError, match="compiled"), example_norms(OptimizedModule(nn.Linear(2, 2))):
        pass


def test_a_gradient_from_past_the_models_forward_pass_is_refused_by_name():
    x, y = torch.randn(6, 5), torch.randint(4, (6,))
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
    with pytest.raises(ValueError, match=r"0\.bias"), example_norms(model):
        (cross_entropy(model[2](model[0](x)), y).mean()).backward()
    assert not model[0]._forward_hooks


def test_a_reentrant_checkpoint_is_refused_by_name_and_the_other_kind_is_right():
    x, y = torch.randn(6, 5).double(), torch.randint(4, (6,))

    class Saving(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.a, self.b, self.reentrant = nn.Linear(5, 5), nn.Linear(5, 4), reentrant

        def forward(self, x):
            return self.b(checkpoint(self.a, x, use_reentrant=self.reentrant))

    model = Saving(False).double()
    found = gradient_norms(Objective(model, cross_entropy, (x, y)))[0].squared
    assert near(found, sum(g.square().sum(1) for g in singles(model, x, y).values()))
    model = Saving(True).double()
    with pytest.raises(ValueError, match=r"a\.bias"), example_norms(model):
        cross_entropy(model(x.clone().requires_grad_()), y).mean().backward()


def test_a_layer_without_a_rule_that_draws_random_numbers_is_refused_by_name():
    x, y = pictures()
    model = Bare().double()
    model.attention.dropout = 0.5
    with pytest.raises(ValueError, match=r"attention says something else|the model says something else"):
        gradient_norms(Objective(model, cross_entropy, (x, y), mode="train", fix_random=True))


def test_asking_before_there_is_an_answer_or_for_what_is_not_known_is_refused():
    model = nn.Linear(5, 4)
    x = torch.randn(6, 5)
    with example_norms(model) as seen, pytest.raises(ValueError, match="no norms yet"):
        _ = seen.norms
    with pytest.raises(ValueError, match="one backward pass"), example_norms(model, inner=True):
        for part in (x[:3], x[3:]):
            model(part).square().mean().backward()
    with pytest.raises(ValueError, match="common mean"), example_norms(model):
        for part in (x[:2], x[2:]):
            model(part).square().mean().backward()

"""The Hessian as an operator, against double backward of single entries and against finite differences of gradients, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.models.gpt import Gpt
from velodrome.models.mlp import Mlp
from velodrome.models.resnet import ResNet
from velodrome.models.vit import Vit
from velodrome.probes.curvature import curvature
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.objective import Objective


class Norms(nn.Module):
    """A net around one normalisation of 6 channels."""

    def __init__(self, norm):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(4, 6), norm, nn.Linear(6, 3)
        for p in norm.parameters():  # an affine part that does something
            nn.init.normal_(p, 1.0, 0.3)

    def forward(self, x):
        return self.two(torch.tanh(self.norm(self.one(x))))


class Attends(nn.Module):
    """Tied embedding, causal attention by the fused function, LayerNorm."""

    def __init__(self, tied):
        super().__init__()
        self.token, self.norm, self.qkv = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 12)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens):
        x = self.token(tokens)
        q, k, v = (z.unflatten(-1, (2, 2)).transpose(1, 2) for z in self.qkv(self.norm(x)).split(4, -1))
        return self.head(x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))


class Spare(nn.Module):
    """Two parameters that nothing uses, and one behind a branch that is not taken."""

    def __init__(self):
        super().__init__()
        self.unused, self.net, self.other = nn.Parameter(torch.ones(2)), nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return torch.tanh(self.net(x))


def features():
    return torch.randn(6, 4).double(), torch.randint(3, (6,))


def sequences():
    return torch.randint(7, (3, 5)), torch.randint(7, (3, 5))


NETS = {
    "LayerNorm": (lambda: Norms(nn.LayerNorm(6)), features, None),
    "RMSNorm": (lambda: Norms(nn.RMSNorm(6)), features, None),
    "GroupNorm": (lambda: Norms(nn.GroupNorm(2, 6)), features, None),
    "BatchNorm in training": (lambda: Norms(nn.BatchNorm1d(6)), features, "train"),
    "BatchNorm in evaluation": (lambda: Norms(nn.BatchNorm1d(6)), features, "eval"),
    "attention": (lambda: Attends(False), sequences, None),
    "tied attention": (lambda: Attends(True), sequences, None),
    "unused parameters": (Spare, features, None),
}


def net(name):
    torch.manual_seed(0)
    make, data, mode = NETS[name]
    model, batch = make().double(), data()
    return model, batch, Objective(model, cross_entropy, batch, mode=mode)


def flat(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


def double_backward(model, batch, loss, mode, chosen=slice(None)):
    """Row by row, of some entries; attention in plain operations. Buffers as they were."""
    params, buffers = list(model.parameters()), [b.clone() for b in model.buffers()]
    model.train(mode != "eval")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        mean = loss(model(batch[0]), batch[1]).mean()
    gradients = torch.autograd.grad(mean, params, create_graph=True, allow_unused=True)
    entries = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, params, strict=True)])
    rows = []
    for e in entries[chosen]:
        row = torch.autograd.grad(e, params, retain_graph=True, allow_unused=True) if e.requires_grad else [None] * len(params)
        rows.append(flat(torch.zeros_like(p) if r is None else r for r, p in zip(row, params, strict=True)))
    for b, old in zip(model.buffers(), buffers, strict=True):
        b.copy_(old)
    return torch.stack(rows)


@pytest.mark.parametrize("name", NETS)
def test_the_hessian_is_that_of_double_backward_entry_by_entry(name):
    model, batch, objective = net(name)
    want = double_backward(model, batch, cross_entropy, NETS[name][2])
    got = hessian(objective).dense()
    assert want.norm() > 1e-2
    assert (got - want).norm() <= 1e-12 * want.norm()
    assert (got - got.T).norm() <= 1e-12 * want.norm()


@pytest.mark.parametrize("name", NETS)
def test_the_hessian_is_the_slope_of_the_gradient(name):
    """Richardson's extrapolation of central differences, good to 1e-9: independent of second derivatives altogether."""
    model, batch, objective = net(name)
    params = list(model.parameters())
    v = torch.randn(sum(p.numel() for p in params)).double()
    got = hessian(objective) @ v

    def gradient(step):
        with torch.no_grad():
            at = [p.clone() for p in params]
            for p, d in zip(params, v.split([p.numel() for p in params]), strict=True):
                p.add_(d.view_as(p), alpha=step)
        kept = [b.clone() for b in model.buffers()]
        model.train(NETS[name][2] != "eval")
        g = torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]).mean(), params, allow_unused=True)
        with torch.no_grad():
            for p, old in [*zip(params, at, strict=True), *zip(model.buffers(), kept, strict=True)]:
                p.copy_(old)
        return flat(torch.zeros_like(p) if x is None else x for x, p in zip(g, params, strict=True))

    h = 1e-3
    coarse, fine = ((gradient(s) - gradient(-s)) / (2 * s) for s in (h, h / 2))
    want = (4 * fine - coarse) / 3
    assert (got - want).norm() <= 1e-7 * want.norm()


def images():
    return torch.randn(2, 1, 8, 8).double(), torch.tensor([0, 1])


OURS = {
    "mlp": (lambda: Mlp(4, 5, 2, 3, F.silu), features, cross_entropy),
    "gpt": (lambda: Gpt(7, 5, 4, 1, 1), sequences, cross_entropy),
    "resnet": (lambda: ResNet(8, 1, 2, 1), images, cross_entropy),
    "vit": (lambda: Vit(8, 4, 1, 4, 1, 2, 2), images, cross_entropy),
    "regression": (
        lambda: Mlp(4, 5, 1, 3, torch.tanh),
        lambda: (torch.randn(6, 4).double(), torch.randn(6, 3).double()),
        squared_error,
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_the_hessians_of_our_models_are_those_of_double_backward(name):
    torch.manual_seed(0)
    make, data, loss = OURS[name]
    model, batch = make().double(), data()
    H = hessian(Objective(model, loss, batch))
    some = torch.randperm(H.n)[:12]
    want = double_backward(model, batch, loss, "train", some)
    got = H @ torch.eye(H.n).double()[:, some]
    assert want.norm() > 1e-4
    assert (got.T - want).norm() <= 1e-12 * want.norm()


def test_batches_count_by_their_examples():
    torch.manual_seed(0)
    model, (x, y) = Mlp(4, 5, 2, 3).double(), (torch.randn(64, 4).double(), torch.randint(3, (64,)))
    whole = hessian(Objective(model, cross_entropy, (x, y)))
    parts = [(x[:60], y[:60]), (x[60:], y[60:])]
    v = torch.randn(whole.n).double()
    for operator in (
        hessian(Objective(model, cross_entropy, parts), keep=True),
        hessian(Objective(model, cross_entropy, parts), keep=False),
        hessian(Objective(model, cross_entropy, parts)),
        hessian(Objective(model, cross_entropy, (x, y), micro_batch=7)),
    ):
        assert (operator @ v - whole @ v).norm() <= 1e-12 * (whole @ v).norm()
        assert (operator.gradient - whole.gradient).norm() <= 1e-12 * whole.gradient.norm()
        assert operator.loss == pytest.approx(whole.loss, rel=1e-12)


def test_traces_are_kept_where_memory_allows(monkeypatch):
    model, (x, y) = Mlp(4, 5, 2, 3).double(), features()
    objective = Objective(model, cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert hessian(objective).keep
    monkeypatch.setattr(curvature, "free_memory", lambda device: 100.0)
    assert not hessian(objective).keep
    assert curvature.free_memory(torch.device("cpu")) == 100.0


def count_traces(operator):
    seen, traced = [], operator.trace
    operator.trace = lambda batch: (seen.append(1), traced(batch))[1]
    return seen


def test_a_block_of_vectors_is_made_of_its_products_and_traced_once():
    model, (x, y) = Mlp(4, 5, 2, 3).double(), features()
    for keep in (True, False):
        H = hessian(Objective(model, cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])]), keep=keep)
        seen = count_traces(H)
        V = torch.randn(H.n, 3).double()
        assert torch.equal(H @ V, torch.stack([H @ v for v in V.T], 1))
        assert H.products == 6
        assert len(seen) == (0 if keep else 8)  # two batches for the block, two for each of three vectors


def test_float32_agrees_with_float64_to_1e_5():
    model, batch, _ = net("LayerNorm")
    v = torch.randn(sum(p.numel() for p in model.parameters())).double()
    want = hessian(Objective(model, cross_entropy, batch)) @ v
    got = hessian(Objective(model.float(), cross_entropy, (batch[0].float(), batch[1]))) @ v
    assert got.dtype == torch.float32
    assert (got - want).norm() <= 1e-5 * want.norm()


def test_two_operators_live_at_once():
    model, batch, objective = net("BatchNorm in training")
    one, two = hessian(objective), hessian(Objective(model, cross_entropy, batch, mode="eval"))
    v = torch.randn(one.n).double()
    first, second = one @ v, two @ v
    assert (first - second).norm() > 1e-3 * first.norm()
    assert torch.equal(one @ v, first)
    assert torch.equal(two @ v, second)


@pytest.mark.parametrize("name", NETS)
def test_a_look_leaves_no_trace(name):
    model, batch, _ = net(name)
    model.eval()
    cross_entropy(model(batch[0]), batch[1]).mean().backward()
    before = [x.clone() for x in (*model.parameters(), *model.buffers())]
    grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    random = torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    buffers = [id(b) for b in model.buffers()]
    objective = Objective(model, cross_entropy, batch, mode="train")
    for keep in (True, False):
        hessian(objective, keep=keep) @ torch.ones(sum(p.numel() for p in model.parameters())).double()
    assert all(torch.equal(a, b) for a, b in zip((*model.parameters(), *model.buffers()), before, strict=True))
    assert all(p.grad is g and (g is None or torch.equal(g, old)) for p, (g, old) in zip(model.parameters(), grads, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert buffers == [id(b) for b in model.buffers()]


def test_a_step_makes_the_operator_stale():
    model, _, objective = net("LayerNorm")
    H = hessian(objective)
    with torch.no_grad():
        model.one.bias += 1
    with pytest.raises(ValueError, match="the weights have changed"):
        H @ torch.ones(H.n)


def test_a_gradient_that_is_constant_has_a_hessian_of_zeros():
    model, (x, y) = nn.Linear(4, 3).double(), (torch.randn(5, 4).double(), torch.randn(5, 3).double())
    H = hessian(Objective(model, lambda z, y: (z - y).abs().mean(1), (x, y)))
    assert torch.equal(H @ torch.ones(H.n), torch.zeros(H.n).double())


def test_what_cannot_be_differentiated_is_named():
    x, y = features()
    loss = cross_entropy

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * 2

    class Wrapped(nn.Module):
        def __init__(self, then):
            super().__init__()
            self.net, self.then = nn.Linear(4, 3).double(), then

        def forward(self, x):
            return self.then(self.net(x))

    def look(then):
        return hessian(Objective(Wrapped(then), loss, (x, y)))

    with pytest.raises(ValueError, match="detach"):
        look(lambda z: z.detach())
    with pytest.raises(ValueError, match="no second derivative"):
        H = look(Once.apply)
        H @ torch.ones(H.n)
    with pytest.raises(ValueError, match="autocast out of the model"):
        hessian(Objective(Wrapped(lambda z: z.bfloat16()), F.cross_entropy, (x, y)))
    with pytest.raises(ValueError, match=r"model.float\(\)"):
        hessian(Objective(nn.Linear(4, 3).bfloat16(), F.cross_entropy, (x.bfloat16(), y)))
    with pytest.raises(ValueError, match=r"torch.int64.*convert them"):
        Objective(nn.Linear(4, 3), loss, (x.long(), y))
    with pytest.raises(ValueError, match="sparse=False"):
        hessian(Objective(nn.Embedding(7, 3, sparse=True), loss, (torch.tensor([1, 2]), torch.tensor([0, 1]))))
    with pytest.raises(ValueError, match="keep must be"):
        hessian(Objective(Wrapped(nn.Identity()), loss, (x, y)), keep="yes")
    with pytest.raises(ValueError, match="floating-point"):
        H = look(nn.Identity())
        H @ torch.ones(H.n, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="outside of it"):
        look(nn.Identity())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_batch_that_fits(error):
    class Hungry(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.room = nn.Linear(4, 3).double(), 100

        def forward(self, x):
            if x.shape[0] > self.room:
                raise error
            return self.net(x)

    model = Hungry()
    objective = Objective(model, cross_entropy, (torch.randn(40, 4).double(), torch.randint(3, (40,))))
    model.room = 12
    with pytest.raises(ValueError, match=r"40 examples at a time, 10 fit: write micro_batch=10 and keep=False"):
        hessian(objective)
    model.room = 0
    with pytest.raises(ValueError, match="even with one example"):
        hessian(objective)
    assert all(p.grad is None for p in model.parameters())


def test_a_compiled_model_is_looked_at_uncompiled():
    torch.manual_seed(0)
    model, batch = Mlp(4, 5, 1, 3).double(), features()
    plain = hessian(Objective(model, cross_entropy, batch))
    v = torch.randn(plain.n).double()
    model.compile(backend="aot_eager")
    try:
        got = hessian(Objective(model, cross_entropy, batch, check=False)) @ v
    finally:
        torch._dynamo.reset()
    assert torch.equal(got, plain @ v)


def test_the_sharpness_of_a_parabola_is_read_off():
    model = nn.Linear(1, 1, bias=False).double()
    H = hessian(
        Objective(model, lambda z, y: 0.5 * (z - y).square().mean(1), (torch.full((3, 1), 4.0).double(), torch.zeros(3, 1).double()))
    )
    assert (H @ torch.ones(1)).item() == 16.0
    assert math.isclose(H.loss, 8 * model.weight.item() ** 2)

"""What the suites are made of: label noise, planted ratings, binary cross-entropy, bad starts, variants."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from velodrome.bench.catalog import workload
from velodrome.bench.protocol import seed_everything
from velodrome.data.noise import noisy
from velodrome.data.ratings import ratings
from velodrome.discover import workload_names
from velodrome.layers.initial import scaled
from velodrome.losses.binary_cross_entropy import binary_cross_entropy
from velodrome.models.factors import Factors
from velodrome.models.mlp import Mlp
from velodrome.models.resnet import ResNet
from velodrome.models.rnn import Rnn

VARIANTS = [f"{name}+{v}" for name in workload_names() for v, about in workload(name).variants.items() if about.scale == 1]


def test_exactly_the_share_of_labels_is_wrong_every_class_alike_and_always_the_same_ones():
    targets = torch.arange(10_000) % 10
    wrong = noisy(targets, 0.2, 10)
    assert int((wrong != targets).sum()) == 2000
    counts = torch.bincount(wrong, minlength=10)
    assert (counts - 1000).abs().max() < 4 * (2 * 2000 * 0.1) ** 0.5
    assert torch.equal(wrong, noisy(targets, 0.2, 10))
    assert not torch.equal(wrong, noisy(targets, 0.2, 10, seed=1))
    assert noisy(targets, 0, 10) is targets
    for share, classes in ((1.0, 10), (-0.1, 10), (0.2, 1)):
        with pytest.raises(ValueError):
            noisy(targets, share, classes)


def test_ratings_are_split_without_overlap_and_the_planted_matrix_has_the_error_of_the_noise():
    train, valid, everything = ratings("train"), ratings("validation"), ratings(None)
    pairs = {tuple(p) for p in everything.inputs.tolist()}
    assert len(pairs) == 40_000 == len(train.inputs) + len(valid.inputs)
    assert torch.equal(torch.cat((train.inputs, valid.inputs)), everything.inputs)
    quiet = ratings(None, sigma=1e-6)
    assert torch.equal(quiet.inputs, everything.inputs)
    error = (everything.targets - quiet.targets).double().square()
    assert abs(error.mean() - 0.09) < 4 * error.std() / len(error) ** 0.5


def test_ratings_have_the_rank_they_are_planted_with():
    full = ratings(None, rows=30, columns=20, rank=2, seen=300, sigma=1e-9)
    seen = torch.full((30, 20), float("nan"))
    seen[full.inputs[:, 0], full.inputs[:, 1]] = full.targets
    # Biases add rank 2: of any completely seen 5 x 5 minor the fifth singular value is 0.
    rows = seen.isfinite().sum(1).argsort(descending=True)[:5]
    columns = seen[rows].isfinite().all(0).nonzero().flatten()[:5]
    assert len(columns) == 5
    values = torch.linalg.svdvals(seen[rows][:, columns].double())
    assert values[4] < 1e-5 * values[0] < values[3]


def test_popular_rows_are_seen_more_often():
    counts = torch.bincount(ratings(None).inputs[:, 0], minlength=600)
    assert counts[:60].sum() > 3 * counts[-60:].sum()


def test_binary_cross_entropy_is_torchs_mean_per_example():
    z, y = torch.randn(5, 3, 4), torch.rand(5, 12)
    want = torch.stack([F.binary_cross_entropy_with_logits(a.flatten(), b) for a, b in zip(z, y, strict=True)])
    assert torch.allclose(binary_cross_entropy(z, y), want, atol=1e-6)
    for outputs, targets in ((z, y[:, :3]), (z, y.long()), (z[:3], y)):
        with pytest.raises(ValueError):
            binary_cross_entropy(outputs, targets)


def test_a_bad_start_scales_matrices_and_nothing_else():
    plain, large = Mlp(6, 5, 1, 3, seed=1), scaled(partial(Mlp, 6, 5, 1, 3, seed=1), 3.0)
    for (name, p), q in zip(plain.named_parameters(), large.parameters(), strict=True):
        assert torch.equal(3 * p if name.endswith("weight") else p, q)


def test_a_factor_model_is_its_formula():
    model = Factors(5, 4, 3, seed=0).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    found = model(torch.tensor([[2, 1], [4, 3]]))
    for (r, c), y in zip([(2, 1), (4, 3)], found, strict=True):
        want = model.mean + model.row_bias.weight[r, 0] + model.column_bias.weight[c, 0] + model.row.weight[r] @ model.column.weight[c]
        assert torch.allclose(y, want)


def test_a_recurrent_layer_starts_orthogonal_gate_by_gate_and_the_lstm_remembers():
    model = Rnn(7, 6, 1, "lstm", seed=0)
    for gate in model.cells.weight_hh_l0.detach().chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(6), atol=1e-5)
    assert model.cells.bias_ih_l0[6:12].eq(1).all()
    assert model.cells.bias_ih_l0[:6].eq(0).all()


def test_a_residual_network_without_norms_starts_with_empty_branches():
    model = ResNet(8, 4, norm="none", seed=0).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    block = model.blocks[0]
    y = model.conv(x).relu()
    assert torch.equal(block(y), y)
    assert not any("norm" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_in_what_it_says_and_has_targets_of_its_own_or_none(name):
    v, base = workload(name), workload(name.split("+")[0])
    assert v.name == name
    assert name.split("+")[0] in v.summary
    assert list(v.targets) == sorted(set(v.targets), reverse=True)
    assert len(v.targets) in (0, len(base.targets))  # none: a race sets them
    assert (v.steps, v.batch_size, v.metric_name) == (base.steps, base.batch_size, base.metric_name)
    seed_everything(0)
    ours = {n: (p.shape, float(p.detach().double().norm())) for n, p in v.model().named_parameters()}
    seed_everything(0)
    theirs = {n: (p.shape, float(p.detach().double().norm())) for n, p in base.model().named_parameters()}
    assert v.load is not base.load or ours != theirs or name.endswith(("tanh", "post"))


def test_an_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"digits has no variant 'wid': did you mean 'wide'\?"):
        workload("digits+wid")
    with pytest.raises(ValueError, match="mnist has no variant 'x': it has none"):
        workload("mnist+x")
